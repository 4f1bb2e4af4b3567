"""What only a GPU can show. Run with `make test-all` on a machine that has one; skipped elsewhere."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scalegan.config import DataConfig
from scalegan.data.index import read_index
from scalegan.data.loader import open_reader
from scalegan.evaluation.evaluator import evaluate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
SMALL = (
    "--train.device cuda --train.batch 32 --model.z_dim 8 --model.width 8 --model.critic_width 8 "
    "--model.critic_norm none --loss.r1_gamma 0.1 --augment.shift 0.1 --log.every 128 --log.samples 256 --log.checkpoint 256 "
    "--log.wandb off --evaluation.samples 64 --evaluation.every 0"
).split()


GRAPHS = (
    "--train.compile",
    "true",
    "--train.cuda_graphs",
    "true",
    "--train.deterministic",
    "true",
    "--train.precision",
    "fp32",
)


@pytest.fixture
def or_error(monkeypatch):
    """Where torch would go on without CUDA graphs and just say so, it fails."""
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPH_OR_ERROR", "1")


def train(shards, run, *more, processes=1, images=512):
    launch = [sys.executable, "-m", "scalegan.train"]
    if processes > 1:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/multi_gpu.yaml"]
        launch += ["--num_processes", str(processes), "-m", "scalegan.train"]
    length = ("--train.images", str(images))
    subprocess.run([*launch, "--run", str(run), "--data.path", str(shards), *SMALL, *length, *more], check=True, timeout=600)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(run / "checkpoints" / f"{images:09}" / "ema.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    return lines, weights


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_to_the_end(shards, tmp_path, precision):
    lines, _ = train(shards, tmp_path, "--train.precision", precision)
    assert lines[-1]["images_seen"] == 512
    assert all(np.isfinite(line["loss/D"]) for line in lines)


def test_a_deterministic_run_repeats_to_the_bit(shards, tmp_path):
    _, one = train(shards, tmp_path / "a", "--train.deterministic", "true")
    _, two = train(shards, tmp_path / "b", "--train.deterministic", "true")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_first_losses_are_those_of_the_cpu(shards, tmp_path):
    gpu, _ = train(shards, tmp_path / "gpu", "--train.precision", "fp32", "--log.every", "32")
    cpu, _ = train(shards, tmp_path / "cpu", "--train.precision", "fp32", "--log.every", "32", "--train.device", "cpu")
    assert gpu[0]["loss/D"] == pytest.approx(cpu[0]["loss/D"], rel=1e-3)


def test_compiled_steps_give_the_losses_of_plain_ones(shards, tmp_path):
    plain, _ = train(shards, tmp_path / "plain", "--train.precision", "fp32", "--log.every", "32")
    compiled, _ = train(
        shards, tmp_path / "compiled", "--train.precision", "fp32", "--log.every", "32", "--train.compile", "true"
    )
    assert compiled[0]["loss/D"] == pytest.approx(plain[0]["loss/D"], rel=1e-4)


@pytest.mark.usefixtures("or_error")
@pytest.mark.parametrize(
    "more",
    [
        "",
        "--train.accumulate 2",
        "--train.accumulate 2 --loss.penalty_every 2 --loss.diversity_weight 1 --augment.target 0.6",
        "--loss.name relativistic --loss.r2_gamma 0.1 --optim.critic_steps 2",
        "--model.critic_norm batch --augment.pipe photo",
        "--model.family resnet --model.critic_norm auto --loss.name hinge",
        "--model.family stylegan2 --model.critic_norm auto --model.map_layers 2 --loss.path_weight 2",
        "--train.precision bf16",
        "--train.precision fp16",
    ],
)
def test_steps_with_cuda_graphs_are_compiled_ones(shards, tmp_path, more):
    """From warming up over recording to replay, which is the third time on."""
    options = (*GRAPHS, "--log.every", "32", *more.split())
    compiled, _ = train(shards, tmp_path / "compiled", *options, "--train.cuda_graphs", "false")
    graphs, _ = train(shards, tmp_path / "graphs", *options)
    for one, other in zip(compiled[:8], graphs, strict=False):
        losses = [name for name in one if name.startswith(("loss/", "logits/", "grad_norm/", "r1", "path"))]
        assert [other[name] for name in losses] == pytest.approx([one[name] for name in losses], rel=1e-3, abs=1e-4)


@pytest.mark.usefixtures("or_error")
@pytest.mark.parametrize("rounds", ["1", "2"])
def test_a_run_with_cuda_graphs_goes_on_where_it_stopped(shards, tmp_path, rounds):
    options = (*GRAPHS, "--train.accumulate", rounds)
    _, whole = train(shards, tmp_path / "whole", *options)
    train(shards, tmp_path / "parts", *options, images=256)
    _, parts = train(shards, tmp_path / "parts", *options)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.usefixtures("or_error")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_cuda_graphs_see_what_one_sees(shards, tmp_path):
    options = (*GRAPHS, "--model.norm_group", "8", "--train.accumulate", "2", "--log.every", "32")
    one, _ = train(shards, tmp_path / "one", *options)
    two, _ = train(shards, tmp_path / "two", *options, processes=2)
    assert [line["loss/D"] for line in two[:4]] == pytest.approx([line["loss/D"] for line in one[:4]], rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_over_nccl_see_what_one_sees(shards, tmp_path):
    one, _ = train(shards, tmp_path / "one", "--train.precision", "fp32")
    two, _ = train(shards, tmp_path / "two", "--train.precision", "fp32", processes=2)
    assert two[0]["loss/D"] == pytest.approx(one[0]["loss/D"], rel=1e-3)


def test_batches_arrive_on_the_gpu_as_they_are(shards):
    index, numbers = read_index(str(shards)), np.arange(40)
    data = DataConfig(path=str(shards))
    there = open_reader(index, data, torch.device("cuda")).read(numbers)
    here = open_reader(index, data, torch.device("cpu")).read(numbers)
    assert there.images.is_cuda
    assert torch.equal(there.images.cpu(), here.images)
    assert torch.equal(there.labels.cpu(), here.labels)


def test_features_on_the_gpu_give_the_cpus_distance(shards, tmp_path):
    from scalegan.evaluation_config import EvaluationConfig

    index = read_index(str(shards))
    noise = np.random.default_rng(0).integers(0, 256, (64, index.channels, index.height, index.width), dtype=np.uint8)
    images = torch.from_numpy(noise)
    values = []
    for device in ("cpu", "cuda"):
        record = evaluate(
            lambda first, count: images[first : first + count],
            index,
            EvaluationConfig(samples=64, metrics=""),
            seed=0,
            images_seen=0,
            ema=True,
            rank=0,
            processes=1,
            device=torch.device(device),
            cache=tmp_path / device,
        )
        values.append(record["fd_lite0"])
    assert values[1] == pytest.approx(values[0], rel=1e-3)
