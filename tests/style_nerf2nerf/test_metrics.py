"""What is measured of restyled views: pictures whose agreement is known, and the command line."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from eschernet_prior.base import image_metrics
from eschernet_prior.base.cameras import look_at, on_sphere
from eschernet_prior.base.dataset_io import DEPTH_UNIT, CaptureFrame, write_dataset
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import write_image
from eschernet_prior.procedural.raytracer import render
from eschernet_prior.procedural.scenes import embedded_scene
from style_nerf2nerf import metrics
from style_nerf2nerf.embedded.data import HELD_OUT
from style_nerf2nerf.embedded.models import build_tokenizer
from style_nerf2nerf.evaluation import sharing
from style_nerf2nerf.evaluation.consistency import Clip, clip_scores, neighbours, outlines, sharpness, warp_error
from style_nerf2nerf.evaluation.likeness import compare_with_truth, fitted_classifier, painted_truth
from style_nerf2nerf.evaluation.restyled_views import read_restyled_views
from style_nerf2nerf.metrics import MetricsOptions
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.restyler import Restyler
from view_models import stand_in_pipeline

SIDE, FOV = 64, 45.0


@pytest.fixture(scope="module")
def scene():
    """Three views of a scene, 10 and 25 degrees from the first."""
    azimuth = torch.tensor([0.0, math.radians(10), math.radians(25)], dtype=torch.float64)
    poses = look_at(on_sphere(torch.full_like(azimuth, 2.0), torch.full_like(azimuth, 20.0), azimuth)).float()
    seen = render(embedded_scene("tea", background=True), poses, SIDE, SIDE, FOV, supersampling=1)
    cameras = ViewCameras.from_fov(poses, FOV, SIDE, SIDE)
    return seen.colour.movedim(-1, 1), seen.depth.movedim(-1, 1), cameras


@pytest.fixture(scope="module")
def painted(scene):
    """Colours that belong to places in the world, smooth, the same from everywhere."""
    _, depths, cameras = scene
    points = torch.stack([cameras.unproject(view, depths[view, 0]) for view in range(len(depths))])
    return 0.5 + 0.4 * torch.sin(4 * points).movedim(-1, 1)


@pytest.fixture
def folder(scene, painted, tmp_path):
    """The same as a round's folder on disk."""
    images, depths, cameras = scene
    frames = []
    for view in reversed(range(len(images))):
        name = f"view_{view}"
        write_image(tmp_path / "images" / f"{name}.png", painted[view])
        write_image(tmp_path / "renders" / f"{name}.png", images[view])
        (tmp_path / "depth").mkdir(exist_ok=True)
        np.save(tmp_path / "depth" / f"{name}.npy", (depths[view, 0] / DEPTH_UNIT).numpy())
        frames.append(
            {
                "file_path": f"images/{name}.png",
                "depth_file_path": f"depth/{name}.npy",
                "transform_matrix": cameras.camera_to_worlds[view].tolist(),
                "w": SIDE,
                "h": SIDE,
                "cx": SIDE / 2,
                "cy": SIDE / 2,
                "camera_model": "OPENCV",
                "fl_x": float(cameras.focal[0, 0]),
                "fl_y": float(cameras.focal[0, 1]),
            }
        )
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    (tmp_path / "manifest.json").write_text(json.dumps({"request": {"settings": {"prompt": "a mosaic"}}}))
    return tmp_path


@pytest.fixture
def no_lpips(monkeypatch):
    def refuse(*pictures):
        raise UserError("no weights")

    monkeypatch.setattr(image_metrics, "lpips", refuse)


def test_neighbours_are_near_and_far_by_the_distance_of_the_cameras(scene):
    cameras = scene[2]
    assert neighbours(cameras, 1) == [(0, 1), (1, 0), (2, 1)]
    assert neighbours(cameras, 2) == [(0, 2), (1, 2), (2, 0)]
    assert neighbours(cameras, 7) == neighbours(cameras, 2), "the last where there are fewer"


def test_what_sticks_to_surfaces_agrees_and_what_does_not_disagrees(scene, painted):
    """Colours of places agree; noise of deviation s differs by √2 s, less what bilinear sampling evens out."""
    images, depths, cameras = scene
    pairs = neighbours(cameras, 1)
    assert warp_error(painted, depths, cameras, pairs).rmse < 0.03
    assert warp_error(images, depths, cameras, pairs).rmse < 0.1
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    error = warp_error(noise, depths, cameras, pairs)
    assert 0.1 * (1 + 0.25) ** 0.5 < error.rmse < 0.1 * 2**0.5
    assert error.pairs == 3
    assert error.lpips is None
    assert warp_error(torch.ones_like(images), depths, cameras, pairs).rmse < 1e-6


