"""Encoding and decoding view by view: like the pipeline's own, and in tiles where memory runs out."""

import pytest
import torch

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.embedded.models import STAND_IN, build_vae
from style_nerf2nerf.restyler.autoencoder import ViewCoder
from style_nerf2nerf.restyler.restyler import Restyler
from view_models import stand_in_pipeline


@pytest.fixture
def coder() -> ViewCoder:
    torch.manual_seed(0)
    return ViewCoder(build_vae(STAND_IN).eval(), torch.device("cpu"))


def view(side: int) -> torch.Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(3))


def short_of_memory(monkeypatch, vae, cells: int) -> list[int]:
    """Lets both halves of the autoencoder fail above a number of latent cells a side; returns what was tried."""
    tried = []
    for module, scale in ((vae.encoder, 4), (vae.decoder, 1)):

        def greedy(sample, *args, real=module.forward, scale=scale):
            tried.append(max(sample.shape[-2:]) // scale)
            if tried[-1] > cells:
                raise torch.OutOfMemoryError("no room")
            return real(sample, *args)

        monkeypatch.setattr(module, "forward", greedy)
    return tried


def test_encodes_as_diffusers_does(coder):
    picture = view(32)
    drawn = coder.vae.encode(2 * picture[None] - 1).latent_dist.sample(torch.Generator().manual_seed(7))
    expected = drawn[0] * coder.vae.config["scaling_factor"]
    torch.testing.assert_close(coder.encode(picture, torch.Generator().manual_seed(7), torch.float32), expected)
    decoded = coder.vae.decode(drawn).sample[0] / 2 + 0.5
    torch.testing.assert_close(coder.decode(expected), decoded.clamp(0, 1))


def test_latents_with_a_mean_and_a_deviation_come_back(coder):
    picture, plain = view(32), coder.encode(view(32), torch.Generator().manual_seed(7), torch.float32)
    decoded = coder.decode(plain)
    coder.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    shifted = coder.encode(picture, torch.Generator().manual_seed(7), torch.float32)
    assert not torch.allclose(shifted, plain)
    torch.testing.assert_close(coder.decode(shifted), decoded, atol=1e-5, rtol=0)


def test_memory_that_runs_out_leads_to_smaller_tiles(coder, monkeypatch):
    whole = coder.encode(view(256), torch.Generator().manual_seed(7), torch.float32)
    decoded = coder.decode(whole)
    tried, sides = short_of_memory(monkeypatch, coder.vae, 20), []
    coder._on_tiles = sides.append
    tiled = coder.encode(view(256), torch.Generator().manual_seed(7), torch.float32)
    assert sides == [128, 64]
    assert max(tried) == 64
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()
    assert (coder.decode(whole) - decoded).abs().mean() < 0.08
    assert sides == [128, 64], "what did not fit once is not tried again"
    assert not coder.vae.use_tiling, "the pipeline's autoencoder is left as it was"


def test_memory_that_never_suffices_is_one_sentence(coder, monkeypatch):
    short_of_memory(monkeypatch, coder.vae, 0)
    with pytest.raises(UserError, match=r"restyle\.size"):
        coder.decode(torch.zeros(4, 64, 64))


def test_a_restyling_survives_a_lack_of_memory_in_the_autoencoder(monkeypatch, capsys):
    restyler = Restyler(stand_in_pipeline(), "test")
    images, depths = view(128)[None].repeat(2, 1, 1, 1), torch.ones(2, 1, 128, 128)
    sizes = {"height": 128, "width": 128, "num_inference_steps": 2, "strength": 0.6}
    whole = restyler.restyle(images, depths, "gold", **sizes)
    assert restyler.provenance()["tile"] is None
    short_of_memory(monkeypatch, restyler.pipeline.vae, 16)
    tiled = restyler.restyle(images, depths, "gold", **sizes)
    assert "in tiles of 64 pixels" in capsys.readouterr().out
    assert restyler.provenance()["tile"] == 64
    assert (tiled - whole).abs().mean() < 0.05
