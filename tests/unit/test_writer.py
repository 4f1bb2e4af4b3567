"""Shards are plain tars that any WebDataset reader understands, and appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from opening import encoded, photo, run, save

from scalegan.data import writer
from scalegan.data.index import read_index, read_offsets
from scalegan.data.sources.encode import decode
from scalegan.data.writer import Sample, check_free, new_folder, write_shards
from scalegan.errors import UserError

SHAPE = {"height": 10, "width": 12, "channels": 3}


def samples(number: int = 5) -> list[Sample]:
    return [Sample(encoded(photo(i)), "png", i % 3) for i in range(number)]


def test_webdataset_reads_images_and_labels(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), shard_samples=2, **SHAPE)
    urls = sorted(str(path) for path in (tmp_path / "s").glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == [f"{i:09d}" for i in range(5)]
    assert [sample["cls"] for sample in read] == [0, 1, 2, 0, 1]
    for i, sample in enumerate(read):
        np.testing.assert_array_equal(sample["png"], photo(i))


def test_webdataset_decodes_what_a_user_would_ask_for(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    pairs = webdataset.WebDataset(f"{tmp_path}/s/shard-000000.tar", shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls")
    assert [(image.size, label) for image, label in pairs] == [((12, 10), i % 3) for i in range(5)]


def test_webdataset_reads_what_the_command_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for label, name in enumerate(("kiwi", "plum")):
        for i in range(4):
            save(tmp_path / "fruit" / name / f"{i}.jpg", photo(10 * label + i))
    index = run(tmp_path / "fruit", tmp_path / "s", "--shard-samples", "3")
    urls = [str(tmp_path / "s" / shard.name) for shard in index.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls"))
    decoded = {
        decode((tmp_path / f"fruit/{name}/{i}.jpg").read_bytes()).tobytes(): name for name in index.classes for i in range(4)
    }
    assert len(read) == 8
    assert [decoded[image.tobytes()] for image, _ in read] == [index.classes[label] for _, label in read]


def test_offsets_are_those_that_tarfile_finds(tmp_path: Path) -> None:
    sizes = (1, 511, 512, 513, 20_000)
    for classes, label in (((), -1), (("a",), 0)):
        folder = tmp_path / f"s{label}"
        index = write_shards([Sample(bytes(size), "png", label) for size in sizes], folder, classes=classes, **SHAPE)
        with tarfile.open(folder / "shard-000000.tar") as tar:
            images = [(member.offset_data, member.size, label) for member in tar if member.name.endswith(".png")]
        assert read_offsets(index, 0).tolist() == [list(row) for row in images]


def test_unlabelled_samples_have_no_label_member(tmp_path: Path) -> None:
    write_shards([Sample(b"x", "jpg")], tmp_path / "s", **SHAPE)
    with tarfile.open(tmp_path / "s/shard-000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg"]


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    index = write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), shard_samples=2, **SHAPE)
    assert [shard.samples for shard in index.shards] == [2, 2, 1]
    for shard in index.shards:
        data = (tmp_path / "s" / shard.name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard.sha256, shard.bytes)


def test_no_samples_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        write_shards([], tmp_path / "s", **SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_labels_must_fit_the_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 2"):
        write_shards(samples(), tmp_path / "s", classes=("a", "b"), **SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from samples()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tmp_path / "s", classes=("a", "b", "c"), shard_samples=2, **SHAPE)
    assert list(tmp_path.iterdir()) == []


def interrupting(before: Callable[..., None]) -> Callable[..., None]:
    """The same, and then Ctrl-C is pressed."""

    def both(*places: object, **options: object) -> None:
        before(*places, **options)
        signal.raise_signal(signal.SIGINT)

    return both


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """What a shell starts in its background is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("step", ["os.rename", "os.unlink"])
def test_an_interrupt_while_shards_take_their_place_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, step: str
) -> None:
    """Between the two renames there is no OUT at all, and old shards on a slow disk are removed for a while."""
    if there:
        write_shards(samples(2), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    monkeypatch.setattr(step, interrupting(getattr(os, step.partition(".")[2])))
    try:
        write_shards(samples(5), tmp_path / "s", classes=("a", "b", "c"), force=True, **SHAPE)
    except KeyboardInterrupt:
        pytest.fail(f"interrupted, and there is {[path.name for path in tmp_path.iterdir()]}")
    assert read_index(tmp_path / "s").samples == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_second_interrupt_amid_the_cleaning_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Sample]:
        yield from samples()
        monkeypatch.setattr("os.unlink", interrupting(os.unlink))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tmp_path / "s", classes=("a", "b", "c"), shard_samples=2, **SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "write_file", full)
    with pytest.raises(UserError, match="no space left"):
        write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    write_shards(samples(2), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    with pytest.raises(UserError, match="exists already: give another folder, or --force"):
        write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    assert read_index(tmp_path / "s").samples == 2


def test_force_replaces_shards(tmp_path: Path) -> None:
    write_shards(samples(2), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    write_shards(samples(5), tmp_path / "s", classes=("a", "b", "c"), force=True, **SHAPE)
    assert read_index(tmp_path / "s").samples == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_force_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else than shards"):
        write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), force=True, **SHAPE)
    (tmp_path / "s/index.json").write_text('{"chapters": 7}')
    with pytest.raises(UserError, match="something else than shards"):
        write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), force=True, **SHAPE)
    assert (tmp_path / "s/thesis.tex").exists()


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    write_shards(samples(), tmp_path / "a/b/c", classes=("a", "b", "c"), **SHAPE)
    assert read_index(tmp_path / "s").sha256 == read_index(tmp_path / "a/b/c").sha256


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="being written by another process"),
        new_folder(tmp_path / "s"),
        new_folder(tmp_path / "s"),
    ):
        pass


