"""Scenes of posed photographs, in any format that is read here, into our datasets."""
