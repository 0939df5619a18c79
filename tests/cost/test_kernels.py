"""Kernels of compiled programs: what they move and compute, and how long that takes."""

import dataclasses

import pytest

from lvsm_jax.cost import hlo
from lvsm_jax.cost.chips import CHIPS, GPUS
from lvsm_jax.cost.groups import first_group
from lvsm_jax.cost.hlo import Collective
from lvsm_jax.cost.kernels import BANDWIDTH_SHARE, SHARES, Kernel, kernels, link_seconds, totals

# A loop of three turns with a matmul, attention and its gradient, a convolution, and a copy.
PROGRAM = """\
HloModule jit_step

%matmul (p.0: bf16[64,32], p.1: bf16[32,16]) -> bf16[64,16] {
  %p.0 = bf16[64,32]{1,0} parameter(0)
  %p.1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%full (p.2: f32[64,32], p.3: f32[32,16]) -> f32[64,16] {
  %p.2 = f32[64,32]{1,0} parameter(0)
  %p.3 = f32[32,16]{1,0} parameter(1)
  ROOT %dot.2 = f32[64,16]{1,0} dot(%p.2, %p.3), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, operand_precision={highest,highest}
}

%body (state: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %state = (s32[], bf16[64,32]{1,0}) parameter(0)
  %x = bf16[64,32]{1,0} get-tuple-element(%state), index=1
  %w = bf16[32,16]{1,0} constant({...})
  %gemm.1 = bf16[64,16]{1,0} fusion(%x, %w), kind=kCustom, calls=%matmul
  %q = bf16[2,8,3,16]{3,2,1,0} constant({...})
  %k = bf16[2,4,3,16]{3,2,1,0} constant({...})
  %ahead = (bf16[2,3,8,16]{3,1,2,0}, f32[2,3,8]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {}}
  %lse = f32[2,3,8]{2,1,0} get-tuple-element(%ahead), index=1
  %back = (bf16[2,3,8,16]{3,1,2,0}, bf16[2,3,4,16]{3,1,2,0}, bf16[2,3,4,16]{3,1,2,0}, u8[0]{0}) \
custom-call(%q, %k, %k, %lse, %q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %next = (s32[], bf16[64,32]{1,0}) tuple(%i, %x)
}

ENTRY %main (x: (s32[], bf16[64,32]), y: f32[64,32], z: f32[32,16]) -> f32[64,16] {
  %x.1 = (s32[], bf16[64,32]{1,0}) parameter(0)
  %loop = (s32[], bf16[64,32]{1,0}) while(%x.1), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[64,32]{1,0} parameter(1)
  %z = f32[32,16]{1,0} parameter(2)
  %images = bf16[1,10,10,3]{3,2,1,0} constant({...})
  %filter = bf16[3,3,3,8]{3,2,1,0} constant({...})
  %conv = (bf16[1,10,10,8]{3,2,1,0}, u8[0]{0}) custom-call(%images, %filter), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
  %sum = f32[64,16]{1,0} all-reduce(%z), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %gemm.2 = f32[64,16]{1,0} fusion(%y, %z), kind=kCustom, calls=%full
}
"""


def test_flops_and_bytes_of_each_kernel():
    found = {(k.kind, k.dtype): k for k in kernels(PROGRAM)}
    assert len(found) == len(kernels(PROGRAM)) == 5  # constants, tuples and collectives are none
    matmul = found["matmul", "bf16"]
    assert (matmul.times, matmul.flops) == (3, 2 * 64 * 32 * 16)
    assert matmul.bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)
    assert found["matmul", "f32"].flops == 2 * 64 * 32 * 16
    ahead, back = found["attention", "bf16"], found["attention backward", "bf16"]
    assert ahead.flops == 2 * 2 * (2 * 3 * 8 * 4 * 16) and back.flops == 2.5 * ahead.flops
    assert (ahead.name, ahead.times, ahead.head_dim) == ("cudnn fmhaSoftmax", 3, 16)
    assert ahead.bytes == 2 * (2 * 8 * 3 * 16 * 2 + 2 * 2 * 4 * 3 * 16) + 4 * 2 * 3 * 8
    convolution = found["convolution", "bf16"]
    assert convolution.flops == 2 * 10 * 10 * 8 * (3 * 3 * 3)
    assert hlo.kernels(PROGRAM) == {
        "cudnn fmhaSoftmax": 3,
        "cudnn fmhaSoftmaxBackward": 3,
        "cudnn convForward": 1,
    }


