"""Statistics in a file are those that were written, say what they are of, and are refused where they cannot be compared."""

import contextlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scalegan.errors import UserError
from scalegan.evaluation import statistics_file
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.real_cache import RealStatistics
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
WIDTH = 12


class Areas(nn.Module):
    """12 features: means of 2x2 areas of each colour."""

    num_features = WIDTH
    resize = "none"

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 64, 2).flatten(1)


EXTRACTOR = Extractor("areas", Areas(), "aa", CPU, 4)


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(2, 1, (40, WIDTH))


@pytest.fixture
def real(features) -> RealStatistics:
    nothing = np.zeros((1, 32, 32), np.uint8)
    half = features[:20]
    sums = features.sum(0), features.T @ features, half.sum(0), half.T @ half
    return RealStatistics(*sums, 40, (20, 20), 0.5, nothing, 0.5)


@pytest.fixture
def ours(real, tmp_path) -> Path:
    statistics_file.save(tmp_path / "out" / "ours.npz", real, EXTRACTOR, "photos", "bb")
    return tmp_path / "out" / "ours.npz"


def test_what_is_written_is_read_with_what_it_is_of(ours, features):
    found = statistics_file.read(ours)
    assert np.allclose(found.mean, features.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(features.T), rtol=1e-9)
    assert found.count == 40
    said = {"source": "photos", "source_sha256": "bb", "extractor": "areas", "weights_sha256": "aa", "resize": "none"}
    assert found.provenance.items() >= said.items()
    found.check(EXTRACTOR)


def test_others_read_it_as_their_own(ours):
    """As pytorch-fid, clean-fid and ADM do, which do not allow pickle."""
    with np.load(ours) as file:
        assert (file["mu"].shape, file["sigma"].shape) == ((WIDTH,), (WIDTH, WIDTH))
        assert file["mu"].dtype == file["sigma"].dtype == np.float64


@pytest.mark.parametrize(
    "more", [{}, {"mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": np.zeros(3, np.uint8)}], ids=["pytorch-fid", "ADM"]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_those_of_others_are_read(tmp_path, features, more, dtype):
    mu, sigma = features.mean(0).astype(dtype), np.cov(features.T).astype(dtype)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma, **more)
    found = statistics_file.read(tmp_path / "theirs.npz")
    assert np.array_equal(found.mean, mu.astype(np.float64))
    assert np.array_equal(found.covariance, sigma.astype(np.float64))
    assert found.count is None
    found.check(EXTRACTOR)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "lite0"}, "made with extractor 'areas', not 'lite0'.* by --extractor"),
        ({"weights_sha256": "cc"}, "made with weights_sha256 'aa', not 'cc'.* by --weights"),
    ],
)
def test_other_features_cannot_be_compared(ours, change, said):
    with pytest.raises(UserError, match=said):
        statistics_file.read(ours).check(replace(EXTRACTOR, **change))


def test_another_resize_or_width_cannot_be_compared(ours, tmp_path):
    other = Areas()
    other.resize = "clean"
    with pytest.raises(UserError, match=r"made with resize 'none', not 'clean'.* by --resize"):
        statistics_file.read(ours).check(replace(EXTRACTOR, network=other))
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"is of 2048 features and extractor areas makes 12; .* --extractor inception"):
        statistics_file.read(tmp_path / "fid.npz").check(EXTRACTOR)


def test_what_is_damaged_is_one_line(ours, tmp_path):
    whole, bad = ours.read_bytes(), tmp_path / "bad.npz"
    with np.load(ours) as file:
        arrays = dict(file)
    cases = {
        "cannot be read": lambda: bad.unlink(missing_ok=True),
        "are damaged, or no": lambda: bad.write_bytes(whole[: len(whole) // 2]),
        "their checksum differs": lambda: np.savez(bad, **arrays | {"mu": arrays["mu"] + 1}),
        "damaged: make them again": lambda: np.savez(bad, **arrays | {"scalegan": np.array("{}")}),
        "have no array sigma": lambda: np.savez(bad, mu=arrays["mu"]),
        "give d and d x d": lambda: np.savez(bad, mu=arrays["mu"], sigma=arrays["sigma"][:3]),
        "NaN": lambda: np.savez(bad, mu=arrays["mu"] * np.nan, sigma=arrays["sigma"]),
    }
    for said, damage in cases.items():
        damage()
        with pytest.raises(UserError, match=said) as error:
            statistics_file.read(bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"images": 5}, {"source": "other photos"}, {"resize": "clean"}])
def test_what_our_own_say_of_themselves_is_under_the_checksum(ours, change):
    with np.load(ours) as file:
        arrays = dict(file)
    provenance = json.loads(str(arrays["scalegan"])) | change
    np.savez(ours, **arrays | {"scalegan": np.array(json.dumps(provenance))})
    with pytest.raises(UserError, match=r"their checksum differs.*by `scalegan stats`"):
        statistics_file.read(ours)


