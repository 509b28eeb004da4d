"""How far generated views can be trusted: a weight for each of their pixels, and views that are not taken at all.

Three signs, each in [0, 1] and each of its own:

    agreement    several samples of the same view are alike where the references say what is there, and differ where
                 the prior makes it up
    nearness     a view far from every reference shows what no reference saw
    disagreement with the references' outlines: what a view shows must lie inside all of them, and must fill them
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
"""Pixels across which deviations are averaged: two samples alone say little about one pixel."""
HALF_TRUST_DEGREES = 20.0
"""Angle to the nearest reference at which the weight has fallen to one half. Of one object, with a prior half trained,
20 was better than 60 by 0.2 dB from 3 photos and by 0.7 dB from 10: where a photo is near, it shall decide."""
MAX_DISAGREEMENT = 0.1
"""Share of an outline that may contradict the references' before a view is dropped."""
WHITE = 0.94
"""A pixel with all channels above this is background."""
GRID, EXTENT = 56, 0.8
"""Cells a side of the hull, and half its side in the prior's units; objects are about 1 long."""
SLACK_CELLS = 0.5
"""How many cells' width outlines may miss each other."""


def agreement(
    samples: Float[Tensor, "samples views 3 height width"],
) -> Float[Tensor, "views 1 height width"]:
    """Weight of each pixel by how alike the samples are: exp(-(deviation / DEVIATION)²); 1 where there is one sample.

    Args:
        samples: of the same views, in [0, 1].
    """
    if len(samples) == 1:
        return torch.ones_like(samples[0, :, :1])
    variance = samples.var(0, unbiased=True).mean(1, keepdim=True)
    around = F.avg_pool2d(variance, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)
    return torch.exp(-around / DEVIATION**2)


def nearness(
    references: Float[Tensor, "references 4 4"], targets: Float[Tensor, "targets 4 4"]
) -> Float[Tensor, " targets"]:
    """Weight of each view by its angle, seen from the object, to the nearest reference: halved every 20 degrees.

    Args:
        references: c2w in the prior's frame.
        targets: c2w in the prior's frame.
    """
    return 0.5 ** (angles_to_nearest(references, targets) / HALF_TRUST_DEGREES)


def angles_to_nearest(
    references: Float[Tensor, "references 4 4"], targets: Float[Tensor, "targets 4 4"]
) -> Float[Tensor, " targets"]:
    """Degrees between each target's direction from the object and that of the reference nearest to it."""
    one, other = (F.normalize(each[:, :3, 3], dim=-1) for each in (targets, references))
    return torch.rad2deg((one @ other.mT).clamp(-1, 1).acos()).amin(1)


def disagreement(
    silhouettes: Float[Tensor, "references 1 size size"],
    references: Float[Tensor, "references 4 4"],
    views: Float[Tensor, "targets 3 height width"],
    targets: Float[Tensor, "targets 4 4"],
) -> Float[Tensor, " targets"]:
    """How much of each view's outline contradicts the references' outlines.

    The references' visual hull contains the object. So a view must show nothing beside the hull's projection; and what
    is left of the hull inside a view's outline must still fill the outline of every reference.

    Args:
        silhouettes: 1 where the object is.
        references: c2w in the prior's frame.
        views: on white, in [0, 1].
        targets: c2w in the prior's frame.

    Returns:
        The larger of the share of a view's outline beside the hull and the mean share of the references' outlines that
        it leaves empty, in [0, 1]; 1 for an empty view.
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
    """Where points appear, from -1 (left, top) to 1 in the prior's field of view, and how far ahead they are."""
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
    """Points that appear within a cell's width of the object, or out of the picture, in all views."""
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
    """Share of an outline's pixels that no point projects to, give or take a cell."""
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
    """A mask grown by what a cell of the hull, that far away, spans."""
    span = 2 * EXTENT / GRID * focal_length(PRIOR_FOV_DEGREES, mask.shape[-1]) / distance
    reach = max(round(SLACK_CELLS * span), 1)
    return F.max_pool2d(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]
