"""Trust in generated views: a weight for each pixel, and views that are dropped.

Three independent criteria, each in [0, 1]:

    agreement     samples of a view agree where the references determine the content, and differ elsewhere
    nearness      views far from all references show parts that no reference shows
    disagreement  a view's content must project inside the outlines of all references, and fill them
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from eschernet_prior.base.cameras import focal_length, world_to_camera
from eschernet_prior.base.sampling import cell_centres
from eschernet_prior.frames import PRIOR_FOV_DEGREES

DEVIATION = 0.1
"""Standard deviation between samples, of values in [0, 1], at which a pixel's weight has fallen to 1/e."""
NEIGHBOURHOOD = 5
"""Side in pixels of the window over which deviations are averaged."""
HALF_TRUST_DEGREES = 20.0
"""Angle to the nearest reference in degrees at which the weight has fallen to one half. For one object and a
partly trained prior, 20 was better than 60 by 0.2 dB with 3 photos and by 0.7 dB with 10."""
MAX_DISAGREEMENT = 0.1
"""Largest share of an outline that may contradict the references'; other views are dropped."""
WHITE = 0.94
"""Value above which all channels of a background pixel are."""
GRID, EXTENT = 56, 0.8
"""Cells per side of the visual hull, and half its side in the prior's units; objects have size 1."""
SLACK_CELLS = 0.5
"""Tolerance of outlines in cells."""


def agreement(
    samples: Float[Tensor, "samples views 3 height width"],
) -> Float[Tensor, "views 1 height width"]:
    """Weight of each pixel by the agreement of the samples: exp(-(deviation / DEVIATION)²); 1 for a single sample.

    Args:
        samples: Samples of the same views, in [0, 1].
    """
    if len(samples) == 1:
        return torch.ones_like(samples[0, :, :1])
    variance = samples.var(0, unbiased=True).mean(1, keepdim=True)
    around = F.avg_pool2d(variance, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)
    return torch.exp(-around / DEVIATION**2)


def nearness(
    references: Float[Tensor, "references 4 4"], targets: Float[Tensor, "targets 4 4"]
) -> Float[Tensor, " targets"]:
    """Weight of each view by its angle to the nearest reference, seen from the object: halved every 20 degrees.

    Args:
        references: c2w in the prior's frame.
        targets: c2w in the prior's frame.
    """
    return 0.5 ** (angles_to_nearest(references, targets) / HALF_TRUST_DEGREES)


def angles_to_nearest(
    references: Float[Tensor, "references 4 4"], targets: Float[Tensor, "targets 4 4"]
) -> Float[Tensor, " targets"]:
    """Angle in degrees between each target and its nearest reference, seen from the object."""
    one, other = (F.normalize(each[:, :3, 3], dim=-1) for each in (targets, references))
    return torch.rad2deg((one @ other.mT).clamp(-1, 1).acos()).amin(1)


def disagreement(
    silhouettes: Float[Tensor, "references 1 size size"],
    references: Float[Tensor, "references 4 4"],
    views: Float[Tensor, "targets 3 height width"],
    targets: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, " targets"]:
    """Share of each view's outline that contradicts the references' outlines.

    The references' visual hull contains the object. A view's outline must therefore be inside the projection of the
    hull, and the part of the hull inside the view's outline must still fill the outline of every reference.

    Args:
        silhouettes: 1 inside the object.
        references: c2w in the prior's frame.
        views: On white, in [0, 1].
        targets: c2w in the prior's frame.

    Returns:
        The larger of two shares in [0, 1]: that of a view's outline outside the hull, and the mean share of the
        references' outlines that is not filled; 1 for an empty view.
    """
    points = cell_centres(GRID, EXTENT, torch.float64)
    hull = points[_inside_all(points, silhouettes, references)]
    found = []
    for view, pose in zip(views, targets):
        outline = (view < WHITE).any(0, keepdim=True).float()
        if not bool(outline.any()) or not len(hull):
            found.append(torch.ones(()))
            continue
        beside = _uncovered(outline, hull, pose)
        carved = hull[_inside_all(hull, outline[None], pose[None])]
        empty = [_uncovered(silhouette, carved, own) for silhouette, own in zip(silhouettes, references)]
        found.append(torch.maximum(beside, torch.stack(empty).mean()))
    return torch.stack(found)


def _project(
    points: Float[Tensor, "points 3"], pose: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "points 2"], Float[Tensor, " points"]]:
    """Project points to [-1, 1] (left to right, top to bottom) in the prior's field of view; also their z-depth."""
    w2c = world_to_camera(pose).to(points)
    seen = points @ w2c[:3, :3].mT + w2c[:3, 3]
    ahead = (-seen[:, 2]).clamp(min=1e-6)
    reach = math.tan(math.radians(PRIOR_FOV_DEGREES) / 2)
    return torch.stack((seen[:, 0], -seen[:, 1]), dim=-1) / (ahead * reach)[:, None], ahead


def _inside_all(
    points: Float[Tensor, "points 3"],
    outlines: Float[Tensor, "views 1 height width"],
    poses: Float[Tensor, "views 4 4"],
) -> Bool[Tensor, " points"]:
    """Points that project into the outline (with tolerance), or outside the picture, in all views."""
    inside = torch.ones(len(points), dtype=torch.bool)
    for outline, pose in zip(outlines, poses):
        places, ahead = _project(points, pose)
        wide = _widened((outline > 0.5).float(), float(ahead.mean()))
        there = F.grid_sample(wide[None], places[None, None].float(), mode="nearest", align_corners=False)[0, 0, 0] > 0
        inside &= there | (places.abs() > 1).any(-1)
    return inside


def _uncovered(
    outline: Float[Tensor, "1 height width"], points: Float[Tensor, "points 3"], pose: Float[Tensor, "4 4"]
) -> Float[Tensor, ""]:
    """Share of an outline's pixels that no point projects to, with a tolerance of a cell."""
    height, width = outline.shape[1:]
    drawn = torch.zeros(1, height, width)
    places, ahead = _project(points, pose)
    pixels = ((places + 1) / 2 * torch.tensor([width, height])).floor().long()
    seen = (pixels >= 0).all(-1) & (pixels < torch.tensor([width, height])).all(-1)
    drawn[0, pixels[seen, 1], pixels[seen, 0]] = 1.0
    covered = _widened(drawn, float(ahead.mean()) if len(points) else 1.0)
    inside = outline > 0.5
    return (inside & (covered < 0.5)).sum() / inside.sum().clamp(min=1)


def _widened(mask: Float[Tensor, "1 height width"], distance: float) -> Float[Tensor, "1 height width"]:
    """Dilate a mask by the tolerance at a distance."""
    span = 2 * EXTENT / GRID * focal_length(PRIOR_FOV_DEGREES, mask.shape[-1]) / distance
    reach = max(round(SLACK_CELLS * span), 1)
    return F.max_pool2d(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]
