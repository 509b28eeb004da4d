"""How good made views are: PSNR, SSIM and LPIPS against the truth, and what three trivial predictors reach.

The predictors know the references and all poses but nothing of objects: the *nearest* reference as it is, the *mean*
of all references, and that mean *blurred*. A prior that has learnt something is better than the best of them.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    structural_similarity_index_measure,
)
from torchvision.transforms.functional import gaussian_blur

from eschernet_prior.base.cameras import camera_to_world
from eschernet_prior.base.errors import UserError

BLUR_SHARE = 1 / 32
"""Deviation of the blur as a share of the image's width."""

Predictor = Callable[
    [Float[Tensor, "references 3 h w"], Float[Tensor, "references 4 4"], Float[Tensor, "targets 4 4"]],
    Float[Tensor, "targets 3 h w"],
]


def psnr(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, "views"]:
    """Peak signal-to-noise ratio of each view, decibels, at most 100."""
    error = (made - truth).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, "views"]:
    """Structural similarity of each view (Gaussian window of deviation 1.5)."""
    value = structural_similarity_index_measure(made, truth, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def lpips(made: Float[Tensor, "views 3 h w"], truth: Float[Tensor, "views 3 h w"]) -> Float[Tensor, "views"]:
    """Learned perceptual distance of each view (AlexNet, whose weights torchvision downloads on first use).

    Raises:
        UserError: they could not be downloaded.
    """
    try:
        each = [
            learned_perceptual_image_patch_similarity(one[None], other[None], net_type="alex", normalize=True)
            for one, other in zip(made, truth)
        ]
    except OSError as error:
        raise UserError(
            "AlexNet's weights for LPIPS could not be downloaded: measure without it, --no-lpips."
        ) from error
    return torch.stack(each).detach()


def nearest_reference(
    references: Float[Tensor, "references 3 h w"],
    source_poses: Float[Tensor, "references 4 4"],
    target_poses: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, "targets 3 h w"]:
    """For each target the reference that was taken from the most similar direction."""
    source, target = (
        torch.nn.functional.normalize(camera_to_world(poses)[:, :3, 3], dim=-1)
        for poses in (source_poses, target_poses)
    )
    return references[(target @ source.mT).argmax(1)]


def mean_reference(
    references: Float[Tensor, "references 3 h w"],
    source_poses: Float[Tensor, "references 4 4"],
    target_poses: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, "targets 3 h w"]:
    """For each target the mean of all references."""
    return references.mean(0, keepdim=True).expand(len(target_poses), -1, -1, -1)


def blurred_mean(
    references: Float[Tensor, "references 3 h w"],
    source_poses: Float[Tensor, "references 4 4"],
    target_poses: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, "targets 3 h w"]:
    """For each target the mean of all references, blurred by `BLUR_SHARE` of its width."""
    deviation = BLUR_SHARE * references.shape[-1]
    kernel = 2 * int(3 * deviation) + 1
    return gaussian_blur(
        mean_reference(references, source_poses, target_poses), [kernel, kernel], [deviation, deviation]
    )


TRIVIAL: dict[str, Predictor] = {
    "nearest reference": nearest_reference,
    "mean reference": mean_reference,
    "blurred mean": blurred_mean,
}
