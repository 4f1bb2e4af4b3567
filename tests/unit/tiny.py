"""Shards, configurations and checkpoints small enough that a test can make its own."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scalegan import checkpoint
from scalegan.config import Config, DataConfig, LogConfig, TrainConfig
from scalegan.data.index import Index
from scalegan.data.writer import Sample, write_shards
from scalegan.evaluation_config import EvaluationConfig
from scalegan.model_config import ModelConfig
from scalegan.models import build_generator


def make_shards(
    folder: Path, samples: int = 48, height: int = 16, width: int = 12, channels: int = 1, classes: tuple[str, ...] = ()
) -> Index:
    """Random blobs: no two images are alike, and none is hard to learn."""
    draw = np.random.default_rng(0)

    def image(i: int) -> Sample:
        pixels = np.kron(draw.integers(0, 256, (4, 4, channels)), np.ones((height // 4, width // 4, 1))).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(buffer, "png")
        return Sample(buffer.getvalue(), "png", i % len(classes) if classes else -1)

    shape = {"height": height, "width": width, "channels": channels}
    return write_shards(map(image, range(samples)), folder, classes=classes, shard_samples=20, source="test", **shape)


def make_config(data: Path, run: Path, **sections: Any) -> Config:
    """A run of seconds; `train={"images": 64}` and the like change fields."""
    # What nobody reads is left out: a training would refuse it.
    told = {"class_dim": 4} if sections.get("model", {}).get("conditional") else {}
    networks = {"z_dim": 8, "width": 8, "max_width": 16, "critic_width": 8, "critic_max_width": 16, "critic_norm": "none"}
    config = Config(
        run=str(run),
        data=DataConfig(path=str(data), workers=0),
        model=ModelConfig(**networks, **told),  # type: ignore[arg-type]
        train=TrainConfig(images=64, batch=8, device="cpu", precision="fp32"),
        log=LogConfig(every=16, samples=32, checkpoint=32, grid=9, wandb="off"),
        evaluation=EvaluationConfig(every=0, samples=16, batch=8),
    )
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in sections.items()})


def save_checkpoint(config: Config, index: Index, images_seen: int = 640, seed: int = 0) -> Path:
    """A checkpoint of an untrained run, whose averaged generator differs from the raw one."""
    parts = {}
    for name in ("generator", "ema"):
        torch.manual_seed(seed + len(parts))
        shape = (index.channels, index.height, index.width)
        parts[name] = build_generator(config.model, shape, len(index.classes)).state_dict()
    data = {"shape": shape, "classes": index.classes, "class_counts": index.class_counts, "path": index.root}
    return checkpoint.save(Path(config.run), images_seen, parts, {"config": config.to_dict(), "data": data})


def cut_copy(shards: Path, copy: Path) -> Path:
    """The same shards, the last of which has lost its end."""
    shutil.copytree(shards, copy)
    last = sorted(copy.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:-4096])
    return copy
