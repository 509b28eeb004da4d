"""What the benchmark measures and trains, at the smallest sizes: every mode for real, and what is kept of it."""

import json
from dataclasses import replace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from eschernet_prior.base.errors import UserError
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from style_nerf2nerf.benchmark import BenchmarkOptions, main
from style_nerf2nerf.evaluation import benchmarks
from style_nerf2nerf.evaluation.benchmark_runs import PAPER_LOSS, RGB_LOSS
from style_nerf2nerf.evaluation.field_scores import Renders, path_scores, style_scores
from style_nerf2nerf.evaluation.painted_truth import PaintedScene
from style_nerf2nerf.evaluation.result_rows import Results, means, table_of
from style_nerf2nerf.evaluation.second_field import train_second_field
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.rendering import render_view

SMALL = BenchmarkOptions(
    resolution=32,
    views=4,
    scenes=("cottage",),
    styles=("gold",),
    reconstruct_steps=4,
    retrain_steps=2,
    baseline_steps=1,
    second_field_steps=2,
    held_out=2,
    clip="none-here",
)


def looking_down(views: int, size: int) -> Cameras:
    """Side by side 0.1 apart, two above a plane at z = 0."""
    poses = torch.eye(4)[:3].repeat(views, 1, 1)
    poses[:, 0, 3], poses[:, 2, 3] = 0.1 * torch.arange(views), 2.0
    return Cameras(poses, fx=float(size), fy=float(size), cx=size / 2, cy=size / 2, width=size, height=size)


def plane(cameras: Cameras, phase: float = 0.0) -> Renders:
    """A plane with a pattern that is fixed on it, but for `phase` from frame to frame."""
    size, shift = int(cameras.width[0]), cameras.camera_to_worlds[:, 0, 3]
    x = (torch.arange(size) + 0.5 - size / 2) * 2 / size
    world = x[None, :] + shift[:, None] + phase * torch.arange(len(cameras))[:, None]
    grey = (0.5 + 0.4 * torch.sin(9 * world))[:, None, None, :].expand(-1, 3, size, -1)
    return Renders(grey.contiguous(), torch.full((len(cameras), 1, size, size), 2.0))


def test_a_pattern_that_is_fixed_on_its_surface_is_consistent_and_one_that_drifts_is_not():
    cameras = looking_down(9, 48)
    fixed, drifting = path_scores(plane(cameras), cameras), path_scores(plane(cameras, 0.02), cameras)
    assert fixed["short_rmse"] < 0.01
    assert fixed["long_rmse"] < 0.01
    assert drifting["short_rmse"] > 0.03
    assert drifting["long_rmse"] > 3 * drifting["short_rmse"]
    assert fixed["sharpness"] == pytest.approx(drifting["sharpness"], rel=0.3)


def test_style_distances_tell_the_cameras_own_views_from_one_for_all():
    loss = StyleLoss(VGG19Features("random", layers=("conv1_1",)))
    views = (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 0.3])[:, None, None, None]
    )
    found = style_scores(loss, views, views, views)
    assert found["style_distance"] < 1e-6
    assert found["single_image_style_distance"] > 0.01, "the second frame is darker than the first view"


def test_a_second_field_learns_views_of_one_scene():
    """The plane from all sides but one; the field that is left over for others is not touched."""
    cameras = looking_down(4, 16)
    images = torch.zeros(4, 3, 16, 16)
    images[:, 0] = 0.8
    before = torch.random.get_rng_state()
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    field = train_second_field(cameras, images, box, steps=40, rays=64)
    assert torch.equal(torch.random.get_rng_state(), before)
    shown = render_view(field, cameras[1:2]).colour
    assert (shown - images[0]).abs().mean() < 0.1
    again = train_second_field(cameras, images, box, steps=40, rays=64)
    assert torch.equal(render_view(again, cameras[1:2]).colour, shown)


