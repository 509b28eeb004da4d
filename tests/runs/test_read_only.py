"""A finished run that is only looked at: nothing that nerfstudio's viewer reads of it may fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn


def parts(holder: object, path: str) -> Iterator[tuple[str, object]]:
    """The object and the modules below it that nerfstudio's viewer walks through."""
    yield path, holder
    if isinstance(holder, nn.Module):
        yield from ((f"{path}.{name}", module) for name, module in holder.named_modules() if name)


@pytest.mark.parametrize("mode", ["test", "inference"])
def test_every_property_of_a_finished_run_can_be_read(run: Path, mode):
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode=mode)
    failures, read = {}, 0
    for path, part in [*parts(pipeline, "pipeline"), *parts(pipeline.datamanager, "datamanager")]:
        for name in dir(part):
            read += 1
            try:
                getattr(part, name)
            except Exception as error:
                failures[f"{path}.{name}"] = repr(error)
    assert not failures
    assert read > 1000
