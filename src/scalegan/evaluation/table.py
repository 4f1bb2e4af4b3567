"""What `scalegan evaluate` prints under the Frechet distance: each figure beside what it has to be held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scalegan.evaluation.names import key_in


@dataclass(frozen=True)
class Line:
    name: str
    form: str
    beside: str = ""
    """Name of the figure beside it, in the same form."""
    words: str = ""
    """What that is of, or what there is to know instead; with facts of the record in braces."""


LINES = (
    Line("fid_half", ".2f", "fid_floor", "real against real, {floor_counts[0]} and {floor_counts[1]} images, as here"),
    Line("fid_se", ".2g", words="standard error, other samples of this generator"),
    Line("fid_infinity", ".2f", "fid_infinity_r2", "r2 of the line over 1/N"),
    Line("fid_per_class_mean", ".2f", words="mean over the classes"),
    Line("fid_per_class_half_mean", ".2f", "fid_per_class_floor_mean", "real against real, as many of each class as here"),
    Line("accuracy", ".3f", "accuracy_real", "training images, each by a classifier without it"),
    Line("accuracy_held_out", ".3f", words="held-out images"),
    Line("kid", ".3g", "kid_se", "standard error"),
    Line("kid_subsets", ".3g", "kid_subsets_sd", "spread over subsets"),
    Line("precision", ".3f", words="samples among the real images"),
    Line("recall", ".3f", words="real images among the samples"),
    Line("density", ".3f", words="real images around a sample, 1 is as many as around real ones"),
    Line("coverage", ".3f", words="real images with a sample beside them"),
    Line("inception_score", ".2f", "inception_score_sd", "spread over splits"),
    Line("ssim_max", ".3f", "ssim_mean_image", "the mean training image"),
    Line("diversity", ".1f", "diversity_real", "real images"),
    Line("diversity_in_class", ".1f", "diversity_in_class_real", "real images"),
    Line("ms_ssim_max", ".3f", words="the sample most like a real image"),
    Line("ms_ssim_pairs", ".3f", "ms_ssim_pairs_real", "real images"),
    Line("lpips_pairs", ".3f", "lpips_pairs_real", "real images"),
    Line("ppl_z", ".4g", "ppl_z_se", "standard error"),
    Line("ppl_w", ".4g", "ppl_w_se", "standard error"),
    Line("authenticity", ".3f", "authenticity_held_out", "held-out images"),
    Line("c_t", ".2f", words="under -3: nearer to training images than held-out ones are"),
    Line("near_copies", ".3f", "near_copies_held_out", "held-out images"),
    Line("nearest_training", ".4g", "nearest_training_held_out", "held-out images"),
    Line("nearest_held_out", ".4g", words="median distance to the nearest held-out image"),
    Line("nearer_to_training", ".3f", "nearer_to_training_expected", "without memory"),
    Line("mifid", ".2f", "memorisation_distance", "distance to training images; under 0.1 it counts"),
)


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, value, the figure beside it and what that is, of all that a record holds."""
    for line in LINES:
        name, beside = key_in(record, line.name), key_in(record, line.beside)
        if name in record:
            control = f"{record[beside]:{line.form}}" if beside in record else ""
            yield name, f"{record[name]:{line.form}}", control, line.words.format_map(record)
