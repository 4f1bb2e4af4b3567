"""Verdicts from lines alone. That real trainings write such lines: test_diagnosed_runs.py."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from scalegan import diagnosis, settings
from scalegan.config import AugmentConfig, Config, OptimConfig, TrainConfig
from scalegan.diagnosis import RECENT, Record, diagnose, read_record
from scalegan.loss_config import LossConfig
from scalegan.model_config import ModelConfig
from scalegan.models.layers import stage_widths
from scalegan.run import config_text
from scalegan.tracking import json_line

LOG, SAMPLES = 1_000, 2_000
GUESS = 2 * math.log(2)


def line(number, **changes):
    """Of a run in which critic and generator are about even."""
    values = {"loss/D": 1.2, "loss/G": 0.9, "logits/real": 0.3, "logits/fake": -0.4, "accuracy/real": 0.6, "accuracy/fake": 0.7}
    named = {name.replace("_", "/", 1): value for name, value in changes.items()}
    return {"images_seen": number * LOG} | skipped() | values | named


def skipped(critic=0, generator=0, row=0, steps=100):
    """Of so many steps of each network; `row` of them one after the other."""
    shares = {"skipped/D": critic / steps, "skipped/G": generator / steps}
    return shares | {"skipped_steps": float(critic + generator), "skipped_in_a_row": row}


def held_out(train, unseen, fake, right=0.9, unseen_right=0.5):
    return {
        "logits/train": train,
        "logits/held_out": unseen,
        "logits/generated": fake,
        "accuracy/train": right,
        "accuracy/held_out": unseen_right,
        "overfit_gap": (train - unseen) / (train - fake),
    }


def grid(number, diversity=0.9, nearest=0.9, train=1.0):
    """Shares of what training images have."""
    return {
        "images_seen": number * SAMPLES,
        "samples": 4,
        "compared": 100,
        "diversity": 60 * diversity,
        "diversity_real": 60.0,
        "nearest_sample": 40 * nearest,
        "nearest_sample_real": 40.0,
        "nearest_train": 30 * train,
        "nearest_train_real": 30.0,
        "nearest_images": [1, 2, 2, 3],
        "nearest_distances": [30.0] * 4,
    }


def record(metrics=None, samples=None, config=None):
    metrics = [line(n) for n in range(1, 9)] if metrics is None else metrics
    samples = [grid(n) for n in range(1, 5)] if samples is None else samples
    return Record(config or Config(train=TrainConfig(batch=10)), metrics, samples)


def lines(count=8, **changes):
    return [line(n, **changes) for n in range(1, count + 1)]


def only(found: Record):
    [verdict] = diagnose(found)
    return verdict


def name(found: Record):
    return only(found).name


def test_a_run_in_balance_is_healthy():
    verdict = only(record())
    assert verdict.name == "healthy"
    assert "samples differ by 90%" in verdict.evidence[2]
    assert verdict.remedy == ""


@pytest.mark.parametrize(("ticks", "grids"), [(0, 0), (1, 0), (RECENT - 1, 4), (8, 0), (8, 1)])
def test_few_lines_are_no_ground_for_a_verdict(ticks, grids):
    assert name(record(lines(ticks), [grid(n) for n in range(grids)])) == "too early to tell"


def test_samples_that_are_not_like_the_images_yet_are_not_called_healthy():
    assert name(record(samples=[grid(n, train=2.5) for n in range(4)])) == "too early to tell"


# --- diverged


def test_skipped_steps_by_the_half_are_a_divergence_and_a_few_under_fp16_are_not():
    assert name(record([*lines(7), line(8) | skipped(3, row=1)])) == "healthy"
    verdict = only(record([*lines(7), line(8) | skipped(60, row=8)]))
    assert verdict.name == "diverged"
    assert verdict.evidence == ("gradients were not finite in 60% of the critic's steps",)
    [told] = only(record([line(1) | skipped(generator=50)])).evidence
    assert told == "gradients were not finite in 50% of the generator's steps"


def test_skipped_steps_here_and_there_are_none_and_as_many_in_a_row_are_one():
    """20 in a row end a run. Of the steps of each network: 40 and 40 of 100 are not 80 %."""
    assert name(record([*lines(7), line(8) | skipped(20, 10, row=2, steps=500)])) == "healthy"
    assert name(record([*lines(7), line(8) | skipped(40, 40, row=3)])) == "healthy"
    verdict = only(record([*lines(7), line(8) | skipped(20, row=20, steps=500)]))
    assert verdict.name == "diverged"
    assert verdict.evidence == ("gradients were not finite in 20 steps in a row",)


def test_a_line_from_before_rows_were_kept_is_read():
    older = {key: value for key, value in line(8).items() if not key.startswith("skipped")}
    assert name(record([*lines(7), older | {"loss/D": None, "skipped_steps": 1.0}])) == "healthy"


@pytest.mark.parametrize("changes", [{"loss_D": None}, {"loss_G": None}, {"logits_real": None}, {"logits_fake": -1e6}])
def test_what_is_not_finite_or_out_of_range_is_a_divergence_at_once(changes):
    verdict = only(record([line(1, **changes)], []))
    assert verdict.name == "diverged"
    assert "--optim.lr_g 5e-05 --optim.lr_d 5e-05" in verdict.remedy


def test_the_last_line_without_a_mean_is_none_where_a_few_steps_were_skipped():
    assert name(record([*lines(7), line(8) | {"loss/D": None, "logits/real": None} | skipped(1, row=1)])) == "healthy"
    assert name(record([*lines(7), line(8) | {"loss/D": None} | skipped(20, row=20)])) == "diverged"  # where it would abort
    assert name(record([*lines(7), line(8, logits_fake=-1e6) | skipped(1, row=1)])) == "diverged"


def test_one_line_without_a_mean_is_none():
    """As a single skipped step leaves it."""
    rows = [row | held_out(2.0, 1.5, -1.0) for row in lines()]
    rows[-2] |= {"loss/D": None, "logits/real": None, "overfit_gap": None} | skipped(1, row=1)
    assert name(record(rows)) == "healthy"
    assert name(record([row | {"loss/D": None} if row is rows[-2] else row | {"loss/D": 0.01} for row in rows])) == "healthy"


def test_generated_images_that_are_not_finite_are_a_divergence():
    assert name(record([*lines(7), line(8) | {"logits/generated": None, "overfit_gap": None}])) == "diverged"


@pytest.mark.parametrize("loss", [LossConfig(name="wasserstein", r1_gamma=0.1), LossConfig(own="mine.LOSS")])
def test_large_logits_are_none_where_a_loss_gives_them_no_scale(loss):
    """A Wasserstein critic with a light R1 told real images from fakes by 1,800 and worked."""
    assert name(record(lines(logits_real=900.0, logits_fake=-900.0), config=Config(loss=loss))) == "healthy"


def test_logits_that_drift_together_are_none():
    assert name(record(lines(logits_real=2e6, logits_fake=2e6 - 1))) == "healthy"


def test_a_generator_that_had_no_step_yet_is_none():
    first = {key: value for key, value in line(1).items() if key != "loss/G"}
    assert name(record([first], [])) == "too early to tell"


# --- the discriminator


def test_held_out_images_that_are_scored_like_fakes_are_overfitting():
    verdict = only(record([values | held_out(2.0, -0.8, -1.0) for values in lines()]))
    assert verdict.name == "discriminator overfitting"
    assert verdict.evidence[0] == "mean logits: training images 2, held-out real images -0.8, fakes -1"
    assert "--augment.pipe photo (or another, as the images allow) --augment.target 0.6" in verdict.remedy


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (held_out(2.0, 1.5, -1.0), "a small gap"),
        (held_out(0.1, -0.1, -0.1, right=0.5), "a critic that tells nothing apart, by chance"),
    ],
    ids=["small gap", "noise"],
)
def test_no_gap_that_matters_is_no_overfitting(values, why):
    assert name(record([row | values for row in lines()])) == "healthy", why


def test_one_line_of_a_critic_whose_threshold_swings_is_no_doubt():
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines()]
    rows[-3]["accuracy/train"] = 0.3
    assert name(record(rows)) == "discriminator overfitting"


def test_one_line_without_a_gap_is_a_doubt():
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines()]
    rows[-3] |= held_out(2.0, 1.8, -1.0)
    assert name(record(rows)) == "healthy"


def test_a_critic_without_loss_is_too_strong():
    sure = lines(loss_D=0.02, accuracy_real=1.0, accuracy_fake=0.99)
    verdict = only(record(sure))
    assert verdict.name == "discriminator too strong"
    assert "not to be told without held-out images" in verdict.evidence[2]
    assert "--loss.r1_gamma 0.1" in verdict.remedy


SURE = lines(loss_D=0.02, accuracy_real=1.0, accuracy_fake=0.99)


def test_a_sure_critic_that_is_right_of_held_out_images_too_does_not_overfit():
    verdict = only(record([row | held_out(9, 8.5, -9, unseen_right=0.97) for row in SURE]))
    assert "so it is of held-out real images, 97%: it is no overfitting" in verdict.evidence
    assert "augment" not in verdict.remedy


@pytest.mark.parametrize(("gaps", "told"), [
    ([0.49] * 5, "overfit gap 0.49 to 0.49, accuracy 52% to 52% of held-out real images"),
    ([0.92, 0.92, 0.92, 0.45, 0.92], "overfit gap 0.45 to 0.92, accuracy 9% to 52% of held-out real images"),
    ([None, None, 0.92, 0.92, 0.92], "overfit gap 0.92 to 0.92, accuracy 9% to 9% of held-out real images"),
], ids=["just under the limit", "one line under it", "held-out images are new to the run"])  # fmt: skip
def test_a_sure_critic_that_is_wrong_of_held_out_images_is_not_said_not_to_overfit(gaps, told):
    accuracy = {0.49: 0.52, 0.45: 0.52, 0.92: 0.09}
    rows = [
        row | (held_out(6, 6 - 12 * gap, -6, 1.0, accuracy[gap]) if gap else {})
        for row, gap in zip(SURE[-RECENT:], gaps, strict=True)
    ]
    verdict = only(record([*SURE[:-RECENT], *rows]))
    assert verdict.name == "discriminator too strong"
    assert f"{told}: it may overfit besides" in verdict.evidence
    assert "--augment.target 0.6" in verdict.remedy
    assert "no overfitting" not in " ".join(verdict.evidence)


def test_a_sure_critic_that_overfits_is_overfitting_alone():
    assert name(record([row | held_out(9, -8, -9) for row in lines(loss_D=0.02)])) == "discriminator overfitting"


@pytest.mark.parametrize("loss", ["hinge", "least_squares", "relativistic", "minimax"])
def test_what_is_little_depends_on_the_loss(loss):
    config = Config(loss=LossConfig(name=loss))
    guess = diagnosis.GUESSING[loss]
    assert name(record(lines(loss_D=0.04 * guess), config=config)) == "discriminator too strong"
    assert name(record(lines(loss_D=0.2 * guess), config=config)) == "healthy"
    assert name(record(lines(loss_D=2 * guess), config=config)) == "discriminator too weak"


def test_a_wasserstein_critic_cannot_be_too_strong():
    config = Config(loss=LossConfig(name="wasserstein", gp_weight=10.0))
    assert name(record(lines(loss_D=-0.001), config=config)) == "healthy"


def test_a_critic_that_is_worse_than_a_guess_is_too_weak():
    verdict = only(record(lines(loss_D=5.0, accuracy_fake=0.0)))
    assert verdict.name == "discriminator too weak"
    assert "--optim.critic_steps 2" in verdict.remedy


# --- collapse


def varied_then_alike(**alike):
    return [grid(1), grid(2), grid(3, **alike), grid(4, **alike)]


@pytest.mark.parametrize(
    "alike", [{"diversity": 0.1, "nearest": 0.3}, {"nearest": 0.01}], ids=["one picture", "a few pictures"]
)
def test_samples_that_were_varied_and_are_alike_have_collapsed(alike):
    verdict = only(record(samples=varied_then_alike(**alike)))
    assert verdict.name == "collapse"
    assert "at 4000 images they were varied: 90%" in verdict.evidence
    assert "the 4 samples are nearest to 3 of 100 training images" in verdict.evidence


def in_classes(diversity):
    """Grids of several classes, varied as a whole and hardly ever twins."""
    real = {"diversity_in_class_real": 30.0}
    return [grid(n) | real | {"diversity_in_class": 30 * (0.9 if n < 3 else diversity)} for n in range(1, 5)]


def test_one_picture_a_class_is_a_collapse():
    verdict = only(record(samples=in_classes(0.1)))
    assert verdict.name == "collapse"
    assert verdict.meaning == "Yes, mode collapse: other latents give (nearly) the same pictures of each class."
    assert "those of one class by 10%" in verdict.evidence[0]
    assert verdict.remedy.startswith("--loss.diversity_weight 2, or --model.class_start 100000 --model.class_ramp 100000; ")
    assert name(record(samples=in_classes(0.6))) == "healthy"


def test_a_few_pictures_that_are_not_those_of_a_class_need_no_more_variety_within_classes():
    real = {"diversity_in_class_real": 30.0, "diversity_in_class": 25.0}
    verdict = only(record(samples=[line | real for line in varied_then_alike(nearest=0.01)]))
    assert verdict.meaning == "Yes, mode collapse: other latents give (nearly) the same pictures."
    assert "diversity_weight" not in verdict.remedy


def test_classes_that_become_more_varied_have_not_collapsed():
    real = {"diversity_in_class_real": 30.0}
    rising = [grid(n) | real | {"diversity_in_class": 0.3 * 1.3**n} for n in range(1, diagnosis.PATIENCE + 3)]
    assert name(record(samples=rising)) == "too early to tell"


def test_one_grid_alike_is_no_collapse_yet():
    assert name(record(samples=[grid(1), grid(2), grid(3), grid(4, diversity=0.1)])) == "too early to tell"


def test_samples_that_are_grey_at_first_have_not_collapsed():
    grey = [grid(n, diversity=0.1, nearest=0.1) for n in range(1, diagnosis.PATIENCE + 1)]
    assert name(record(samples=grey[:-1])) == "too early to tell"
    assert name(record(samples=grey)) == "collapse"


def test_samples_that_become_more_varied_have_not_collapsed():
    rising = [grid(n, diversity=0.01 * 1.3**n, nearest=0.01 * 1.3**n) for n in range(1, diagnosis.PATIENCE + 3)]
    assert name(record(samples=rising)) == "too early to tell"


def test_a_generator_that_fools_the_critic_with_one_picture_has_collapsed():
    verdict = only(record(lines(loss_D=5.0), [grid(n, diversity=0.1, nearest=0.0) for n in range(1, 3)]))
    assert verdict.name == "collapse"
    assert "--optim.lr_d 0.0008" in verdict.remedy


def test_a_generator_that_never_learned_beside_a_sure_critic_has_not_collapsed():
    grey = [grid(n, diversity=0.1, nearest=0.1) for n in range(1, 10)]
    verdict = only(record(lines(loss_D=0.01), grey))
    assert verdict.name == "discriminator too strong"
    assert "the generator has not begun to learn" in verdict.evidence[-1]


def test_a_collapse_beside_a_sure_critic_is_both():
    found = diagnose(record(lines(loss_D=0.01), varied_then_alike(diversity=0.1)))
    assert [verdict.name for verdict in found] == ["discriminator too strong", "collapse"]


def test_of_a_grid_of_one_image_nothing_is_said(tmp_path):
    (tmp_path / "config.yaml").write_text(config_text(Config()))
    single = [grid(n) | {"samples": 1, "diversity": math.nan, "nearest_sample": math.inf} for n in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json_line(row["images_seen"], row) for row in lines()))
    (tmp_path / "samples.jsonl").write_text("".join(json_line(row["images_seen"], row) for row in single))
    assert name(read_record(tmp_path)) == "too early to tell"


# --- what to try


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (Config(loss=LossConfig(r1_gamma=1.0)), "--loss.r1_gamma 3"),
        (Config(loss=LossConfig(gp_weight=10.0)), "--loss.gp_weight 30"),
        (Config(optim=OptimConfig(lr_d=4e-4)), "--optim.lr_d 0.0001"),
        (Config(), "--loss.r1_gamma 0.1 --model.critic_norm none (a new run)"),
        (Config(model=ModelConfig(critic_norm="none")), "--loss.r1_gamma 0.1; "),
        (Config(model=ModelConfig(family="fastgan")), "--loss.r1_gamma 0.1 --model.critic_norm spectral (a new run)"),
        (Config(model=ModelConfig(discriminator="mine.Own")), "--loss.r1_gamma 0.1; "),
    ],
)
def test_the_remedy_starts_from_the_settings_of_the_run(config, wanted):
    assert wanted in only(record(lines(loss_D=0.01), config=config)).remedy


@pytest.mark.parametrize(
    ("augment", "wanted"),
    [
        (AugmentConfig(shift=0.1), "--augment.target 0.6"),
        (AugmentConfig(shift=0.1, target=0.6), "--augment.target 0.48"),
        (AugmentConfig(shift=0.1, target=0.1), "--augment.target 0.08"),
    ],
)
def test_augmentation_that_is_on_is_turned_up(augment, wanted):
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines()]
    assert wanted in only(replace(record(rows), config=Config(augment=augment))).remedy


@pytest.mark.parametrize(
    ("p", "sign", "wanted"),
    [
        (0.01, 0.9, "--augment.speed 2500"),  # it rises as it is, in a quarter of the 10,000 images from 0 to 1
        (0.3, 0.55, "--augment.target 0.48"),
        (0.85, 0.9, "further augmentations, such as --augment.cutout 0.5"),
    ],
)
def test_an_adaptive_probability_that_still_rises_or_can_rise_no_more_needs_no_lower_target(p, sign, wanted):
    config = Config(augment=AugmentConfig(shift=0.1, target=0.6), train=TrainConfig(batch=10, images=10_000))
    rows = [row | held_out(2.0, -0.8, -1.0) | {"augment/p": p, "sign/real": sign} for row in lines()]
    remedy = only(replace(record(rows), config=config)).remedy
    assert wanted in remedy
    assert ("--augment.target" in remedy) == ("--augment.target" in wanted)


@pytest.mark.parametrize(
    "options",
    [
        ["--loss.name=relativistic"],
        ["--loss.name=wasserstein", "--loss.gp_weight=10"],
        ["--burn_in.images=1000", "--burn_in.augment=2"],
        ["--loss.name=relativistic", "--augment.pipe=photo", "--augment.p=0.3"],
    ],
)
def test_where_augmentation_cannot_follow_the_critic_the_remedy_is_one_that_a_run_takes(options):
    config = settings.parse(["--data.path=x", *options]).config
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines(loss_D=0.6)]
    remedy = only(replace(record(rows), config=config)).remedy
    assert "--augment.target" not in remedy
    tried = dict(word.split(" ")[:2] for word in remedy.split("--")[1:])
    given = [f"--{name}={value.strip(',;')}" for name, value in tried.items() if name.startswith("augment.")]
    settings.parse(["--data.path=x", *options, *given]).config.check(1)


def test_a_smaller_critic_has_half_the_channels_of_a_stem_too():
    options = ["--data.path=x", "--model.critic_stem=16"]
    remedy = only(record(lines(loss_D=0.01), config=settings.parse(options).config)).remedy
    assert "--model.critic_width 32 --model.critic_max_width 256 --model.critic_stem 8" in remedy


@pytest.mark.parametrize(
    ("width", "group_width", "expected"),
    [(24, 16, 8), (48, 16, 24), (16, 16, 8), (8, 16, None), (9, 3, 3), (3, 3, None), (5, 1, 2), (1, 1, None)],
)
def test_a_smaller_critic_is_one_that_a_run_takes(width, group_width, expected):
    sizes = {"width": 48, "max_width": 96, "critic_width": width, "critic_max_width": 96, "group_width": group_width}
    options = ["--data.path=x", "--model.family=r3gan", *(f"--model.{name}={value}" for name, value in sizes.items())]
    remedy = only(record(lines(loss_D=0.01), config=settings.parse(options).config)).remedy
    found = re.search(r"; --model.critic_width (\d+) --model.critic_max_width 48$", remedy)
    assert (int(found[1]) if found else None) == expected
    if found:
        settings.parse([*options, f"--model.critic_width={found[1]}", "--model.critic_max_width=48"]).config.check(1)


@pytest.mark.parametrize("preset", ["kiwi", "cifar10", "cifar10_stylegan2", "ffhq256"])
def test_a_smaller_critic_has_half_the_channels_at_every_resolution(preset):
    config = settings.parse(["--config", preset]).config
    words = only(record(lines(loss_D=0.01), config=config)).remedy.rpartition("; ")[2].split()
    changes = {name.removeprefix("--model."): int(width) for name, width in zip(words[::2], words[1::2], strict=True)}
    before, after = config.model, replace(config.model, **changes)
    for stages in (4, 7):
        widths = stage_widths(before.critic_width, before.critic_max_width, stages)
        assert stage_widths(after.critic_width, after.critic_max_width, stages) == [width // 2 for width in widths]


def test_an_adaptive_probability_takes_the_place_of_one_that_was_set():
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines()]
    for given, told in ((["--augment.p=0.2"], "--augment.target 0.6 --augment.p 1;"), ([], "--augment.target 0.6;")):
        config = settings.parse(["--data.path=x", "--augment.pipe=photo", *given]).config
        assert told in only(replace(record(rows), config=config)).remedy


def test_more_augmentation_is_never_a_lower_probability():
    config = settings.parse(["--data.path=x", "--loss.name=relativistic", "--augment.brightness=0.5"]).config
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines(loss_D=0.6)]
    assert "further augmentations, such as --augment.cutout 0.5" in only(replace(record(rows), config=config)).remedy
    config = replace(config, augment=replace(config.augment, cutout=0.5))
    assert "further augmentations, such as --augment.scale 0.2" in only(replace(record(rows), config=config)).remedy


def test_an_augmentation_that_is_on_is_none_to_try():
    """`photo` with `cutout` has all of them."""
    options = ["--data.path=x", "--loss.name=relativistic", "--augment.pipe=photo", "--augment.cutout=0.5", "--augment.p=0.8"]
    rows = [row | held_out(2.0, -0.8, -1.0) for row in lines(loss_D=0.6)]
    remedy = only(replace(record(rows), config=settings.parse(options).config)).remedy
    assert remedy.startswith("stronger augmentations; more training images; ")


def test_a_run_whose_recent_losses_were_all_lost_to_single_skips_is_told_without_a_figure():
    rows = [row | {"loss/D": None} | skipped(1, row=1) for row in lines()]
    assert "loss/D not finite" in only(record(rows)).evidence[0]


def test_a_loss_of_the_users_own_has_no_scale_that_is_known():
    config = Config(loss=LossConfig(own="mine.LOSS"), train=TrainConfig(batch=10))
    assert name(record(lines(loss_D=0.01), config=config)) == "healthy"


def test_a_real_image_has_the_higher_logit_in_pairs_where_logits_alone_mean_nothing():
    config = Config(loss=LossConfig(name="relativistic"), train=TrainConfig(batch=10))
    rows = [row | {"sign/real": 0.9, "accuracy/real": 0.95} for row in lines(loss_D=0.01)]
    assert "a real image has the higher logit in 95% of pairs" in only(record(rows, config=config)).evidence
