"""DINOv2's vision transformer (Oquab et al. 2023) as a feature extractor: what FD-DINOv2 (Stein et al. 2023) is measured with.

The published files hold all that is needed, under the names that stand here; nothing is fetched from a hub or executed.
Which size it is (S, B or L, all with patches of 14) is read from the shapes. FD-DINOv2 in papers is that of ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegan.errors import UserError
from scalegan.evaluation.network import FeatureNetwork

SIDE, PATCH = 224, 14
DEPTHS = {384: 12, 768: 12, 1024: 24}
"""Blocks of S, B and L by their width."""
HEAD = 64
"""Width of an attention head in every size."""
GRID = 37
"""Patches a side of the images that the positions were trained for, 518x518."""
NORM_EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(FeatureNetwork):
    """The class token after the last norm: `width` features."""

    cpu_batch = 4
    resize = f"torch bicubic with antialias to {SIDE}x{SIDE}"

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.num_features = width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the pre-training: in the files, and without use here
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, width]."""
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True) / 255
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + positions(self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = self.norm(tokens[:, 0])
        return features


class Block(nn.Module):
    """Attention, then a perceptron of four times the width: each after a norm, scaled by channel, and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(width)})
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(width)})

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] -> the same shape."""
        x = x + self.ls1["gamma"] * self.attention(self.norm1(x))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        y: Tensor = x + self.ls2["gamma"] * self.mlp["fc2"](hidden)
        return y

    def attention(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.attn["qkv"](x).view(n, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        y: Tensor = self.attn["proj"](mixed)
        return y


def positions(trained: Tensor) -> Tensor:
    """[1, 1 + GRID^2, width] -> [1, 1 + (SIDE / PATCH)^2, width].

    As published: bicubic without antialias, at a scale that is a tenth of a patch larger than the ratio of the sides.
    """
    patches = trained[:, 1:].transpose(1, 2).reshape(1, -1, GRID, GRID)
    scale = (SIDE // PATCH + 0.1) / GRID
    smaller = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([trained[:, :1], smaller.flatten(2).transpose(1, 2)], 1)


def from_state(state: Mapping[str, Tensor], path: Path) -> DinoV2:
    """The network of a weight file. Raises `UserError`, which names `path`, for anything but ViT-S/14, B/14 or L/14."""
    if "register_tokens" in state:
        raise UserError(f"weights {path} are of a DINOv2 with registers, whose features are others: give one without (vitl14)")
    width = state["cls_token"].numel() if "cls_token" in state else 0
    if "blocks.0.mlp.fc1.weight" not in state or width not in DEPTHS:
        raise UserError(f"weights {path} are not of DINOv2 ViT-S/14, B/14 or L/14: fetch dinov2_vitl14_pretrain.pth")
    network = DinoV2(width, DEPTHS[width])
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"weights {path} do not fit DINOv2 ViT-S/14, B/14 or L/14 ({what}): fetch the file again") from None
    return network.requires_grad_(False)
