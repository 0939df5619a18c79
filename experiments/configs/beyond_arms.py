"""What goes past the published recipe, in equal FLOPs, on worlds of 32 px.

    python train.py --config=experiments/configs/beyond_arms.py:decoupled_both --workdir=runs/both
    lvsm eval --config=experiments/configs/beyond_arms.py:decoupled_both \
        --checkpoint=runs/both/export --panel

The name after the colon is an arm:

- `published`: rays in the tokens, two inputs in every step;
- `rays`: the same with 1, 2, 4 or 8 inputs, as all arms after it;
- `rays_relative`: and relative cameras in the attention, by PRoPE;
- `copies`: and a head that copies, which the worlds' depth teaches where to look;
- `copies_turned`: the same in scene frames of any orientation, of scales from 0.4 to 2.5;
- `copies_relative`: relative cameras without rays of the world, so that no frame matters, and these
  scales;
- `copies_decoupled`: `copies` with decoupled halves, of both;
- `all_frames`: `copies_decoupled` in frames of any orientation, of scales from 0.25 to 4;
- `no_frame`: `copies_decoupled` without rays of the world, and these scales;
- `published_longer`: `published` for the time that `all_frames` takes a CPU, three times the FLOPs;
- `decoupled_rays`, `decoupled_relative`, `decoupled_both`: tokens in decoupled halves, with rays,
  with relative cameras, with both;
- `decoupled_film`: the last of these, whose halves modulate each other.

Steps are so many that training takes the FLOPs of `published`, by `cost.flops`, but for
`published_longer`. What rendering worlds costs is the same in each step, and in neither.
"""

from typing import Any

import ml_collections

from configs import worlds_64
from experiments.configs.arms import steps_of_like_cost

_VARIED = {"data.input_counts": (1, 2, 4, 8)}
_BOTH = _VARIED | {"model.camera_encoding": "plucker_prope"}
_DECOUPLED = {"model.halves": "decoupled"}
_COPIES = {"model.copy_head": True, "loss.points": 0.5}
_SCALES = {"data.scale_jitter": 2.5}
_WIDE_SCALES = {"data.scale_jitter": 4.0}

# As measured on one core of an x86 CPU: 0.053 s a step, and 0.157 s of the 650 of `all_frames`.
_STEPS_OF_LIKE_TIME = 1920

ARMS: dict[str, dict[str, Any]] = {
    "published": {},
    "rays": _VARIED,
    "rays_relative": _BOTH,
    "copies": _BOTH | _COPIES,
    "copies_turned": _BOTH | _COPIES | _SCALES | {"data.frame_turn": 180.0},
    "copies_relative": _VARIED | _COPIES | _SCALES | {"model.camera_encoding": "prope"},
    "copies_decoupled": _BOTH | _COPIES | _DECOUPLED,
    "all_frames": _BOTH | _COPIES | _DECOUPLED | _WIDE_SCALES | {"data.frame_turn": 180.0},
    "no_frame": _VARIED | _COPIES | _DECOUPLED | _WIDE_SCALES | {"model.camera_encoding": "prope"},
    "published_longer": {},
    "decoupled_rays": _VARIED | _DECOUPLED,
    "decoupled_relative": _VARIED | _DECOUPLED | {"model.camera_encoding": "prope"},
    "decoupled_both": _BOTH | _DECOUPLED,
    "decoupled_film": _BOTH | {"model.halves": "decoupled_film"},
}


def get_config(arm: str = "published") -> ml_collections.ConfigDict:
    """Width 128, 3 layers, patches of 8, float32."""
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(ARMS)}")
    config = _config(arm)
    steps = steps_of_like_cost(config, _config("published"))
    config.run.num_steps = _STEPS_OF_LIKE_TIME if arm == "published_longer" else steps
    return config


def _config(name: str) -> ml_collections.ConfigDict:
    config = worlds_64.get_config()
    config.model.update(camera_encoding="plucker", copy_head=False)
    config.loss.points = 0.0
    config.data.update(image_height=32, num_inputs=2, input_counts=(), scale_jitter=1.0)
    config.run.update(num_steps=600, batch_size=8, cpu_devices=1, checkpoint_every=100)
    config.run.update(eval_every=0, image_every=0, layers_every=0)
    config.eval.update(batch_size=8)
    for field, value in ARMS[name].items():
        section, field = field.split(".")
        config[section][field] = value
    return config
