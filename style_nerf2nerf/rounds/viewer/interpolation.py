"""Interpolate between the weights of the fields before and after restyling, and save an interpolated field as a run.

The fields have the same networks, and training of the second started from the first. Fields on a straight line between
their weights therefore also show the scene.
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
"""Folder of saved fields in the run folder."""


@torch.no_grad()
def interpolated_state(base: StyleModel, restyled: StyleModel, amount: float) -> dict[str, Tensor]:
    """Interpolate the weights of two fields linearly: base + amount × (restyled − base).

    Args:
        base: The field before the first round.
        restyled: The field after some rounds, with the same networks.
        amount: 0 is the base, 1 the restyled field.

    Returns:
        A state dict with the restyled field's keys, on its device. Values that are used only in training are those of
        the restyled field.
    """
    before = base.state_dict()
    state = {}
    for key, value in restyled.state_dict().items():
        between = key.startswith(FIELD_PREFIXES) and value.is_floating_point()
        state[key] = torch.lerp(before[key].to(value), value, amount) if between else value.clone()
    return state


def keep_amount(run_dir: Path, base: StyleModel, restyled: StyleModel, amount: float, step: int) -> Path:
    """Save an interpolated field as a run of its own, which every `ns-*` command can read by its config.yml.

    Args:
        run_dir: The folder of the run to which both fields belong.
        base: The field before the first round.
        restyled: The present field.
        amount: 0 is the base, 1 the restyled field.
        step: The training step of the restyled field.

    Returns:
        The new folder, such as `kept/amount_0.40` in the run folder; an existing folder of that name is replaced.

    Raises:
        UserError: If the run folder has no config.yml.
    """
    source = run_dir / "config.yml"
    if not source.is_file():
        raise UserError(f"There is no {source}, which is needed to save a field: restore it.")
    # nerfstudio's configurations are YAML with Python classes, and this one was written by ns-train.
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
