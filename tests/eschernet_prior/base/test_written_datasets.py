"""Restyled and generated views are written so that nerfstudio's own dataparser sees the rays of the capture.

For random captures (lenses, numbers at the top or in the frames, frames of reference, scales, splits, sizes) the
dataset that is written is read back and compared ray by ray with the capture as it stands in its transforms.json.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE
from scipy.spatial.transform import Rotation

from eschernet_prior.base.captures.checks import check_orientation
from eschernet_prior.base.dataset_io import ASSUMED_TRANSFORM, CaptureFrame, write_dataset
from eschernet_prior.base.errors import UserError
from eschernet_prior.densify.datamanager import with_generated
from eschernet_prior.densify.generate import Densified, _cameras
from eschernet_prior.frames import PriorFrame
from properties import examples

AS_IT_STANDS = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}
"""Options with which nerfstudio takes poses as they are in the file."""
PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
LENSES = (*PERSPECTIVE, None, "OPENCV_FISHEYE", "FISHEYE624")


@dataclass(frozen=True)
class Case:
    """A capture and the options that it is read with."""

    meta: dict
    colmap: bool
    options: dict

    def write(self, folder: Path) -> None:
        (folder / "transforms.json").write_text(json.dumps(self.meta))
        if self.colmap:
            (folder / "colmap" / "sparse" / "0").mkdir(parents=True)


@st.composite
def cases(draw, lenses=LENSES) -> Case:
    number = np.random.default_rng(draw(st.integers(0, 2**32)))
    lens, count = draw(st.sampled_from(lenses)), draw(st.integers(4, 7))
    extent, away = 10.0 ** draw(st.integers(-2, 2)), draw(st.sampled_from([0.0, 3.0, 50.0]))
    width, height = 2 * number.integers(3, 7, 2)

    def lens_numbers() -> dict:
        numbers = {"fl_x": width * number.uniform(0.8, 2), "fl_y": width * number.uniform(0.8, 2)}
        numbers |= {"cx": width * number.uniform(0.4, 0.6), "cy": height * number.uniform(0.4, 0.6)}
        return {name: float(value) for name, value in numbers.items()}

    def distortion() -> dict:
        if lens == "FISHEYE624":
            return {"distortion_params": (number.normal(size=12) * 0.004).tolist()}
        names = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"), "RADIAL": ("k1", "k2")}
        return {name: float(number.normal() * 0.02) for name in names.get(lens or "", ())}

    sides = {"w": int(width), "h": int(height)}
    frames = [{"file_path": f"images/{'train' if index % 3 else 'eval'}_{index:02d}.png"} for index in range(count)]
    meta: dict = {} if lens is None else {"camera_model": lens}
    for numbers in (lens_numbers, distortion, lambda: sides):
        if draw(st.booleans()):
            meta |= numbers()
        else:
            for frame in frames:
                frame |= numbers()
    target = extent * away * number.normal(size=3)
    for frame in frames:
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=number.integers(2**31)).as_matrix()
        pose[:3, 3] = target + extent * pose[:3, 2] * number.uniform(1.5, 2.2)  # it looks at the target
        frame["transform_matrix"] = pose.tolist()
    frame_kind = draw(st.sampled_from(["none", "rigid", "assumed", "colmap"]))
    if frame_kind == "rigid":
        rotation = Rotation.random(random_state=number.integers(2**31)).as_matrix()
        meta["applied_transform"] = np.column_stack([rotation, extent * number.normal(size=3)]).tolist()
    elif frame_kind == "assumed":
        meta["applied_transform"] = ASSUMED_TRANSFORM
    if draw(st.booleans()):
        meta["applied_scale"] = float(10.0 ** number.uniform(-1, 1))
    options = {
        "orientation_method": draw(st.sampled_from(["pca", "up", "vertical", "none"])),
        "center_method": draw(st.sampled_from(["poses", "focus", "none"])),
        "auto_scale_poses": draw(st.booleans()),
        "scale_factor": draw(st.sampled_from([1.0, 0.3, 5.0])),
        "downscale_factor": draw(st.sampled_from([1, 2])),
        "eval_mode": draw(st.sampled_from(["fraction", "filename", "interval", "all"])),
        "eval_interval": 3,
    }
    if draw(st.booleans()):
        names = [frame["file_path"] for frame in frames]
        meta |= {"train_filenames": names[:3], "val_filenames": names[3:], "test_filenames": names[3:]}
    return Case({**meta, "frames": frames}, frame_kind == "colmap", options)


@contextmanager
def quiet():
    CONSOLE.quiet = True
    try:
        yield
    finally:
        CONSOLE.quiet = False


def read(folder: Path, **options):
    with quiet():
        return NerfstudioDataParserConfig(data=folder, **options).setup().get_dataparser_outputs("train")


def rays(outputs, cameras: Cameras | None = None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Origins and directions of all pixels of each view, by the names of the pictures."""
    cameras = outputs.cameras if cameras is None else cameras
    found = {}
    for index, path in enumerate(outputs.image_filenames):
        bundle = cameras.generate_rays(index, keep_shape=True)
        found[path.stem] = (bundle.origins, bundle.directions)
    return found


