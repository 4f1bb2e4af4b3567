"""What the tests in `tests/gpu` run with and how they compare runs; `tests/unit/test_gpu_options.py` tries both on a CPU."""

from typing import Any

import pytest

SMALL = (
    "--train.batch 32 --model.z_dim 8 --model.width 8 --model.critic_width 8 --model.critic_norm none --model.init kaiming "
    "--loss.r1_gamma 0.1 --augment.shift 0.1 --log.every 32 --log.samples 256 --log.checkpoint 256 --log.wandb off "
    "--evaluation.samples 64 --evaluation.every 0"
).split()
REPEATABLE = "--train.deterministic true --train.precision fp32".split()
GRAPHS = ["--train.compile", "true", "--train.cuda_graphs", "true", *REPEATABLE]
OTHER = "--model.critic_norm auto --model.init dcgan"
"""Families with a start of their own."""
RECORDED = (
    "",
    "--train.accumulate 2",
    "--train.accumulate 2 --loss.penalty_every 2 --loss.diversity_weight 1 --augment.target 0.6",
    "--loss.name relativistic --loss.r2_gamma 0.1 --optim.critic_steps 2",
    "--model.critic_norm batch --augment.pipe photo",
    f"--model.family resnet {OTHER} --loss.name hinge",
    f"--model.family stylegan2 {OTHER} --model.map_layers 2 --loss.path_weight 2",
    "--train.precision bf16",
    "--train.precision fp16",
)
"""Further options of steps that are recorded as CUDA graphs."""
ON_TWO = "--model.norm_group 8 --train.accumulate 2"
STREAMED = "--data.reader stream --data.workers 2"

COMPARED = ("loss/", "logits/", "grad_norm/", "r1", "r2", "path")
ALWAYS = {"loss/D", "loss/G", "logits/real", "logits/fake", "grad_norm/D", "grad_norm/G"}


def assert_alike(lines: list[dict[str, Any]], others: list[dict[str, Any]], *, steps: int, close: float) -> None:
    """The first steps of two runs, by their lines of metrics: to `close` of each value, or to as much where it is near 0."""
    assert {"r1"} | ALWAYS <= {name for line in lines[:steps] for name in line}
    for step in range(steps):
        names = [name for name in lines[step] if name.startswith(COMPARED)]
        expected = {name: lines[step][name] for name in names}
        assert {name: others[step][name] for name in names} == pytest.approx(expected, rel=close, abs=close), f"step {step}"
