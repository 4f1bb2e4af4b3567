"""Settings that would do nothing are refused with the reason: what is set, why it does nothing, and both ways out.

Only where a run begins: what an older run was told stays readable, and that run goes on. Imports no torch. What contradicts
itself within one section is refused by that section wherever it is read, and what nobody could run with by `Config.check`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalegan.augment_config import COLOURS, PIPES, STRENGTHS, in_pixels
from scalegan.config import BurnInConfig, Config
from scalegan.errors import UserError
from scalegan.model_config import ALWAYS_NORMALISED, FIELDS_OF
from scalegan.run import flatten

if TYPE_CHECKING:
    from scalegan.data.index import Index


@dataclass(frozen=True)
class Rule:
    """What settings need, to do anything."""

    fields: tuple[str, ...]
    acts: Callable[[Config], object]
    """Whether they do."""
    reason: str
    """Why not, after `does nothing`."""
    remedy: str


def maps_classes(config: Config) -> bool:
    """Whether a critic of StyleGAN2 maps the class as its generator does."""
    model = config.model
    return model.critic == "stylegan2" and model.conditional and model.class_head == "projection"


def embeds_classes(config: Config) -> bool:
    model = config.model
    return model.class_inputs > 0 or model.family == "biggan" or maps_classes(config)


def normalises_batches(config: Config) -> bool:
    return config.model.family in FIELDS_OF["norm_group"] or config.model.norm_of_critic == "batch"


def own_network(config: Config) -> bool:
    """Of which nobody here knows what it looks at."""
    return bool(config.model.generator or config.model.discriminator)


RULES = (
    Rule(("init_networks", "init_partial"), lambda c: c.init_from, "without init_from", "give --init_from RUN"),
    Rule(
        ("data.streams", "data.window"), lambda c: c.data.order == "blocks",
        "in the order full, which has no streams", "set --data.order blocks",
    ),
    Rule(("data.memory_gb",), lambda c: c.data.reader != "stream", "for data.reader stream", "set --data.reader auto"),
    Rule(
        ("data.workers", "data.start_method"), lambda c: c.data.reader != "resident",
        "for data.reader resident, which has no loader processes", "set --data.reader auto",
    ),
    Rule(("data.start_method",), lambda c: c.data.workers, "at data.workers 0", "set --data.workers 2"),
    Rule(("data.skip_budget",), lambda c: c.data.on_error == "skip", "with data.on_error fail", "set --data.on_error skip"),
    Rule(
        ("model.class_dim",), lambda c: c.model.conditional or own_network(c),
        "without classes", "set --model.conditional true",
    ),
    Rule(
        ("model.class_dim",), lambda c: embeds_classes(c) or own_network(c),
        "where classes come in by norms alone, whose gains and biases are no embedding", "set --model.class_via concat",
    ),
    Rule(
        ("model.norm_group",), lambda c: normalises_batches(c) or own_network(c),
        "where neither network has a batch norm", "set --model.critic_norm batch",
    ),
    Rule(
        ("model.map_layers",), lambda c: c.model.family == "stylegan2" or maps_classes(c) or own_network(c),
        "where only the critic is a stylegan2, and maps no class", "set --model.family stylegan2",
    ),
    Rule(
        ("model.mixing",), lambda c: c.model.family == "stylegan2" or c.model.generator,
        "for a generator that is no stylegan2", "set --model.family stylegan2",
    ),
    Rule(
        ("model.std_group",), lambda c: c.model.critic == "stylegan2" or c.model.discriminator,
        "for a critic that is no stylegan2", "set --model.critic_family stylegan2",
    ),
    Rule(
        ("loss.penalty_every", "loss.penalty_form", "loss.penalty_step"), lambda c: c.loss.penalised,
        "without a penalty", "set --loss.r1_gamma, --loss.r2_gamma or --loss.gp_weight",
    ),
    Rule(
        ("loss.penalty_step",), lambda c: c.loss.penalty_form == "difference",
        "with loss.penalty_form exact", "set --loss.penalty_form difference",
    ),
    Rule(("loss.gp_centre",), lambda c: c.loss.gp_weight, "without a gradient penalty", "set --loss.gp_weight 10"),
    Rule(
        ("loss.path_every", "loss.path_decay"), lambda c: c.loss.path_weight,
        "without a path length penalty", "set --loss.path_weight 2",
    ),
    Rule(("loss.diversity_limit",), lambda c: c.loss.diversity_weight, "without a reward", "set --loss.diversity_weight 2"),
    Rule(
        ("loss.class_weight",),
        lambda c: (c.model.conditional and c.model.class_head == "classifier") or c.model.discriminator,
        "without a classifier", "set --model.conditional true --model.class_head classifier",
    ),
    Rule(
        ("model.class_head",), lambda c: c.loss.class_weight or c.model.discriminator,
        "at loss.class_weight 0, where no classifier learns", "set --loss.class_weight 1",
    ),
    Rule(
        ("loss.reconstruction_weight",), lambda c: c.model.critic == "fastgan" or c.model.discriminator,
        "for a critic that reconstructs nothing", "set --model.critic_family fastgan",
    ),
    Rule(
        ("augment.p",), lambda c: c.augment.changing,
        "where no augmentation is on", "give a pipe, such as --augment.pipe diffaugment",
    ),
    Rule(
        ("augment.p",), lambda c: not c.augment.target, "beside augment.target, which finds p itself", "set --augment.target 0",
    ),
    Rule(
        ("augment.pipe", *(f"augment.{name}" for name in STRENGTHS)), lambda c: c.augment.p or c.augment.target,
        "at augment.p 0", "set --augment.p 0.5, switch all augmentation off by --augment.pipe '' --augment.p 1",
    ),
    Rule(
        ("augment.speed", "augment.every", "augment.max_p"), lambda c: c.augment.target,
        "for a probability that is fixed", "set --augment.target 0.6",
    ),
    Rule(
        ("augment.colour",), lambda c: any(getattr(c.augment, name) for name in COLOURS),
        "where no augmentation changes colours", "set --augment.brightness 0.2",
    ),
    Rule(
        ("augment.spread",), lambda c: c.augment.brightness or c.augment.saturation or c.augment.contrast,
        "without a change of brightness, saturation or contrast", "set --augment.brightness 0.2",
    ),
    Rule(
        ("optim.critic_steps",), lambda c: c.optim.critic_steps <= -(-c.train.images // c.train.batch),
        "but leave the generator as it is, in a run of fewer steps", "raise train.images",
    ),
    Rule(
        ("optim.final_lr",), lambda c: c.optim.schedule != "constant",
        "with optim.schedule constant", "set --optim.schedule cosine",
    ),
    Rule(
        ("ema.ramp", "burn_in.half_life"), lambda c: c.ema.half_life,
        "at ema.half_life 0, which takes no average", "set --ema.half_life 10000",
    ),
    Rule(
        ("burn_in.gamma",), lambda c: c.loss.penalised or c.loss.path_weight,
        "without a penalty", "set --loss.r1_gamma, --loss.r2_gamma or --loss.gp_weight",
    ),
    Rule(
        ("burn_in.augment",), lambda c: c.augment.active,
        "where no augmentation is on", "give a pipe, such as --augment.pipe diffaugment",
    ),
    Rule(
        ("burn_in.images",), lambda c: c.burn_in != BurnInConfig(images=c.burn_in.images),
        "where all begins as it goes on", "say what is to begin otherwise, such as --burn_in.lr 4",
    ),
    Rule(("log.project",), lambda c: c.log.wandb != "off", "at log.wandb off", "set --log.wandb auto"),
    Rule(("log.snapshots",), lambda c: c.ema.power, "without averages to keep", "set --ema.power [0.05,0.1]"),
    Rule(
        ("evaluation.lpips", "evaluation.lpips_weights"), lambda c: c.evaluation.wants_lpips,
        "without the metrics lpips and ppl", "name one in --evaluation.metrics",
    ),
)  # fmt: skip
DEFAULTS: dict[str, Any] = flatten(Config().to_dict())


def check(config: Config, index: Index) -> None:
    """Raises `UserError` for a setting that does nothing in this run, on these images, or not what it is for."""
    check_slopes(config)
    told = set_by_hand(config)
    for rule in (*RULES, *rules_of(index)):
        for name in rule.fields:
            if name in told and not rule.acts(config):
                default = f"at its default, {shown(DEFAULTS[name])}" if DEFAULTS[name] != "" else "empty"
                raise UserError(f"{name} {shown(told[name])} does nothing {rule.reason}: {rule.remedy}, or leave it {default}")


def check_slopes(config: Config) -> None:
    """A batch norm makes the slope at one image a matter of all of them (Gulrajani et al. 2017, section 4)."""
    model = config.model
    if config.loss.gp_weight and model.norm_of_critic == "batch" and not model.discriminator:
        other = "none" if model.critic not in ALWAYS_NORMALISED else "spectral"
        raise UserError(
            f"loss.gp_weight {config.loss.gp_weight} is for the slope of the critic at each image, and with its batch norm a "
            f"logit follows from all images: set --model.critic_norm {other}, or --loss.gp_weight 0"
        )


def set_by_hand(config: Config) -> dict[str, Any]:
    """The settings that are neither what they are by default nor what `augment.pipe` stands for."""
    piped = {f"augment.{name}": value for name, value in PIPES.get(config.augment.pipe, {}).items()}
    settings = flatten(config.to_dict()).items()
    return {name: value for name, value in settings if value not in (DEFAULTS[name], piped.get(name, DEFAULTS[name]))}


def rules_of(index: Index) -> tuple[Rule, ...]:
    """What the images have to be like."""
    side, longer, size = *sorted((index.height, index.width)), f"{index.height}x{index.width}"
    least, above = attended(side)
    between = f"give {least} to {above - 1}, or 0 for none" if least < above else "set it to 0, for none"
    return (
        Rule(("augment.hue", "augment.saturation"), lambda c: index.channels == 3, "on grey images", "take images in colour"),
        Rule(
            ("augment.shift",), lambda c: in_pixels(c.augment.shift, longer) > 0,
            f"in images of {size}, where it is under half a pixel", f"give {1 / longer:.2g}",
        ),
        Rule(
            ("augment.cutout",), lambda c: in_pixels(c.augment.cutout, side) > 0,
            f"in images of {size}, where it is under half a pixel", f"give {1 / side:.2g}",
        ),
        Rule(
            ("model.attention",), lambda c: c.model.attention == 0 or least <= c.model.attention < above or own_network(c),
            f"in images of {size}, which have no such resolution between the coarsest and their own", between,
        ),
    )  # fmt: skip


def attended(side: int) -> tuple[int, int]:
    """From which value of `model.attention` on a layer of images with that shorter side attends, and from which on none does.

    Each resolution has half the side of the next, rounded up, down to the first under 8; attention is at one between them.
    """
    sides = [side]
    while sides[-1] >= 8:
        sides.append(-(-sides[-1] // 2))
    return (sides[-2], side) if len(sides) > 2 else (side, side)


def shown(value: Any) -> str:
    """As it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
