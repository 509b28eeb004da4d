"""The restyling stage on small random models of SDXL's classes: contract, sizes, resume, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import sdxl_sizes
from eschernet_prior.base.errors import UserError
from properties import examples
from style_nerf2nerf.attention import SharedAttention
from style_nerf2nerf.embedded.models import STAND_IN, build_pipeline
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.compute.memory import RESERVE, UNITS_ACTIVE, UNITS_HELD, MemoryPlan, plan
from style_nerf2nerf.restyler.depths import FARTHEST, control_pictures
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.noise import choice_pattern, noise_offset
from style_nerf2nerf.restyler.restyler import Restyler, Settings
from style_nerf2nerf.restyler.sizes import check_side, native_side, size_unit, working_size
from view_models import stand_in_pipeline

VIEWS = 3
QUICK = {"num_inference_steps": 5, "strength": 0.8, "guidance_scale": 3.0}


class StopHereError(RuntimeError):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A local folder in diffusers' layout with small random models, none of whose parts is idle."""
    path = tmp_path_factory.mktemp("stand_in")
    stand_in_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def restyler(folder) -> Restyler:
    return Restyler.from_pretrained(folder)


@pytest.fixture(scope="module")
def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(VIEWS, 3, 30, 44, generator=generator)
    depths = 1 + torch.rand(VIEWS, 1, 30, 44, generator=generator)
    depths[:, :, :8] = 0
    return images, depths


@pytest.fixture(scope="module")
def unbroken(restyler, views) -> torch.Tensor:
    return restyler.restyle(*views, "a mosaic", **QUICK)


def test_gives_back_pictures_of_the_very_size(unbroken, views):
    assert unbroken.shape == views[0].shape
    assert unbroken.dtype == torch.float32
    assert 0 <= float(unbroken.min()) < float(unbroken.max()) <= 1


def test_is_deterministic_and_every_setting_counts(restyler, views, unbroken):
    assert torch.equal(restyler.restyle(*views, "a mosaic", **QUICK), unbroken)
    for change in (
        {"seed": 1},
        {"prompt": "a pencil sketch"},
        {"negative_prompt": "gold"},
        {"strength": 0.6},
        {"guidance_scale": 1.0},
        {"control_scale": 0.0},
        {"share_attention": False},
        {"same_noise": True},
        {"height": 48, "width": 32},
    ):
        prompt = change.pop("prompt", "a mosaic")
        assert not torch.equal(restyler.restyle(*views, prompt, **(QUICK | change)), unbroken), change


def test_models_that_were_trained_on_offset_noise_start_from_it(folder, views, unbroken, tmp_path):
    shutil.copytree(folder, tmp_path / "offset")
    (tmp_path / "offset" / "restyler.json").write_text('{"noise_offset": 0.5}')
    offset = Restyler.from_pretrained(tmp_path / "offset")
    assert not torch.equal(offset.restyle(*views, "a mosaic", **QUICK), unbroken)
    assert offset.provenance()["noise_offset"] == 0.5
    for wrong in ('{"noise_offset": "some"}', '{"noise_offset": -1}', "[1]", "{"):
        (tmp_path / "offset" / "restyler.json").write_text(wrong)
        with pytest.raises(UserError, match=r"restyler\.json"):
            Restyler.from_pretrained(tmp_path / "offset")


