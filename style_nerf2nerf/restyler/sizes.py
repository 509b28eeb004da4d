"""The size at which views are restyled, near the models' own area and the views' aspect ratio."""

from __future__ import annotations

import math
from typing import Any

from eschernet_prior.base.errors import UserError


def native_side(unet: Any, vae: Any) -> int:
    """Pixels along a side of the square pictures that the models were made for; 1024 for SDXL."""
    return unet.config["sample_size"] * pixels_per_cell(vae)


def pixels_per_cell(vae: Any) -> int:
    """Pixels along a latent cell's side; 8 for SDXL."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def size_unit(unet: Any, vae: Any) -> int:
    """Number of which both sides of a working size are multiples, because the models halve them; 32 for SDXL."""
    return pixels_per_cell(vae) * 2 ** (len(unet.config["block_out_channels"]) - 1)


def working_size(height: int, width: int, side: int, unit: int) -> tuple[int, int]:
    """The size at which views of the given size are restyled.

    Of all sizes whose sides the models can halve as often as they need to, the one with the least
    `|log aspect error| + ½ |log area error|`.

    Args:
        height: Of the views.
        width: Of the views.
        side: Pixels along a side of a square of the wanted area.
        unit: What both sides must be multiples of.
    """
    sides = range(unit, 4 * side + 1, unit)

    def misfit(size: tuple[int, int]) -> float:
        tall, wide = size
        return abs(math.log(tall * width / (wide * height))) + 0.5 * abs(math.log(tall * wide / side**2))

    return min(((tall, wide) for tall in sides for wide in sides), key=misfit)


def check_side(side: int, unet: Any, vae: Any) -> None:
    """Refuse a side at which the models cannot work.

    Args:
        side: Pixels along a side of a square of the wanted area.
        unet: The UNet.
        vae: The autoencoder.

    Raises:
        UserError: If it is smaller than one unit or larger than four times the models' own.
    """
    unit, native = size_unit(unet, vae), native_side(unet, vae)
    if not unit <= side <= 4 * native:
        raise UserError(
            f"The models cannot restyle at --pipeline.restyle.size {side}: give {unit} to {4 * native} pixels, "
            f"{native} being what they were trained at."
        )
