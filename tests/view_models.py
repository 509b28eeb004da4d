"""Small random models of SDXL's classes, and one call of UNet and ControlNet as the pipeline makes it."""

import torch
from torch import Tensor, nn

from style_nerf2nerf.embedded.models import STAND_IN, build_controlnet, build_pipeline, build_unet


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


def inputs_of(unet, controlnet, batch: int, side: int = 8, words: int = 5) -> dict[str, Tensor]:
    """What both are called with: `batch` seeded entries of latents of `side`², where the UNet is."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    told, shrink = unet.config, 2 ** (len(controlnet.config["conditioning_embedding_out_channels"]) - 1)
    inputs = {
        "noisy": draw(told["in_channels"], side, side),
        "picture": draw(3, shrink * side, shrink * side).abs(),
        "words": draw(words, told["cross_attention_dim"]),
        "pooled": draw(told["projection_class_embeddings_input_dim"] - 6 * told["addition_time_embed_dim"]),
        "sizes": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(batch, 1),
    }
    return {name: tensor.to(unet.device, unet.dtype) for name, tensor in inputs.items()}


def predict(unet, controlnet, inputs: dict[str, Tensor]) -> Tensor:
    """The UNet's prediction on ControlNet residuals."""
    told = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    prompt = {"encoder_hidden_states": inputs["words"], "added_cond_kwargs": told}
    noisy, timestep = inputs["noisy"], torch.tensor(400)
    with torch.no_grad():
        down, middle = controlnet(noisy, timestep, controlnet_cond=inputs["picture"], return_dict=False, **prompt)
        return unet(
            noisy, timestep, down_block_additional_residuals=down, mid_block_additional_residual=middle, **prompt
        ).sample


def guided_call(unet, controlnet, batch: int, rows: slice = slice(None)) -> Tensor:
    """The prediction for `batch` entries, or for some rows of each half."""
    inputs = inputs_of(unet, controlnet, batch)
    chosen = {name: torch.cat([half[rows] for half in tensor.chunk(2)]) for name, tensor in inputs.items()}
    return predict(unet, controlnet, chosen)
