"""Read folders of posed renders in the layout of Zero-1-to-3's Objaverse renders: one folder per object.

`NNN.png` is a view (RGBA, or RGB on its background), `NNN.npy` its camera: a 3×4 world-to-camera matrix with OpenGL
axes, the object at the origin. A root may hold object folders at any depth; a `valid_paths.json` in it, a list of
folder names, replaces the search.

Some of a million renders are damaged. A *position* in an object is an index into the sorted list of its views' names. A
view that cannot be used is replaced by the next one, an object without usable views by the next object, so that the
result for a position depends on the files alone, not on the order of reading. Skipped files are counted by reason.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import read_pixels

VALID_PATHS = "valid_paths.json"


class PosedRender(NamedTuple):
    """One usable render."""

    image: UInt8[Tensor, "3 size size"]
    """Colours on white."""
    pose: Float[Tensor, "4 4"]
    """World-to-camera, OpenGL axes, float64."""


class RenderFolders:
    """The objects below some folders.

    Attributes:
        objects: The object folders, sorted.
        skipped: Pairs of reason and path that this process has skipped so far.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        image_size: int,
        *,
        min_views: int = 2,
        hard_alpha: bool = False,
        keep_in_memory: bool = False,
        record: Path | None = None,
    ) -> None:
        """Search for objects; renders are opened on demand.

        Args:
            roots: Folders to search.
            image_size: Side of the returned views in pixels.
            min_views: Objects with fewer views are skipped.
            hard_alpha: Make only pixels of alpha 0 white, like the original, instead of blending.
            keep_in_memory: Keep views in memory, for small sets.
            record: File to which all processes append skipped files, one line of reason and path each.

        Raises:
            UserError: If a folder does not exist, or no folder has an object.
        """
        self.image_size, self.hard_alpha = image_size, hard_alpha
        self.skipped: set[tuple[str, str]] = set()
        self._record = record
        self._names: dict[Path, list[str]] = {}
        self._kept: dict[Path, PosedRender | None] | None = {} if keep_in_memory else None
        found = sorted(folder for root in roots for folder in _object_folders(root))
        self.objects = [folder for folder in found if self._has_views(folder, min_views)]
        if not self.objects:
            raise UserError(
                f"There are no posed renders in {', '.join(map(str, roots))}: expected folders of at least {min_views} "
                "views, each NNN.png with its camera NNN.npy."
            )

    def __len__(self) -> int:
        return len(self.objects)

    def num_views(self, index: int) -> int:
        """Number of positions of an object."""
        return len(self._names[self.objects[index]])

    def counts(self) -> dict[str, int]:
        """Numbers of skipped renders and objects by reason, of all processes that share the record."""
        skipped = set(self.skipped)
        if self._record is not None and self._record.is_file():
            lines = self._record.read_text("utf8").splitlines()
            skipped |= {(reason, path) for reason, _, path in (line.partition("\t") for line in lines)}
        return dict(sorted(Counter(reason for reason, _ in skipped).items()))

    def read(self, index: int, positions: Sequence[int]) -> list[PosedRender]:
        """Read views at positions of an object, or of the next object with a usable view.

        Args:
            index: Index of the object.
            positions: Indices of views, modulo the number of views.

        Raises:
            UserError: If no object has a usable view.
        """
        for offset in range(len(self.objects)):
            folder = self.objects[(index + offset) % len(self.objects)]
            views = [self._view(folder, position) for position in positions]
            usable = [view for view in views if view is not None]
            if len(usable) == len(views):
                return usable
            self._skip("no usable view", folder)
        raise UserError(f"None of the {len(self.objects)} objects has a usable render: {self.counts()}.")

    def _has_views(self, folder: Path, min_views: int) -> bool:
        with os.scandir(folder) as entries:
            files = {entry.name for entry in entries}
        cameras = sorted(name[:-4] for name in files if name.endswith(".npy"))
        names = [name for name in cameras if f"{name}.png" in files]
        for name in set(cameras) - set(names):
            self._skip("no image beside the camera", folder / f"{name}.npy")
        if len(names) < min_views:
            self._skip("too few views", folder)
            return False
        self._names[folder] = names
        return True

    def _view(self, folder: Path, position: int) -> PosedRender | None:
        """The first usable view from a position on, cyclically."""
        names = self._names[folder]
        for offset in range(len(names)):
            path = folder / names[(position + offset) % len(names)]
            view = self._kept[path] if self._kept is not None and path in self._kept else self._open(path)
            if self._kept is not None:
                self._kept[path] = view
            if view is not None:
                return view
        return None

    def _open(self, path: Path) -> PosedRender | None:
        pose = read_pose(path.with_suffix(".npy"))
        if pose is None:
            self._skip("broken camera", path)
            return None
        image = _read_image(path.with_suffix(".png"), self.image_size, self.hard_alpha)
        if isinstance(image, str):
            self._skip(image, path)
            return None
        return PosedRender(image, pose)

    def _skip(self, reason: str, path: Path) -> None:
        entry = (reason, str(path))
        if entry in self.skipped:
            return
        self.skipped.add(entry)
        if self._record is not None:
            with self._record.open("a", encoding="utf8") as record:
                record.write("\t".join(entry) + "\n")


def _object_folders(root: Path) -> list[Path]:
    """Folders below a root that contain cameras."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root} with posed renders.")
    listing = root / VALID_PATHS
    if listing.is_file():
        return [root / name for name in json.loads(listing.read_text("utf8")) if (root / name).is_dir()]
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]  # incomplete folders of a killed renderer
        if any(name.endswith(".npy") for name in files):
            found.append(Path(folder))
    return found


def read_pose(file: Path) -> Float[Tensor, "4 4"] | None:
    """The camera in a file, w2c in float64; None unless it is a rigid transform of a camera away from the origin."""
    try:
        rows = torch.from_numpy(np.load(file, allow_pickle=False)).double()
    except (OSError, ValueError, EOFError, TypeError):
        return None
    if rows.shape not in ((3, 4), (4, 4)) or not bool(rows.isfinite().all()):
        return None
    rotation, translation = rows[:3, :3], rows[:3, 3]
    rigid = torch.allclose(rotation @ rotation.mT, torch.eye(3).double(), atol=1e-3) and torch.linalg.det(rotation) > 0
    if not rigid or translation.norm() < 1e-6:
        return None
    return torch.cat((rows[:3], rows.new_tensor([[0.0, 0.0, 0.0, 1.0]])))


def _read_image(file: Path, size: int, hard_alpha: bool) -> UInt8[Tensor, "3 size size"] | str:
    """A render on white at the given size (bilinear, antialiased), or the reason why it cannot be used."""
    try:
        pixels = read_pixels(file)
    except UserError:
        return "broken image"
    image = Image.fromarray(pixels)
    if pixels.shape[-1] == 4:
        alpha = image.getchannel("A")
        if alpha.getextrema()[1] == 0:
            return "empty image"
        if hard_alpha:
            image.putalpha(alpha.point(lambda value: 255 if value else 0))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
