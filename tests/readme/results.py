"""What each of the README's commands must leave behind, looked at file by file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import trimesh
from commands import Command
from jaxtyping import Float
from PIL import Image

from style_nerf2nerf.rounds.report.previews import MARGIN, ROWS, title_height

FLAT = 6.0
"""Standard deviation of colours, of 255, below which a picture shows nothing."""
MOVED = 2.0
"""Mean difference, of 255, below which two views of a scene show the same."""
LONGEST = 120.0
"""Seconds of one core that cloud and mesh, or the pictures of a run, may take together."""
EXPORTED = (0.2, 2.2)
"""Extents of a scene whose cameras are at most 2.2 units away; its ground is without end."""


def look(command: Command, folder: Path, run: Path, seconds: float, said: str, quick: bool) -> list[str]:
    """Check what a command has left.

    Args:
        command: of the README.
        folder: that it was typed in.
        run: that it made, or was about.
        seconds: of one core that it took.
        said: what it printed.
        quick: the training was cut short, so that its pictures show little and its numbers nothing.

    Returns:
        Lines with figures for whoever reads along.
    """
    first = command.words[0]
    if command.refused:
        return [" ".join(said.split())[-300:]]
    if first == "ns-train":
        return _training(command, run, said, quick)
    if first == "ns-eval":
        return _scores(folder / "scores.json", run, said, quick)
    if first == "ns-render":
        return _video(folder / "path.mp4", quick)
    if command.words[1:3] == ["-m", "style_nerf2nerf.gallery"]:
        return _pictures(run, seconds, said, quick)
    if command.words[1:3] == ["-m", "style_nerf2nerf.export"]:
        return _exports(run, seconds, quick)
    assert first == "ns-viewer", f"nothing is known of what {command.text} leaves"
    return []


def spread(path: Path) -> float:
    """Standard deviation of the colours of a picture, of 255; over all frames of a moving one."""
    with Image.open(path) as picture:
        frames = []
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB"), np.float32))
    return float(np.stack(frames).std((1, 2)).mean())


def after_views(sheet: Path, styles: int, views: int) -> Float[np.ndarray, "views height width 3"]:
    """The last column of a contact sheet: what the field shows after the round, colours in [0, 255].

    Args:
        sheet: before, restyled in each style, and after; one view a row.
        styles: how many there are.
        views: of the round that could be shown; the sheet has a few of them.
    """
    rows = min(ROWS, views)
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)
    width = pixels.shape[1]
    side = (width - MARGIN) // (2 + styles)
    column = pixels[:, width - side : width - MARGIN]
    below = column[title_height(side) + MARGIN :].reshape(rows, -1, *column.shape[1:])
    return below[:, :-MARGIN]


def _training(command: Command, run: Path, said: str, quick: bool) -> list[str]:
    """All that the README says is in a run folder; and the field is of the scene, and of the style in the end."""
    assert list((run / "nerfstudio_models").glob("step-*.ckpt")), "a checkpoint"
    assert (run / "config.yml").is_file()
    assert (run / "dataparser_transforms.json").is_file()
    hidden = [path for path in run.rglob("*") if path.name.startswith(".") or "partial" in path.name]
    assert not hidden, hidden
    lines = []
    if "densify.num-views" in command.text:
        written = run.parents[1].glob("densified/*/transforms.json")
        made = max(written, key=lambda path: path.stat().st_mtime).parent
        frames = json.loads((made / "transforms.json").read_text())["frames"]
        assert len(frames) == 15
        assert all((made / frame["file_path"]).is_file() for frame in frames)
        spreads = [spread(made / frame["file_path"]) for frame in frames]
        lines.append(f"{len(frames)} generated views, spread of colours {np.mean(spreads):.0f} of 255")
        assert quick or min(spreads) > FLAT
    if not command.words[1].startswith("style"):
        return lines
    assert "<html" in (run / "report.html").read_text().lower()
    measured = json.loads((run / "metrics.json").read_text())
    psnr = measured["reconstruction"]["psnr"]
    before, after, least = (measured["round_01"][f"style_distance_{when}"] for when in ("before", "after", "least"))
    blend = f", a blend's least {least:.2f}" if least else ""
    lines.append(f"{psnr:.1f} dB after the reconstruction, style distance {before:.2f} -> {after:.2f}{blend}")
    frames = json.loads((run / "restyled/round_01/transforms.json").read_text())["frames"]
    assert all((run / "restyled/round_01" / frame["file_path"]).is_file() for frame in frames)
    first = measured["round_01"]
    shown = after_views(run / "previews/round_01.png", len(first["style_weights"]), len(first["style_views"]))
    spreads = shown.std((1, 2)).mean(-1)
    apart = np.abs(np.diff(shown, axis=0)).mean((1, 2, 3))
    lines.append(f"views after the round: spread {spreads.min():.0f} of 255, {apart.min():.0f} from each to the next")
    assert spread(run / "previews/round_01.png") > FLAT
    assert spread(run / "previews/turntable_01.webp") > (0 if quick else FLAT)
    if not quick:
        assert psnr > 15, "the field shows the scene"
        assert after - least < 0.5 * (before - least), "the field has the style"
        assert spreads.min() > FLAT, f"the field shows the scene in its style, spreads {spreads}"
        assert apart.min() > MOVED, f"each view is its own, differences {apart}"
    return lines


def _scores(path: Path, run: Path, said: str, quick: bool) -> list[str]:
    results = json.loads(path.read_text())["results"]
    path.unlink()
    assert results["psnr"] > 3
    printed = " ".join(said.split())
    if run.parent.name.startswith("style"):
        assert "compare the restyled field with the photos" in printed
        assert quick or results["style_distance"] < results["style_distance_before"]
    return [f"{results['psnr']:.2f} dB, SSIM {results['ssim']:.3f}"]


def _video(path: Path, quick: bool) -> list[str]:
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    path.unlink()
    spreads = [float(frame.astype(np.float32).std((0, 1)).mean()) for frame in frames]
    assert len(frames) > 10
    assert quick or np.median(spreads) > FLAT, "the video shows the scene"
    moved = np.abs(frames[0].astype(np.float32) - frames[len(frames) // 2]).mean()
    assert quick or moved > MOVED, "the camera moves"
    height, width, _ = frames[0].shape
    return [f"{len(frames)} frames of {width} × {height} pixels, spread of colours {np.median(spreads):.0f} of 255"]


def _pictures(run: Path, seconds: float, said: str, quick: bool) -> list[str]:
    printed = said.replace("\n", "")
    made = [run / "previews/round_01.png", run / "previews/turntable_01.webp", run / "report.html"]
    assert all(path.name in printed for path in made)
    spreads = [spread(path) for path in made[:2]]
    assert quick or min(spreads) > FLAT, f"spread of colours {spreads}"
    assert quick or seconds < LONGEST, f"{seconds:.0f} seconds of one core"
    with Image.open(made[1]) as turntable:
        assert turntable.width >= 256
        return [f"turntable of {turntable.n_frames} frames of {turntable.width} × {turntable.height} pixels"]


def _exports(run: Path, seconds: float, quick: bool) -> list[str]:
    """A cloud and a mesh are of the scene, and not of its far ground."""
    lines = []
    for path in (run / "export" / "point_cloud.ply", run / "export" / "mesh.ply"):
        made = trimesh.load(path, force="mesh" if "mesh" in path.name else None)
        extent = np.ptp(np.asarray(made.vertices), axis=0)
        lines.append(f"{path.name}: {len(made.vertices)} points, {' × '.join(f'{side:.2f}' for side in extent)}")
        assert quick or ((extent > EXPORTED[0]) & (extent < EXPORTED[1])).all(), lines
    assert quick or seconds < LONGEST
    return lines
