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

from scalegan.augment_config import AugmentConfig
from scalegan.errors import UserError, require
from scalegan.evaluation_config import EvaluationConfig
from scalegan.loss_config import DIFFERENCES, LossConfig
from scalegan.model_config import ALWAYS_NORMALISED, FIELDS_OF, STYLED, ModelConfig


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
    start_method: Literal["forkserver", "fork"] = "forkserver"
    """How they are started. `fork` is for machines on which no fork server can run: it copies whatever locks threads hold."""
    on_error: Literal["fail", "skip"] = "fail"
    """What an unreadable image does: stop the run, or be replaced by another of the same stream."""
    skip_budget: float = 0.001
    """Largest share of unreadable images that `skip` puts up with."""
    cache: str = "~/.cache/scalegan/shards"
    """Folder that keeps shards fetched from remote storage."""
    cache_gb: float = 50.0
    """Most disk space that cached shards may take, in GB."""
    held_out: str = ""
    """Folder of shards that are never trained on: how the critic scores them tells whether it knows the training images by
    heart. Empty takes those that `scalegan shards` kept beside `path`, such as the test split; `none` is none."""
    mirror: bool = False
    """Real images with left and right exchanged half of the time, as if all were there twice; both are learnt."""

    def __post_init__(self) -> None:
        require(self.streams >= 1, f"data.streams is {self.streams}: give at least 1")
        require(self.window >= 1, f"data.window is {self.window}: give at least 1")
        require(self.workers >= 0, f"data.workers is {self.workers}: give 0 or more")
        require(0 <= self.skip_budget <= 1, f"data.skip_budget is {self.skip_budget}: give a share from 0 to 1")


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
    freeze_critic: int = 0
    """First stages of the critic, from the image on, that stay as `init_from` has them (FreezeD, Mo et al. 2020)."""

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
    """Images after which a weight counts half in the averaged generator."""
    ramp: float = 0.05
    """The half-life is at most this share of the images seen so far (StyleGAN2-ADA); 0 turns the ramp off."""
    power: tuple[float, ...] = ()
    """Widths, as shares of the run, of further averages by power functions (Karras et al. 2024), such as [0.05, 0.1]; averages
    of other widths are made of their snapshots after training, by `scalegan ema`."""

    def __post_init__(self) -> None:
        require(self.half_life >= 0, f"ema.half_life is {self.half_life}: give 0 or more images")
        require(
            all(0 < std <= 0.25 for std in self.power) and len(set(self.power)) == len(self.power),
            f"ema.power is {list(self.power)}: give widths from above 0 to 0.25, each once, such as [0.05, 0.1]",
        )
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
    compile: bool = False
    """Compile the generator and the critic with its penalties by `torch.compile`: minutes at the start, faster steps after."""
    cuda_graphs: bool = False
    """Record what was compiled as CUDA graphs, so that small networks and batches do not wait for the host."""
    deterministic: bool = False
    """Bit-exact repeats on CUDA, slower. The CPU repeats exactly anyway."""
    nonfinite_limit: int = 20
    """Steps in a row with non-finite gradients (each is skipped) before the run is stopped."""
    hang_minutes: float = 30.0
    """Time without a step after which every process writes down its stacks and the run ends, four times as long for the first
    one; 0 waits for ever."""

    def __post_init__(self) -> None:
        for name in ("images", "batch", "accumulate", "nonfinite_limit"):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}: give at least 1")
        require(
            self.compile or not self.cuda_graphs,
            "train.cuda_graphs records what train.compile has compiled: set --train.compile true, or --train.cuda_graphs false",
        )
        require(self.hang_minutes >= 0, f"train.hang_minutes is {self.hang_minutes}: give 0 or more")


