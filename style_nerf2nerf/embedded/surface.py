"""The views of one scene, pixel by pixel, as painters use them.

Axes: `views height width channels`, colours in [0, 1]; world axes right-handed with +z up; cameras are camera-to-world
with OpenGL axes (x right, y up, looking along -z). Sizes are fractions of the picture's height, so that a style looks
the same at every resolution. Nothing (depth 0) is sky, or a backdrop where the scene has no ground.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from eschernet_prior.base import cameras
from style_nerf2nerf.embedded.patterns import Picture, Plane, blur, kuwahara, luminance
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.guides import Lattice, smooth_step
from style_nerf2nerf.restyler.position import surface_points, waves

Mask = Bool[Tensor, "views height width 1"]


@dataclass(frozen=True)
class Surface:
    """The views of one scene, pixel by pixel."""

    colour: Float[Tensor, "views height width 3"]
    """The unstyled picture in [0, 1]."""
    inside: Mask
    """Where something is (depth > 0)."""
    depth: Float[Tensor, "views height width 1"]
    """z-depth in scene units, 0 where nothing is."""
    normal: Float[Tensor, "views height width 3"]
    """Unit world normals; where nothing is, the direction back to the camera."""
    facing: Float[Tensor, "views height width 1"]
    """Cosine between the normal and the direction to the camera, in [0, 1]."""
    side: Float[Tensor, "views height width 1"]
    """How far the normal points to the picture's right, in [-1, 1]."""
    outline: Float[Tensor, "views height width 1"]
    """1 on silhouettes and creases, 0 elsewhere, about one sixtieth of the height wide."""
    lattice: Lattice
    """Patterns that belong to the surfaces."""

    def __getitem__(self, index: int) -> Surface:
        """One view, with an axis of views of length 1."""
        planes = {field.name: getattr(self, field.name)[index : index + 1] for field in fields(self)[:-1]}
        return Surface(**planes, lattice=self.lattice[index])

    @cached_property
    def luminance(self) -> Plane:
        """Luma of the unstyled picture in [0, 1]."""
        return luminance(self.colour)

    @cached_property
    def up(self) -> Plane:
        """Direction of a surface: 1 up, 0.5 sideways, 0 down."""
        return 0.5 + 0.5 * self.normal[..., 2:]

    @cached_property
    def tone(self) -> Plane:
        """Brightness for painters: luminance and light from above, stretched over [0, 1]."""
        return smooth_step(0.08, 0.92, 0.7 * self.luminance + 0.3 * self.up)

    @cached_property
    def relief(self) -> Plane:
        """Inverse depth between the farthest (0) and the nearest surface (1); 0 where nothing is."""
        if not bool(self.inside.any()):
            return torch.zeros_like(self.depth)
        inverse = 1 / self.depth.clamp(min=1e-6)
        known = inverse[self.inside].sort().values
        low, high = (known[round(share * (len(known) - 1))] for share in (0.02, 0.98))
        return torch.where(self.inside, ((inverse - low) / (high - low).clamp(min=1e-6)).clamp(0, 1), 0.0)

    @cached_property
    def ground(self) -> Plane:
        """1 where a surface is level and faces up."""
        return smooth_step(0.9, 0.98, self.normal[..., 2:]) * self.inside

    @property
    def floor(self) -> Mask:
        """Where a surface is level and faces up."""
        return self.ground > 0.5

    @property
    def void(self) -> Mask:
        """Where nothing is and the picture is white, as in scenes without a ground."""
        return (self.colour.amin(-1, keepdim=True) > 0.995) & ~self.inside

    @cached_property
    def x(self) -> Plane:
        """Position from left to right, in heights."""
        views, height, width, _ = self.colour.shape
        row = (torch.arange(width, device=self.colour.device) + 0.5) / height
        return row.view(1, 1, width, 1).expand(views, height, width, 1)

    @cached_property
    def y(self) -> Plane:
        """Position from top to bottom, in heights."""
        views, height, width, _ = self.colour.shape
        column = (torch.arange(height, device=self.colour.device) + 0.5) / height
        return column.view(1, height, 1, 1).expand(views, height, width, 1)

    @property
    def from_middle(self) -> Plane:
        """Distance from a point slightly above the picture's middle, in heights."""
        return ((self.x - 0.5).square() + (self.y - 0.45).square()).sqrt()

    @cached_property
    def soft(self) -> Picture:
        """The unstyled picture, slightly blurred, without mixing surfaces with the background."""
        inside, radius = self.inside.to(self.colour), 0.012
        within, without = (
            blur(self.colour * share, radius) / blur(share, radius).clamp(min=1e-3) for share in (inside, 1 - inside)
        )
        return torch.where(self.inside, within, without)

    @cached_property
    def flat(self) -> Picture:
        """The unstyled picture in flat brush strokes."""
        return kuwahara(kuwahara(self.colour, 0.024), 0.016)


def observe(
    colour: Float[Tensor, "views height width 3"],
    depth: Float[Tensor, "views height width 1"],
    normal: Float[Tensor, "views height width 3"],
    camera_to_worlds: Float[Tensor, "views _ 4"],
    fov_degrees: float,
    supersampling: int = 1,
) -> Surface:
    """Compute a `Surface` from renders with known cameras.

    Args:
        colour: Pictures in [0, 1].
        depth: z-depth in scene units, 0 where nothing is.
        normal: World normals, ignored where nothing is.
        camera_to_worlds: 3×4 or 4×4 camera-to-world matrices, OpenGL axes.
        fov_degrees: Field of view across the width of all views.
        supersampling: Pixels per side that become one pixel of the painted picture.
    """
    height, width = colour.shape[1:3]
    poses = camera_to_worlds.to(depth)
    towards = -cameras.rays(poses, fov_degrees, height, width).directions
    inside = depth > 0
    middle = depth[inside].median() if bool(inside.any()) else depth.new_tensor(1.0)
    normal = torch.where(inside, F.normalize(normal, dim=-1), towards)
    facing = (normal * towards).sum(-1, keepdim=True).clamp(0, 1)
    side = (normal * poses[:, None, None, :3, 0]).sum(-1, keepdim=True)
    lenses = ViewCameras.from_fov(poses, fov_degrees, height, width)
    points = surface_points(depth.movedim(-1, 1), inside.movedim(-1, 1), lenses)
    place = waves(points, supersampling).movedim(1, -1)
    return Surface(
        colour, inside, depth, normal, facing, side, _outline(depth / middle, normal, inside), Lattice(place, normal)
    )


def _outline(depth: Plane, normal: Picture, inside: Mask) -> Plane:
    """Jumps of relative depth, of direction and of the mask against the right and lower neighbours, thickened."""
    reach = max(1, round(depth.shape[1] / 64))
    stack = torch.cat([depth.clamp(max=4.0) * 5.0, normal * 1.2, inside.to(depth) * 4.0], -1).movedim(-1, 1)
    thick = F.max_pool2d((jumps(stack) - 0.5).clamp(0, 1), 2 * (reach // 2) + 1, stride=1, padding=reach // 2)
    return (2 * thick).clamp(max=1).movedim(1, -1)


def jumps(maps: Float[Tensor, "views channels height width"]) -> Float[Tensor, "views 1 height width"]:
    """The largest difference of any channel to the right or the lower neighbour."""
    both = [F.pad((maps - maps.roll(-1, dim)).abs()[..., :-1, :-1], (0, 1, 0, 1)) for dim in (2, 3)]
    return torch.stack(both).amax(0).amax(1, keepdim=True)
