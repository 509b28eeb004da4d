"""The pipeline: the original's latents and images, contracts of a call, diffusers' manners."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler
from diffusers import UNet2DConditionModel as UNet
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from escher_cases import assert_reproduced, noise
from escher_models import inputs, tiny
from eschernet_prior.base.errors import UserError
from eschernet_prior.image_encoder import ConvNeXtV2Tokens
from eschernet_prior.pipeline import EscherNetPipeline, reference_pixels

BOTH = pytest.mark.parametrize("dof", ["6dof", "4dof"])


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, dict[str, Tensor]]:
    return {dof: load_file(shared / "golden" / f"pipeline_{dof}_tiny.safetensors") for dof in ("6dof", "4dof")}


@BOTH
def test_official_layout_reproduces_the_original(golden, official, dof):
    g = golden[dof]
    pipeline = EscherNetPipeline.from_pretrained(official[dof], cape=dof)
    pipeline.set_progress_bar_config(disable=True)
    images = g["input_images_u8"].float() / 255
    source, target = (g["pose_in"][0], g["pose_out"][0]) if dof == "6dof" else (g["w2c_in"][0], g["w2c_out"][0])
    call = {"num_inference_steps": 5, "height": 64, "width": 64, "latents": g["initial_latents"]}
    seen: list[Tensor] = []

    def keep(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())

    final = pipeline(images, source, target, output_type="latent", callback_on_step_end=keep, **call).images
    assert pipeline.scheduler.timesteps.tolist() == g["timesteps"].tolist()
    assert_reproduced(torch.stack(seen), g["latents_per_step"])
    assert_reproduced(final, g["final_latents"])
    assert_reproduced(pipeline.encode_references(images), g["unet_in_encoder_hidden_states"][1:])
    unclamped = pipeline.decode_latents(g["final_latents"])
    assert_reproduced(unclamped, g["decoded_unclamped"])
    decoded = pipeline(images, source, target, output_type="np", **call).images
    assert_reproduced(torch.from_numpy(decoded), g["decoded_images"])
    without = pipeline(images, source, target, guidance_scale=1.0, output_type="latent", **call).images
    assert_reproduced(without, g["final_latents_guidance_1"])
    encoded = pipeline.vae.encode(torch.nn.functional.interpolate(images * 2 - 1, scale_factor=0.25)).latent_dist.mode()
    assert_reproduced(encoded, g["vae_encode_mode"])


def test_first_noise_prediction_reproduces_both_halves(golden, official):
    """What enters and leaves the UNet at the first step, the unconditional half before the guidance included."""
    g = golden["6dof"]
    pipeline = EscherNetPipeline.from_pretrained(official["6dof"], cape="6dof")
    seen = {}

    def keep(module, args, kwargs, output):
        seen.setdefault("in", args[0])
        seen.setdefault("out", output[0])

    pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    pipeline(
        g["input_images_u8"].float() / 255,
        g["pose_in"][0],
        g["pose_out"][0],
        num_inference_steps=5,
        height=64,
        width=64,
        latents=g["initial_latents"],
        output_type="latent",
    )
    assert_reproduced(seen["in"], g["unet_in_sample_step0"])
    assert_reproduced(seen["out"], g["unet_out_step0"])


def test_full_size_networks_have_the_official_keys(shared):
    keys = json.loads((shared / "golden" / "official_keys.json").read_text())
    with torch.device("meta"):
        unet, vae = (cls.from_config(keys["configs"][name]) for cls, name in ((UNet, "unet"), (AutoencoderKL, "vae")))
    for name, network in (("unet", unet), ("vae", vae)):
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
        assert ours == keys["state_dict_shapes"][name]
    with torch.device("meta"):
        encoder = ConvNeXtV2Tokens()
    pipeline = EscherNetPipeline(unet, vae, encoder, DDIMScheduler.from_config(keys["configs"]["ddim_at_evaluation"]))
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == keys["n_params"]["unet"]
    pipeline.scheduler.set_timesteps(50)
    assert pipeline.scheduler.timesteps.tolist() == keys["configs"]["ddim_timesteps_50"]


def latents(targets: int = 3) -> Tensor:
    return noise(targets, 4, 8, 8, seed=11)


FROZEN = {  # computed by this implementation; a clone without the original's tensors still tests its numbers
    "6dof": [0.3554, 0.4977, 0.4493, 0.0, 0.7649, 0.0, 0.0, 0.6967, 0.4203],
    "4dof": [0.4121, 0.4729, 0.3701, 0.0, 0.621, 0.0, 0.0, 0.7122, 0.4823],
}


@BOTH
def test_numbers_stay_what_they_are(dof):
    views = tiny(dof)(*inputs(), num_inference_steps=4, latents=latents(), output_type="pt").images
    assert views.shape == (3, 3, 16, 16)
    torch.testing.assert_close(views.flatten()[::263], torch.tensor(FROZEN[dof]), rtol=1e-3, atol=1e-3)


@BOTH
def test_straightforward_denoising_agrees(dof):
    """No caching, zeros attended to, poses given twice, guidance written out."""
    from eschernet_prior.attention import PosedViews

    pipeline, (images, source, target) = tiny(dof), inputs()
    tokens = pipeline.encode_references(images)
    views = PosedViews.from_poses(dof, source.expand(2, -1, -1, -1), target.expand(2, -1, -1, -1))
    pipeline.scheduler.set_timesteps(4)
    current = latents()
    with torch.no_grad():
        for timestep in pipeline.scheduler.timesteps:
            both = torch.cat((torch.zeros_like(tokens), tokens))
            out = pipeline.unet(
                torch.cat((current, current)), timestep, both, cross_attention_kwargs={"views": views}
            ).sample
            unconditional, conditional = out[:3], out[3:]
            guided = unconditional + 2.5 * (conditional - unconditional)
            current = pipeline.scheduler.step(guided, timestep, current).prev_sample
    ours = pipeline(
        images, source, target, num_inference_steps=4, guidance_scale=2.5, latents=latents(), output_type="latent"
    ).images
    torch.testing.assert_close(ours, current, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("references", "targets"), [(1, 1), (1, 5), (4, 1)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_any_number_of_views(references, targets, guidance):
    views = tiny()(*inputs(references, targets), num_inference_steps=2, guidance_scale=guidance).images
    assert len(views) == targets
    assert all(isinstance(view, Image.Image) and view.size == (16, 16) for view in views)


def test_output_types_sizes_and_seeds():
    pipeline, given = tiny(), inputs()
    made = {
        kind: pipeline(
            *given, num_inference_steps=2, generator=torch.manual_seed(4), output_type=kind, height=24, width=32
        ).images
        for kind in ("pt", "np", "pil", "latent")
    }
    assert made["pt"].shape == (3, 3, 24, 32)
    assert made["np"].shape == (3, 24, 32, 3)
    assert made["latent"].shape == (3, 4, 12, 16)
    assert made["pil"][0].size == (32, 24)
    np.testing.assert_allclose(made["np"], made["pt"].permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.asarray(made["pil"][1]) / 255, made["np"][1], atol=0.5 / 255 + 1e-6)
    (again,) = pipeline(
        *given, 2, generator=torch.manual_seed(4), output_type="pt", height=24, width=32, return_dict=False
    )
    assert torch.equal(again, made["pt"])
    other = pipeline(*given, 2, generator=torch.manual_seed(5), output_type="pt", height=24, width=32).images
    assert not torch.equal(other, made["pt"])
    seeds = [torch.Generator().manual_seed(7) for _ in range(3)]
    listed = pipeline(*given, 1, generator=seeds, output_type="latent").images
    assert listed.shape == (3, 4, 8, 8)


def test_callback_can_change_latents_stop_and_let_a_run_go_on():
    pipeline, given = tiny(), inputs()
    kept = []

    def keep(pipe, step, timestep, tensors):
        kept.append(tensors["latents"])

    whole = pipeline(*given, 4, latents=latents(), output_type="latent", callback_on_step_end=keep).images
    resumed = pipeline(*given, 4, latents=kept[1], first_step=2, output_type="latent").images
    assert torch.equal(resumed, whole)

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {"latents": tensors["latents"]}

    assert torch.equal(
        pipeline(*given, 4, latents=latents(), output_type="latent", callback_on_step_end=stop).images, kept[1]
    )

    def zero(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    zeroed = pipeline(*given, 4, latents=latents(), output_type="latent", callback_on_step_end=zero).images
    assert zeroed.abs().max() == 0


def test_attention_in_pieces_gives_the_same_views():
    pipeline, given = tiny(), inputs()
    whole = pipeline(*given, 2, latents=latents(), output_type="latent").images
    pipeline.enable_attention_slicing(50)
    pieces = pipeline(*given, 2, latents=latents(), output_type="latent").images
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
    assert pipeline._query_chunk == 50
    pipeline.disable_attention_slicing()
    assert pipeline._query_chunk is None


def test_another_scheduler_runs():
    pipeline, given = tiny(), inputs()
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    assert torch.isfinite(pipeline(*given, 4, output_type="pt").images).all()
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    twice = [pipeline(*given, 3, generator=torch.manual_seed(1), output_type="latent").images for _ in range(2)]
    assert torch.equal(*twice)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(tmp_path, dtype):
    pipeline, given = tiny(), inputs()
    exact = pipeline(*given, 3, latents=latents(), output_type="pt").images
    pipeline.save_pretrained(tmp_path)
    half = EscherNetPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert (half.unet.dtype, half.vae.dtype, half.image_encoder.dtype) == (dtype, dtype, torch.float32)
    views = half(*given, 3, latents=latents(), output_type="pt").images
    assert views.dtype == torch.float32
    assert (views - exact).abs().mean() < 0.02
    assert torch.isfinite(half.to(dtype)(*given, 3, latents=latents(), output_type="pt").images).all()


def test_references_of_any_kind_become_the_same_pixels():
    colours = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    opaque = np.concatenate((colours, np.full((40, 48, 1), 255, np.uint8)), axis=-1)
    pixels = reference_pixels([Image.fromarray(colours), Image.fromarray(opaque)], 24)
    assert pixels.shape == (2, 3, 24, 24)
    assert torch.equal(pixels[0], pixels[1])
    tensor = torch.from_numpy(colours).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(reference_pixels(tensor, 24), pixels[:1], rtol=0, atol=1.01 / 255)  # PIL rounds twice
    transparent = opaque.copy()
    transparent[..., 3] = 0
    assert reference_pixels([Image.fromarray(transparent)], 24).min() == 1.0
    same = torch.rand(1, 3, 24, 24)
    assert torch.equal(reference_pixels(same, 24), same)


def test_contracts_of_a_call_are_checked():
    pipeline, (images, source, target) = tiny(), inputs()
    with pytest.raises(ValueError, match="2 reference images do not match 3 poses"):
        pipeline(images, target, target)
    with pytest.raises(ValueError, match="source poses must be"):
        pipeline(images, source[:, :3], target)
    with pytest.raises(ValueError, match="target poses must be"):
        pipeline(images, source, target * torch.nan)
    with pytest.raises(ValueError, match="multiples of 2"):
        pipeline(images, source, target, height=15)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        pipeline(images * 255, source, target)
    with pytest.raises(ValueError, match="where \\(3, 4, 8, 8\\) are needed"):
        pipeline(images, source, target, latents=latents(2))
    with pytest.raises(ValueError, match="output_type"):
        pipeline(images, source, target, output_type="jpeg")
    with pytest.raises(ValueError, match="Resuming with first_step"):
        pipeline(images, source, target, first_step=1)
    with pytest.raises(ValueError, match="Callbacks support"):
        pipeline(images, source, target, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with pytest.raises(UserError, match="Unknown camera positional encoding '5dof'"):
        tiny("5dof")
    pipeline.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="processors were replaced"):
        pipeline(images, source, target)