def test_an_offset_is_one_number_for_each_view_in_a_chequered_pattern():
    generators = [torch.Generator().manual_seed(seed) for seed in range(400)]
    drawn = noise_offset((400, 4, 8, 8), generators, 0.5)
    assert drawn.shape == (400, 4, 8, 8)
    heights = drawn[:, 0, 0, 1]
    assert float(heights.std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(drawn, choice_pattern(heights, drawn.shape))
    assert (drawn.mean((2, 3)) == 0).all(), "nothing that a picture's own colours could be mistaken for"
    assert not drawn[:, 2:].any()
    again = [torch.Generator().manual_seed(seed) for seed in range(400)]
    assert not noise_offset((400, 4, 8, 8), again, 0.0).any()
    assert torch.equal(noise_offset((400, 4, 8, 8), again, 0.5), drawn), "no offset draws nothing"


def test_the_views_agree_through_shared_attention_only(restyler, views):
    """Changing one view changes the others if and only if attention is shared."""
    images, depths = views
    changed = images.clone()
    changed[0] = 1 - changed[0]
    for shared in (True, False):
        before = restyler.restyle(images, depths, "gold", share_attention=shared, **QUICK)
        after = restyler.restyle(changed, depths, "gold", share_attention=shared, **QUICK)
        assert torch.equal(before[1:], after[1:]) is not shared
        assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("step", [1, 2, 4])
def test_goes_on_after_any_step(restyler, views, unbroken, tmp_path, step):
    def stop(done: int, total: int) -> None:
        assert total == 4
        if done == step:
            raise StopHereError

    with pytest.raises(StopHereError):
        restyler.restyle(*views, "a mosaic", **QUICK, resume_dir=tmp_path, on_step=stop)
    assert not any(isinstance(one, SharedAttention) for one in restyler.pipeline.unet.attn_processors.values())
    seen = []
    again = restyler.restyle(*views, "a mosaic", **QUICK, resume_dir=tmp_path, on_step=lambda *at: seen.append(at))
    assert seen == [(done, 4) for done in range(step + 1, 5)]
    assert torch.equal(again, unbroken)


def test_goes_on_between_decoded_views(restyler, views, unbroken, tmp_path, monkeypatch):
    def stop(number: int, view: torch.Tensor) -> None:
        if number == 1:
            raise StopHereError

    with pytest.raises(StopHereError):
        restyler.restyle(*views, "a mosaic", **QUICK, resume_dir=tmp_path, on_view=stop)
    decoded, real = [], ViewCoder.decode
    monkeypatch.setattr(ViewCoder, "decode", lambda self, latent: decoded.append(1) or real(self, latent))
    seen = []
    again = restyler.restyle(
        *views,
        "a mosaic",
        **QUICK,
        resume_dir=tmp_path,
        on_view=lambda number, view: seen.append(number),
        on_step=lambda *at: pytest.fail("no step was left to run"),
    )
    assert len(decoded) == VIEWS - 2
    assert seen == [0, 1, 2]
    assert torch.equal(again, unbroken)


def test_takes_up_nothing_of_another_restyling(restyler, views, unbroken, tmp_path):
    restyler.restyle(*views, "clay", **QUICK, resume_dir=tmp_path)
    seen = []
    again = restyler.restyle(*views, "a mosaic", **QUICK, resume_dir=tmp_path, on_step=lambda *at: seen.append(at))
    assert len(seen) == 4
    assert torch.equal(again, unbroken)
    images, depths = views
    restyler.restyle(images, 2 * depths, "a mosaic", **QUICK, resume_dir=tmp_path, on_step=lambda *at: seen.append(at))
    assert len(seen) == 8


def test_what_is_on_disk_is_whole(restyler, views, tmp_path):
    restyler.restyle(*views, "clay", **QUICK, resume_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latents.safetensors", *[f"view_{number:04d}.safetensors" for number in range(VIEWS)]]
    assert int(load_file(tmp_path / "latents.safetensors")["step"]) == 4


def test_euler_schedulers_resume_too(folder, views, tmp_path):
    images, depths = views
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    restyler = Restyler.from_pretrained(folder)
    restyler.pipeline.scheduler = EulerDiscreteScheduler.from_config(
        config, rescale_betas_zero_snr=False, timestep_spacing="leading"
    )

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopHereError

    with pytest.raises(StopHereError):
        restyler.restyle(images, depths, "clay", **QUICK, resume_dir=tmp_path, on_step=stop)
    again = restyler.restyle(images, depths, "clay", **QUICK, resume_dir=tmp_path)
    assert torch.equal(again, restyler.restyle(images, depths, "clay", **QUICK))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"prompt": " "}, "prompt"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.2}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"num_inference_steps": 4, "strength": 0.2}, "at least 5 steps"),
        ({"num_inference_steps": 0}, "one denoising step"),
        ({"guidance_scale": -1.0}, "guidance"),
        ({"control_scale": float("inf")}, "control"),
    ],
)
def test_refuses_in_one_sentence_before_any_work(restyler, views, wrong, word):
    told = {"prompt": "clay", "strength": 0.8, "num_inference_steps": 10} | wrong
    with pytest.raises(UserError, match=word):
        Settings(**told).check()
    with pytest.raises(UserError, match=word):
        restyler.restyle(*views, **told, on_step=lambda *at: pytest.fail("must not start"))


