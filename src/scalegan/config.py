"""All settings of a training run, as frozen dataclasses that are checked once, when they are read.

Imports no torch, so that `--help` is instant. Intervals, half-lives and ramps are counted in images, the one clock of
a run. Reading the command line and YAML into these classes is the work of `settings.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from scalegan.augment_config import AugmentConfig
from scalegan.errors import UserError, require
from scalegan.evaluation_config import EvaluationConfig
from scalegan.loss_config import DIFFERENCES, LossConfig
from scalegan.model_config import ALWAYS_NORMALISED, FIELDS_OF, STYLED, ModelConfig


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Folder of shards written by `scalegan shards`; may start with s3://, gs:// or https://."""
    order: Literal["full", "blocks"] = "full"
    """`full`: each epoch is a permutation of all images; `blocks`: shuffled windows of contiguous streams, for remote
    shards."""
    streams: int = 16
    """Contiguous streams of the `blocks` order; must divide the batch and be a multiple of the number of processes."""
    window: int = 4096
    """Images of a stream that are shuffled together in the `blocks` order."""
    reader: Literal["auto", "resident", "stream"] = "auto"
    """`resident` keeps all decoded images in memory, `stream` reads each when needed; `auto`: resident up to `memory_gb`."""
    memory_gb: float = 2.0
    """Largest memory for resident images, in GB per process."""
    workers: int = 2
    """Loader processes of the stream reader, per training process; 0 reads in the training process."""
    start_method: Literal["forkserver", "fork"] = "forkserver"
    """How loader processes are started. Use `fork` only where a fork server cannot run: it can deadlock if another thread holds
    a lock."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do about an unreadable image: stop the run, or replace it by another image of the same stream."""
    skip_budget: float = 0.001
    """Largest share of unreadable images that `skip` tolerates."""
    cache: str = "~/.cache/scalegan/shards"
    """Folder for shards fetched from remote storage."""
    cache_gb: float = 50.0
    """Largest disk space for cached shards, in GB."""
    held_out: str = ""
    """Folder of shards that are never trained on: the critic's scores for them show whether it has memorised the training
    images. Empty: those that `scalegan shards` kept beside `path`, such as the test split; `none`: no held-out images."""
    mirror: bool = False
    """Mirror real images left to right half of the time, as if each were in the data twice; the generator learns both."""

    def __post_init__(self) -> None:
        require(self.streams >= 1, f"data.streams is {self.streams}: give at least 1")
        require(self.window >= 1, f"data.window is {self.window}: give at least 1")
        require(self.cache_gb >= 0, f"data.cache_gb is {self.cache_gb}: give 0 or more, or .inf for no limit")
        require(self.workers >= 0, f"data.workers is {self.workers}: give 0 or more")
        require(0 <= self.skip_budget <= 1, f"data.skip_budget is {self.skip_budget}: give a share from 0 to 1")
        require(self.memory_gb >= 0, f"data.memory_gb is {self.memory_gb}: give 0 or more")

    @property
    def fails(self) -> bool:
        """Whether an unreadable image ends the run, so that shards are compared with their index before."""
        return self.on_error == "fail"


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
    """How the learning rate decays over the whole run, from its start value to `final_lr` times that."""
    final_lr: float = 0.0
    """Learning rate at the end, as a fraction of the start value (unused by `constant`)."""
    warmup: int = 0
    """Images over which the learning rate rises from 0 at the start."""
    clip: float = 0.0
    """Largest gradient norm of a network: larger gradients are scaled down to it; 0 is off."""
    critic_steps: int = 1
    """Critic steps per generator step, each on its own batch."""
    freeze_critic: int = 0
    """Number of critic stages, counted from the image, that stay frozen as in `init_from` (FreezeD, Mo et al. 2020)."""

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
        require(self.freeze_critic >= 0, f"optim.freeze_critic is {self.freeze_critic}: give 0 or more stages")


@dataclass(frozen=True)
class EmaConfig:
    half_life: int = 10_000
    """Half-life of the averaged generator (EMA), in images."""
    ramp: float = 0.05
    """The half-life is at most this share of the images seen so far (StyleGAN2-ADA); 0 turns the ramp off."""
    power: tuple[float, ...] = ()
    """Widths, as fractions of the run, of additional power-function averages (Karras et al. 2024), such as [0.05, 0.1]. From
    their snapshots `scalegan ema` makes averages of other widths after training."""

    def __post_init__(self) -> None:
        require(self.half_life >= 0, f"ema.half_life is {self.half_life}: give 0 or more images")
        require(
            all(0 < std <= 0.25 for std in self.power) and len(set(self.power)) == len(self.power),
            f"ema.power is {list(self.power)}: give widths from above 0 to 0.25, each once, such as [0.05, 0.1]",
        )
        require(0 <= self.ramp <= 1, f"ema.ramp is {self.ramp}: give a share from 0 to 1")


