"""Adapt nerfstudio's viewer to this method: own controls first, an initial view of the scene, and limited render sizes.

nerfstudio passes its viewer to every `ViewerControl` inside the pipeline, both in training and in `ns-viewer`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from nerfstudio.models.base_model import Model
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement
from viser import ClientHandle

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rounds.losses import Retraining
from style_nerf2nerf.rounds.mask_shapes import MaskShape
from style_nerf2nerf.rounds.viewer.framing import first_viewpoint
from style_nerf2nerf.rounds.viewer.interpolation import keep_amount
from style_nerf2nerf.rounds.viewer.panel import BOX, SPHERE, StylePanel, ViewControls
from style_nerf2nerf.rounds.viewer.render_budget import RenderBudget
from style_nerf2nerf.rounds.viewer.shape_in_scene import ShapeInScene
from style_nerf2nerf.rounds.viewer.shown import ShownField

FIRST_GUESS = {"cpu": 5e3, "cuda": 5e5}
"""Assumed rendering speed in rays per second, by device, before a picture was measured."""
FINER = 2
"""Largest size of a picture as a multiple of the capture's views."""
STEP_EVERY = 0.5
"""Seconds between two updates of the step that the viewer shows."""
BRAND = (255, 211, 105)
"""nerfstudio's colour of buttons, RGB in 0 … 255."""


