"""Local edits: masks on disk, in the latents, in the finished picture."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eschernet_prior.base.errors import UserError
from properties import examples
from style_nerf2nerf.masks import REACH, latent_masks, lay_into_original, read_mask_files
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.compute.distributed import ProcessGroup
from style_nerf2nerf.restyler.denoising import Denoising
from style_nerf2nerf.restyler.inputs import Inputs
from style_nerf2nerf.restyler.resume import ResumeState
from style_nerf2nerf.restyler.settings import Settings

QUICK = {"num_inference_steps": 4, "strength": 0.8, "guidance_scale": 2.0}
SIDE, CELL = 64, 4


@pytest.fixture(scope="module")
def scene():
    """Three views, a square of the first and the second may change, of the third nothing."""
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(3, 3, SIDE, SIDE, generator=generator)
    depths = 1 + torch.rand(3, 1, SIDE, SIDE, generator=generator)
    masks = torch.zeros(3, 1, SIDE, SIDE)
    masks[:2, :, 18:30, 22:40] = 1
    return images, depths, masks


def widened(masks, cells):
    reach = cells * CELL
    return F.max_pool2d(masks, 2 * reach + 1, 1, reach) > 0


def test_outside_a_mask_a_view_stays_what_it_was(restyler, scene):
    """The difference is no larger than the autoencoder's own; on these models it is nothing at all."""
    images, depths, masks = scene
    restyled = restyler.restyle(images, depths, "gold", masks=masks, height=SIDE, width=SIDE, **QUICK)
    vae = restyler.pipeline.vae
    with torch.no_grad():
        back = vae.decode(vae.encode(2 * images - 1).latent_dist.mean).sample / 2 + 0.5
    outside = ~widened(masks, REACH).expand_as(images)
    assert outside.float().mean() > 0.3
    assert ((restyled - images).abs() <= (back.clamp(0, 1) - images).abs())[outside].all()
    assert torch.equal(restyled[2], images[2])
    assert (restyled - images).abs()[masks.expand_as(images) > 0].mean() > 0.02