@dataclass(frozen=True)
class BurnInConfig:
    """R3GAN's burn-in: settings start at these multiples and reach their own values along one cosine (Huang et al. 2024)."""

    images: int = 0
    """Length of the burn-in in images; 0 is none."""
    lr: float = 1.0
    """Learning rates at the start, as a multiple of their final values."""
    gamma: float = 1.0
    """Penalty weights at the start, as a multiple of their final values."""
    half_life: float = 1.0
    """`ema.half_life` at the start, as a multiple; 0 starts without averaging."""
    augment: float = 1.0
    """`augment.p` at the start, as a multiple; 0 starts without augmentation."""
    beta2: float = 0.0
    """Adam's second beta at the start; 0 uses that of `optim`."""

    def __post_init__(self) -> None:
        for name in ("images", "lr", "gamma", "half_life", "augment"):
            require(getattr(self, name) >= 0, f"burn_in.{name} is {getattr(self, name)}: give 0 or more")
        require(0 <= self.beta2 < 1, f"burn_in.beta2 is {self.beta2}: give a number from 0 to below 1")
        changed = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        require(
            self.images > 0 or not changed,
            "burn_in.images is 0, so its other settings have no effect: set how many images the burn-in lasts, or go back by "
            + " ".join(f"--burn_in.{field.name} {field.default}" for field in changed),  # a preset's cannot be left out
        )


