"""The memory that a restyling needs, computed before it: for SDXL's sizes, and against what tensors really take."""

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from rich.console import Console
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import sdxl_sizes
from style_nerf2nerf.restyler.compute import memory
from style_nerf2nerf.restyler.compute.memory import free_memory, total_memory
from style_nerf2nerf.restyler.compute.needs import GB, PROCESS, needs, report
from style_nerf2nerf.restyler.models.files import CheckedModels


@pytest.fixture(scope="module")
def sdxl() -> CheckedModels:
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(sample_size=128, **sdxl_sizes.UNET, **sdxl_sizes.UP),
            "controlnet": ControlNetModel(**sdxl_sizes.UNET),
            "vae": AutoencoderKL(**sdxl_sizes.VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sdxl_sizes.TEXT_ENCODER)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**sdxl_sizes.TEXT_ENCODER_2)),
        }
    return CheckedModels(networks, torch.float16)


def sdxl_needs(models, views, total, **options):
    return needs(models, torch.float16, (1024, 1024), views, int(total * GB), **options)


def test_the_weights_are_sdxls(sdxl):
    needed = sdxl_needs(sdxl, 4, 24)
    assert needed.weights["denoise"] / GB == pytest.approx(2 * (2.567 + 1.251 + 0.084), abs=0.02)
    assert needed.weights["encode the prompt"] / GB == pytest.approx(2 * (0.123 + 0.695), abs=0.01)
    on_cpu = sdxl_needs(sdxl, 4, 24, on_cpu=True)
    assert set(on_cpu.weights.values()) == {2 * sdxl.parameters + PROCESS}


@pytest.mark.parametrize(
    ("dtype", "side", "views", "measured"),
    [(torch.bfloat16, 256, 3, 9.9), (torch.bfloat16, 1024, 2, 12.3), (torch.float32, 256, 3, 19.4)],
)
def test_what_is_announced_is_near_the_peaks_that_full_size_models_took_on_a_cpu(sdxl, dtype, side, views, measured):
    """Peaks in GiB of runs with random weights of the full size (`tests/fullsize`)."""
    needed = needs(sdxl, dtype, (side, side), views, 25 * 10**9, on_cpu=True)
    assert needed.peak / 2**30 == pytest.approx(measured, rel=0.05)


def test_eighteen_views_at_1024_fit_into_12_gb_and_96_into_24(sdxl):
    few, many = sdxl_needs(sdxl, 18, 12), sdxl_needs(sdxl, 96, 24)
    assert few.peak < 12 * GB
    assert many.peak < 24 * GB
    assert many.plan.offload
    assert few.plan.views_per_batch >= 1
    with_room = sdxl_needs(sdxl, 18, 80)
    assert not with_room.plan.offload
    assert with_room.plan.views_per_batch == 18


def test_less_of_everything_needs_less(sdxl):
    peak = sdxl_needs(sdxl, 18, 80).peak
    assert sdxl_needs(sdxl, 9, 80).peak < peak
    assert sdxl_needs(sdxl, 18, 80, max_views=2).peak < peak
    assert needs(sdxl, torch.float16, (768, 768), 18, 80 * 10**9).peak < peak
    assert needs(sdxl, torch.float32, (1024, 1024), 18, 80 * 10**9).peak > 1.9 * peak


def test_a_person_reads_one_sentence_and_a_table(sdxl, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr("style_nerf2nerf.restyler.compute.needs.total_memory", lambda _: int(16 * GB))
    sentence, fits = report(sdxl_needs(sdxl, 4, 16, on_cpu=True), device)
    assert sentence.startswith("Restyling 4 views at 1024 × 1024 pixels in fp16 needs about 1")
    assert sentence.endswith("GB of the machine's 16.0 GB.")
    assert fits
    sentence, fits = report(needs(sdxl, torch.float32, (1024, 1024), 4, int(16 * GB), on_cpu=True), device)
    assert "likely not to fit" in sentence
    assert not fits
    console = Console(width=100)
    with console.capture() as printed:
        console.print(sdxl_needs(sdxl, 4, 12).table())
    assert "decode the views" in printed.get()


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    for name, content in (
        ("max", "3000000000"),
        ("current", "2000000000"),
        ("stat", "anon 1\ninactive_file 500000000"),
    ):
        (tmp_path / f"memory.{name}").write_text(content)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    assert total_memory(torch.device("cpu")) == 3_000_000_000
    assert free_memory(torch.device("cpu")) == 1_500_000_000
    (tmp_path / "memory.max").write_text("max")
    assert total_memory(torch.device("cpu")) == psutil.virtual_memory().total
