"""Colour the generated cameras in nerfstudio's viewer, and hide them on request."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nerfstudio.data.datasets.base_dataset import InputDataset

COLOUR = (235, 130, 40)
"""Colour of generated cameras, RGB in 0 … 255; photos keep nerfstudio's colour."""
PICTURE_SIDE = 100
"""Longest side in pixels of the picture inside a frustum."""


class GeneratedCameras:
    """The frustums of the generated views in the viewer.

    The viewer draws all training cameras in one colour, which cannot be changed afterwards, so the frustums of
    generated views are replaced.
    """

    def __init__(self, viewer: Any, dataset: InputDataset, first: int) -> None:
        """Replace the frustums of the generated views.

        Args:
            viewer: nerfstudio's viewer, with the training cameras drawn.
            dataset: The training views.
            first: Index of the first generated view.
        """
        self._viewer = viewer
        self._indices = [index for index in viewer.camera_handles if index >= first]
        for index in self._indices:
            old = viewer.camera_handles[index]
            viewer.camera_handles[index] = self._frustum(index, dataset, old.wxyz, old.position)

    def show(self, visible: bool) -> None:
        """Show or hide them."""
        for index in self._indices:
            self._viewer.camera_handles[index].visible = visible

    def _frustum(self, index: int, dataset: InputDataset, wxyz: Any, position: Any) -> Any:
        camera, picture = dataset.cameras[index], dataset[index]["image"]
        stride = max(1, -(-max(picture.shape[:2]) // PICTURE_SIDE))
        handle = self._viewer.viser_server.scene.add_camera_frustum(
            name=f"/cameras/camera_{index:05d}",
            fov=float(2 * np.arctan(float(camera.cx) / float(camera.fx))),
            aspect=float(camera.cx) / float(camera.cy),
            scale=self._viewer.config.camera_frustum_scale,
            color=COLOUR,
            image=(picture[::stride, ::stride, :3] * 255).to(torch.uint8).numpy(),
            wxyz=wxyz,
            position=position,
        )

        @handle.on_click
        def _(event: Any) -> None:
            with event.client.atomic():
                event.client.camera.position = handle.position
                event.client.camera.wxyz = handle.wxyz

        return handle
