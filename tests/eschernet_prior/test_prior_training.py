"""Training the prior: recipes, renders good and bad, draws, the objective; processes and kills change nothing."""

import json
import math
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from escher_cases import fill
from escher_models import write_object
from eschernet_prior import train
from eschernet_prior.base.cameras import orbit, world_to_camera
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.training_loop import learning_rate
from eschernet_prior.data.render_folders import RenderFolders
from eschernet_prior.pipeline import EscherNetPipeline
from eschernet_prior.training.batches import Draw, SceneDraws, StepSampler, generator_for, views_in_step
from eschernet_prior.training.networks import build_pipeline
from eschernet_prior.training.recipe import StepsRecipe, load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = {
    "image_size": 16,
    "networks": {
        "unet": {
            "sample_size": 8,
            "block_out_channels": [8, 8],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
        },
        "vae": {
            "block_out_channels": [4, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 2,
        },
        "image_encoder": {"hidden_sizes": [4, 4, 4, 8], "depths": [1, 1, 1, 1], "patch_size": 1, "image_size": 16},
    },
    "data": {"held_out": 1, "keep_in_memory": True},
    "training": {
        "steps": 6,
        "batch": 4,
        "learning_rate": 1e-2,
        "references": [1, 3],
        "targets": [1, 2],
        "warmup": 2,
        "ema_decay": 0.5,
    },
    "samples": {"references": 2, "targets": 2, "steps": 2},
}

ONE = {"steps": 1, "batch": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def renders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("renders")
    for index in range(4):
        write_object(root / "split" / f"object_{index}", 5, index)
    return root


def write_recipe(path: Path, **changes: dict) -> Path:
    told = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in RECIPE.items()
    }
    told |= {key: value for key, value in changes.items() if key not in RECIPE}
    path.write_text(yaml.safe_dump(told))
    return path


def options(folder: Path, renders: Path, name: str = "out", **changes) -> train.TrainingOptions:
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        write_recipe(recipe)
    plain = {"recipe": recipe, "out": folder / name, "data": (renders,), "sample_every": 0}
    return train.TrainingOptions(**{**plain, **changes})


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["module"]


def run_alone(chosen: train.TrainingOptions) -> None:
    """Train in this process, as one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train.main(chosen)


def run_in_child(chosen: train.TrainingOptions, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    train.main(chosen)


@pytest.fixture(scope="module")
def children():
    """A place to start processes from that has everything imported and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eschernet_prior.train", "tensorboard"])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory, renders) -> Path:
    """A training of one process, from the first to the last step."""
    folder = tmp_path_factory.mktemp("whole")
    run_alone(options(folder, renders, sample_every=3))
    return folder / "out"


def test_a_training_leaves_log_samples_and_a_pipeline(whole):
    assert sorted(losses(whole)) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(loss) for loss in losses(whole).values())
    assert [file.name for file in sorted((whole / "samples").iterdir())] == ["0000003.png", "0000006.png"]
    with Image.open(whole / "samples" / "0000006.png") as sheet:
        assert sheet.size == (6 * 18 + 2, 18 + 2)  # references, predictions, truth of the one object kept away
    assert list((whole / "tensorboard").glob("events*"))
    pipeline = EscherNetPipeline.from_pretrained(whole / "pipeline")
    average = torch.load(whole / "checkpoint.pt", weights_only=True)["average"]["shadow_params"]
    trained = [*pipeline.unet.parameters(), *pipeline.image_encoder.parameters()]
    for ours, kept in zip(trained, average, strict=True):
        torch.testing.assert_close(ours, kept.half().float())
    assert any((ours - kept).abs().max() > 1e-3 for ours, kept in zip(trained, weights(whole).values()))
    assert not any("vae" in key for key in weights(whole))


def test_accumulated_batches_train_the_same(whole, tmp_path, renders):
    run_alone(options(tmp_path, renders, gradient_accumulation=2, gradient_checkpointing=True))
    for step, loss in losses(whole).items():
        assert losses(tmp_path / "out")[step] == pytest.approx(loss, rel=1e-4)


