"""Render views and rays of a field, without gradients for restyling and with gradients for the losses of a round.

A style loss needs whole images, but the activations of a whole image do not fit in memory. The image is therefore
rendered in two passes: samples are placed once; the forward pass renders all chunks of rays without gradients; and the
backward pass, which receives the image's gradient, renders each chunk again and propagates its part. The gradient is
exact, including the jitter of the samples, and only one chunk's activations exist at a time. This includes those that
tiny-cuda-nn keeps outside autograd's saved tensors, which activation checkpointing would not free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor, nn

from eschernet_prior.base.field import z_depth

OPAQUE = 0.5
"""Least accumulated opacity of a pixel with a surface."""


@dataclass(frozen=True)
class RenderedView:
    """One rendered view."""

    colour: Float[Tensor, "3 height width"]
    """RGB in [0, 1]."""
    depth: Float[Tensor, "1 height width"]
    """Depth along the optical axis in scene units; 0 without a surface."""


@torch.no_grad()
def render_view(model: NerfactoModel, camera: Cameras) -> RenderedView:
    """Render colour and depth of a camera as in evaluation, without jitter and with the average appearance.

    Args:
        model: The field; its training mode is restored.
        camera: One camera, of shape (1,).

    Returns:
        The view on the CPU.
    """
    mode = model.training
    model.eval()
    try:
        rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
        outputs = model.get_outputs_for_camera_ray_bundle(rays)
    finally:
        model.train(mode)
    depth = z_depth(outputs["depth"], rays.directions, camera)
    depth = torch.where(outputs["accumulation"] >= OPAQUE, depth, torch.zeros_like(depth))
    return RenderedView(outputs["rgb"].permute(2, 0, 1).clamp(0, 1).cpu(), depth.permute(2, 0, 1).cpu())


def render_for_training(
    model: NerfactoModel, camera: Cameras, rays_per_chunk: int, window: tuple[int, int, int, int] | None = None
) -> RenderedView:
    """Render one camera's colour and depth with gradients to the field, holding the activations of one chunk at a time.

    A view of a single chunk is rendered once. Samples are placed under `no_grad`, because the proposal networks are
    trained on ordinary ray batches. The appearance is the average one, so that the style is stored in the field instead
    of one view's embedding. The depth is the expected depth, which has a gradient and is defined at every pixel.

    Args:
        model: The field, in training mode.
        camera: One camera, of shape (1,).
        rays_per_chunk: Number of rays whose activations are in memory at the same time.
        window: (top, left, height, width) in pixels of the part to render; None: the whole view.

    Returns:
        The view on the model's device, differentiable with respect to the field's parameters.
    """
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    if window is not None:
        top, left, height, width = window
        rays = rays[top : top + height, left : left + width]
    height, width = rays.shape
    flat = rays.flatten()
    chunks = [_placed(model, flat[start : start + rays_per_chunk]) for start in range(0, len(flat), rays_per_chunk)]
    *earlier, last = [_Chunk(model, *placed) for placed in chunks]
    # One chunk's activations are in memory in any case: the last chunk keeps its own and is not rendered twice.
    parameters = [parameter for parameter in model.field.parameters() if parameter.requires_grad]
    parts = [_TwoPasses.apply(earlier, *parameters)] if earlier else []
    colour, distance = torch.cat([*parts, last()]).reshape(height, width, 4).split([3, 1], dim=-1)
    depth = z_depth(distance, rays.directions, camera)
    return RenderedView(colour.permute(2, 0, 1), depth.permute(2, 0, 1))


def outputs_as_rendered(model: NerfactoModel, rays: RayBundle) -> dict[str, Any]:
    """Evaluate a field in training for rays of rendered views: average appearance, poses without corrections.

    Restyled views were rendered in this way: their colours belong to these rays and not to a photo's embedding.

    Args:
        model: The field, in training mode.
        rays: a flat bundle, (rays,).

    Returns:
        The model's outputs, including those needed by its losses, with gradients for the proposal networks.
    """
    bundle = model.collider(rays) if model.collider is not None else rays
    with _average_appearance(model), mock.patch.object(model.camera_optimizer, "apply_to_raybundle"):
        return model.get_outputs(bundle)


@torch.no_grad()
def _placed(model: NerfactoModel, rays: RayBundle) -> tuple[RayBundle, Float[Tensor, "rays edges"]]:
    """Place the samples of a chunk; returns its rays and the distances of the samples' edges."""
    # A new bundle, because the collider modifies its argument.
    bundle = model.collider(rays[:]) if model.collider is not None else rays
    with _proposal_counter_kept(model):
        samples, _, _ = model.proposal_sampler(bundle, density_fns=model.density_fns)
    frustums = samples.frustums
    return bundle, torch.cat([frustums.starts[..., 0], frustums.ends[..., -1:, 0]], dim=-1)


@dataclass(frozen=True)
class _Chunk:
    """Rays with placed samples, which can be rendered repeatedly with the same result."""

    model: NerfactoModel
    rays: RayBundle
    edges: Float[Tensor, "rays edges"]

    def __call__(self) -> Float[Tensor, "rays 4"]:
        """Render colour, and expected depth along the ray."""
        model, edges = self.model, self.edges[..., None]
        samples = self.rays.get_ray_samples(bin_starts=edges[..., :-1, :], bin_ends=edges[..., 1:, :])
        with _average_appearance(model):
            outputs = model.field.forward(samples)
        weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
        colour = model.renderer_rgb(rgb=outputs[FieldHeadNames.RGB], weights=weights)
        return torch.cat([colour, model.renderer_expected_depth(weights=weights, ray_samples=samples)], dim=-1)


class _TwoPasses(torch.autograd.Function):
    """Renders chunks without gradients; the backward pass renders each again to propagate its gradient."""

    @staticmethod
    def forward(ctx: Any, chunks: Sequence[Callable[[], Tensor]], *parameters: nn.Parameter) -> Tensor:
        ctx.chunks, ctx.parameters = chunks, parameters
        return torch.cat([chunk() for chunk in chunks])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        totals: list[Tensor | None] = [None] * len(ctx.parameters)
        start = 0
        for chunk in ctx.chunks:
            with torch.enable_grad():
                rendered = chunk()
            share = grad_output[start : start + len(rendered)]
            start += len(rendered)
            found = torch.autograd.grad(rendered, ctx.parameters, share, allow_unused=True)
            del rendered
            totals = [new if old is None else old if new is None else old.add_(new) for old, new in zip(totals, found)]
        return None, *totals


@contextmanager
def _average_appearance(model: NerfactoModel) -> Iterator[None]:
    mode = model.field.training
    model.field.eval()
    try:
        yield
    finally:
        model.field.train(mode)


@contextmanager
def _proposal_counter_kept(model: NerfactoModel) -> Iterator[None]:
    # The sampler's forward pass counts an update of the proposal networks, but rendering does not update them.
    sampler = model.proposal_sampler
    kept = sampler._steps_since_update
    try:
        yield
    finally:
        sampler._steps_since_update = kept
