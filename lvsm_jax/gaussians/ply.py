"""Gaussians in PLY files, as viewers of 3D Gaussian splats read and write them.

One vertex a Gaussian: `x y z`, normals of zero, `f_dc_0…2` (colour − 0.5 over the constant
spherical harmonic), `opacity` (its logit), `scale_0…2` (their logarithms), `rot_0…3` (w, x, y, z).
Their world is that of the cameras which the user gave, with a camera's axes as in OpenCV.
"""

import dataclasses

import numpy as np
from etils import epath
from jaxtyping import Float

from lvsm_jax.common.errors import UserError
from lvsm_jax.common.files import atomic_write, expand
from lvsm_jax.gaussians.gaussians import SH_DEGREE_0, Gaussians

_GROUPS = {
    "means": ("x", "y", "z"),
    "normals": ("nx", "ny", "nz"),
    "colors": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacities": ("opacity",),
    "scales": ("scale_0", "scale_1", "scale_2"),
    "quaternions": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1"}
_LONGEST_HEADER = 2**16
# Opacities of 0 and 1 have no finite logit. The nearest that is written is one in a million.
_LEAST = 1e-6


def write_ply(path: epath.PathLike, gaussians: Gaussians, *, min_opacity: float = 0.0) -> int:
    """Writes Gaussians `[n]` and returns how many.

    Those less opaque than `min_opacity` are left out. The file appears whole or not at all, and
    replaces what is there. UserError for values that are not finite, a scale or opacity that is
    none, or where nothing is left to write.
    """
    if not 0 <= min_opacity <= 1:
        raise UserError(f"min_opacity is {min_opacity}, expected 0 to 1")
    arrays = _checked(gaussians)
    kept = arrays["opacities"] >= min_opacity
    if not kept.any():
        raise UserError(
            f"none of {len(kept):,} Gaussians is as opaque as {min_opacity}: the most opaque has "
            f"{arrays['opacities'].max(initial=0):.3g}"
        )
    arrays = {name: x[kept] for name, x in arrays.items()}
    opacities = np.clip(arrays["opacities"], _LEAST, 1 - _LEAST)
    columns = {
        **arrays,
        "normals": np.zeros_like(arrays["means"]),
        "colors": (arrays["colors"] - 0.5) / SH_DEGREE_0,
        "opacities": (np.log(opacities) - np.log1p(-opacities))[:, None],
        "scales": np.log(arrays["scales"]),
    }
    table = np.concatenate([columns[group] for group in _GROUPS], axis=1).astype("<f4")
    names = [name for group in _GROUPS.values() for name in group]
    properties = "".join(f"property float {name}\n" for name in names)
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n"
        f"{properties}end_header\n"
    )
    with atomic_write(path) as local, open(local, "wb") as file:
        file.write(header.encode())
        file.write(table.tobytes())
    return len(table)


