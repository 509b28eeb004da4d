"""Attention across views inside a stock diffusers UNet: the original's numbers, the savings, the symmetries."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from escher_cases import assert_reproduced, fill, noise, ring
from eschernet_prior.attention import CapeAttnProcessor, PosedViews, first_self_attention
from eschernet_prior.cape import angles_4dof, matrices_6dof

BOTH = pytest.mark.parametrize("dof", ["6dof", "4dof"])
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


def orbit(views: int, seed: int, scenes: int = 1) -> Tensor:
    """World-to-camera poses on a sphere, looking at the origin, (scenes, views, 4, 4) in float64."""
    rng = torch.Generator().manual_seed(seed)
    back = F.normalize(torch.randn(scenes, views, 3, generator=rng, dtype=torch.float64), dim=-1)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]).double().expand_as(back), back), dim=-1)
    pose = torch.eye(4, dtype=torch.float64).repeat(scenes, views, 1, 1)
    pose[..., :3, :3] = torch.stack((right, torch.linalg.cross(back, right), back), dim=-2)
    pose[..., 2, 3] = -1.5 - 0.7 * torch.rand(scenes, views, generator=rng, dtype=torch.float64)
    return pose


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    model = UNet2DConditionModel(**SMALL_UNET)
    model.set_attn_processor(CapeAttnProcessor())
    return fill(model).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, dict[str, Tensor]]:
    return {dof: load_file(shared / "golden" / f"unet_{dof}_tiny.safetensors") for dof in ("6dof", "4dof")}


@pytest.fixture(scope="module")
def golden_unet(shared: Path, golden) -> UNet2DConditionModel:
    with safe_open(shared / "golden" / "unet_6dof_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["unet_config"])
    model = UNet2DConditionModel.from_config(config)
    model.load_state_dict({k.removeprefix("state."): v for k, v in golden["6dof"].items() if k.startswith("state.")})
    model.set_attn_processor(CapeAttnProcessor())
    return model.eval().requires_grad_(False)


def golden_views(dof: str, tensors: dict[str, Tensor], prefix: str) -> PosedViews:
    """The poses of a golden case, from world-to-camera matrices."""
    names = ("pose_in", "pose_out") if dof == "6dof" else ("w2c_in", "w2c_out")
    return PosedViews.from_poses(dof, *(tensors[prefix + name] for name in names))


def run(unet: UNet2DConditionModel, sample: Tensor, timestep, tokens: Tensor, views: PosedViews) -> Tensor:
    return unet(sample, timestep, tokens, cross_attention_kwargs={"views": views}).sample


@BOTH
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_one_attention_module_reproduces_the_original(shared, dof, kind):
    case = {k.removeprefix("a."): v for k, v in load_file(shared / "golden" / f"cape_{dof}.safetensors").items()}
    g = {k.removeprefix(f"attn_{kind}."): v for k, v in case.items() if k.startswith(f"attn_{kind}.")}
    attention = Attention(64, 32 if kind == "cross" else None, heads=8, dim_head=8, processor=CapeAttnProcessor())
    attention.load_state_dict({k.removeprefix("state."): v for k, v in g.items() if k.startswith("state.")})
    if dof == "6dof":
        views = golden_views(dof, case, "")
    else:
        views = PosedViews(case["pose_out"], case["pose_out"], case["pose_in"])
    output = attention(g["hidden_states"], g.get("encoder_hidden_states"), views=views)
    assert_reproduced(output, g["output"])


@BOTH
@pytest.mark.parametrize("case", ["b1", "b2", "n1m1"])
def test_unet_reproduces_the_original(golden, golden_unet, dof, case):
    g = {k.removeprefix(f"{case}."): v for k, v in golden[dof].items() if k.startswith(f"{case}.")}
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, args, output) -> None:
            while isinstance(output, tuple):
                output = output[0]
            seen[name] = getattr(output, "sample", output)

        return hook

    probes = [name.removeprefix("probe.") for name in g if name.startswith("probe.")]
    hooks = [golden_unet.get_submodule(name).register_forward_hook(keep(name)) for name in probes]
    inputs = g["sample"], g["timestep"].squeeze(), g["encoder_hidden_states"]
    output = run(golden_unet, *inputs, golden_views(dof, g, ""))
    for hook in hooks:
        hook.remove()
    assert_reproduced(output, g["output"])
    for name in probes:
        assert_reproduced(seen[name], g[f"probe.{name}"])
    assert_reproduced(run(golden_unet, *inputs, golden_views(dof, g, "alt_")), g["output_alt_poses"])
    if dof == "6dof":
        trivial = PosedViews.from_poses(dof, *(torch.eye(4).expand_as(g[f"pose_{n}"]) for n in ("in", "out")))
    else:
        trivial = PosedViews(*(torch.zeros_like(g[f"pose_{n}"]) for n in ("out", "out", "in")))
    assert_reproduced(run(golden_unet, *inputs, trivial), g["output_trivial_poses"])


FROZEN = {  # computed by this implementation; a clone without the original's tensors still tests its numbers
    "6dof": [0.43182, 0.94733, 1.75458, 0.19876, 0.95148, 0.18968, 1.13317, 0.03649],
    "4dof": [0.17576, 0.67403, 2.34265, 0.09852, 1.05614, 0.24315, 1.2369, 0.11671],
}


def case(
    scenes: int = 2, targets: int = 3, references: int = 2, tokens: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, reference tokens, reference poses, target poses: the same on every machine, FROZEN rests on them."""
    sample, condition = noise(scenes * targets, 4, 8, 8, seed=7), noise(scenes, references * tokens, 12, seed=8)
    return sample, condition, ring(scenes, references, 0.3), ring(scenes, targets, 1.1)


