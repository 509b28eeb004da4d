"""Inputs of a restyling: views, depths, masks, reference picture and cameras; depth as control pictures.

Depth ControlNets are trained on inverse depth, near bright and far dark. All views share one scale, so that a surface
has about the same grey in all of them; surfaces are never black.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.masks import latent_masks
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.depths import clean_depths, control_pictures
from style_nerf2nerf.restyler.guides import NOWHERE, guide_pictures


@dataclass(frozen=True)
class Inputs:
    """All views of a scene with depths, masks, reference picture and cameras; float32 on the CPU.

    An *entry* is a picture that the models process: every view and, after them, the reference picture if views attend
    to it.
    """

    images: Float[Tensor, "views 3 height width"]
    """In [0, 1]."""
    depths: Float[Tensor, "views 1 height width"]
    """z-depth in scene units, 0 where nothing is."""
    masks: Float[Tensor, "views 1 height width"] | None = None
    """1 where a view is restyled, 0 where it is kept."""
    reference: Float[Tensor, "3 tall wide"] | None = None
    """A picture in the wanted style, in [0, 1], of any size."""
    cameras: ViewCameras | None = None
    """The views' cameras."""

    @classmethod
    def from_tensors(
        cls,
        images: Float[Tensor, "views 3 height width"],
        depths: Float[Tensor, "views 1 height width"],
        masks: Float[Tensor, "views 1 height width"] | None = None,
        reference: Float[Tensor, "3 tall wide"] | None = None,
        cameras: ViewCameras | None = None,
    ) -> Inputs:
        """Inputs from tensors of any device and precision, without their gradients."""

        def plain(tensor: Tensor) -> Tensor:
            return tensor.detach().float().cpu()

        optional = (None if each is None else plain(each) for each in (masks, reference))
        return cls(plain(images), plain(depths), *optional, cameras=cameras)

    def __post_init__(self) -> None:
        """Refuse inputs that do not fit together.

        Raises:
            ValueError: If shapes do not fit.
            UserError: If masks are empty or out of range.
        """
        images, views = self.images, len(self.images)
        if images.dim() != 4 or images.shape[1] != 3 or views == 0:
            raise ValueError(
                f"images must be (views, 3, height, width) with at least one view, not {tuple(images.shape)}."
            )
        for name, maps in (("depths", self.depths), ("masks", self.masks)):
            if maps is not None and maps.shape != (views, 1, *images.shape[-2:]):
                raise ValueError(f"{name} {tuple(maps.shape)} do not fit images {tuple(images.shape)}.")
        if self.reference is not None and (self.reference.dim() != 3 or self.reference.shape[0] != 3):
            raise ValueError(f"The reference must be (3, height, width), not {tuple(self.reference.shape)}.")
        if self.cameras is not None and len(self.cameras) != views:
            raise ValueError(f"{len(self.cameras)} cameras do not fit {views} views.")
        if self.masks is not None:
            if not bool(((self.masks >= 0) & (self.masks <= 1)).all()):
                raise UserError("Masks must be between 0, where a view is kept, and 1, where it is restyled.")
            if not bool((self.masks > 0).any()):
                raise UserError("All masks are black: paint the region to restyle white.")

    def pictures(self, size: tuple[int, int], with_reference: bool) -> Float[Tensor, "entries 3 height width"]:
        """The entries at the working size, in [0, 1]; the reference is cropped to its shape."""
        pictures = resize(self.images, size).clamp(0, 1)
        if with_reference:
            pictures = torch.cat([pictures, cover(self._reference, size)[None]])
        return pictures

    def controls(
        self, size: tuple[int, int], with_reference: bool, with_guides: bool = False
    ) -> Float[Tensor, "entries channels height width"]:
        """The ControlNet's pictures of the entries, in [0, 1]: three equal channels of inverse depth.

        Args:
            size: Height and width in pixels.
            with_reference: Add an entry without surfaces for the reference.
            with_guides: Append the channels of `guides.guide_pictures`.
        """
        controls = resize(control_pictures(self.depths), size).clamp(0, 1)
        entry = (0, 0, 0, 0, 0, 0, 0, int(with_reference))
        controls = F.pad(controls, entry)
        if not with_guides:
            return controls
        depths, inside = clean_depths(F.interpolate(self.depths, size=size, mode="nearest-exact"))
        guides = guide_pictures(depths, inside, self.cameras)
        if with_reference:
            guides = torch.cat([guides, torch.tensor(NOWHERE).view(1, -1, 1, 1).expand(1, -1, *size)])
        return torch.cat([controls, guides], 1)

    def change(self, tall: int, wide: int, with_reference: bool) -> Float[Tensor, "entries 1 tall wide"] | None:
        """Masks in latent cells, 0 for the reference; None if everything is restyled."""
        if self.masks is None and not with_reference:
            return None
        masks = torch.ones(len(self.images), 1, tall, wide)
        if self.masks is not None:
            masks = latent_masks(self.masks, tall, wide)
        return F.pad(masks, (0, 0, 0, 0, 0, 0, 0, int(with_reference)))

    @property
    def _reference(self) -> Float[Tensor, "3 tall wide"]:
        assert self.reference is not None
        return self.reference

    def digest(self) -> bytes:
        """Hash of all inputs."""
        digest = hashlib.sha256()
        cameras = self.cameras
        lens = (cameras.camera_to_worlds, cameras.focal, cameras.centre, cameras.distortion) if cameras else ()
        for tensor in (self.images, self.depths, self.masks, self.reference, *lens):
            if tensor is not None:
                digest.update(str(tuple(tensor.shape)).encode() + tensor.float().contiguous().numpy().tobytes())
            digest.update(b"|")
        return digest.digest()


def resize(pictures: Float[Tensor, "views 3 _ _"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "views 3 _ _"]:
    """Resize pictures (bicubic, antialiased), unless they have the size."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return F.interpolate(pictures, size=tuple(size), mode="bicubic", antialias=True)


def cover(picture: Float[Tensor, "3 tall wide"], size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Crop a picture centrally to the aspect ratio of `size` and resize it, in [0, 1]."""
    tall, wide = picture.shape[-2:]
    scale = min(tall / size[0], wide / size[1])
    height, width = (max(1, min(round(side * scale), whole)) for side, whole in zip(size, (tall, wide)))
    top, left = (tall - height) // 2, (wide - width) // 2
    return resize(picture[None, :, top : top + height, left : left + width], size)[0].clamp(0, 1)
