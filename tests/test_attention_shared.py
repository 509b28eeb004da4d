"""Shared self-attention: equal to attention over the views' tokens laid end to end, and gone when the context ends."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from style_nerf2nerf.attention import SharedAttention, share_attention
from style_nerf2nerf.tiny_models import STAND_IN, build_controlnet, build_unet


class Naive:
    """The same attention, view by view and head by head, over keys and values concatenated by hand."""

    def __init__(self, views: int, strength: float = 1.0):
        self.views, self.strength = views, strength

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        rows = []
        for first in range(0, len(hidden_states), self.views):
            group = hidden_states[first : first + self.views]
            tokens = torch.cat([*group])
            owner = torch.arange(self.views).repeat_interleave(group.shape[1])
            for view in range(self.views):
                weight = torch.where(owner == view, 1.0, self.strength)
                heads = []
                for query, key, value in zip(
                    attn.to_q(group[view]).chunk(attn.heads, -1),
                    attn.to_k(tokens).chunk(attn.heads, -1),
                    attn.to_v(tokens).chunk(attn.heads, -1),
                ):
                    raw = torch.exp(query @ key.T / query.shape[-1] ** 0.5) * weight
                    heads.append(raw / raw.sum(-1, keepdim=True) @ value)
                rows.append(attn.to_out[0](torch.cat(heads, -1)))
        return torch.stack(rows)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return stirred(build_unet(STAND_IN)).eval()


@pytest.fixture(scope="module")
def controlnet():
    torch.manual_seed(1)
    return stirred(build_controlnet(STAND_IN)).eval()


def stirred(model):
    """Residual branches start at zero: here none shall be idle."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def self_attentions(unet):
    return {name: module for name, module in unet.named_modules() if name.endswith("attn1")}


def denoise(unet, controlnet, batch: int):
    """One guided call as the pipeline makes it: ControlNet residuals in, ``batch`` entries."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    prompt = {
        "encoder_hidden_states": draw(batch, 5, 2 * STAND_IN.text_channels),
        "added_cond_kwargs": {
            "text_embeds": draw(batch, STAND_IN.text_channels),
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(batch, 1),
        },
    }
    noisy, timestep = draw(batch, STAND_IN.latent_channels, 8, 8), torch.tensor(400)
    with torch.no_grad():
        down, middle = controlnet(
            noisy, timestep, controlnet_cond=draw(batch, 3, 32, 32).abs(), return_dict=False, **prompt
        )
        return unet(
            noisy, timestep, down_block_additional_residuals=down, mid_block_additional_residual=middle, **prompt
        ).sample


def test_equals_brute_force_in_the_whole_unet_with_guidance_and_controlnet(unet, controlnet):
    views, batch = 3, 6
    before = {name: module.processor for name, module in self_attentions(unet).items()}
    for module in self_attentions(unet).values():
        module.set_processor(Naive(views))
    expected = denoise(unet, controlnet, batch)
    for name, module in self_attentions(unet).items():
        module.set_processor(before[name])
    with share_attention(unet, views):
        shared = denoise(unet, controlnet, batch)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)
    assert (shared - denoise(unet, controlnet, batch)).abs().max() > 1e-3, "sharing must change something"


def test_one_view_is_exactly_the_stock_unet(unet, controlnet):
    stock = denoise(unet, controlnet, 2)
    with share_attention(unet, 1):
        assert torch.equal(denoise(unet, controlnet, 2), stock)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_gives_back_the_very_processors_it_found(unet, error):
    unusual = next(iter(self_attentions(unet).values()))
    unusual.set_processor(AttnProcessor())
    before, kinds = dict(unet.attn_processors), {}
    try:
        with share_attention(unet, 2):
            kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}
            if error:
                raise error
    except RuntimeError:
        assert error
    assert {name for name, kind in kinds.items() if kind is SharedAttention} == {
        f"{name}.processor" for name in self_attentions(unet)
    }
    after = unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_contexts_nest(unet, controlnet):
    with share_attention(unet, 2):
        outer = denoise(unet, controlnet, 4)
        with share_attention(unet, 4):
            assert (denoise(unet, controlnet, 4) - outer).abs().max() > 1e-4
        assert torch.equal(denoise(unet, controlnet, 4), outer)


def test_layers_chooses_what_is_shared(unet):
    with share_attention(unet, 2, layers=lambda name: name.startswith("mid_block")):
        shared = [n for n, processor in unet.attn_processors.items() if isinstance(processor, SharedAttention)]
    assert shared
    assert all(name.startswith("mid_block") for name in shared)


def test_a_batch_that_does_not_divide_is_refused(unet, controlnet):
    with share_attention(unet, 3), pytest.raises(ValueError, match="divided"):
        denoise(unet, controlnet, 4)


@pytest.mark.parametrize(
    "wrong", [{"num_views": 0}, {"num_views": 2, "reference_view": 2}, {"num_views": 2, "strength": 2.0}]
)
def test_wrong_arguments_are_refused(unet, wrong):
    with pytest.raises(ValueError, match="must"), share_attention(unet, **wrong):
        pass


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 3),
    views=st.integers(1, 4),
    tokens=st.integers(1, 6),
    strength=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_strength_scales_the_weight_of_other_views(groups, views, tokens, strength, seed):
    torch.manual_seed(seed)
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    hidden = torch.randn(groups * views, tokens, 8)
    with torch.no_grad():
        expected = Naive(views, strength)(attn, hidden)
        got = SharedAttention(views, strength=strength)(attn, hidden)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=15)
@given(views=st.integers(2, 4), seed=st.integers(0, 99), data=st.data())
def test_views_are_equal_without_a_reference(views, seed, data):
    """Permuting the views permutes the result."""
    torch.manual_seed(seed)
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    hidden, order = torch.randn(views, 5, 8), data.draw(st.permutations(range(views)))
    with torch.no_grad():
        got, moved = (SharedAttention(views)(attn, part) for part in (hidden, hidden[list(order)]))
    torch.testing.assert_close(moved, got[list(order)], atol=1e-6, rtol=1e-5)


def test_adain_takes_over_the_reference_views_statistics():
    torch.manual_seed(0)
    tokens = torch.randn(6, 50, 8) * (0.5 + torch.rand(6, 1, 8)) + torch.randn(6, 1, 8)
    adopted = SharedAttention(3, reference_view=1)._adopt(tokens, 1)
    for group in (0, 3):
        for view in range(3):
            torch.testing.assert_close(adopted[group + view].mean(0), tokens[group + 1].mean(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(adopted[group + view].std(0), tokens[group + 1].std(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(adopted[1], tokens[1], atol=1e-5, rtol=1e-5)


def test_an_option_with_a_reference_reaches_the_unet(unet, controlnet):
    with share_attention(unet, 2):
        plain = denoise(unet, controlnet, 4)
    with share_attention(unet, 2, reference_view=0):
        assert (denoise(unet, controlnet, 4) - plain).abs().max() > 1e-4


def test_a_mask_is_refused():
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    with pytest.raises(ValueError, match="mask"):
        SharedAttention(2)(attn, torch.randn(2, 3, 8), attention_mask=torch.zeros(2, 1, 3))


def test_keys_are_not_copied_per_view():
    """The tokens of a group are handed to one call of scaled-dot-product attention, as they are."""
    calls = []
    attn, real = Attention(query_dim=8, heads=2, dim_head=4), F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        calls.append((query.shape, key.shape, value.shape))
        return real(query, key, value, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        SharedAttention(3)(attn, torch.randn(6, 5, 8))
    assert calls == [((2, 2, 15, 4),) * 3]
