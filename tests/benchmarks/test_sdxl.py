"""A denoising step of SDXL at its full size, random weights, for up to 96 views of 1024² pixels on a GPU.

Run with ``pytest tests/benchmarks/test_sdxl.py -s`` on a machine with a CUDA GPU (half precision; the weights take 7.5
GB). Compared are three ways through UNet and ControlNet with both guidance halves: *view by view*, which shares nothing
and is what a stock pipeline costs, the *plain call* on all views under shared attention, and *lockstep*, a few views at
a time, with what waits on the GPU or in the CPU's memory. Told are seconds a view, the peak of memory beside the
weights, and both as multiples of the other ways'. A way that does not fit into the memory says so.

Without a GPU the same comparison runs with small models, to show that it works, and SDXL's layers are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from live_bytes import peak_of
from torch import Tensor

from style_nerf2nerf.attention import Sharing, share_attention
from style_nerf2nerf.lockstep import Pace, in_lockstep
from view_models import unet_and_controlnet

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The published configuration of SDXL's UNet; its ControlNets have the same."""
UP_BLOCKS = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
UNET_WEIGHTS = 2_567_463_684
"""As counted for the published UNet."""


def sdxl() -> tuple[UNet2DConditionModel, ControlNetModel]:
    """UNet and depth ControlNet of SDXL's size, on the current default device."""
    return UNet2DConditionModel(up_block_types=UP_BLOCKS, sample_size=128, **SDXL).eval(), ControlNetModel(
        **SDXL
    ).eval()


def step(unet: UNet2DConditionModel, controlnet: ControlNetModel, entries: int, side: int, seed: int = 0) -> Tensor:
    """One prediction for ``entries`` seeded latents of ``side``²."""
    generator = torch.Generator().manual_seed(seed)
    pooled = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    cells = 2 ** (len(controlnet.config["conditioning_embedding_out_channels"]) - 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(entries, *shape, generator=generator).to(unet.device, unet.dtype)

    noisy, depth = draw(unet.config["in_channels"], side, side), draw(3, cells * side, cells * side)
    words = draw(77, unet.config["cross_attention_dim"])
    told = {"text_embeds": draw(pooled), "time_ids": draw(6).abs()}
    prompt = {"encoder_hidden_states": words, "added_cond_kwargs": told, "return_dict": False}
    timestep = torch.tensor(400, device=unet.device)
    with torch.no_grad():
        down, middle = controlnet(noisy, timestep, controlnet_cond=depth, **prompt)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(noisy, timestep, **residuals, **prompt)[0].cpu()


def ways_of(
    models: tuple[UNet2DConditionModel, ControlNetModel], views: int, side: int
) -> dict[str, Callable[[], Tensor]]:
    """The ways to take one guided step of all views, by name."""

    def one_by_one() -> Tensor:
        return torch.cat([step(*models, 2, side, seed) for seed in range(views)])

    def plain() -> Tensor:
        with share_attention(models[0], views):
            return step(*models, 2 * views, side)

    def lockstep(at_a_time: int, offload: bool) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with in_lockstep(*models, Sharing(views), Pace(at_a_time), num_views=views, offload=offload):
                return step(*models, 2 * views, side)

        return call

    return {
        "view by view": one_by_one,
        "plain call": plain,
        "lockstep, 4 at a time": lockstep(4, offload=False),
        "lockstep, offloaded": lockstep(4, offload=True),
    }


def measure(
    models: tuple[UNet2DConditionModel, ControlNetModel], call: Callable[[], Tensor]
) -> tuple[Tensor, float, float]:
    """The prediction, seconds, and the peak of bytes beside the weights; the second of two calls counts on a GPU.

    Raises:
        torch.cuda.OutOfMemoryError: It does not fit.
    """
    if models[0].device.type != "cuda":
        begin = time.perf_counter()
        made = call()
        return made, time.perf_counter() - begin, float(peak_of(models, call))
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    weights, begin = torch.cuda.memory_allocated(), time.perf_counter()
    made = call()
    torch.cuda.synchronize()
    return made, time.perf_counter() - begin, float(torch.cuda.max_memory_allocated() - weights)


def report(
    models: tuple[UNet2DConditionModel, ControlNetModel], views: int, side: int
) -> tuple[dict[str, Tensor], str]:
    """All ways, measured: what they predict, and a table."""
    made, figures, lines = {}, {}, [f"{views} views, latents of {side}², {models[0].device}:"]
    for name, call in ways_of(models, views, side).items():
        try:
            made[name], *figures[name] = measure(models, call)
        except torch.cuda.OutOfMemoryError:
            lines.append(f"  {name:22s} does not fit into the memory")
            torch.cuda.empty_cache()
            continue
        seconds, peak = figures[name]
        line = f"  {name:22s} {seconds / views:8.3f} s a view, {peak / 2**20:9.1f} MiB"
        for other in ("view by view", "plain call"):
            if other in figures and other != name:
                line += (
                    f"; {seconds / figures[other][0]:.2f} × time, {peak / figures[other][1]:.2f} × memory of {other}"
                )
        lines.append(line)
    return made, "\n".join(lines)


def test_the_architecture_is_sdxls():
    with torch.device("meta"):
        unet, controlnet = sdxl()
    assert sum(weight.numel() for weight in unet.parameters()) == UNET_WEIGHTS
    down = [unet.down_blocks.state_dict(), controlnet.down_blocks.state_dict()]
    assert down[0].keys() == down[1].keys()


def test_the_comparison_with_small_models():
    made, table = report(unet_and_controlnet(), views=5, side=8)
    print("\n" + table)
    for name in ("lockstep, 4 at a time", "lockstep, offloaded"):
        torch.testing.assert_close(made[name], made["plain call"], atol=1e-4, rtol=0)
    assert table.count("s a view") == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("views", [4, 18, 48, 96])
def test_full_size(views):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            models = sdxl()
    finally:
        torch.set_default_dtype(default)
    made, table = report(models, views, side=128)
    print("\n" + table)
    assert any(name.startswith("lockstep") for name in made), "lockstep is there to fit"


if __name__ == "__main__":
    pytest.main([__file__, "-s"])
