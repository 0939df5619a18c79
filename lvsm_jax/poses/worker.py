"""The process in which pycolmap runs: `python -m lvsm_jax.poses.worker WORK`, for `find_poses`.

A job comes as JSON on stdin. On stdout go lines of JSON: how far the work is, and at the end what
was found, or refused. All that libraries print goes to stderr, which is a log.
"""

import json
import os
import pathlib
import sys
from typing import Any

from lvsm_jax.common.errors import UserError
from lvsm_jax.poses.process import PosesRefused


def main(work: str) -> None:
    """Does one job in the folder `work`, which gets a folder `result`."""
    tell_to = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(message: dict[str, Any]) -> None:
        # Where nobody listens any more this ends the process, as it should.
        tell_to.write(json.dumps(message) + "\n")
        tell_to.flush()

    def told(stage: str, done: int, total: int) -> None:
        tell({"stage": stage, "done": done, "total": total})

    from lvsm_jax.poses.match_posed import match_posed
    from lvsm_jax.poses.reconstruct import reconstruct

    job = json.load(sys.stdin)
    do = {"find": reconstruct, "match": match_posed}[job["do"]]
    try:
        tell({"found": do(job, pathlib.Path(work), told)})
    except PosesRefused as error:
        tell({"refused": str(error), "left_out": error.left_out})
    except UserError as error:
        tell({"error": str(error)})


if __name__ == "__main__":
    main(sys.argv[1])
