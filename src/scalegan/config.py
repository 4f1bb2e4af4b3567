"""Everything a training run can be told, as frozen dataclasses that are checked once, at the border.

Imports no torch, so that `--help` is instant. Intervals, half-lives and ramps are counted in images, the one clock of
a run. Reading the command line and YAML into these classes is the work of `settings.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from scalegan.errors import UserError
from scalegan.evaluation.names import chosen


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Folder of shards written by `scalegan shards` (s3://, gs:// and https:// prefixes too)."""
    order: Literal["full", "blocks"] = "full"
    """`full`: a permutation of all images each epoch; `blocks`: shuffled windows of contiguous streams, for remote shards."""
    streams: int = 16
    """Contiguous streams of the `blocks` order; must divide the batch and be a multiple of the number of processes."""
    window: int = 4096
    """Images of one stream that are permuted together in the `blocks` order."""
    reader: Literal["auto", "resident", "stream"] = "auto"
    """`resident` keeps the decoded images in memory, `stream` reads them by offset; `auto` is resident up to `memory_gb`."""
    memory_gb: float = 2.0
    """Most memory the resident images may take, in GB a process."""
    workers: int = 2
    """Loader processes of the stream reader; 0 reads in the training process."""
    on_error: Literal["fail", "skip"] = "fail"
    """What an unreadable image does: stop the run, or be replaced by another of the same stream."""
    skip_budget: float = 0.001
    """Largest share of unreadable images that `skip` puts up with."""
    cache: str = "~/.cache/scalegan/shards"
    """Folder that keeps shards fetched from remote storage."""
    cache_gb: float = 50.0
    """Most disk space that cached shards may take, in GB."""
    held_out: str = ""
    """Folder of shards that are never trained on, such as the test split; empty is none."""

    def __post_init__(self) -> None:
        require(self.streams >= 1, f"data.streams is {self.streams}: give at least 1")
        require(self.window >= 1, f"data.window is {self.window}: give at least 1")
        require(self.workers >= 0, f"data.workers is {self.workers}: give 0 or more")
        require(0 <= self.skip_budget <= 1, f"data.skip_budget is {self.skip_budget}: give a share from 0 to 1")


OWN_FIELDS = {"dcgan": ("critic_norm", "norm_group", "init"), "r3gan": ("blocks", "group_width")}
"""Fields of `ModelConfig` that one family alone knows."""


@dataclass(frozen=True)
class ModelConfig:
    family: Literal["dcgan", "r3gan"] = "dcgan"
    """Network family: convolutions with normalisation (Radford et al. 2015), or residual blocks without (Huang et al. 2024)."""
    z_dim: int = 100
    """Numbers in one latent vector."""
    width: int = 64
    """Generator channels at the highest resolution; doubled at each coarser one up to `max_width`."""
    max_width: int = 512
    """Most generator channels."""
    critic_width: int = 64
    """Critic channels after its first convolution; doubled at each coarser resolution up to `critic_max_width`."""
    critic_max_width: int = 512
    """Most critic channels."""
    critic_norm: Literal["batch", "spectral", "none"] = "batch"
    """Normalisation inside the critic: of its activations, of its weights (Miyato et al. 2018), or none; a gradient penalty
    does not want `batch`."""
    norm_group: int = 0
    """Images that batch norm is taken over: consecutive ones of the batch, so that processes need not wait for each other
    in every layer; 0 is the whole batch of all of them."""
    init: Literal["dcgan", "kaiming"] = "dcgan"
    """Start of the critic's weights: N(0, 0.02) as in the DCGAN paper (and always in the generator), or Kaiming's."""
    conditional: bool = False
    """Tell generator and critic the class of each image; needs labelled data."""
    class_dim: int = 32
    """Numbers that a class is embedded into for the generator."""
    blocks: int = 2
    """Residual blocks at each resolution (r3gan)."""
    group_width: int = 16
    """Channels of one group of a grouped convolution (r3gan)."""

    def __post_init__(self) -> None:
        require(self.norm_group != 1 and self.norm_group >= 0, f"model.norm_group is {self.norm_group}: give 0, or 2 or more")
        for name in ("z_dim", "width", "max_width", "critic_width", "critic_max_width", "class_dim", "blocks", "group_width"):
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}: give at least 1")
        for family, names in OWN_FIELDS.items():
            for field_ in dataclasses.fields(self):
                changed = field_.name in names and getattr(self, field_.name) != field_.default
                require(
                    family == self.family or not changed,
                    f"model.{field_.name} is a setting of model.family {family}, which is {self.family} here: leave it out",
                )
        if self.family == "r3gan":
            for name in ("width", "max_width", "critic_width", "critic_max_width"):
                inner = 2 * getattr(self, name)
                require(
                    inner % self.group_width == 0,
                    f"model.{name} {getattr(self, name)}: r3gan wants twice it to be a multiple of model.group_width "
                    f"{self.group_width}",
                )