@BOTH
def test_numbers_stay_what_they_are(unet, dof):
    sample, tokens, sources, targets = case()
    output = run(unet, sample, 300, tokens, PosedViews.from_poses(dof, sources, targets))
    torch.testing.assert_close(output.flatten()[::137][:8], torch.tensor(FROZEN[dof]), rtol=1e-4, atol=1e-4)


@BOTH
def test_a_naive_loop_over_queries_and_keys_agrees(dof):
    """Softmax attention written out token by token, with CaPE from its definition."""
    attention = fill(Attention(16, 12, heads=2, dim_head=8, processor=CapeAttnProcessor()), 2.0)
    sources, targets = orbit(2, 3), orbit(2, 4)
    hidden, tokens = torch.randn(2, 3, 16), torch.randn(1, 2 * 4, 12)
    output = attention(hidden, tokens, views=PosedViews.from_poses(dof, sources, targets))

    def encode(vector: Tensor, pose: Tensor, query: bool) -> Tensor:
        if dof == "6dof":
            matrix = matrices_6dof(pose)[0 if query else 1]
            return torch.cat([group @ matrix for group in vector.split(4)])
        out = vector.clone()
        for pair in range(8):
            angle = angles_4dof(pose)[pair // 2]
            turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
            out[2 * pair : 2 * pair + 2] = turn @ vector[2 * pair : 2 * pair + 2]
        return out

    for view in range(2):
        for position in range(3):
            query = encode(attention.to_q(hidden[view, position]), targets[0, view], query=True)
            keys = torch.stack(
                [encode(attention.to_k(tokens[0, i]), sources[0, i // 4], query=False) for i in range(8)]
            )
            values, merged = attention.to_v(tokens[0]), []
            for head in (slice(0, 8), slice(8, 16)):
                weights = torch.softmax(keys[:, head] @ query[head] / 8**0.5, dim=0)
                merged.append(weights @ values[:, head])
            torch.testing.assert_close(
                output[view, position], attention.to_out[0](torch.cat(merged)), rtol=1e-4, atol=1e-5
            )


@BOTH
def test_references_remembered_over_steps_change_nothing(unet, dof):
    sample, tokens, sources, targets = case()
    plain = PosedViews.from_poses(dof, sources, targets)
    cached = replace(plain, reference_cache={})
    with torch.no_grad():
        for step in (900, 500, 1):
            assert torch.equal(run(unet, sample, step, tokens, cached), run(unet, sample, step, tokens, plain))
        assert cached.reference_cache is not None
        assert len(cached.reference_cache) == sum(name.endswith("attn2") for name, _ in unet.named_modules())
        with_rubbish = run(unet, sample, 1, torch.full_like(tokens, torch.nan), cached)
    assert torch.equal(with_rubbish, run(unet, sample, 1, tokens, plain))  # the tokens were not looked at again


@BOTH
def test_unconditional_half_equals_attention_to_zeros(unet, dof):
    sample, tokens, sources, targets = case()
    views = PosedViews.from_poses(dof, sources, targets)
    doubled = torch.cat((sample, sample))
    short = run(unet, doubled, 500, tokens, views.with_unconditional_half())
    twice = PosedViews.from_poses(dof, torch.cat((sources, sources)), torch.cat((targets, targets)))
    torch.testing.assert_close(short, run(unet, doubled, 500, torch.cat((torch.zeros_like(tokens), tokens)), twice))
    assert (short[:6] - short[6:]).abs().max() > 0.01  # the references do count


@BOTH
def test_the_first_self_attention_is_computed_once_for_both_halves(unet, dof):
    sample, tokens, sources, targets = case()
    views = PosedViews.from_poses(dof, sources, targets).with_unconditional_half()
    first = first_self_attention(unet)
    order: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in unet.modules() if isinstance(m, Attention)]
    widths: list[int] = []
    hooks.append(
        unet.down_blocks[0]
        .attentions[0]
        .transformer_blocks[0]
        .attn1.to_q.register_forward_hook(lambda module, args, output: widths.append(len(args[0])))
    )
    both = run(unet, torch.cat((sample, sample)), 500, tokens, views)
    once = run(unet, torch.cat((sample, sample)), 500, tokens, replace(views, before_references=first))
    for hook in hooks:
        hook.remove()
    assert order[0] is first
    assert widths == [4, 2]  # scenes whose queries were computed
    torch.testing.assert_close(once, both)
    conditional = PosedViews.from_poses(dof, sources, targets)
    alone = run(unet, sample, 500, tokens, replace(conditional, before_references=first))
    torch.testing.assert_close(alone, run(unet, sample, 500, tokens, conditional))


@pytest.mark.parametrize("bias", [False, True])
def test_unconditional_scenes_also_hold_where_keys_and_values_have_a_bias(bias):
    attention = fill(Attention(16, 12, heads=2, dim_head=8, bias=bias, processor=CapeAttnProcessor()))
    views = PosedViews.from_poses("6dof", orbit(3, 3), orbit(2, 4))
    hidden, tokens = torch.randn(4, 5, 16), torch.randn(1, 12, 12)
    full = PosedViews.from_poses("6dof", orbit(3, 3).repeat(2, 1, 1, 1), orbit(2, 4).repeat(2, 1, 1, 1))
    torch.testing.assert_close(
        attention(hidden, tokens, views=views.with_unconditional_half()),
        attention(hidden, torch.cat((torch.zeros_like(tokens), tokens)), views=full),
    )


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_chunked_queries_change_nothing(unet, chunk):
    sample, tokens, sources, targets = case()
    views = PosedViews.from_poses("6dof", sources, targets)
    whole = run(unet, sample, 500, tokens, views)
    torch.testing.assert_close(run(unet, sample, 500, tokens, replace(views, query_chunk=chunk)), whole)


@BOTH
def test_scenes_of_a_batch_do_not_see_each_other(unet, dof):
    sample, tokens, sources, targets = case()
    together = run(unet, sample, 500, tokens, PosedViews.from_poses(dof, sources, targets))
    for scene in range(2):
        one = slice(scene, scene + 1)
        views = PosedViews.from_poses(dof, sources[one], targets[one])
        alone = run(unet, sample[3 * scene : 3 * scene + 3], 500, tokens[one], views)
        torch.testing.assert_close(together[3 * scene : 3 * scene + 3], alone)


@BOTH
@pytest.mark.parametrize(("references", "targets"), [(1, 1), (1, 4), (5, 1), (4, 3)])
def test_order_of_views_is_irrelevant_and_their_number_free(unet, dof, references, targets):
    sample, tokens, source_poses, target_poses = case(1, targets, references)
    output = run(unet, sample, 500, tokens, PosedViews.from_poses(dof, source_poses, target_poses))
    back_in, back_out = torch.arange(references).flip(0), torch.arange(targets).flip(0)
    views = PosedViews.from_poses(dof, source_poses[:, back_in], target_poses[:, back_out])
    flipped = run(unet, sample[back_out], 500, tokens.unflatten(1, (references, -1))[:, back_in].flatten(1, 2), views)
    torch.testing.assert_close(flipped[back_out], output, rtol=1e-4, atol=1e-5)


def test_targets_see_each_other(unet):
    sample, tokens, sources, targets = case(1)
    together = run(unet, sample, 500, tokens, PosedViews.from_poses("6dof", sources, targets))
    alone = run(unet, sample[:1], 500, tokens, PosedViews.from_poses("6dof", sources, targets[:, :1]))
    assert (together[:1] - alone).abs().max() > 1e-3


def test_a_world_transform_changes_nothing_and_a_moved_camera_much(unet):
    sample, tokens, sources, targets = case()
    world = orbit(1, 9)[0, 0]
    before = run(unet, sample, 500, tokens, PosedViews.from_poses("6dof", sources, targets))
    after = run(unet, sample, 500, tokens, PosedViews.from_poses("6dof", sources @ world, targets @ world))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    moved = run(unet, sample, 500, tokens, PosedViews.from_poses("6dof", sources @ world, targets))
    assert (moved - before).abs().max() > 0.05


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(unet, dof, dtype):
    sample, tokens, sources, targets = case()
    views = PosedViews.from_poses(dof, sources, targets).with_unconditional_half()
    doubled = torch.cat((sample, sample))
    exact = run(unet, doubled, 500, tokens, views)
    half_unet = UNet2DConditionModel(**SMALL_UNET)
    half_unet.set_attn_processor(CapeAttnProcessor())
    half_unet.load_state_dict(unet.state_dict())
    output = run(half_unet.to(dtype), doubled.to(dtype), 500, tokens.to(dtype), views)
    assert output.dtype == dtype
    assert (output.float() - exact).abs().max() < (0.01 if dtype == torch.float16 else 0.1) * exact.abs().max()


@BOTH
def test_gradients_reach_weights_tokens_and_latents_and_nothing_is_remembered(dof):
    unet = fill(UNet2DConditionModel(**SMALL_UNET))
    assert isinstance(unet, UNet2DConditionModel)
    unet.set_attn_processor(CapeAttnProcessor())
    sample, tokens, sources, targets = case()
    tokens.requires_grad_(True)
    views = replace(PosedViews.from_poses(dof, sources, targets), reference_cache={})
    losses = []
    for checkpointing in (False, True):
        (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()
        unet.train().zero_grad()
        loss = run(unet, sample, 500, tokens, views).square().mean()
        loss.backward()
        losses.append((loss.detach(), unet.get_submodule("mid_block.attentions.0").proj_in.weight.grad.clone()))
        assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in unet.named_parameters() if "attn" in n)
    assert tokens.grad is not None
    assert tokens.grad.abs().max() > 0
    assert views.reference_cache == {}
    torch.testing.assert_close(losses[0], losses[1])


def test_contracts_are_checked(unet):
    sample, tokens, sources, targets = case()
    views = PosedViews.from_poses("6dof", sources, targets)
    with pytest.raises(ValueError, match="needs the poses"):
        unet(sample, 1, tokens)
    with pytest.raises(ValueError, match="2 scenes of 3 target views"):
        run(unet, sample[:5], 1, tokens, views)
    with pytest.raises(ValueError, match="do not fit reference tokens"):
        run(unet, sample, 1, tokens[:, :9], views)
    with pytest.raises(ValueError, match="attention mask"):
        Attention(16, processor=CapeAttnProcessor())(
            torch.zeros(6, 2, 16), attention_mask=torch.ones(6, 2), views=views
        )
