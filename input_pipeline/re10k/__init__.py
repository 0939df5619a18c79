"""RealEstate10K: pixelSplat's chunks into our datasets."""