@pytest.mark.parametrize("images", [1, -3, 0, None, "x", 40.0, True])
def test_as_many_images_as_have_no_covariance_are_damage(ours, images):
    with np.load(ours) as file:
        arrays = dict(file)
    provenance = json.loads(str(arrays.pop("scalegan"))) | {"images": images}
    provenance["checksum"] = statistics_file.digest(arrays, provenance)
    np.savez(ours, **arrays, scalegan=np.array(json.dumps(provenance)))
    with pytest.raises(UserError, match="damaged"):
        statistics_file.read(ours)


def test_older_ones_of_ours_are_made_again(ours):
    with np.load(ours) as file:
        arrays = dict(file)
    provenance = json.loads(str(arrays["scalegan"])) | {"format": 1}
    np.savez(ours, **arrays | {"scalegan": np.array(json.dumps(provenance))})
    with pytest.raises(UserError, match="have format 1, this version reads 2: make them again by `scalegan stats`"):
        statistics_file.read(ours)


@pytest.mark.parametrize("sigma", [-np.eye(2), np.array([[1, 5], [0, 1]]), np.array([[1, 0], [0, -0.01]])])
def test_what_is_no_covariance_is_refused(tmp_path, sigma):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(2), sigma=sigma)
    with pytest.raises(UserError, match="have a sigma that is no covariance"):
        statistics_file.read(tmp_path / "theirs.npz")


def test_a_negative_variance_between_the_axes_is_refused_before_an_image_is_made(tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(WIDTH), sigma=np.eye(WIDTH) - 2 / WIDTH)
    statistics, made = statistics_file.read(tmp_path / "theirs.npz"), []
    with pytest.raises(UserError, match=r"theirs.npz: .* no covariance, with a variance of -1 in one direction: make"):
        statistics_file.compare(
            lambda *range_: made.append(range_), statistics, EvaluationConfig(samples=30), EXTRACTOR, Team(), lambda *_: None
        )
    assert made == []


def test_what_is_no_archive_of_real_numbers_is_one_line(tmp_path):
    bad, eye = tmp_path / "bad.npz", np.eye(2)
    np.save(tmp_path / "single.npy", eye)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
    cases = {
        "have mu of type <U1: give real numbers": lambda: np.savez(bad, mu=np.array(["a", "b"]), sigma=eye),
        "have sigma of type complex128": lambda: np.savez(bad, mu=np.zeros(2), sigma=eye * 1j),
        r"have mu of type \[": lambda: np.savez(bad, mu=np.zeros(2, dtype=[("a", "f8"), ("b", "f8")]), sigma=eye),
        "are damaged: make": lambda: np.savez(bad, mu=np.zeros(2), sigma=eye, scalegan=np.array("[" * 100_000)),
        "are damaged, or no .npz": lambda: (tmp_path / "single.npy").rename(bad),
        "are damaged, or .*allocate": lambda: (tmp_path / "huge.npz").rename(bad),
    }
    for said, damage in cases.items():
        damage()
        with pytest.raises(UserError, match=said) as error:
            statistics_file.read(bad)
        assert "\n" not in str(error.value)


def test_a_damaged_archive_is_read_as_it_was_or_not_at_all(tmp_path, features):
    """Compressed, as files of other programs may be: what is damaged reaches all of zipfile."""
    path, mu, sigma = tmp_path / "theirs.npz", features.mean(0)[:3], np.eye(3)
    np.savez_compressed(path, mu=mu, sigma=sigma)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UserError):
            found = statistics_file.read(path)
            assert np.array_equal(found.mean, mu)
            assert np.array_equal(found.covariance, sigma)


class Harmful:
    def __reduce__(self):
        return print, ("the code in a statistics file ran",)


def test_pickles_are_not_read(tmp_path, capsys):
    path = tmp_path / "pickled.npz"
    np.savez(path, mu=np.array([Harmful()], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match=r"no \.npz of plain arrays"):
        statistics_file.read(path)
    assert "ran" not in capsys.readouterr().out


def test_images_are_compared_with_statistics_alone(tmp_path):
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = EXTRACTOR(images).double().numpy()
    np.savez(tmp_path / "theirs.npz", mu=features.mean(0) + 0.5, sigma=np.cov(features.T))
    config = EvaluationConfig(samples=30, batch=8)
    statistics = statistics_file.read(tmp_path / "theirs.npz")
    record = statistics_file.compare(
        lambda first, n: images[first : first + n], statistics, config, EXTRACTOR, Team(), lambda *_: None
    )
    assert record["fd_areas"] == pytest.approx(WIDTH * 0.25, rel=1e-9)  # of the means alone, as the covariances are one
    assert (record["generated"], record["real"], record["statistics_sha256"]) == (30, None, statistics.sha256)
