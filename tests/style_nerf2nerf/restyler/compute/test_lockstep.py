"""Lockstep: views worked on a few at a time, equal to one call on all of them; errors leave nothing behind."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from eschernet_prior.base.errors import UserError
from properties import examples
from style_nerf2nerf.attention import Sharing, share_attention
from style_nerf2nerf.restyler.compute.chunks import forward_replaced, in_chunks, modules_in_chunks
from style_nerf2nerf.restyler.compute.distributed import ProcessGroup
from style_nerf2nerf.restyler.compute.lockstep import BatchLimit, LockstepAttention, in_lockstep
from view_models import guided_call, unet_and_controlnet

VIEWS = 5


@pytest.fixture(scope="module")
def models():
    return unet_and_controlnet()


@pytest.fixture(scope="module")
def together(models):
    """The unchunked result."""
    with share_attention(models[0], VIEWS):
        return guided_call(*models, 2 * VIEWS)


def in_steps(models, views_per_batch, sharing=None, **options):
    sharing = sharing or Sharing(VIEWS)
    limit = options.pop("limit", BatchLimit(views_per_batch))
    with in_lockstep(*models, sharing, limit, num_views=sharing.num_views, **options):
        return guided_call(*models, 2 * sharing.num_views)


def traces(model):
    """What a context could leave behind."""
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    forwards = [name for name, part in model.named_modules() if "forward" in vars(part)]
    return hooks, forwards, list(model.attn_processors.values())


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("views_per_batch", [1, 2, 3, 5, 9])
def test_equals_one_call_on_all_views(models, together, views_per_batch, offload):
    """5 views in 5, 3 uneven, 2 uneven and 1 chunks."""
    got = in_steps(models, views_per_batch, offload=offload)
    torch.testing.assert_close(got, together, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 0.4},
        {"reference_view": 3},
        {"reference_view": 4, "isolate_reference": True},
        {"reference_view": 0, "isolate_reference": True, "adain": False, "strength": 0.7},
        {"keyframes": 2},
        {"reference_view": 4, "isolate_reference": True, "keyframes": 2, "strength": 0.7},
    ],
)
def test_every_option_of_sharing_is_the_same(models, together, options):
    with share_attention(models[0], VIEWS, **options):
        expected = guided_call(*models, 2 * VIEWS)
    assert (expected - together).abs().max() > 1e-3
    for offload in (False, True):
        got = in_steps(models, 2, Sharing(VIEWS, **options), offload=offload)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_layers_that_are_not_shared_are_worked_on_like_everything_else(models, together):
    chosen = {"layers": lambda name: name.startswith("down")}
    with share_attention(models[0], VIEWS, **chosen):
        expected = guided_call(*models, 2 * VIEWS)
    assert (expected - together).abs().max() > 1e-3
    torch.testing.assert_close(in_steps(models, 2, **chosen), expected, atol=1e-4, rtol=0)


def test_without_sharing_views_are_chunked_and_nothing_else(models):
    expected = guided_call(*models, 2 * VIEWS)
    with in_lockstep(*models, None, BatchLimit(2), num_views=VIEWS):
        torch.testing.assert_close(guided_call(*models, 2 * VIEWS), expected, atol=1e-4, rtol=0)


class Listener(TorchFunctionMode):
    """Writes down how many entries every layer with weights works on."""

    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.linear, F.conv2d, F.group_norm, F.layer_norm):
            self.seen.append(len(args[0]))
        return function(*args, **(kwargs or {}))


def test_no_layer_works_on_more_views_than_allowed(models):
    with Listener() as listener:
        in_steps(models, 2)
    assert set(listener.seen) == {1, 2}


def test_controlnet_works_batch_by_batch_and_halves_come_one_after_the_other(models):
    calls = []
    unet, controlnet = models
    with (
        forward_replaced(controlnet, spy(controlnet.forward, "control", calls)),
        forward_replaced(unet, spy(unet.forward, "unet", calls)),
        in_lockstep(unet, controlnet, Sharing(VIEWS), BatchLimit(3), num_views=VIEWS),
    ):
        guided_call(unet, controlnet, 2 * VIEWS)
    assert calls == [("control", 3), ("control", 2), ("unet", 5)] * 2


def test_with_plenty_of_memory_everything_is_one_call(models, together):
    calls = []
    unet, controlnet = models
    with (
        forward_replaced(controlnet, spy(controlnet.forward, "control", calls)),
        forward_replaced(unet, spy(unet.forward, "unet", calls)),
    ):
        got = in_steps(models, None, limit=BatchLimit(VIEWS, halves_together=True))
    assert calls == [("control", 2 * VIEWS), ("unet", 2 * VIEWS)]
    torch.testing.assert_close(got, together, atol=1e-5, rtol=0)


def spy(forward, name, calls):
    def listening(sample, *args, **kwargs):
        calls.append((name, len(sample)))
        return forward(sample, *args, **kwargs)

    return listening


@pytest.mark.timeout(20)
def test_an_error_in_one_chunk_ends_all_and_leaves_nothing_behind(models):
    unet = models[0]
    before = [traces(model) for model in models]
    block = unet.up_blocks[-1].resnets[0]
    calls = []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("in the second chunk")
        return type(block).forward(block, *args, **kwargs)

    with pytest.raises(ZeroDivisionError, match="second chunk"), forward_replaced(block, breaks):
        in_steps(models, 2, offload=True)
    assert len(calls) == 2
    assert [traces(model) for model in models] == before


def test_memory_that_runs_out_halves_the_batch_until_it_fits(models, together):
    unet, _ = models
    block, told = unet.down_blocks[0], []

    def greedy(hidden_states, *args, **kwargs):
        if len(hidden_states) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return type(block.resnets[0]).forward(block.resnets[0], hidden_states, *args, **kwargs)

    with forward_replaced(block.resnets[0], greedy):
        limit = BatchLimit(VIEWS, told.append, halves_together=True)
        got = in_steps(models, None, limit=limit)
    torch.testing.assert_close(got, together, atol=1e-4, rtol=0)
    assert told == [2, 1]
    assert limit.views_per_batch == 1


def test_one_view_that_does_not_fit_is_told_in_a_sentence(models):
    def never(*args, **kwargs):
        raise torch.OutOfMemoryError("no room at all")

    with pytest.raises(UserError, match="smaller working size"), forward_replaced(models[0].conv_in, never):
        in_steps(models, 2)


def test_a_batch_that_does_not_divide_is_refused(models):
    with pytest.raises(ValueError, match="halves"), in_lockstep(*models, Sharing(3), BatchLimit(1), num_views=3):
        guided_call(*models, 2 * VIEWS)


def test_attention_holds_no_square_of_the_views(models, monkeypatch):
    """What an attention is handed at a time grows with the views; pairs of tokens are never written out."""
    real, most = F.scaled_dot_product_attention, {}
    for views in (4, 16):
        sizes = []

        def listening(query, key, value, sizes=sizes, **options):
            sizes.append((query.shape[2], key.shape[2]))
            return real(query, key, value, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", listening)
        in_steps(models, 2, Sharing(views))
        shared = [(queries, keys) for queries, keys in sizes if keys > 64]
        most[views] = max(queries for queries, _ in shared), max(keys for _, keys in shared)
    assert most[4][0] == most[16][0] == 2 * 64
    assert [most[views][1] for views in most] == [4 * 64, 16 * 64]


@examples(30)
@given(batch=st.integers(1, 7), size=st.integers(1, 8))
def test_chunks_of_trees_are_put_together_again(batch, size):
    rows, plain = torch.arange(batch * 2.0).view(batch, 2), torch.tensor(3.0)
    calls = []

    def call(first, rest, *, named, flag):
        calls.append(len(first))
        assert flag == "as it is"
        return (first + named["deep"][0], [rest * plain])

    one, (two,) = in_chunks(call, size, rows, rows + 1, named={"deep": (rows * 2, plain)}, flag="as it is")
    assert torch.equal(one, rows * 3)
    assert torch.equal(two, (rows + 1) * 3)
    assert max(calls) <= size
    assert sum(calls) == batch


def test_a_forward_that_stood_in_before_is_given_back():
    layer = torch.nn.Linear(2, 2)
    layer.forward = earlier = lambda x: x
    with modules_in_chunks(torch.nn.Sequential(layer), set(), lambda: 1):
        assert layer.forward is not earlier
    assert layer.forward is earlier


def test_a_mask_is_refused(models):
    attn = Attention(query_dim=8, heads=2, dim_head=4)
    with pytest.raises(ValueError, match="mask"):
        LockstepAttention(Sharing(2), BatchLimit(1), ProcessGroup())(
            attn, torch.randn(2, 3, 8), attention_mask=torch.zeros(2, 1, 3)
        )