@pytest.mark.parametrize("batch", ["2,", ""])
def test_attention_of_tpus(batch):
    """Tokens last; a single scene has no dimension."""
    scenes = 2 if batch else 1
    text = f"""HloModule m

ENTRY %main (q: bf16[{batch}3,16,8], k: bf16[{batch}3,16,4]) -> f32[3] {{
  %mask = s8[1,1,1]{{2,1,0}} constant({{...}})
  %q = bf16[{batch}3,16,8]{{2,1,0}} parameter(0)
  %k = bf16[{batch}3,16,4]{{2,1,0}} parameter(1)
  %splash_mha_fwd_residuals.1 = (bf16[{batch}3,8,16]{{2,1,0}}, f32[3]{{0}}) custom-call(%mask, %q, \
%k, %k), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_no_residuals.2 = f32[3]{{0}} custom-call(%mask, %q, %k, %k), \
custom_call_target="tpu_custom_call"
}}
"""
    ahead, back = kernels(text)
    assert ahead.flops == 4 * scenes * 3 * 8 * 4 * 16 and back.flops == 2.5 * ahead.flops
    assert (ahead.kind, back.kind) == ("attention", "attention backward")
    assert ahead.head_dim == 16


def test_blending_counts_all_for_whom_there_is_room():
    """Five blocks of two Gaussians with three features, over three tiles of 64 or 256 pixels."""
    text = """HloModule m

ENTRY %main (starts: s32[4], table: f32[5,18]) -> f32[5,18] {
  %starts = s32[4]{0} parameter(0)
  %table = f32[5,18]{1,0} parameter(1)
  %ahead = (f32[3,3,64]{2,1,0}, f32[3,64]{1,0}, f32[5,64]{1,0}) custom-call(%starts, %table), \
custom_call_target="__gpu$xla.gpu.triton", backend_config={ir = "x", name = "blend", num_stages = 3}
  %before = f32[5,64]{1,0} get-tuple-element(%ahead), index=2
  %images = f32[3,3,64]{2,1,0} get-tuple-element(%ahead), index=0
  %back = f32[5,18]{1,0} custom-call(%starts, %table, %before, %images), \
custom_call_target="__gpu$xla.gpu.triton", \
backend_config={ir = "x", name = "blend_backward", num_stages = 3}
  %numbers = f32[5,1,18]{2,1,0} constant({...})
  %jvp_blend_.1 = (f32[3,3,2,128]{3,2,1,0}, f32[3,2,128]{2,1,0}) custom-call(%starts, %numbers), \
custom_call_target="tpu_custom_call"
}
"""
    ahead, back, tpu = kernels(text)
    assert hlo.kernels(text) == {"blend": 1, "blend_backward": 1, "jvp_blend_": 1}
    assert (ahead.kind, ahead.flops) == ("blending", 10 * 64 * (18 + 2 * 3))
    assert ahead.bytes == 4 * (4 + 5 * 18 + 3 * 3 * 64 + 3 * 64 + 5 * 64)
    assert (back.kind, back.flops) == ("blending backward", 10 * 64 * (54 + 4 * 3))
    assert (tpu.kind, tpu.flops) == ("blending", 4 * ahead.flops)
    gpu = GPUS["h100"]
    many = dataclasses.replace(ahead, flops=gpu.float32, bytes=0.0)
    assert many.seconds(gpu) == pytest.approx(1 / SHARES["blending"] + gpu.launch)
    assert gpu.vector == gpu.float32 and CHIPS["v5e"].vector < CHIPS["v5e"].float32


