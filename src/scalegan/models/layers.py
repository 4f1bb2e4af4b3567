"""What the network families share: sizes and widths, layers, the types that numbers are in, spectral normalisation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization


def halvings(height: int, width: int, coarsest: int = 7) -> list[tuple[int, int]]:
    """Sizes (height, width) from the coarsest to the image's own, each half of the next, rounded up.

    The first is that whose shorter side is at most `coarsest`: 64 x 64 starts at 4 x 4, 100 x 100 at 7 x 7, 104 x 88 at 7 x 6.
    """
    sizes = [(height, width)]
    while min(sizes[0]) > coarsest:
        h, w = sizes[0]
        sizes.insert(0, (-(-h // 2), -(-w // 2)))
    return sizes


def stage_widths(width: int, most: int, stages: int) -> list[int]:
    """Channels from the highest resolution to the coarsest: doubled at each halving, up to `most`."""
    return [min(most, width * 2**i) for i in range(stages)]


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel four times, cut to (height, width)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1]]


def downsample(x: Tensor) -> Tensor:
    """The mean of each 2 x 2 pixels, of those that there are at the far side of an odd size."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class Slope(nn.LeakyReLU):
    """max(x, 0.2 x)."""

    def __init__(self) -> None:
        super().__init__(0.2)


class Halve(nn.Module):
    """4 x 4 convolution of stride 2; odd sizes are rounded up: one row or column more at the far side."""

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        halved: Tensor = self.conv(x)
        return halved


class _Flat(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


def flat(x: Tensor) -> Tensor:
    """`x.flatten(1)` of maps [N, C, H, W] in channels-last memory, whose gradient lies there as they do: what meets tensors in
    two layouts takes several times as long."""
    # A compiler chooses layouts by itself, and Dynamo would lose the gradient of a Function's gradient.
    flattened: Tensor = x.flatten(1) if torch.compiler.is_compiling() else _Flat.apply(x)  # type: ignore[no-untyped-call]
    return flattened


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is for convolutions; logits, norms and losses are summed in no less than float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer that makes a logit, in no less than float32 also under autocast.

    bfloat16 has 8 bits: logits near 4 would come in steps of 1/32, and the differences that a relativistic loss goes by would
    vanish.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits: Tensor = layer(at_least_float32(x))
    return logits


def in_float16(device: torch.device) -> bool:
    """Whether convolutions are to be in float16, which ends at 65,504; bfloat16 has the exponents of float32."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16


def out_of_float16(device: torch.device) -> AbstractContextManager[None]:
    """For a gradient of a gradient: float16 has too few exponents for it."""
    return torch.autocast(device.type, enabled=False) if in_float16(device) else nullcontext()


class SpectralNorm(nn.Module):
    """W / sigma(W), whose largest singular value is 1, in float32 (Miyato et al. 2018, eq. 8 and algorithm 1).

    One power iteration each time that the weight is asked for in training, none in evaluation; its vectors are buffers, and
    saved.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("_u", F.normalize(torch.randn(len(weight)), dim=0))
        self.register_buffer("_v", F.normalize(torch.randn(weight[0].numel()), dim=0))
        self.iterate(weight, 15)

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        """Bring the two vectors nearer to the singular vectors of the largest singular value."""
        matrix = weight.flatten(1)
        for _ in range(times):  # by `out`: `torch.func` takes copying into a buffer for a mistake
            F.normalize(matrix.mv(self._v), dim=0, out=self._u)
            F.normalize(matrix.T.mv(self._u), dim=0, out=self._v)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                self.iterate(weight)
            # Copies, as the next forward pass moves them before our backward; of clones, compiled code saves the originals.
            both = torch.cat([self._u, self._v])
            u, v = both[: len(self._u)], both[len(self._u) :]
            return weight / u.dot(weight.flatten(1).mv(v))


def normalise_weights(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Spectral normalisation of the weights of all modules of these kinds."""
    for module in list(network.modules()):
        if isinstance(module, kinds):
            register_parametrization(module, "weight", SpectralNorm(module.weight), unsafe=True)  # type: ignore[arg-type]


def follow_weights(network: nn.Module) -> None:
    """A power iteration of every spectral normalisation of a network that is never trained, after its weights have moved."""
    for module in network.modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], SpectralNorm):
            module[0].iterate(module.original)
