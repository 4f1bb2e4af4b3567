"""The same run on one, two and four processes: the same inputs, the same losses, the same networks."""

import signal

import numpy as np
import pytest

from helpers.daily import one_a_day
from helpers.runs import FULL, configured, contents, in_float64, metrics, stopped_training, tensors, training
from helpers.worlds import run_world

pytestmark = pytest.mark.distributed

BATCH, STEPS = 32, 50
COUNTS = [2, pytest.param(4, marks=pytest.mark.slow)]
# With batch norm in both networks, without in the critic, and in neither; penalty, augmentation, labels, EMA.
CASES = {
    "batch norm": {"model.critic_norm": "batch", "augment.brightness": 0.5, "augment.shift": 0.125, "log.step_losses": "true"},
    "norm groups": {"model.norm_group": 16, "augment.brightness": 0.5, "log.step_losses": "true"},  # 4 processes share them
    "everything": FULL | {"train.accumulate": 1, "optim.warmup": 0},
    "blocks": FULL | {"train.accumulate": 1, "optim.warmup": 0, "data.order": "blocks", "data.streams": 8, "data.window": 32},
    "stylegan2": {
        "model.family": "stylegan2",
        "model.z_dim": 16,
        "model.map_layers": 2,
        "loss.path_weight": 2.0,
        "loss.r1_gamma": 0.5,
        "loss.penalty_every": 8,
        "log.step_losses": "true",
    },
    # With seed 0 rounding parts one weight and the r1 of a line; in float64 the same runs are equal there too.
    "no batch norm": FULL | {"train.accumulate": 1, "optim.warmup": 0, "train.seed": 1},
}
PLAIN = "no batch norm"
QUICK = ("batch norm", "everything")
TRIED = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def without_batch_norm():
    """Generators that normalise each image by itself."""
    from torch import nn

    from scalegan.models import dcgan

    class PerImage(nn.GroupNorm):
        def __init__(self, config, channels, classes):
            super().__init__(1, channels)

        def forward(self, x, labels):
            return super().forward(x)

    dcgan.batch_norm = PerImage


