"""Numbers on their way from the device to the host, without stopping the device."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Readback:
    """Scalars copied to the host in one transfer; asking for them waits for that transfer alone."""

    def __init__(self, scalars: Mapping[str, Tensor | float]) -> None:
        self._plain = {name: value for name, value in scalars.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
        self._names, self._order = list(tensors), list(scalars)
        self._event: torch.cuda.Event | None = None
        packed = torch.stack([value.detach().double() for value in tensors.values()]) if tensors else None
        if packed is not None and packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            packed = host
        self._packed = packed

    @property
    def ready(self) -> bool:
        """Whether the numbers have arrived."""
        return self._event is None or self._event.query()

    def values(self) -> dict[str, float]:
        """The numbers, in the order given; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        read = [] if self._packed is None else self._packed.tolist()
        found = self._plain | dict(zip(self._names, read, strict=True))
        return {name: float(found[name]) for name in self._order}
