"""Estimate how many views fit into a device's memory at a time.

The unit is one picture of the UNet's first block: latent positions × its channels × bytes of a number, 10 MiB for SDXL
at 1024² in half precision. The numbers of units come from adding up the sizes of all tensors alive at a time in the
full SDXL architecture without data (17, 9 and 6); for the work on a view twice that is allowed, because convolutions
need memory beside tensors. What this gets wrong, `BatchLimit` puts right.
"""

from __future__ import annotations

from pathlib import Path
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
"""Share of the free memory that is left alone."""
CONTROL_GROUPS = tuple(
    (Path("/sys/fs/cgroup", limit), Path("/sys/fs/cgroup", use))
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)
"""Files with the limit and the use of a container's memory."""


class MemoryPlan(NamedTuple):
    """Batch size and offloading for a number of views."""

    views_per_batch: int
    """Views that are processed at a time."""
    offload: bool
    """Whether what waits is kept in the CPU's memory."""
    halves_together: bool = False
    """Whether everything fits at once, both halves of the guidance included."""


def unit_bytes(unet: UNet2DConditionModel, positions: int, dtype: torch.dtype) -> int:
    """Bytes of one picture of the UNet's first block.

    Args:
        unet: The UNet; its weights do not matter.
        positions: Latent positions of a view, height × width.
        dtype: What it computes in.
    """
    return positions * unet.config["block_out_channels"][0] * torch.finfo(dtype).bits // 8


def plan(unit: int, views: int, free: int, *, offload: bool | None = None, on_cpu: bool = False) -> MemoryPlan:
    """The largest batch that should fit.

    On a CPU there is no other memory to offload to, and where everything fits it is done at once.

    Args:
        unit: Bytes of one picture of the UNet's first block.
        views: Views that this process holds.
        free: Bytes of memory left on the device, with the models on it.
        offload: Whether to offload; where the views would not fit otherwise, if None.
        on_cpu: Whether the device is the CPU.
    """
    room = (1 - RESERVE) * free / unit
    if on_cpu and offload is None:
        offload = False
    away = room < UNITS_HELD * views + UNITS_ACTIVE if offload is None else offload
    held = (UNITS_HELD_OFFLOADED if away else UNITS_HELD) * views
    together = on_cpu and not away and room >= 2 * (UNITS_HELD + UNITS_ACTIVE) * views
    return MemoryPlan(max(1, min(views, int((room - held) / UNITS_ACTIVE))), away, together)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken.

    On a GPU those count that torch keeps for later; on a CPU a container's limit does where it is lower.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    available = psutil.virtual_memory().available
    return min(available, *(limit - used for limit, used in _container_limits()))


def total_memory(device: torch.device) -> int:
    """Bytes of a device's memory; on a CPU within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    import psutil

    return min(psutil.virtual_memory().total, *(limit for limit, _ in _container_limits()))


def _container_limits() -> list[tuple[int, int]]:
    """Limit and use in bytes, as control groups of both versions say them; without a limit a huge one."""
    limits = [(2**63, 0)]
    for limit, use in CONTROL_GROUPS:
        try:
            words = limit.read_text().strip(), use.read_text().strip()
        except OSError:
            continue
        if all(word.isdigit() for word in words):
            limits.append((int(words[0]), int(words[1]) - _file_cache(limit.parent)))
    return limits


def _file_cache(group: Path) -> int:
    """Bytes of files that a control group counts and that make room when memory is needed."""
    try:
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return next(int(value) for name, value in lines if name == "inactive_file")
    except (OSError, ValueError, StopIteration):
        return 0


def empty_cache() -> None:
    """Give back to the GPU what torch keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
