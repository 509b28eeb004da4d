"""Full-size models with random weights, in the layout of the hub's cache: SDXL, its depth ControlNet, EscherNet, VGG19.

Run with `python tests/fullsize/build.py FOLDER` (14 GB on disk, 11 GB of memory, some minutes). The numbers are one
random block repeated: what is tried with them is that everything loads, fits and comes to its end, not how it looks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VGG19_Weights, vgg19
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ConvNextV2Config,
    ConvNextV2Model,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

import sdxl_sizes
from eschernet_prior.hub import ESCHERNET
from style_nerf2nerf.embedded.models import build_tokenizer
from style_nerf2nerf.restyler.models.hub import SDXL

COMMIT = "a" * 40
"""What the branch of an unpinned repository points to."""
STANDARD_DEVIATION = 0.02
WORDS = ("a", "painting", "of", "the", "tents", "gold", "snow")


def random_state(network: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights for a network on the meta device: small random numbers, norms that change nothing."""
    block = STANDARD_DEVIATION * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = {}
    for name, parameter in network.state_dict().items():
        if parameter.dim() == 1 and name.endswith("weight"):
            state[name] = torch.ones(parameter.shape, dtype=dtype)
            continue
        repeats = -(-parameter.numel() // len(block))
        state[name] = block.repeat(repeats)[: parameter.numel()].reshape(parameter.shape).clone()
    return state


def write(network: nn.Module, folder: Path, name: str, config: dict, dtype: torch.dtype) -> None:
    """One network's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_state(network, dtype), folder / name, {"format": "pt"})


def snapshot(cache: Path, repository: str, revision: str) -> Path:
    """The folder of a repository's snapshot."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = revision if len(revision) == 40 else COMMIT
    if commit != revision:
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config_of(network) -> dict:
    """A diffusers network's configuration as it is saved."""
    return {"_class_name": type(network).__name__, **dict(network.config)}


def build_sdxl(cache: Path) -> None:
    """SDXL's three repositories, float16 as far as the published files are."""
    half = torch.float16
    base, controlnet, vae = (snapshot(cache, model.repository, model.revision) for model in SDXL.values())
    diffusers_name, clip_name = "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=128, **sdxl_sizes.UNET, **sdxl_sizes.UP)
        control = ControlNetModel(**sdxl_sizes.UNET)
        autoencoder = AutoencoderKL(**sdxl_sizes.VAE)
    write(unet, base / "unet", diffusers_name, config_of(unet), half)
    write(control, controlnet, diffusers_name, config_of(control), half)
    write(autoencoder, vae, "diffusion_pytorch_model.safetensors", config_of(autoencoder), torch.float32)
    tokenizer = build_tokenizer(WORDS, 77)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, kind, sizes in (
        ("text_encoder", CLIPTextModel, sdxl_sizes.TEXT_ENCODER),
        ("text_encoder_2", CLIPTextModelWithProjection, sdxl_sizes.TEXT_ENCODER_2),
    ):
        config = CLIPTextConfig(**sizes, **marks)
        with torch.device("meta"):
            encoder = kind(config)
        write(encoder, base / name, clip_name, config.to_dict(), half)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(base / name)
    EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    ).save_config(base / "scheduler")
    transformers, diffusers = "transformers", "diffusers"
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": [diffusers, "EulerDiscreteScheduler"],
        "text_encoder": [transformers, "CLIPTextModel"],
        "text_encoder_2": [transformers, "CLIPTextModelWithProjection"],
        "tokenizer": [transformers, "CLIPTokenizer"],
        "tokenizer_2": [transformers, "CLIPTokenizer"],
        "unet": [diffusers, "UNet2DConditionModel"],
        "vae": [diffusers, "AutoencoderKL"],
    }
    (base / "model_index.json").write_text(json.dumps(index))


def build_eschernet(cache: Path) -> None:
    """The 6DoF checkpoint in the official layout, float32 as published."""
    model = ESCHERNET["6dof"]
    folder = snapshot(cache, model.repository, model.revision)
    encoder_config = ConvNextV2Config(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768], image_size=224)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=32, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
        vae = AutoencoderKL(**{**sdxl_sizes.VAE, "scaling_factor": 0.18215, "sample_size": 256})
        encoder = ConvNextV2Model(encoder_config)
    name = "diffusion_pytorch_model.safetensors"
    write(unet, folder / "unet", name, config_of(unet), torch.float32)
    write(vae, folder / "vae", name, config_of(vae), torch.float32)
    write(encoder, folder / "image_encoder", "model.safetensors", encoder_config.to_dict(), torch.float32)
    ddpm = {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(ddpm))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Zero1to3StableDiffusionPipeline"}))


def build_vgg(torch_home: Path) -> None:
    """VGG19's file where torchvision keeps it; the convolutions are those that torchvision initialises."""
    path = torch_home / "hub" / "checkpoints" / VGG19_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state = vgg19().features.state_dict()
    torch.save({f"features.{name}": weight for name, weight in state.items()}, path)


def main(folder: Path) -> None:
    """Builds everything."""
    build_sdxl(folder / "hub")
    build_eschernet(folder / "hub")
    build_vgg(folder / "torch")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
