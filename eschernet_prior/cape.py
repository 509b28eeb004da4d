"""Camera positional encoding (CaPE): poses transform the queries and keys of attention (EscherNet, section 3.2).

Vocabulary. A *view* is one image with a camera; a *token* is one location of a view. The encoding of a view is either

* **6DoF**: a 4×4 matrix `A`. The channels of a token are divided into groups of four consecutive ones, each a row
  vector `f` that becomes `f @ A`. With the world-to-camera pose `P`, queries take `A = P^-T` and keys
  `A = P`: a logit is `f_q (P_k P_q^-1)^T f_k^T`, which depends on the relative pose only, not on the world frame.
* **4DoF**: four angles, radians: polar angle from +z, azimuth, scaled log radius, and a constant 0. The channels are
  divided into four quarters, one per angle; channels (2i, 2i+1) of a quarter are rotated by its angle, for queries and
  keys alike: only differences of angles matter. Viewing direction and roll are not encoded.

Both act on the *full* channel dimension, before attention splits it into heads. For 6DoF that equals encoding each
head (head dimensions are multiples of four); for 4DoF it does not: eight heads get theta, theta, azimuth, azimuth,
radius, radius, 0, 0.

Poses are world-to-camera, OpenGL axes (+x right, +y up, looking along -z), z up in the world, the object at the origin.
"""

import math
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

CapeKind = Literal["6dof", "4dof"]
CAPE_KINDS: tuple[CapeKind, ...] = get_args(CapeKind)

RADIUS_RANGE = (1.5, 2.2)
"""Distances from the object's centre that the prior is trained on; the longest side of the object is about 1."""


def apply_cape_6dof(
    features: Float[Tensor, "*batch tokens channels"], matrices: Float[Tensor, "*batch #tokens 4 4"]
) -> Float[Tensor, "*batch tokens channels"]:
    """Multiply each group of four consecutive channels, a row vector, with its token's matrix: `f -> f @ A`.

    Args:
        features: Queries or keys before the head split; the number of channels is a multiple of 4.
        matrices: One matrix per token, or one for all tokens; used as given (see `matrices_6dof`), in any precision.

    Returns:
        The encoded features, in the features' precision.
    """
    _check_channels(features, 4)
    matrices = matrices.to(features.dtype)
    if matrices.shape[-3] == 1:  # one matrix for all tokens: one matrix product of (tokens × groups) rows
        rows = rearrange(features, "... t (g c) -> ... (t g) c", c=4)
        encoded = rows @ matrices.squeeze(-3)
        return encoded.reshape(*encoded.shape[:-2], *features.shape[-2:])
    return rearrange(rearrange(features, "... t (g c) -> ... t g c", c=4) @ matrices, "... t g c -> ... t (g c)")


def apply_cape_4dof(
    features: Float[Tensor, "*batch tokens channels"], angles: Float[Tensor, "*batch #tokens 4"]
) -> Float[Tensor, "*batch tokens channels"]:
    """Rotate neighbouring channels: channel `c` of `d` belongs to angle `floor(4c / d)`.

    `even' = even cos a - odd sin a`, `odd' = odd cos a + even sin a` for the pairs (2i, 2i + 1).

    Args:
        features: Queries or keys before the head split; the number of channels is a multiple of 8.
        angles: Radians; one set per token, or one for all tokens (see `angles_4dof`), in any precision.

    Returns:
        The encoded features, in the features' precision.
    """
    _check_channels(features, 8)
    angles = angles.to(
        torch.promote_types(angles.dtype, torch.float32)
    )  # only the sines may have half precision, not the angles
    pairs = features.shape[-1] // 8
    cos = repeat(angles.cos().to(features.dtype), "... angle -> ... (angle pair)", pair=pairs)
    sin = repeat(angles.sin().to(features.dtype), "... angle -> ... (angle pair)", pair=pairs)
    even, odd = rearrange(features, "... (p two) -> two ... p", two=2)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2)


def matrices_6dof(
    world_to_camera: Float[Tensor, "*batch 4 4"], dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """The 6DoF encodings of poses: inverse transposes for queries, poses for keys; inverted in float64, then cast.

    Args:
        world_to_camera: Poses with OpenGL camera axes, on a device with float64.
        dtype: Precision of the result.

    Returns:
        (query matrices `P^-T`, key matrices `P`).
    """
    exact = world_to_camera.double()
    return torch.linalg.inv(exact).mT.to(dtype), exact.to(dtype)


def angles_4dof(
    world_to_camera: Float[Tensor, "*batch 4 4"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch 4"]:
    """The 4DoF encoding of poses, for queries and keys alike: the camera's position in spherical coordinates.

    Args:
        world_to_camera: Poses with OpenGL camera axes, on a device with float64.
        dtype: Precision of the result.

    Returns:
        `[theta, azimuth, radius, 0]` of the camera centre `C = -R^T t`, in radians: theta in [0, pi] from +z,
        azimuth in (-pi, pi] from +x, and `ln |C|`, clipped to `RADIUS_RANGE` and mapped to [0, pi].
    """
    exact = world_to_camera.double()
    x, y, z = -torch.einsum("...ij,...i->...j", exact[..., :3, :3], exact[..., :3, 3]).movedim(-1, 0)
    planar = torch.hypot(x, y)
    near, far = RADIUS_RANGE
    distance = torch.hypot(planar, z).clamp(near, far)
    scaled = math.pi * torch.log(distance / near) / math.log(far / near)
    azimuth = torch.atan2(y + 0.0, x)  # + 0.0 turns -0.0 into 0.0, whose azimuth is pi and not -pi
    return torch.stack((torch.atan2(planar, z), azimuth, scaled, torch.zeros_like(z)), dim=-1).to(dtype)


def _check_channels(features: Tensor, multiple: int) -> None:
    if features.shape[-1] % multiple:
        raise ValueError(
            f"CaPE needs a multiple of {multiple} channels, got features of shape {tuple(features.shape)}."
        )
