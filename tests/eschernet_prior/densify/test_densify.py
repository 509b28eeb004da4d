"""Densification as a stage: what it reads, what it writes, how it goes on, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from escher_models import tiny, write_object
from eschernet_prior.base.cameras import focal_length, orbit
from eschernet_prior.base.errors import UserError
from eschernet_prior.data.objaverse_dataparser import ObjaverseDataParserConfig
from eschernet_prior.densify.generate import Densified, DensifyConfig, densify
from eschernet_prior.densify.references import read_references
from eschernet_prior.frames import PRIOR_FOV_DEGREES
from eschernet_prior.pipeline import EscherNetPipeline
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig

SCENE = ProceduralDataParserConfig(background=False, num_views=3, num_eval_views=2, resolution=32)


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    """A prior on disk, with weights that mean nothing."""
    folder = tmp_path_factory.mktemp("prior")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(cache) -> DataparserOutputs:
    return SCENE.setup().get_dataparser_outputs(split="train")


@pytest.fixture
def config(prior, tmp_path) -> DensifyConfig:
    return DensifyConfig(num_views=5, prior=str(prior), num_inference_steps=4, folder=tmp_path / "densified")


def pixels(densified: Densified) -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in densified.images])


def test_what_is_written_is_a_dataset_in_the_frame_of_the_capture(photos, config, tmp_path):
    made = densify(photos, SCENE.data, config)
    parser = NerfstudioDataParserConfig(
        data=made.folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all"
    )
    read = parser.setup().get_dataparser_outputs(split="train")
    assert [path.name for path in read.image_filenames] == [f"generated_{index:03d}.png" for index in range(5)]
    assert torch.allclose(read.cameras.camera_to_worlds, made.cameras.camera_to_worlds, atol=1e-6)
    assert float(read.cameras.fx[0]) == pytest.approx(focal_length(PRIOR_FOV_DEGREES, 16))
    assert pixels(made).shape == (5, 16, 16, 3)
    assert {path.name for path in (made.folder / "trust").iterdir()} == {f"generated_{i:03d}.png" for i in range(5)}
    assert [path.name for path in made.folder.parent.iterdir()] == [made.folder.name], "nothing half-made is left"


def test_views_that_are_on_disk_are_not_made_again_whatever_they_weigh(photos, config, monkeypatch):
    first = densify(photos, SCENE.data, config)
    monkeypatch.setattr(EscherNetPipeline, "__call__", None)
    again = densify(photos, SCENE.data, replace(config, trust_agreement=False, trust_nearness=False))
    assert again.folder == first.folder
    with pytest.raises(TypeError):
        densify(photos, SCENE.data, replace(config, seed=1))


def test_a_prior_on_the_hub_is_read_at_the_revision_asked_for(photos, config, prior, monkeypatch):
    asked = []

    def download(repository, **options):
        asked.append((repository, options["revision"], options["local_files_only"]))
        return str(prior)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pinned = replace(config, prior="kxic/eschernet-6dof", prior_revision="abc")
    made = densify(photos, SCENE.data, pinned)
    name = ("kxic/eschernet-6dof", "abc")
    assert asked == [(*name, False), (*name, True)], "fetched once, and what is loaded is what was fetched"
    assert pixels(made).shape == (5, 16, 16, 3)


@pytest.mark.parametrize("dies_after", [1, 3, 6])
def test_a_killed_densification_goes_on_where_it_stopped(photos, config, tmp_path, monkeypatch, dies_after):
    """Four steps for each of two samples: the calls of the UNet tell what is made again."""
    unbroken = pixels(densify(photos, SCENE.data, config))
    config = replace(config, folder=tmp_path / "other")
    calls, predict = [], EscherNetPipeline._predict_noise

    def dying(self, *args):
        if len(calls) == dies_after:
            raise KeyboardInterrupt
        calls.append(1)
        return predict(self, *args)

    monkeypatch.setattr(EscherNetPipeline, "_predict_noise", dying)
    with pytest.raises(KeyboardInterrupt):
        densify(photos, SCENE.data, config)
    assert not list((tmp_path / "other").glob("[!.]*")), "nothing half-made has a name to be found by"
    counted = []

    def counting(self, *args):
        counted.append(1)
        return predict(self, *args)

    monkeypatch.setattr(EscherNetPipeline, "_predict_noise", counting)
    assert np.array_equal(pixels(densify(photos, SCENE.data, config)), unbroken)
    assert len(counted) == 8 - dies_after


def test_weights_follow_the_options(photos, config):
    made = densify(photos, SCENE.data, config)
    near = torch.tensor(made.nearness)[:, None, None]
    made = replace(made, disagreement=[0.0, 1.0, 0.0, 0.0, 0.0])
    none = replace(config, trust_agreement=False, trust_nearness=False, trust_outlines=False)
    assert torch.equal(made.weights(none), torch.ones(5, 16, 16))
    assert torch.allclose(made.weights(replace(none, trust_nearness=True)), near.expand(5, 16, 16))
    dropped = made.weights(replace(none, trust_outlines=True))
    assert dropped.amax((1, 2)).tolist() == [1, 0, 1, 1, 1]
    agreement = made.weights(replace(none, trust_agreement=True))
    everything = made.weights(config)
    assert torch.allclose(everything, agreement * near * dropped)
    assert 0 <= float(agreement.min()) < float(agreement.max()) <= 1
    assert (replace(made, disagreement=None).weights(config)[1] > 0).any(), "photos without outlines drop nothing"


def test_one_photo_is_enough_where_the_object_is_known(cache, config):
    photos = replace(SCENE, num_views=1).setup().get_dataparser_outputs(split="train")
    made = densify(photos, SCENE.data, replace(config, plan="orbit"))
    assert len(made.names) == 5
    unknown = replace(photos, metadata={})
    with pytest.raises(UserError, match="object-centre"):
        densify(unknown, SCENE.data, config)
    given = densify(unknown, SCENE.data, replace(config, plan="orbit", object_centre=(0.0, 0.0, 0.0)))
    assert torch.allclose(given.cameras.camera_to_worlds, made.cameras.camera_to_worlds, atol=1e-5)


def test_cameras_of_a_capture_keep_their_distance_to_the_object(photos, config):
    made = densify(photos, SCENE.data, config)
    assert torch.allclose(made.cameras.camera_to_worlds[:, :, 3].norm(dim=-1), torch.tensor(SCENE.radius), atol=1e-3)


def capture(folder: Path, *, alpha: bool, masks: bool, empty: bool = False) -> DataparserOutputs:
    """Three photos of a red square on blue, wider than high, that say in one way or another where it is."""
    folder.mkdir()
    photos, mask_files = [], []
    for index in range(3):
        picture = np.zeros((30, 40, 4), np.uint8)
        picture[..., 2], picture[10:20, 15:25, :3] = 255, (255, 0, 0)
        inside = np.zeros((30, 40), np.uint8)
        inside[10:20, 15:25] = 0 if empty else 255
        picture[..., 3] = inside
        photos.append(folder / f"{index}.png")
        mask_files.append(folder / f"mask_{index}.png")
        Image.fromarray(picture if alpha else picture[..., :3]).save(photos[-1])
        Image.fromarray(inside).save(mask_files[-1])
    cameras = Cameras(orbit(3, 1.8)[:, :3], fx=40.0, fy=40.0, cx=20.0, cy=15.0, width=40, height=30)
    return DataparserOutputs(photos, cameras, mask_filenames=mask_files if masks else None)


def test_masks_and_alpha_give_the_same_references(tmp_path):
    by_alpha = read_references(capture(tmp_path / "a", alpha=True, masks=False), 24)
    by_mask = read_references(capture(tmp_path / "b", alpha=False, masks=True), 24)
    assert torch.allclose(by_alpha.images, by_mask.images)
    assert by_alpha.silhouettes is not None
    assert by_mask.silhouettes is not None
    assert torch.allclose(by_alpha.silhouettes, by_mask.silhouettes)
    red, corner = by_alpha.images[0, :, 12, 12], by_alpha.images[0, :, 0, 0]
    assert red.tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert corner.tolist() == pytest.approx([1, 1, 1])
    # 10 of 40 pixels of focal length are 0.25 · 24 / (2 tan(fov / 2)) of 24.
    side = 0.25 * focal_length(PRIOR_FOV_DEGREES, 24)
    assert float(by_alpha.silhouettes[0].sum()) == pytest.approx(side**2, rel=0.05)


def test_photos_that_do_not_say_where_the_object_ends_are_refused_or_kept_as_they_are(tmp_path):
    plain = capture(tmp_path / "c", alpha=False, masks=False)
    with pytest.raises(UserError, match="background keep"):
        read_references(plain, 24)
    kept = read_references(plain, 24, "keep")
    assert kept.silhouettes is None
    assert kept.images[0, :, 12, 1].tolist() == pytest.approx([0, 0, 1], abs=1e-5)


def test_an_empty_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not show the object"):
        read_references(capture(tmp_path / "d", alpha=True, masks=False, empty=True), 24)


def test_a_mask_of_another_size_is_refused(tmp_path):
    outputs = capture(tmp_path / "e", alpha=False, masks=True)
    assert outputs.mask_filenames
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(outputs.mask_filenames[1])
    with pytest.raises(UserError, match="10 × 10 pixels and its photo 40 × 30"):
        read_references(outputs, 24)


def test_lens_distortion_is_taken_out_of_the_references(tmp_path):
    straight = capture(tmp_path / "f", alpha=True, masks=False)
    bent = replace(straight, cameras=straight.cameras)
    bent.cameras.distortion_params = torch.tensor([[0.4, 0, 0, 0, 0, 0]]).repeat(3, 1)
    found = read_references(bent, 24)
    bent.cameras.distortion_params = torch.zeros(3, 6)
    plain = read_references(bent, 24)
    assert found.silhouettes is not None
    assert plain.silhouettes is not None
    assert float(found.silhouettes.sum()) < float(plain.silhouettes.sum()), "k1 > 0 had pushed its rim outwards"
    bent.cameras.distortion_params = torch.tensor([[0, 0, 0, 0.1, 0, 0]]).repeat(3, 1)
    with pytest.raises(UserError, match="undistort"):
        read_references(bent, 24)


def test_renders_in_the_objaverse_layout_become_a_capture(tmp_path):
    write_object(tmp_path / "toy", 6)
    config = ObjaverseDataParserConfig(data=tmp_path / "toy", num_views=2, first_view=4)
    parser = config.setup()
    train, held_out = (parser.get_dataparser_outputs(split=split) for split in ("train", "test"))
    assert [path.stem for path in train.image_filenames] == ["004", "005"]
    assert [path.stem for path in held_out.image_filenames] == ["000", "001", "002", "003"]
    assert torch.allclose(train.cameras.camera_to_worlds[0], orbit(6, 1.8, (0.0, 40.0))[4, :3], atol=1e-5)
    drawn = ObjaverseDataParserConfig(data=tmp_path / "toy", num_views=2).setup()
    parts = [drawn.get_dataparser_outputs(split=split).image_filenames for split in ("train", "test")]
    assert len(parts[0]) == 2
    assert sorted(parts[0] + parts[1]) == sorted((tmp_path / "toy").glob("*.png"))


@pytest.mark.parametrize(("num_views", "sentence"), [(6, "6 renders"), (0, "6 renders")])
def test_renders_that_leave_nothing_to_train_or_to_measure_on_are_refused(tmp_path, num_views, sentence):
    write_object(tmp_path / "toy", 6)
    with pytest.raises(UserError, match=sentence):
        ObjaverseDataParserConfig(data=tmp_path / "toy", num_views=num_views).views()


@pytest.mark.parametrize("option", ["samples", "repeat_references", "num_inference_steps"])
def test_numbers_that_cannot_work_are_refused(option):
    with pytest.raises(UserError, match=option.replace("_", "-")):
        replace(DensifyConfig(num_views=1), **{option: 0}).check()


def test_the_manifest_says_what_the_views_were_made_of(photos, config):
    made = densify(photos, SCENE.data, config)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["made_of"]["num_views"] == 5
    assert manifest["made_of"]["seed"] == 0
    assert set(manifest["views"]) == set(made.names)
