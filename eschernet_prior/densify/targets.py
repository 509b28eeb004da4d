"""Choose the poses of generated views: far from the references and inside their range of elevations.

All poses are c2w in the prior's frame (`frames.PriorFrame`): object at the origin, z up. A *plan* proposes many
candidate poses on a path, all inside the band of elevations that the references cover, and keeps those that are
farthest from the references and from each other, in the path's order. Angles between views are those between their
directions from the object.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.cameras import GOLDEN_ANGLE, look_at, on_sphere, orbit
from eschernet_prior.base.errors import UserError

TargetPlan = Literal["orbit", "spiral", "between"]
CANDIDATES_PER_TARGET = 12


def plan_targets(
    references: Float[Tensor, "references 4 4"], num_views: int, plan: TargetPlan = "spiral", min_degrees: float = 4.0
) -> Float[Tensor, "targets 4 4"]:
    """Choose poses for new views.

    Args:
        references: c2w of the references in the prior's frame.
        num_views: Number of new views.
        plan: "orbit", around the object while swinging once through the captured elevations; "spiral", spread evenly
            over the captured band; "between", on the arcs between references that are neighbours in azimuth.
        min_degrees: Least angle to every reference.

    Returns:
        c2w of `num_views` cameras that look at the origin, at the references' mean distance (on an arc: a distance
        between those of its ends).

    Raises:
        UserError: If the plan has too few positions away from the references.
    """
    positions = references[:, :3, 3].double()
    count = max(CANDIDATES_PER_TARGET * num_views, 120)
    candidates = {"orbit": _orbit, "spiral": _spiral, "between": _between}[plan](positions, count)
    free = candidates[_angles(candidates, positions).amin(1) >= min_degrees]
    if len(free) < num_views:
        raise UserError(
            f"The plan {plan!r} finds {len(free)} of {num_views} views at least {min_degrees:g} degrees away from the "
            "references: choose fewer views or another plan."
        )
    return look_at(free[_farthest(free, positions, num_views)]).to(references.dtype)


def elevations(positions: Float[Tensor, "views 3"]) -> Float[Tensor, "views"]:
    """Elevation in degrees."""
    return torch.rad2deg(torch.atan2(positions[:, 2], torch.hypot(positions[:, 0], positions[:, 1])))


def _orbit(positions: Float[Tensor, "references 3"], count: int) -> Float[Tensor, "candidates 3"]:
    """A closed orbit from the lowest captured elevation to the highest and back."""
    return orbit(count, float(positions.norm(dim=-1).mean()), _band(positions))[:, :3, 3].double()


def _spiral(positions: Float[Tensor, "references 3"], count: int) -> Float[Tensor, "candidates 3"]:
    """A golden spiral over the captured range of elevations, in rings of equal area."""
    low, high = _band(positions)
    index = torch.arange(count, dtype=torch.float64)
    bottom, top = math.sin(math.radians(low)), math.sin(math.radians(high))
    elevation = torch.rad2deg(torch.asin(bottom + (top - bottom) * (index + 0.5) / count))
    return on_sphere(_mean_radius(positions, count), elevation.clamp(low, high), GOLDEN_ANGLE * index)


def _between(positions: Float[Tensor, "references 3"], count: int) -> Float[Tensor, "candidates 3"]:
    """Points between each reference and the next in azimuth, with linear elevation and distance."""
    if len(positions) < 2:
        return positions.new_zeros(0, 3)
    azimuth = torch.atan2(positions[:, 1], positions[:, 0])
    order = azimuth.argsort()
    azimuth, elevation, radius = azimuth[order], elevations(positions)[order], positions.norm(dim=-1)[order]
    arc = (azimuth.roll(-1) - azimuth) % (2.0 * math.pi)
    per_arc = max(count // len(order), 2)
    share = (torch.arange(per_arc, dtype=torch.float64) + 0.5) / per_arc

    def mixed(values: Float[Tensor, "references"]) -> Float[Tensor, "candidates"]:
        return (values[:, None] + (values.roll(-1) - values)[:, None] * share).flatten()

    return on_sphere(mixed(radius), mixed(elevation), (azimuth[:, None] + arc[:, None] * share).flatten())


def _band(positions: Float[Tensor, "references 3"]) -> tuple[float, float]:
    """(lowest, highest) captured elevation, degrees."""
    captured = elevations(positions)
    return float(captured.min()), float(captured.max())


def _mean_radius(positions: Float[Tensor, "references 3"], count: int) -> Float[Tensor, "candidates"]:
    return positions.norm(dim=-1).mean().expand(count)


def _angles(first: Float[Tensor, "a 3"], second: Float[Tensor, "b 3"]) -> Float[Tensor, "a b"]:
    """Degrees between directions from the origin."""
    cosine = torch.nn.functional.normalize(first, dim=-1) @ torch.nn.functional.normalize(second, dim=-1).mT
    return torch.rad2deg(torch.arccos(cosine.clamp(-1.0, 1.0)))


def _farthest(candidates: Float[Tensor, "candidates 3"], taken: Float[Tensor, "taken 3"], count: int) -> Tensor:
    """Farthest-point sampling: ascending indices of candidates chosen one by one, farthest from all chosen before."""
    distance = _angles(candidates, taken).amin(1)
    chosen: list[int] = []
    for _ in range(count):
        best = int(distance.argmax())
        chosen.append(best)
        distance = torch.minimum(distance, _angles(candidates, candidates[best : best + 1])[:, 0])
        distance[best] = -1.0
    return torch.tensor(sorted(chosen))