@dataclass(frozen=True)
class LossConfig:
    name: Literal["non_saturating", "minimax", "hinge", "least_squares", "wasserstein", "relativistic"] = "non_saturating"
    """`non_saturating`: J_G = -mean log D(G(z)); `minimax`: J_G = mean log(1 - D(G(z))); `relativistic` judges each fake
    beside a real image (RpGAN). The formulas are in losses.py."""
    r1_gamma: float = 0.0
    """Weight of the R1 penalty, gamma/2 * |d logit/d image|^2 on real images (Mescheder et al. 2018); 0 is off."""
    r2_gamma: float = 0.0
    """Weight of the R2 penalty: the same on generated images."""
    gp_weight: float = 0.0
    """Weight of the gradient penalty between real and generated images, w * (|d logit/d image| - `gp_centre`)^2 (WGAN-GP)."""
    gp_centre: float = 1.0
    """Slope that the gradient penalty draws the critic to: 1, or 0 for the zero-centred form."""
    penalty_every: int = 1
    """Critic steps from one penalty to the next; its weight is multiplied by the same number."""

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "r2_gamma", "gp_weight", "gp_centre"):
            require(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}: give 0 or more")
        require(self.penalty_every >= 1, f"loss.penalty_every is {self.penalty_every}: give at least 1")

    @property
    def penalised(self) -> bool:
        return self.r1_gamma > 0 or self.r2_gamma > 0 or self.gp_weight > 0


@dataclass(frozen=True)
class AugmentConfig:
    brightness: float = 0.0
    """Largest change of brightness, in units of the [-1, 1] range."""
    saturation: float = 0.0
    """Largest relative change of saturation (RGB only): a factor from 1 - s to 1 + s."""
    contrast: float = 0.0
    """Largest relative change of contrast: a factor from 1 - c to 1 + c."""
    shift: float = 0.0
    """Largest shift, as a share of height and width; what comes in from outside is 0 (mid-grey)."""
    mirror: bool = False
    """Mirror left and right with probability 1/2. Wrong for digits, and for brains where the side matters."""
    cutout: float = 0.0
    """Side of the square that is blanked, as a share of height and width."""
    p: float = 1.0
    """Probability of each of these for an image, drawn one by one; under 1 the critic sees some images as they are."""

    def __post_init__(self) -> None:
        for name in ("brightness", "saturation", "contrast", "shift", "cutout", "p"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}: give a share from 0 to 1")

    @property
    def active(self) -> bool:
        return self.p > 0 and any(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "p")


