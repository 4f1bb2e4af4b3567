"""Values on their way to the GPU, which nobody waits for."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Values in host memory, also pinned ones -> on the device.

    Through pinned memory, as a copy from any other waits until the GPU has done all that it was given before.
    """
    tensor = torch.as_tensor(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
