"""Large view synthesis models in JAX: from a few posed photographs, a transformer renders views.

    cameras = lvsm_jax.Cameras(c2w, fxfycxcy)
    model = lvsm_jax.load("path/to/export")
    renders = model(images, input_cameras, target_cameras)

The public names are those of `__init__.pyi`. Each is imported when it is first used, so that data
workers, which use only the NumPy parts of this package, do not load JAX.
"""

import lazy_loader

__version__ = "0.1.0"  # pyproject.toml reads it from here

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
