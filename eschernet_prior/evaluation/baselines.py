"""Three trivial predictors of views, for comparison with the prior.

They use the references and all poses, but no knowledge of objects: the *nearest* reference, the *mean* of all
references, and the *blurred* mean. A useful prior is better than the best of them.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from eschernet_prior.base.cameras import camera_to_world

BLUR_SHARE = 1 / 32
"""Standard deviation of the blur as a share of the image's width."""

Predictor = Callable[
    [Float[Tensor, "references 3 h w"], Float[Tensor, "references 4 4"], Float[Tensor, "targets 4 4"]],
    Float[Tensor, "targets 3 h w"],
]


def nearest_reference(
    references: Float[Tensor, "references 3 h w"],
    source_poses: Float[Tensor, "references 4 4"],
    target_poses: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, "targets 3 h w"]:
    """For each target the reference from the most similar direction."""
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
