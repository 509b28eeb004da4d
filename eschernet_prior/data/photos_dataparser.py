"""Dataparser for photos without poses, which COLMAP finds once and which are cached as a nerfstudio dataset.

On disk, one folder per set of photos and options: `images/`, `images_2/`, … and, written last, `transforms.json` with
`sparse_pc.ply`: OpenCV's lens model, OpenGL camera axes, z up if the first photo was held upright, in COLMAP's unit of
length. nerfstudio's own dataparser reads, orients, centres and scales it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from eschernet_prior.base.captures.account import CaptureAccount, dataparser_options
from eschernet_prior.base.captures.checks import ANY_LENS, check_capture
from eschernet_prior.base.captures.transforms_file import refuse_points
from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import write_json
from eschernet_prior.data.photo_pictures import (
    MIN_PHOTOS,
    MIN_SIDE,
    Picture,
    content_digest,
    is_video,
    list_photos,
    prepare_pictures,
    write_smaller,
)
from eschernet_prior.data.photo_poses import Lens, find_poses, lens_groups, name_some
from eschernet_prior.procedural.dataparser import cache_root

if TYPE_CHECKING:
    import pycolmap
    from nerfstudio.engine.trainer import TrainerConfig

VERSION = 1
"""Version of the dataset: increase it when the search for poses gives other results."""
FACTORS = (2, 4, 8)
SMALLEST = 32
"""Least length of the shorter side of reduced pictures in pixels."""
CPU_SIZE = 256
"""Longer side in pixels of the pictures that a field is trained on without a GPU."""
Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Transform from COLMAP's world, in which y of the first photo is down, to one in which z is up."""
SPARSE_POINTS = "sparse_pc.ply"
DISTORTION = {
    "SIMPLE_RADIAL": ("k1",),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
"""nerfstudio's names of COLMAP's lens parameters, in their order after focal lengths and principal point."""


@dataclass
class PhotosDataParserConfig(NerfstudioDataParserConfig):
    """A folder of photos, or a video: COLMAP (pycolmap) finds the poses on first use, and they are cached."""

    _target: type = field(default_factory=lambda: PhotosDataParser)
    data: Path = Path()
    """Folder of photos (JPEG, PNG, HEIC, WebP, TIFF), or a video file."""
    max_size: int = 1600
    """Longer side in pixels to which larger photos are reduced."""
    video_frames: int = 120
    """Number of frames used from a video: the sharpest in each of as many equal time spans."""
    lens: Lens = "perspective"
    """Lens of the photos: perspective, or fisheye for fields of view of 120 degrees and more, as of action cameras."""

    def prepare(self, run: TrainerConfig) -> CaptureAccount:
        """Find the poses before anything is built, and on a CPU select reduced pictures.

        Called by the trainer's configuration.

        Returns:
            A summary of the dataset.

        Raises:
            UserError: If the poses of the photos cannot be found.
        """
        folder = posed_photos(self)
        meta = json.loads((folder / "transforms.json").read_text("utf8"))
        sizes = [(frame["w"], frame["h"]) for frame in meta["frames"]] if "w" not in meta else [(meta["w"], meta["h"])]
        factors = _factors(sizes)
        if self.downscale_factor is not None and self.downscale_factor not in (1, *factors):
            raise UserError(
                f"There are no photos reduced by a factor of {self.downscale_factor}: set --downscale-factor to one of "
                f"{', '.join(str(factor) for factor in (1, *factors))}."
            )
        if self.downscale_factor is None and run.machine.device_type == "cpu":
            longest = max(max(size) for size in sizes)
            self.downscale_factor = next((f for f in (1, *factors) if longest <= CPU_SIZE * f), max((1, *factors)))
            if self.downscale_factor > 1:
                CONSOLE.print(
                    f"Training on the CPU with photos reduced by a factor of {self.downscale_factor}; "
                    "--downscale-factor selects another size."
                )
        dataset = NerfstudioDataParserConfig(data=folder, downscale_factor=self.downscale_factor)
        lenses = getattr(run.pipeline.datamanager, "lenses", ANY_LENS)
        account = check_capture(dataset, folder, lenses)
        own = {"data": str(self.data.resolve()), "dataparser": dataparser_options(self)}
        return dataclasses.replace(account, identity={**account.identity, **own})

    def check(self) -> None:
        """Refuse options that cannot work.

        Raises:
            UserError: If an option is out of range.
        """
        if self.max_size < 4 * MIN_SIDE:
            raise UserError(f"Poses cannot be found in tiny photos: set --max-size to {4 * MIN_SIDE} pixels or more.")
        if self.video_frames < MIN_PHOTOS:
            raise UserError(f"Poses need at least {MIN_PHOTOS} frames: set --video-frames to 60 to 200.")
        refuse_points(self)


def posed_photos(config: PhotosDataParserConfig) -> Path:
    """Find the cached nerfstudio dataset of photos with their poses, or create it.

    Its folder is named after the content of the photos and the options. Results of an interrupted command (pictures,
    features, matches) are reused.

    Raises:
        UserError: If there are too few photos, one cannot be read, fewer than half can be placed, or the cache folder
            cannot be written.
    """
    config.check()
    data = config.data
    files = [data] if is_video(data) else list_photos(data)
    options = {"version": VERSION, "max_size": config.max_size, "lens": config.lens}
    if is_video(data):
        options["video_frames"] = config.video_frames
    folder = cache_root() / "photos" / content_digest(files, options)
    if (folder / "transforms.json").is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            CONSOLE.print("Another command is finding the poses of these photos: waiting for it.")
            lock.acquire()
        with lock:
            if not (folder / "transforms.json").is_file():
                _make(config, folder)
    except OSError as error:
        raise UserError(
            f"Photos with their poses cannot be stored in {folder} ({error.strerror}): set STYLE_NERF2NERF_CACHE to a "
            "writable folder on a disk with free space."
        ) from error
    return folder


def _make(config: PhotosDataParserConfig, folder: Path) -> None:
    video = is_video(config.data)
    CONSOLE.print(f"Finding the poses of {config.data}; they are cached in {folder}", markup=False, soft_wrap=True)
    try:
        pictures = prepare_pictures(config.data, folder, config.max_size, config.video_frames)
    except UserError:
        shutil.rmtree(folder)  # other photos will have another folder
        raise
    lenses = lens_groups(pictures)
    if len(lenses) > 1:
        CONSOLE.print(
            f"The photos have {len(lenses)} different sizes or lenses, which are calibrated separately: poses are most "
            "accurate if all photos are taken with one lens, without zooming or cropping."
        )
    model = find_poses(pictures, folder, config.lens, video)
    _write(model, pictures, folder)
    placed = {model.image(image).name for image in model.reg_image_ids()}
    lost = [picture.source for picture in pictures if picture.name not in placed]
    CONSOLE.print(
        f"Placed {len(placed)} of {len(pictures)} photos, to {model.compute_mean_reprojection_error():.2f} pixels."
        + (f" Not placed, and not used: {name_some(lost)}." if lost else ""),
        markup=False,
    )


def _write(model: pycolmap.Reconstruction, pictures: Sequence[Picture], folder: Path) -> None:
    """Write smaller pictures, points and, last, transforms.json; then remove what only the search for poses needed."""
    import pycolmap

    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(Z_UP), np.zeros(3)))
    images = {model.image(number).name: model.image(number) for number in model.reg_image_ids()}
    placed = [picture for picture in pictures if picture.name in images]
    with get_progress("Writing smaller pictures", suffix="photos") as progress:
        task = progress.add_task("", total=len(placed))
        factors = _factors([(picture.width, picture.height) for picture in placed])
        write_smaller(folder, [picture.name for picture in placed], factors, lambda: progress.advance(task))
    model.export_PLY(folder / SPARSE_POINTS)
    cameras = {picture.name: _intrinsics(model.camera(images[picture.name].camera_id)) for picture in placed}
    shared = cameras[placed[0].name] if all(each == cameras[placed[0].name] for each in cameras.values()) else None
    frames = [
        {
            "file_path": f"images/{picture.name}",
            "source": picture.source,
            **({} if shared else cameras[picture.name]),
            "transform_matrix": _pose(images[picture.name]).tolist(),
        }
        for picture in placed
    ]
    meta: dict[str, Any] = {
        "camera_model": next(iter(cameras.values()))["camera_model"],
        **(shared or {}),
        "ply_file_path": SPARSE_POINTS,
        "not_placed": [picture.source for picture in pictures if picture.name not in images],
        "frames": frames,
    }
    write_json(folder / "transforms.json", meta)
    for name in ("database.db", "database.db-shm", "database.db-wal", "pairs.txt"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "masks", ignore_errors=True)