def test_at_every_step_the_latents_outside_are_the_noisy_original(restyler, scene, monkeypatch):
    images, depths, masks = scene
    kept = []
    monkeypatch.setattr(ResumeState, "keep_latents", lambda self, step, latents: kept.append(latents.clone()))
    told = Settings("gold", seed=3, **QUICK)
    inputs = Inputs(images, depths, masks)
    cpu = torch.device("cpu")
    coder = ViewCoder(restyler.pipeline.vae, cpu)
    denoising = Denoising(
        restyler.pipeline, told, inputs, (SIDE, SIDE), cpu, ProcessGroup(), ResumeState(None, ""), coder
    )
    start = denoising._start()
    restyler.restyle(images, depths, "gold", seed=3, masks=masks, height=SIDE, width=SIDE, **QUICK)
    scheduler = restyler.pipeline.scheduler
    scheduler.set_timesteps(told.num_inference_steps)
    assert len(kept) == told.steps_to_run
    outside = ~(latent_masks(masks, SIDE // CELL, SIDE // CELL) > 0).expand_as(start.clean)
    for latents, timestep in zip(kept, [*scheduler.timesteps[-told.steps_to_run + 1 :], None]):
        signal = 1.0 if timestep is None else scheduler.alphas_cumprod[timestep]
        expected = signal**0.5 * start.clean + (1 - signal) ** 0.5 * start.noise
        torch.testing.assert_close(latents[outside], expected[outside], atol=1e-5, rtol=1e-5)
        assert (latents - expected)[~outside].abs().max() > 1e-2


def test_goes_on_after_a_step(restyler, scene, tmp_path):
    class StopHereError(RuntimeError):
        pass

    def stop(done, total):
        if done == 2:
            raise StopHereError

    images, depths, masks = scene
    told = {"masks": masks, "prompt": "gold", **QUICK}
    with pytest.raises(StopHereError):
        restyler.restyle(images, depths, **told, resume_dir=tmp_path, on_step=stop)
    again = restyler.restyle(images, depths, **told, resume_dir=tmp_path)
    assert torch.equal(again, restyler.restyle(images, depths, **told))
    seen, told["masks"] = [], 1 - masks
    restyler.restyle(images, depths, **told, resume_dir=tmp_path, on_step=lambda *at: seen.append(at))
    assert len(seen) == 3, "other masks are another restyling"


def test_a_mask_of_everything_is_no_mask(restyler, scene):
    images, depths, masks = scene
    free = restyler.restyle(images, depths, "gold", **QUICK)
    torch.testing.assert_close(
        restyler.restyle(images, depths, "gold", masks=torch.ones_like(masks), **QUICK), free, atol=1e-6, rtol=0
    )


@examples(40)
@given(
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    height=st.integers(1, 20),
    cell=st.sampled_from([1.0, 2.5, 4.0, 8.0]),
)
def test_the_ramp_is_restyled_on_the_mask_and_original_a_reach_off(top, left, height, cell):
    mask = torch.zeros(1, 48, 48)
    mask[:, top : top + height, left : left + 5] = 1
    restyled, original = torch.ones(3, 48, 48), torch.zeros(3, 48, 48)
    share = lay_into_original(restyled, original, mask, cell)
    assert (share[mask.expand(3, -1, -1) > 0] == 1).all()
    reach = int(REACH * cell)
    outside = F.max_pool2d(mask, 2 * reach + 1, 1, reach) == 0
    assert (share[outside.expand(3, -1, -1)] == 0).all()
    assert ((share >= 0) & (share <= 1)).all()
    if cell > 1:
        assert share.diff(dim=-1).abs().max() < 1 / cell, "no step between neighbours"


def test_a_cell_may_change_as_much_as_any_of_its_pixels():
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, 3, 4] = 0.5
    expected = torch.zeros(1, 1, 2, 2)
    expected[0, 0, 0, 1] = 0.5
    assert torch.equal(latent_masks(masks, 2, 2), expected)


def save(path, array):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def test_masks_are_read_at_any_size(tmp_path):
    half = np.zeros((20, 40))
    half[:, 20:] = 250
    half[0, 0] = 9
    save(tmp_path / "b.jpg", np.full((8, 8, 3), 255))
    save(tmp_path / "a.png", half)
    masks = read_mask_files([tmp_path / "a.png", tmp_path / "b.jpg"], (10, 20))
    assert masks.shape == (2, 1, 10, 20)
    assert torch.equal(masks[1], torch.ones(1, 10, 20))
    assert torch.equal(masks[0, 0, :, :10], torch.zeros(10, 10)), "almost black is black"
    assert torch.equal(masks[0, 0, :, 10:], torch.ones(10, 10)), "almost white is white"


def test_the_masks_of_a_real_capture(shared):
    folder = shared / "data" / "bear" / "masks"
    masks = read_mask_files(sorted(folder.iterdir())[:2], (128, 128))
    assert masks.shape == (2, 1, 128, 128)
    assert 0.1 < masks.mean() < 0.5
    assert ((masks == 0) | (masks == 1)).float().mean() > 0.9


def test_what_is_wrong_with_masks_is_told_in_a_sentence(restyler, scene, tmp_path):
    images, depths, masks = scene
    save(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(UserError, match="all black"):
        read_mask_files([tmp_path / "a.png"], (4, 4))
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(UserError, match="cannot be read"):
        read_mask_files([tmp_path / "b.png"], (4, 4))
    for wrong, word in ((masks * 0, "All masks are black"), (masks * 2, "between 0")):
        with pytest.raises(UserError, match=word):
            restyler.restyle(images, depths, "gold", masks=wrong, **QUICK)
    with pytest.raises(ValueError, match="masks"):
        restyler.restyle(images, depths, "gold", masks=masks[:1], **QUICK)
