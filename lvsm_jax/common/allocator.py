"""How the C library hands out memory."""

import ctypes
import sys

# Of mallopt in malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Keeps the memory that is freed for whoever asks next; whether it could be done.

    XLA on CPUs asks for the arrays of each call anew. Left to itself, the C library takes large
    ones from the system and gives them back: each call then waits for gigabytes of zeroed pages,
    a tenth of a training step. Of one process's memory the most that it ever held stays with it,
    so this is for programs that do the same again and again.

    Call it before threads are started, for each may take an arena of its own, in which large arrays
    are the system's again. Only the GNU C library on Linux knows how.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_ARENA_MAX, 1))