def traced(config, case, double, stop=0):
    """`training`, or the part before a notice in step `stop`, with what went into each step here: {(what, step): rows}."""
    from scalegan.steps import Draws, Game

    if double:
        in_float64()
    if case == PLAIN:
        without_batch_norm()
    seen = {}

    def recorded(name):
        draw = getattr(Draws, name)

        def wrapped(self, purpose, first, *probability):
            rows = draw(self, purpose, first, *probability)
            if rows is not None:
                step, place = divmod(first, BATCH)
                assert place == self.offset + (place - self.offset) // self.count * self.count
                seen.setdefault((f"{name}/{purpose}", step), []).append(rows.numpy().copy())
            return rows

        setattr(Draws, name, wrapped)

    for name in ("latents", "labels", "views"):
        recorded(name)
    step = Game.discriminator_step

    def discriminator_step(self, reals, images_seen):
        for real in reals:
            seen.setdefault(("images", images_seen // BATCH), []).append(real.images.numpy().copy())
            seen.setdefault(("image labels", images_seen // BATCH), []).append(real.labels.numpy().copy())
        return step(self, reals, images_seen)

    Game.discriminator_step = discriminator_step
    if stop:
        assert not stopped_training(config, None, signal.SIGTERM, BATCH * stop)
    else:
        assert training(config)
    return {key: np.concatenate(rows) for key, rows in seen.items()}


def config_of(case, shards, run, rounds=1):
    changes = CASES[case] | {"train.accumulate": rounds, "optim.lr_g": 2e-4, "optim.lr_d": 2e-4, "train.batch": BATCH}
    return configured(shards, run, BATCH * STEPS, **changes)


def put_together(ended):
    """The inputs of the global batches, of those of each process."""
    assert [e.exitcode for e in ended] == [0] * len(ended), ended
    return {key: np.concatenate([e.value[key] for e in ended]) for key in ended[0].value}


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """(run folder, inputs of the global batches) of a case on a number of processes."""
    made = {}

    def run(case, processes, rounds=1, double=False):
        key = (case, processes, rounds, double)
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            ended = run_world(folder, processes, traced, config_of(case, shards, folder / "run", rounds), case, double)
            made[key] = folder / "run", put_together(ended)
        return made[key]

    return run


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("case", TRIED)
def test_every_global_batch_has_the_same_inputs(runs, case, processes):
    _, expected = runs(case, 1)
    _, inputs = runs(case, processes)
    assert inputs.keys() == expected.keys()
    assert len({step for _, step in inputs}) == STEPS
    for key, rows in expected.items():
        assert len(rows) == BATCH
        assert np.array_equal(inputs[key], rows), key


# What rounding makes of a run. In front of a batch norm are weights whose gradient is all but zero, where a unit is switched
# off: of the size of its rounding, and Adam makes a step of the usual length of it, one way or the other. So with batch
# norm float32 runs part a little, sooner on one CPU than on another; that nothing but rounding does it, float64 shows.


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("case", TRIED)
def test_losses_are_equal(runs, case, processes):
    """Those that metrics.jsonl shows, and where they are kept those of every step."""
    tolerance = 1e-5 if case == PLAIN else 1e-3
    expected, found = metrics(runs(case, 1)[0]), metrics(runs(case, processes)[0])
    assert [line["images_seen"] for line in found] == [line["images_seen"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss/D", "loss/G", "r1"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (name, ours["images_seen"])
    rows, right = (np.loadtxt(runs(case, n)[0] / "losses.csv", delimiter=",", skiprows=1) for n in (processes, 1))
    np.testing.assert_allclose(rows, right, rtol=tolerance)


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("network", ["generator", "critic", "ema"])
def test_networks_without_batch_norm_end_alike(runs, processes, network):
    expected, found = (tensors(runs(PLAIN, n)[0], network) for n in (1, processes))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("processes", COUNTS)
@pytest.mark.parametrize("case", TRIED)
@pytest.mark.parametrize("network", ["generator", "critic", "ema"])
def test_in_float64_networks_end_the_same(runs, processes, case, network):
    """What is left of a difference is rounding, with batch norm and all."""
    expected, found = (tensors(runs(case, n, double=True)[0], network) for n in (1, processes))
    for name, values in expected.items():
        assert values.dtype == np.float64
        np.testing.assert_allclose(found[name], values, atol=1e-10, rtol=0, err_msg=name)


@pytest.mark.parametrize(("before", "after"), one_a_day([(1, 2), (2, 1), (4, 2)]))
def test_another_number_of_processes_from_a_resume_on_changes_neither_inputs_nor_networks(
    shards, runs, tmp_path, before, after
):
    config, inputs = config_of("everything", shards, tmp_path / "run"), {}
    for processes, stop in ((before, 20), (after, 0)):
        inputs |= put_together(run_world(tmp_path, processes, traced, config, "everything", True, stop))
    alone, expected = runs("everything", 1, double=True)
    assert inputs.keys() == expected.keys()
    assert all(np.array_equal(inputs[key], rows) for key, rows in expected.items())
    for network in ("generator", "critic", "ema"):
        found = tensors(tmp_path / "run", network)
        for name, values in tensors(alone, network).items():
            np.testing.assert_allclose(found[name], values, atol=1e-10, rtol=0, err_msg=name)


@pytest.mark.parametrize(("before", "after"), one_a_day([(2, 1), (1, 4), (2, 4)]))
def test_in_float32_networks_without_batch_norm_end_alike_too(shards, runs, tmp_path, before, after):
    config = config_of(PLAIN, shards, tmp_path / "run")
    for processes, stop in ((before, 20), (after, 0)):
        put_together(run_world(tmp_path, processes, traced, config, PLAIN, False, stop))
    for network in ("generator", "critic", "ema"):
        found = tensors(tmp_path / "run", network)
        for name, values in tensors(runs(PLAIN, 1)[0], network).items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("network", ["generator", "critic"])
def test_with_norm_groups_rounds_make_no_difference(runs, network):
    """Up to the running statistics, which move once a round. Without groups each round is normalised by itself."""
    expected, found = (tensors(runs("norm groups", 1, rounds=n, double=True)[0], network) for n in (1, 2))
    for name, values in expected.items():
        if "running" not in name:
            np.testing.assert_allclose(found[name], values, atol=1e-10, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", [PLAIN, "norm groups"])
@pytest.mark.parametrize("network", ["generator", "critic", "ema"])
def test_two_processes_are_one_that_takes_two_rounds_to_the_bit(runs, case, network):
    """In float32, and with any number of steps: the order of sums is all that tells numbers of processes apart."""
    expected, found = (tensors(runs(case, *how)[0], network) for how in ((1, 2), (2, 1)))
    for name, values in expected.items():
        if "running" not in name:  # these move once a round
            assert np.array_equal(found[name], values), name


def test_rounds_split_the_same_batch(runs):
    _, expected = runs("everything", 1)
    _, inputs = runs("everything", 2, rounds=2)
    for key, rows in expected.items():
        assert np.array_equal(inputs[key], rows), key


def evaluated(config):
    """`training` with its evaluations, without its plots."""
    from scalegan import outputs, train

    outputs.Outputs.finished = lambda self, images_seen: None
    return train.train(config)


def test_an_evaluation_on_the_way_changes_no_byte_of_the_training(shards, tmp_path):
    changes = FULL | {"evaluation.metrics": "ssim,kid,per_class,accuracy"}
    for name, every, function in (("never", 0, training), ("often", 32, evaluated)):
        config = configured(shards, tmp_path / name, 32 * 4, **changes, **{"evaluation.every": every})
        assert [e.value for e in run_world(tmp_path, 2, function, config)] == [True, True]
    without, often = contents(tmp_path / "never"), contents(tmp_path / "often")
    assert len(often.pop("evaluations.jsonl").splitlines()) == 4
    without.pop("evaluations.jsonl", None)
    assert often == without