def test_one_variation_is_one_scene_and_many_are_not(tmp_path):
    config = ProceduralDataParserConfig(resolution=32, num_views=3, num_eval_views=1)
    painted = PaintedScene(config)
    assert painted.names == ["train_000", "train_001", "train_002", "eval_000"]
    one, many = painted.with_one_variation("mosaic", 7), painted.with_many_variations("mosaic", 100)
    assert one.shape == many.shape == (4, 3, 32, 32)
    hues = [pictures.mean((2, 3)) / pictures.mean((1, 2, 3))[:, None] for pictures in (one, many)]
    assert hues[1].std(0).mean() > 2 * hues[0].std(0).mean(), "palettes differ"
    folder = painted.write(one, tmp_path / "mosaic")
    assert sorted(path.stem for path in folder.iterdir()) == sorted(painted.names)


def test_rows_are_kept_for_the_same_options_only(tmp_path):
    path = tmp_path / "rows.json"
    first = Results(path, {"steps": 1})
    assert first.row("a", lambda: {"psnr": 1.0}) == {"psnr": 1.0}
    assert Results(path, {"steps": 1}).row("a", lambda: {"psnr": 2.0}) == {"psnr": 1.0}
    assert Results(path, {"steps": 2}).row("a", lambda: {"psnr": 2.0}) == {"psnr": 2.0}
    rows = {"x: a": {"psnr": 1.0, "ssim": 0.5}, "y: a": {"psnr": 3.0}}
    assert means(rows, ["a"], ["x", "y"]) == {"a": {"psnr": 2.0}}
    table = table_of({"a": {"psnr": 2.0}, "b": {"odd_one": 1.0}}, "")
    assert [column.header for column in table.columns] == ["", "PSNR", "odd one"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "Choose what to measure"),
        ({"oracle": True, "ablation": True}, "Choose what to measure"),
        ({"oracle": True, "styles": ("cubism",)}, "cubism"),
        ({"oracle": True, "held_out": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, word):
    with pytest.raises(UserError, match=word):
        main(replace(SMALL, styles=(), **options) if "styles" not in options else replace(SMALL, **options))


@pytest.mark.parametrize("losses", [PAPER_LOSS, RGB_LOSS])
def test_the_losses_that_ours_is_compared_with_can_work(losses):
    config = StyleModelConfig(prompt="gold", vgg_weights="random")
    for name, value in losses.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    config.check_losses()


def test_the_oracle_trains_every_variant_once(tmp_path, monkeypatch):
    options = replace(SMALL, oracle=True, out=tmp_path)
    rows = main(options)
    assert set(rows) == {"before", "RGB loss", "paper's loss", "ours", benchmarks.BOUND}
    assert all(5 < row["psnr"] < 60 for row in rows.values())
    assert rows["before"]["psnr"] != rows["ours"]["psnr"]
    kept = json.loads((tmp_path / "oracle.json").read_text())
    assert kept["rows"]["gold: ours"] == rows["ours"]
    assert kept["published"]
    monkeypatch.setattr(benchmarks, "PaintedScene", None)  # nothing is left to be done
    assert main(options) == rows


@pytest.mark.slow
def test_contradiction_and_ablation_and_a_run_of_it(tmp_path):
    rows = main(replace(SMALL, contradiction=True, out=tmp_path))
    assert set(rows) == {"photos", "RGB loss", "paper's loss", "ours"}
    # Fields of so few steps have no surfaces that two frames could share: ranges may be missing.
    for label, row in rows.items():
        assert {"sharpness", "style_distance", "single_image_style_distance", "bpsnr", "bssim"} <= set(row), label
    rows = main(replace(SMALL, ablation=True, resolution=64, out=tmp_path / "ablation"))
    assert list(rows) == ["photos", "views not aligned", "field from scratch", "RGB loss", "full"]
    run = tmp_path / "ablation" / "runs" / "cottage" / "style-nerf2nerf-tiny" / "gold-full"
    rows = main(replace(SMALL, run=run))
    assert set(rows) == {"photos", "restyled"}
    assert (run / "benchmark.json").is_file()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run with a finished round"):
        main(replace(SMALL, run=tmp_path))
