"""Shared fixtures. Tests run on the CPU with eight simulated devices, in exact float32."""

import os
import pathlib

# Tiny programs are compiled often and run once: less optimisation halves the time of the tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# Tests compile what they test; programs that they start would keep it in the user's home.
os.environ["LVSM_COMPILATION_CACHE"] = "off"

# Threads of the simulated devices: a device may wait in several collectives at once, and with one
# thread for each device all could wait for one that finds no thread.
os.environ.setdefault("NPROC", "32")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed():
    """Frees the compiled programs of a file's tests.

    Each holds some memory maps, of which Linux allows a process 65,530 (vm.max_map_count), and one
    file's reach 16,000. With those of all kept, XLA hung in a compile near the end of the tests.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of the committed inputs and outputs of the reference programs."""
    return REPOSITORY / "tests" / "goldens"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder with real photographs (never committed); tests on them skip where it is absent."""
    root = pathlib.Path(os.environ.get("LVSM_SHARED", REPOSITORY.parent / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no real data: {root / 'data'} does not exist (set LVSM_SHARED)")
    return root / "data"


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> pathlib.Path:
    """A small dataset: 8 clips to train on and 4 held out, 12 frames of 32 × 32 pixels."""
    from tests.helpers.tiny_dataset import write_rooms

    directory = tmp_path_factory.mktemp("rooms")
    write_rooms(directory)
    return directory
