"""One property of every reader: of a file that is damaged or hostile it gives the same data, or a
line that says what is wrong, within seconds, in bounded memory, and runs nothing.

Formats without checksums cannot tell one number from another: of these, what is read may differ,
but not because the end is missing.
"""

import importlib.util
import random
import shutil
import zlib
from typing import Any

import numpy as np
import pytest

from lvsm_jax.common.errors import UserError
from tests.fuzz.mutations import mutations
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.watch import peak_bytes, watched

SECONDS, MEMORY = 40, 700 * 2**20


def flat(value: Any) -> Any:
    """Nested data, to be compared bit for bit."""
    if isinstance(value, dict):
        return [(key, flat(inner)) for key, inner in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Gives a reader's sound input, and what is read of it, written once."""
    known = {}

    def of(reader: Reader):
        if reader.name not in known:
            folder = tmp_path_factory.mktemp(reader.name)
            reader.write(folder)
            reader.read(folder)  # imports what it needs
            known[reader.name] = folder, flat(reader.read(folder))
        return known[reader.name]

    return of


def read_damaged(reader: Reader, folder, expected: Any, damage: str) -> bool:
    """Reads, checks the property, and tells whether the input was refused."""
    before = peak_bytes()
    try:
        with watched(SECONDS, allowed=reader.runs):
            found = flat(reader.read(folder))
    except (UserError, OSError) as error:
        text = str(error)
        assert text and len(text) < 1500 and "\n" not in text, f"{damage}: {text[:3000]}"
        return True
    finally:
        assert peak_bytes() - before < MEMORY, damage
    if reader.sums or (reader.ends and damage.endswith(" cut")):
        assert found == expected, f"{damage}: other data, and not a word"
    return False


def fuzz(reader: Reader, sound, count: int, seed: int) -> None:
    if reader.name.startswith("colmap") and importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed")
    folder, expected = sound(reader)
    files = sorted(f for pattern in reader.damage for f in folder.rglob(pattern) if f.is_file())
    rng = random.Random(seed + zlib.crc32(reader.name.encode()))
    rng.shuffle(files)
    contents = {file: file.read_bytes() for file in files}
    streams = {file: mutations(data, rng) for file, data in contents.items()}
    refused = 0
    for round_ in range(count):
        file = files[round_ % len(files)]
        kind, damaged = next(streams[file])
        file.write_bytes(damaged)
        try:
            refused += read_damaged(reader, folder, expected, f"round {round_}, {file.name} {kind}")
        finally:
            file.write_bytes(contents[file])
    assert refused > count // 10
    assert flat(reader.read(folder)) == expected  # nothing was changed by reading


@pytest.mark.parametrize("reader", [r for r in READERS if r.quick], ids=lambda reader: reader.name)
def test_damaged_files(reader, sound):
    fuzz(reader, sound, reader.quick, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_damaged_files(reader, sound):
    fuzz(reader, sound, reader.slow, seed=1)


def test_a_missing_file_is_an_error(sound):
    for reader in READERS:
        if reader.name not in ("dataset", "chunk", "cameras"):
            continue
        folder, expected = sound(reader)
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            shutil.move(file, away := folder.parent / "away")
            read_damaged(reader, folder, expected, f"without {file.name}")
            shutil.move(away, file)