@examples(100)
@given(steps=st.integers(1, 200), strength=st.floats(0.01, 1.0))
def test_steps_to_run_are_those_of_the_pipeline(steps, strength):
    told = Settings("clay", num_inference_steps=steps, strength=strength)
    assert told.steps_to_run == min(int(steps * strength), steps)
    for left in range(1, told.steps_to_run + 1):
        assert min(int(steps * min(1.0, (left + 0.5) / steps)), steps) == left


def test_wrong_shapes_are_refused(restyler, views):
    images, depths = views
    for wrong in ((images[:0], depths[:0]), (images[:, :1], depths), (images, depths[:1]), (images, depths[..., :-1])):
        with pytest.raises(ValueError, match=r"images|depths"):
            restyler.restyle(*wrong, "clay", **QUICK)
    with pytest.raises(UserError, match="multiples of 8"):
        restyler.restyle(images, depths, "clay", height=33, width=32, **QUICK)


@examples(40)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_working_size_is_near_the_native_area_and_the_aspect(restyler, height, width):
    tall, wide = restyler.working_size(height, width)
    assert tall % 8 == wide % 8 == 0
    if 0.5 <= height / width <= 2:
        assert 0.6 <= tall * wide / 32**2 <= 1.6
        assert 0.75 <= (tall / wide) / (height / width) <= 1.34


