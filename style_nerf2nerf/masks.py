"""Masks of local edits: read from files, applied to latents and to decoded views.

A mask is 1 where the view is restyled and 0 where it is kept. At every denoising step, latents outside the mask are
replaced by the original with the noise of that step, so that the inside fits its surroundings. Because a decoder
spreads latent cells over their neighbours, the decoded view is blended with the original over `REACH` cells around the
mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import read_mask

REACH = 4
"""Width in latent cells of the transition from the mask to the original."""


def read_mask_files(paths: Sequence[Path], size: tuple[int, int]) -> Float[Tensor, "views 1 height width"]:
    """Read masks from files, one per view; see `read_view_mask`.

    Raises:
        UserError: If one cannot be read, or if all of them are black.
    """
    masks = torch.stack([read_view_mask(path, size) for path in paths])
    if not bool((masks > 0).any()):
        raise UserError(f"The {len(paths)} masks are all black: paint the region to restyle white.")
    return masks


def read_view_mask(path: Path, size: tuple[int, int]) -> Float[Tensor, "1 height width"]:
    """Read a mask of any pixel format and size: black is kept, everything else is restyled.

    Args:
        path: The file.
        size: Height and width of the result.

    Returns:
        The share of each pixel that is inside, in [0, 1].

    Raises:
        UserError: If the file cannot be read.
    """
    return F.interpolate(read_mask(path).float()[None, None], size=size, mode="area")[0]


def latent_masks(masks: Float[Tensor, "views 1 height width"], tall: int, wide: int) -> Tensor:
    """Reduce masks to latent cells, (views, 1, tall, wide), by the maximum over the pixels of a cell."""
    return F.adaptive_max_pool2d(masks, (tall, wide))


def lay_into_original(
    restyled: Float[Tensor, "3 height width"],
    original: Float[Tensor, "3 height width"],
    mask: Float[Tensor, "1 height width"],
    cell: float,
) -> Float[Tensor, "3 height width"]:
    """Blend a restyled view inside the mask with the original outside, over `REACH` cells.

    Args:
        restyled: The decoded view.
        original: The original view.
        mask: 1 where the view is restyled.
        cell: Side of a latent cell in pixels.
    """
    half = int(REACH * cell / 2)
    # Dilated by half the reach and averaged over as much: 1 on the mask, 0 at the whole reach.
    widened = F.max_pool2d((mask[None] > 0).float(), 2 * half + 1, stride=1, padding=half)
    share = F.avg_pool2d(widened, 2 * half + 1, stride=1, padding=half, count_include_pad=False)[0]
    # A mean of ones may differ from 1 by rounding, and pixels outside must not change at all.
    share = torch.where(share < 1e-6, 0.0, torch.where(share > 1 - 1e-6, 1.0, share))
    return torch.where(share == 0, original, original + share * (restyled - original))
