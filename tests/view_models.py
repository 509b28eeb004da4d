"""Small random models of SDXL's classes, and one call of UNet and ControlNet as the pipeline makes it."""

import torch
from torch import Tensor, nn

from style_nerf2nerf.tiny_models import STAND_IN, build_controlnet, build_pipeline, build_unet


def stirred(model: nn.Module, deviation: float = 0.1, seed: int = 0) -> nn.Module:
    """Residual branches start at zero: here none shall be idle."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += deviation * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def unet_and_controlnet():
    """Both, with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stirred(build_unet(STAND_IN)), stirred(build_controlnet(STAND_IN), seed=1)


def stand_in_pipeline():
    """The whole pipeline, none of whose parts is idle."""
    pipeline = build_pipeline(STAND_IN, seed=3)
    for seed, part in enumerate((pipeline.unet, pipeline.controlnet)):
        stirred(part, 0.05, seed)
    return pipeline


def guided_call(unet, controlnet, batch: int, rows: slice = slice(None), side: int = 8) -> Tensor:
    """The UNet's prediction on ControlNet residuals for ``batch`` seeded entries, or for some rows of each half."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        whole = torch.randn(batch, *shape, generator=generator)
        return torch.cat([half[rows] for half in whole.chunk(2)])

    noisy, picture, words, pooled = (
        draw(STAND_IN.latent_channels, side, side),
        draw(3, 4 * side, 4 * side).abs(),
        draw(5, 2 * STAND_IN.text_channels),
        draw(STAND_IN.text_channels),
    )
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(len(noisy), 1)
    prompt = {"encoder_hidden_states": words, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    timestep = torch.tensor(400)
    with torch.no_grad():
        down, middle = controlnet(noisy, timestep, controlnet_cond=picture, return_dict=False, **prompt)
        return unet(
            noisy, timestep, down_block_additional_residuals=down, mid_block_additional_residual=middle, **prompt
        ).sample
