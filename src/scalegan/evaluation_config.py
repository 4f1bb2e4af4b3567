"""How a generator is compared with real images: which features, how many images, which metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalegan.errors import require
from scalegan.evaluation.names import BY_LPIPS, check_best, chosen, key


@dataclass(frozen=True)
class EvaluationConfig:
    every: int = 200_000
    """Images from one evaluation to the next; 0 evaluates only at the end."""
    extractor: str = "lite0"
    """`lite0` (comes with the install), `inception` (FID) or `dinov2`, which need their weights."""
    weights: str = ""
    """File with the extractor's weights; empty takes the packaged or downloaded ones."""
    resize: Literal["tf1", "torch-aa", "halfpixel", "clean"] = "tf1"
    """How `inception` gets its 299x299: as TensorFlow 1 and torch-fidelity, torchmetrics, pytorch-fid, or clean-fid."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the features: `bfloat16` is the monitor mode, faster and for the course of a training alone. Its figures have names of
    their own (fid_bf16) and are nothing to report."""
    samples: int = 2_000
    """Generated images that are compared."""
    real: int = 0
    """Real images that are compared; 0 is all of them."""
    batch: int = 64
    """Images of one pass through the extractor; always full, as features depend on it in the last bits."""
    metrics: str = "ssim"
    """What is measured beside the Frechet distance and its floor: any of ssim, ms_ssim, lpips, ppl, interval, infinity, kid,
    kid_subsets, prdc, per_class, accuracy, inception_score, memorisation, with commas between (docs/evaluation.md); empty is
    nothing."""
    best: str = "fid"
    """The figure that the best checkpoint goes by: fid, the Frechet distance of any extractor, or one that `metrics` gives,
    such as kid, precision, recall, density, coverage, fid_infinity, inception_score or ssim_max (docs/evaluation.md)."""
    lpips: Literal["alex", "vgg"] = "alex"
    """Network that the metrics lpips and ppl see images with; the path lengths of papers are those of vgg."""
    lpips_weights: str = ""
    """File with that network's weights, as torchvision publishes them; empty takes downloaded ones."""

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