def test_two_processes_train_as_one_with_twice_the_batch(whole, tmp_path, renders, children):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_CPU": "true"}
    chosen = options(tmp_path, renders)
    started = [
        children.Process(target=run_in_child, args=(chosen, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    for step, loss in losses(whole).items():
        assert losses(tmp_path / "out")[step] == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(weights(tmp_path / "out"), weights(whole), rtol=1e-2, atol=2e-3)


def test_a_killed_training_resumes_to_the_same_losses(whole, tmp_path, renders, children):
    chosen = options(tmp_path, renders, minutes_between_checkpoints=0)
    out = tmp_path / "out"
    process = children.Process(target=run_in_child, args=(chosen, {}))
    process.start()
    while process.is_alive() and not ((out / "log.jsonl").exists() and len(losses(out)) >= 2):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    reached = torch.load(out / "checkpoint.pt", weights_only=True)["step"] if (out / "checkpoint.pt").exists() else 0
    assert reached < 6
    run_alone(chosen)
    assert losses(out) == pytest.approx(losses(whole), rel=1e-5)
    torch.testing.assert_close(weights(out), weights(whole), rtol=1e-4, atol=1e-5)


def test_an_early_stop_goes_on_where_it_was(whole, tmp_path, renders, capsys):
    run_alone(options(tmp_path, renders, stop_after_minutes=0.0))
    assert "stopped at step 1 of 6" in capsys.readouterr().out.replace("\n", " ")
    run_alone(options(tmp_path, renders))
    assert "Resuming at step 1 of 6" in capsys.readouterr().out
    assert losses(tmp_path / "out") == pytest.approx(losses(whole), rel=1e-5)
    changed = write_recipe(tmp_path / "other.yaml", networks={"unet": {**RECIPE["networks"]["unet"], "norm_eps": 1e-5}})
    run_alone(options(tmp_path, renders, recipe=changed))  # finished: nothing left to do
    wider = {**RECIPE["networks"]["image_encoder"], "depths": [1, 1, 2, 1]}
    changed = write_recipe(tmp_path / "wider.yaml", networks={"image_encoder": wider})
    with pytest.raises(UserError, match="belongs to a network other than"):
        run_alone(options(tmp_path, renders, recipe=changed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_objective_is_the_formula(tmp_path, prediction, gamma):
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", scheduler={"prediction_type": prediction}))
    pipeline = build_pipeline(recipe)
    fill(pipeline.vae)
    torch.manual_seed(0)
    batch = Draw(
        references=torch.rand(2, 1, 3, 16, 16),
        targets=torch.rand(2, 2, 3, 16, 16),
        source_poses=world_to_camera(orbit(2, 1.8))[:, None],
        target_poses=world_to_camera(orbit(4, 1.8)).view(2, 2, 4, 4),
        timestep=torch.tensor([100, 900]),
        kept=torch.ones(2),
        posterior_noise=torch.randn(2, 2, 4, 8, 8),
        noise=torch.randn(2, 2, 4, 8, 8),
    )
    predicted = torch.randn(2, 2, 4, 8, 8)
    seen = []

    def model(references, noisy, timesteps, *rest):
        seen.append(noisy)
        return predicted

    steps = StepsRecipe(steps=1, batch=1, learning_rate=1e-3, min_snr_gamma=gamma)
    loss = train.objective(pipeline, model, steps, torch.device("cpu"))(batch)
    total = 0.0
    with torch.no_grad():
        for scene in range(2):
            signal_share = float(pipeline.scheduler.alphas_cumprod[batch.timestep[scene]])
            alpha, sigma = signal_share**0.5, (1 - signal_share) ** 0.5
            posterior = pipeline.vae.encode(batch.targets[scene] * 2 - 1).latent_dist
            latents = 0.18215 * (posterior.mean + posterior.std * batch.posterior_noise[scene])
            noise = batch.noise[scene]
            torch.testing.assert_close(seen[0][scene], alpha * latents + sigma * noise, rtol=1e-4, atol=1e-4)
            wanted = noise if prediction == "epsilon" else alpha * noise - sigma * latents
            snr = alpha**2 / sigma**2
            weight = 1.0 if gamma is None else min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
            total += weight * float((predicted[scene] - wanted).square().mean()) / 2
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_dropped_conditions_see_no_reference(tmp_path):
    from eschernet_prior.training.networks import PriorTraining

    pipeline = build_pipeline(load_recipe(write_recipe(tmp_path / "r.yaml")))
    module = PriorTraining(pipeline)
    fill(module)
    poses, noisy, step = (
        world_to_camera(orbit(4, 1.8)).view(2, 2, 4, 4),
        torch.randn(2, 2, 4, 8, 8),
        torch.tensor([9, 500]),
    )
    one, other = torch.rand(2, 2, 3, 16, 16), torch.rand(2, 2, 3, 16, 16)
    kept = torch.tensor([0.0, 1.0])
    first, second = (module(images, noisy, step, poses, poses, kept) for images in (one, other))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3


def test_draws_depend_on_seed_step_and_slot_alone(renders):
    folders = RenderFolders([renders], 16)
    recipe = StepsRecipe(
        steps=10, batch=4, learning_rate=1e-3, references=(1, 3), targets=(2, 4), drop_condition=0.5, timestep_power=0.5
    )
    draws, again = (SceneDraws(folders, [0, 2], recipe, 7, (4, 8, 8), 1000) for _ in range(2))
    _ = again[3, 1], again[0, 0]
    for one, other in zip(draws[5, 2], again[5, 2]):
        assert torch.equal(one, other)
    assert not torch.equal(draws[5, 2].noise, draws[5, 3].noise)
    assert not torch.equal(draws[5, 2].noise, SceneDraws(folders, [0, 2], recipe, 8, (4, 8, 8), 1000)[5, 2].noise)
    numbers = {views_in_step(7, step, recipe) for step in range(80)}
    assert numbers == {(n, m) for n in (1, 2, 3) for m in (2, 3, 4)}
    for step in range(5):
        first, second = views_in_step(7, step, recipe)
        draw = draws[step, 0]
        assert draw.references.shape == (first, 3, 16, 16)
        assert draw.target_poses.shape == (second, 4, 4)
    several = [draws[step, slot] for step in range(10) for slot in range(8)]
    assert 0.3 < sum(float(draw.kept) for draw in several) / 80 < 0.7
    assert 600 < sum(int(draw.timestep) for draw in several) / 80 < 740  # the mean of sqrt(u) is 2/3
    assert int(generator_for(1, 2).initial_seed()) != int(generator_for(2, 1).initial_seed())


def test_a_tint_is_one_for_a_scene_and_leaves_white_white(renders):
    recipe = StepsRecipe(steps=1, batch=1, learning_rate=1e-3, references=(2, 2), targets=(3, 3))
    plain, tinted = (
        SceneDraws(RenderFolders([renders], 16), [0], each, 7, (4, 8, 8), 1000)
        for each in (recipe, replace(recipe, tinted=1.0))
    )
    shares = []
    for slot in range(40):
        before, after = (torch.cat((draw.references, draw.targets)) for draw in (plain[0, slot], tinted[0, slot]))
        assert torch.equal(plain[0, slot].noise, tinted[0, slot].noise), "nothing else is drawn differently"
        white = (before == 1.0).all(1)
        assert white.any()
        assert (after.movedim(1, -1)[white] == 1.0).all()
        dark = (1 - after).sum((0, 2, 3)) / (1 - before).sum((0, 2, 3)).mean()
        shares.append(dark)
        assert 0 <= after.min() <= after.max() <= 1
    shares = torch.stack(shares)
    assert shares.std(0).min() > 0.15, "each channel has its own share, anew for each scene"


def test_noisy_steps_are_seen_most_at_first(renders):
    recipe = StepsRecipe(steps=100, batch=1, learning_rate=1e-3, timestep_power=0.1, last_timestep_power=1.0)
    draws = SceneDraws(RenderFolders([renders], 16), [0], recipe, 7, (4, 8, 8), 1000)
    means = [sum(int(draws[step, slot].timestep) for slot in range(100)) / 100 for step in (0, 50, 99)]
    assert means == pytest.approx([1000 / 1.1, 1000 / 1.55, 500], abs=70)


def test_views_without_replacement_differ(renders):
    folders = RenderFolders([renders], 16)
    apart, free = (
        SceneDraws(folders, [0], StepsRecipe(**ONE, with_replacement=again), 0, (4, 8, 8), 1000)
        for again in (False, True)
    )
    small = SceneDraws(
        folders, [0], StepsRecipe(**ONE, references=(2, 2), targets=(3, 3), with_replacement=False), 0, (4, 8, 8), 1000
    )

    def different(draw: Draw) -> int:
        return len({tuple(pose.flatten().tolist()) for pose in torch.cat((draw.source_poses, draw.target_poses))})

    assert all(different(small[step, 0]) == 5 for step in range(8))
    assert any(different(free[step, 0]) < 6 for step in range(8))
    assert apart[0, 0].references.shape[0] == 3  # five views for six places: drawn with replacement after all


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_processes_share_every_slot_once(processes, accumulation):
    samplers = [StepSampler(range(3, 5), 12, process, processes, accumulation) for process in range(processes)]
    batches = [list(sampler) for sampler in samplers]
    assert all(len(each) == len(sampler) == 2 * accumulation for each, sampler in zip(batches, samplers))
    for step in (3, 4):
        slots = [slot for each in batches for batch in each for s, slot in batch if s == step]
        assert sorted(slots) == list(range(12))
    together = [slot for each in batches for _, slot in each[0]]
    assert sorted(together) == list(range(12 // accumulation))  # the first batches of all are the first slots


def test_learning_rate_rises_and_falls():
    recipe = StepsRecipe(steps=100, batch=1, learning_rate=2e-4, warmup=10, first_rate=0.1, last_rate=0.05)
    rates = [learning_rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(2e-5)
    assert rates[5] == pytest.approx(1.1e-4)
    assert rates[10] == max(rates) == pytest.approx(2e-4)
    assert rates[55] == pytest.approx((2e-4 + 1e-5) / 2)
    assert rates[100] == min(rates) == pytest.approx(1e-5)


def test_the_recipes_of_the_project_fit(monkeypatch):
    paper = load_recipe(CONFIGS / "prior_paper.yaml")
    assert (paper.training.references, paper.training.targets, paper.training.batch) == ((3, 3), (3, 3), 256)
    assert paper.training.learning_rate == 1e-4
    monkeypatch.chdir(CONFIGS.parent)
    tiny = load_recipe(CONFIGS / "prior_tiny.yaml")
    pipeline = build_pipeline(tiny)
    networks = (pipeline.unet, pipeline.vae, pipeline.image_encoder)
    size = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert 2 * size <= 15e6  # bytes in float16
    assert pipeline.config["image_size"] == 64
    assert pipeline.scheduler.config.steps_offset == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 1}", "networks: Field required"),
        (yaml.safe_dump({**RECIPE, "colour": 1}), "colour: Unexpected"),
        (yaml.safe_dump({**RECIPE, "training": {"steps": 1, "batch": 1}}), "training.learning_rate: Field required"),
        (yaml.safe_dump({**RECIPE, "cape": "5dof"}), "cape: Input should be '6dof' or '4dof'"),
        (yaml.safe_dump({**RECIPE, "training": {**RECIPE["training"], "references": [3, 1]}}), "1 <= least <= most"),
        (
            yaml.safe_dump({**RECIPE, "training": {**RECIPE["training"], "learning_rate": "fast"}}),
            "training.learning_rate: Input should be a valid number",
        ),
        (yaml.safe_dump({**RECIPE, "training": {**RECIPE["training"], "batch": "lots"}}), "training.batch: .* integer"),
        ("- a list", "Input should be a dictionary"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_wrong_recipes_are_refused_in_one_sentence(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_what_a_person_can_get_wrong_is_said_before_work_starts(tmp_path, renders):
    with pytest.raises(UserError, match="There is no recipe at"):
        run_alone(options(tmp_path, renders, recipe=tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot be distributed evenly among 1 processes × 3 accumulated"):
        run_alone(options(tmp_path, renders, gradient_accumulation=3))
    with pytest.raises(UserError, match="needs renders: pass their folders with --data"):
        run_alone(options(tmp_path, renders, data=()))
    many = write_recipe(tmp_path / "many.yaml", data={"held_out": 9})
    with pytest.raises(UserError, match="the recipe holds out"):
        run_alone(options(tmp_path, renders, recipe=many))
    unfit = write_recipe(tmp_path / "unfit.yaml", networks={"unet": {"block_out_channels": "wide"}})
    with pytest.raises(UserError, match=r"recipe's unet cannot be built"):
        run_alone(options(tmp_path, renders, recipe=unfit))
    absent = write_recipe(tmp_path / "absent.yaml", networks={"vae": str(tmp_path / "absent")})
    with pytest.raises(UserError, match="There is no folder"):
        run_alone(options(tmp_path, renders, recipe=absent))
