"""Which devices a collective joins, in any of the ways that HLO writes groups."""

import math
import re

import numpy as np


def first_group(attributes: str, devices: int) -> tuple[int, ...]:
    """Numbers of the devices of a collective's first group, of so many devices of the program."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return _cycle(pairs[1] + "}")
    if axes := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r".*?\{([^}]*)\}",
        attributes,
    ):
        return _along(*axes.groups())
    if iota := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return tuple(_numbered(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(_integers(explicit[1]))
    return tuple(range(devices))


def _cycle(pairs: str) -> tuple[int, ...]:
    """One cycle of devices that pass data on."""
    targets = dict(re.findall(r"\{(\d+),(\d+)", pairs))
    seen, device = [], next(iter(targets), None)
    while device is not None and device not in seen:
        seen.append(device)
        device = targets.get(device)
    return tuple(map(int, seen))


def _along(mesh: str, sizes: str | None, order: str | None, along: str) -> tuple[int, ...]:
    """The devices along some axes of a mesh, or along parts of axes, where the others are 0."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    count = math.prod(axes.values())
    devices = _numbered(sizes or str(count), order).reshape(tuple(axes.values()))
    picked = {name: [0] for name in axes}
    for name, outer, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        size, outer, part = axes[name], int(outer or 1), int(part or axes[name])
        step = size // (outer * part)  # of a part of an axis, the devices within it are apart
        taken = step * np.arange(part)
        picked[name] = sorted({int(a + b) for a in picked[name] for b in taken})
    return tuple(devices[np.ix_(*picked.values())].ravel().tolist())


def _numbered(sizes: str, order: str | None) -> np.ndarray:
    """Devices numbered in an array of these sizes, and its axes put in another order."""
    shape = _integers(sizes)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_integers(order)) if order else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