@dataclass(frozen=True)
class OptimConfig:
    lr_g: float = 2e-4
    """Adam learning rate of the generator."""
    lr_d: float = 2e-4
    """Adam learning rate of the critic."""
    betas_g: tuple[float, float] = (0.5, 0.999)
    """Adam betas of the generator."""
    betas_d: tuple[float, float] = (0.5, 0.999)
    """Adam betas of the critic."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls from its start to `final_lr` times it, over the whole run."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of that at the start (not used by `constant`)."""
    warmup: int = 0
    """Images over which the learning rate rises from 0."""
    clip: float = 0.0
    """Longest gradient of a network: a longer one is scaled down to it; 0 is off."""
    critic_steps: int = 1
    """Steps of the critic, each on a batch of its own, to one of the generator."""

    def __post_init__(self) -> None:
        require(self.lr_g > 0 and self.lr_d > 0, "optim.lr_g and optim.lr_d must be above 0")
        for name in ("betas_g", "betas_d"):
            require(
                all(0 <= b < 1 for b in getattr(self, name)),
                f"optim.{name} is {getattr(self, name)}: give numbers from 0 to below 1",
            )
        require(0 <= self.final_lr <= 1, f"optim.final_lr is {self.final_lr}: give a share from 0 to 1")
        require(self.warmup >= 0, f"optim.warmup is {self.warmup}: give 0 or more images")
        require(self.clip >= 0, f"optim.clip is {self.clip}: give 0 or more")
        require(self.critic_steps >= 1, f"optim.critic_steps is {self.critic_steps}: give at least 1")


@dataclass(frozen=True)
class EmaConfig:
    half_life: int = 10_000
    """Images after which a weight counts half in the averaged generator."""
    ramp: float = 0.05
    """The half-life is at most this share of the images seen so far (StyleGAN2-ADA); 0 turns the ramp off."""

    def __post_init__(self) -> None:
        require(self.half_life >= 0, f"ema.half_life is {self.half_life}: give 0 or more images")
        require(0 <= self.ramp <= 1, f"ema.ramp is {self.ramp}: give a share from 0 to 1")


@dataclass(frozen=True)
class BurnInConfig:
    """R3GAN's one cosine: from what multiples settings start, to be themselves after `images` (Huang et al. 2024)."""

    images: int = 0
    """Length of the burn-in; 0 is none."""
    lr: float = 1.0
    """Learning rates at the start, as a multiple."""
    gamma: float = 1.0
    """Weights of the penalties at the start, as a multiple."""
    half_life: float = 1.0
    """`ema.half_life` at the start, as a multiple; 0 begins without an average."""
    augment: float = 1.0
    """`augment.p` at the start, as a multiple; 0 begins without augmentation."""
    beta2: float = 0.0
    """Adam's second beta at the start; 0 is that of `optim`."""

    def __post_init__(self) -> None:
        for name in ("images", "lr", "gamma", "half_life", "augment"):
            require(getattr(self, name) >= 0, f"burn_in.{name} is {getattr(self, name)}: give 0 or more")
        require(0 <= self.beta2 < 1, f"burn_in.beta2 is {self.beta2}: give a number from 0 to below 1")
        changed = any(getattr(self, f.name) != f.default for f in dataclasses.fields(self))
        require(
            self.images > 0 or not changed,
            "burn_in.images is 0, so that its other settings do nothing: say how many images the burn-in lasts",
        )


