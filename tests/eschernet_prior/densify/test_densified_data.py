"""Photos and generated views in one training: what reaches the loss, and what the viewer and the rounds see of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

import ns
from escher_models import tiny
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import FieldModelConfig, small_field
from eschernet_prior.densify.datamanager import TRUST, DensifyDataManager, DensifyDataManagerConfig, with_generated
from eschernet_prior.densify.generate import DensifyConfig
from eschernet_prior.densify.viewer import COLOUR, GeneratedCameras
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig

VIEWS = 4
OBJECT = ("procedural-data", "--background", "False", "--num-views", "3", "--num-eval-views", "2", "--resolution", "48")


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    """A prior on disk, with weights that mean nothing."""
    folder = tmp_path_factory.mktemp("prior")
    tiny(image_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def manager(prior, cache, tmp_path_factory) -> DensifyDataManager:
    """The data manager of three photos of 48 pixels and four views of 32."""
    config = DensifyDataManagerConfig(
        dataparser=ProceduralDataParserConfig(background=False, num_views=3, num_eval_views=2, resolution=48),
        train_num_rays_per_batch=700,
        densify=DensifyConfig(
            num_views=VIEWS, prior=str(prior), num_inference_steps=2, folder=tmp_path_factory.mktemp("densified")
        ),
    )
    return config.setup(device="cpu")


def test_every_ray_comes_with_the_weight_of_its_pixel(manager):
    _, batch = manager.next_train(0)
    view, row, column = batch["indices"].unbind(-1)
    generated = view >= 3
    assert bool(generated.any())
    assert bool((~generated).any())
    assert torch.equal(batch[TRUST][~generated], torch.ones(int((~generated).sum())))
    weights = manager.densified.weights(manager.config.densify)
    wanted = [weights[v - 3, r, c] for v, r, c in zip(view[generated], row[generated], column[generated])]
    assert torch.equal(batch[TRUST][generated], torch.stack(wanted))
    assert float(batch[TRUST][generated].max()) < 1, "no generated view stands where a photo was taken"


def test_generated_views_fade_out_while_photos_stay(manager):
    config = replace(manager.config.densify, fade_out=(100, 300))
    assert [config.weight_at(step) for step in (0, 100, 150, 300, 1000)] == [1, 1, 0.75, 0, 0]
    assert replace(config, fade_out=None).weight_at(1000) == 1
    indices = torch.tensor([[0, 5, 5], [3, 16, 16], [4, 20, 11]])
    whole = manager._trust_of(indices, 0)
    try:
        manager.config.densify, plain = config, manager.config.densify
        half, none = manager._trust_of(indices, 200), manager._trust_of(indices, 300)
    finally:
        manager.config.densify = plain
    assert torch.allclose(half, whole * torch.tensor([1, 0.5, 0.5]))
    assert none.tolist() == [1, 0, 0]
    assert bool((whole[1:] > 0).all())
    for wrong in ((300, 100), (5, 5), (-1, 3)):
        with pytest.raises(UserError, match="fade-out"):
            replace(config, fade_out=wrong).check()


def test_generated_views_follow_the_photos_with_cameras_of_their_own(manager):
    cameras, files = manager.train_dataset.cameras, manager.train_dataset.image_filenames
    assert len(cameras) == len(files) == 3 + VIEWS
    assert cameras.width.flatten().tolist() == [48] * 3 + [32] * VIEWS
    assert torch.allclose(cameras.camera_to_worlds[3:], manager.densified.cameras.camera_to_worlds)
    assert len(manager.eval_dataset) == 2


def test_photos_are_trained_on_and_measured_on_white(manager):
    for dataset in (manager.train_dataset, manager.eval_dataset):
        picture = dataset[0]["image"]
        assert picture.shape == (48, 48, 3)
        assert picture[0, 0].tolist() == [1, 1, 1]
        assert float(picture.min()) < 0.9
        assert dataset.get_data(0, "uint8")["image"].dtype == torch.uint8


def test_without_generated_views_the_data_manager_is_nerfstudios_own(cache):
    config = DensifyDataManagerConfig(
        dataparser=ProceduralDataParserConfig(num_views=3, num_eval_views=2, resolution=16),
        train_num_rays_per_batch=32,
    )
    manager = config.setup(device="cpu")
    _, batch = manager.next_train(0)
    assert manager.densified is None
    assert set(batch) == {"image", "indices"}


def test_cameras_with_distortion_keep_it_beside_generated_ones_without(manager):
    photos = manager.dataparser.get_dataparser_outputs(split="train")
    photos.cameras.distortion_params = torch.full((3, 6), 0.01)
    joined = with_generated(photos, manager.densified)
    assert joined.cameras.distortion_params is not None
    assert torch.equal(
        joined.cameras.distortion_params, torch.tensor([0.01] * 3 + [0.0] * VIEWS)[:, None].expand(-1, 6)
    )
    assert isinstance(joined.cameras, Cameras)
    assert "depth_filenames" not in joined.metadata


def test_the_colour_loss_is_the_mean_weighted_by_trust():
    model = small_field(FieldModelConfig(background_color="white")).setup(scene_box=box(), num_train_data=1)
    model.eval()
    outputs: dict[str, Any] = {"rgb": torch.rand(4, 3), "accumulation": torch.ones(4, 1)}
    batch = {"image": torch.rand(4, 3)}
    errors = (outputs["rgb"] - batch["image"]).square().mean(-1)
    plain = model.get_loss_dict(outputs, dict(batch))["rgb_loss"]
    assert float(plain) == pytest.approx(float(errors.mean()), rel=1e-5)
    trust = torch.tensor([1.0, 0.5, 0.25, 0.0])
    weighted = model.get_loss_dict(outputs, {**batch, TRUST: trust})["rgb_loss"]
    assert float(weighted) == pytest.approx(float((trust * errors).sum() / 1.75), rel=1e-5)
    none = model.get_loss_dict(outputs, {**batch, TRUST: torch.zeros(4)})["rgb_loss"]
    assert float(none) == 0


def box():
    from nerfstudio.data.scene_box import SceneBox

    return SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))


class Scene:
    """What the viewer's scene remembers of frustums."""

    def __init__(self) -> None:
        self.added: dict[str, Any] = {}

    def add_camera_frustum(self, name: str, **options: Any) -> Any:
        handle = SimpleNamespace(**options, on_click=lambda function: function)
        self.added[name] = handle
        return handle


