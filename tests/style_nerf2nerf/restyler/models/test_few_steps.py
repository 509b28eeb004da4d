"""Few steps by a LoRA: a small one on the small models, its scheduler, and going on after a stop."""

import pytest
import torch
from safetensors.torch import save_file

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.embedded.models import STAND_IN, build_unet
from style_nerf2nerf.restyler.models.few_steps import check_lora, few_steps
from style_nerf2nerf.restyler.restyler import Restyler
from style_nerf2nerf.restyler.settings import FAST_STEPS, Settings
from view_models import stand_in_pipeline

VIEWS = 2


class StopHereError(RuntimeError):
    pass


def write_lora(path, unet, scale: float = 1.0, only: str = "attn", rank: int = 2):
    """A random LoRA of a UNet's attention layers, in the names that SDXL-Lightning's file has."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and only in name:
            key = f"unet.{name}"
            tensors[f"{key}.lora_A.weight"] = scale * torch.randn(rank, module.in_features, generator=generator)
            tensors[f"{key}.lora_B.weight"] = scale * torch.randn(module.out_features, rank, generator=generator)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "few.safetensors", build_unet(STAND_IN))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def restyler(request) -> Restyler:
    return Restyler(stand_in_pipeline().to(dtype=request.param), "test")


@pytest.fixture(scope="module")
def views():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(VIEWS, 3, 32, 32, generator=generator)
    return images, 1 + torch.rand(VIEWS, 1, 32, 32, generator=generator)


def test_fast_means_eight_steps_without_guidance():
    settings = Settings("gold", strength=0.8, num_inference_steps=50, guidance_scale=7.5, speed="fast")
    assert (settings.schedule_steps, settings.steps_to_run, settings.guidance) == (FAST_STEPS, 6, 1.0)
    with pytest.raises(UserError, match="8 steps at strength"):
        Settings("gold", strength=0.1, speed="fast").check()


def test_the_lora_counts_for_one_restyling_and_leaves_nothing(restyler, views, lora, tmp_path):
    before = {name: weight.clone() for name, weight in restyler.pipeline.unet.state_dict().items()}
    scheduler, steps = restyler.pipeline.scheduler, []
    normal = restyler.restyle(*views, "gold", num_inference_steps=4)
    fast = restyler.restyle(
        *views, "gold", speed="fast", fast_lora=str(lora), on_step=lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (6, 6)
    assert restyler.provenance()["models"]["lora"] == str(lora)
    weak = write_lora(tmp_path / "weak.safetensors", restyler.pipeline.unet, 1e-4)
    assert not torch.equal(restyler.restyle(*views, "gold", speed="fast", fast_lora=str(weak)), fast)
    assert restyler.pipeline.scheduler is scheduler
    after = restyler.pipeline.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert torch.equal(restyler.restyle(*views, "gold", num_inference_steps=4), normal)
    assert "lora" not in restyler.provenance()["models"]


@pytest.mark.parametrize("step", [1, 4])
def test_goes_on_after_any_step(restyler, views, lora, tmp_path, step):
    options = {"speed": "fast", "fast_lora": str(lora)}

    def stop(done: int, total: int) -> None:
        if done == step:
            raise StopHereError

    with pytest.raises(StopHereError):
        restyler.restyle(*views, "gold", **options, resume_dir=tmp_path, on_step=stop)
    seen = []
    again = restyler.restyle(*views, "gold", **options, resume_dir=tmp_path, on_step=lambda *at: seen.append(at))
    assert seen == [(done, 6) for done in range(step + 1, 7)]
    assert torch.equal(again, restyler.restyle(*views, "gold", **options))


def test_its_scheduler_steps_evenly_down_from_pure_noise(restyler, lora):
    with few_steps(restyler.pipeline, lora):
        restyler.pipeline.scheduler.set_timesteps(FAST_STEPS)
        assert [round(step) for step in restyler.pipeline.scheduler.timesteps.tolist()] == list(range(999, 0, -125))


def test_a_lora_that_does_not_fit_is_refused_before_anything_is_loaded(lora, tmp_path):
    unet = build_unet(STAND_IN)
    assert check_lora(unet, lora) == lora
    larger = torch.nn.ModuleDict({"other": torch.nn.Linear(8, 8)})
    with pytest.raises(UserError, match="no layer other"):
        check_lora(unet, write_lora(tmp_path / "other.safetensors", larger, only=""))
    name = next(name for name, module in unet.named_modules() if name.endswith("attn1.to_q"))
    save_file(
        {f"unet.{name}.lora_A.weight": torch.ones(2, 77), f"unet.{name}.lora_B.weight": torch.ones(77, 2)},
        tmp_path / "wide.safetensors",
    )
    with pytest.raises(UserError, match="77 channels"):
        check_lora(unet, tmp_path / "wide.safetensors")
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="LoRA"):
        check_lora(unet, tmp_path / "none.safetensors")
