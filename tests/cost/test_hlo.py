"""What is read from the text of optimised programs, on small ones written for it."""

import pytest

from lvsm_jax.cost import hlo

# A step in the manner of the TPU compiler: three layers in a loop, whose weights are gathered in
# two pieces, and their gradients reduced by a fusion; then one sum over all devices.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%piece.1 (p.0: bf16[4,8]) -> bf16[16,8] {
  %p.0 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.0), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, \
frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/while/body/reshard"}
}

%piece.2 (p.1: bf16[4,8]) -> bf16[16,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.3 (p.2: bf16[16,8]) -> bf16[4,8] {
  %p.2 = bf16[16,8]{1,0} parameter(0)
  %all-reduce.9 = bf16[16,8]{1,0} all-reduce(%p.2), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[4,8]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={4,8}
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %fusion.1 = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%piece.1, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %fusion.2 = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%piece.2
  %kernel_fwd.5 = bf16[16,8]{1,0} custom-call(%fusion.2), custom_call_target="tpu_custom_call"
  %fusion.3 = bf16[4,8]{1,0} fusion(%kernel_fwd.5), kind=kCustom, calls=%all-reduce-scatter.3
  %permute = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%fusion.3), channel_id=3, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %done = bf16[4,8]{1,0} collective-permute-done(%permute)
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i, %done)
}

%condition (state.1: (s32[], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %limit = s32[] constant(3)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: (s32[], bf16[4,8]), y: f32[]) -> f32[] {
  %x = (s32[], bf16[4,8]{1,0}) parameter(0)
  %y = f32[] parameter(1)
  %loop = (s32[], bf16[4,8]{1,0}) while(%x), condition=%condition, body=%body
  %z = f32[]{:T(128)} all-reduce(%y), channel_id=4, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %out = f32[] copy(%z), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""


def test_collectives_with_their_bytes():
    found = {c.kind: c for c in hlo.collectives(PROGRAM)}
    assert len(hlo.collectives(PROGRAM)) == len(found) == 4
    weights = 16 * 8 * 2
    gather = found["all-gather"]  # its two pieces are one
    assert (gather.payload, gather.group, gather.times) == (weights, 4, 3)
    assert gather.dtype == "bf16" and gather.where == "jit(step)/while/body/reshard"
    assert gather.sent == 3 * weights * 3 / 4
    scatter = found["reduce-scatter"]
    assert (scatter.payload, scatter.group, scatter.times) == (weights, 4, 3)
    assert scatter.sent == 3 * weights * 3 / 4
    permute = found["collective-permute"]
    assert (permute.payload, permute.group) == (weights // 4, 4)
    assert permute.sent == 3 * weights / 4
    total = found["all-reduce"]
    assert (total.payload, total.group, total.times) == (4, 8, 1)
    assert total.sent == 2 * 4 * 7 / 8


def test_loops_multiply_cycles_and_kernels():
    assert hlo.cycles(PROGRAM) == 3 * 100 + 7
    assert hlo.kernels(PROGRAM) == {"kernel_fwd": 3}


def test_a_loop_that_cannot_be_read():
    unknown = PROGRAM.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="loop whose turns cannot be read"):
        hlo.collectives(unknown)
    known = unknown.replace("body=%body", 'body=%body, c={"known_trip_count":{"n":"5"}}')
    assert {c.times for c in hlo.collectives(known)} == {1, 5}
    for program, counts in ((unknown, {1, 4}), (known, {1, 5})):  # the program knows better
        ran = hlo.executed(program, inside_fusions=False, turns=lambda loop: 4)
        assert {times for times, _ in ran} == counts


def test_group_of_one_is_no_collective():
    alone = PROGRAM.replace("[1,8]<=[8]", "[8,1]<=[8]")
    assert "all-reduce" not in {c.kind for c in hlo.collectives(alone)}


MEMORY = """\
HloModule jit_step

%slices (p.0: f32[12,8,64], p.1: s32[]) -> f32[1,8,64] {
  %p.0 = f32[12,8,64]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %one = f32[1,8,64]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1)
}

ENTRY %main (x: f32[12,8,64], i: s32[]) -> f32[8,128] {
  %x = f32[12,8,64]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %part = f32[1,8,64]{2,1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%slices
  %near = f32[8,128]{1,0:T(8,128)S(1)} convert(%part)
  ROOT %out = f32[8,128]{1,0:T(8,128)} copy(%near)
}
"""


def test_bytes_of_memory():
    """Tiles are full, slices are parts, and on-chip memory is none."""
    tile = 8 * 128 * 4
    assert hlo.hbm_bytes(MEMORY) == (tile + tile) + tile + tile
    static = MEMORY.replace(
        "dynamic-slice(%p.0, %p.1)", "slice(%p.0), slice={[3:4], [0:8], [0:64]}"
    )
    assert static != MEMORY
    assert hlo.hbm_bytes(static) == hlo.hbm_bytes(MEMORY)
