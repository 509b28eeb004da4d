"""A picture that shows the style: a view that all others attend to, or an IP-Adapter's picture."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.restyler.compute.lockstep import LockstepAttention
from style_nerf2nerf.restyler.inputs import cover
from style_nerf2nerf.restyler.models import hub
from style_nerf2nerf.restyler.models.hub import IP_ADAPTER
from style_nerf2nerf.restyler.restyler import Restyler
from style_nerf2nerf.restyler.resume import ResumeState
from view_models import stand_in_pipeline

QUICK = {"num_inference_steps": 3, "strength": 0.8, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    return images, 1 + torch.rand(2, 1, 32, 32, generator=generator)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(6)
    return torch.rand(2, 3, 48, 40, generator=generator)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, restyler):
    """A random IP-Adapter for the stand-in models, in the hub's layout."""
    folder, (weights, encoder) = tmp_path_factory.mktemp("adapter"), IP_ADAPTER.weights
    unet, generator = restyler.pipeline.unet, torch.Generator().manual_seed(7)
    words, width = unet.config.cross_attention_dim, 8
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained((folder / encoder).parent)
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * words, width, generator=generator),
        "image_proj.proj.bias": torch.zeros(4 * words),
        "image_proj.norm.weight": torch.ones(words),
        "image_proj.norm.bias": torch.zeros(words),
    }
    crossings = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    for index, module in enumerate(crossings):
        for part in ("to_k_ip", "to_v_ip"):
            shape = module.inner_dim, words
            tensors[f"ip_adapter.{2 * index + 1}.{part}.weight"] = torch.randn(shape, generator=generator)
    (folder / weights).parent.mkdir()
    save_file(tensors, folder / weights)
    return folder


def test_all_views_take_after_the_reference_and_it_is_not_given_back(restyler, scene, pictures):
    plain = restyler.restyle(*scene, "gold", **QUICK)
    results = [restyler.restyle(*scene, "gold", reference=one, **QUICK) for one in pictures]
    results.append(restyler.restyle(*scene, "gold", reference=pictures[0], adain=False, **QUICK))
    results.append(restyler.restyle(*scene, reference=pictures[0], **QUICK))
    assert all(result.shape == plain.shape for result in results)
    for index, result in enumerate(results):
        for other in [plain, *results[:index]]:
            assert ((result - other).abs().amax((1, 2, 3)) > 1e-4).all()


def test_the_reference_sees_itself_only(restyler, scene, pictures, monkeypatch):
    """Whatever the views are, the reference's part of every shared attention is the same."""
    real, told = LockstepAttention.__call__, []

    def listening(self, attn, hidden_states, *args, **kwargs):
        result = real(self, attn, hidden_states, *args, **kwargs)
        told[-1].append(result[-1])
        return result

    monkeypatch.setattr(LockstepAttention, "__call__", listening)
    images, depths = scene
    for some in (images, 1 - images):
        told.append([])
        restyler.restyle(some, depths, "gold", reference=pictures[0], **QUICK)
    assert len(told[0]) > 10
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_references_latents_are_its_own_at_every_step(restyler, scene, pictures, monkeypatch):
    kept = []
    monkeypatch.setattr(ResumeState, "keep_latents", lambda self, step, latents: kept.append(latents[-1].clone()))
    for prompt in ("gold", "clay"):
        restyler.restyle(*scene, prompt, reference=pictures[0], **QUICK)
    assert len(kept) == 4
    for one, other in zip(kept[:2], kept[2:]):
        assert torch.equal(one, other)
    vae, scheduler = restyler.pipeline.vae, restyler.pipeline.scheduler
    posterior = vae.encode(2 * cover(pictures[0], (32, 32))[None] - 1).latent_dist
    away = (kept[-1] / vae.config.scaling_factor - posterior.mean[0]) / posterior.std[0]
    assert away.abs().max() < 5, "after the last step the reference is what its encoder said, noise and all"
    assert len(scheduler.timesteps) == QUICK["num_inference_steps"]


