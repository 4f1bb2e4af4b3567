"""Each metric gives the same on 1 to 4 processes, with uneven shares and a process without images, and gathers no features."""

import numpy as np
import pytest
import torch

from helpers.worlds import run_world
from scalegan.errors import UserError
from scalegan.evaluation.ssim import THUMBNAIL

pytestmark = pytest.mark.distributed

WIDTH, BATCH = 6, 16
COUNTS = {"real": 53, "held_out": 37, "fake": 83}
"""Of four processes the last has no fake and no held-out image, nor has any the same share of all."""


def features(side: str) -> torch.Tensor:
    draw = np.random.default_rng(list(COUNTS).index(side))
    return torch.from_numpy((draw.normal(size=(COUNTS[side], WIDTH)) + 0.1).astype(np.float32))


def pixels(side: str) -> torch.Tensor:
    """uint8 [count, 1, 12, 12]"""
    draw = np.random.default_rng(list(COUNTS).index(side))
    return torch.from_numpy(draw.integers(0, 256, (COUNTS[side], 1, 12, 12), dtype=np.uint8))


def measure(visiting: int) -> dict:
    """All figures, and the largest tensor that any process was sent."""
    import torch.distributed as dist
    from test_evaluation import join

    from scalegan.evaluation import pairs, team
    from scalegan.evaluation.accuracy import ClassAccuracy
    from scalegan.evaluation.frechet import FrechetDistance
    from scalegan.evaluation.frechet_spread import FrechetSpread
    from scalegan.evaluation.inception_score import InceptionScore
    from scalegan.evaluation.kid import KernelDistance, SubsetKernelDistance
    from scalegan.evaluation.memorisation import Memorisation, MemorisationInformedDistance
    from scalegan.evaluation.path_length import PathLength
    from scalegan.evaluation.per_class import PerClassDistance
    from scalegan.evaluation.prdc import PrecisionRecall
    from scalegan.evaluation.similarity import BestMatch, Diversity, DiversityInClass, Gallery, PairSimilarity

    rank, processes = join()
    team.VISITING = pairs.OWN = visiting
    sent = [0]
    broadcast = dist.broadcast

    def watched(tensor, source):
        sent.append(tensor.numel())
        broadcast(tensor, source)

    def refused(*_, **__):
        raise AssertionError("features are gathered")

    dist.broadcast, dist.all_gather = watched, refused
    score = InceptionScore(WIDTH, splits=3)
    best, varied, in_class = BestMatch(), Diversity(), DiversityInClass(2)
    pairs_alike = PairSimilarity(similarity=lambda a, b: (a.double() - b.double()).abs().mean((1, 2, 3)))
    steps = PathLength(lambda a, b: (a - b).square().flatten(1).mean(1), COUNTS["fake"])
    metrics = [
        KernelDistance(), SubsetKernelDistance(20, 7), PrecisionRecall(3),
        PerClassDistance(("even", "odd"), interval=True), Memorisation(), MemorisationInformedDistance(),
        ClassAccuracy(("even", "odd")), FrechetSpread(WIDTH),
    ]  # fmt: skip
    spread = metrics[-1]
    if rank == 0:
        real = features("real").double()
        spread.update_sums(torch.tensor(len(real)), real.sum(0), real.T @ real)
    for side in COUNTS:
        rows = features(side)
        for first, count in team.Team(rank, processes).blocks(len(rows), BATCH):
            part, indices = rows[first : first + count], torch.arange(first, first + count)
            for metric in metrics:
                if side in metric.sides:
                    metric.feed(side, part, indices, indices % 2)
            if side == "fake":
                score.update(part.softmax(1), indices)
                made = pixels("fake")[first : first + count]
                best.update(made, Gallery.of(pixels("real")))
                pairs_alike.update(made)
                varied.update(made)
                steps.update(made.float(), made.flip(3).float(), first)
            if side != "held_out":
                in_class.update(pixels(side)[first : first + count], indices % 2, real=side == "real")
    found = {}
    for metric in [*metrics, score]:
        found |= metric.compute()
    largest, sent[:] = max(sent), [0]
    for metric in (best, pairs_alike, varied, in_class, steps):
        found |= metric.compute()
    reduced, reduce = [0], dist.all_reduce
    dist.all_reduce = lambda tensor, **options: (reduced.append(tensor.numel()), reduce(tensor, **options))
    distance = FrechetDistance(WIDTH)
    for side in ("real", "fake"):
        for first, count in team.Team(rank, processes).blocks(COUNTS[side], BATCH):
            distance.update(features(side)[first : first + count], real=side == "real")
    found["frechet"] = distance.compute()
    return {"largest": largest, "largest_of_images": max(sent), "largest_sum": max(reduced)} | {
        n: float(v) if isinstance(v, torch.Tensor) else v for n, v in found.items()
    }


