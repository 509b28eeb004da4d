"""A whole prior with fixed weights, and posed renders on disk, for the tests of pipeline, training and evaluation."""

from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers import UNet2DConditionModel as UNet
from PIL import Image
from torch import Tensor

from escher_cases import fill, noise, ring
from eschernet_prior.base.cameras import orbit, world_to_camera
from eschernet_prior.image_encoder import ConvNeXtV2Tokens
from eschernet_prior.pipeline import EscherNetPipeline


def tiny(dof: str = "6dof", image_size: int = 16, licence: str | None = None) -> EscherNetPipeline:
    """A pipeline with weights that need no random numbers."""
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, **blocks,
    )  # fmt: skip
    halves = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16, **halves)
    encoder = ConvNeXtV2Tokens([4, 8, 8, 16], [1, 1, 1, 1], image_size=64)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    for network in (unet, vae, encoder):
        fill(network).eval()
    pipeline = EscherNetPipeline(unet, vae, encoder, scheduler, dof, image_size, licence)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_object(folder: Path, views: int, seed: int = 0) -> None:
    """Renders of a coloured square, and their cameras."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for view, pose in enumerate(world_to_camera(orbit(views, 1.8, (0.0, 40.0), azimuth_offset=seed))):
        pixels = np.zeros((20, 20, 4), np.uint8)
        pixels[4:16, 4:16] = [*rng.integers(0, 256, 3), 255]
        Image.fromarray(pixels).save(folder / f"{view:03d}.png")
        np.save(folder / f"{view:03d}.npy", pose[:3].numpy())


def inputs(references: int = 2, targets: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Reference images and poses, and target poses, on two rings of cameras."""
    images = (noise(references, 3, 16, 16, seed=3) / 3.5 + 0.5).clamp(0, 1)
    return images, ring(1, references, 0.2)[0], ring(1, targets, 1.3)[0]
