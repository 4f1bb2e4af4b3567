"""Mean and covariance of features in an .npz: ours, which say what they are of, and those of other programs, which do not.

`mu` [d] and `sigma` [d, d] are the names of pytorch-fid, clean-fid and OpenAI's ADM, so each of them reads ours too. Files
that need pickle, such as EDM2's, are never read: docs/evaluation.md shows how their owner makes an .npz of one.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import scalegan
from scalegan.errors import UserError
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.frechet import FrechetDistance, Gaussian
from scalegan.evaluation.names import METRICS, best_among, check_counts
from scalegan.evaluation.real import Progress
from scalegan.evaluation.real_cache import RealStatistics, checksum
from scalegan.evaluation.suite import Suite
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig
from scalegan.files import write_atomically
from scalegan.sampling import at_once

FORMAT = 2
PROVENANCE = "scalegan"
"""Array of one string: JSON with what the statistics are of, and `checksum`, of that and of the two other arrays."""
MUST_AGREE = {"extractor": "--extractor", "weights_sha256": "--weights", "resize": "--resize", "dtype": "--precision"}
"""What makes features incomparable, and the option by which each is chosen."""
ROUNDING = 1e-4
"""Of the largest number of a covariance: how far it may be from a symmetric one without a negative variance."""


@dataclass(frozen=True)
class Statistics:
    path: str
    mean: NDArray[np.float64]
    """[d]"""
    covariance: NDArray[np.float64]
    """[d, d], over n - 1."""
    provenance: dict[str, Any]
    """Of our own files; empty for those of others."""
    sha256: str
    """Of the file."""

    @property
    def count(self) -> int | None:
        """Images; None where the file does not say."""
        return self.provenance.get("images")

    @property
    def rank(self) -> int:
        """`count`, or where the file does not say as many as make the covariance one of full rank."""
        return self.count or len(self.mean) + 1

    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum [d] and sum of outer products [d, d] of `rank` features with this mean and covariance."""
        return self.mean * self.rank, self.covariance * (self.rank - 1) + self.rank * np.outer(self.mean, self.mean)

    def gaussian(self) -> Gaussian:
        """Raises `UserError` for a sigma with a negative variance in a direction that is no axis, which `read` cannot see."""
        try:
            return Gaussian.fitted(torch.from_numpy(self.mean), torch.from_numpy(self.covariance), self.rank)
        except UserError as error:
            raise UserError(f"statistics {self.path}: {error}: make them again") from None

    def check(self, extractor: Extractor) -> None:
        """Raises `UserError` if features of `extractor` cannot be compared with these."""
        if len(self.mean) != extractor.width:
            guess = "; for FID statistics of other programs give --extractor inception" if len(self.mean) == 2048 else ""
            raise UserError(
                f"{self.path} is of {len(self.mean)} features and extractor {extractor.name} makes {extractor.width}{guess}"
            )
        if not self.provenance and extractor.precision != "float32":
            raise UserError(
                f"{self.path} does not say of what precision it is, and other programs make float32: leave --precision out"
            )
        own = extractor.provenance(processes=1)
        for name, option in MUST_AGREE.items():
            if self.provenance and self.provenance[name] != own[name]:
                raise UserError(
                    f"{self.path} was made with {name} {self.provenance[name]!r}, not {own[name]!r}: "
                    f"give the same by {option}, or make the statistics again by `scalegan stats`"
                )


def save(path: Path, real: RealStatistics, extractor: Extractor, source: str, source_sha256: str) -> None:
    mean, covariance = real.moments()
    arrays: dict[str, NDArray[np.generic]] = {"mu": mean, "sigma": covariance}
    provenance = {
        "format": FORMAT,
        "images": real.images,
        "source": source,
        "source_sha256": source_sha256,
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "resize": extractor.network.resize,
        "dtype": extractor.dtype,
        "scalegan": scalegan.__version__,
        "torch": torch.__version__,
    }
    provenance["checksum"] = digest(arrays, provenance)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{PROVENANCE: np.array(json.dumps(provenance))})  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def digest(arrays: dict[str, NDArray[np.generic]], provenance: dict[str, Any]) -> str:
    said = {name: value for name, value in provenance.items() if name != "checksum"}
    return checksum(arrays | {PROVENANCE: np.array(json.dumps(said, sort_keys=True))}).tobytes().hex()


