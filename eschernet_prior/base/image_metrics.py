"""PSNR, SSIM and LPIPS of each picture of a batch, computed by torchmetrics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from eschernet_prior.base.errors import UserError

MAX_PSNR = 100.0
"""PSNR of two equal pictures in decibels."""


def psnr(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, views]:
    """Peak signal-to-noise ratio of each picture in [0, 1], decibels, at most `MAX_PSNR`."""
    return peak_signal_noise_ratio(made, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=MAX_PSNR)


def ssim(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, views]:
    """Structural similarity of each picture in [0, 1] (Gaussian window of deviation 1.5)."""
    value = structural_similarity_index_measure(made, truth, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def lpips(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, views]:
    """Learned perceptual distance of each picture in [0, 1] (AlexNet, downloaded by torchvision on first use).

    Raises:
        UserError: If the weights could not be downloaded.
    """
    try:
        each = [
            learned_perceptual_image_patch_similarity(one[None], other[None], net_type="alex", normalize=True)
            for one, other in zip(made, truth)
        ]
    except OSError as error:
        raise UserError(
            "The AlexNet weights of LPIPS could not be downloaded: connect to the network, or measure with --no-lpips."
        ) from error
    return torch.stack(each).detach()