def test_a_second_writer_cannot_come_in_while_the_first_one_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = writer.flush, []

    def meanwhile(folder: Path) -> None:
        whole(folder)
        if not asked:
            asked.append(folder)
            with pytest.raises(UserError, match="being written by another process"), new_folder(tmp_path / "s"):
                pass

    monkeypatch.setattr(writer, "flush", meanwhile)
    with new_folder(tmp_path / "s") as folder:
        (folder / "shard").write_text("whole")
    assert [path.name for path in asked] == [".s.partial"]
    assert {path.name: path.read_text() for path in (tmp_path / "s").iterdir()} == {"shard": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_folder_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "large/s")
    if there:
        (tmp_path / "large/s").mkdir(parents=True)
    write_shards(samples(), tmp_path / "link", classes=("a", "b", "c"), **SHAPE)
    assert (tmp_path / "link").is_symlink()
    assert read_index(tmp_path / "link").samples == read_index(tmp_path / "large/s").samples == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "link"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a mount point, of the file system that it lies in."""
    folder = tmp_path / "a mount"
    folder.mkdir()
    (tmp_path / "device").mkdir()
    done = subprocess.run(["mount", "--bind", tmp_path / "device", folder], capture_output=True)
    if done.returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_mount_point_is_refused_before_the_work(mounted: Path) -> None:
    with pytest.raises(UserError, match=r"is a mount point, .*: give a folder in it"):
        check_free(mounted, force=False)
    write_shards(samples(), mounted / "s", classes=("a", "b", "c"), **SHAPE)


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no /dev/shm here")
def test_another_file_system_is_refused_too() -> None:
    with pytest.raises(UserError, match="/dev/shm is a mount point"):
        check_free(Path("/dev/shm"), force=True)


def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from scalegan.data.writer import new_folder
with new_folder(pathlib.Path({str(tmp_path / "s")!r})) as folder:
    (folder / "shard-000007.tar").write_bytes(b"half")
    print("there", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s").exists()
    time.sleep(0.05)
    write_shards(samples(), tmp_path / "s", classes=("a", "b", "c"), **SHAPE)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["index.json", "shard-000000.npy", "shard-000000.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_shards(samples(), tmp_path / "file/s", classes=("a", "b", "c"), **SHAPE)
