"""The full method, stepped on the CPU: tiny random models stand in for the hub's, through the same loading code."""

import gc
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

import ns
from eschernet_prior.base.run_folder import newest_checkpoint
from style_nerf2nerf.embedded.models import STAND_IN, build_pipeline
from style_nerf2nerf.restyler import prompts
from style_nerf2nerf.rounds.runner import RoundRunner

PROMPT = "a watercolor painting"


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch) -> Path:
    """A local folder in diffusers' own layout, and VGG19 convolutions where torchvision keeps its download."""
    build_pipeline(STAND_IN, seed=1).save_pretrained(tmp_path / "sdxl")
    torch.manual_seed(0)
    convolutions = make_layers(cfgs["E"], batch_norm=False)
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    name = VGG19_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save({f"features.{key}": value for key, value in convolutions.state_dict().items()}, cache / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "sdxl"


def test_the_full_method_runs_all_its_stages(run: Path, stand_ins: Path, tmp_path: Path):
    """nerfstudio-data, nerfacto at its full size, ImageNet loading: only the diffusion models are small."""
    ns.train(
        tmp_path / "outputs",
        method="style-nerf2nerf",
        data=run / "restyled" / "round_01",
        prompt=PROMPT,
        pipeline__restyle__source=stand_ins,
        pipeline__rounds__reconstruct_steps=2,
        pipeline__rounds__retrain_steps=1,
        pipeline__rounds__rounds=1,
        pipeline__datamanager__max_view_size=32,
        parser=("nerfstudio-data", "--eval-mode", "all"),
    )
    full = ns.only_run(tmp_path / "outputs")
    manifest = json.loads((full / "restyled" / "round_01" / "manifest.json").read_text())
    assert manifest["request"]["settings"]["prompt"] == PROMPT
    assert manifest["request"]["size"] == [32, 32]
    assert manifest["models"]["source"] == str(stand_ins)
    assert manifest["models"]["classes"]["unet"] == "UNet2DConditionModel"
    state = torch.load(newest_checkpoint(full / "nerfstudio_models"), weights_only=True)
    assert state["step"] == 2
    assert not any("vgg" in key or "unet" in key for key in state["pipeline"]), (
        "frozen networks stay out of checkpoints"
    )
    assert state["pipeline"]["_model.field.mlp_base.model.0.hash_table"].shape == (16 * 2**19, 2)


def loaded_unets() -> int:
    gc.collect()
    return sum(isinstance(each, UNet2DConditionModel) and each.device.type != "meta" for each in gc.get_objects())


@pytest.mark.parametrize("keep", [True, False])
def test_nothing_of_diffusion_is_in_memory_while_the_field_is_retrained(
    run: Path, stand_ins: Path, tmp_path: Path, monkeypatch, capsys, keep: bool
):
    monkeypatch.setattr(prompts, "_announced", set())
    before, seen, real = loaded_unets(), [], RoundRunner.retrain_losses
    monkeypatch.setattr(
        RoundRunner, "retrain_losses", lambda self, step: seen.append(loaded_unets()) or real(self, step)
    )
    half = stand_ins / "unet" / "diffusion_pytorch_model.safetensors"
    half.rename(half.with_name("diffusion_pytorch_model.fp16.safetensors"))
    ns.train(
        tmp_path / "outputs",
        data=run / "restyled" / "round_01",
        prompt=PROMPT + " with very many words" * 10,
        pipeline__restyle__source=stand_ins,
        pipeline__restyle__keep_loaded=keep,
        pipeline__restyle__size=16,
        pipeline__restyle__precision="bf16",
        pipeline__rounds__reconstruct_steps=2,
        pipeline__rounds__retrain_steps=1,
        pipeline__rounds__rounds=1,
        parser=("nerfstudio-data", "--eval-mode", "all"),
    )
    assert seen == [before + keep]
    said = " ".join(capsys.readouterr().out.split())
    assert "views at 16 × 16 pixels in bf16 needs about 1.1 GB" in said
    assert "tokens and the text encoders read the first 30" in said
    assert said.index("tokens and the text") < said.index("views restyled as"), "before any long work"
    manifest = json.loads((ns.only_run(tmp_path / "outputs") / "restyled" / "round_01" / "manifest.json").read_text())
    assert manifest["models"]["dtype"] == "bfloat16"


def test_models_that_do_not_fit_are_refused_before_the_field_is_trained(
    run: Path, stand_ins: Path, tmp_path: Path, capsys
):
    weights = stand_ins / "controlnet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    said = ns.refusal(capsys, tmp_path / "outputs", pipeline__restyle__source=stand_ins)
    assert "controlnet" in said
    assert "conv_in.weight" in said


def test_hub_models_that_cannot_be_had_are_one_sentence(run: Path, stand_ins: Path, tmp_path: Path, capsys):
    """Offline and without a cache, before the field is trained."""
    with pytest.raises(SystemExit):
        ns.train(
            tmp_path / "outputs",
            method="style-nerf2nerf",
            data=run / "restyled" / "round_01",
            prompt=PROMPT,
            parser=("nerfstudio-data", "--eval-mode", "all"),
        )
    said = " ".join(capsys.readouterr().out.split())
    assert "stable-diffusion-xl" in said
    assert "━" not in said, "before any progress was shown"
