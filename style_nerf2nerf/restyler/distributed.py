"""Processes that restyle one scene together: who holds which views, and what they tell each other.

Under torchrun each process holds consecutive views of a scene. Attention shared over views gathers keys and values
from all of them, so every process must come to every gathering: before each one they agree that all is well. A process
that failed says so once, when the work ends for it, and the others leave theirs at the next agreement instead of
waiting for ever. Alone, a process is a group of one and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from eschernet_prior.base.errors import UserError


class State(IntEnum):
    """What a process says of itself; the highest counts for all."""

    WELL = 0
    AGAIN = 1
    """Memory ran out: all repeat the call with fewer views at a time."""
    FAILED = 2


class RepeatError(RuntimeError):
    """Another process ran out of memory: what is being computed is to be computed again."""


class FailedElsewhereError(RuntimeError):
    """Another process failed, and says why itself."""


class ProcessGroup:
    """One process's part in the work on a scene."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def here(cls) -> ProcessGroup:
        """The processes that torch.distributed has been initialised with; else this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def counts(self, views: int) -> list[int]:
        """How many views each process holds: as even as can be, more in the first ones.

        Raises:
            UserError: If there are fewer views than processes.
        """
        if views < self.size:
            raise UserError(f"{self.size} processes cannot restyle {views} views: start {views} at most.")
        return [views // self.size + (rank < views % self.size) for rank in range(self.size)]

    def own(self, views: int) -> slice:
        """Which of a scene's views this process holds."""
        counts = self.counts(views)
        first = sum(counts[: self.rank])
        return slice(first, first + counts[self.rank])

    def holder(self, view: int, views: int) -> int:
        """Which process holds a view."""
        counts = self.counts(views)
        return next(rank for rank in range(self.size) if view < sum(counts[: rank + 1]))

    @contextmanager
    def working(self) -> Iterator[None]:
        """The work of all processes on one scene: if one fails inside, all leave.

        Raises:
            FailedElsewhereError: If another process failed.
        """
        try:
            yield
        except FailedElsewhereError:
            raise
        except BaseException:
            self._highest(State.FAILED)
            raise
        self.agree()

    def agree(self, state: State = State.WELL) -> None:
        """Says how this process is and hears how the others are.

        Raises:
            RepeatError: If memory ran out somewhere.
            FailedElsewhereError: If another process failed.
        """
        state = self._highest(state)
        if state is State.FAILED:
            raise FailedElsewhereError("Another process of this restyling failed; its own message says why.")
        if state is State.AGAIN:
            raise RepeatError

    def agree_on(self, fingerprint: str) -> None:
        """Makes sure that all processes mean the same.

        Args:
            fingerprint: A text of the same length everywhere.

        Raises:
            ValueError: If this process means something else than the first one.
        """
        own = torch.tensor(list(fingerprint.encode()), dtype=torch.uint8)
        if not torch.equal(self.from_one(own, 0), own):
            raise ValueError("The processes of a restyling were called with different arguments.")

    def gather(self, own: Tensor, views: int) -> Tensor:
        """All views' rows, in the order of the views.

        Args:
            own: This process's views along the first side; the others' have the same other sides.
            views: Views of the scene.
        """
        if self.size == 1:
            return own
        # Whatever may fail comes before the agreement: past it, all have to stay until all have sent.
        parts = [self._letter(own, count, rank) for rank, count in enumerate(self.counts(views))]
        self.agree()
        for rank, part in enumerate(parts):
            dist.broadcast(part, src=rank)
        return torch.cat(parts).to(own.device)

    def from_one(self, tensor: Tensor, rank: int) -> Tensor:
        """One process's tensor; the others give one of the same shape."""
        if self.size == 1:
            return tensor
        letter = self._letter(tensor, len(tensor), rank)
        self.agree()
        dist.broadcast(letter, src=rank)
        return letter.to(tensor.device)

    def _letter(self, own: Tensor, rows: int, rank: int) -> Tensor:
        """What is sent by a process, filled if it is this one."""
        letter = torch.empty(rows, *own.shape[1:], dtype=own.dtype, device=self._device)
        return letter.copy_(own) if rank == self.rank else letter

    def _highest(self, state: State) -> State:
        if self.size == 1:
            return state
        told = torch.tensor(int(state), device=self._device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return State(int(told))

    @property
    def _device(self) -> torch.device:
        """Where this backend's messages lie: NCCL has no use for the CPU's memory, gloo is at home in it."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
