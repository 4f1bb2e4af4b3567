"""An evaluation gives the same on any number of processes, and what one process meets, all of them raise."""

import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.daily import one_a_day
from helpers.runs import configured, training
from helpers.shards import make_images, make_shards, png
from helpers.worlds import run_world
from scalegan.data.index import read_index
from scalegan.data.writer import Sample, write_shards
from scalegan.distributed import in_company
from scalegan.errors import UserError
from scalegan.evaluation_config import EvaluationConfig

pytestmark = pytest.mark.distributed

REAL, GENERATED, BATCH = 37, 43, 16
"""Three blocks of each: of four processes one has no image at all, and nothing divides anything."""


def join() -> tuple[int, int]:
    from scalegan.config import TrainConfig
    from scalegan.distributed import make_accelerator

    accelerator = make_accelerator(TrainConfig(device="cpu", precision="fp32"))
    return accelerator.process_index, accelerator.num_processes


def latent_paths():
    """Of a generator that draws noise from its latents."""
    from scalegan.evaluation.path_length import LatentPaths
    from scalegan.model_config import ModelConfig
    from scalegan.models import build_generator

    torch.manual_seed(0)
    config = ModelConfig(family="stylegan2", z_dim=8, width=4, max_width=8, map_layers=2)
    return LatentPaths(build_generator(config, (3, 20, 28), 0).eval().requires_grad_(False), config.z_dim, (), seed=0)


def evaluation(shards: Path, *caches: Path) -> list[dict]:
    """The record of an evaluation for every cache."""
    from helpers.lpips_weights import made_up_lpips
    from scalegan.evaluation import by_lpips, evaluator, path_length
    from scalegan.evaluation.evaluator import evaluate

    rank, processes = join()
    by_lpips.BLOCK = path_length.BLOCK = BATCH  # so that each process has some
    evaluator.load_lpips = lambda *_: made_up_lpips()
    drawn, classes = make_images(GENERATED, 20, 28, 3, seed=5)
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    return [
        evaluate(
            lambda first, count: images[first : first + count],
            read_index(shards),
            EvaluationConfig(samples=GENERATED, batch=BATCH, metrics="ssim,ms_ssim,lpips,ppl,kid,prdc"),
            seed=0,
            images_seen=0,
            ema=True,
            rank=rank,
            processes=processes,
            device=torch.device("cpu"),
            cache=cache,
            labels=lambda first, count: classes[first : first + count],
            paths=latent_paths(),
        )
        for cache in caches
    ]


def disturbed(shards: Path, cache: Path, disturb: Callable[[], None]) -> None:
    """An evaluation in whose generated images process 1 is disturbed."""
    from scalegan.evaluation.evaluator import evaluate

    rank, processes = join()
    images = torch.from_numpy(make_images(GENERATED, 20, 28, 3, seed=5)[0]).permute(0, 3, 1, 2)

    def generator(first: int, count: int) -> torch.Tensor:
        if rank == 1:
            disturb()
        return images[first : first + count]

    with in_company():
        evaluate(
            generator,
            read_index(shards),
            EvaluationConfig(samples=GENERATED, batch=BATCH, metrics=""),
            seed=0,
            images_seen=0,
            ema=True,
            rank=rank,
            processes=processes,
            device=torch.device("cpu"),
            cache=cache,
        )


def broken() -> None:
    raise RuntimeError("a layer is broken")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def missing_lpips_weights(shards: Path, cache: Path) -> None:
    from scalegan.evaluation.lpips import load_lpips
    from scalegan.evaluation.team import Team

    load_lpips(EvaluationConfig(lpips_weights=str(cache / "no.pth")), torch.device("cpu"), Team(*join()))


def offline(url: str, cache: Path) -> tuple[float, str]:
    """Seconds until it is told that the weights cannot be fetched from `url`, and how."""
    from dataclasses import replace

    from scalegan.evaluation import weights
    from scalegan.evaluation.features import load_extractor
    from scalegan.evaluation.team import Team

    os.environ["XDG_CACHE_HOME"] = os.environ["TORCH_HOME"] = str(cache)
    weights.INCEPTION = replace(weights.INCEPTION, url=url)
    team = Team(*join())
    began = time.monotonic()
    try:
        load_extractor(EvaluationConfig(extractor="inception"), torch.device("cpu"), team)
    except UserError as error:
        return time.monotonic() - began, str(error)
    raise AssertionError("there were weights")


def missing_weights(shards: Path, cache: Path) -> None:
    from scalegan.evaluation.features import load_extractor
    from scalegan.evaluation.team import Team

    load_extractor(EvaluationConfig(extractor="inception", weights=str(cache / "no.pth")), torch.device("cpu"), Team(*join()))


