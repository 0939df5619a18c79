"""How fast somebody may go on."""

import time
from collections.abc import Callable


class Pace:
    """A budget that holds `burst` at most and is filled up by `rate` a second. Not thread-safe."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._then = burst, clock()

    def allows(self, cost: float = 1.0) -> bool:
        """Takes the cost from the budget, if it is there."""
        self._fill()
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def delay(self, cost: float = 1.0) -> float:
        """Takes the cost, and returns after how many seconds it is paid."""
        self._fill()
        self._left -= cost
        return max(0.0, -self._left / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + self._rate * (now - self._then))
        self._then = now
