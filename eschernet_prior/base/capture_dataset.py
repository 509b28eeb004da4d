"""nerfstudio's dataset and pixel sampler, extended to pictures and masks of any pixel format and of mixed sizes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler
from PIL import Image
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import picture_info, read_mask, read_pixels


class CaptureDataset(InputDataset):
    """nerfstudio's dataset, reading pictures and masks with `eschernet_prior.base.images`.

    Pictures with and without transparency may be mixed: if any picture is transparent somewhere, all are returned as
    RGBA.
    """

    @cached_property
    def has_alpha(self) -> bool:
        """Whether some pixel of some picture is not fully opaque."""
        paths = self._dataparser_outputs.image_filenames
        return any(picture_info(path).alpha and read_pixels(path).shape[-1] == 4 for path in paths)

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width channels"]:
        """Read one picture: RGBA if `has_alpha`, else RGB.

        Raises:
            UserError: If it cannot be read.
        """
        pixels = read_pixels(self._dataparser_outputs.image_filenames[image_idx])
        if self.scale_factor != 1.0:
            height, width = (int(side * self.scale_factor) for side in pixels.shape[:2])
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        if self.has_alpha and pixels.shape[-1] == 3:
            return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=-1)
        return np.array(pixels[..., : 4 if self.has_alpha else 3])

    def get_data(self, image_idx: int, image_type: str = "float32") -> dict[str, Any]:
        """Read one picture as "float32" or "uint8", with its mask if it has one.

        Raises:
            UserError: If the picture or its mask cannot be read, or if they differ in size.
        """
        image = self.get_image_uint8(image_idx) if image_type == "uint8" else self.get_image_float32(image_idx)
        data: dict[str, Any] = {"image_idx": image_idx, "image": image}
        masks = self._dataparser_outputs.mask_filenames
        if masks:
            mask = self._mask(image_idx)
            if mask.shape[:2] != image.shape[:2]:
                raise UserError(
                    f"The mask {masks[image_idx]} has {mask.shape[1]} × {mask.shape[0]} pixels and its photo "
                    f"{image.shape[1]} × {image.shape[0]}: masks must be as large as their photos."
                )
            data["mask"] = mask
            if self.mask_color:
                colour = torch.tensor(self.mask_color) * (255 if image_type == "uint8" else 1)
                image[..., :3] = torch.where(mask, image[..., :3], colour.to(image.dtype))
        return {**data, **self.get_metadata(data)}

    def _mask(self, image_idx: int) -> Bool[Tensor, "height width 1"]:
        masks = self._dataparser_outputs.mask_filenames
        assert masks is not None
        mask = read_mask(masks[image_idx])
        if self.scale_factor != 1.0:
            height, width = (int(side * self.scale_factor) for side in mask.shape)
            picture = Image.fromarray(mask.numpy()).resize((width, height), Image.Resampling.NEAREST)
            mask = torch.from_numpy(np.array(picture))
        return mask[..., None]


class CapturePixelSampler(PixelSampler):
    """nerfstudio's pixel sampler, extended to masked captures of mixed sizes, of one view, and of small objects."""

    def rejection_sample_mask(
        self,
        mask: Bool[Tensor, "views height width 1"],
        num_samples: int,
        num_images: int,
        image_height: int,
        image_width: int,
        device: torch.device | str,
    ) -> Int[Tensor, "num_samples 3"]:
        """Draw pixels (view, row, column) uniformly from those inside the masks.

        Pixels that are still outside after `max_num_iterations` draws are replaced by draws from a list of the pixels
        inside.

        Raises:
            UserError: If no pixel is inside.
        """
        inside = mask[..., 0].to(device).bool()
        sides = torch.tensor([num_images, image_height, image_width], device=device)
        indices = (torch.rand((num_samples, 3), device=device) * sides).long()
        outside = ~inside[tuple(indices.unbind(-1))]
        for _ in range(self.config.max_num_iterations):
            missing = int(outside.sum())
            if missing == 0:
                return indices
            indices[outside] = (torch.rand((missing, 3), device=device) * sides).long()
            outside = ~inside[tuple(indices.unbind(-1))]
        pixels = inside.nonzero()
        if len(pixels) == 0:
            raise UserError("The masks leave no pixel of a photo to train on: paint the visible region white.")
        chosen = torch.randint(len(pixels), (int(outside.sum()),), device=device)
        indices[outside] = pixels[chosen]
        return indices
