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
    from lvsm_jax.models.cameras import Cameras
    from lvsm_jax.models.efficient_lvsm import EfficientLVSM, EfficientLVSMConfig
    from lvsm_jax.models.lvsm import (
        LVSMDecoderOnly,
        LVSMDecoderOnlyConfig,
        LVSMEncoderDecoder,
        LVSMEncoderDecoderConfig,
    )
    from lvsm_jax.rendering.latents import LatentCache, latent_cache
    from lvsm_jax.rendering.session import Session
    from lvsm_jax.rendering.view_cache import (
        ViewCache,
        add_views,
        init_cache,
        remove_views,
        render,
        render_path,
        replace_view,
    )
    from lvsm_jax.scenes.photograph import Photograph, PosedCamera
    from lvsm_jax.weights import convert, torch_file
    from lvsm_jax.weights.exports import load, save

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
    "Cameras": "models.cameras",
    "EfficientLVSM": "models.efficient_lvsm",
    "EfficientLVSMConfig": "models.efficient_lvsm",
    "LVSMDecoderOnly": "models.lvsm",
    "LVSMDecoderOnlyConfig": "models.lvsm",
    "LVSMEncoderDecoder": "models.lvsm",
    "LVSMEncoderDecoderConfig": "models.lvsm",
    "LatentCache": "rendering.latents",
    "latent_cache": "rendering.latents",
    "Photograph": "scenes.photograph",
    "PosedCamera": "scenes.photograph",
    "Session": "rendering.session",
    "ViewCache": "rendering.view_cache",
    "add_views": "rendering.view_cache",
    "init_cache": "rendering.view_cache",
    "remove_views": "rendering.view_cache",
    "render": "rendering.view_cache",
    "render_path": "rendering.view_cache",
    "replace_view": "rendering.view_cache",
    "load": "weights.exports",
    "save": "weights.exports",
}


def __getattr__(name: str) -> Any:
    if name in ("convert", "torch_file"):
        return importlib.import_module(f"lvsm_jax.weights.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(f"lvsm_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lvsm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
