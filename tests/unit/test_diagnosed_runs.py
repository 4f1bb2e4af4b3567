"""Trainings made to fail in each way, and healthy ones: each is diagnosed as what it is, by what it wrote down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.daily import one_a_day, slow
from helpers.runs import configured
from helpers.shards import make_images, make_shards, png
from scalegan.data.writer import Sample, write_shards
from scalegan.diagnosis import diagnose, read_record

SEEDS = [0, slow(1), slow(2)]
BATCH = 16
WORKING = {
    "train.batch": BATCH,
    "model.critic_norm": "none",
    "model.init": "kaiming",
    "loss.r1_gamma": 0.1,
    "optim.lr_g": 1e-3,
    "optim.lr_d": 1e-3,
    "optim.betas_g": "[0.5,0.99]",
    "optim.betas_d": "[0.5,0.99]",
    "ema.half_life": 500,
    "log.every": 8 * BATCH,
    "log.samples": 16 * BATCH,
    "evaluation.real": BATCH,
}
TOY_R3GAN = {  # no normalisation, which in a DCGAN keeps the images of a batch apart
    "model.family": "r3gan",
    "model.critic_norm": "auto",
    "model.init": "dcgan",
    "model.blocks": 1,
    "model.max_width": 8,
    "model.critic_max_width": 8,
}
FREE = {"loss.r1_gamma": 0.0}
OTHER_FAMILY = {"model.critic_norm": "auto", "model.init": "dcgan"}
FAILING = {
    # 16 images, shown again and again to a critic that is free to remember them.
    "discriminator overfitting": (160, FREE | {"optim.lr_d": 4e-3, "model.critic_width": 16}),
    # A critic 500 times as fast as the generator.
    "discriminator too strong": (80, FREE | {"optim.lr_d": 5e-3, "optim.lr_g": 1e-5}),
    # A generator that has all the time it wants to find the one picture that the critic likes best.
    "collapse": (64, FREE | TOY_R3GAN | {"optim.lr_d": 1e-5, "optim.lr_g": 2e-3}),
    # The same with batch norm, which does not let it end in one picture.
    "discriminator too weak": (48, FREE | {"optim.lr_d": 1e-5, "optim.lr_g": 5e-3, "loss.name": "hinge"}),
    # A generator that knows nothing but the class.
    "collapse within classes": (
        240,
        {"model.conditional": True, "model.generator": "helpers.one_picture.Generator", "data.held_out": ""},
    ),
    "diverged": (16, FREE | {"optim.lr_d": 10.0, "optim.lr_g": 1.0}),
}
HEALTHY = {
    "R1": (110, {}),
    "batch norm in both": (400, FREE | {"model.critic_norm": "batch", "model.init": "dcgan"}),
    "hinge and spectral norm": (400, FREE | {"model.critic_norm": "spectral", "loss.name": "hinge"}),
    "told the class": (400, {"model.conditional": True}),
    "Wasserstein": (400, FREE | {"loss.name": "wasserstein", "loss.gp_weight": 10.0}),
    "resnet": (200, FREE | OTHER_FAMILY | {"model.family": "resnet", "loss.name": "hinge"}),
    "biggan": (200, FREE | OTHER_FAMILY | {"model.family": "biggan", "loss.name": "hinge"}),
    "fastgan": (200, FREE | OTHER_FAMILY | {"model.family": "fastgan", "loss.name": "hinge"}),
    "stylegan2": (160, OTHER_FAMILY | {"model.family": "stylegan2", "model.map_layers": 2}),
    "r3gan": (
        200,
        TOY_R3GAN | {"model.group_width": 4, "model.max_width": 16, "model.critic_max_width": 16, "loss.name": "relativistic"}
        | {"loss.r2_gamma": 0.1},
    ),
}  # fmt: skip
QUICK = ("R1", "told the class")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards by name: `many` to train on, `few`, and others held out; of `two` the classes are far apart."""
    folder = tmp_path_factory.mktemp("shapes")
    for seed, (name, count) in enumerate((("many", 400), ("few", BATCH), ("held_out", 48))):
        make_shards(folder / name, count, channels=1, seed=seed)
    images, labels = make_images(400, 16, 16, 1)
    images[labels == 1] = 255 - images[labels == 1]
    samples = [Sample(png(image), "png", int(label)) for image, label in zip(images, labels, strict=True)]
    write_shards(samples, folder / "two", height=16, width=16, channels=1, classes=("dark", "bright"), shard_samples=70)
    return folder


@pytest.fixture
def recorded(data, tmp_path, training):
    """What a run writes down: (images, steps, seed, changes) -> its record."""
    return lambda *arguments: record(training, data, tmp_path / "run", *arguments)


def record(training, data, run, images, steps, seed, changes):
    options = WORKING | {"data.held_out": data / "held_out", "train.seed": seed} | changes
    training(configured(data / images, run, steps * BATCH, **options))
    return read_record(run)


def names(record):
    return [verdict.name for verdict in diagnose(record)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", one_a_day(FAILING))
def test_a_run_that_fails_is_told_how(recorded, name, seed):
    steps, changes = FAILING[name]
    images = {"discriminator overfitting": "few", "collapse within classes": "two"}.get(name, "many")
    found = diagnose(recorded(images, steps, seed, changes))
    assert [verdict.name for verdict in found] == [name.removesuffix(" within classes")]
    assert found[0].meaning.endswith("of each class.") == name.endswith(" within classes")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*one_a_day(QUICK), *(slow(name) for name in HEALTHY if name not in QUICK)])
def test_a_healthy_run_ends_healthy_and_is_never_told_that_it_fails(recorded, name, seed):
    steps, changes = HEALTHY[name]
    whole = recorded("many", steps, seed, changes)
    assert names(whole) == ["healthy"]
    for count, line in enumerate(whole.metrics, 1):
        grids = [grid for grid in whole.samples if grid["images_seen"] <= line["images_seen"]]
        early = replace(whole, metrics=whole.metrics[:count], samples=grids)
        assert names(early) in (["too early to tell"], ["healthy"]), line["images_seen"]