def compared(made: Path, against: Path, cache: Path, failing: str = "") -> dict:
    """The record of images that lie somewhere against others; `failing` is what process 0 does alone and cannot do today."""
    from contextlib import ExitStack

    from scalegan.config import DataConfig
    from scalegan.evaluation import evaluator, real, sides
    from scalegan.evaluation.team import Team

    def fail(*_):
        raise UserError("the disk is gone: mount it again")

    for module in (evaluator, real):
        if hasattr(module, failing):
            setattr(module, failing, fail)
    team = Team(*join())
    index = sides.images_of(str(made), sides.kind_of(str(made)), "", team)
    reference = sides.reference(str(against), "", team)
    config = EvaluationConfig(samples=index.samples, batch=BATCH)
    with ExitStack() as stack:
        side = sides.found_in(index, config.samples, stack)
        comparison = sides.Comparison(reference, config, None, team, torch.device("cpu"), cache, DataConfig(), None, None)
        return comparison.measure(side, lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    make_shards(folder, count=REAL, height=20, width=28)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [(1, 4), (1, 2, 3)])
def test_the_value_is_the_same_on_1_to_4_processes(data, tmp_path, worlds):
    records = []
    for processes in worlds:
        caches = [tmp_path / f"cache{processes}"]
        if processes == 2:
            caches.append(tmp_path / "cache1")  # what one process has kept
        ended = run_world(tmp_path, processes, evaluation, data, *caches)
        assert [e.exitcode for e in ended] == [0] * processes, ended
        for other in ended[1:]:
            assert other.value == ended[0].value  # to the bit, on every process
        records += ended[0].value
    for record in records:
        assert (record["generated"], record["real"], record["floor_counts"]) == (GENERATED, REAL, [18, 18])
        for name in (
            "fd_lite0", "fd_lite0_floor", "ssim_max", "ssim_mean_image", "diversity",
            "diversity_real", "ms_ssim_max", "ms_ssim_pairs_real", "lpips_pairs", "lpips_pairs_se", "lpips_pairs_real",
            "lpips_pairs_real_se", "ppl_z", "ppl_z_se", "ppl_w", "ppl_w_se", "kd_lite0", "kd_lite0_se", "precision",
            "recall", "density", "coverage", "diversity_in_class", "diversity_in_class_real",
        ):  # fmt: skip
            assert record[name] == pytest.approx(records[0][name], rel=1e-9), (name, record["processes"])


def test_what_one_process_cannot_read_stops_all_of_them_with_its_name(tmp_path):
    images, _ = make_images(REAL, 20, 28, 3)
    samples = [Sample(png(image) if number != 20 else b"no image", "png") for number, image in enumerate(images)]
    write_shards(samples, tmp_path / "shards", height=20, width=28, channels=3)
    ended = run_world(tmp_path, 2, evaluation, tmp_path / "shards", tmp_path / "cache")
    for process in ended:
        assert isinstance(process.value, UserError), process
        assert "20.png of shard" in str(process.value)
    assert not (tmp_path / "cache").exists()


