"""Two processes restyle one scene: the result of one, and an end for both where one fails."""

import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from eschernet_prior.base.errors import UserError
from processes import forkserver
from properties import examples
from style_nerf2nerf.attention import Sharing, share_attention
from style_nerf2nerf.restyler.compute.chunks import forward_replaced
from style_nerf2nerf.restyler.compute.distributed import FailedElsewhereError, ProcessGroup
from style_nerf2nerf.restyler.compute.lockstep import BatchLimit, in_lockstep
from style_nerf2nerf.restyler.restyler import Restyler
from view_models import guided_call, stand_in_pipeline, unet_and_controlnet

VIEWS = 5
QUICK = {"num_inference_steps": 4, "strength": 0.8, "guidance_scale": 3.0}


class StopHereError(RuntimeError):
    pass


def check_shared_attention(group: ProcessGroup) -> None:
    """Every option of sharing, each process with its own views."""
    models = unet_and_controlnet()
    for options in ({}, {"strength": 0.3}, {"reference_view": 4, "isolate_reference": True}):
        with share_attention(models[0], VIEWS, **options):
            expected = guided_call(*models, 2 * VIEWS)
        for offload in (False, True):
            with in_lockstep(
                *models, Sharing(VIEWS, **options), BatchLimit(2), num_views=VIEWS, group=group, offload=offload
            ):
                own = guided_call(*models, 2 * VIEWS, group.own(VIEWS))
            both = torch.cat([half[group.own(VIEWS)] for half in expected.chunk(2)])
            torch.testing.assert_close(own, both, atol=1e-4, rtol=0)


def check_memory_running_out_in_one(group: ProcessGroup) -> None:
    """Both go on with fewer views at a time."""
    models = unet_and_controlnet()
    with share_attention(models[0], VIEWS):
        expected = guided_call(*models, 2 * VIEWS)
    block, limit = models[0].up_blocks[-1].resnets[-1], BatchLimit(3)

    def greedy(hidden_states, *args, **kwargs):
        if group.rank == 1 and len(hidden_states) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return type(block).forward(block, hidden_states, *args, **kwargs)

    with forward_replaced(block, greedy), in_lockstep(*models, Sharing(VIEWS), limit, num_views=VIEWS, group=group):
        own = guided_call(*models, 2 * VIEWS, group.own(VIEWS))
    both = torch.cat([half[group.own(VIEWS)] for half in expected.chunk(2)])
    torch.testing.assert_close(own, both, atol=1e-4, rtol=0)
    assert limit.views_per_batch == 1


def check_restyling(group: ProcessGroup, folder: Path) -> None:
    """A whole restyling, cut off by one process and taken up again by both, equals that of one process."""
    restyler, generator = Restyler(stand_in_pipeline(), "test"), torch.Generator().manual_seed(5)
    told = {
        "images": torch.rand(VIEWS, 3, 32, 32, generator=generator),
        "depths": 1 + torch.rand(VIEWS, 1, 32, 32, generator=generator),
        "reference": torch.rand(3, 40, 50, generator=generator),
        "masks": (torch.rand(VIEWS, 1, 32, 32, generator=generator) > 0.5).float(),
        "prompt": "gold",
        **QUICK,
    }
    expected = torch.load(folder / "expected.pt", weights_only=True)

    def stop(done: int, total: int) -> None:
        if done == 2 and group.rank == 0:
            raise StopHereError

    with pytest.raises(StopHereError if group.rank == 0 else FailedElsewhereError):
        restyler.restyle(**told, resume_dir=folder / "state", on_step=stop)
    steps, shown = [], []
    again = restyler.restyle(
        **told,
        resume_dir=folder / "state",
        on_step=lambda done, total: steps.append(done),
        on_view=lambda number, view: shown.append(number),
    )
    assert steps == [3]
    assert shown == [[0, 1, 2], [3, 4]][group.rank]
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=0)
    assert restyler.provenance()["processes"] == 2
    # The first process is the one that others are compared with.
    with pytest.raises(FailedElsewhereError if group.rank == 0 else ValueError):
        restyler.restyle(**{**told, "seed": group.rank})
    with pytest.raises(UserError, match="start at most 1"):
        restyler.restyle(told["images"][:1], told["depths"][:1], "gold", **QUICK)


def work(rank: int, folder: Path) -> None:
    """What one of two processes does; its report is an empty file or a traceback."""
    report = ""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        group = ProcessGroup.here()
        assert (group.rank, group.size, group.leads) == (rank, 2, rank == 0)
        check_shared_attention(group)
        check_memory_running_out_in_one(group)
        check_restyling(group, folder)
        dist.destroy_process_group()
    except BaseException:
        report = traceback.format_exc()
    (folder / f"report_{rank}").write_text(report)


@pytest.mark.timeout(240)
def test_two_processes_give_the_result_of_one(tmp_path):
    generator = torch.Generator().manual_seed(5)
    expected = Restyler(stand_in_pipeline(), "test").restyle(
        torch.rand(VIEWS, 3, 32, 32, generator=generator),
        1 + torch.rand(VIEWS, 1, 32, 32, generator=generator),
        "gold",
        reference=torch.rand(3, 40, 50, generator=generator),
        masks=(torch.rand(VIEWS, 1, 32, 32, generator=generator) > 0.5).float(),
        **QUICK,
    )
    torch.save(expected, tmp_path / "expected.pt")
    both = [forkserver().Process(target=work, args=(rank, tmp_path)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(180)
    hanging = [process for process in both if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process that waits for the other must hear of its end"
    assert [(tmp_path / f"report_{rank}").read_text() for rank in range(2)] == ["", ""]


@examples(100)
@given(views=st.integers(1, 40), size=st.integers(1, 8))
def test_every_view_is_held_once(views, size):
    if views < size:
        with pytest.raises(UserError, match=f"start at most {views}"):
            ProcessGroup(0, size).own(views)
        return
    held = [list(range(views))[ProcessGroup(rank, size).own(views)] for rank in range(size)]
    assert [view for some in held for view in some] == list(range(views))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    assert all(view in held[ProcessGroup(0, size).holder(view, views)] for view in range(views))


def test_alone_nothing_is_exchanged():
    group, tensor = ProcessGroup.here(), torch.rand(3, 2)
    assert group.size == 1
    assert group.gather(tensor, 3) is tensor
    assert group.from_one(tensor, 0) is tensor
    group.agree_on("anything")
    with pytest.raises(ZeroDivisionError), group.working():
        raise ZeroDivisionError