def test_options_of_sharing_reach_the_result(restyler, scene):
    plain = restyler.restyle(*scene, "gold", **QUICK)
    alone = restyler.restyle(*scene, "gold", share_attention=False, **QUICK)
    for change in ({"share_strength": 0.5}, {"shared_layers": ("up_blocks",)}):
        assert not torch.allclose(restyler.restyle(*scene, "gold", **QUICK, **change), plain, atol=1e-4), change
    none = restyler.restyle(*scene, "gold", share_strength=0.0, **QUICK)
    torch.testing.assert_close(none, alone, atol=1e-4, rtol=0)
    everywhere = restyler.restyle(*scene, "gold", shared_layers=("up_blocks", "down_blocks"), **QUICK)
    torch.testing.assert_close(everywhere, plain, atol=1e-6, rtol=0)


def test_the_ip_adapter_reads_the_picture_and_leaves_nothing_behind(restyler, scene, pictures, adapter):
    pipeline = restyler.pipeline
    before = dict(pipeline.unet.attn_processors)
    told = {"prompt": "gold", "reference_attention": False, "ip_adapter": str(adapter), **QUICK}
    results = [restyler.restyle(*scene, **told, reference=one) for one in pictures]
    assert ((results[0] - results[1]).abs().amax((1, 2, 3)) > 1e-3).all()
    silent = restyler.restyle(*scene, **told, reference=pictures[0], ip_adapter_scale=0.0)
    torch.testing.assert_close(silent, restyler.restyle(*scene, "gold", **QUICK), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        restyler.restyle(*scene, **told, reference=pictures[0], max_views_per_batch=2), results[0], atol=1e-4, rtol=0
    )
    both = restyler.restyle(*scene, **told | {"reference_attention": True, "prompt": ""}, reference=pictures[0])
    assert not torch.allclose(both, results[0], atol=1e-3)
    after = pipeline.unet.attn_processors
    assert all(after[name] is before[name] for name in before)
    assert pipeline.image_encoder is None
    assert pipeline.feature_extractor is None
    assert pipeline.unet.encoder_hid_proj is None


def test_an_ip_adapter_that_is_not_there_or_does_not_fit_is_told_in_a_sentence(
    restyler, scene, pictures, adapter, tmp_path, monkeypatch
):
    told = {"prompt": "gold", "reference": pictures[0], **QUICK}
    with pytest.raises(UserError, match="There is no IP-Adapter in"):
        restyler.restyle(*scene, **told, ip_adapter=str(tmp_path))
    (weights, encoder) = IP_ADAPTER.weights
    for name in (weights, encoder):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"not what it should be")
    with pytest.raises(UserError, match="does not fit"):
        restyler.restyle(*scene, **told, ip_adapter=str(tmp_path))
    torch.testing.assert_close(restyler.restyle(*scene, "gold", **QUICK), restyler.restyle(*scene, "gold", **QUICK))
    asked = []

    def nothing(repository, **told):
        asked.append((repository, told))
        raise FileNotFoundError if told["local_files_only"] else OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    with pytest.raises(UserError, match="connect to the network once, or use a folder"):
        hub.ensure_ip_adapter("sdxl")
    assert len(asked[0][1]["revision"]) == 40
    assert set(IP_ADAPTER.weights) <= set(asked[0][1]["allow_patterns"])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"share_attention": False}, "needs shared attention"),
        ({"reference_attention": False}, "is not used"),
        ({"reference": None, "prompt": ""}, "prompt is empty"),
        ({"reference": None, "ip_adapter": "sdxl"}, "give one"),
        ({"ip_adapter_scale": -1.0}, "IP-Adapter's scale"),
        ({"share_strength": 1.5}, "strength of sharing"),
        ({"shared_layers": ("cellar",)}, "“cellar”"),
        ({"warped_noise": True}, "needs the views. cameras"),
        ({"warped_noise": True, "same_noise": True}, "choose one"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_work(restyler, scene, pictures, wrong, word):
    told = {"prompt": "gold", "reference": pictures[0], **QUICK} | wrong
    with pytest.raises(UserError, match=word):
        restyler.restyle(*scene, **told, on_step=lambda *at: pytest.fail("must not start"))


def test_a_reference_of_another_shape_is_cropped_to_its_middle():
    picture = torch.zeros(3, 10, 40)
    picture[:, :, 15:25] = 1
    assert torch.equal(cover(picture, (10, 10)), torch.ones(3, 10, 10))
    assert cover(picture, (64, 32)).shape == (3, 64, 32)
    with pytest.raises(ValueError, match="reference"):
        Restyler(stand_in_pipeline(), "test").restyle(
            torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), "gold", reference=torch.rand(1, 3, 8, 8)
        )
