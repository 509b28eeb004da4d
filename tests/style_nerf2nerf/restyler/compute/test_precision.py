"""The restyler in half precision, the only one a GPU uses for SDXL: small models through every option."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.restyler import Restyler
from view_models import stand_in_pipeline

VIEWS = 3
QUICK = {"num_inference_steps": 4, "strength": 0.8, "guidance_scale": 2.0}
HALVES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.12}
"""Largest mean difference of pictures from those in float32, in [0, 1]."""


class StopHereError(RuntimeError):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stand_in")
    pipeline = stand_in_pipeline()
    # LCM's scheduler draws new noise at every step, and torch draws other numbers in half precision.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def restylers(folder) -> dict[torch.dtype, Restyler]:
    return {dtype: Restyler.from_pretrained(folder, dtype=dtype) for dtype in (torch.float32, *HALVES)}


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(VIEWS, 3, 32, 32, generator=generator)
    depths = 1 + torch.rand(VIEWS, 1, 32, 32, generator=generator)
    poses = torch.eye(4)[:3].repeat(VIEWS, 1, 1)
    poses[:, 0, 3] = torch.arange(VIEWS) * 0.1
    return images, depths, poses, torch.rand(3, 40, 40, generator=generator)


def options(scene) -> dict[str, dict]:
    _, _, poses, reference = scene
    masks = torch.zeros(VIEWS, 1, 32, 32)
    masks[:, :, :16] = 1
    cameras = ViewCameras.from_fov(poses, 50.0, 32, 32)
    return {
        "plain": {},
        "each view for itself": {"share_attention": False},
        "weak sharing in some layers": {"share_strength": 0.4, "shared_layers": ("up_blocks",)},
        "one noise": {"same_noise": True},
        "warped noise": {"warped_noise": True, "cameras": cameras},
        "a reference": {"reference": reference},
        "a reference without AdaIN": {"reference": reference, "adain": False},
        "masks": {"masks": masks},
        "one view at a time, offloaded": {"max_views_per_batch": 1, "offload_activations": True},
        "no guidance": {"guidance_scale": 1.0},
        "words against it": {"negative_prompt": "snow", "control_scale": 0.4},
        "torch's plain attention, channels innermost": {"attention_kernel": "math", "channels_last": True},
        "another size": {"height": 48, "width": 32},
    }


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_option_works_and_stays_near_float32(restylers, scene, dtype):
    for name, chosen in options(scene).items():
        made = {
            each: restylers[each].restyle(*scene[:2], "gold", **(QUICK | chosen)) for each in (dtype, torch.float32)
        }
        assert made[dtype].isfinite().all(), name
        assert made[dtype].dtype == torch.float32
        apart = float((made[dtype] - made[torch.float32]).abs().mean())
        assert 0 < apart < TOLERANCE[dtype], f"{name}: {apart}"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_stopped_run_ends_like_an_unbroken_one(restylers, scene, tmp_path, dtype):
    restyler = restylers[dtype]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopHereError

    unbroken = restyler.restyle(*scene[:2], "gold", **QUICK)
    with pytest.raises(StopHereError):
        restyler.restyle(*scene[:2], "gold", **QUICK, resume_dir=tmp_path, on_step=stop)
    assert torch.equal(restyler.restyle(*scene[:2], "gold", **QUICK, resume_dir=tmp_path), unbroken)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sdxls_own_scheduler_in_half_precision(folder, scene, dtype):
    made = []
    for each in (dtype, torch.float32):
        restyler = Restyler.from_pretrained(folder, dtype=each)
        restyler.pipeline.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)
        made.append(restyler.restyle(*scene[:2], "gold", **QUICK))
    assert float((made[0] - made[1]).abs().mean()) < TOLERANCE[dtype]


def test_the_draw_of_the_latents_is_the_same_in_every_precision(restylers, scene):
    """Drawn in half precision, noise is another one, not the same rounded."""
    latents = [
        ViewCoder(restylers[dtype].pipeline.vae, torch.device("cpu")).encode(
            scene[0][0], torch.Generator().manual_seed(1), dtype
        )
        for dtype in (torch.float32, *HALVES)
    ]
    for latent, dtype in zip(latents[1:], HALVES):
        assert latent.dtype == dtype
        assert (latent.float() - latents[0]).abs().mean() < 0.03 * latents[0].abs().mean()


def test_kernels_and_layouts_change_only_the_rounding(restylers, scene):
    restyler = restylers[torch.float32]
    plain = restyler.restyle(*scene[:2], "gold", **QUICK)
    for kernel in ("flash", "math"):
        again = restyler.restyle(*scene[:2], "gold", **QUICK, attention_kernel=kernel, channels_last=True)
        torch.testing.assert_close(again, plain, atol=1e-3, rtol=0)
    assert torch.equal(restyler.restyle(*scene[:2], "gold", **QUICK), plain), "nothing stays"
    with pytest.raises(UserError, match="cudnn"):
        restyler.restyle(*scene[:2], "gold", **QUICK, attention_kernel="cudnn")
