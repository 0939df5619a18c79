"""Worlds written to disk, in the format of an imported RealEstate10K."""
