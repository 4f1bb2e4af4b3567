"""All images are decoded once and kept; what comes out is what reading them from disk gives."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shards import HEIGHT, WIDTH, encode, few_handles, label, make_shards, picture
from test_stream import config, with_bad_images

from scalegan.data import resident as module
from scalegan.data.resident import Resident, bytes_needed
from scalegan.data.stream import StreamReader
from scalegan.errors import UserError

CPU = torch.device("cpu")


def test_a_batch_is_taken_from_memory(tmp_path: Path) -> None:
    resident = Resident(make_shards(tmp_path / "shards"), config(tmp_path), CPU)
    images, labels = resident.take(torch.tensor([42, 7]))
    assert images.shape == (2, 3, HEIGHT, WIDTH)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), picture(42))
    assert labels.tolist() == [label(42), label(7)]


@pytest.mark.parametrize("channels", [1, 3])
def test_it_holds_what_stands_on_disk(tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)  # of 100 samples: many pieces, the last one short
    index = make_shards(tmp_path / "shards", channels=channels)
    resident = Resident(index, config(tmp_path), CPU)
    samples = np.random.default_rng(0).permutation(100)
    images, labels = resident.take(torch.from_numpy(samples))
    pixels = StreamReader(index, config(tmp_path)).load(samples)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels.images)
    assert np.array_equal(labels.numpy(), pixels.labels)


def test_images_are_channels_last_in_memory(tmp_path: Path) -> None:
    images, _ = Resident(make_shards(tmp_path / "shards"), config(tmp_path), CPU).take(torch.arange(8))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_its_memory_is_known_beforehand(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    resident = Resident(index, config(tmp_path), CPU)
    assert bytes_needed(index) == resident.images.nbytes + resident.labels.nbytes


def test_shards_of_any_number_are_read_with_few_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 10)  # of as many shards, in 15 pieces
    index = make_shards(tmp_path / "shards", samples=150, shard_samples=1)
    with few_handles(90):
        assert not Resident(index, config(tmp_path), CPU).unreadable


def test_a_bad_image_stops_the_decoding_and_leaves_no_thread(tmp_path: Path) -> None:
    index = with_bad_images(tmp_path / "shards", {20: b"nothing"})
    before = threading.active_count()
    with pytest.raises(UserError, match=r"000000020.png of shard .*shard-000001.tar is no JPEG, PNG or WebP image"):
        Resident(index, config(tmp_path), CPU)
    assert threading.active_count() == before


def test_skipping_says_which_images_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    bad = {3: b"nothing", 20: encode(picture(20))[:50], 39: b"x"}
    index = with_bad_images(tmp_path / "shards", bad)
    resident = Resident(index, config(tmp_path, on_error="skip"), CPU)
    assert sorted(resident.unreadable) == [3, 20, 39]
