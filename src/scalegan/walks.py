"""Ways from one random latent to another, and the images along them: for films, and for the perceptual path length.

In z a way leads over the sphere, in w (StyleGAN's) straight. An image keeps its label and its noise on the way, so that only
what the latents stand for changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalegan import random
from scalegan.float32 import computing_in
from scalegan.models.noise import noise_keys
from scalegan.sampling import BLOCK, LoadedGenerator, pixels


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The share t [N, 1] of the way from a to b [N, z_dim], both its angle and its length: float64 [N, z_dim].

    Between unit vectors it is Karras' (2019, section 4.1). A generator that does not scale its latents gets them at lengths it
    knows.
    """
    a, b = a.double(), b.double()
    start, end = F.normalize(a), F.normalize(b)
    cosine = (start * end).sum(1, keepdim=True).clamp(-1, 1)
    angle = t * cosine.acos()
    direction = start * angle.cos() + F.normalize(end - cosine * start) * angle.sin()
    return direction * torch.lerp(a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True), t)


def along_z(network: nn.Module, a: Tensor, b: Tensor, t: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """Images at the share t [N, 1] of the way from a to b [N, z_dim] on the sphere."""
    latents = slerp(a, b, t).float()
    with_keys = (keys,) if "keys" in inspect.signature(network.forward).parameters else ()
    images: Tensor = network(latents, labels, *with_keys)
    return images


def along_w(network: Any, a: Tensor, b: Tensor, t: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """Images at the share t [N, 1] of the straight way between what a and b [N, z_dim] are mapped to."""
    ws, others = (network.styles(latents, labels, keys).double() for latents in (a, b))
    images: Tensor = network.synthesise(torch.lerp(ws, others, t[:, :, None]).float(), keys)
    return images


ALONG: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {"z": along_z, "w": along_w}


def spaces(network: nn.Module) -> tuple[str, ...]:
    """The latents that there are: "z", and "w" where the generator maps z to one for each layer."""
    return ("z", "w") if hasattr(network, "styles") and hasattr(network, "synthesise") else ("z",)


@torch.inference_mode()
def walk(loaded: LoadedGenerator, count: int, seeds: Sequence[int], steps: int, labels: Tensor) -> Iterator[Tensor]:
    """Frames of a walk that ends where it began: uint8 [count, C, H, W] on the CPU, `steps` of them from each seed to the next.

    Place i goes from image i of the first seed to image i of each other one, and back. `labels` int64 [count] stay all the way;
    -1 without classes. Raises `UserError` for pixels that are no numbers.
    """
    network, z_dim = loaded.network, loaded.config.model.z_dim
    device = next(network.parameters()).device
    latents = torch.stack([torch.from_numpy(random.normal(s, "samples", 0, count, z_dim)) for s in seeds]).to(device)
    keys, labels = noise_keys(latents[0]), labels.to(device)
    along = ALONG[spaces(network)[-1]]
    frames, rows = len(seeds) * steps, np.arange(BLOCK)
    ready: list[Tensor] = []
    for start in range(0, frames * count, BLOCK):  # whole passes, of several frames each where these are small
        number = np.minimum(start + rows, frames * count - 1)
        frame, image = torch.from_numpy(number // count).to(device), torch.from_numpy(number % count).to(device)
        leg, share = frame // steps, (frame % steps).double()[:, None] / steps
        a, b = latents[leg, image], latents[(leg + 1) % len(seeds), image]
        with computing_in("float32", device):
            images = along(network, a, b, share, labels[image], keys[image])
        ready.append(pixels(images, f"on the way between seeds {seeds}")[: frames * count - start].cpu())
        if sum(map(len, ready)) >= count:
            made = torch.cat(ready)
            whole = len(made) - len(made) % count
            yield from torch.split(made[:whole], count)
            ready = [made[whole:]]