def the_same(read_back: dict, expected: dict, extent: float) -> None:
    assert read_back.keys() <= expected.keys()
    for name, (origins, directions) in read_back.items():
        torch.testing.assert_close(directions, expected[name][1], atol=1e-4, rtol=0)
        torch.testing.assert_close(origins, expected[name][0], atol=1e-4 * extent, rtol=0)


def without(options: dict, *names: str) -> dict:
    return {name: value for name, value in options.items() if name not in names}


def turned_as_noted(case: Case, outputs, capture: Path) -> bool:
    """False where nerfstudio's pca turns poses otherwise than it says; such captures are refused."""
    if case.options["orientation_method"] != "pca":
        return True
    try:
        check_orientation(outputs, capture, case.meta["frames"])
    except UserError:
        return False
    return True


def extent_of(meta: dict) -> float:
    return float(np.abs([np.asarray(frame["transform_matrix"])[:3, 3] for frame in meta["frames"]]).max())


def check_restyled(case: Case) -> None:
    with TemporaryDirectory() as temporary:
        capture, made = Path(temporary) / "capture", Path(temporary) / "made"
        capture.mkdir()
        case.write(capture)
        outputs = read(capture, **case.options)
        assume(turned_as_noted(case, outputs, capture))
        names = [path.stem for path in outputs.image_filenames]
        sizes = zip(outputs.cameras.height.flatten().tolist(), outputs.cameras.width.flatten().tolist())
        images = [torch.rand(3, height, width) for height, width in sizes]
        write_dataset(made, outputs.cameras, CaptureFrame(outputs, capture), names, images)
        split = {"train_split_fraction": 1.0, "downscale_factor": 1}
        expected = read(
            capture,
            **AS_IT_STANDS,
            **without(case.options, *AS_IT_STANDS, "scale_factor"),
        )
        written = read(made, **AS_IT_STANDS, **split)
        assert {path.stem for path in written.image_filenames} == set(names)
        the_same(rays(written), rays(expected), extent_of(case.meta))
        # What had been done to the poses before is said, too: both lead back to one original world.
        again, once = (read(folder, **AS_IT_STANDS, **split) for folder in (made, capture))
        torch.testing.assert_close(again.dataparser_transform, once.dataparser_transform)
        assert again.dataparser_scale == pytest.approx(once.dataparser_scale)


def check_densified(case: Case) -> None:
    """Cameras of the prior at the photos' places: in the dataset of generated views, and beside the photos."""
    with TemporaryDirectory() as temporary:
        capture, made = Path(temporary) / "capture", Path(temporary) / "made"
        capture.mkdir()
        case.write(capture)
        outputs = read(capture, **case.options)
        assume(turned_as_noted(case, outputs, capture))
        frame = PriorFrame.around(outputs.cameras.camera_to_worlds)
        planned = frame.to_prior(outputs.cameras.camera_to_worlds)
        cameras, names = _cameras(frame, planned, 8), [path.stem for path in outputs.image_filenames]
        write_dataset(made, cameras, CaptureFrame(outputs, capture), names, list(torch.rand(len(names), 3, 8, 8)))
        written = read(made, **AS_IT_STANDS, train_split_fraction=1.0, downscale_factor=1)
        stands = read(capture, **AS_IT_STANDS, **without(case.options, *AS_IT_STANDS, "scale_factor"))
        prior = [float(getattr(cameras, name)[0]) for name in ("fx", "fy", "cx", "cy")]
        expected = Cameras(stands.cameras.camera_to_worlds, *prior, 8, 8)
        the_same(rays(written), rays(stands, expected), extent_of(case.meta))
        joined = with_generated(outputs, Densified(made, names, cameras, [1.0] * len(names), None)).cameras
        assert len(joined) == 2 * len(names)
        size = float(cameras.camera_to_worlds.abs().max())
        the_same(rays(outputs, joined[: len(names)]), rays(outputs), size)
        the_same(rays(outputs, joined[len(names) :]), rays(outputs, cameras), size)


@examples(24)
@given(case=cases())
def test_restyled_views_of_any_capture_have_its_rays(case):
    check_restyled(case)


@examples(12)
@given(case=cases(PERSPECTIVE))
def test_generated_views_of_any_capture_are_in_its_frame(case):
    check_densified(case)


@pytest.mark.slow
@examples(300)
@given(case=cases(), perspective=cases(PERSPECTIVE))
def test_three_hundred_captures(case, perspective):
    check_restyled(case)
    check_densified(perspective)