def measured_twice() -> tuple[list[float], list[float]]:
    """On two processes, the second time after an update of one of them alone."""
    from test_evaluation import join

    from scalegan.evaluation.frechet import FrechetDistance
    from scalegan.evaluation.kid import KernelDistance

    rank, _ = join()
    metrics = FrechetDistance(WIDTH), KernelDistance()
    found: tuple[list[float], list[float]] = [], []
    for shares in ((slice(0, 20), slice(20, 30)), (slice(30, 40), slice(0, 0))):
        for metric, values in zip(metrics, found, strict=True):
            for side in ("real", "fake"):
                rows = torch.arange(COUNTS[side])[shares[rank]]
                if len(rows):
                    more = {} if isinstance(metric, FrechetDistance) else {"indices": rows}
                    metric.update(features(side)[rows], real=side == "real", **more)
            value = metric.compute()
            values.append(float(value["kid"] if isinstance(value, dict) else value))
    return found


def padded(name: str) -> None:
    """As a loader that fills its last batch up leaves the images: one of them twice."""
    from test_evaluation import join

    from scalegan.evaluation.frechet import FrechetDistance
    from scalegan.evaluation.kid import KernelDistance

    rank, _ = join()
    metric = FrechetDistance(WIDTH) if name == "frechet" else KernelDistance()
    for side in (True, False):
        metric.update(features("real")[:5], side, torch.arange(5) if rank == 0 else torch.tensor([5, 6, 7, 8, 0]))
    metric.compute()


def synced() -> float:
    """What the first of two processes has alone, after a sync() that torchmetrics would hang in or fail."""
    from test_evaluation import join

    from scalegan.evaluation.kid import KernelDistance

    rank, _ = join()
    metric = KernelDistance()
    if rank == 0:
        metric.update(features("real"), True)
        metric.update(features("fake"), False)
    with pytest.raises(UserError, match="KernelDistance has no sync"):
        metric.sync()
    return float(metric.compute()["kid"])


@pytest.mark.parametrize("worlds", [(4,), pytest.param((2, 3), marks=pytest.mark.slow)])
def test_every_metric_is_the_same_on_1_to_4_processes(tmp_path, worlds):
    alone = run_world(tmp_path, 1, measure, 1024)[0].value
    for processes in worlds:
        ended = run_world(tmp_path, processes, measure, 10)
        assert [e.exitcode for e in ended] == [0] * processes, ended
        for other in ended[1:]:
            assert other.value == ended[0].value  # to the bit, on every process
        found = ended[0].value
        assert found.pop("largest") <= 10 * (WIDTH + 2)  # one block, however many processes there are
        assert found.pop("largest_of_images") <= 10 * (THUMBNAIL**2 + 2)
        assert found.pop("largest_sum") == 2 * (1 + WIDTH + WIDTH**2 + 5)  # all states in one
        assert {"kid_se", "coverage", "c_t", "fid_infinity", "inception_score"} <= found.keys()
        assert {"fid_per_class", "fid_per_class_half_mean", "fid_per_class_floor"} <= found.keys()
        assert found["fid_per_class_high"].keys() == {"even", "odd"}
        assert {"ssim_max", "ms_ssim_pairs_se", "diversity", "diversity_in_class_real", "ppl_z_se"} <= found.keys()
        assert {"accuracy", "accuracy_real_per_class", "accuracy_held_out"} <= found.keys()
        for name, value in found.items():
            if name == "closest":
                assert [pair[:2] for pair in value] == [pair[:2] for pair in alone[name]]
            else:
                assert value == pytest.approx(alone[name], rel=1e-9), (name, processes)


def test_a_metric_can_go_on_after_compute_on_some_processes_alone(tmp_path):
    from scalegan.evaluation.frechet import FrechetDistance
    from scalegan.evaluation.kid import KernelDistance

    ended = run_world(tmp_path, 2, measured_twice)
    assert ended[0].value == ended[1].value, ended
    distances, kernels = ended[0].value
    for turn, count in enumerate((30, 40)):
        real, fake = features("real")[:count], features("fake")[:count]
        for metric, value in ((FrechetDistance(WIDTH), distances[turn]), (KernelDistance(), kernels[turn])):
            metric.update(real, real=True)
            metric.update(fake, real=False)
            alone = metric.compute()
            assert value == pytest.approx(float(alone["kid"] if isinstance(alone, dict) else alone), rel=1e-9)


@pytest.mark.parametrize("metric", ["kid", "frechet"])
def test_an_image_that_comes_twice_is_refused_on_all_processes(tmp_path, metric):
    for process in run_world(tmp_path, 2, padded, metric):
        assert isinstance(process.value, UserError), process
        assert "the 10 real images are not each there once" in str(process.value)


def test_a_sync_is_refused_on_all_processes_and_the_metric_goes_on(tmp_path):
    from scalegan.evaluation.kid import KernelDistance

    alone = KernelDistance()
    alone.update(features("real"), True)
    alone.update(features("fake"), False)
    ended = run_world(tmp_path, 2, synced)
    assert [process.value for process in ended] == [pytest.approx(float(alone.compute()["kid"]), rel=1e-9)] * 2, ended
