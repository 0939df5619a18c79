"""What the worker processes of this package have in common."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this worker when its parent is gone, however that ended: no worker is left behind."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
