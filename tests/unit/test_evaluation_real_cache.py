"""Real statistics come back from their file as they were, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from scalegan.evaluation import real_cache
from scalegan.evaluation.real_cache import RealStatistics, Reference

REFERENCE = Reference(
    index_sha256="ab", extractor="lite0", weights_sha256="cd", resize="bilinear", dtype="float32", device="cpu", torch="2.13.0",
    pillow="12.0.0", images=5, floor_counts=(2, 2),
)  # fmt: skip


@pytest.fixture
def statistics() -> RealStatistics:
    generator = np.random.default_rng(0)
    thumbnails = generator.integers(0, 256, (5, 32, 32), dtype=np.uint8)
    sums = (generator.normal(size=shape) for shape in (7, (7, 7), 7, (7, 7)))
    return RealStatistics(*sums, 5, (1, 2), 1 / 3, thumbnails, 0.7)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path, statistics):
    path = REFERENCE.file(tmp_path / "cache")
    real_cache.save(path, statistics)
    loaded = real_cache.load(path)
    for name, array in statistics.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array), name
    assert (loaded.images, loaded.floor_counts) == (5, (1, 2))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_there_is_nothing_before_it_was_saved(tmp_path):
    assert real_cache.load(REFERENCE.file(tmp_path)) is None


@pytest.mark.parametrize(
    "change",
    [{field: "x"} for field in ("index_sha256", "extractor", "weights_sha256", "resize", "dtype", "device", "torch", "pillow")]
    + [{"images": 4}, {"floor_counts": (1, 2)}],
)
def test_other_data_or_another_way_to_look_at_it_is_another_file(tmp_path, change):
    assert replace(REFERENCE, **change).file(tmp_path) != REFERENCE.file(tmp_path)


def test_a_damaged_file_is_no_file(tmp_path, statistics):
    path = REFERENCE.file(tmp_path)
    real_cache.save(path, statistics)
    whole = path.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        found = real_cache.load(path)
        if found is not None:  # bytes that no reader looks at, such as a time stamp
            assert np.array_equal(found.features_squares, statistics.features_squares)
            assert np.array_equal(found.thumbnails, statistics.thumbnails)
            assert (found.floor, found.floor_counts) == (statistics.floor, statistics.floor_counts)
        path.write_bytes(whole[:at])
        assert real_cache.load(path) is None


def test_what_is_no_archive_is_no_file(tmp_path):
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    assert real_cache.load(tmp_path / "single.npz") is None


def test_an_array_exchanged_inside_a_sound_archive_is_noticed(tmp_path, statistics):
    path = tmp_path / "statistics.npz"
    real_cache.save(path, statistics)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["floor"] = np.array(9.0)
    np.savez(path, **arrays)
    assert real_cache.load(path) is None


def test_pickles_are_not_read(tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, checksum=np.array([{"a": 1}], dtype=object))
    assert real_cache.load(path) is None
