"""Peak memory of tensors, added up exactly as operations make and free them."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Adds up the sizes of the storages that operations make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, *models):
        """Leaves out what is there already."""
        for model in models:
            self._known |= {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key, size):
        self._known.discard(key)
        self.now -= size


def peak_of(models, call) -> int:
    with LiveBytes() as live:
        live.ignore(*models)
        call()
    return live.peak