def test_a_view_that_disagrees_counts_where_it_is_seen(scene, painted):
    _, depths, cameras = scene
    wrong = painted.clone()
    wrong[2] = 1 - wrong[2]
    pairs = neighbours(cameras, 1)
    assert warp_error(wrong, depths, cameras, pairs[:2]).rmse < 0.03
    assert warp_error(wrong, depths, cameras, pairs[2:]).rmse > 0.2


def test_lpips_sees_what_both_views_see_and_nothing_else(scene, painted):
    _, depths, cameras = scene
    seen = []

    def spy(warped, image):
        seen.append((warped[0], image[0]))
        return (warped - image).abs().mean(dim=(1, 2, 3))

    error = warp_error(painted, depths, cameras, [(0, 1)], spy)
    hidden = (seen[0][0] == 0).all(0)
    assert (seen[0][1][:, hidden] == 0).all()
    assert 0.02 < hidden.float().mean() < 0.9
    torch.testing.assert_close(seen[0][1][:, ~hidden], painted[0][:, ~hidden])
    assert error.lpips == pytest.approx(float((seen[0][0] - seen[0][1]).abs().mean()))


def test_views_that_share_nothing_are_told_in_a_sentence(scene, painted):
    _, depths, cameras = scene
    with pytest.raises(UserError, match="same units"):
        warp_error(painted, depths / 100, cameras, neighbours(cameras, 1))


def test_sharpness_is_the_variance_of_the_laplacian():
    x = torch.arange(32).float()
    wave = (0.5 + 0.1 * torch.cos(math.pi * x / 4)).expand(1, 3, 32, 32)
    # The Laplacian of cos(w x) is 2 (cos w - 1) cos(w x); half of its square is its variance over whole periods.
    expected = (255 * 0.1 * 2 * (math.cos(math.pi / 4) - 1)) ** 2 / 2
    inner = wave[..., :, :18]
    assert float(sharpness(inner)) == pytest.approx(expected, rel=0.01)
    assert float(sharpness(torch.full((1, 3, 8, 8), 0.7))) == pytest.approx(0, abs=1e-5)
    torch.manual_seed(0)
    rough = torch.rand(2, 3, 16, 16)
    assert (sharpness(F.avg_pool2d(rough, 3, 1)) < 0.2 * sharpness(rough)).all()


