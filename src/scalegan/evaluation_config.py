"""How a generator is compared with real images: which features, how many images, which metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalegan.errors import require
from scalegan.evaluation.names import BY_LPIPS, check_best, chosen, key


@dataclass(frozen=True)
class EvaluationConfig:
    every: int = 200_000
    """Images between evaluations; 0 evaluates only at the end."""
    extractor: str = "lite0"
    """Network whose features are compared: `lite0` (comes with the install), or `inception` (FID) and `dinov2`, which need
    weights."""
    weights: str = ""
    """File with the extractor's weights; empty uses the packaged or downloaded ones."""
    resize: Literal["tf1", "torch-aa", "halfpixel", "clean"] = "tf1"
    """How images are resized to 299x299 for `inception`: as in TensorFlow 1 and torch-fidelity (`tf1`), torchmetrics
    (`torch-aa`), pytorch-fid (`halfpixel`) or clean-fid (`clean`)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the features. `bfloat16` is the monitor mode: faster, only to follow a training run. Its figures have their
    own names (fid_bf16) and are not for reporting."""
    samples: int = 2_000
    """Generated images to compare."""
    real: int = 0
    """Real images to compare with, at most; 0 is all of them."""
    batch: int = 64
    """Images per pass through the extractor. Passes are always full, because features depend on their size in the last bits."""
    metrics: str = "ssim"
    """Metrics besides the Frechet distance and its floor, separated by commas: any of ssim, ms_ssim, lpips, ppl, interval,
    infinity, kid, kid_subsets, prdc, per_class, accuracy, inception_score, memorisation (docs/evaluation.md); may be empty."""
    best: str = "fid"
    """The figure that selects the best checkpoint: fid, the Frechet distance of any extractor, or one that `metrics` includes,
    such as kid, precision, recall, density, coverage, fid_infinity, inception_score or ssim_max (docs/evaluation.md)."""
    lpips: Literal["alex", "vgg"] = "alex"
    """Network of the metrics lpips and ppl; papers report path lengths with vgg."""
    lpips_weights: str = ""
    """File with the weights of that network, as torchvision publishes them; empty uses downloaded ones."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"evaluation.every is {self.every}: give 0 or more images")
        require(self.samples >= 2, f"evaluation.samples is {self.samples}: give at least 2")
        require(self.real >= 0, f"evaluation.real is {self.real}: give 0 or more")
        require(self.batch >= 1, f"evaluation.batch is {self.batch}: give at least 1")
        require(
            self.resize == "tf1" or self.extractor == "inception",
            f"evaluation.resize {self.resize} is one of extractor inception, and evaluation.extractor is {self.extractor}: "
            "leave it out, or set --evaluation.extractor inception",
        )
        check_best(self.best, chosen(self.metrics), self.extractor)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names in `metrics`."""
        return chosen(self.metrics)

    @property
    def judged_by(self) -> str:
        """The name that `best` has in a record."""
        return key(self.best, self.extractor, self.precision)

    @property
    def wants_lpips(self) -> bool:
        """Whether any of them needs the network of LPIPS."""
        return not BY_LPIPS.isdisjoint(self.wanted)
