"""Shared self-attention: equal to attention over the views' tokens laid end to end, and gone when the context ends."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from style_nerf2nerf.attention import SharedAttention, Sharing, adain, lay_end_to_end, share_attention, statistics
from view_models import guided_call, unet_and_controlnet


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
def models():
    return unet_and_controlnet()


@pytest.fixture
def unet(models):
    return models[0]


@pytest.fixture
def controlnet(models):
    return models[1]


def self_attentions(unet):
    return {name: module for name, module in unet.named_modules() if name.endswith("attn1")}


def test_equals_brute_force_in_the_whole_unet_with_guidance_and_controlnet(unet, controlnet):
    views, batch = 3, 6
    before = {name: module.processor for name, module in self_attentions(unet).items()}
    for module in self_attentions(unet).values():
        module.set_processor(Naive(views))
    expected = guided_call(unet, controlnet, batch)
    for name, module in self_attentions(unet).items():
        module.set_processor(before[name])
    with share_attention(unet, views):
        shared = guided_call(unet, controlnet, batch)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)
    assert (shared - guided_call(unet, controlnet, batch)).abs().max() > 1e-3, "sharing must change something"


def test_one_view_is_exactly_the_stock_unet(unet, controlnet):
    stock = guided_call(unet, controlnet, 2)
    with share_attention(unet, 1):
        assert torch.equal(guided_call(unet, controlnet, 2), stock)


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
        outer = guided_call(unet, controlnet, 4)
        with share_attention(unet, 4):
            assert (guided_call(unet, controlnet, 4) - outer).abs().max() > 1e-4
        assert torch.equal(guided_call(unet, controlnet, 4), outer)


def test_layers_chooses_what_is_shared(unet):
    with share_attention(unet, 2, layers=lambda name: name.startswith("up_blocks")):
        shared = [n for n, processor in unet.attn_processors.items() if isinstance(processor, SharedAttention)]
    assert shared
    assert all(name.startswith("up_blocks") for name in shared)


def test_a_batch_that_does_not_divide_is_refused(unet, controlnet):
    with share_attention(unet, 3), pytest.raises(ValueError, match="divided"):
        guided_call(unet, controlnet, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_views": 0},
        {"num_views": 2, "reference_view": 2},
        {"num_views": 2, "strength": 2.0},
        {"num_views": 2, "keyframes": 0},
    ],
)
def test_wrong_arguments_are_refused(unet, wrong):
    with pytest.raises(ValueError, match="must"), share_attention(unet, **wrong):
        pass


@examples(25)
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
        got = SharedAttention(Sharing(views, strength=strength))(attn, hidden)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@examples(15)
@given(views=st.integers(2, 4), seed=st.integers(0, 99), data=st.data())
def test_views_are_equal_without_a_reference(views, seed, data):
    """Permuting the views permutes the result."""
    torch.manual_seed(seed)
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    hidden, order = torch.randn(views, 5, 8), data.draw(st.permutations(range(views)))
    with torch.no_grad():
        got, moved = (SharedAttention(Sharing(views))(attn, part) for part in (hidden, hidden[list(order)]))
    torch.testing.assert_close(moved, got[list(order)], atol=1e-6, rtol=1e-5)


def test_adain_takes_over_the_reference_views_statistics():
    torch.manual_seed(0)
    tokens = torch.randn(6, 50, 8) * (0.5 + torch.rand(6, 1, 8)) + torch.randn(6, 1, 8)
    by_group = tokens.unflatten(0, (2, 3))
    adopted = adain(by_group, *statistics(by_group[:, 1, None])).flatten(0, 1)
    for group in (0, 3):
        for view in range(3):
            torch.testing.assert_close(adopted[group + view].mean(0), tokens[group + 1].mean(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(adopted[group + view].std(0), tokens[group + 1].std(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(adopted[1], tokens[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", [{}, {"adain": False, "isolate_reference": True}])
def test_an_option_with_a_reference_reaches_the_unet(unet, controlnet, option):
    with share_attention(unet, 2):
        plain = guided_call(unet, controlnet, 4)
    with share_attention(unet, 2, reference_view=0, **option):
        assert (guided_call(unet, controlnet, 4) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("adain", [True, False])
def test_an_isolated_reference_is_seen_by_all_and_sees_itself_only(adain):
    torch.manual_seed(0)
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    processor = SharedAttention(Sharing(3, 1, adain, isolate_reference=True))
    hidden, changed = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    with torch.no_grad():
        alone = AttnProcessor()(attn, hidden[1::3])
        mixed = processor(attn, hidden)
        torch.testing.assert_close(mixed[1::3], alone, atol=1e-5, rtol=1e-5)
        changed[1::3] = hidden[1::3]
        torch.testing.assert_close(processor(attn, changed)[1::3], alone, atol=1e-5, rtol=1e-5)
        hidden[1::3] *= -1
        assert (processor(attn, hidden) - mixed)[::3].abs().max() > 1e-3


@examples(25)
@given(
    views=st.integers(1, 7),
    keyframes=st.integers(1, 8),
    isolated=st.booleans(),
    strength=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_keyframes_equal_attention_with_a_mask(views, keyframes, isolated, strength, seed):
    torch.manual_seed(seed)
    tokens, attn = 3, Attention(query_dim=8, heads=2, dim_head=4)
    reference = views - 1 if isolated and views > 1 else None
    sharing = Sharing(views, reference, False, isolated, strength, keyframes)
    hidden = torch.randn(2 * views, tokens, 8)
    weight = torch.zeros(views, views)
    for view in range(views):
        seen = sharing.visible_to(view)
        assert view in seen
        weight[view, list(seen)] = strength
        weight[view, view] = 1.0
    mask = weight.log().repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    with torch.no_grad():
        query, key, value = (
            lay_end_to_end(project(hidden).unflatten(0, (2, views)), 2) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        expected = attn.to_out[0](mixed.transpose(1, 2).reshape(2 * views, tokens, 8))
        got = SharedAttention(sharing)(attn, hidden)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_which_views_see_which():
    sharing = Sharing(9, keyframes=3)  # the keyframes are 0, 4 and 8
    assert sharing.visible_to(4) == (0, 4, 8)
    assert sharing.visible_to(2) == (0, 1, 2, 3, 4, 8)
    assert sharing.visible_to(7) == (0, 4, 5, 6, 7, 8)
    assert all(Sharing(9, keyframes=9).visible_to(view) == tuple(range(9)) for view in range(9))
    with_reference = Sharing(10, 9, isolate_reference=True, keyframes=3)
    assert with_reference.visible_to(9) == (9,)
    assert with_reference.visible_to(2) == (0, 1, 2, 3, 4, 8, 9)


def test_as_many_keyframes_as_views_share_everything(unet, controlnet):
    with share_attention(unet, 4):
        full = guided_call(unet, controlnet, 4)
    with share_attention(unet, 4, keyframes=4):
        torch.testing.assert_close(guided_call(unet, controlnet, 4), full)
    with share_attention(unet, 4, keyframes=2):
        assert (guided_call(unet, controlnet, 4) - full).abs().max() > 1e-4


def test_a_mask_is_refused():
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    with pytest.raises(ValueError, match="mask"):
        SharedAttention(Sharing(2))(attn, torch.randn(2, 3, 8), attention_mask=torch.zeros(2, 1, 3))


def test_keys_are_not_copied_per_view():
    """The tokens of a group are handed to one call of scaled-dot-product attention, as they are."""
    calls = []
    attn, real = Attention(query_dim=8, heads=2, dim_head=4), F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        calls.append((query.shape, key.shape, value.shape))
        return real(query, key, value, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        SharedAttention(Sharing(3))(attn, torch.randn(6, 5, 8))
    assert calls == [((2, 2, 15, 4),) * 3]
