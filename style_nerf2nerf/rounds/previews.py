"""Contact sheets: what each view went through, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

TILE = 256
"""Views smaller than this are enlarged for the sheet, so that a person sees them."""
MARGIN = 6


def contact_sheet(
    columns: Mapping[str, Sequence[Float[Tensor, "3 height width"]]], max_rows: int = 6
) -> Float[Tensor, "3 sheet_height sheet_width"]:
    """Lay views out in titled columns, one row a view.

    Args:
        columns: images in [0, 1] by title; all columns have the same number of images of one size.
        max_rows: an even subset of this many views is shown.

    Returns:
        The sheet, RGB in [0, 1], on white.
    """
    count = len(next(iter(columns.values())))
    rows = np.unique(np.linspace(0, count - 1, min(max_rows, count)).round().astype(int))
    tiles = torch.stack([images[row] for row in rows for images in columns.values()])
    enlarge = max(round(TILE / tiles.shape[-1]), 1)
    tiles = tiles.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    grid = make_grid(tiles, nrow=len(columns), padding=MARGIN, pad_value=1.0)
    return torch.cat([_title(list(columns), tiles.shape[-1] + MARGIN, grid.shape[-1]), grid], dim=1)


def _title(names: list[str], column: int, width: int) -> Float[Tensor, "3 height width"]:
    size = max(column // 12, 10)
    strip = Image.new("RGB", (width, 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    for index, name in enumerate(names):
        draw.text((MARGIN + (index + 0.5) * column, size), name, "black", ImageFont.load_default(size), anchor="mm")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1).float() / 255
