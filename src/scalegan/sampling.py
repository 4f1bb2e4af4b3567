"""Images from a generator: image i of a seed is the same whoever asks for it, in whatever company."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalegan import checkpoint, launcher, random, settings
from scalegan.config import Config
from scalegan.errors import UserError, sought
from scalegan.float32 import computing_in
from scalegan.models import build_generator, place
from scalegan.pixels import to_uint8

BLOCK = 64
"""Images of one forward pass. Always full and aligned, as the last bits of a convolution depend on the batch size."""


@torch.inference_mode()
def images_of(
    generator: nn.Module,
    z_dim: int,
    class_counts: Sequence[int],
    seed: int,
    first: int,
    count: int,
    labels: Tensor | None = None,
) -> Tensor:
    """Images first to first + count of a seed: uint8 [count, C, H, W] on the CPU.

    `labels` [count] are those of a conditional generator; None draws them by the data's histogram (`class_counts`). In plain
    float32, whatever a training around it computes in. Raises `UserError` for pixels that are no numbers.
    """
    device = next(generator.parameters()).device
    blocks = []
    for start in range(first - first % BLOCK, first + count, BLOCK):
        latents = torch.from_numpy(random.normal(seed, "samples", start, BLOCK, z_dim)).to(device)
        chosen = torch.full((BLOCK,), -1, dtype=torch.int64)
        if class_counts:
            chosen = torch.from_numpy(drawn_labels(seed, start, BLOCK, class_counts))
        low, high = max(first, start), min(first + count, start + BLOCK)
        if labels is not None:
            chosen[low - start : high - start] = labels[low - first : high - first]
        with computing_in("float32", device):
            images = generator(latents, chosen.to(device))
        made = pixels(images, f"images {start} to {start + BLOCK - 1} of seed {seed}")
        blocks.append(made[low - start : high - start].cpu())
    return torch.cat(blocks)


def pixels(images: Tensor, which: str) -> Tensor:
    """Images in [-1, 1] -> uint8. Raises `UserError` for numbers that are none: they would be black ones among the integers."""
    if not images.isfinite().all():
        raise UserError(
            f"the generator makes NaN or infinite pixels ({which}), as its training diverged: take an earlier checkpoint, or a "
            "lower optim.lr_g"
        )
    return to_uint8(images)


class Passes:
    """The images that `make(first, count)` makes, by whole passes. The last one is kept, as what is asked for next may begin
    in it."""

    def __init__(self, make: Callable[[int, int], Tensor]) -> None:
        self.make, self.start, self.last = make, -1, torch.empty(0)

    def __call__(self, first: int, count: int) -> Tensor:
        """Images first to first + count."""
        parts = []
        for start in range(first - first % BLOCK, first + count, BLOCK):
            if start != self.start:
                self.start, self.last = start, self.make(start, BLOCK)
            parts.append(self.last[max(first - start, 0) : first + count - start])
        return torch.cat(parts)


def at_once(make: Callable[[int, int], Tensor], batch: int) -> int:
    """Images of `make` that a process takes at a time where `batch` of them go through the extractor together.

    Of `Passes` they are as many batches as a pass has images, or the other processes would make the same pass.
    """
    return batch * math.ceil(BLOCK / batch) if isinstance(make, Passes) else batch


def drawn_labels(seed: int, first: int, count: int, class_counts: Sequence[int]) -> NDArray[np.int64]:
    """Labels [count] of the images of a seed, drawn by the data's histogram."""
    return random.choice(seed, "samples/labels", first, count, np.asarray(class_counts))


def grid_labels(count: int, classes: int) -> Tensor | None:
    """Labels of a sample grid with a column a class; None where there are no classes."""
    return torch.arange(count) % classes if classes else None


