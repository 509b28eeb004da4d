"""Whole views of a field: rendered for diffusion without gradients, and for the style loss in checkpointed chunks.

A style loss looks at whole images, but a whole image through a field with gradients does not fit in memory. So the
rays go through in chunks, each under activation checkpointing: the image is complete, its gradient is exact, and only
one chunk's activations exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eschernet_prior.base.field import z_depth

OPAQUE = 0.5
"""Accumulated opacity from which on a pixel counts as surface."""


@dataclass(frozen=True)
class View:
    """One rendered view."""

    colour: Float[Tensor, "3 height width"]
    """RGB in [0, 1]."""
    depth: Float[Tensor, "1 height width"]
    """Depth along the optical axis in scene units; 0 where nothing is."""


@torch.no_grad()
def render_view(model: NerfactoModel, camera: Cameras) -> View:
    """Render one camera's colour and depth as evaluation does: no jitter, average appearance.

    Args:
        model: the field, in any mode; its mode is kept.
        camera: one camera, of shape (1,).

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
    return View(outputs["rgb"].permute(2, 0, 1).clamp(0, 1).cpu(), depth.permute(2, 0, 1).cpu())


def render_for_training(
    model: NerfactoModel, camera: Cameras, rays_per_chunk: int, window: tuple[int, int, int, int] | None = None
) -> View:
    """Render one camera's colour and depth with gradients to the field, holding the activations of one chunk at a time.

    Samples are placed under `no_grad`: the proposal networks learn from ordinary ray batches. The appearance is the
    average one, so that a style goes into the field and not into one view's embedding. The depth is the expected one,
    which has a gradient; there is one at every pixel.

    Args:
        model: the field, in training mode.
        camera: one camera, of shape (1,).
        rays_per_chunk: how many rays have activations at the same time.
        window: (top, left, height, width) in pixels of the part to render; None: all of it.

    Returns:
        The view on the model's device, differentiable with respect to the field's parameters.
    """
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    if window is not None:
        top, left, height, width = window
        rays = rays[top : top + height, left : left + width]
    height, width = rays.shape
    flat = rays.flatten()
    chunks: list[Tensor] = []
    for start in range(0, height * width, rays_per_chunk):
        chunk = flat[start : start + rays_per_chunk]
        # One chunk's activations are in memory anyway: the last one keeps its own and is not rendered twice.
        last = start + rays_per_chunk >= height * width
        chunks.append(
            _render_chunk(model, chunk)
            if last
            else cast(Tensor, checkpoint(_render_chunk, model, chunk, use_reentrant=False))
        )
    colour, distance = torch.cat(chunks).reshape(height, width, 4).split([3, 1], dim=-1)
    depth = z_depth(distance, rays.directions, camera)
    return View(colour.permute(2, 0, 1), depth.permute(2, 0, 1))


def _render_chunk(model: NerfactoModel, rays: RayBundle) -> Float[Tensor, "rays 4"]:
    """Colour, and expected depth along the ray."""
    # A new bundle: the collider writes into the one it is given, and checkpointing runs this twice.
    bundle = model.collider(rays[:]) if model.collider is not None else rays
    with torch.no_grad(), _proposal_counter_kept(model):
        samples, _, _ = model.proposal_sampler(bundle, density_fns=model.density_fns)
    with _average_appearance(model):
        outputs = model.field.forward(samples)
    weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
    colour = model.renderer_rgb(rgb=outputs[FieldHeadNames.RGB], weights=weights)
    return torch.cat([colour, model.renderer_expected_depth(weights=weights, ray_samples=samples)], dim=-1)


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
    # The sampler's forward counts as an update of the proposal networks; rendering is none.
    sampler = model.proposal_sampler
    kept = sampler._steps_since_update
    try:
        yield
    finally:
        sampler._steps_since_update = kept
