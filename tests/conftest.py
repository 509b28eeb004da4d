"""What all tests share: no network for hubs, the development data where it exists, and one small trained run."""

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import properties  # noqa: F401  (loads the profile of the property tests)

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes share the cores: with more threads than cores each waits for the others.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside a developer's checkout; a user's clone has none."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared, which a user's clone does not have")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """Embedded scenes are rendered into a folder of this session's, not into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["STYLE_NERF2NERF_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers on every machine, whichever tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (nerfstudio draws from it)


@pytest.fixture(scope="session")
def open3d():
    """open3d, which wants the system's libusb: a wheel brings it where the system has none."""
    import libusb_package

    ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    return pytest.importorskip("open3d")


@pytest.fixture
def ffmpeg(tmp_path_factory, monkeypatch) -> None:
    """ffmpeg, which ns-render looks for even where it writes no video: a wheel brings it where the system has none."""
    import imageio_ffmpeg

    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture(scope="session")
def official(shared: Path, tmp_path_factory) -> dict[str, Path]:
    """The golden pipelines in the published layout, one with .bin files (6dof) and one with safetensors (4dof)."""
    from official_layout import write_official

    base = tmp_path_factory.mktemp("official")
    return {
        dof: write_official(base / dof, shared / "golden" / f"pipeline_{dof}_tiny.safetensors", suffix)
        for dof, suffix in (("6dof", "bin"), ("4dof", "safetensors"))
    }


@pytest.fixture(scope="session")
def run(cache, tmp_path_factory) -> Path:
    """The run folder of the main job at its smallest; tests read it, and copy it before they change it."""
    import ns

    output_dir = tmp_path_factory.mktemp("outputs")
    ns.train(output_dir)
    return ns.only_run(output_dir)


@pytest.fixture(scope="session")
def photos(run: Path) -> list[Path]:
    """The photos of the embedded scene that the run was trained on."""
    import ns

    return sorted((Path(ns.data_folder(run)) / "images").iterdir())


@pytest.fixture(scope="session")
def others(photos, tmp_path_factory) -> dict[str, Path]:
    """Folders of pictures named like the photos: two styles, one of them larger and without some views, and masks."""
    root = tmp_path_factory.mktemp("others")
    made = {}
    for name, colour, size, wanted in (
        ("red", (220, 30, 20), 96, [path for path in photos if path.stem not in ("eval_000", "train_001")]),
        ("blue", (20, 40, 200), 64, photos),
        ("masks", None, 64, photos),
    ):
        made[name] = root / name
        made[name].mkdir()
        for path in wanted:
            pixels = np.zeros((size, size, 3), np.uint8)
            pixels[:, : size // 2] = 255 if colour is None else 0
            Image.fromarray(pixels if colour is None else np.full_like(pixels, colour)).save(
                made[name] / f"{path.stem}.{'png' if colour is None else 'jpg'}"
            )
    return made


@pytest.fixture
def camera():
    """A small pinhole camera that looks at the origin."""
    from nerfstudio.cameras.cameras import Cameras

    pose = torch.eye(4)[:3]
    pose[2, 3] = 1.5
    return Cameras(pose[None], fx=9.0, fy=9.0, cx=8 / 2, cy=6 / 2, width=8, height=6)
