"""Pictures of a round for people: a contact sheet of its views, and a turntable of the field before and after it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.utils.rich_utils import get_progress
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.rendering import render_view

TILE = 256
"""Least width of a view on the sheet in pixels; smaller views are enlarged."""
MARGIN = 6
ROWS = 6
"""Largest number of views on a sheet."""
WORTH_SAYING = 20.0
"""Seconds from which on the estimate of a turntable is printed: a log file has no progress bar."""


def sheet_path(run_dir: Path, number: int) -> Path:
    """Where the contact sheet of a round (counted from 1) is kept."""
    return run_dir / "previews" / f"round_{number:02d}.png"


def contact_sheet(
    columns: Mapping[str, Sequence[Float[Tensor, "3 height width"]]], max_rows: int = ROWS
) -> Float[Tensor, "3 sheet_height sheet_width"]:
    """Arrange views in titled columns, one row per view.

    Args:
        columns: Images in [0, 1] by title; all columns have the same number of images of one size.
        max_rows: Largest number of rows; an even subset of the views is shown.

    Returns:
        The sheet, RGB in [0, 1], on white.
    """
    count = len(next(iter(columns.values())))
    rows = evenly_spaced(max_rows, count)
    tiles = torch.stack([images[row] for row in rows for images in columns.values()])
    enlarge = max(round(TILE / tiles.shape[-1]), 1)
    tiles = tiles.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    grid = make_grid(tiles, nrow=len(columns), padding=MARGIN, pad_value=1.0)
    return torch.cat([_title(list(columns), tiles.shape[-1] + MARGIN, grid.shape[-1]), grid], dim=1)


def title_height(column: int) -> int:
    """Height in pixels of the titles above columns of a width in pixels, margin included."""
    return 2 * max(column // 12, 10)


def _title(names: list[str], column: int, width: int) -> Float[Tensor, "3 height width"]:
    size = title_height(column) // 2
    strip = Image.new("RGB", (width, 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    for index, name in enumerate(names):
        draw.text((MARGIN + (index + 0.5) * column, size), name, "black", ImageFont.load_default(size), anchor="mm")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1).float() / 255


STOPS = 6
"""Largest number of views on the path of a turntable."""
TURNTABLE_SECONDS = 3.0
"""Duration of a turn."""


def turntable_file(run_dir: Path, number: int) -> Path:
    """Where the turntable of the field as it was after a round (counted from 1) is kept."""
    return run_dir / "previews" / f"turntable_{number:02d}.webp"


def round_trip(places: Float[Tensor, "places 3"]) -> list[int]:
    """The order of the shortest closed path through a few places, which begins at the first.

    All orders are compared, so there must be few of them (`STOPS`).
    """
    apart = torch.cdist(places.double(), places.double()).tolist()
    trips = ([0, *order, 0] for order in itertools.permutations(range(1, len(places))))
    return min(trips, key=lambda trip: sum(apart[one][other] for one, other in itertools.pairwise(trip)))[:-1]


def turntable_path(cameras: Cameras, frames: int, size: int, stops: Sequence[int] | None = None) -> Cameras:
    """A path through some of the cameras and back to just before the first, by nerfstudio's interpolation.

    It is straight between two cameras, so that neighbours must follow each other, or it leads through the scene.

    Args:
        cameras: Of shape (views,), at least one.
        frames: Number of cameras on the path.
        size: Longest side of their pictures in pixels.
        stops: The cameras to visit, in this order; default: an even subset, on the shortest round trip.
    """
    from nerfstudio.cameras.camera_paths import get_interpolated_camera_path

    if stops is None:
        stops = evenly_spaced(STOPS, len(cameras))
        stops = [stops[index] for index in round_trip(cameras.camera_to_worlds[stops, :, 3])]
    ordered = cameras[torch.tensor([*stops, stops[0]])].to("cpu")
    steps = 1 + -(-frames // len(stops))
    path = get_interpolated_camera_path(ordered, steps=steps, order_poses=False)
    # Segments share their end points: duplicates are removed, so that the camera does not pause.
    apart = torch.tensor([index for index in range(len(path)) if index == 0 or index % steps])
    path = path[apart[torch.linspace(0, len(apart) - 1, frames + 1).round().long()[:-1]]]
    path.rescale_output_resolution(size / max(int(path.height[0]), int(path.width[0])))
    return path


def write_turntable(
    path: Path, before: NerfactoModel, after: NerfactoModel, cameras: Cameras, frames_per_second: float
) -> None:
    """Render two fields along a camera path and write them side by side as an endless WebP, whole or not at all.

    Args:
        path: The GIF file.
        before: The field on the left.
        after: The field on the right.
        cameras: Of shape (frames,), at least two, all of one size.
        frames_per_second: Speed of the animation.
    """
    frames, began = [], time.monotonic()
    with get_progress("Turntable", suffix="frames") as progress:
        for index in progress.track(range(len(cameras)), description=""):
            both = [render_view(field, cameras[index : index + 1]).colour for field in (before, after)]
            frames.append(torch.cat(both, dim=2))
            seconds = (time.monotonic() - began) * len(cameras)
            if index == 0 and seconds > WORTH_SAYING:
                height, width = both[0].shape[1:]
                progress.console.print(
                    f"{len(cameras)} pictures of two fields at {width} × {height} pixels: about {seconds / 60:.1f} min."
                )
    write_webp(path, frames, frames_per_second)


def write_webp(path: Path, frames: Sequence[Float[Tensor, "3 height width"]], frames_per_second: float) -> None:
    """Write pictures in [0, 1] as an endless animation that every browser shows, whole or not at all."""
    images = [
        Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for frame in frames
    ]
    duration = round(1000 / frames_per_second)
    with atomic_path(path) as partial:
        images[0].save(
            partial, save_all=True, append_images=images[1:], duration=duration, loop=0, quality=85, method=4
        )
