"""The index says what a folder of shards holds, and notices when it no longer does."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalegan.data.index import (
    Index,
    content_hash,
    is_remote,
    locate,
    read_bytes,
    read_index,
    read_offsets,
    safe_name,
)
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shards(out: Path, samples: int = 7, **options: object) -> Index:
    made = (Sample(png(i), "png", i % 2) for i in range(samples))
    return write_shards(made, out, height=4, width=6, channels=1, classes=("even", "odd"), shard_samples=3, **options)  # type: ignore[arg-type]


def rewrite(folder: Path, change: dict[str, object], *, seal: bool = True) -> None:
    """Change fields of index.json, with a checksum that fits."""
    fields = json.loads((folder / "index.json").read_text()) | change
    if seal:
        content = {key: value for key, value in fields.items() if key not in ("sha256", "scalegan_shards")}
        fields["sha256"] = content_hash(content)
    (folder / "index.json").write_text(json.dumps(fields))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = shards(tmp_path / "s", source="toy", licence="CC0", details={"seed": 1})
    index = read_index(str(tmp_path / "s"))
    assert index == written
    assert (index.samples, index.labelled, index.classes, index.class_counts) == (7, True, ("even", "odd"), (4, 3))
    assert index.starts.tolist() == [0, 3, 6, 7]
    assert index.starts.dtype == np.int64


def test_offsets_point_at_the_images_and_their_labels(tmp_path: Path) -> None:
    index = shards(tmp_path / "s")
    for sample in range(index.samples):
        shard, row = (int(n) for n in locate(index, np.array(sample)))
        start, length, label = read_offsets(index, shard)[row]
        assert read_bytes(index.root, index.shards[shard].name, start, length) == png(sample)
        assert label == sample % 2


def test_locate_splits_sample_numbers_into_shard_and_row(tmp_path: Path) -> None:
    shard, row = locate(shards(tmp_path / "s"), np.arange(7))
    assert shard.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert row.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_hash_names_the_content_not_the_place(tmp_path: Path) -> None:
    assert shards(tmp_path / "a").sha256 == shards(tmp_path / "b").sha256
    assert shards(tmp_path / "c", samples=6).sha256 != shards(tmp_path / "d").sha256


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "~/x", "C:\\x", "a\\b", "pipe:cat x", "a\nb"])
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="unsafe file name"):
        safe_name(name)


@pytest.mark.parametrize("name", ["shard-000000.tar", "00000/img1.png", "a..b.png"])
def test_ordinary_names_pass(name: str) -> None:
    assert safe_name(name) == name


def test_only_named_protocols_are_remote() -> None:
    assert is_remote("s3://bucket/x")
    assert not is_remote("/data/x")
    with pytest.raises(UserError, match="ftp:// is not read"):
        is_remote("ftp://host/x")
    for chained in ("s3://bucket/x::https://host/y", "https://host/x.zip::file://y", "simplecache::s3://bucket/x"):
        with pytest.raises(UserError, match="is not read"):
            is_remote(chained)


def test_a_folder_without_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index.json is missing.*scalegan shards SOURCE OUT"):
        read_index(str(tmp_path))


def test_a_folder_that_is_not_there_is_told_with_the_one_it_was_looked_for_in(tmp_path, monkeypatch) -> None:
    """In another folder than yesterday's, the same command finds nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        read_index("data/none")
    assert f"there is no data/none (in {tmp_path}); write one with" in str(refused.value)


def test_an_edited_index_is_noticed(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    rewrite(tmp_path / "s", {"height": 5}, seal=False)
    with pytest.raises(UserError, match="its own checksum"):
        read_index(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["one"]}, "disagrees with itself"),
        ({"channels": 2}, "impossible sizes"),
        ({"colour": 1}, "unknown ones"),
        ({"shards": [{"name": "x"}]}, "lacks fields"),
        ({"scalegan_shards": 9}, "has format 9"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    shards(tmp_path / "s")
    rewrite(tmp_path / "s", change)
    with pytest.raises(UserError, match=message):
        read_index(tmp_path / "s")


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    named = json.loads((tmp_path / "s/index.json").read_text())["shards"]
    named[0]["name"] = "../../other.tar"
    rewrite(tmp_path / "s", {"shards": named})
    with pytest.raises(UserError, match="unsafe file name"):
        read_index(tmp_path / "s")


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    path = tmp_path / "s/shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"shard-000001.tar has \d+ bytes, the index says \d+: copy or write"):
        read_index(tmp_path / "s")


def test_the_first_image_that_a_cut_shard_lacks_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path / "s")
    start = int(read_offsets(index, 1)[1, 0])
    os.truncate(tmp_path / "s/shard-000001.tar", start + 20)
    with pytest.raises(UserError, match=r"shard-000001.tar has \d+ bytes.*\(first damaged: image 2 of 3, key '000000004'\)"):
        read_index(tmp_path / "s")
    assert read_index(tmp_path / "s", compare=False) == index


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    (tmp_path / "s/shard-000002.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000002.tar cannot be opened \(No such file"):
        read_index(tmp_path / "s")


def test_changed_offsets_are_noticed(tmp_path: Path) -> None:
    index = shards(tmp_path / "s")
    path = tmp_path / "s/shard-000000.npy"
    offsets = np.load(path)
    offsets[0, 2] = 1 - offsets[0, 2]
    np.save(path, offsets)
    with pytest.raises(UserError, match=r"shard-000000.npy does not match the checksum"):
        read_offsets(index, 0)


@pytest.mark.parametrize("value", [(0, 0), (0, 10**9), (1, 10**9), (1, 0), (1, -5), (2, 2), (2, -1)])
def test_offsets_out_of_bounds_are_refused(tmp_path: Path, value: tuple[int, int]) -> None:
    index = shards(tmp_path / "s")
    offsets = read_offsets(index, 0)
    offsets[1, value[0]] = value[1]
    np.save(tmp_path / "s/shard-000000.npy", offsets)
    named = json.loads((tmp_path / "s/index.json").read_text())["shards"]
    named[0]["offsets_sha256"] = ""
    rewrite(tmp_path / "s", {"shards": named})
    with pytest.raises(UserError, match="points outside"):
        read_offsets(read_index(tmp_path / "s"), 0)


def test_offsets_with_pickles_are_refused(tmp_path: Path) -> None:
    shards(tmp_path / "s")
    np.save(tmp_path / "s/shard-000000.npy", np.array([print], dtype=object), allow_pickle=True)
    named = json.loads((tmp_path / "s/index.json").read_text())["shards"]
    named[0]["offsets_sha256"] = ""
    rewrite(tmp_path / "s", {"shards": named})
    with pytest.raises(UserError, match="no array of offsets"):
        read_offsets(read_index(tmp_path / "s"), 0)
