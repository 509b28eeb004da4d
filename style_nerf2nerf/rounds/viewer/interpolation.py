"""How much of the style: fields on the way from the photos' one to the restyled one, and one of them kept as a run.

Both fields have the same networks and the second was trained on from the first, so a straight line between their
weights stays among fields that show the scene.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import FIELD_PREFIXES
from eschernet_prior.base.files import atomic_path
from style_nerf2nerf.model import StyleModel

KEPT = "kept"
"""Folder of the fields that were kept, in the run folder."""


@torch.no_grad()
def interpolated_state(base: StyleModel, restyled: StyleModel, amount: float) -> dict[str, Tensor]:
    """The weights of a field on the straight line between two: base + amount × (restyled − base).

    Args:
        base: The field as the photos made it.
        restyled: The field after some rounds, with the same networks.
        amount: 0 is the base, 1 the restyled field.

    Returns:
        A state dict of the restyled field's keys, on its device. What belongs to the training alone is the restyled
        field's.
    """
    before = base.state_dict()
    state = {}
    for key, value in restyled.state_dict().items():
        between = key.startswith(FIELD_PREFIXES) and value.is_floating_point()
        state[key] = torch.lerp(before[key].to(value), value, amount) if between else value.clone()
    return state


def keep_amount(run_dir: Path, base: StyleModel, restyled: StyleModel, amount: float, step: int) -> Path:
    """Save a field between two as a run of its own, which every `ns-*` command reads by its config.yml.

    Args:
        run_dir: The folder of the run that both fields are of.
        base: The field as the photos made it.
        restyled: The field now.
        amount: 0 is the base, 1 the restyled field.
        step: The training step that the restyled field has come to.

    Returns:
        The new folder, `kept/amount_0.40` in the run folder; an older one of that name is replaced.

    Raises:
        UserError: The run folder is not complete.
    """
    source = run_dir / "config.yml"
    if not source.is_file():
        raise UserError(f"There is no {source}: a field is kept beside the configuration of its run.")
    # nerfstudio's configurations are YAML with Python's classes, and this one was written by ns-train.
    config = yaml.load(source.read_text("utf8"), Loader=yaml.Loader)  # noqa: S506
    name = f"amount_{amount:.2f}"
    config.timestamp = f"{config.timestamp}/{KEPT}/{name}"
    config.load_dir = config.load_checkpoint = config.load_step = None
    state = interpolated_state(base, restyled, amount)
    with atomic_path(run_dir / KEPT / name) as partial:
        (partial / config.relative_model_dir).mkdir(parents=True)
        (partial / "config.yml").write_text(yaml.dump(config), "utf8")
        for each in ("dataparser_transforms.json",):
            if (run_dir / each).is_file():
                (partial / each).write_bytes((run_dir / each).read_bytes())
        weights = {f"_model.{key}": value.cpu() for key, value in state.items()}
        torch.save(
            {"step": step, "pipeline": weights, "optimizers": {}, "schedulers": {}, "scalers": {}},
            partial / config.relative_model_dir / f"step-{step:09d}.ckpt",
        )
    return run_dir / KEPT / name
