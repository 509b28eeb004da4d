"""A box or sphere in the viewer's scene that can be moved, to limit the next round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from viser import MeshHandle, TransformControlsHandle, ViserServer

from style_nerf2nerf.rounds.mask_shapes import MaskShape

HANDLE, SURFACE = "/may_change", "/may_change/shape"
"""Names in the viewer's scene tree."""
COLOUR = (255, 211, 105)
"""Colour of the edges, RGB in 0 … 255."""


class ShapeInScene:
    """A wire box or sphere with handles to move and rotate it."""

    def __init__(self) -> None:
        """Start without a shape."""
        self._kind: Literal["box", "sphere"] | None = None
        self._half = 0.0
        self._handle: TransformControlsHandle | None = None
        self._surface: MeshHandle | None = None

    def placed(self) -> MaskShape | None:
        """The shape in the training frame; None if there is none."""
        if self._kind is None or self._handle is None:
            return None
        x, y, z = (float(each) / VISER_NERFSTUDIO_SCALE_RATIO for each in self._handle.position)
        a, b, c, d = (float(each) for each in self._handle.wxyz)
        return MaskShape(self._kind, (x, y, z), (a, b, c, d), self._half)

    def show(
        self,
        server: ViserServer,
        kind: Literal["box", "sphere"] | None,
        centre: np.ndarray,
        half: float,
        on_move: Callable[[], None],
    ) -> None:
        """Place a shape, or change the type or size of the existing one.

        Args:
            server: Server of the viewer.
            kind: Type of the shape; None removes it, but its position is remembered.
            centre: (3,), the initial position in the training frame.
            half: Half the side of the box, or the radius, in training units.
            on_move: Called after the shape was moved.
        """
        self._half = half
        size = half * VISER_NERFSTUDIO_SCALE_RATIO
        if self._handle is None and kind is not None:
            self._handle = server.scene.add_transform_controls(
                HANDLE, scale=1.5 * size, depth_test=False, position=centre * VISER_NERFSTUDIO_SCALE_RATIO
            )
            self._handle.on_update(lambda _: on_move())
        self._kind = kind
        if self._handle is None:
            return
        self._handle.visible = kind is not None
        if kind is not None:
            import trimesh  # brings scipy, shapely and more along, which registering the methods must not

            solid = trimesh.creation.box((2 * size,) * 3) if kind == "box" else trimesh.creation.icosphere(2, size)
            self._surface = server.scene.add_mesh_simple(
                SURFACE, np.asarray(solid.vertices), np.asarray(solid.faces), color=COLOUR, wireframe=True
            )