@dataclass(frozen=True)
class TrainConfig:
    images: int = 1_000_000
    """Length of the run: real images shown to the critic."""
    batch: int = 64
    """Images of one step, over all processes and accumulation rounds."""
    accumulate: int = 1
    """Rounds that one step's batch is cut into on each process, to save memory."""
    seed: int = 0
    """Everything random is a function of this number and the images seen."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision of the convolutions; weights, logits and losses stay float32. `auto` is bf16 where the device has it in
    hardware, else fp32; a run goes on in the precision that it began with."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where there is one; `cuda` without a GPU is an error."""
    deterministic: bool = False
    """Bit-exact repeats on CUDA, slower. The CPU repeats exactly anyway."""
    nonfinite_limit: int = 20
    """Steps in a row with non-finite gradients (each is skipped) before the run is stopped."""
    hang_minutes: float = 30.0
    """Time without a step after which every process writes down its stacks and the run ends; 0 waits for ever."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "accumulate", "nonfinite_limit"):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}: give at least 1")
        require(self.hang_minutes >= 0, f"train.hang_minutes is {self.hang_minutes}: give 0 or more")


@dataclass(frozen=True)
class LogConfig:
    every: int = 4_000
    """Images from one line of metrics to the next."""
    samples: int = 50_000
    """Images from one sample grid to the next."""
    checkpoint: int = 100_000
    """Images from one checkpoint to the next."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the best by metric."""
    grid: int = 64
    """Images on the sample grid, made from fixed latents."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with an API key, else offline."""
    project: str = "scalegan"
    """W&B project."""
    step_losses: bool = False
    """Also write the losses of every single step to losses.csv."""

    def __post_init__(self) -> None:
        for name in ("every", "samples", "checkpoint", "keep", "grid"):
            require(getattr(self, name) >= 1, f"log.{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class EvaluationConfig:
    every: int = 200_000
    """Images from one evaluation to the next; 0 evaluates only at the end."""
    extractor: str = "lite0"
    """`lite0` (comes with the install) or `inception` (FID; needs its weights)."""
    weights: str = ""
    """File with the extractor's weights; empty takes the packaged or downloaded ones."""
    samples: int = 2_000
    """Generated images that are compared."""
    real: int = 0
    """Real images that are compared; 0 is all of them."""
    batch: int = 64
    """Images of one pass through the extractor; always full, as features depend on it in the last bits."""
    metrics: str = "ssim"
    """What is measured beside the Frechet distance and its floor: any of ssim, ms_ssim, interval, infinity, kid, kid_subsets,
    prdc, per_class, inception_score and memorisation, with commas between (docs/evaluation.md); empty is nothing."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"evaluation.every is {self.every}: give 0 or more images")
        require(self.samples >= 2, f"evaluation.samples is {self.samples}: give at least 2")
        require(self.real >= 0, f"evaluation.real is {self.real}: give 0 or more")
        require(self.batch >= 1, f"evaluation.batch is {self.batch}: give at least 1")
        chosen(self.metrics)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names in `metrics`."""
        return chosen(self.metrics)


@dataclass(frozen=True)
class Config:
    run: str = ""
    """Folder of this run: checkpoints, samples, metrics. The same command continues it."""
    override_resume: bool = False
    """Go on with a run although losses, augmentation, optimizers, averaging, length, rounds or precision are others now."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    burn_in: BurnInConfig = field(default_factory=BurnInConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check(self, processes: int) -> None:
        """What only the fields together, or the number of processes, can tell. Raises `UserError`."""
        batch, rounds = self.train.batch, self.train.accumulate
        parts = processes * rounds
        if batch % parts:
            near = max(parts, round(batch / parts) * parts)
            raise UserError(
                f"train.batch {batch} is not divisible by {processes} processes x train.accumulate {rounds}: "
                f"try --train.batch {near}"
            )
        group, share = self.model.norm_group, batch // parts
        if group and share % group and (rounds > 1 or batch % group or group % share):
            raise UserError(
                f"model.norm_group {group} does not fit the {share} images of a round on each of {processes} processes "
                f"(train.batch {batch}, train.accumulate {rounds}): try --model.norm_group {share}, or 0 for the whole batch"
            )
        bounded = self.loss.penalised or self.model.critic_norm == "spectral"
        if self.loss.name == "wasserstein" and not bounded:
            raise UserError(
                "loss.name wasserstein needs a critic whose slope is bounded: set --loss.gp_weight 10, or "
                "--model.critic_norm spectral"
            )
        if self.data.order == "blocks":
            streams = self.data.streams
            if batch % streams or streams % processes:
                fits = [s for s in range(processes, batch + 1, processes) if batch % s == 0]
                raise UserError(
                    f"data.streams {streams} must divide train.batch {batch} and be a multiple of {processes} processes: "
                    f"try one of {', '.join(map(str, fits[:8]))}"
                )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def hash(self) -> str:
        """Of all that a resumed run may not change."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights a run ends with; where files lie and what is logged may change."""
        fields = self.to_dict()
        data = {name: fields["data"][name] for name in ("order", "on_error")}
        if self.data.order == "blocks":
            data |= {name: fields["data"][name] for name in ("streams", "window")}
        train = {name: fields["train"][name] for name in ("batch", "accumulate", "seed", "precision")}
        parts = {name: fields[name] for name in ("model", "loss", "augment", "optim", "ema", "burn_in")}
        if self.optim.schedule != "constant":
            train["images"] = self.train.images
        return {"data": data, "train": train, **parts}
