"""LPIPS, the learned perceptual image patch similarity of two images (Zhang et al. 2018), and its mean over pairs of images.

    d(x, y) = sum_l 1 / (H_l W_l) sum_hw |w_l * (u_l(x)_hw - u_l(y)_hw)|^2        (eq. 1)

u_l is the map of stage l of a network trained on ImageNet, the vector at each place divided by its length; the heads w_l^2
were fitted to people's judgements. Networks are those of torchvision's files, heads those of version 0.1 of the authors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from scalegan.errors import UserError
from scalegan.evaluation import weights
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.float32 import computing_in
from scalegan.pixels import normalise

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From [-1, 1] to the range of the networks' training, by colour."""
EPS = 1e-8
"""Under the root of a vector's length."""
PIXELS = 2**19
"""Of the pairs of one pass: 8 pairs of 256x256, which take 1.5 GB of maps with VGG16."""


class Stage(NamedTuple):
    """Convolutions, each with its ReLU, by their numbers in the file; before them a maximum over `pool` pixels at stride 2."""

    convolutions: tuple[int, ...]
    pool: int = 0
    stride: int = 1
    padding: int = 1


class Backbone(NamedTuple):
    stages: tuple[Stage, ...]
    smallest: int
    """Side from which on the last stage still has a map."""


BACKBONES = {
    "alex": Backbone(
        (Stage((0,), stride=4, padding=2), Stage((3,), pool=3, padding=2), Stage((6,), pool=3), Stage((8,)), Stage((10,))), 31
    ),
    "vgg": Backbone(
        (
            Stage((0, 2)),
            Stage((5, 7), pool=2),
            Stage((10, 12, 14), pool=2),
            Stage((17, 19, 21), pool=2),
            Stage((24, 26, 28), pool=2),
        ),
        16,
    ),
}
"""By the name in `evaluation.lpips`."""


class Lpips(nn.Module):
    """Images float32 [n, 1 or 3, H, W] in [-1, 1], twice -> distances [n]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, state: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """`name` is one of `BACKBONES`; `state` and `heads` are what is in the published files."""
        super().__init__()
        stages, self.smallest = BACKBONES[name]
        self.stages = nn.ModuleList(stage_of(state, stage) for stage in stages)
        self.heads = nn.ParameterList(heads[f"lin{i}.model.1.weight"] for i in range(len(stages)))  # [1, C, 1, 1]
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([a, b]).expand(-1, 3, -1, -1)  # grey is the same in red, green and blue
        size = self.seen(x.shape[2], x.shape[3])
        if size != x.shape[2:]:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = (x - self.shift) / self.scale
        total = x.new_zeros(len(a))
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            first, second = (x * torch.rsqrt(x.square().sum(1, keepdim=True) + EPS)).chunk(2)
            total += ((first - second).square() * head).sum(1).mean((1, 2))
        return total

    def seen(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which images of a size are seen: their own, but for those that are too small."""
        times = max(1.0, self.smallest / min(height, width))
        return round(times * height), round(times * width)


def stage_of(state: Mapping[str, Tensor], stage: Stage) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(stage.pool, 2)] if stage.pool else []
    for number in stage.convolutions:
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        outputs, inputs, kernel, _ = weight.shape
        layer = nn.Conv2d(inputs, outputs, kernel, stage.stride, stage.padding)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class PerceptualDistance:
    """Images [n, 1 or 3, H, W], uint8 or float from -1 to 1, twice -> LPIPS float64 [n], on any device."""

    name: str
    network: Lpips
    weights_sha256: str
    heads_sha256: str
    device: torch.device

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        at_once = max(1, PIXELS // (a.shape[2] * a.shape[3]))  # of the size alone, as float32 depends on it in the last bits
        with computing_in("float32", self.device):
            parts = (slice(first, first + at_once) for first in range(0, len(a), at_once))
            return torch.cat([self.network(self.ready(a[part]), self.ready(b[part])) for part in parts]).double()

    def ready(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        return normalise(images) if images.dtype == torch.uint8 else images

    def provenance(self, height: int, width: int) -> dict[str, Any]:
        """What a record says of how images of a size were compared."""
        size = self.network.seen(height, width)
        enlarged = f"bilinear from {height}x{width} to {size[0]}x{size[1]}" if size != (height, width) else "none"
        return {
            "lpips": self.name,
            "lpips_weights_sha256": self.weights_sha256,
            "lpips_heads_sha256": self.heads_sha256,
            "lpips_resize": enlarged,
        }


def load_lpips(config: EvaluationConfig, device: torch.device, team: Team) -> PerceptualDistance:
    """The network that `config` names, on every process. Raises `UserError` on all."""
    name = config.lpips
    path = team.look(lambda: weights.lpips_path(name, config.lpips_weights))
    with team.as_one():  # each machine may have files of its own
        state, sha256 = weights.read_known(path, weights.LPIPS[name].sha256)
        heads = weights.read_checked(weights.lpips_heads_path(name), weights.LPIPS_HEADS_SHA256[name])
    network = Lpips(name, state, heads).to(device).eval()
    return PerceptualDistance(name, network, sha256, weights.LPIPS_HEADS_SHA256[name], device)


class PairDistance(Metric):
    """Mean distance over pairs of images that have nothing to do with each other: the larger, the more varied they are.

    `update(a, b)` on any number of processes, then `compute()` -> {name, f"{name}_se"}, the mean and its standard error,
    float64. That is right where no image is in two pairs. Raises `UserError` for fewer than two pairs.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    moments: Tensor

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], name: str = "lpips_pairs") -> None:
        """`distance` takes images twice, in any form that `update` is to be given, and gives their distances [n]."""
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.distance, self.name = distance, name
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, a: Tensor, b: Tensor) -> None:
        """Images [n, C, H, W] and what each of them is held against."""
        found = self.distance(a, b).double().to(self.moments.device)
        self.moments += torch.stack([torch.ones_like(found), found, found.square()]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Collective."""
        team = Team() if self._is_synced else Team.of_world()
        count, total, squares = team.add_up(self.moments)[0].unbind()
        if count < 2:
            raise UserError(f"{type(self).__name__} needs 2 pairs of images and was given {int(count)}: give it more")
        mean = total / count
        variance = ((squares - count * mean.square()) / (count - 1)).clamp(min=0)
        return {self.name: mean, f"{self.name}_se": (variance / count).sqrt()}
