"""Weights of the FID Inception's shape but not of its training: made from a seed, for tests without a download."""

import numpy as np
import torch
from torch import Tensor


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """Kernel shape [out, in, height, width] of every convolution, by its name in the weight files."""
    found = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }

    def block(name: str, **branches: tuple[int, int, int, int]) -> None:
        found.update({f"{name}.{branch}": shape for branch, shape in branches.items()})

    for name, inputs, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        block(
            f"Mixed_{name}",
            branch1x1=(64, inputs, 1, 1),
            branch5x5_1=(48, inputs, 1, 1),
            branch5x5_2=(64, 48, 5, 5),
            branch3x3dbl_1=(64, inputs, 1, 1),
            branch3x3dbl_2=(96, 64, 3, 3),
            branch3x3dbl_3=(96, 96, 3, 3),
            branch_pool=(pool, inputs, 1, 1),
        )
    block(
        "Mixed_6a",
        branch3x3=(384, 288, 3, 3),
        branch3x3dbl_1=(64, 288, 1, 1),
        branch3x3dbl_2=(96, 64, 3, 3),
        branch3x3dbl_3=(96, 96, 3, 3),
    )
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        block(
            f"Mixed_{name}",
            branch1x1=(192, 768, 1, 1),
            branch7x7_1=(inner, 768, 1, 1),
            branch7x7_2=(inner, inner, 1, 7),
            branch7x7_3=(192, inner, 7, 1),
            branch7x7dbl_1=(inner, 768, 1, 1),
            branch7x7dbl_2=(inner, inner, 7, 1),
            branch7x7dbl_3=(inner, inner, 1, 7),
            branch7x7dbl_4=(inner, inner, 7, 1),
            branch7x7dbl_5=(192, inner, 1, 7),
            branch_pool=(192, 768, 1, 1),
        )
    block(
        "Mixed_7a",
        branch3x3_1=(192, 768, 1, 1),
        branch3x3_2=(320, 192, 3, 3),
        branch7x7x3_1=(192, 768, 1, 1),
        branch7x7x3_2=(192, 192, 1, 7),
        branch7x7x3_3=(192, 192, 7, 1),
        branch7x7x3_4=(192, 192, 3, 3),
    )
    for name, inputs in (("7b", 1280), ("7c", 2048)):
        block(
            f"Mixed_{name}",
            branch1x1=(320, inputs, 1, 1),
            branch3x3_1=(384, inputs, 1, 1),
            branch3x3_2a=(384, 384, 1, 3),
            branch3x3_2b=(384, 384, 3, 1),
            branch3x3dbl_1=(448, inputs, 1, 1),
            branch3x3dbl_2=(384, 448, 3, 3),
            branch3x3dbl_3a=(384, 384, 1, 3),
            branch3x3dbl_3b=(384, 384, 3, 1),
            branch_pool=(192, inputs, 1, 1),
        )
    return found


def made_up_weights(seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the names of pytorch-fid's file but the classifier, at a scale that keeps the activations' size."""
    state: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(shapes().items()):
        bits = np.random.Philox(key=seed, counter=number << 32)

        def uniform(*size: int, bits: np.random.Philox = bits) -> Tensor:
            words = bits.random_raw(int(np.prod(size))) >> np.uint64(40)
            return torch.from_numpy((words.astype(np.float64) / 2**24).astype(np.float32)).reshape(size)

        state[f"{name}.conv.weight"] = (uniform(*shape) - 0.5) * (24 / np.prod(shape[1:])) ** 0.5
        state[f"{name}.bn.weight"] = 0.9 + 0.2 * uniform(shape[0])
        state[f"{name}.bn.bias"] = 0.2 * uniform(shape[0]) - 0.1
        state[f"{name}.bn.running_mean"] = 0.2 * uniform(shape[0]) - 0.1
        state[f"{name}.bn.running_var"] = 0.8 + 0.4 * uniform(shape[0])
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)
    return state


def picture(height: int, width: int) -> Tensor:
    """uint8 [1, 3, height, width] with edges and gradients."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows * 5 % 256, columns * 7 % 256, (rows * columns) % 256]).to(torch.uint8)[None]