def read(path: Path) -> Statistics:
    """Ours, pytorch-fid's, clean-fid's or ADM's. Raises `UserError`."""
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mu", "sigma", PROVENANCE) if name in file.files}
    except OSError as error:
        raise UserError(f"statistics {path} cannot be read ({error.strerror or error}): name another file") from None
    except Exception as error:  # damaged archives reach every corner of zipfile and numpy
        said = str(error).partition("\n")[0]
        raise UserError(
            f"statistics {path} are damaged, or no .npz of plain arrays ({said}): make or fetch them again"
        ) from None
    missing = {"mu", "sigma"} - arrays.keys()
    if missing:
        raise UserError(f"statistics {path} have no array {' and '.join(sorted(missing))}: give a file with mu and sigma")
    provenance = read_provenance(arrays.pop(PROVENANCE), arrays, path) if PROVENANCE in arrays else {}
    for name in ("mu", "sigma"):
        if arrays[name].dtype.kind not in "fiu":
            raise UserError(f"statistics {path} have {name} of type {arrays[name].dtype}: give real numbers")
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"statistics {path} have mu {mean.shape} and sigma {covariance.shape}: give d and d x d numbers")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"statistics {path} have NaN or infinite numbers in them: make them again")
    off = max(np.abs(covariance - covariance.T).max(initial=0), -covariance.diagonal().min(initial=0))
    if off > ROUNDING * np.abs(covariance).max(initial=0):
        raise UserError(
            f"statistics {path} have a sigma that is no covariance, symmetric without negative variances: make them again"
        )
    return Statistics(str(path), mean, covariance, provenance, hashlib.sha256(content).hexdigest())


def read_provenance(text: NDArray[Any], arrays: dict[str, NDArray[np.generic]], path: Path) -> dict[str, Any]:
    try:
        provenance = dict(json.loads(str(text)))
        version, expected = provenance["format"], provenance["checksum"]
        whole = type(provenance["images"]) is int and provenance["images"] >= 2 and MUST_AGREE.keys() <= provenance.keys()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"statistics {path} are damaged: make them again by `scalegan stats`") from None
    if version != FORMAT:
        raise UserError(
            f"statistics {path} have format {version}, this version reads {FORMAT}: make them again by `scalegan stats`"
        )
    if not whole or digest(arrays, provenance) != expected:
        raise UserError(f"statistics {path} are damaged (their checksum differs): make them again by `scalegan stats`")
    return provenance


def without_images(config: EvaluationConfig) -> EvaluationConfig:
    """With those of its metrics alone that statistics are enough for."""
    kept = [name for name in config.wanted if METRICS[name].statistics]
    return replace(config, metrics=",".join(kept), best=best_among(config.best, kept))


def compare(
    sample: Callable[[int, int], Tensor],
    statistics: Statistics,
    config: EvaluationConfig,
    extractor: Extractor,
    team: Team,
    progress: Progress,
) -> dict[str, Any]:
    """The record of generated images against the statistics; the same on every process, which all call it.

    `sample` as in `evaluator.evaluate`. There is no floor, and `config` names no metric that needs real images to look at
    (`without_images`). Raises `UserError`.
    """
    began = time.perf_counter()
    statistics.check(extractor)
    check_counts(config.wanted, config.samples, statistics.rank, extractor.width)
    suite = Suite(config, extractor, ())
    distance = FrechetDistance(extractor.width).to(extractor.device)
    with team.as_one():
        if team.first:
            real = statistics.gaussian()
            distance.set_real(*statistics.sums(), statistics.rank)
        for first, count in team.blocks(config.samples, at_once(sample, config.batch)):
            progress("generated images", first, config.samples)
            features = extractor(sample(first, count))
            distance.update(features, real=False)
            suite.add("fake", features, first)
    distance.sync()
    figures = suite.record(distance, team)
    record: dict[str, Any] = {}
    with team.as_one():
        if team.first:
            value = Gaussian.fitted(*distance.moments(real=False)).distance(real)
            figures = {"fid": float(value)} | figures
            record = {
                **{extractor.key(name): figure for name, figure in figures.items()},
                "generated": config.samples,
                "real": statistics.count,
                "statistics_sha256": statistics.sha256,
                "statistics": statistics.provenance,
                **extractor.provenance(team.processes),
                "seconds": round(time.perf_counter() - began, 2),
            }
    shared: dict[str, Any] = team.from_first(record)
    return shared
