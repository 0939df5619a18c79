"""Published weights of DINOv2 and DINOv3, read into `Dino`.

A file is first seen as a state dict of the original program, to whose names those of Hugging Face's
files are translated. A torch `Linear` is `[out, in]` there and `[in, out]` here, and our blocks are
stacked.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from lvsm_jax.common.errors import MissingWeightsError, UserError
from lvsm_jax.common.tree import from_named
from lvsm_jax.frozen.dino import TEACHERS, Dino, DinoConfig, rope_periods
from lvsm_jax.weights.state_dict import StateDict, problems, read_checkpoint

Shape = tuple[int, ...]

# The outputs of blocks do not depend on these: neither what they hold nor whether they are there
# is looked at. The mask is that of the bias of the keys, which DINOv3 does not have.
_UNUSED = re.compile(r"(embeddings\.)?mask_token|(layer)?norm\.(weight|bias)|.*\.qkv\.bias_mask")

_MOST_PROBLEMS = 10  # that are told: of a file of another network, all weights are wrong

# How the authors' file ends after the name, and the Hugging Face repository.
_FILES = {
    "dinov3_vits16": ("_pretrain_lvd1689m-08c60483.pth", "dinov3-vits16-pretrain-lvd1689m"),
    "dinov3_vitb16": ("_pretrain_lvd1689m-73cec8be.pth", "dinov3-vitb16-pretrain-lvd1689m"),
    "dinov3_vitl16": ("_pretrain_lvd1689m-8aa4cbdd.pth", "dinov3-vitl16-pretrain-lvd1689m"),
    "dinov2_vits14": ("_pretrain.pth", "dinov2-small"),
    "dinov2_vitb14": ("_pretrain.pth", "dinov2-base"),
    "dinov2_vitl14": ("_pretrain.pth", "dinov2-large"),
}


def find_teacher(path: epath.PathLike, name: str) -> epath.Path:
    """The file of a teacher's weights: `path` if given, else the authors' file in `weights/`.

    MissingWeightsError says where to get it and where to put it.
    """
    ending, repository = _FILES[name]
    path = epath.Path(path or f"weights/{name}{ending}")
    if path.is_file():
        return path
    version = name.partition("_")[0]
    licence = " (it asks to accept a licence)" if version == "dinov3" else ""
    raise MissingWeightsError(
        f"REPA needs the teacher {name}, and {path} is missing: get {name}{ending} by the links on "
        f"https://github.com/facebookresearch/{version}{licence}, or model.safetensors from "
        f"https://huggingface.co/facebook/{repository}, and put it there or name its place in "
        "--config.repa.teacher_weights; or go without by --config.repa.weight=0"
    )


def load_teacher(
    path: epath.PathLike, name: str, *, num_blocks: int | None = None, **options: str
) -> Dino:
    """Reads one of `TEACHERS` from a published file: a `.pth` or Hugging Face's `.safetensors`.

    Of its blocks the first `num_blocks` are kept, by default all; `options` are the `dtype` and
    `attention` of its configuration. UserError names all weights that are not this teacher's.
    """
    path, config = find_teacher(path, name), dataclasses.replace(TEACHERS[name], **options)
    try:
        return from_state_dict(read_checkpoint(path).arrays, config, num_blocks=num_blocks)
    except UserError as error:
        raise UserError(f"{path} as {name}: {error}") from error


def from_state_dict(
    arrays: StateDict, config: DinoConfig, *, num_blocks: int | None = None
) -> Dino:
    """`load_teacher` of a file's arrays; kernels are kept in `config.dtype`, the rest in float32.

    UserError for weights that are missing, surplus, mis-shaped, of another type or not finite.
    """
    depth = num_blocks or config.num_layers
    if not 1 <= depth <= config.num_layers:
        raise UserError(f"{depth} blocks of a teacher that has {config.num_layers}")
    kept = dataclasses.replace(config, num_layers=depth)
    leaves = _leaves(_as_original(arrays, config), kept)
    template = jax.eval_shape(lambda key: Dino(kept, rngs=nnx.Rngs(key)), jax.random.key(0))
    dtypes = {name: config.dtype if name.endswith("kernel") else "float32" for name in leaves}
    return from_named(template, {name: jnp.asarray(leaves[name], dtypes[name]) for name in leaves})


def _leaves(weights: dict[str, np.ndarray], config: DinoConfig) -> dict[str, np.ndarray]:
    """Our arrays by name, of the original program's."""
    tokens = [weights[name][0] for name in ("cls_token", "storage_tokens") if name in weights]
    kernel = weights["patch_embed.proj.weight"]  # [d, colour, row, column]
    leaves = {
        "patches.kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, config.width),
        "patches.bias": weights["patch_embed.proj.bias"],
        "special": np.concatenate(tokens),
    }
    if config.position_grid:
        positions = weights["pos_embed"][0]  # of the class token, then of the patches
        leaves["special"] = leaves["special"] + positions[:1]
        leaves["positions"] = positions[1:].reshape(*[config.position_grid] * 2, config.width)
    else:
        leaves["periods"] = weights.get("rope_embed.periods", rope_periods(config.head_dim))
    for name, (torch_name, shape) in _block(config).items():
        layers = [weights[f"blocks.{i}.{torch_name}"] for i in range(config.num_layers)]
        leaves[f"blocks.{name}"] = np.stack([x.T for x in layers] if len(shape) == 2 else layers)
    return leaves