def test_generated_cameras_have_a_colour_of_their_own_and_can_be_hidden(manager):
    scene = Scene()
    old = {
        index: SimpleNamespace(wxyz=(1, 0, 0, index), position=(index, 0, 0), visible=True) for index in (0, 2, 3, 6)
    }
    viewer = SimpleNamespace(
        camera_handles=dict(old),
        viser_server=SimpleNamespace(scene=scene),
        config=SimpleNamespace(camera_frustum_scale=0.1),
    )
    painted = GeneratedCameras(viewer, manager.train_dataset, 3)
    assert set(scene.added) == {"/cameras/camera_00003", "/cameras/camera_00006"}
    assert viewer.camera_handles[6].color == COLOUR
    assert viewer.camera_handles[6].wxyz == (1, 0, 0, 6)
    assert viewer.camera_handles[0] is old[0]
    painted.show(False)
    assert [viewer.camera_handles[index].visible for index in (0, 2, 3, 6)] == [True, True, False, False]


def densified_options(prior: Path) -> dict[str, Any]:
    return {
        "pipeline__datamanager__densify__num_views": VIEWS,
        "pipeline__datamanager__densify__prior": prior,
        "pipeline__datamanager__densify__num_inference_steps": 2,
    }


def test_from_three_photos_to_a_restyled_field_and_on_to_another_style(prior, tmp_path, monkeypatch):
    """The way through ns-train; what was generated stays when the style changes."""
    ns.train(tmp_path, parser=OBJECT, pipeline__rounds__rounds=1, timestamp="first", **densified_options(prior))
    (folder,) = (path for path in tmp_path.glob("*/densified/*") if not path.name.startswith("."))
    written = (folder / "manifest.json").stat().st_mtime_ns
    run = ns.only_run(tmp_path)
    restyled = sorted(path.stem for path in (run / "restyled" / "round_01" / "images").iterdir())
    assert any(name.startswith("generated") for name in restyled), "new cameras are restyled too"
    assert "background_color: white" in (run / "config.yml").read_text(), "like its pictures"
    ns.train(
        tmp_path,
        parser=OBJECT,
        pipeline__rounds__rounds=1,
        timestamp="second",
        prompt="a gold statue",
        load_dir=run / "nerfstudio_models",
        **densified_options(prior),
    )
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_eschernet_nerfacto_trains_and_is_loaded_again(prior, tmp_path):
    from nerfstudio.utils.eval_utils import eval_setup

    ns.train(
        tmp_path, method="eschernet-nerfacto-tiny", parser=OBJECT, max_num_iterations=6, **densified_options(prior)
    )
    run = ns.only_run(tmp_path)
    _, pipeline, path, step = eval_setup(run / "config.yml", test_mode="test")
    assert step == 5
    assert path.parent.parent == run or path.parent == run
    assert pipeline.datamanager.densified is not None
