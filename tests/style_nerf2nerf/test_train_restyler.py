"""The training of the embedded restyler, small: stages, resume, export, and what a batch is made of."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.training_loop import TrainingRun, accelerator_for
from properties import examples
from style_nerf2nerf import train_restyler as module
from style_nerf2nerf.attention import shared_modules
from style_nerf2nerf.embedded.batches import draw_batch
from style_nerf2nerf.embedded.data import HELD_OUT, PAINTED, STYLE_NAMES, load_shards, paint_scene, write_shards
from style_nerf2nerf.embedded.models import (
    EMBEDDED,
    STAND_IN,
    build_pipeline,
    build_scheduler,
    build_tokenizer,
    build_vae,
    learn_merges,
)
from style_nerf2nerf.embedded.prompts import COMMON_WORDS, style_words
from style_nerf2nerf.embedded.recipe import SIZES, StageRecipe, load_recipe
from style_nerf2nerf.embedded.vae_init import start_as_block_cosines
from style_nerf2nerf.restyler.restyler import Restyler
from style_nerf2nerf.train_restyler import Options, main

RECIPE = Path(__file__).parents[2] / "configs" / "restyler_attention.yaml"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A recipe that uses every option, made small."""
    told = yaml.safe_load(RECIPE.with_name("restyler_first.yaml").read_text()) | yaml.safe_load(RECIPE.read_text())
    told["models"] = "stand-in"
    told["data"] |= {"scenes": 2, "views": 2, "size": 32, "styles_per_scene": 2}
    told["vae"] |= {"scenes": 2, "steps": 4, "batch": 2, "start_as_block_cosines": False}
    told["decoder"] |= {"scenes": 2, "steps": 4, "batch": 2}
    # Latents are 8 a side here: two steps see quarters of pictures, two see whole ones.
    told["diffusion"] |= {"steps": 4, "pictures": 4, "warmup": 2, "crop_steps": 2, "crop": 4, "only_attention": False}
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
    names = {str(path.relative_to(trained.out)) for path in trained.out.rglob("*")}
    stages = ("vae", "diffusion", "decoder")
    left = {f"{stage}/{name}" for stage in stages for name in ("checkpoint.pt", "log.jsonl", "samples/0000004.png")}
    assert {"data", "latents.safetensors"} | left <= names
    assert not [name for name in names if name.endswith(".part")]


def test_the_export_is_loaded_by_the_restyler(trained):
    restyler = Restyler.from_pretrained(trained.export_to)
    assert restyler.pipeline.vae.config["scaling_factor"] != 1.0
    images = torch.rand(2, 3, 32, 32)
    assert restyler.restyle(images, torch.ones(2, 1, 32, 32), "gold", num_inference_steps=2).shape == images.shape


class CutOffError(RuntimeError):
    pass


def save_and_die_at(step: int):
    """A `TrainingRun.save` after which the process is gone."""
    real = TrainingRun.save

    def save(run: TrainingRun) -> None:
        real(run)
        if run.step == step:
            raise CutOffError

    return save


def test_a_stage_that_was_cut_off_ends_with_the_very_same_weights(tmp_path, monkeypatch):
    """On a model small enough that its arithmetic does not depend on where its memory lies."""

    def train(out: Path) -> list[torch.Tensor]:
        out.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        recipe = StageRecipe(steps=6, learning_rate=0.1, warmup=2, ema_decay=0.9)
        run = TrainingRun(model, recipe, out, accelerator_for(out, "no", 1))

        def loss_of(number: int) -> torch.Tensor:
            drawn = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
            return (run.model(drawn) - drawn[:, :2]).square().mean()

        run.train(range(run.step, 6), loss_of, lambda: None, sample_every=0, minutes_between_checkpoints=0.0)
        run.use_average()
        return [*model.parameters(), *run.average.shadow_params]

    whole = train(tmp_path / "whole")
    for step in (1, 3, 5):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "save", save_and_die_at(step))
            with pytest.raises(CutOffError):
                train(tmp_path / f"cut_{step}")
        broken = train(tmp_path / f"cut_{step}")
        assert all(torch.equal(one, other) for one, other in zip(whole, broken, strict=True))


def test_every_stage_goes_on_where_it_was_cut_off(trained, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(trained.out / "data")
    options = replace(trained, out=tmp_path, minutes_between_checkpoints=0.0, sample_every=0)
    for stage in ("vae", "diffusion", "decoder"):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "save", save_and_die_at(2))
            with pytest.raises(CutOffError):
                main(replace(options, stage=stage))
        assert torch.load(options.checkpoint(stage), weights_only=True)["step"] == 2
        main(replace(options, stage=stage))
        assert torch.load(options.checkpoint(stage), weights_only=True)["step"] == 4
        log = [json.loads(line)["step"] for line in (tmp_path / stage / "log.jsonl").read_text().splitlines()]
        assert log == [1, 2, 3, 4]


