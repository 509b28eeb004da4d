"""The box or the sphere that a person drags over the scene in the viewer."""

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
"""Of its edges, RGB in 0 … 255."""


class ShapeInScene:
    """A wire box or sphere with handles to move and turn it; nothing at first."""

    def __init__(self) -> None:
        """Nothing is placed."""
        self._kind: Literal["box", "sphere"] | None = None
        self._half = 0.0
        self._handle: TransformControlsHandle | None = None
        self._surface: MeshHandle | None = None

    def placed(self) -> MaskShape | None:
        """Where it is, in the training frame; None where there is none."""
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
        """Place a shape, or give the one that is there another kind or size.

        Args:
            server: The viewer's.
            kind: None takes it away; where it was is remembered.
            centre: (3,) in the training frame, where it is placed the first time.
            half: Half the side of the box, or the radius, in training units.
            on_move: Called when it has been dragged.
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
