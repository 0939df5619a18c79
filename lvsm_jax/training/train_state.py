"""The state of a training run, and the step that carries it forward: pure functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lvsm_jax.batch import Batch, readable_batch
from lvsm_jax.common.checks import check_at_least
from lvsm_jax.common.config import RunConfig, section
from lvsm_jax.common.errors import UserError
from lvsm_jax.common.tree import from_named, named_leaves
from lvsm_jax.evaluation.metrics import psnr
from lvsm_jax.models.architectures import abstract_model, architecture_of, new_model, read_config
from lvsm_jax.models.base import ModelConfig, ViewSynthesisModel
from lvsm_jax.models.gs_lrm import GSLRM, GSLRMConfig
from lvsm_jax.parallel.mesh import check_batch, device_put, state_shardings
from lvsm_jax.training import optimizer
from lvsm_jax.training.copied_points import render_and_compare_points
from lvsm_jax.training.diagnostics import norms_by_layer
from lvsm_jax.training.distances import depth_loss, distance_loss
from lvsm_jax.training.frozen_networks import NO_NETWORKS, Frozen
from lvsm_jax.training.losses import LossConfig, total_loss, where_due
from lvsm_jax.training.optimizer import OptimizerConfig, make_optimizer
from lvsm_jax.training.repa import RepaConfig, Stream, new_projectors, repa_loss

Metrics = dict[str, Float[Array, "*layers"]]
TrainStep = Callable[["TrainState", Any, Frozen], tuple["TrainState", Metrics]]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What the training step depends on; `grad_accumulation` is the number of microbatches."""

    model: ModelConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    num_steps: int
    grad_accumulation: int = 1
    repa: RepaConfig = dataclasses.field(default_factory=RepaConfig)

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "TrainingConfig":
        """Reads an experiment's config, or raises UserError naming a field."""
        run = section(config, "run", RunConfig)
        return cls(
            model=read_config(config),
            optimizer=section(config, "optimizer", OptimizerConfig),
            loss=section(config, "loss", LossConfig),
            num_steps=run.num_steps,
            grad_accumulation=run.grad_accumulation,
            # Runs that were begun before there was such a section go on.
            repa=section(config, "repa", RepaConfig) if "repa" in config else RepaConfig(),
        )

    def __post_init__(self):
        check_at_least("run", self, num_steps=1, grad_accumulation=1)
        self.repa.check_fits(self.model)
        for name in ("distance", "depth"):
            weight = getattr(self.loss, name)
            if weight and not isinstance(self.model, GSLRMConfig):
                raise UserError(
                    f"loss.{name} is {weight}, but only GSLRM has distances of Gaussians"
                )
        if self.loss.points:
            if not getattr(self.model, "copy_head", False):
                raise UserError(
                    f"loss.points is {self.loss.points}, but the model has no head that copies: "
                    "set model.copy_head=True of EfficientLVSM, or loss.points=0"
                )
            if self.repa.weight:
                raise UserError(
                    f"loss.points {self.loss.points} and repa.weight {self.repa.weight} exclude "
                    "each other"
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds."""

    # Any, for leaves may also be shapes or shardings.
    step: Any  # int32, steps done, skipped ones included
    skipped: Any  # int32, how many of them were skipped, for a gradient not finite or too long
    skipped_in_a_row: Any  # int32, how many since the last that was taken
    model: Any
    opt_state: optax.OptState
    ema: Any  # averaged weights, or None
    projectors: Any = None  # of REPA, or None

    @property
    def best_weights(self) -> ViewSynthesisModel:
        """The weights to evaluate and export: the averaged ones where they are kept."""
        return self.model if self.ema is None else self.ema


def _named(model: Any, projectors: Any) -> Any:
    """The tree that the optimizer sees: its names are those of moments in checkpoints."""
    return model if projectors is None else {"model": model, "projectors": projectors}


def new_state(
    config: TrainingConfig, seed: int, model: ViewSynthesisModel | None = None
) -> TrainState:
    """The state before the first step, from fresh weights or those of `model`."""
    if model is None:
        model = new_model(config.model, nnx.Rngs(seed))
    # Of a stream of their own: the model's random weights are those without REPA.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    projectors = new_projectors(config.repa, config.model, nnx.Rngs(key))
    adamw = make_optimizer(config.optimizer, config.num_steps)
    return TrainState(
        **dict.fromkeys(("step", "skipped", "skipped_in_a_row"), jnp.zeros((), jnp.int32)),
        model=model,
        opt_state=adamw.init(_named(model, projectors)),
        ema=jax.tree.map(jnp.copy, model) if config.optimizer.ema_decay else None,
        projectors=projectors,
    )


def abstract_state(config: TrainingConfig, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state on a mesh."""
    shapes = jax.eval_shape(lambda: new_state(config, 0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def init_state(
    config: TrainingConfig, mesh: Mesh, seed: int, model: ViewSynthesisModel | None = None
) -> TrainState:
    """A new state, from `model` or random, whose shards are each made on the device they live on.

    UserError for a model of another architecture or other sizes than `config.model`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    if model is None:
        return jax.jit(lambda: new_state(config, seed), out_shardings=shardings)()
    check_weights_fit(model.config, config.model)
    # As this config's model, which may compute in another way than the given.
    model = from_named(abstract_model(config.model), named_leaves(model))
    model = device_put(model, shardings.model)
    return jax.jit(lambda model: new_state(config, seed, model), out_shardings=shardings)(model)


def check_weights_fit(given: ModelConfig, wanted: ModelConfig) -> None:
    """Raises UserError unless weights made for `given` are those of a `wanted` model."""
    if type(given) is not type(wanted):
        ours, theirs = architecture_of(wanted), architecture_of(given)
        raise UserError(f"the weights are of {theirs}, but architecture is {ours}")
    for field, value in wanted.structure.items():
        found = given.structure[field]
        if found != value:
            raise UserError(f"the weights have {field} {found}, but model.{field} is {value}")


def compiled_step(config: TrainingConfig, mesh: Mesh) -> TrainStep:
    """`train_step` for states, batches and frozen networks on the mesh; the state is donated."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    step = functools.partial(train_step, config)
    options = compiler_options(mesh.devices.flat[0].platform)
    # Shardings are given, not inferred: the second step is to be the program of the first.
    outputs = {"out_shardings": (shardings, None)}
    return jax.jit(step, donate_argnums=0, compiler_options=options, **outputs)


def compiler_options(platform: str) -> dict[str, int | bool]:
    """What XLA is asked for when it compiles the training step for such devices."""
    if platform not in ("gpu", "cuda"):
        return {}
    return {
        # Left to itself, it makes one product of those for queries, keys and values where they
        # are small, and copies each part out of the result.
        "xla_gpu_dot_merger_threshold_mb": 0,
        # On GPUs without sums in bfloat16, as A100s, it computes them in float32. Where the result
        # is rounded only to be taken up again, it would leave that out, and pass the residual
        # stream and its gradient through memory in float32.
        "xla_allow_excess_precision": False,
    }


_REPORTS = ("overflow",)  # terms that are told and are no loss


def train_step(
    config: TrainingConfig, state: TrainState, batch: Batch, frozen: Frozen = NO_NETWORKS
) -> tuple[TrainState, Metrics]:
    """One optimizer step on a batch, with the frozen networks that the losses need.

    The metrics are those before the step: numbers, and the norms of the gradient in each layer of a
    stack (`grad_norm/encoder`).
    """
    loss, terms, mean_psnr, grads = _gradients(config, state, batch, frozen)
    grad_norm = optax.global_norm(grads)
    sound = optimizer.step_is_sound(config.optimizer, state.step, loss, grad_norm)
    adamw = make_optimizer(config.optimizer, config.num_steps)
    trained = state.model, state.projectors
    updates, opt_state = adamw.update(_named(*grads), state.opt_state, _named(*trained))
    updates = jax.tree.unflatten(jax.tree.structure(grads), jax.tree.leaves(updates))
    model, projectors = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old), optax.apply_updates(trained, updates), trained
    )
    opt_state = optimizer.take_if(sound, opt_state, state.opt_state, config.optimizer)
    ema = state.ema
    if ema is not None:
        decay = jnp.where(sound, config.optimizer.ema_decay, 1.0)
        ema = jax.tree.map(lambda ema, new: decay * ema + (1 - decay) * new, ema, model)
    skip = (~sound).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        skipped=state.skipped + skip,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        model=model,
        opt_state=opt_state,
        ema=ema,
        projectors=projectors,
    )
    norms = norms_by_layer(type(state.model).stacks, grads[0])
    at = optimizer.schedule_step(state.opt_state)
    metrics = {
        "loss": loss,
        **{name if name in _REPORTS else f"loss/{name}": term for name, term in terms.items()},
        "psnr": mean_psnr,
        "grad_norm": grad_norm,
        **{f"grad_norm/{stack}": norms for stack, norms in norms.items()},
        "learning_rate": optimizer.learning_rate(config.optimizer, config.num_steps, at),
        "skipped_steps": new.skipped,
        "skipped_in_a_row": new.skipped_in_a_row,
    }
    return new, metrics