def fill(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(make_images(count, 20, 28, 3, seed)[0]):
        (folder / f"{number:02d}.png").write_bytes(png(image))
    return folder


@pytest.mark.slow
def test_two_folders_give_the_same_on_1_and_2_processes(tmp_path):
    made, real = fill(tmp_path / "made", GENERATED, 5), fill(tmp_path / "real", REAL, 0)
    one, two = (run_world(tmp_path, n, compared, made, real, tmp_path / f"cache{n}") for n in (1, 2))
    assert two[0].value == two[1].value
    assert two[0].value["fd_lite0"] == pytest.approx(one[0].value["fd_lite0"], rel=1e-9)
    assert (two[0].value["generated"], two[0].value["real"]) == (GENERATED, REAL)


def test_a_bad_folder_stops_all_of_them(tmp_path):
    made, real = fill(tmp_path / "made", 5, 5), fill(tmp_path / "real", 5, 0)
    (real / "03.png").write_bytes(b"no image")
    ended = run_world(tmp_path, 2, compared, made, real, tmp_path / "cache")
    assert ["03.png is no readable image" in str(process.value) for process in ended] == [True, True]


def measured_with_nan(shards: Path, cache: Path) -> dict:
    """Of features of which one process alone has some that are no numbers."""
    from scalegan.evaluation import evaluator
    from scalegan.evaluation.features import Extractor
    from scalegan.evaluation.network import FeatureNetwork

    class Means(FeatureNetwork):
        num_features, resize, cpu_batch = 3, "none", 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            means = images.float().mean((2, 3))
            return means.masked_fill(means.isclose(torch.tensor(7.0)), float("nan"))

    rank, processes = join()
    images = torch.randint(0, 256, (GENERATED, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[20] = 7  # process 1 is the one to look at it
    return evaluator.evaluate(
        lambda first, count: images[first : first + count],
        read_index(shards),
        EvaluationConfig(samples=GENERATED, batch=BATCH, metrics="interval"),
        seed=0,
        images_seen=0,
        ema=True,
        rank=rank,
        processes=processes,
        device=torch.device("cpu"),
        cache=cache,
        extractor=Extractor("means", Means(), "none", torch.device("cpu"), 8),
    )


def test_features_that_are_no_numbers_stop_all_of_them(data, tmp_path):
    for process in run_world(tmp_path, 2, measured_with_nan, data, tmp_path / "cache"):
        assert isinstance(process.value, UserError), process
        assert "features of extractor means hold NaN or infinity" in str(process.value)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", one_a_day(["folder", "shards", "folder against statistics"]))
def test_a_broken_generated_image_stops_all_of_them(tmp_path, kind):
    real, made = fill(tmp_path / "real", REAL, 0), tmp_path / "made"
    contents = [jpeg(image) for image in make_images(GENERATED, 20, 28, 3, seed=5)[0]]
    contents[22] = contents[22][:-200]  # its header is sound; process 1 is the one to read it, as the 23rd of a random order
    if kind == "shards":
        write_shards([Sample(content, "jpg") for content in contents], made, height=20, width=28, channels=3)
    else:
        made.mkdir()
        for number, content in enumerate(contents):
            (made / f"{number:02d}.jpg").write_bytes(content)
    if kind == "folder against statistics":
        np.savez(tmp_path / "real.npz", mu=np.zeros(1280), sigma=np.eye(1280))
        real = tmp_path / "real.npz"
    for process in run_world(tmp_path, 2, compared, made, real, tmp_path / "cache"):
        assert isinstance(process.value, UserError), process
        assert "22.jpg" in str(process.value)


@pytest.mark.parametrize("disturb", one_a_day([broken, killed]))
def test_a_process_that_breaks_or_is_killed_ends_all_of_them(data, tmp_path, disturb):
    began = time.monotonic()
    ended = run_world(tmp_path, 3, disturbed, data, tmp_path / "cache", disturb)
    assert time.monotonic() - began < 30
    if disturb is killed:
        assert ended[1].exitcode == -signal.SIGKILL
    else:
        assert str(ended[1].value) == "a layer is broken"
    for other in (ended[0], ended[2]):
        assert isinstance(other.value, UserError), other
        assert str(other.value).startswith("another process of this run has ended, and says why in its own output")


@pytest.mark.parametrize("failing", one_a_day(["similarity", "best_matches"]))
def test_what_process_0_alone_cannot_read_stops_all_of_them(tmp_path, failing):
    made, real = fill(tmp_path / "made", 5, 5), fill(tmp_path / "real", 5, 0)
    ended = run_world(tmp_path, 2, compared, made, real, tmp_path / "cache", failing)
    assert ["the disk is gone" in str(process.value) for process in ended] == [True, True]


def test_without_weights_and_without_an_answer_all_say_so_in_5_s(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = run_world(tmp_path, 2, offline, f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth", tmp_path / "cache")
    for process in ended:
        seconds, said = process.value
        assert seconds < 5
        assert (
            "extractor inception needs the file pt_inception-2015-12-05-6726825d.pth, which is not here and could not be"
            in said
        )
        assert "evaluation.weights (`scalegan evaluate`: --weights)" in said
        assert "SCALEGAN_INCEPTION_WEIGHTS" in said
    assert ended[0].value[1] == ended[1].value[1]


@pytest.mark.parametrize("missing", [missing_weights, missing_lpips_weights])
def test_missing_weights_stop_all_of_them(data, tmp_path, missing):
    ended = run_world(tmp_path, 2, missing, data, tmp_path)
    assert ["do not exist" in str(process.value) for process in ended] == [True, True]


def beside_a_training(run: Path, record: Path, later: Path | None = None) -> int:
    """`scalegan evaluate RUN`, by features that cost nothing. `later` is a checkpoint that a training saves when process 0 has
    looked for the newest, and process 1 has not."""
    from scalegan import cli, sampling
    from scalegan.evaluation import evaluator
    from scalegan.evaluation.features import Extractor
    from scalegan.evaluation.network import FeatureNetwork

    class Areas(FeatureNetwork):
        num_features, resize, cpu_batch = 48, "none", 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)

    find, looked, rank = sampling.find_checkpoint, record.with_suffix(".looked"), os.environ.get("RANK")

    def find_checkpoint(path: Path) -> Any:
        if later is not None and rank == "1":
            while not looked.exists():
                time.sleep(0.01)
            if later.exists():
                later.rename(run / "checkpoints" / later.name)
        found = find(path)
        looked.touch()
        return found

    sampling.find_checkpoint = find_checkpoint
    evaluator.load_extractor = lambda *_: Extractor("lite0", Areas(), "no weights", torch.device("cpu"), 8)
    return cli.main(["evaluate", str(run), "--samples", "128", "--device", "cpu", "--json", str(record)])


def test_a_run_that_goes_on_meanwhile_is_evaluated_by_one_checkpoint(shards, tmp_path):
    run, later = tmp_path / "run", tmp_path / "000000128"
    run_world(tmp_path, 1, training, configured(shards, run, 128, log__checkpoint=64, optim__lr_g=0.01))
    (run / "checkpoints" / later.name).rename(later)
    records = []
    for processes, more in ((1, ()), (2, (later,))):
        record = tmp_path / f"{processes}.json"
        ended = run_world(tmp_path, processes, beside_a_training, run, record, *more)
        assert [e.value for e in ended] == [0] * processes, ended
        records.append(json.loads(record.read_text()))
    assert not later.exists()
    alone, both = records
    assert both["images_seen"] == alone["images_seen"] == 64
    assert both["fd_lite0"] == pytest.approx(alone["fd_lite0"], rel=1e-9)