def _as_original(arrays: StateDict, config: DinoConfig) -> dict[str, np.ndarray]:
    """The state dict of the original program, after all of it has been checked."""
    arrays = {
        name: _without_key_bias(name, array, config)
        for name, array in arrays.items()
        if not _UNUSED.fullmatch(name)
    }
    shapes = _shapes(config)
    files = _V2_FILES if config.position_grid else _V3_FILES
    named = max(
        ({name: _names(name, *file, config) for name in shapes} for file in files),
        key=lambda named: sum(part in arrays for parts in named.values() for part in parts),
    )
    expected = {
        part: (shapes[name][0] // len(parts), *shapes[name][1:])
        for name, parts in named.items()
        for part in parts
        if part is not None
    }
    if found := problems(arrays, list(expected), expected):
        if len(found) > _MOST_PROBLEMS:
            found[_MOST_PROBLEMS:] = [f"and {len(found) - _MOST_PROBLEMS} more"]
        raise UserError("weights that do not fit:\n  " + "\n  ".join(found))
    arrays[None] = np.zeros(config.width)
    return {
        name: np.concatenate([arrays[part] for part in parts], dtype=np.float32)
        for name, parts in named.items()
        if parts
    }


def _without_key_bias(name: str, array: np.ndarray, config: DinoConfig) -> np.ndarray:
    """DINOv3's program multiplies the keys' part of a bias by zero: anything may be there."""
    if config.position_grid or not name.endswith(".qkv.bias") or array.shape != (3 * config.width,):
        return array
    return np.where(np.arange(array.size) // config.width == 1, array.dtype.type(0), array)


def _shapes(config: DinoConfig) -> dict[str, Shape]:
    """The original program's weights that the outputs of blocks depend on."""
    width, patch = config.width, config.patch_size
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    if config.position_grid:
        shapes["pos_embed"] = (1, 1 + config.position_grid**2, width)
    else:
        shapes["storage_tokens"] = (1, config.num_special - 1, width)
        shapes["rope_embed.periods"] = (config.head_dim // 4,)
    for i in range(config.num_layers):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _block(config).values()}
    return shapes


def _block(config: DinoConfig) -> dict[str, tuple[str, Shape]]:
    """Our arrays of a block: the original program's name and shape of each."""
    width, hidden = config.width, config.mlp_ratio * config.width
    return {
        "norm1.scale": ("norm1.weight", (width,)),
        "norm1.bias": ("norm1.bias", (width,)),
        "qkv.kernel": ("attn.qkv.weight", (3 * width, width)),
        "qkv.bias": ("attn.qkv.bias", (3 * width,)),
        "out.kernel": ("attn.proj.weight", (width, width)),
        "out.bias": ("attn.proj.bias", (width,)),
        "gamma1": ("ls1.gamma", (width,)),
        "norm2.scale": ("norm2.weight", (width,)),
        "norm2.bias": ("norm2.bias", (width,)),
        "mlp.up.kernel": ("mlp.fc1.weight", (hidden, width)),
        "mlp.up.bias": ("mlp.fc1.bias", (hidden,)),
        "mlp.down.kernel": ("mlp.fc2.weight", (width, hidden)),
        "mlp.down.bias": ("mlp.fc2.bias", (width,)),
        "gamma2": ("ls2.gamma", (width,)),
    }


def _names(
    name: str, parts: Mapping[str, str], projections: tuple[str, ...], config: DinoConfig
) -> tuple[str | None, ...]:
    """Of an original weight, the names in a file that make it up, one after the other by its rows.

    None for zeros (the bias of keys), and no names for what such a file does not have. Without
    `parts`, the file is the original program's.
    """
    if parts and name == "rope_embed.periods":
        return ()
    for original, theirs in parts.items():
        name = name.replace(original, theirs)
    if not parts or "attn.qkv" not in name:
        return (name,)
    query, key, value = (name.replace("attn.qkv", part) for part in projections)
    return query, None if name.endswith("bias") and not config.position_grid else key, value


# Names of Hugging Face's files for parts of the original's, and those of queries, keys and values,
# which are one in the original: the published ones, then those of transformers 5.
_PROJECTIONS = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_OLD_PROJECTIONS = tuple(f"attention.attention.{x}" for x in ("query", "key", "value"))
_DINOV2 = {
    "blocks.": "encoder.layer.",
    "attn.proj": "attention.o_proj",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_DINOV3 = _DINOV2 | {
    "blocks.": "layer.",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
_V2_FILES = (
    ({}, ()),
    (_DINOV2 | {"attn.proj": "attention.output.dense"}, _OLD_PROJECTIONS),
    (_DINOV2, _PROJECTIONS),
)
_V3_FILES = (
    ({}, ()),
    (_DINOV3, _PROJECTIONS),
    (_DINOV3 | {"blocks.": "model.layer."}, _PROJECTIONS),
)
