"""Half and twice the size of feature maps and images through a low-pass filter, for any height and width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan.channelwise import filtered

TAPS = (1.0, 3.0, 3.0, 1.0)
"""[1, 2, 1] * [1, 1]: a smooth filter that halves and doubles sizes."""


class LowPass(nn.Module):
    """The filter [1, 3, 3, 1] along both axes, channel by channel, by plain (transposed) convolutions."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(TAPS) / sum(TAPS)
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def halved(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)]."""
        return filtered(evened(x), self._kernels(x), stride=2, padding=1, groups=x.shape[1])

    def doubled(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x [N, C, ceil(H/2), ceil(W/2)] -> [N, C, H, W], where `size` is (H, W)."""
        (height, width), twice = size, (2 * x.shape[2], 2 * x.shape[3])
        doubled = filtered(x, self._kernels(x, 4), stride=2, padding=1, groups=x.shape[1], size=twice)
        return doubled[..., :height, :width]

    def smoothed(self, x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
        """x [N, C, H, W] -> [N, C, H + 2 padding - 3, W + 2 padding - 3]."""
        return filtered(x, self._kernels(x, gain), padding=padding, groups=x.shape[1])

    def _kernels(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return (gain * self.kernel).to(x.dtype).expand(x.shape[1], 1, 4, 4)


def evened(x: Tensor) -> Tensor:
    """An odd height or width rounded up: one row or column more at the far side."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2))