@dataclass(frozen=True)
class TrainConfig:
    images: int = 1_000_000
    """Length of the run, in real images shown to the critic."""
    batch: int = 64
    """Images per step, over all processes and accumulation rounds."""
    accumulate: int = 1
    """Gradient accumulation rounds per step: each process splits its batch into so many, to save memory."""
    seed: int = 0
    """Random seed: everything random is a function of it and of the images seen."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision of the convolutions; weights, logits and losses stay float32. `auto` is bf16 if the hardware supports it,
    else fp32; a resumed run keeps its precision."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses a GPU if there is one; `cuda` without a GPU is an error."""
    compile: bool = False
    """Compile generator, critic and penalties with `torch.compile`: takes minutes at the start, then steps are faster."""
    cuda_graphs: bool = False
    """Run the compiled networks as CUDA graphs, so that small networks and batches do not wait for the CPU."""
    deterministic: bool = False
    """Make runs on CUDA reproducible to the bit, at lower speed. CPU runs always are."""
    nonfinite_limit: int = 20
    """Consecutive steps with non-finite gradients after which the run ends; each such step is skipped."""
    hang_minutes: float = 30.0
    """Minutes without a finished step after which every process writes its stacks and the run ends; four times as long for the
    first step. 0 waits forever."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "accumulate", "nonfinite_limit"):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}: give at least 1")
        require(
            self.compile or not self.cuda_graphs,
            "train.cuda_graphs needs compiled networks: set --train.compile true, or --train.cuda_graphs false",
        )
        require(self.hang_minutes >= 0, f"train.hang_minutes is {self.hang_minutes}: give 0 or more")


@dataclass(frozen=True)
class LogConfig:
    every: int = 4_000
    """Images between lines of metrics."""
    samples: int = 50_000
    """Images between sample grids."""
    checkpoint: int = 100_000
    """Images between checkpoints."""
    snapshots: int = 100_000
    """Images between snapshots of the averages of `ema.power`; all snapshots are kept."""
    keep: int = 2
    """How many of the newest checkpoints to keep, in addition to the best (`evaluation.best`)."""
    grid: int = 64
    """Images in the sample grid, made from fixed latents."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases; `auto` is online if there is an API key, else offline."""
    project: str = "scalegan"
    """W&B project."""
    step_losses: bool = False
    """Also write the losses of every step to losses.csv."""

    def __post_init__(self) -> None:
        for name in ("every", "samples", "checkpoint", "snapshots", "keep", "grid"):
            require(getattr(self, name) >= 1, f"log.{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class Config:
    run: str = ""
    """Folder of this run: checkpoints, samples, metrics. The same command resumes the run."""
    init_from: str = ""
    """Start a new run from the networks of this run folder or checkpoint."""
    init_networks: Literal["both", "generator", "critic"] = "both"
    """Which networks to take from `init_from`."""
    init_partial: bool = False
    """Take from `init_from` only layers whose names and shapes match; initialise the others."""
    override_resume: bool = False
    """Resume although losses, augmentation, optimizers, averaging, length, accumulation rounds, precision or `data.on_error`
    have changed."""
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
                f"try {self.options_of_batch(near, processes)}"
            )
        group, share = self.model.norm_group, batch // parts
        if unfit := self._without_whole_groups(batch, parts):
            others = f"{share}, or 0 for all images" if share > 1 else "0 (all images)"
            raise UserError(
                f"model.norm_group {group} does not fit the {unfit} images of a round on each of {processes} processes "
                f"(train.batch {batch}, train.accumulate {rounds}): try --model.norm_group {others}"
            )
        if self._spread and share % self._spread:
            fits = [s for s in range(2, share + 1) if share % s == 0]
            raise UserError(
                f"model.std_group {self._spread} does not divide the {share} images of a round on each of {processes} "
                f"processes (train.batch {batch}, train.accumulate {rounds}): try one of {', '.join(map(str, [*fits[:8], 0]))}"
            )
        if self.loss.path_weight and not self.model.generator and self.model.family not in STYLED:
            raise UserError(
                f"loss.path_weight {self.loss.path_weight} needs intermediate latents, which model.family "
                f"{self.model.family} does not have: set it to 0, or use model.family {' or '.join(STYLED)}"
            )
        if self.optim.freeze_critic and (not self.init_from or self.init_networks == "generator"):
            way = "--init_networks both" if self.init_from else "--init_from RUN, with its critic"
            raise UserError(f"optim.freeze_critic freezes stages of a pretrained critic: give {way}")
        bounded = self.loss.penalised or self.model.norm_of_critic == "spectral" or self.model.discriminator
        if self.loss.name == "wasserstein" and not bounded:
            ways = ["--loss.gp_weight 10" + " --model.critic_norm none" * (self.model.norm_of_critic == "batch")]
            ways = ways * (self.model.critic not in ALWAYS_NORMALISED)
            ways += ["--model.critic_norm spectral"] * (self.model.critic in FIELDS_OF["critic_norm"])
            raise UserError(f"loss.name wasserstein needs a critic whose slope is bounded: set {', or '.join(ways)}")
        if self.augment.target and self.loss.name in DIFFERENCES:
            raise UserError(
                f"augment.target uses the sign of the critic's logits, but with loss.name {self.loss.name} only their "
                "differences are meaningful: leave it 0 and set --augment.p"
            )
        if self.augment.target and self.burn_in.augment != 1:
            raise UserError(
                "burn_in.augment and augment.target both change the probability of augmentations: set only one of them"
            )
        if self._unfit_streams(batch, processes):
            fits = [s for s in range(processes, batch + 1, processes) if batch % s == 0]
            raise UserError(
                f"data.streams {self.data.streams} must divide train.batch {batch} and be a multiple of {processes} processes: "
                f"try one of {', '.join(map(str, fits[:8]))}"
            )

    def options_of_batch(self, batch: int, processes: int) -> str:
        """That batch, and what has to change with it, as options."""
        parts = processes * self.train.accumulate
        share = batch // parts
        options = [f"--train.batch {batch}"]
        if self._without_whole_groups(batch, parts):
            options.append(f"--model.norm_group {share if share > 1 else 0}")
        if self._spread and share % self._spread:
            options.append(f"--model.std_group {max((s for s in range(2, self._spread) if share % s == 0), default=0)}")
        if self._unfit_streams(batch, processes):
            fits = (s for s in range(processes, min(batch, self.data.streams) + 1, processes) if batch % s == 0)
            options.append(f"--data.streams {max(fits, default=processes)}")
        return " ".join(options)

    @property
    def _spread(self) -> int:
        """Images that a critic of StyleGAN2 takes the standard deviation of; 0 is none."""
        return self.model.std_group if self.model.critic == "stylegan2" and not self.model.discriminator else 0

    def _without_whole_groups(self, batch: int, parts: int) -> int:
        """The images of a round on a process where they neither are whole batch norm groups nor share one; else 0."""
        group, share = self.model.norm_group, batch // parts
        for made in (share, 2 * share) if self.loss.diversity_weight else (share,):  # two of each, where they are to differ
            if group and made % group and (self.train.accumulate > 1 or made * parts % group or group % made):
                return made
        return 0

    def _unfit_streams(self, batch: int, processes: int) -> bool:
        streams = self.data.streams
        return self.data.order == "blocks" and bool(batch % streams or streams % processes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights a run ends with; where files lie and what is logged may change."""
        fields = self.to_dict()
        data = {name: fields["data"][name] for name in ("order", "on_error")}
        if self.data.order == "blocks":
            data |= {name: fields["data"][name] for name in ("streams", "window")}
        if self.data.mirror:
            data["mirror"] = True
        train = {name: fields["train"][name] for name in ("batch", "accumulate", "seed", "precision")}
        parts = {name: fields[name] for name in ("model", "loss", "augment", "optim", "ema", "burn_in")}
        if self.optim.schedule != "constant":
            train["images"] = self.train.images
        init = {name: fields[name] for name in ("init_from", "init_networks", "init_partial")} if self.init_from else {}
        return {"data": data, "train": train, **parts, **init}