class Workbench(ViewerControl):
    """The additions of this method to nerfstudio's viewer."""

    def __init__(
        self,
        pipeline: StyledRun,
        run_dir: Path | None,
        view: ViewControls,
        elements: Sequence[ViewerElement],
        retraining: Callable[[], Retraining | None],
        panel: StylePanel | None = None,
    ) -> None:
        """Store the arguments; elements are created when the viewer exists.

        Args:
            pipeline: The pipeline of the field.
            run_dir: The run folder; None if unknown.
            view: The controls that select what to show.
            elements: Further controls, shown below those of `view`.
            retraining: Function that returns the targets of the present round; None outside of a round.
            panel: The panel of a training, included in `elements`; its next round can be limited to a box or sphere.
        """
        self._pipeline, self._run_dir, self._view = pipeline, run_dir, view
        self._elements, self._retraining = list(elements), retraining
        self._panel, self._shape = panel, ShapeInScene()
        self._viewer: Viewer | None = None
        self._refreshing = False
        self._told_step = float("-inf")
        self._cleared = False

    def _setup(self, viewer: Viewer) -> None:
        """Set up the additions; called by the viewer after it has built its own controls."""
        super()._setup(viewer)
        self._viewer = viewer
        device = self._pipeline.model.device.type
        self.budget = RenderBudget(self._is_training, FIRST_GUESS.get(device, FIRST_GUESS["cuda"]))
        self._field = ShownField(
            self._pipeline, self._run_dir, self._view, self._retraining, self._selected, self._rendered, self._limit
        )
        shown = cast(Model, self._field)
        viewer.get_model = lambda: shown
        self._view.on_change = self.rerender
        self._view.keep = self._keep
        self._arrange(viewer)
        if self._panel is not None:
            self._panel.shape = self._shape.placed
            self._panel.on_shape = self._reshape
        viewer.viser_server.on_client_connect(self._welcome)

    def _arrange(self, viewer: Viewer) -> None:
        """Put the method's controls first; remove the logo, which is downloaded, and controls without effect."""
        gui = viewer.viser_server.gui
        gui.configure_theme(
            control_layout="collapsible", control_width="medium", dark_mode=True, show_logo=False, brand_color=BRAND
        )
        with gui.add_folder("Restyling", order=-1):
            for element in [*self._view.elements, *self._elements]:
                element.install(viewer.viser_server)
        panel = viewer.control_panel
        # The budget determines sizes: these two settings have no effect.
        panel._train_speed.set_hidden(True)
        panel._train_util.set_hidden(True)
        cameras = self._pipeline.datamanager.train_dataset.cameras
        longest = FINER * max(int(cameras.height.max()), int(cameras.width.max()))
        panel._max_res.value = int(np.clip(longest, panel._max_res.min, 1024))
        if viewer.trainer is None:
            viewer.pause_train.visible = viewer.resume_train.visible = False

    def _welcome(self, client: ClientHandle) -> None:
        """Set the initial camera and the render sizes of a new client."""
        assert self._viewer is not None
        aspect = client.camera.aspect or 1.0
        first = first_viewpoint(self._pipeline.datamanager.train_dataset.cameras, aspect)
        with client.atomic():
            client.camera.fov = first.fov
            client.camera.up_direction = first.up
            client.camera.position = first.position * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.look_at = first.look_at * VISER_NERFSTUDIO_SCALE_RATIO
        machine = self._viewer.render_statemachines[client.client_id]
        machine._calculate_image_res = lambda aspect_ratio: self._size(machine, aspect_ratio)
        self._viewer.update_step(self._viewer.step)

    def _reshape(self) -> None:
        """Place the box or sphere that the panel selects, or remove it."""
        assert self._panel is not None
        assert self._viewer is not None
        kind: dict[str, Literal["box", "sphere"]] = {BOX: "box", SPHERE: "sphere"}
        first = first_viewpoint(self._pipeline.datamanager.train_dataset.cameras, 1.0)
        reach = float(np.linalg.norm(first.look_at - first.position))
        self._shape.show(
            self._viewer.viser_server,
            kind.get(self._panel.limit),
            first.look_at,
            self._panel.half * reach,
            self._shape_moved,
        )
        self.rerender()

    def _shape_moved(self) -> None:
        assert self._panel is not None
        self._panel.refresh()
        self.rerender()

    def _limit(self) -> MaskShape | None:
        """The shape outside which colours are darkened; None for no shape."""
        return self._shape.placed() if self._panel is not None and self._panel.overlay else None

    def _size(self, machine: RenderStateMachine, aspect: float) -> tuple[int, int]:
        """Height and width of the next picture of a client's renderer."""
        assert self._viewer is not None
        sharp = machine.state == "high"
        if not sharp:
            time.sleep(self.budget.wait())
        return self.budget.size(aspect, sharp, self._viewer.control_panel.max_res)

    def _is_training(self) -> bool:
        trainer = None if self._viewer is None else self._viewer.trainer
        return trainer is not None and trainer.training_state == "training"

    def _selected(self) -> set[str]:
        """Names of the outputs that the viewer will use."""
        assert self._viewer is not None
        panel = self._viewer.control_panel
        return {panel.output_render, *([panel.split_output_render] if panel.split else [])}

    def _rendered(self, rays: int, seconds: float) -> None:
        """Record the time of a picture; called after each."""
        self._refreshing = False
        self.budget.record(rays, seconds)
        self._clear_the_view()

    def _clear_the_view(self) -> None:
        """Hide the training cameras once drawn, because the initial view is behind the photo of one of them."""
        viewer = self._viewer
        # nerfstudio sets this last when it draws them.
        if self._cleared or viewer is None or not hasattr(viewer, "train_util"):
            return
        self._cleared = True
        viewer.set_camera_visibility(False)
        viewer.toggle_cameravis_button()

    def after_step(self, step: int) -> None:
        """Show the number of the step, and render the field again if there is time; called by the trainer."""
        viewer = self._viewer
        if viewer is None:
            return
        viewer.step = step
        if not viewer.render_statemachines:
            return
        now = time.monotonic()
        if now - self._told_step >= STEP_EVERY:
            self._told_step = now
            viewer.update_step(step)
        if not self._refreshing and self.budget.may_refresh():
            self._refreshing = True
            self._act("step")

    def rerender(self) -> None:
        """Render again for all clients, because something has changed; can be called from any thread."""
        if self._viewer is not None and self._viewer.ready:
            self._viewer.update_step(self._viewer.step)
            self._act("rerender")

    def _act(self, action: Any) -> None:
        assert self._viewer is not None
        for number, client in self._viewer.viser_server.get_clients().items():
            machine = self._viewer.render_statemachines.get(number)
            if machine is not None:
                machine.action(RenderAction(action, self._viewer.get_camera_state(client)))

    def _keep(self, amount: float) -> str:
        """Save the field at an amount of style; returns a message with its folder."""
        viewer = self._viewer
        assert viewer is not None
        with viewer.train_lock or contextlib.nullcontext():
            original = self._field.original()
            if original is None or self._run_dir is None:
                raise UserError("There is no restyled field to save yet.")
            path = keep_amount(self._run_dir, original, self._pipeline.model, amount, viewer.step)
        return f"Saved in {path.parent.name}/{path.name} of the run folder; ns-render can read the config.yml there."
