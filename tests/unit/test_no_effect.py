"""A setting that would do nothing is refused where a run begins: what it lacks, what to set, and what to leave it at."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_shards

from scalegan import settings
from scalegan.augment import WIDTH, augment
from scalegan.augment_config import PIPES, STRENGTHS, SWITCHES
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.errors import UserError
from scalegan.model_config import FIELDS_OF, ModelConfig
from scalegan.models.biggan import attentive
from scalegan.models.layers import halvings
from scalegan.no_effect import DEFAULTS, RULES, attended, check, rules_of
from scalegan.run import claim
from scalegan.train import check_data

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
AUGMENTED = {"pipe": "photo"} | {name: "true" if name in SWITCHES else "0.5" for name in STRENGTHS}
# One line a rule: settings that do nothing, why, and what has to be beside them.
TOLD = [
    ("init_networks critic", "without init_from: give --init_from RUN, or leave it at its default, both", "init_from runs/a"),
    ("init_partial true", "without init_from", "init_from runs/a"),
    ("data.streams 8", "in the order full, which has no streams: set --data.order blocks", "data.order blocks"),
    ("data.window 64", "in the order full", "data.order blocks"),
    ("data.memory_gb 4.0; data.reader stream", "for data.reader stream", "data.reader auto"),
    ("data.workers 4; data.reader resident", "for data.reader resident, which has no loader processes", "data.reader auto"),
    ("data.start_method fork; data.reader resident", "for data.reader resident", "data.reader stream"),
    ("data.start_method fork; data.workers 0", "at data.workers 0: set --data.workers 2", "data.workers 1"),
    ("data.skip_budget 0.1", "with data.on_error fail: set --data.on_error skip", "data.on_error skip"),
    ("model.class_dim 64", "without classes: set --model.conditional true", "model.conditional true"),
    (
        "model.class_dim 64; model.conditional true; model.family resnet",
        "where classes come in by norms alone",
        "model.class_via concat",
    ),
    (
        "model.class_dim 64; model.conditional true; model.family resnet",
        "where classes come in by norms alone",
        "model.critic_family stylegan2",
    ),
    (
        "model.norm_group 8; model.family r3gan; model.critic_family dcgan; model.critic_norm none",
        "where neither network has a batch norm: set --model.critic_norm batch",
        "model.critic_norm batch",
    ),
    ("model.map_layers 2; model.critic_family stylegan2", "where only the critic is a stylegan2", "model.conditional true"),
    ("model.mixing 0.5; model.critic_family stylegan2", "for a generator that is no stylegan2", "model.family stylegan2"),
    (
        "model.std_group 8; model.family stylegan2; model.critic_family dcgan",
        "for a critic that is no stylegan2: set --model.critic_family stylegan2",
        "model.critic_family stylegan2",
    ),
    ("loss.penalty_every 8", "without a penalty: set --loss.r1_gamma, --loss.r2_gamma or --loss.gp_weight", "loss.r2_gamma 1"),
    ("loss.penalty_form difference", "without a penalty", "loss.r1_gamma 1"),
    ("loss.penalty_step 0.1", "without a penalty", "loss.r1_gamma 1; loss.penalty_form difference"),
    ("loss.penalty_step 0.1; loss.r1_gamma 1", "with loss.penalty_form exact", "loss.penalty_form difference"),
    ("loss.gp_centre 0.0; loss.r1_gamma 1", "without a gradient penalty", "loss.gp_weight 1; model.critic_norm none"),
    ("loss.path_every 2", "without a path length penalty", "loss.path_weight 2; model.family stylegan2"),
    ("loss.path_decay 0.1", "without a path length penalty", "loss.path_weight 2; model.family stylegan2"),
    ("loss.diversity_limit 0.3", "without a reward: set --loss.diversity_weight 2", "loss.diversity_weight 1"),
    ("loss.class_weight 2.0; model.conditional true", "without a classifier", "model.class_head classifier"),
    ("loss.class_weight 2.0", "without a classifier", "model.discriminator mine.Discriminator"),
    (
        "model.class_head classifier; model.conditional true; loss.class_weight 0",
        "at loss.class_weight 0, where no classifier learns: set --loss.class_weight 1",
        "loss.class_weight 1",
    ),
    ("loss.reconstruction_weight 2.0", "for a critic that reconstructs nothing", "model.critic_family fastgan"),
    ("augment.p 0.5", "where no augmentation is on: give a pipe", "augment.mirror true"),
    ("augment.p 0.5; augment.mirror true; augment.target 0.6", "beside augment.target", "augment.target 0"),
    *((f"augment.{name} {value}; augment.p 0", "at augment.p 0: set --augment.p 0.5, switch all", "augment.p 0.1")
      for name, value in AUGMENTED.items()),
    ("augment.shift 0.1; augment.p 0", "at augment.p 0", "augment.p 1; augment.target 0.6"),
    ("augment.speed 1000; augment.mirror true", "for a probability that is fixed", "augment.target 0.6"),
    ("augment.every 8; augment.mirror true", "for a probability that is fixed", "augment.target 0.6"),
    ("augment.max_p 0.5; augment.mirror true", "for a probability that is fixed", "augment.target 0.6"),
    ("augment.colour 0.5; augment.mirror true", "where no augmentation changes colours", "augment.hue 20"),
    ("augment.spread normal; augment.hue 20", "without a change of brightness", "augment.contrast 0.5"),
    ("augment.spread normal; augment.pipe digits", "without a change of brightness", "augment.pipe medical"),
    ("optim.final_lr 0.1", "with optim.schedule constant: set --optim.schedule cosine", "optim.schedule linear"),
    ("ema.ramp 0.1; ema.half_life 0", "at ema.half_life 0", "ema.half_life 500"),
    ("burn_in.images 99; burn_in.half_life 0.0; ema.half_life 0", "at ema.half_life 0", "ema.half_life 500"),
    ("burn_in.images 99; burn_in.gamma 2.0", "without a penalty", "loss.r1_gamma 1"),
    ("burn_in.images 99; burn_in.gamma 2.0", "without a penalty", "loss.path_weight 1; model.family stylegan2"),
    ("optim.critic_steps 5; train.images 256",
     "but leave the generator as it is, in a run of fewer steps: raise train.images", "train.batch 32"),
    ("burn_in.images 99; burn_in.augment 0.0", "where no augmentation is on", "augment.mirror true"),
    ("burn_in.images 99", "where all begins as it goes on: say what is to begin otherwise", "burn_in.lr 4"),
    ("log.project mine; log.wandb off", "at log.wandb off: set --log.wandb auto", "log.wandb offline"),
    ("log.snapshots 99", "without averages to keep: set --ema.power [0.05,0.1]", "ema.power [0.1]"),
    ("evaluation.lpips vgg", "without the metrics lpips and ppl", "evaluation.metrics ppl"),
    ("evaluation.lpips_weights a.pth", "without the metrics lpips and ppl: name one in --evaluation.metrics, or leave it empty",
     "evaluation.metrics lpips"),
]  # fmt: skip
ALWAYS = {
    "run", "init_from", "override_resume",
    "data.path", "data.order", "data.reader", "data.on_error", "data.cache", "data.cache_gb", "data.held_out", "data.mirror",
    "model.family", "model.critic_family", "model.generator", "model.discriminator", "model.z_dim", "model.width",
    "model.max_width", "model.critic_width", "model.critic_max_width", "model.conditional",
    "loss.name", "loss.own", "loss.r1_gamma", "loss.r2_gamma", "loss.gp_weight", "loss.diversity_weight", "loss.path_weight",
    "optim.lr_g", "optim.lr_d", "optim.betas_g", "optim.betas_d", "optim.schedule", "optim.warmup", "optim.clip",
    "ema.half_life", "ema.power",
    "train.images", "train.batch", "train.accumulate", "train.seed", "train.precision", "train.device", "train.compile",
    "train.deterministic", "train.nonfinite_limit", "train.hang_minutes",
    "log.every", "log.samples", "log.checkpoint", "log.keep", "log.grid", "log.wandb", "log.step_losses",
    "evaluation.every", "evaluation.extractor", "evaluation.weights", "evaluation.precision", "evaluation.samples",
    "evaluation.real", "evaluation.batch", "evaluation.metrics", "evaluation.best",
}  # fmt: skip
"""Settings that do something in every run, or in some run that is not known yet (another machine, a later evaluation)."""
BY_THEIR_SECTION = {
    *(f"model.{name}" for name in (*FIELDS_OF, "class_via", "class_start", "class_ramp")),
    *(f"burn_in.{name}" for name in ("lr", "gamma", "half_life", "augment", "beta2")),
    "augment.pipe", "augment.target", "optim.freeze_critic", "evaluation.resize", "train.cuda_graphs",
}  # fmt: skip
"""Settings that their section (`ModelConfig`, `BurnInConfig`, `AugmentConfig`, ...) or `Config.check` refuses alone."""


def images(channels: int = 3, height: int = 64, width: int = 64) -> Index:
    return Index("data", (), height, width, channels, (), (), "test", "", {}, "")


def parsed(*given: str) -> Config:
    """Of `section.field value; section.field value`, as a command line has them."""
    options = [f"--{option.replace(' ', '=')}" for text in given for option in text.split("; ")]
    flags = [option.removesuffix("=true") if option.startswith("--init_") else option for option in options]
    return settings.parse(["--data.path=data", *flags]).config


@pytest.mark.parametrize(("given", "reason", "beside"), TOLD)
def test_a_setting_that_does_nothing_is_refused_with_both_ways_out(given, reason, beside):
    with pytest.raises(UserError) as told:
        check(parsed(given), images())
    assert str(told.value).startswith(f"{given.split('; ')[0]} does nothing {reason}") or given.startswith("burn_in.images")
    assert f"does nothing {reason}" in str(told.value)
    assert ", or leave it " in str(told.value)
    assert "\n" not in str(told.value)
    check(parsed(given, beside), images())


def test_every_setting_has_a_rule_or_always_acts():
    ruled = {name for rule in (*RULES, *rules_of(images())) for name in rule.fields}
    assert DEFAULTS.keys() == ruled | ALWAYS | BY_THEIR_SECTION
    assert not (ruled | BY_THEIR_SECTION) & ALWAYS
    assert {name for rule in RULES for name in rule.fields} == {
        option.split(" ")[0] for given, *_ in TOLD for option in given.split("; ")[: 2 if given.startswith("burn_in") else 1]
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_setting_of_a_preset_acts(path):
    check(settings.parse(["--config", path.stem]).config, images())


def test_what_a_pipe_stands_for_is_not_held_against_it():
    for name in PIPES:
        for channels in (1, 3):
            check(parsed(f"augment.pipe {name}; augment.target 0.6"), images(channels))
            check(parsed(f"augment.pipe {name}"), images(channels))
    check(parsed("augment.pipe photo; augment.brightness 0; augment.saturation 0; augment.contrast 0"), images())


def test_all_augmentation_goes_off_by_the_options_told():
    given = ["--config", "kiwi_small", "--augment.p", "0"]
    with pytest.raises(UserError, match="does nothing at") as told:
        check(settings.parse(given).config, images())
    way = str(told.value).partition("off by ")[2].partition(", or leave")[0]
    config = settings.parse([*given, *shlex.split(way)]).config
    assert not config.augment.changing
    check(config, images())


@pytest.mark.parametrize(
    "given", [["--augment.p=0.5"], ["--augment.target=0.6"], ["--burn_in.images=99", "--burn_in.augment=0"]]
)
def test_a_pipe_that_is_told_suits_images_that_are_grey_and_not_square(tmp_path, given):
    index = make_shards(tmp_path / "shards", height=16, width=12, channels=1)
    given = [f"--data.path={index.root}", f"--run={tmp_path / 'run'}", "--train.batch=8", *given]
    with pytest.raises(UserError, match="no augmentation is on: give a pipe, such as ") as told:
        check_data(settings.parse(given).config, index)
    pipe = re.search(r"--augment\.pipe \w+", str(told.value))
    check_data(settings.parse([*given, *pipe[0].split()]).config, index)


@pytest.mark.parametrize("field", ["hue", "saturation"])
def test_colours_of_grey_images_are_not_changed(field):
    config = parsed(f"augment.{field} 0.5")
    with pytest.raises(UserError, match=rf"augment\.{field} 0\.5 does nothing on grey images: .* leave it at its default, 0"):
        check(config, images(channels=1))
    check(config, images(channels=3))


@pytest.mark.parametrize("field", ["shift", "cutout"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (96, 32), (9, 9)])
def test_what_is_under_half_a_pixel_is_told(field, height, width):
    views = torch.rand(200, WIDTH, generator=torch.Generator().manual_seed(0))
    refused = 0
    for share in (0.004, 0.006, 0.01, 0.02, 0.05, 0.1):
        config = parsed(f"augment.{field} {share}")
        seen = torch.ones(200, 1, height, width)
        if not torch.equal(augment(seen, views, config.augment), seen):
            check(config, images(3, height, width))
            continue
        refused += 1
        said = rf"augment\.{field} {share} does nothing in images of {height}x{width}, .* half a pixel: give (.*), or leave it"
        with pytest.raises(UserError, match=said) as told:
            check(config, images(3, height, width))
        remedy = re.search(r"give ([\d.]+)", str(told.value))[1]
        check(parsed(f"augment.{field} {remedy}"), images(3, height, width))
    assert 0 < refused < 6


def test_attention_has_to_find_a_resolution():
    for height, width in ((8, 8), (9, 15), (16, 16), (28, 28), (32, 32), (64, 56), (104, 88), (100, 100), (256, 256)):
        least, above = attended(min(height, width))
        for attention in range(1, 300):
            layer = attentive(ModelConfig(family="biggan", attention=attention), halvings(height, width))
            assert (layer is not None) == (least <= attention < above)
    with pytest.raises(UserError, match=r"model\.attention 64 does nothing in images of 64x64, .*: give 8 to 63, or 0"):
        check(parsed("model.family biggan; model.attention 64"), images())
    with pytest.raises(UserError, match=r"model\.attention 4 does nothing in images of 8x8, .*: set it to 0"):
        check(parsed("model.family biggan; model.attention 4"), images(3, 8, 8))
    for attention in (0, 8, 63):
        check(parsed(f"model.family biggan; model.attention {attention}"), images())
    check(parsed("model.family biggan"), images(3, 32, 32))  # nobody has asked for it


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("model.family dcgan", "model.critic_norm none"),
        ("model.family resnet; model.critic_norm batch", "model.critic_norm none"),
        ("model.family fastgan", "model.critic_norm spectral"),
        ("model.critic_family projected", "model.critic_norm spectral"),
    ],
)
def test_a_gradient_penalty_wants_a_critic_without_batch_norm(given, remedy):
    with pytest.raises(UserError, match=rf"loss\.gp_weight 10\.0 is for the slope .*: set --{remedy}, or --loss\.gp_weight 0"):
        check(parsed("loss.gp_weight 10", given), images())
    check(parsed("loss.gp_weight 10", given, remedy), images())


@pytest.mark.parametrize("family", ["dcgan", "resnet", "fastgan", "stylegan2", "r3gan"])
def test_a_way_out_that_a_message_names_is_one(family):
    config = parsed(f"model.family {family}; loss.name wasserstein" + "; model.critic_norm batch" * (family == "resnet"))
    with pytest.raises(UserError, match="whose slope is bounded: set ") as told:
        config.check(1)
    for way in str(told.value).partition(": set ")[2].split(", or "):
        better = parsed(f"model.family {family}; loss.name wasserstein", *(word.strip() for word in way.split("--")[1:]))
        better.check(1)
        check(better, images())


def test_a_run_that_has_begun_goes_on_with_what_it_was_told(tmp_path):
    config = replace(parsed("log.snapshots 99; train.batch 1"), run=str(tmp_path / "run"))
    index = replace(images(), shards=(), sha256="0")
    with pytest.raises(UserError, match=r"log\.snapshots 99 does nothing"):
        check_data(config, index)
    (tmp_path / "run").mkdir()
    claim(tmp_path / "run", config, "0")
    with pytest.raises(UserError, match="has 0 images"):  # the next check
        check_data(config, index)


def test_it_loads_no_torch():
    code = "import sys, scalegan.no_effect; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
