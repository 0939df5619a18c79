"""Compiled programs are kept between runs, so that a second start compiles little.

They lie in `~/.cache/lvsm_jax/xla` (or under `$XDG_CACHE_HOME`), at most 4 GiB. The variable
`LVSM_COMPILATION_CACHE` names another directory, or is `off`; `JAX_COMPILATION_CACHE_DIR`, where it
is set, goes before. Deleting the directory does no harm.
"""

import contextlib
import importlib.util
import os
import pathlib
import platform
import zlib

VARIABLE = "LVSM_COMPILATION_CACHE"


def keep_compiled_programs() -> None:
    """Sets the variables that JAX reads when it is imported; where it is already, nothing changes.

    Without a directory that can be written to, nothing is kept.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    wanted = os.environ.get(VARIABLE) or f"{caches}/lvsm_jax/xla"
    if wanted == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = pathlib.Path(wanted).expanduser().absolute() / _processor()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if importlib.util.find_spec("filelock"):  # without which JAX refuses a limit
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(4 * 2**30))


def _processor() -> str:
    """A name for each kind of CPU: programs of one may not run on another with the same home."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return f"{platform.machine()}-{zlib.crc32(chr(10).join(told).encode()):08x}"
