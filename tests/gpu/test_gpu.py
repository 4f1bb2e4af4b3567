"""What only a GPU can show. Run with `make test-all` on a machine that has one; skipped elsewhere."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import overflow
from helpers.on_gpu import GRAPHS, ON_TWO, RECORDED, REPEATABLE, SMALL, STREAMED, assert_alike
from scalegan.config import DataConfig, TrainConfig
from scalegan.data.index import read_index
from scalegan.data.loader import Reader
from scalegan.distributed import make_accelerator
from scalegan.evaluation.evaluator import evaluate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture
def or_error(monkeypatch):
    """Where torch would go on without CUDA graphs, or with graphs of parts alone, and just say so, it fails."""
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPH_OR_ERROR", "1")
    monkeypatch.setenv("TORCHINDUCTOR_GRAPH_PARTITION", "0")


def train(shards, run, *more, processes=1, images=512, program=("-m", "scalegan.train")):
    """Lines of metrics, and the averaged generator."""
    launch = [sys.executable, *program]
    if processes > 1:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/multi_gpu.yaml"]
        launch += ["--num_processes", str(processes), *program]
    there = ("--run", str(run), "--data.path", str(shards), "--train.device", "cuda", "--train.images", str(images))
    subprocess.run([*launch, *there, *SMALL, *more], check=True, timeout=600)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = stored(run, images)["ema.safetensors"]
    assert all(torch.isfinite(w).all() for w in weights.values())
    return lines, weights


def stored(run, images):
    """Tensors of a checkpoint, by file and name."""
    files = sorted((run / "checkpoints" / f"{images:09}").glob("*.safetensors"))
    assert len(files) >= 3
    return {file.name: load_file(file) for file in files}


def assert_same(one, other):
    """To the bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_to_the_end(shards, tmp_path, precision):
    lines, _ = train(shards, tmp_path, "--train.precision", precision)
    assert lines[-1]["images_seen"] == 512
    assert all(np.isfinite(line["loss/D"]) for line in lines)


def test_a_step_whose_gradient_float16_cannot_hold_is_skipped_by_the_scaler(shards, tmp_path):
    """Without it, the critic would be NaN from there on, and the generator with it. A smaller scale comes after it."""
    lines, _ = train(shards, tmp_path, "--train.precision", "fp16", program=(overflow.__file__,))
    assert lines[2]["skipped_steps"] == 1
    assert lines[-1]["skipped_steps"] == 0
    for file, tensors in stored(tmp_path, 512).items():
        assert all(tensor.isfinite().all() for tensor in tensors.values()), file


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_are_chosen_by_time_unless_a_run_is_to_repeat(monkeypatch, deterministic):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    make_accelerator(TrainConfig(device="cuda", precision="bf16", deterministic=deterministic))
    assert torch.backends.cudnn.benchmark is not deterministic


def test_a_deterministic_run_repeats_to_the_bit(shards, tmp_path):
    _, one = train(shards, tmp_path / "a", "--train.deterministic", "true")
    _, two = train(shards, tmp_path / "b", "--train.deterministic", "true")
    assert_same(one, two)


def test_batches_from_pinned_memory_are_those_kept_on_the_gpu(shards, tmp_path):
    """Copied while the step before is under way, from memory that is used again."""
    kept, one = train(shards, tmp_path / "kept", *REPEATABLE, "--data.reader", "resident")
    streamed, two = train(shards, tmp_path / "streamed", *REPEATABLE, *STREAMED.split())
    assert streamed == kept
    assert_same(one, two)


def test_the_first_steps_are_those_of_the_cpu(shards, tmp_path):
    gpu, _ = train(shards, tmp_path / "gpu", "--train.precision", "fp32")
    cpu, _ = train(shards, tmp_path / "cpu", "--train.precision", "fp32", "--train.device", "cpu")
    assert_alike(cpu, gpu, steps=4, close=2e-3)


def test_compiled_steps_are_plain_ones(shards, tmp_path):
    plain, _ = train(shards, tmp_path / "plain", "--train.precision", "fp32")
    compiled, _ = train(shards, tmp_path / "compiled", "--train.precision", "fp32", "--train.compile", "true")
    assert_alike(plain, compiled, steps=4, close=1e-3)


@pytest.mark.usefixtures("or_error")
@pytest.mark.parametrize("more", RECORDED)
def test_steps_with_cuda_graphs_are_compiled_ones(shards, tmp_path, more):
    """From warming up over recording to replay, which is the third time on."""
    compiled, _ = train(shards, tmp_path / "compiled", *GRAPHS, *more.split(), "--train.cuda_graphs", "false")
    graphs, _ = train(shards, tmp_path / "graphs", *GRAPHS, *more.split())
    assert_alike(compiled, graphs, steps=8, close=1e-3)


@pytest.mark.usefixtures("or_error")
@pytest.mark.parametrize("rounds", ["1", "2"])
@pytest.mark.parametrize("options", [REPEATABLE, GRAPHS], ids=["plain", "graphs"])
def test_a_run_goes_on_where_it_stopped_and_a_checkpoint_written_meanwhile_is_of_its_step(shards, tmp_path, options, rounds):
    """The whole run writes one beside the steps that change what it holds; the other, of its end, alone."""
    _, whole = train(shards, tmp_path / "whole", *options, "--train.accumulate", rounds)
    train(shards, tmp_path / "parts", *options, "--train.accumulate", rounds, images=256)
    meanwhile, alone = stored(tmp_path / "whole", 256), stored(tmp_path / "parts", 256)
    assert meanwhile.keys() == alone.keys()
    for file in alone:
        assert_same(meanwhile[file], alone[file])
    _, parts = train(shards, tmp_path / "parts", *options, "--train.accumulate", rounds)
    assert_same(whole, parts)


@pytest.mark.usefixtures("or_error")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_cuda_graphs_see_what_one_sees(shards, tmp_path):
    one, _ = train(shards, tmp_path / "one", *GRAPHS, *ON_TWO.split())
    two, _ = train(shards, tmp_path / "two", *GRAPHS, *ON_TWO.split(), processes=2)
    assert_alike(one, two, steps=4, close=2e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_over_nccl_see_what_one_sees(shards, tmp_path):
    """With batch norm in the generator over both."""
    one, _ = train(shards, tmp_path / "one", "--train.precision", "fp32")
    two, _ = train(shards, tmp_path / "two", "--train.precision", "fp32", processes=2)
    assert_alike(one, two, steps=4, close=2e-3)


def test_batches_arrive_on_the_gpu_as_they_are(shards):
    index, numbers = read_index(str(shards)), np.arange(40)
    data = DataConfig(path=str(shards))
    there = Reader(index, data, torch.device("cuda")).read(numbers)
    here = Reader(index, data, torch.device("cpu")).read(numbers)
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