@dataclass(frozen=True)
class LoadedGenerator:
    """The averaged generator of a checkpoint, ready to sample from."""

    network: nn.Module
    config: Config
    shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    images_seen: int
    path: Path
    """The checkpoint's folder."""

    def sample(self, n: int, seed: int = 0, labels: Sequence[int] | Tensor | None = None) -> Tensor:
        """n images: uint8 [n, C, H, W]. `labels` are n class numbers for a conditional generator; None follows the data."""
        return self.sample_range(0, n, seed, labels)

    def sample_range(self, first: int, count: int, seed: int = 0, labels: Sequence[int] | Tensor | None = None) -> Tensor:
        """Images first to first + count of a seed."""
        try:
            seed = int(operator.index(seed))  # it is hashed as it is written: 1.0 would be another one than 1
        except TypeError:
            raise UserError(f"seed {seed!r} is no whole number: give one, such as 0") from None
        if count < 0:
            raise UserError(f"{count} images cannot be made: ask for 0 or more")
        if first < 0:
            raise UserError(f"there is no image {first}: the first one of a seed is 0")
        chosen = None
        if labels is not None:
            chosen = whole_numbers(labels)
            if not self.config.model.conditional:
                raise UserError(f"{self.path} is not class-conditional: sample it without labels")
            if chosen is None or chosen.shape != (count,) or bool(((chosen < 0) | (chosen >= len(self.classes))).any()):
                raise UserError(
                    f"labels must be {count} class numbers from 0 to {len(self.classes) - 1} ({', '.join(self.classes)})"
                )
        if count == 0:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        counts = self.class_counts if self.config.model.conditional else ()
        return images_of(self.network, self.config.model.z_dim, counts, seed, first, count, chosen)

    def truncate(self, truncation: float) -> None:
        """Sample from now on at this share of the way from the mean image's w to each image's own: 1 is all of it.

        Less is more typical and less diverse (Karras et al. 2019, appendix B). Raises `UserError` without such a w.
        """
        model = self.config.model
        if not hasattr(self.network, "truncation"):
            what = f"the generator {model.generator}" if model.generator else f"model.family {model.family}"
            raise UserError(f"{self.path} is of {what}, which cannot be truncated: sample it as it is")
        self.network.truncation = truncation  # type: ignore[assignment]

    def labels_of(self, first: int, count: int, seed: int = 0) -> NDArray[np.int64]:
        """Labels [count] that `sample_range` draws when it is given none; -1 without classes."""
        if not self.config.model.conditional:
            return np.full(count, -1, np.int64)
        return drawn_labels(seed, first, count, self.class_counts)


def whole_numbers(labels: Sequence[int] | Tensor) -> Tensor | None:
    """int64; None for what is no tensor of such numbers."""
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if given.numel() and (given.is_floating_point() or given.is_complex()) else given.long()


def find_checkpoint(path: Path) -> checkpoint.Checkpoint:
    """The checkpoint in a folder, or the newest valid one of a run folder; damaged ones are told. Raises `UserError`."""
    if (path / checkpoint.MANIFEST).is_file():
        return checkpoint.read(path)
    if not path.is_dir():
        problem = f"{path} is a file" if path.exists() else f"{sought(path)} does not exist"
        raise UserError(f"{problem}: give a run folder or one of its checkpoints")
    found, complaints = checkpoint.latest(path)
    if found is None:
        if path.name == checkpoint.CHECKPOINTS:
            raise UserError(f"{path} is no run: give {path.parent}, or one of the checkpoints in there")
        raise UserError("; ".join(complaints) or f"{path} has no checkpoint yet: train it first")
    if launcher.rank() == 0:
        for complaint in complaints:
            print(f"scalegan: {complaint}; the one before is taken", file=sys.stderr)
    return found


def fill(generator: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put in the weights of the checkpoint `path`. Raises `UserError` where they are those of another class."""
    try:
        generator.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} holds another generator than {type(generator).__name__} ({reason}): give its class") from None


def load_generator(
    run_or_checkpoint: str | Path, device: str | torch.device = "cpu", generator: type[nn.Module] | None = None
) -> LoadedGenerator:
    """The averaged (EMA) generator of a run's newest valid checkpoint, or of the checkpoint given.

    `generator` is the class where it is the user's own: no code is imported on the word of a run. Raises `UserError`.

    >>> load_generator("runs/kiwi").sample(16, seed=0).shape  # doctest: +SKIP
    torch.Size([16, 3, 100, 100])
    """
    found = find_checkpoint(Path(run_or_checkpoint))
    config = settings.config_of(found)
    data = found.state["data"]
    channels, height, width = data["shape"]
    network = build_generator(config.model, (channels, height, width), len(data["classes"]), generator)
    fill(network, found.tensors("ema"), found.path)
    try:
        place(network, device).eval().requires_grad_(False)
    except (AssertionError, RuntimeError) as error:  # the former where torch was built without CUDA
        reason = " ".join(str(error).split())
        raise UserError(f"device {device} cannot be used ({reason}): give another one, such as cpu") from None
    return LoadedGenerator(
        network,
        config,
        (channels, height, width),
        tuple(data["classes"]),
        tuple(data["class_counts"]),
        found.images_seen,
        found.path,
    )
