"""Large view synthesis models in JAX: from a few posed photographs, a transformer renders views.

    cameras = lvsm_jax.Cameras(c2w, fxfycxcy)
    model = lvsm_jax.load("path/to/export")
    renders = model(images, input_cameras, target_cameras)

Names are imported when they are first used, so that data workers, which use only the NumPy parts
of this package, do not load JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvsm_jax import convert, torch_file
    from lvsm_jax.cache import (
        ViewCache,
        add_views,
        init_cache,
        remove_views,
        render,
        render_path,
        replace_view,
    )
    from lvsm_jax.cameras import Cameras
    from lvsm_jax.checkpoint import load, save
    from lvsm_jax.efficient_lvsm import EfficientLVSM, EfficientLVSMConfig
    from lvsm_jax.latents import LatentCache, latent_cache
    from lvsm_jax.lvsm import (
        LVSMDecoderOnly,
        LVSMDecoderOnlyConfig,
        LVSMEncoderDecoder,
        LVSMEncoderDecoderConfig,
    )
    from lvsm_jax.photograph import Photograph, PosedCamera
    from lvsm_jax.session import Session

__all__ = [
    "Cameras",
    "EfficientLVSM",
    "EfficientLVSMConfig",
    "LVSMDecoderOnly",
    "LVSMDecoderOnlyConfig",
    "LVSMEncoderDecoder",
    "LVSMEncoderDecoderConfig",
    "LatentCache",
    "Photograph",
    "PosedCamera",
    "Session",
    "ViewCache",
    "add_views",
    "convert",
    "init_cache",
    "latent_cache",
    "load",
    "remove_views",
    "render",
    "render_path",
    "replace_view",
    "save",
    "torch_file",
]

_MODULES = {
    "Cameras": "cameras",
    "EfficientLVSM": "efficient_lvsm",
    "EfficientLVSMConfig": "efficient_lvsm",
    "LVSMDecoderOnly": "lvsm",
    "LVSMDecoderOnlyConfig": "lvsm",
    "LVSMEncoderDecoder": "lvsm",
    "LVSMEncoderDecoderConfig": "lvsm",
    "LatentCache": "latents",
    "latent_cache": "latents",
    "Photograph": "photograph",
    "PosedCamera": "photograph",
    "Session": "session",
    "ViewCache": "cache",
    "add_views": "cache",
    "init_cache": "cache",
    "remove_views": "cache",
    "render": "cache",
    "render_path": "cache",
    "replace_view": "cache",
    "load": "checkpoint",
    "save": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in ("convert", "torch_file"):
        return importlib.import_module(f"lvsm_jax.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(f"lvsm_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lvsm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
