"""How much memory a restyling needs, computed from the models' configurations before anything is loaded.

The stages of a restyling follow each other, and what one has needed is free for the next: the prompt is encoded, then
the views, then all of them are denoised together, then they are decoded. A GPU holds the weights of the running stage;
a CPU holds all of them all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from style_nerf2nerf.restyler.compute.memory import (
    RESERVE,
    UNITS_ACTIVE,
    UNITS_HELD,
    UNITS_HELD_OFFLOADED,
    MemoryPlan,
    plan,
    total_memory,
    unit_bytes,
)
from style_nerf2nerf.restyler.models.files import CheckedModels, count_parameters

GB = 1e9
"""Bytes of the unit that people read."""
ENCODING, DECODING = 8, 10
"""Pictures of the autoencoder's first block that are in memory while a view is encoded or decoded: 5 and 6 by adding up
the tensors of SDXL's, and as much again for half of them, because convolutions need memory too."""
PROCESS = 1_100_000_000
"""Bytes that Python, its libraries and the field take on a CPU: measured peaks exceeded what is computed for models and
views by this."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Precisions, as a person asks for them."""


@dataclass(frozen=True)
class Needs:
    """What one restyling needs, in bytes."""

    weights: Mapping[str, int]
    """Weights in memory in each stage."""
    activations: Mapping[str, int]
    """What is in memory besides them."""
    plan: MemoryPlan
    """How the views are denoised."""
    description: str
    """The number of views, their size and the precision."""

    @property
    def peak(self) -> int:
        """The most that is in memory at a time."""
        return max(self.weights[stage] + self.activations[stage] for stage in self.weights)

    def sentence(self, total: int, name: str) -> str:
        """What a person reads before the run.

        Args:
            total: Bytes of the device's memory.
            name: What the device is called.
        """
        return f"{self.description} needs about {self.peak / GB:.1f} GB of the {name}'s {total / GB:.1f} GB."

    def table(self) -> Table:
        """The stages, one a row, in GB."""
        table = Table("Stage", "Weights", "Views", "Together", title="Memory for restyling in GB")
        for stage, weights in self.weights.items():
            views = self.activations[stage]
            table.add_row(stage, *(f"{part / GB:.1f}" for part in (weights, views, weights + views)))
        return table


def needs(
    models: CheckedModels,
    dtype: torch.dtype,
    size: tuple[int, int],
    entries: int,
    total: int,
    *,
    guided: bool = True,
    on_cpu: bool = False,
    max_views: int | None = None,
    offload: bool | None = None,
) -> Needs:
    """The memory of a restyling.

    Args:
        models: The networks, on the meta device.
        dtype: What they compute in.
        size: Working height and width.
        entries: Views, and the reference picture if they attend to one.
        total: Bytes that may be used, the weights included.
        guided: Whether there are two halves, with and without the prompt.
        on_cpu: Whether all stages share the CPU's memory.
        max_views: Views that are worked on at a time, if that is given.
        offload: Whether what waits is kept in the CPU's memory; where it is needed if None.
    """
    each = torch.finfo(dtype).bits // 8
    networks: dict[str, Any] = dict(models.networks)
    weights = {name: each * count_parameters(network) for name, network in networks.items()}
    vae, unet = networks["vae"], networks["unet"]
    pixels, cell = size[0] * size[1], 2 ** (len(vae.config["block_out_channels"]) - 1)
    encoders = weights["text_encoder"] + weights["text_encoder_2"]
    denoisers = weights["unet"] + weights["controlnet"] + weights["vae"]
    unit, halves = unit_bytes(unet, pixels // cell**2, dtype), 2 if guided else 1
    picture = each * pixels * vae.config["block_out_channels"][0]
    controls = halves * entries * 3 * pixels * each
    resident = sum(weights.values()) + PROCESS if on_cpu else denoisers
    planned = plan(unit, entries, max(total - resident - controls, 0), offload=offload, on_cpu=on_cpu)
    at_a_time = min(entries, max_views or planned.views_per_batch)
    held = UNITS_HELD_OFFLOADED if planned.offload else UNITS_HELD
    if planned.halves_together and max_views is None:
        views = halves * (held + UNITS_ACTIVE) * entries
    else:
        views = held * entries + UNITS_ACTIVE * at_a_time
    activations = {
        "encode the prompt": 0,
        "encode the views": ENCODING * picture,
        "denoise": views * unit + controls,
        "decode the views": DECODING * picture,
    }
    stages = dict(zip(activations, (encoders, weights["vae"], denoisers, denoisers)))
    if on_cpu:
        stages = dict.fromkeys(stages, sum(weights.values()) + PROCESS)
    return Needs(
        stages,
        activations,
        planned._replace(views_per_batch=at_a_time),
        f"Restyling {entries} views at {size[1]} × {size[0]} pixels in {NAMES[dtype]}",
    )


def report(needed: Needs, device: torch.device) -> tuple[str, bool]:
    """The sentence on what is needed, and whether the device has as much.

    Args:
        needed: What is needed.
        device: Where the restyling will run.
    """
    total, name = total_memory(device), "GPU" if device.type == "cuda" else "machine"
    sentence = needed.sentence(total, name)
    fits = needed.peak <= (1 - RESERVE / 2) * total
    if not fits:
        sentence += (
            " That is likely not to fit: lower --pipeline.restyle.size, --pipeline.datamanager.num-style-views or "
            "--pipeline.restyle.max-views-per-batch."
        )
    return sentence, fits
