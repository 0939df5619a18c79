"""Seeded damage: what disks, networks and strangers do to files."""

import random
from collections.abc import Iterator

_NUMBERS = (0, 1, 2**7, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_TEXTS = (b"NaN", b"Infinity", b"-1", b"1e999", b"1e-320", b"null", b"[]", b"{}", b'""', b"9" * 400)


def cut(rng: random.Random, data: bytearray) -> None:
    """A download that stopped."""
    del data[rng.randrange(len(data)) :]


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def change_bytes(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 5, 30))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def erase_sector(rng: random.Random, data: bytearray) -> None:
    """What an erased block of flash memory reads, or one that was never written."""
    start, size = rng.randrange(len(data)), rng.choice((16, 512, 4096))
    end = min(start + size, len(data))
    data[start:end] = rng.choice((b"\xff", b"\0")) * (end - start)


def set_number(rng: random.Random, data: bytearray) -> None:
    """A count or an offset that claims too much."""
    size = rng.choice((4, 8))
    start = rng.randrange(max(1, len(data) - size))
    number = rng.choice(_NUMBERS) % 2 ** (8 * size)
    data[start : start + size] = number.to_bytes(size, "little")[: len(data) - start]


def set_text(rng: random.Random, data: bytearray) -> None:
    """Something else in the place of a number of a text file."""
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()] or [0]
    start = end = rng.choice(digits)
    while end < len(data) and chr(data[end]) in "0123456789.e-":
        end += 1
    data[start:end] = rng.choice(_TEXTS)


def repeat_part(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((1, 20, 500))]
    data[start:start] = part * rng.choice((1, 3))


def remove_part(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 100))]


def add_at_end(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.choice((1, 30, 1000)))


KINDS = (
    *(cut, flip_bits, change_bytes, erase_sector, set_number),
    *(set_text, repeat_part, remove_part, add_at_end),
)


def mutations(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Damaged versions without end, each kind of damage in turn, with its name."""
    while True:
        for kind in KINDS:
            damaged = bytearray(data or b"\0")
            kind(rng, damaged)
            if damaged != data:
                yield kind.__name__, bytes(damaged)
