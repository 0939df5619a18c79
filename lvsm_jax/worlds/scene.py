"""A scene: its solids, their surfaces, and its light. Arrays of fixed shapes, whatever is in it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lvsm_jax.worlds.solids import UNROLLED, Geometry, Solids, pack

WINDOWS = 3  # that a shell has room for
PANES = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Light:
    """Where light comes from. Colours are linear radiance.

    Attributes:
        sun: `[3]` unit direction to the sun.
        sun_color: `[3]`, 0 for none.
        bulbs: `[bulbs, 3]` positions.
        bulb_colors: `[bulbs, 3]`, 0 for none.
        above: `[3]` ambient light from above.
        below: `[3]` the same from below.
        zenith: `[3]` colour of the sky.
        horizon: `[3]`.
        ground: `[3]` colour of what is below the horizon.
        rough: `[]` how uneven the horizon is, with trees and hills; 0 for a smooth background.
        reach: `[]` distance within which a corner is darkened, in metres.
    """

    sun: Any
    sun_color: Any
    bulbs: Any
    bulb_colors: Any
    above: Any
    below: Any
    zenith: Any
    horizon: Any
    ground: Any
    rough: Any
    reach: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything in a scene but the cameras.

    Attributes:
        boxes: solids; so are ellipsoids and cylinders.
        shell: `[2, 3]` least and greatest coordinates of the room, or of the open space.
        face_material: `[6]` rows of materials of the faces -x, +x, -y, +y, -z, +z.
        face_open: `[6]` whether the sky is there instead.
        windows: `[WINDOWS, 2, 3]` middles and half sizes of windows in the faces; 0 for none.
        skirting: `[]` height of the skirting of the walls, in metres.
        panes: solids, boxes of glass.
        materials: `[m, width]` rows of `materials.pack`.
        light: the light.
    """

    boxes: Solids
    ellipsoids: Solids
    cylinders: Solids
    shell: Any
    face_material: Any
    face_open: Any
    windows: Any
    skirting: Any
    panes: Solids
    materials: Any
    light: Light

    def geometry(self, at_once: int = UNROLLED) -> Geometry:
        """What rays can meet, compared with so many solids of a form at once."""
        forms = self.boxes, self.ellipsoids, self.cylinders
        counts = jnp.stack([solids.count for solids in forms])
        return Geometry(*(pack(solids) for solids in forms), counts, self.shell, at_once)

    def surface_materials(self, geometry: Geometry) -> Float[Array, "surfaces width"]:
        """Rows of materials by the indices that `cast` gives."""
        forms = [solids.material for solids in (self.boxes, self.ellipsoids, self.cylinders)]
        return self.materials[by_index(geometry, forms, self.face_material)]


def by_index(
    geometry: Geometry, forms: Sequence[Shaped[Array, "_ *n"]], faces: Shaped[Array, "6 *n"]
) -> Shaped[Array, "surfaces *n"]:
    """What there is of each solid, form after form, and of each face, by the indices of `cast`."""
    rows = []
    for form, start, end in zip(forms, geometry.starts, geometry.starts[1:], strict=False):
        padding = end - start - form.shape[0]
        rows.append(jnp.pad(form, ((0, padding), *[(0, 0)] * (form.ndim - 1))))
    return jnp.concatenate([*rows, faces])
