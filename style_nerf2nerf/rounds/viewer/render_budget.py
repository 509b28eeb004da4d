"""How large and how often the viewer may render, so that looking around costs the training little time."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

SHARE = 0.08
"""Seconds of rendering that every second of training earns; what a render keeps waiting comes on top."""
LONGEST_CREDIT = 1.5
"""Seconds of rendering that can be saved up, for a person who begins to look around."""
MOVING = (0.03, 0.12)
"""Least and most seconds of a picture while the camera moves."""
RESTING = (0.35, 0.7)
"""Least and most seconds of a picture once the camera rests, while the field is trained."""
IDLE = 1.5
"""Most seconds of such a picture while nothing is trained."""
LONGEST_WAIT = 0.5
"""Seconds that a picture of a moving camera waits at most for its turn."""
LEAST_SIDE = 32
"""Pixels along the shorter side that no picture is smaller than."""
REMEMBERED = 6
"""Renders that the speed is taken from."""


class RenderBudget:
    """Measures how fast the field renders, and gives each picture a size that fits into its time.

    While the field is trained, rendering draws on a credit that grows by `SHARE` of the time that passes. A picture of
    a moving camera waits for credit, though never long; the sharp one after it is always drawn, and the credit it
    overdraws is waited for before the next. While nothing is trained there is nothing to save.
    """

    def __init__(
        self, training: Callable[[], bool], rays_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with full credit.

        Args:
            training: Whether the field is being trained now.
            rays_per_second: a first guess, until a render was measured.
            clock: Seconds.
        """
        self._training, self._clock = training, clock
        self._speeds: deque[float] = deque([rays_per_second], maxlen=REMEMBERED)
        self._lock = threading.Lock()
        self._credit, self._counted = LONGEST_CREDIT, clock()
        self.measured = False

    @property
    def credit(self) -> float:
        """Seconds of rendering that may be spent now; negative where more was spent than earned."""
        with self._lock:
            now = self._clock()
            self._credit = min(self._credit + SHARE * (now - self._counted), LONGEST_CREDIT)
            self._counted = now
            return self._credit

    def record(self, rays: int, seconds: float) -> None:
        """Count a picture that was rendered.

        Args:
            rays: Its pixels.
            seconds: How long it took, without waiting for anything.
        """
        if not self.measured:
            self._speeds.clear()
            self.measured = True
        self._speeds.append(rays / max(seconds, 1e-4))
        if self._training():
            left = self.credit - seconds
            with self._lock:
                self._credit = left

    def wait(self) -> float:
        """Seconds that a picture of a moving camera has to wait for its turn."""
        credit = self.credit
        if not self._training() or credit >= 0:
            return 0.0
        return min(-credit / SHARE, LONGEST_WAIT)

    def may_refresh(self) -> bool:
        """Whether the picture of a resting camera may be drawn once more, because the field has changed."""
        return not self._training() or self.credit >= RESTING[0]

    def size(self, aspect: float, sharp: bool, longest: int) -> tuple[int, int]:
        """Height and width of a picture that fits into its time.

        Args:
            aspect: Width / height.
            sharp: Whether the camera rests.
            longest: Pixels along the longer side, at most.
        """
        if sharp:
            seconds = min(max(self.credit, RESTING[0]), RESTING[1]) if self._training() else IDLE
        else:
            seconds = min(max(self.credit / 4, MOVING[0]), MOVING[1]) if self._training() else MOVING[1]
        rays = seconds * statistics.median(self._speeds)
        height = math.sqrt(rays / aspect)
        most = longest / max(aspect, 1.0)
        least = min(LEAST_SIDE / min(aspect, 1.0), most)
        height = max(min(height, most), least)
        return max(round(height), 1), max(round(height * aspect), 1)
