"""Estimate how many views fit into a device's memory at a time.

The unit is one picture of the UNet's first block: latent positions × its channels × bytes of a number, 10 MiB for SDXL
at 1024² in half precision. The numbers of units come from adding up the sizes of all tensors alive at a time in the
full SDXL architecture without data (17, 9 and 6); for the work on a view twice that is allowed, because convolutions
need memory beside tensors. What this gets wrong, `BatchLimit` puts right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel

UNITS_HELD = 17
"""Units per view: skip connections, ControlNet residuals and their temporary sums."""
UNITS_HELD_OFFLOADED = 10
"""Units per view with offloading: the residual stream, and the skip connections of one block."""
UNITS_ACTIVE = 12
"""Additional units per view that is being processed: wide convolutions and feed-forward layers."""
RESERVE = 0.15
"""Share of the free memory that is not used."""


class MemoryPlan(NamedTuple):
    """Batch size and offloading for a number of views."""

    views_per_batch: int
    """Views that are processed at a time."""
    offload: bool
    """Whether waiting activations are kept in the CPU's memory."""


def plan(
    unet: UNet2DConditionModel, positions: int, views: int, free: int | None, offload: bool | None = None
) -> MemoryPlan:
    """Choose the largest batch that should fit.

    Args:
        unet: The UNet.
        positions: Latent positions of a view, height × width.
        views: Views that this process holds.
        free: Bytes of memory left on the device, with the models on it; None where memory is not the concern.
        offload: Whether to offload; where the views would not fit otherwise, if None.
    """
    if free is None:
        return MemoryPlan(views, bool(offload))
    unit = positions * unet.config["block_out_channels"][0] * torch.finfo(unet.dtype).bits // 8
    room = (1 - RESERVE) * free / unit
    away = room < UNITS_HELD * views + UNITS_ACTIVE if offload is None else offload
    held = (UNITS_HELD_OFFLOADED if away else UNITS_HELD) * views
    return MemoryPlan(max(1, min(views, int((room - held) / UNITS_ACTIVE))), away)


def free_memory(device: torch.device) -> int | None:
    """Free bytes on a GPU, including torch's cache; None for a CPU."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
