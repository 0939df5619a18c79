"""Weights on disk: exports, and those of the published PyTorch programs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["convert", "torch_file"])