def test_matmuls_of_tpus():
    """Convolutions whose window neither steps nor is padded: a product, and its gradient.

    Or one that is padded so that each result sees one place.
    """
    text = """HloModule m

ENTRY %main (x: bf16[8,6,64,32], w: bf16[32,16,1,1], g: bf16[8,6,64,16]) -> bf16[32,16,1,1] {
  %x = bf16[8,6,64,32]{3,2,1,0} parameter(0)
  %w = bf16[32,16,1,1]{1,0,3,2} parameter(1)
  %g = bf16[8,6,64,16]{3,2,1,0} parameter(2)
  %y = bf16[8,6,64,16]{3,2,1,0} convolution(%x, %w), window={size=1x1}, dim_labels=01bf_io01->01bf
  %to_w = bf16[32,16,1,1]{1,0,3,2} convolution(%x, %g), window={size=8x6}, \
dim_labels=01fb_01io->bf01
  ROOT %z = bf16[8,6,32,64]{3,2,1,0} convolution(%to_w, %g), window={size=8x6 pad=7_7x5_5 \
rhs_reversal=1x1}, dim_labels=bf01_01oi->01bf
}
"""
    flops = 2.0 * 8 * 6 * 64 * 32 * 16
    assert [(k.kind, k.flops) for k in kernels(text)] == [("matmul", flops)] * 3


def test_a_kernel_takes_the_longer_of_memory_and_arithmetic():
    chip = GPUS["h100"]
    fast = Kernel("x", "matmul", 2, 0.0, chip.peak * SHARES["matmul"], "bf16")
    assert fast.seconds(chip) == pytest.approx(2 * (1 + chip.launch))
    moving = Kernel("x", "other", 1, 3 * chip.hbm_bandwidth * BANDWIDTH_SHARE, 0.0, "bf16")
    assert moving.seconds(chip) == pytest.approx(3 + chip.launch)
    full = Kernel("x", "matmul", 1, 0.0, chip.float32 * SHARES["matmul"], "f32")
    assert full.seconds(chip) == pytest.approx(1 + chip.launch)
    total = totals([fast, full, moving], chip)
    assert list(total) == ["matmul", "other"]
    assert (total["matmul"].runs, total["matmul"].flops) == (3, 2 * fast.flops + full.flops)
    assert total["other"].seconds == moving.seconds(chip)


def test_the_compilers_cycles_go_before():
    chip = CHIPS["v5e"]
    timed = Kernel("x", "other", 2, 1e15, 0.0, "bf16", cycles=1500)
    assert timed.seconds(chip) == pytest.approx(2 * 1500 / chip.clock)
    # Heads of 64 channels leave half of a matrix unit of 128 rows idle.
    heads = Kernel("x", "attention", 1, 0.0, 0.6 * chip.peak, "bf16", head_dim=64)
    assert heads.seconds(chip) == pytest.approx(2)


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", (0, 2)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("channel_id=1", tuple(range(8))),
    ],
)
def test_members_of_a_group(attributes, members):
    assert first_group(attributes, 8) == members


def test_collectives_go_by_the_slowest_link():
    chip = GPUS["a100"]

    def seconds(*members: int) -> float:
        gather = Collective("all-gather", "bf16", 10**9, members, 1, "")
        return link_seconds(gather, chip, 8) - chip.launch

    inside = seconds(*range(8))
    assert inside == pytest.approx(7 / 8 * 1e9 / (chip.interconnect / 2))
    # Of 16 GPUs in two hosts eight share the ports of each; of two in two hosts each has its own.
    assert seconds(*range(16)) == pytest.approx(15 / 16 * 1e9 / (8 * chip.network))
    assert seconds(0, 8) == pytest.approx(1 / 2 * 1e9 / chip.network)
