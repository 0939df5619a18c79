"""How much arithmetic a model does, counted from its sizes.

A multiply-accumulate is two FLOPs. Linear layers and attention only: norms, softmax and GELU are
below one per cent at the published size.
"""

import dataclasses

from lvsm_jax.efficient_lvsm import EfficientLVSMConfig


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of a forward pass.

    Attributes:
        linear: of linear layers.
        attention: of `q·kᵀ` and of the weighted sum of values.
    """

    linear: int
    attention: int

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass."""
        return 2 * (self.linear + self.attention)


def forward_macs(
    config: EfficientLVSMConfig, *, views: int, targets: int, height: int, width: int
) -> Macs:
    """Counts a forward pass of one scene, with `views` inputs and `targets` targets.

    The count is linear in views and targets but for the cross-attention, their product.
    """
    tokens = height * width // config.patch_size**2
    d, pixels = config.width, config.patch_size**2
    mlp = 2 * config.mlp_ratio * d * d
    # Of each layer: q, kv and output of self-attention, MLP; keys and values for the targets.
    encoder = 4 * d * d + mlp + 2 * d * d
    # Self-attention, queries and output of cross-attention, MLP.
    decoder = 4 * d * d + 2 * d * d + mlp
    linear = tokens * (
        views * (9 * pixels * d + config.num_layers * encoder)
        + targets * (6 * pixels * d + config.num_layers * decoder + 3 * pixels * d)
    )
    pairs = tokens**2 * (views + targets + views * targets)
    return Macs(linear=linear, attention=2 * d * config.num_layers * pairs)


def training_flops(forward: Macs) -> int:
    """FLOPs of forward and backward pass: the backward takes twice the forward's.

    What `remat` computes again does not count: it is a cost, not work done.
    """
    return 3 * forward.flops