@pytest.fixture
def fresh_process():
    """accelerate remembers the precision that a process began with."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_training_goes_on_from_other_models_with_their_autoencoder(trained, tmp_path, fresh_process):
    (tmp_path / "data").symlink_to(trained.out / "data")
    start = trained.export_to
    options = replace(trained, out=tmp_path, start_from=start, export_to=tmp_path / "export", mixed_precision="bf16")
    before, after = (
        Restyler.from_pretrained(start).pipeline,
        module.starting_point(load_recipe(options.recipe), options),
    )
    assert all(map(torch.equal, before.unet.parameters(), after.unet.parameters()))
    main(options)
    assert not (tmp_path / "vae").exists()
    exported = Restyler.from_pretrained(options.export_to).pipeline
    assert exported.vae.config["scaling_factor"] == pytest.approx(before.vae.config["scaling_factor"], rel=1e-6)
    assert all(map(torch.equal, before.vae.parameters(), exported.vae.parameters()))
    assert not torch.equal(before.unet.conv_in.weight, exported.unet.conv_in.weight)


def test_training_cannot_start_from_what_does_not_fit(trained, tmp_path):
    with pytest.raises(UserError, match="no restyling models in"):
        main(replace(trained, start_from=tmp_path))
    for stage in ("vae", "decoder"):
        with pytest.raises(UserError, match=f"stays as it is: leave out --stage {stage}"):
            main(replace(trained, start_from=trained.export_to, stage=stage))
    with pytest.raises(UserError, match="does not fit the recipe's"):
        main(replace(trained, recipe=RECIPE, start_from=trained.export_to))


def test_layers_that_other_models_lack_begin_as_nothing(small, trained, tmp_path, monkeypatch):
    fewer = replace(STAND_IN, unet_attention=(False, True))
    before: Any = build_pipeline(fewer)
    before.save_pretrained(tmp_path)
    recipe, options = load_recipe(small), replace(trained, start_from=tmp_path)
    after: Any = module.starting_point(recipe, options)
    assert len(shared_modules(after.unet)) > len(shared_modules(before.unet))
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor(500), torch.randn(2, 3, 32))
    more = {"text_embeds": torch.randn(2, 16), "time_ids": torch.full((2, 6), 32.0)}
    with torch.no_grad():
        old, new = (each.unet(*inputs, added_cond_kwargs=more).sample for each in (before, after))
    assert torch.equal(old, new)
    monkeypatch.setitem(SIZES, "stand-in", fewer)
    with pytest.raises(UserError, match="does not fit the recipe's"):
        module.starting_point(recipe, replace(trained, start_from=trained.export_to))


def test_attention_can_be_trained_alone(small, trained, tmp_path):
    told = yaml.safe_load(small.read_text())
    told["diffusion"]["only_attention"] = True
    (tmp_path / "only.yaml").write_text(yaml.safe_dump(told))
    options = replace(trained, recipe=tmp_path / "only.yaml", start_from=trained.export_to, out=tmp_path)
    main(replace(options, stage="diffusion"))
    old: Any = module.Restoring(module.starting_point(load_recipe(small), options))
    new = torch.load(options.checkpoint("diffusion"), weights_only=True)["module"]
    for name, weight in old.state_dict().items():
        attends = name.startswith("unet.") and ".attentions." in name
        assert torch.equal(weight, new[name]) is not attends, name


def test_the_decoder_is_trained_for_the_latents_as_they_are(trained):
    before, after = (torch.load(trained.checkpoint(name), weights_only=True)["average"] for name in ("vae", "decoder"))
    names = [name for name, _ in module.Reconstructing(build_pipeline(STAND_IN)).named_parameters()]
    for name, old, new in zip(names, before["shadow_params"], after["shadow_params"]):
        frozen = name.startswith(("vae.encoder", "vae.quant_conv"))
        assert torch.allclose(old, new, atol=1e-6) is frozen, name


def test_mistakes_are_told_in_one_sentence(small, tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    cases = (
        ("seed: 0", "does not fit"),
        (small.read_text() + "colour: red\n", "colour"),
        (re.sub(r"\bsteps: .*", "steps: many", small.read_text()), "steps: Input should be a valid integer"),
        (small.read_text() + "  : [\n", "is not valid YAML"),
        (small.read_text().replace("crop: 4", "crop: 0"), "crop of 1 or more"),
        (re.sub(r"(?ms)^vae:.*", "", small.read_text()), "both, or neither"),
    )
    for told, word in cases:
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(told)
        with pytest.raises(UserError, match=word):
            load_recipe(wrong)
    wrong.write_text(small.read_text().replace("stand-in", "huge"))
    with pytest.raises(UserError, match="huge"):
        load_recipe(wrong)
    wrong.write_text(re.sub(r"learning_rate: .*", "learning_rate: 1e-3", small.read_text()))
    assert load_recipe(wrong).diffusion.learning_rate == 1e-3
    with pytest.raises(UserError, match="--start-from"):
        main(Options(recipe=RECIPE, out=tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
    for stage in ("diffusion", "export"):
        with pytest.raises(UserError, match="first"):
            main(Options(recipe=small, out=tmp_path / "empty", stage=stage))


def test_the_recipes_fit():
    parts = [load_recipe(RECIPE.with_name(f"restyler_{name}.yaml")) for name in ("first", "attention", "tiny")]
    first, attention, tiny = parts
    for recipe in parts:
        assert recipe.size is EMBEDDED
        assert (recipe.vae is None) == (recipe is not first), "whatever goes on has its autoencoder"
        assert recipe.data.scenes < HELD_OUT
        assert recipe.diffusion.crop_steps == 0 or EMBEDDED.sample_size % recipe.diffusion.crop == 0
    assert not first.diffusion.only_attention, "it begins with nothing"
    assert attention.diffusion.only_attention
    assert not tiny.diffusion.only_attention, "all learns in the end"
    assert len({recipe.seed for recipe in (attention, tiny)}) == 2, "or the batches would come again"


def test_the_loss_counts_the_errors_of_a_channels_mean_apart():
    error, weight = torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 1, 1)
    error[0, 0, :, :2], error[0, 0, :, 2:] = 1.0, -1.0
    assert float(module.restyling_loss(error, weight, 5.0)) == pytest.approx(1 / 6), "a mean of 0"
    error[0, 0] = 1.0
    assert float(module.restyling_loss(error, weight, 5.0)) == pytest.approx(6 / 6)
    assert float(module.restyling_loss(error, weight * 0.5, 0.0)) == pytest.approx(0.5 / 6)


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


@examples(40)
@given(number=st.integers(0, 10_000), cropped=st.booleans())
def test_a_batch_asks_for_the_way_from_noise_or_photo_to_the_styled_pictures(number, cropped):
    recipe = load_recipe(RECIPE)
    torch.manual_seed(0)
    latents = {
        "photo": torch.randn(3, 4, 8, 4, 4).half(),
        "styled": torch.randn(3, 5, 4, 8, 4, 4).half(),
        "depth": torch.rand(3, 4, 1, 16, 16).half(),
        "style": torch.arange(15).remainder(len(PAINTED)).view(3, 5),
    }
    scheduler = build_scheduler()
    recipe = replace(recipe, diffusion=replace(recipe.diffusion, crop=2))
    batch = draw_batch(latents, scheduler.alphas_cumprod, recipe, torch.Generator().manual_seed(number), cropped)
    side = 2 if cropped else 4
    entries, views = recipe.diffusion.pictures * (4 // side) ** 2, batch.num_views
    assert views in (1, 2, 4)
    assert batch.noisy.shape == (entries, 8, side, side)
    assert batch.depth.shape == (entries, 3, 4 * side, 4 * side)
    assert len(batch.prompts) == len(batch.kept) == entries // views
    times = batch.timestep.view(-1, views)
    assert (times[:, 1:] == times[:, -1:]).all(), "but for the first view, which may be ahead,"
    assert (times[:, 0] <= times[:, -1]).all()
    alphas = scheduler.alphas_cumprod[batch.timestep].view(-1, 1, 1, 1)
    signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    # What the scheduler makes of the right answer is a picture of the data, and a photo or unit noise beside it.
    pictures, noise = signal * batch.noisy - sigma * batch.target, sigma * batch.noisy + signal * batch.target
    originals = torch.cat([latents["photo"].flatten(0, 1), latents["styled"].flatten(0, 2)]).float()
    depths = torch.cat([latents["depth"].flatten(0, 1), latents["depth"].repeat_interleave(5, 0).flatten(0, 1)]).float()
    corners = [(y, x) for y in range(5 - side) for x in range(5 - side)]
    parts, seen = (
        torch.cat([full[:, :, k * y : k * (y + side), k * x : k * (x + side)].flatten(1) for y, x in corners])
        for full, k in ((originals, 1), (depths, 4))
    )
    nearest = (pictures.flatten(1)[:, None] - parts).norm(dim=2).min(1)
    assert (nearest.values < 1e-2).all()
    assert torch.equal(batch.depth[:, 0].flatten(1), seen[nearest.indices]), "the depth of the same part"
    which = nearest.indices % len(originals)
    scene = torch.where(which < 12, which // 4, (which - 12) // 20)
    assert (scene.view(-1, views) == scene.view(-1, views)[:, :1]).all()
    assert ((batch.weight > 0) & (batch.weight <= 1)).all()
    plain = (batch.weight - sigma).flatten().abs() < 1e-6
    assert (noise[plain].flatten(1).std(1, correction=0) < 1.7).all()


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


def test_every_known_word_is_one_token_and_the_same_one_in_every_process():
    words = [*style_words(), *COMMON_WORDS]
    tokenizer = build_tokenizer(words, 32)
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)
    assert len({tokenizer(word).input_ids[1] for word in words}) == len(set(words))
    assert learn_merges(["banana", "bandana"])[:3] == [("a", "n"), ("an", "a</w>"), ("b", "an")]
    assert tokenizer.decode(tokenizer("zebras").input_ids, skip_special_tokens=True).strip() == "zebras"


def test_models_of_one_seed_are_equal():
    first, second, other = (build_pipeline(STAND_IN, seed) for seed in (1, 1, 2))
    assert torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)