@pytest.fixture(scope="module")
def sdxl():
    """UNet and autoencoder of SDXL's published configuration, without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=128, **sdxl_sizes.UNET, **sdxl_sizes.UP)
        return unet, AutoencoderKL(**sdxl_sizes.VAE)


def test_working_sizes_of_sdxl(sdxl):
    assert native_side(*sdxl) == 1024
    assert size_unit(*sdxl) == 32
    assert working_size(512, 512, 1024, 32) == (1024, 1024)
    assert working_size(1080, 1920, 1024, 32) == (768, 1376)
    assert working_size(512, 512, 768, 32) == (768, 768)
    for side in (256, 512, 768, 1024):
        tall, wide = working_size(1080, 1920, side, 32)
        assert tall % 32 == wide % 32 == 0
        assert 0.85 < tall * wide / side**2 < 1.15
    for side in (31, 4097):
        with pytest.raises(UserError, match="1024 being"):
            check_side(side, *sdxl)


def test_the_size_can_be_chosen(restyler, views):
    """Half the side is a quarter of the area; the views keep their own size."""
    assert restyler.working_size(30, 44, 32) == restyler.working_size(30, 44)
    tall, wide = restyler.working_size(30, 44, 16)
    assert tall * wide <= 0.4 * 32**2
    made = [restyler.restyle(*views, "a mosaic", **QUICK, size=side) for side in (32, 16)]
    assert made[0].shape == made[1].shape == views[0].shape
    assert not torch.equal(*made)
    with pytest.raises(UserError, match=r"restyle\.size 4"):
        restyler.restyle(*views, "a mosaic", **QUICK, size=4)


def test_moves_and_tells_where_it_comes_from(restyler, folder):
    restyler.to("cpu").offload()
    told = restyler.provenance()
    assert json.loads(json.dumps(told)) == told
    assert told["source"] == str(folder)
    assert told["dtype"] == "float32"
    assert told["classes"]["controlnet"] == "ControlNetModel"


def test_loads_in_the_precision_asked_for(folder):
    restyler = Restyler.from_pretrained(folder, dtype=torch.bfloat16)
    assert restyler.provenance()["dtype"] == "bfloat16"
    assert {part.dtype for part in (restyler.pipeline.vae, restyler.pipeline.controlnet)} == {torch.bfloat16}


def test_missing_models_are_told_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no restyling models in"):
        Restyler.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="unet is missing"):
        Restyler.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="connect to the network once"):
        Restyler.from_pretrained("sdxl")


def test_refuses_a_scheduler_with_a_history(folder):
    pipeline = build_pipeline(STAND_IN)
    pipeline.scheduler = PNDMScheduler()
    with pytest.raises(UserError, match="PNDMScheduler"):
        Restyler(pipeline, "test")


def test_the_embedded_models_load_and_restyle():
    if not (EMBEDDED_FOLDER / "model_index.json").exists():
        pytest.fail("the package must ship its models")
    size = sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*.safetensors"))
    assert size <= 20e6
    restyler = Restyler.from_pretrained("embedded")
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    ball = (x**2 + y**2 < 0.5).float()
    images = torch.stack([0.3 + 0.4 * ball, 0.5 + 0 * ball, 0.7 - 0.4 * ball]).repeat(2, 1, 1, 1)
    depths = (2 - ball * (1 - x**2 - y**2).clamp(min=0).sqrt())[None, None].repeat(2, 1, 1, 1)
    looks = {
        name: restyler.restyle(images, depths, Restyler.known_styles[name], num_inference_steps=6, guidance_scale=2.0)
        for name in ("night", "pencil", "gold", "snow")
    }
    assert looks["night"].mean() < looks["snow"].mean() - 0.3, "night is dark, snow is bright"
    assert looks["night"].mean() < looks["pencil"].mean() - 0.2, "paper is bright, too"
    colour = {name: (look[:, 0] - look[:, 2]).mean() for name, look in looks.items()}
    assert colour["gold"] > colour["pencil"] + 0.2, "gold is yellow, graphite is grey"
    assert colour["night"] < colour["pencil"] - 0.2, "moonlight is blue"


@examples(40)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_depth_control_has_one_scale_and_keeps_the_order(seed, scale):
    torch.manual_seed(seed)
    depths = (0.5 + torch.rand(2, 1, 6, 6)) * (torch.rand(2, 1, 6, 6) > 0.3)
    grey = control_pictures(depths)
    assert grey.shape == (2, 3, 6, 6)
    torch.testing.assert_close(control_pictures(depths * scale), grey, atol=1e-4, rtol=1e-4)
    assert (grey[(depths == 0).expand_as(grey)] == 0).all()
    known, order = grey[:, :1][depths > 0], depths[depths > 0].argsort()
    assert (known >= FARTHEST - 1e-6).all()
    assert (known <= 1 + 1e-6).all()
    assert (known[order].diff() <= 1e-5).all(), "nearer is brighter, whichever view it is seen in"


def test_depth_control_takes_what_is_far_behind_the_scene_as_nothing():
    """A field's depth is noise where a sky is; without it, the scene has the whole range of greys."""
    scene = torch.linspace(1.0, 3.0, 64).view(1, 1, 8, 8)
    scene[..., :2] = 0.0
    noisy = scene.clone()
    noisy[..., :2] = torch.linspace(30.0, 900.0, 16).view(8, 2)
    torch.testing.assert_close(control_pictures(noisy), control_pictures(scene))


