"""Measuring the prior: metrics against formulas, trivial predictors, the protocol, NeRF-synthetic scenes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from escher_cases import noise
from escher_models import tiny, write_object
from eschernet_prior import evaluate
from eschernet_prior.base import image_metrics
from eschernet_prior.base.cameras import camera_to_world, look_at, on_sphere, orbit, world_to_camera
from eschernet_prior.base.errors import UserError
from eschernet_prior.data.nerf_synthetic import is_nerf_synthetic, read_nerf_synthetic
from eschernet_prior.evaluation import baselines
from eschernet_prior.procedural.raytracer import render
from eschernet_prior.procedural.scenes import random_scene


def pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    return (noise(count, 3, size, size, seed=seed) / 3.5 + 0.5).clamp(0, 1)


def test_metrics_are_their_formulas():
    made, truth = pictures(3), pictures(3, seed=5)
    for view in range(3):
        expected = 10 * math.log10(1 / float(np.mean((made[view] - truth[view]).numpy() ** 2)))
        assert float(image_metrics.psnr(made, truth)[view]) == pytest.approx(expected, rel=1e-5)
    assert image_metrics.psnr(truth, truth).tolist() == [100] * 3
    torch.testing.assert_close(image_metrics.ssim(truth, truth), torch.ones(3))
    order = [float(image_metrics.ssim(truth + s * (made - truth), truth).mean()) for s in (0.1, 0.4, 1.0)]
    assert 1 > order[0] > order[1] > order[2]
    one_by_one = torch.cat([image_metrics.ssim(made[i : i + 1], truth[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(image_metrics.ssim(made, truth), one_by_one)


def test_lpips_without_its_weights_says_what_to_do(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(image_metrics, "learned_perceptual_image_patch_similarity", no_network)
    with pytest.raises(UserError, match="measure with --no-lpips"):
        image_metrics.lpips(pictures(1), pictures(1))


def test_trivial_predictors_do_what_they_say():
    references, poses = pictures(3, 32), world_to_camera(orbit(3, 1.7))
    turned = world_to_camera(orbit(3, 2.1, azimuth_offset=0.2))
    order = torch.tensor([2, 0, 1, 1])
    assert torch.equal(baselines.nearest_reference(references, poses, turned[order]), references[order])
    mean = baselines.mean_reference(references, poses, turned[order])
    assert mean.shape == (4, 3, 32, 32)
    torch.testing.assert_close(mean[3], references.mean(0))
    blurred = baselines.blurred_mean(references, poses, turned)
    torch.testing.assert_close(blurred.mean(), mean.mean(), rtol=1e-2, atol=0)
    assert blurred.std() < 0.5 * mean.std()
    dot = torch.zeros(1, 3, 33, 33)
    dot[..., 16, 16] = 1
    spread = baselines.blurred_mean(dot, poses, turned[:1])[0, 0, 16]
    deviation = 33 * baselines.BLUR_SHARE
    assert float(spread[17] / spread[16]) == pytest.approx(math.exp(-0.5 / deviation**2), rel=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(folder)
    return folder


def test_an_evaluation_measures_all_numbers_on_the_same_views(model, tmp_path):
    for index in range(2):
        write_object(tmp_path / "data" / f"object_{index}", 6, index)
    write_object(tmp_path / "data" / "too_few", 3)
    options = evaluate.EvaluationOptions(
        str(model), data=(tmp_path / "data",), references=(3, 1), steps=2, lpips=False, out=tmp_path / "out"
    )
    means = evaluate.main(options)
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert told["objects"] == 2
    assert told["target_views"] == 2 * 3
    assert told["protocol"]["guidance_scale"] == 3.0
    assert set(means) == {"prior", *baselines.TRIVIAL}
    assert list(means["prior"]) == [1, 3]
    for number in (1, 3):
        of_objects = [told["by_object"][f"object_{index}"][str(number)]["psnr"] for index in range(2)]
        assert means["prior"][number]["psnr"] == pytest.approx(sum(of_objects) / 2)
    subjects = {subject.name: subject for subject in evaluate.find_subjects(options, 16)}
    scores = [
        image_metrics.psnr(baselines.nearest_reference(s.images[:1], s.poses[:1], s.poses[3:]), s.images[3:]).mean()
        for s in subjects.values()
    ]
    assert means["nearest reference"][1]["psnr"] == pytest.approx(float(sum(scores)) / 2, rel=1e-5)
    with Image.open(tmp_path / "out" / "object_0.png") as sheet:
        assert sheet.size == (6 * 18 + 2, 3 * 18 + 2)  # N = 1, N = 3, truth
    again = evaluate.main(options)
    assert again == means


def test_procedural_scenes_need_no_data(model, tmp_path):
    options = evaluate.EvaluationOptions(
        str(model),
        scenes=1,
        views=3,
        references=(1,),
        targets=1,
        steps=1,
        lpips=False,
        out=tmp_path / "out",
        pictures=0,
    )
    means = evaluate.main(options)
    assert math.isfinite(means["prior"][1]["psnr"])
    assert [folder.name for folder in (tmp_path / "out" / "renders" / "3_views_16").iterdir()] == ["1000000"]
    assert not list((tmp_path / "out").glob("*.png"))


def write_nerf_synthetic(folder: Path, fov: float, size: int, radius: float) -> None:
    scene = random_scene(5)
    for split, count in (("train", 4), ("test", 2)):
        poses = orbit(count, radius, (0.0, 30.0), azimuth_offset=0.1 * len(split))
        zoomed = look_at(poses[:, :3, 3] / radius * 1.8)
        shown = render(scene, zoomed, size, size, fov)
        pixels = (torch.cat((shown.colour, shown.alpha), -1) * 255).round().to(torch.uint8).numpy()
        (folder / split).mkdir(parents=True)
        frames = []
        for view, pose in enumerate(poses):
            Image.fromarray(pixels[view]).save(folder / split / f"r_{view}.png")
            frames.append({"file_path": f"./{split}/r_{view}", "transform_matrix": pose.tolist()})
        told = {"camera_angle_x": math.radians(fov), "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(told))


def test_nerf_synthetic_scenes_come_to_the_priors_frame(tmp_path, model):
    """A scene four times as large, seen with 39.6 degrees, looks like one rendered for the prior."""
    write_nerf_synthetic(tmp_path / "toy", 39.6, 64, 7.2)
    assert is_nerf_synthetic(tmp_path / "toy")
    assert not is_nerf_synthetic(tmp_path)
    images, poses = read_nerf_synthetic(tmp_path / "toy", 24, 4, 1)
    assert images.shape == (5, 3, 24, 24)
    distance = camera_to_world(poses)[:, :3, 3].norm(dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, math.sqrt(1.5 * 2.2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(poses[:, :2, 3], torch.zeros(5, 2).double(), atol=1e-5, rtol=0)
    c2w = camera_to_world(poses)
    c2w[:, :3, 3] *= (1.8 / distance)[:, None]
    expected, uncut = (
        render(random_scene(5), c2w, 24, 24, fov, supersampling=4).colour.permute(0, 3, 1, 2) for fov in (49.13, 39.6)
    )
    error, error_if_not_cut = ((images - other)[:, :, 3:-3, 3:-3].abs().mean() for other in (expected, uncut))
    assert error < 0.02 < 5 * error < error_if_not_cut
    assert (images[:, :, :2] > 0.99).all()
    options = evaluate.EvaluationOptions(
        str(model), data=(tmp_path / "toy",), references=(1,), targets=1, steps=1, lpips=False, out=tmp_path / "out"
    )
    assert math.isfinite(evaluate.main(options)["prior"][1]["ssim"])
    (tmp_path / "toy" / "transforms_test.json").unlink()
    with pytest.raises(UserError, match=r"transforms_test\.json is missing"):
        read_nerf_synthetic(tmp_path / "toy", 24, 2, 1)


def test_the_elephant_is_read_as_the_original_reads_it(shared):
    """Renders of the kind the official checkpoints are measured on: alpha 0 to white, cameras looking at the origin."""
    from eschernet_prior.data.render_folders import RenderFolders

    folders = RenderFolders([shared / "data" / "gso_elephant"], 64, hard_alpha=True)
    assert folders.num_views(0) == 25
    views = folders.read(0, range(25))
    assert folders.counts() == {}
    distance = torch.stack([view.pose[2, 3] for view in views])
    assert -2.2 < distance.min() < distance.max() < -1.5
    assert all((view.image[:, 0, 0] == 255).all() and (view.image[:, 32, 32] < 255).any() for view in views)


def test_a_picture_of_nothing_is_worse_than_the_nearest_view():
    """The order that a table is read by: truth, nearest reference, far reference."""
    scene = random_scene(2)
    position = on_sphere(torch.full((3,), 1.8), torch.full((3,), 15.0), torch.tensor([0.0, 0.15, 2.5]))
    views = render(scene, look_at(position), 32, 32).colour.permute(0, 3, 1, 2)
    near, far = (float(image_metrics.psnr(views[i : i + 1], views[:1])) for i in (1, 2))
    assert near > far
