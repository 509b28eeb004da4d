"""Limit the size and rate of the viewer's renders, so that they take little time from the training."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

SHARE = 0.08
"""Seconds of rendering allowed per second of training, not counting the time that a render waits."""
LONGEST_CREDIT = 1.5
"""Largest credit in seconds, for the first movements of the camera."""
MOVING = (0.03, 0.12)
"""Shortest and longest time of a picture in seconds while the camera moves."""
RESTING = (0.35, 0.7)
"""Shortest and longest time of a picture in seconds for a resting camera during training."""
IDLE = 1.5
"""Longest time of a picture in seconds for a resting camera without training."""
LONGEST_WAIT = 0.5
"""Longest time in seconds that a picture of a moving camera waits for credit."""
LEAST_SIDE = 32
"""Least length of a picture's shorter side in pixels."""
REMEMBERED = 6
"""Number of recent renders from which the speed is estimated."""


class RenderBudget:
    """Measures the rendering speed of the field, and chooses the size of each picture by the available time.

    During training, rendering uses a credit that grows by `SHARE` of the elapsed time. A picture of a moving camera
    waits a limited time for credit. The sharp picture after the camera stops is always rendered, and may overdraw the
    credit. Without training, rendering is only limited by the times above.
    """

    def __init__(
        self, training: Callable[[], bool], rays_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with full credit.

        Args:
            training: Function that returns whether the field is being trained.
            rays_per_second: Assumed speed until a render has been measured.
            clock: Function that returns the time in seconds.
        """
        self._training, self._clock = training, clock
        self._speeds: deque[float] = deque([rays_per_second], maxlen=REMEMBERED)
        self._lock = threading.Lock()
        self._credit, self._counted = LONGEST_CREDIT, clock()
        self.measured = False

    @property
    def credit(self) -> float:
        """Available seconds of rendering; negative if overdrawn."""
        with self._lock:
            now = self._clock()
            self._credit = min(self._credit + SHARE * (now - self._counted), LONGEST_CREDIT)
            self._counted = now
            return self._credit

    def record(self, rays: int, seconds: float) -> None:
        """Record a rendered picture.

        Args:
            rays: Number of its pixels.
            seconds: Duration without waiting.
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
        """Seconds that a picture of a moving camera has to wait for credit."""
        credit = self.credit
        if not self._training() or credit >= 0:
            return 0.0
        return min(-credit / SHARE, LONGEST_WAIT)

    def may_refresh(self) -> bool:
        """Whether the picture of a resting camera may be rendered again, because the field has changed."""
        return not self._training() or self.credit >= RESTING[0]

    def size(self, aspect: float, sharp: bool, longest: int) -> tuple[int, int]:
        """Choose height and width of a picture by the available time.

        Args:
            aspect: Width / height.
            sharp: Whether the camera rests.
            longest: Largest length of the longer side in pixels.
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