def read_ply(path: epath.PathLike) -> Gaussians:
    """The Gaussians `[n]` of a file, NumPy arrays in float32; rotations have length 1.

    Properties are found by their names. UserError, naming the file, for what is no such file, is
    cut short, or has colours that depend on the direction.
    """
    data = expand(path).read_bytes()
    try:
        kind, count, properties, start = _read_header(data)
        names = [name for name, _ in properties]
        if any(name.startswith("f_rest_") for name in names):
            raise UserError("colours that depend on the direction (f_rest_0 …) are not read")
        if missing := [
            name
            for group, members in _GROUPS.items()
            for name in members
            if name not in names and group != "normals"
        ]:
            raise UserError(f"its vertices lack {', '.join(missing)}: these are no Gaussians")
        table = _read_table(data[start:], kind, count, properties)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

    def group(name: str) -> Float[np.ndarray, "n c"]:
        return np.stack([table[names.index(member)] for member in _GROUPS[name]], -1)

    length = np.linalg.norm(group("quaternions"), axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # is checked below
        found = {
            "means": group("means"),
            "quaternions": group("quaternions") / np.where(length > 0, length, 1),
            "scales": np.exp(group("scales")),
            "opacities": 1 / (1 + np.exp(-group("opacities")[:, 0])),
            "colors": np.maximum(0.5 + SH_DEGREE_0 * group("colors"), 0),
        }
    result = Gaussians(**{name: x.astype(np.float32) for name, x in found.items()})
    try:
        _checked(result)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return result


def move(
    gaussians: Gaussians,
    rotation: Float[np.ndarray, "3 3"],
    translation: Float[np.ndarray, "3"],
    scale: float,
) -> Gaussians:
    """NumPy Gaussians `[n]` where x has become `scale · rotation · x + translation`."""
    means = scale * np.asarray(gaussians.means, np.float64) @ rotation.T + translation
    turned = _multiply(_quaternion(rotation), np.asarray(gaussians.quaternions, np.float64))
    return dataclasses.replace(
        gaussians,
        means=means.astype(np.float32),
        quaternions=turned.astype(np.float32),
        scales=(scale * np.asarray(gaussians.scales, np.float64)).astype(np.float32),
    )


def _checked(gaussians: Gaussians) -> dict[str, Float[np.ndarray, "n ..."]]:
    """The arrays in float64; UserError for values that no Gaussian has."""
    fields = dataclasses.fields(Gaussians)
    arrays = {x.name: np.asarray(getattr(gaussians, x.name), np.float64) for x in fields}
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise UserError(f"{name} of Gaussians are not finite")
    if not (arrays["scales"] > 0).all():
        raise UserError("scales of Gaussians are not above 0")
    if not ((arrays["opacities"] >= 0) & (arrays["opacities"] <= 1)).all():
        raise UserError("opacities of Gaussians are not in [0, 1]")
    return arrays


def _read_header(data: bytes) -> tuple[str, int, list[tuple[str, str]], int]:
    """Format, number of vertices, their properties (name, type), and where the data begins."""
    end = data.find(b"end_header\n", 0, _LONGEST_HEADER)
    if not data.startswith(b"ply\n") or end < 0:
        raise UserError("is no PLY file with lines that end as on Unix")
    kind, count, properties, element = "", -1, [], ""
    for line in data[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        match words:
            case ["format", kind, "1.0"]:
                pass
            case ["element", element, number] if number.isdecimal() and len(number) < 12:
                count = int(number) if element == "vertex" else count
                if element != "vertex" and int(number):
                    raise UserError(f"has the element {element}, expected vertices alone")
            case ["property", type_, name] if element == "vertex" and type_ in _TYPES:
                properties.append((name, _TYPES[type_]))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise UserError(f"has the line {line[:60]!r}, which is not understood")
    if kind not in ("ascii", "binary_little_endian") or count < 1:
        raise UserError(f"has {count} vertices in {kind!r}, expected ASCII or little endian")
    if len({name for name, _ in properties}) < len(properties):
        raise UserError("names a property twice")
    return kind, count, properties, end + len(b"end_header\n")


def _read_table(
    data: bytes, kind: str, count: int, properties: list[tuple[str, str]]
) -> list[Float[np.ndarray, "n"]]:
    """The values of each property."""
    if kind == "ascii":
        words = data.split()
        if len(words) != count * len(properties):
            raise UserError(f"has {len(words)} numbers, expected {count} × {len(properties)}")
        try:
            numbers = np.array(words, np.float64)
        except ValueError:
            raise UserError("holds what is no number") from None
        return list(numbers.reshape(count, -1).T)
    layout = np.dtype(properties)
    if len(data) != count * layout.itemsize:
        raise UserError(f"has {len(data)} bytes of data, expected {count} × {layout.itemsize}")
    rows = np.frombuffer(data, layout)
    return [rows[name].astype(np.float64) for name, _ in properties]


def _quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """(w, x, y, z) of a rotation matrix: the eigenvector that is exact for each."""
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(rotation, np.float64)
    products = [
        [a + e + i, h - f, c - g, d - b],
        [h - f, a - e - i, b + d, c + g],
        [c - g, b + d, e - a - i, f + h],
        [d - b, c + g, f + h, i - a - e],
    ]
    return np.linalg.eigh(np.array(products))[1][:, -1]


def _multiply(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """The product a ⊗ b of quaternions."""
    w, x, y, z = a
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    return b @ left.T