def test_outlines_are_kept_where_edges_lie_on_jumps_of_the_depth(scene):
    images, depths, _ = scene
    torch.manual_seed(0)
    pictures = {
        "inverse depth": (1 / (depths + 0.3)).expand(-1, 3, -1, -1),
        "photos": images,
        "photos elsewhere": images.roll((SIDE // 2, SIDE // 2), (-2, -1)),
        "noise": torch.rand(images.shape),
    }
    found = {name: outlines(shown, depths) for name, shown in pictures.items()}
    assert found["inverse depth"] > 0.9
    assert found["inverse depth"] > found["photos"] > found["photos elsewhere"] + 0.1
    assert found["noise"] == pytest.approx(0.5, abs=0.05)
    assert outlines(images, torch.ones_like(depths)) is None, "nothing jumps"


class Dial:
    """Embeddings that are easy to foresee: pictures by their mean colours, texts by the colour that they name."""

    def images(self, images):
        return images.mean((-1, -2))

    def texts(self, texts):
        return torch.tensor([{"red": [1.0, 0, 0], "grey": [0.3, 0.3, 0.3]}[text] for text in texts])


def test_clip_scores_follow_the_directions():
    grey = torch.full((2, 3, 4, 4), 0.3)
    red = grey.clone()
    red[:, 0], red[:, 1:] = 1.0, 0.0
    scores = clip_scores(Dial(), red, grey, "red", "grey", [(0, 1), (1, 0)])
    assert scores == pytest.approx({"direction_similarity": 1.0, "direction_consistency": 1.0})
    against = torch.stack([red[0], 2 * grey[0] - red[0]])
    scores = clip_scores(Dial(), against, grey, "red", "grey", [(0, 1)])
    assert scores == pytest.approx({"direction_similarity": 0.0, "direction_consistency": -1.0}, abs=1e-6)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small random CLIP model."""
    path, tokenizer = tmp_path_factory.mktemp("clip"), build_tokenizer(["a", "mosaic", "photo"], 16)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_clip_embeds_as_its_own_class_does(clip_folder, scene):
    clip = Clip(clip_folder)
    images, words = clip.images(scene[0]), clip.texts(["a mosaic", "a photo"])
    assert (words[0] - words[1]).abs().max() > 1e-4
    assert (images[0] - images[1]).abs().max() > 1e-4
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    tokens = AutoTokenizer.from_pretrained(clip_folder)(["a mosaic", "a photo"], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(clip_folder).eval()(
            pixel_values=(pictures - mean) / deviation,
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
        )
    torch.testing.assert_close(clip.images(pictures), theirs.image_embeds)
    torch.testing.assert_close(words, theirs.text_embeds)
    with pytest.raises(UserError, match="no CLIP model"):
        Clip(clip_folder / "none")


def test_a_rounds_folder_is_read_as_it_was_written(folder, scene, painted):
    images, depths, cameras = scene
    views = read_restyled_views(folder)
    assert views.prompt == "a mosaic"
    torch.testing.assert_close(views.images, painted, atol=1 / 255, rtol=0)
    torch.testing.assert_close(views.originals, images, atol=1 / 255, rtol=0)
    torch.testing.assert_close(views.depths, depths, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(views.cameras.camera_to_worlds, cameras.camera_to_worlds)
    torch.testing.assert_close(views.cameras.focal, cameras.focal)


def test_what_the_pipeline_writes_is_read_in_one_unit(scene, painted, tmp_path):
    """Poses turned, moved and scaled by a dataparser: written in the capture's frame, depth and poses still agree."""
    _, depths, ours = scene
    turn = torch.tensor([[0.0, -1, 0, 0.3], [1, 0, 0, -0.2], [0, 0, 1, 0.1]])
    scale = 0.25
    poses = turn[:, :3] @ ours.camera_to_worlds[:, :3]
    poses[..., 3] += turn[:, 3]
    poses[..., 3] *= scale
    focal, middle = float(ours.focal[0, 0]), SIDE / 2
    cameras = Cameras(poses, focal, focal, middle, middle, SIDE, SIDE)
    outputs = DataparserOutputs([], cameras, dataparser_transform=turn, dataparser_scale=scale)
    frame = CaptureFrame(outputs, tmp_path)
    write_dataset(tmp_path, cameras, frame, ["a", "b", "c"], list(painted), list(depths * scale))
    views = read_restyled_views(tmp_path)
    assert views.originals is None
    assert views.prompt is None
    torch.testing.assert_close(views.depths, depths, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(views.cameras.camera_to_worlds[:, :3], ours.camera_to_worlds[:, :3], atol=1e-5, rtol=0)
    assert warp_error(views.images, views.depths, views.cameras, neighbours(views.cameras, 1)).rmse < 0.03


def test_the_command_measures_a_folder(folder, no_lpips, clip_folder, capsys):
    report = metrics.main(MetricsOptions(data=folder, clip=str(clip_folder)))
    assert json.loads((folder / "consistency.json").read_text()) == report
    assert report["short_range"]["restyled"]["rmse"] < report["short_range"]["renders"]["rmse"]
    assert report["views"] == 3
    assert -1 <= report["clip"]["direction_consistency"] <= 1
    shown = capsys.readouterr().out
    assert "Skipping LPIPS" in shown
    assert "warp RMSE, short range" in shown
    metrics.main(MetricsOptions(data=folder, clip="nobody/has-this"))
    assert "Skipping CLIP scores" in capsys.readouterr().out


def test_what_cannot_be_measured_is_told_in_a_sentence(folder, no_lpips, tmp_path_factory):
    for wrong in (MetricsOptions(), MetricsOptions(data=folder, held_out=1)):
        with pytest.raises(UserError, match="what to measure"):
            metrics.main(wrong)
    for wrong, word in (
        (MetricsOptions(data=tmp_path_factory.mktemp("empty")), "no dataset"),
        (MetricsOptions(held_out=1, styles=("mud",)), "“mud”"),
        (MetricsOptions(held_out=1, views=1), "--views 2"),
        (MetricsOptions(held_out=1, strength=0.01), "at least 100 steps"),
    ):
        with pytest.raises(UserError, match=word):
            metrics.main(wrong)
    meta = json.loads((folder / "transforms.json").read_text())
    for change, word in (
        ({"camera_model": "OPENCV_FISHEYE"}, "perspective"),
        ({"h": 32}, "different sizes"),
        ({"fl_x": None}, "lack fl_x"),
        ({"depth_file_path": None}, "no depth"),
    ):
        broken = {**meta, "frames": [{**meta["frames"][0], **change}, *meta["frames"][1:]]}
        broken["frames"][0] = {name: value for name, value in broken["frames"][0].items() if value is not None}
        (folder / "transforms.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=word):
            read_restyled_views(folder)


class Pretender:
    """Restyles by a recipe whose scores are known: together views stay photos, alone each gets its own noise."""

    def restyle(self, photos, depths, prompt, share_attention, seed, **settings):
        assert prompt in Restyler.known_styles.values()
        noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(seed))
        return photos if share_attention else (photos + 0.3 * noise).clamp(0, 1)


def test_sharing_that_helps_shows_in_the_ratios():
    told = []
    compared = sharing.compare(
        Pretender(),  # pyright: ignore[reportArgumentType]
        ("gold", "clay"),
        scenes=2,
        views=3,
        size=32,
        on_done=lambda scene, style, made: told.append((scene, style, sorted(made))),
    )
    assert told == [(scene, style, ["alone", "photo", "shared"]) for scene in range(2) for style in ("gold", "clay")]
    for ratios in (compared.ratios(), compared.ratios("clay")):
        assert ratios["short_rmse"] < 0.75
        assert ratios["sharpness"] < 1
    assert compared.ratios("photo") == pytest.approx(dict.fromkeys(compared.mean("shared"), 1.0))
    assert compared.mean("shared") == pytest.approx(compared.scores["photo"]["shared"])


def test_held_out_scenes_are_never_trained_on_and_differ(monkeypatch):
    numbers, real = [], sharing.random_scene
    monkeypatch.setattr(sharing, "random_scene", lambda number, **how: numbers.append(number) or real(number, **how))
    first, second = (sharing.held_out_scene(index, 2, 16) for index in range(2))
    assert min(numbers) >= HELD_OUT
    assert len(set(numbers)) == 2
    assert (first.depths == 0).any()
    assert not torch.equal(first.photos, second.photos)


def test_the_command_measures_the_models(no_lpips, tmp_path, capsys):
    stand_in_pipeline().save_pretrained(tmp_path / "models")
    report = metrics.main(
        MetricsOptions(
            held_out=1,
            source=str(tmp_path / "models"),
            styles=("gold",),
            views=2,
            size=32,
            num_inference_steps=4,
            classifier_scenes=1,
            out=tmp_path / "out",
        )
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(report))
    assert (tmp_path / "out" / "held_out.png").stat().st_size > 500
    shared, alone = (report["scores"]["gold"][way] for way in ("shared", "alone"))
    assert shared["short_rmse"] != alone["short_rmse"]
    assert report["ratios"]["gold"]["short_rmse"] == pytest.approx(shared["short_rmse"] / alone["short_rmse"])
    assert {"grain", "chroma", "distance", "like_truth_sharpness", "named"} <= shared.keys()
    assert "Ratio: the value with shared attention" in capsys.readouterr().out


def test_painted_truth_measures_as_itself():
    """Truth is as smooth, colourful and sharp as truth, one variation away from the other, and named by its style."""
    styles = ("gold", "pencil", "night", "cartoon")
    truth = painted_truth(HELD_OUT, False, 2, 48, styles)
    classifier = fitted_classifier(styles, 6, 48)
    for style in styles:
        first, second = truth[style]
        same = compare_with_truth(first, (first, second))
        assert same.chroma == same.sharpness == same.distance == pytest.approx(1.0)
        assert math.isnan(same.grain) or same.grain == pytest.approx(1.0)
        noisy = compare_with_truth((first + 0.1 * torch.randn(first.shape)).clamp(0, 1), (first, second))
        assert math.isnan(noisy.grain) or noisy.grain > 3
        grey = compare_with_truth(first.mean(1, keepdim=True).expand_as(first), (first, second))
        assert grey.chroma < 0.05
        assert classifier(first) == [style, style]
