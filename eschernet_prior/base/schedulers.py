"""Which diffusers schedulers a denoising can be resumed with."""

from __future__ import annotations

from typing import Any

RESUMABLE_SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler")
"""Classes whose step depends on the latents and the step's number alone, not on earlier steps."""


def is_resumable(scheduler: Any) -> bool:
    """Whether latents and the number of the step are the scheduler's whole state."""
    return type(scheduler).__name__ in RESUMABLE_SCHEDULERS