def _intrinsics(camera: pycolmap.Camera) -> dict[str, Any]:
    """A camera under nerfstudio's names; in both conventions the middle of the first pixel is at 0.5."""
    kind = camera.model_name
    distortion = camera.params[-len(DISTORTION[kind]) :]
    return {
        "camera_model": "OPENCV_FISHEYE" if kind == "OPENCV_FISHEYE" else "OPENCV",
        "w": camera.width,
        "h": camera.height,
        "fl_x": float(camera.focal_length_x if len(camera.focal_length_idxs()) > 1 else camera.focal_length),
        "fl_y": float(camera.focal_length_y if len(camera.focal_length_idxs()) > 1 else camera.focal_length),
        "cx": float(camera.principal_point_x),
        "cy": float(camera.principal_point_y),
        **{name: float(value) for name, value in zip(DISTORTION[kind], distortion)},
    }


def _pose(image: pycolmap.Image) -> np.ndarray:
    """Camera to world, OpenGL axes, of shape (4, 4)."""
    pose = np.linalg.inv(np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]]))
    pose[:3, 1:3] *= -1
    return pose


def _factors(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Choose the factors by which pictures are reduced."""
    shortest = min(min(size) for size in sizes)
    return [factor for factor in FACTORS if shortest // factor >= SMALLEST]


@dataclass
class PhotosDataParser(Nerfstudio):
    """Reads photos through nerfstudio's dataparser, finding their poses first if they are not cached."""

    config: PhotosDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **_: object) -> DataparserOutputs:
        """The outputs of one split: "train", "val" or "test"."""
        asked = self.config
        with exit_on_user_error():
            self.config = dataclasses.replace(asked, data=posed_photos(asked))
        try:
            return super()._generate_dataparser_outputs(split)
        finally:
            self.config = asked