def test_holes_and_specks_of_noisy_depth_do_not_reach_the_control_picture():
    scene = torch.full((1, 1, 64, 64), 2.0)
    scene[..., :24] = 0.0
    scene[..., 40:] = 3.0
    noisy = torch.where(scene == 0, 90.0, scene)
    noisy[..., 30:32, 48:50] = 80.0
    noisy[..., 10, 5] = 2.0
    clean, expected = control_pictures(noisy), control_pictures(scene)
    assert (clean[..., 8:26, 44:54] > 0).all(), "the hole is filled"
    torch.testing.assert_close(clean[..., 44:54], expected[..., 44:54], atol=2e-2, rtol=0)
    assert (clean[..., :18] == 0).all(), "the speck is gone"
    assert ((clean == 0) != (expected == 0)).float().mean() < 0.05, "edges stay"


def test_depth_control_without_any_or_any_different_depth():
    assert (control_pictures(torch.zeros(2, 1, 4, 4)) == 0).all()
    assert (control_pictures(torch.full((2, 1, 4, 4), 3.0)) == 1).all()


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_how_many_views_are_worked_on_at_a_time_changes_nothing(restyler, views, unbroken, tmp_path, at_a_time):
    def stop(done: int, total: int) -> None:
        raise StopHereError

    with pytest.raises(StopHereError):
        restyler.restyle(*views, "a mosaic", **QUICK, resume_dir=tmp_path, on_step=stop)
    assert restyler.provenance()["views_per_batch"] == VIEWS
    seen = []
    again = restyler.restyle(
        *views,
        "a mosaic",
        **QUICK,
        max_views_per_batch=at_a_time,
        offload_activations=True,
        resume_dir=tmp_path,
        on_step=lambda *at: seen.append(at),
    )
    assert len(seen) == 3, "another number of views at a time takes up the same work"
    torch.testing.assert_close(again, unbroken, atol=1e-4, rtol=0)
    told = restyler.provenance()
    assert (told["views_per_batch"], told["offloaded"], told["processes"]) == (at_a_time, True, 1)


def test_memory_that_runs_out_is_told_and_the_work_goes_on(restyler, views, unbroken, monkeypatch, capsys):
    conv = restyler.pipeline.unet.conv_in
    real = conv.forward

    def greedy(sample):
        if len(sample) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return real(sample)

    monkeypatch.setattr(conv, "forward", greedy)
    got = restyler.restyle(*views, "a mosaic", **QUICK)
    torch.testing.assert_close(got, unbroken, atol=1e-4, rtol=0)
    assert "Out of memory: continuing with 1 views at a time." in capsys.readouterr().out
    assert restyler.provenance()["views_per_batch"] == 1
    with pytest.raises(UserError, match="At least one view"):
        restyler.restyle(*views, "a mosaic", **QUICK, max_views_per_batch=0)


def test_the_plan_fills_the_memory_and_offloads_where_the_views_do_not_fit():
    unit = 1_000_000
    assert plan(unit, 7, 1000 * 7 * unit) == MemoryPlan(7, False)
    batches = [plan(unit, 50, room * unit) for room in (30, 400, 900, 1200, 4000)]
    assert [one.offload for one in batches] == [True, True, True, False, False]
    assert batches[0].views_per_batch == 1
    for offload in (True, False):
        sizes = [plan(unit, 50, room * unit, offload=offload).views_per_batch for room in range(30, 4000, 100)]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 50
    held, working = UNITS_HELD * 50, UNITS_ACTIVE * batches[3].views_per_batch
    assert held + working <= 1200 * (1 - RESERVE) < held + working + UNITS_ACTIVE


def test_on_a_cpu_the_plan_follows_the_memory_too():
    unit, all_at_once = 1_000_000, 2 * (UNITS_HELD + UNITS_ACTIVE) * 50 / (1 - RESERVE)
    assert plan(unit, 50, int((all_at_once + 1) * unit), on_cpu=True) == MemoryPlan(50, False, True)
    some = plan(unit, 50, int(all_at_once / 2.5 * unit), on_cpu=True)
    assert not some.offload, "there is no other memory"
    assert not some.halves_together
    assert 1 <= some.views_per_batch < 50
    assert plan(unit, 50, 0, on_cpu=True) == MemoryPlan(1, False)