def to_unit(images: Array | np.ndarray) -> Float[Array | np.ndarray, "*shape"]:
    """8-bit images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def _gradients(config: TrainingConfig, state: TrainState, batch: Batch, frozen: Frozen) -> tuple:
    """Loss, its terms, PSNR and gradient of model and projectors: means over the microbatches."""

    def loss(trained: tuple, batch: Batch) -> tuple:
        target, remat = to_unit(batch.targets.images), config.model.remat
        render, streams, more = _render(config, *trained, batch)
        total, terms = total_loss(config.loss, frozen, render, target, state.step, remat=remat)
        terms |= more
        if config.loss.points:
            total += config.loss.points * terms["points"]
        if config.loss.depth:
            total += config.loss.depth * terms["depth"]
        if config.loss.distance:
            alone = state.step < config.loss.distance_steps
            total = jnp.where(alone, config.loss.distance * terms["distance"], total)
        if streams:
            nets, stop_step = (trained[1], frozen.teacher), config.repa.stop_step
            sizes = {"patch_size": config.model.patch_size, "remat": remat}
            terms["repa"] = where_due(
                state.step < stop_step if stop_step else None,
                lambda: repa_loss(config.repa, *nets, streams, **sizes),
            )
            total += config.repa.weight * terms["repa"]
        return total, (terms, jax.vmap(psnr, 1)(render, target).mean())

    def gradients(batch: Batch) -> tuple:
        trained = state.model, state.projectors
        (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(trained, batch)
        return total, *aux, grads

    count = config.grad_accumulation
    if count == 1:
        return gradients(batch)
    microbatches = jax.tree.map(lambda x: _microbatches(x, count), batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients, first))

    def add(total: Any, microbatch: Batch) -> tuple:
        return jax.tree.map(lambda a, b: a + b / count, total, gradients(microbatch)), None

    return jax.lax.scan(add, zeros, microbatches)[0]


def _render(
    config: TrainingConfig, model: ViewSynthesisModel, projectors: Any, batch: Batch
) -> tuple[Float[Array, "b t h w 3"], tuple[Stream, ...], dict[str, Float[Array, ""]]]:
    """The targets as the model sees them, the tokens that REPA aligns, and terms of this model."""
    batch = readable_batch(model, batch)
    images, cameras = to_unit(batch.inputs.images), (batch.inputs.cameras, batch.targets.cameras)
    if isinstance(model, GSLRM):
        splats, terms = model.render_and_report(images, *cameras), {}
        if config.loss.distance:
            middle = config.loss.distance_middle
            terms["distance"] = distance_loss(splats.distances, batch.inputs.cameras, middle)
        if config.loss.depth:
            known = batch.inputs.depth is not None  # of a dataset it is not
            far = config.model.far
            terms["depth"] = (
                depth_loss(splats.distances, batch.inputs, far) if known else jnp.zeros(())
            )
        return splats.images, (), terms | {"overflow": splats.overflow.mean()}
    terms = {"points": jnp.zeros(())} if config.loss.points else {}
    if config.loss.points and batch.inputs.depth is not None:
        render, terms["points"] = render_and_compare_points(model, images, batch)
        return render, (), terms
    if projectors is None:
        return model(images, *cameras), (), terms
    pairs = config.repa.encoder_pairs, config.repa.decoder_pairs
    layers = ([layer for layer, _ in stream] for stream in pairs)
    render, *tokens = model.render_with_features(images, *cameras, *layers)
    shown = images, to_unit(batch.targets.images)
    return render, tuple(map(Stream, pairs, shown, tokens)), terms


def _microbatches(rows: Array | np.ndarray, count: int) -> Array:
    """`[b, ...] -> [count, b / count, ...]`, each microbatch with rows of every device."""
    scenes, *rest = rows.shape
    if scenes % count:
        raise UserError(
            f"a batch of {scenes} scenes does not divide into grad_accumulation={count}"
        )
    name = f"{scenes} scenes / grad_accumulation={count}"
    check_batch(jax.sharding.get_abstract_mesh(), name, scenes // count, 0)
    return jnp.moveaxis(jnp.asarray(rows).reshape(scenes // count, count, *rest), 1, 0)
