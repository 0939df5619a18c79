"""Weights in and out: exports, PyTorch's files and names."""
