"""What a change of the model or of its samples is worth, on the quickstart's small Efficient-LVSM.

    lvsm synthetic data/wide_rooms --train-scenes 2000 --test-scenes 96 \
        --frames 40 --kind-weights 1 0 0 --path-weights 1 0 0 0
    python train.py --config=experiments/configs/arms.py:prope --workdir=runs/prope

In these rooms a camera walks and turns so far that two pictures do not show all of a third, and
more inputs help. Those of the committed reports were of an earlier kind, with less in them. The
name after the colon is an arm; each differs from `plucker` as it says:

- `plucker`: cameras enter as Plücker rays alone; 8 scenes of 2 inputs and 6 targets a step;
- `prope`: instead of them, attention knows the relative cameras of queries and keys, by PRoPE;
- `plucker_prope`: both;
- `last_layer`: all layers of the decoder read the encoder's last one, without co-refinement;
- `shared_streams`: encoder and decoder share self-attention and MLPs;
- `many_scenes`: 16 scenes of 2 targets a step, instead of 8 of 6, for as many FLOPs in all;
- `varied`: each step has 1, 2, 4 or 8 inputs;
- `both_varied`: `plucker_prope` and `varied`;
- `both_varied_scaled`: and each residual branch times 1/√layers;
- `both_varied_log`: `both_varied`, and attention that is the sharper, the more inputs there are;
- `both_varied_cameras`: `both_varied`, on windows of the frames of other sizes and places than the
  middle, in other scales and in scene frames turned by up to 30°;
- `all_changes`: `both_varied`, with scaled residuals, sharper attention and these cameras.

`python -m experiments` trains all of them and compares.
"""

import statistics
from typing import Any

import ml_collections

from configs import quickstart
from lvsm_jax.cost.flops import forward_macs, training_flops
from lvsm_jax.training.train_state import TrainingConfig

_BOTH = {"model.camera_encoding": "plucker_prope"}
_VARIED = {"data.input_counts": (1, 2, 4, 8)}
_SCALED = {"model.residual_scaling": True}
_LOG = {"model.attention_temperature": "log_views"}
_CAMERAS = {"data.smallest_crop": 0.45, "data.scale_jitter": 1.5, "data.frame_turn": 30.0}

ARMS: dict[str, dict[str, Any]] = {
    "plucker": {},
    "prope": {"model.camera_encoding": "prope"},
    "plucker_prope": _BOTH,
    "last_layer": {"model.co_refinement": False},
    "shared_streams": {"model.shared_streams": True},
    "many_scenes": {"run.batch_size": 16, "data.num_targets": 2},
    "varied": _VARIED,
    "both_varied": _BOTH | _VARIED,
    "both_varied_scaled": _BOTH | _VARIED | _SCALED,
    "both_varied_log": _BOTH | _VARIED | _LOG,
    "both_varied_cameras": _BOTH | _VARIED | _CAMERAS,
    "all_changes": _BOTH | _VARIED | _SCALED | _LOG | _CAMERAS,
}


def get_config(arm: str = "plucker") -> ml_collections.ConfigDict:
    """32 px, width 128, 3 layers, float32; 1200 steps."""
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {tuple(ARMS)}")
    config = quickstart.get_config()
    config.model.copy_head = False  # configs/copy_head.py is about that
    config.data.update(path="data/wide_rooms", image_height=32)
    config.data.update(num_views=16, num_inputs=2, num_targets=6, min_span=20, max_span=39)
    # Two runs at a time, a core each.
    config.run.update(num_steps=1200, batch_size=8, cpu_devices=1)
    config.run.update(log_every=50, image_every=0, checkpoint_every=400)
    config.run.update(eval_every=200, eval_scenes=96)
    config.eval.batch_size = 8
    few = config.copy_and_resolve_references()
    for name, value in ARMS[arm].items():
        section, field = name.split(".")
        config[section][field] = value
    if arm == "many_scenes":
        config.run.num_steps = steps_of_like_cost(config, few)
    return config


def steps_of_like_cost(config: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> int:
    """So many steps that training takes the FLOPs of another config's, in tens."""
    ratio = step_flops(other) / step_flops(config)
    return max(1, 10 * round(other.run.num_steps * ratio / 10))


def step_flops(config: ml_collections.ConfigDict) -> int:
    """FLOPs of a training step as `cost.flops` counts them; the mean over numbers of inputs."""
    model, data = TrainingConfig.of(config).model, config.data
    size = data.image_height
    scene = statistics.mean(
        training_flops(
            forward_macs(model, views=views, targets=data.num_targets, height=size, width=size)
        )
        for views in data.input_counts or (data.num_inputs,)
    )
    return round(config.run.batch_size * scene)