@dataclass(frozen=True)
class LogConfig:
    every: int = 4_000
    """Images from one line of metrics to the next."""
    samples: int = 50_000
    """Images from one sample grid to the next."""
    checkpoint: int = 100_000
    """Images from one checkpoint to the next."""
    snapshots: int = 100_000
    """Images from one snapshot of the averages of `ema.power` to the next; all are kept."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the best (`evaluation.best`)."""
    grid: int = 64
    """Images on the sample grid, made from fixed latents."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with an API key, else offline."""
    project: str = "scalegan"
    """W&B project."""
    step_losses: bool = False
    """Also write the losses of every single step to losses.csv."""

    def __post_init__(self) -> None:
        for name in ("every", "samples", "checkpoint", "snapshots", "keep", "grid"):
            require(getattr(self, name) >= 1, f"log.{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class Config:
    run: str = ""
    """Folder of this run: checkpoints, samples, metrics. The same command continues it."""
    init_from: str = ""
    """Run folder, or one of its checkpoints, whose networks a new run starts from."""
    init_networks: Literal["both", "generator", "critic"] = "both"
    """Which networks `init_from` gives."""
    init_partial: bool = False
    """Take from `init_from` the layers whose names and shapes agree, and begin the others anew."""
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
        for made in (share, 2 * share) if self.loss.diversity_weight else (share,):  # two of each, where they are to differ
            if group and made % group and (rounds > 1 or made * parts % group or group % made):
                raise UserError(
                    f"model.norm_group {group} does not fit the {made} images of a round on each of {processes} processes "
                    f"(train.batch {batch}, train.accumulate {rounds}): try --model.norm_group {share}, or 0 for all images"
                )
        spread = self.model.std_group if self.model.critic == "stylegan2" and not self.model.discriminator else 0
        if spread and share % spread:
            fits = [s for s in range(2, share + 1) if share % s == 0]
            raise UserError(
                f"model.std_group {spread} does not divide the {share} images of a round on each of {processes} processes "
                f"(train.batch {batch}, train.accumulate {rounds}): try one of {', '.join(map(str, [*fits[:8], 0]))}"
            )
        if self.loss.path_weight and not self.model.generator and self.model.family not in STYLED:
            raise UserError(
                f"loss.path_weight {self.loss.path_weight} is about intermediate latents, which model.family "
                f"{self.model.family} has not: set it to 0, or take model.family {' or '.join(STYLED)}"
            )
        if self.optim.freeze_critic and (not self.init_from or self.init_networks == "generator"):
            raise UserError(
                "optim.freeze_critic holds stages of a critic that has learnt before: give --init_from, with its critic"
            )
        bounded = self.loss.penalised or self.model.norm_of_critic == "spectral" or self.model.discriminator
        if self.loss.name == "wasserstein" and not bounded:
            ways = ["--loss.gp_weight 10" + " --model.critic_norm none" * (self.model.norm_of_critic == "batch")]
            ways = ways * (self.model.critic not in ALWAYS_NORMALISED)
            ways += ["--model.critic_norm spectral"] * (self.model.critic in FIELDS_OF["critic_norm"])
            raise UserError(f"loss.name wasserstein needs a critic whose slope is bounded: set {', or '.join(ways)}")
        if self.augment.target and self.loss.name in DIFFERENCES:
            raise UserError(
                f"augment.target follows the sign of the critic's logits, and with loss.name {self.loss.name} only differences "
                "of logits mean anything: leave it 0 and set --augment.p"
            )
        if self.augment.target and self.burn_in.augment != 1:
            raise UserError("burn_in.augment and augment.target both move the probability of augmentations: set one of them")
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
        if self.data.mirror:
            data["mirror"] = True
        train = {name: fields["train"][name] for name in ("batch", "accumulate", "seed", "precision")}
        parts = {name: fields[name] for name in ("model", "loss", "augment", "optim", "ema", "burn_in")}
        if self.optim.schedule != "constant":
            train["images"] = self.train.images
        init = {name: fields[name] for name in ("init_from", "init_networks", "init_partial")} if self.init_from else {}
        return {"data": data, "train": train, **parts, **init}
