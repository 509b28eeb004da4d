"""Select the diffusers schedulers with which an interrupted denoising can be resumed."""

from __future__ import annotations

from typing import Any

RESUMABLE_SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler")
"""Classes whose step depends only on the latents and the number of the step, not on earlier steps."""


def is_resumable(scheduler: Any) -> bool:
    """Whether the state of the scheduler consists of the latents and the number of the step."""
    return type(scheduler).__name__ in RESUMABLE_SCHEDULERS
