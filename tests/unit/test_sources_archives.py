"""StyleGAN's data sets, IDX files, CIFAR-10's binary archive and foreign WebDatasets."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import encoded, opened, photo, pictures, run, save, stored

from scalegan.data.sources import cifar, idx, stylegan
from scalegan.data.sources.base import Request
from scalegan.data.sources.detect import detect, open_source
from scalegan.data.sources.encode import decode
from scalegan.errors import UserError

# --- StyleGAN


def make_zip(path: Path, labels: Any = "numbers", names: tuple[str, ...] = (), **files: bytes) -> Path:
    names = names or tuple(f"00000/img{i:08d}.png" for i in range(4))
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(photo(i)))
        if labels == "numbers":
            labels = [[name, i % 2] for i, name in enumerate(names)]
        if labels != "missing":
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_stylegan_zip_has_images_and_labels(tmp_path: Path) -> None:
    images, _, source = opened(make_zip(tmp_path / "x.zip"))
    assert (source.kind, source.classes, [image.label for image in images]) == ("stylegan", ("0", "1"), [0, 1, 0, 1])
    for i, image in enumerate(images):
        np.testing.assert_array_equal(decode(image.data), photo(i))


def test_its_labels_may_be_null(tmp_path: Path) -> None:
    images, _, source = opened(make_zip(tmp_path / "x.zip", labels=None))
    assert (source.classes, [image.label for image in images]) == ((), [-1] * 4)


def test_the_unpacked_folder_is_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(make_zip(tmp_path / "x.zip")) as archive:
        archive.extractall(tmp_path / "folder")
    images, _, source = opened(tmp_path / "folder")
    assert (source.kind, source.classes, [image.label for image in images]) == ("stylegan", ("0", "1"), [0, 1, 0, 1])


def test_a_zip_of_the_folder_says_which_to_give(tmp_path: Path) -> None:
    """The folder around it would be read as class folders."""
    labels = {"ffhq/dataset.json": json.dumps({"labels": [["00000/1.png", 3]]}).encode()}
    path = make_zip(tmp_path / "x.zip", "missing", ("ffhq/00000/1.png",), **labels)
    with pytest.raises(UserError, match=r"x.zip has its dataset.json in the folder ffhq: unpack it and give that folder"):
        opened(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    assert opened(tmp_path / "ffhq")[0][0].label == 3


def test_what_a_mac_packs_along_is_no_image(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", **{"__MACOSX/00000/._img00000000.png": b"\0\5\x16\7", "00000/._img.png": b"\0\5"})
    assert opened(path)[2].count == 4


def test_a_pattern_of_several_zips_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        make_zip(tmp_path / f"{name}.zip")
    with pytest.raises(UserError, match=r"\*.zip matches 2 files: give one archive"):
        opened(tmp_path / "*.zip")


def test_classes_choose_from_numbers(tmp_path: Path) -> None:
    images, _, source = opened(make_zip(tmp_path / "x.zip"), classes=("1",))
    assert (source.classes, [image.label for image in images]) == (("1",), [0, 0])


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="unsafe file name"):
        opened(make_zip(tmp_path / "x.zip", names=("ok.png", name)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["00000/img00000000.png", 0]], "no label for 00000/img00000001.png"),
        ([["00000/img00000000.png", 0.5]], "only class numbers"),
        ([["00000/img00000000.png", [0, 1]]], "only class numbers"),
        ([["00000/img00000000.png", 0], ["00000/img00000000.png", 1]], "00000/img00000000.png has two labels, 0 and 1"),
        ("many", "must hold"),
        ("missing", "has no dataset.json"),
    ],
)
def test_labels_that_make_no_sense_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(make_zip(tmp_path / "x.zip", labels=labels))
    assert message in str(raised.value)


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zip(tmp_path / "x.zip")
    monkeypatch.setattr(stylegan, "MOST_BYTES", 300)
    with pytest.raises(UserError, match="more than any image"):
        opened(tmp_path / "x.zip")


def test_a_cut_zip_is_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"x.zip is no readable zip"):
        opened(path)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    stylegan.open_zip.cache_clear()
    with pytest.raises(UserError, match=r"img00000000.png cannot be unpacked \(Bad CRC"):
        opened(path)


def test_a_dataset_json_of_another_program_takes_no_labels_away(tmp_path: Path) -> None:
    for name in ("kiwi", "plum"):
        save(tmp_path / name / "1.png", photo())
    (tmp_path / "dataset.json").write_text('{"name": "fruit", "licence": "CC0"}')
    with pytest.raises(UserError, match=r"dataset.json must hold .* if another program wrote it, .* --kind folders"):
        opened(tmp_path)
    assert opened(tmp_path, kind="folders")[2].classes == ("kiwi", "plum")


def test_a_dataset_json_without_images_decides_nothing(tmp_path: Path) -> None:
    """Collections of scans have a file of that name too."""
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background"}}')
    (tmp_path / "brain.nii").write_bytes(bytes(400))
    assert detect(Request(str(tmp_path))) == "nifti"


# --- IDX


def write_idx(path: Path, array: np.ndarray) -> Path:
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def digits(folder: Path, end: str = ".gz", per_split: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's four files; images and labels of the training split."""
    random = np.random.default_rng(0)
    kept = None
    for name in ("t10k", "train"):
        images, labels = random.integers(0, 256, (per_split, 28, 28), np.uint8), np.arange(per_split) % 10
        write_idx(folder / f"{name}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte{end}", labels)
        kept = images, labels
    assert kept
    return kept


@pytest.mark.parametrize("end", [".gz", ""])
def test_idx_files_have_images_and_labels(tmp_path: Path, end: str) -> None:
    images, labels = digits(tmp_path, end)
    made, _, source = opened(tmp_path)
    assert (source.kind, source.classes, source.details) == ("idx", tuple("0123456789"), {"split": "train"})
    assert [image.label for image in made] == labels.tolist()
    np.testing.assert_array_equal([decode(image.data) for image in made], images)
    assert all((image.channels, image.suffix) == (1, "png") for image in made)


def test_the_split_is_in_the_file_names(tmp_path: Path) -> None:
    digits(tmp_path)
    assert opened(tmp_path, split="all")[2].count == 40
    images, _, source = opened(tmp_path, split="Test")
    assert source.details == {"split": "test"}
    assert all("t10k-images" in image.name for image in images)
    assert all("t10k-images" in image.name for image in opened(tmp_path / "t10k-images-idx3-ubyte.gz")[0])


def test_digits_can_be_chosen(tmp_path: Path) -> None:
    digits(tmp_path)
    images, _, source = opened(tmp_path, classes=("7", "3"))
    assert (source.classes, sorted(image.label for image in images)) == (("7", "3"), [0, 0, 1, 1])


def test_fashion_mnist_is_known_by_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    _, labels = digits(tmp_path)
    monkeypatch.setattr(idx, "FASHION_LABELS", frozenset({hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()}))
    assert opened(tmp_path)[2].classes[9] == "Ankle boot"


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    digits(tmp_path)
    write_idx(tmp_path / "emnist-train-images-idx3-ubyte", np.zeros((2, 28, 28)))
    with pytest.raises(UserError, match="several data sets"):
        opened(tmp_path)


def test_a_file_that_is_there_packed_and_unpacked_is_one(tmp_path: Path) -> None:
    """As torchvision's MNIST/raw has them, and `gunzip -k` leaves them."""
    images, _ = digits(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    made, _, source = opened(tmp_path)
    assert (source.kind, source.count, source.details) == ("idx", 20, {"split": "train"})
    np.testing.assert_array_equal([decode(image.data) for image in made], images)
    assert opened(tmp_path, split="all")[2].count == opened(f"{tmp_path}/*", split="all")[2].count == 40
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert opened(tmp_path)[2].count == 20, "the packed labels do"


def test_files_of_one_name_in_several_folders_are_several_data_sets(tmp_path: Path) -> None:
    digits(tmp_path / "mnist")
    digits(tmp_path / "fashion")
    with pytest.raises(UserError, match=r"several data sets \(.*/fashion/train-images-idx3-ubyte.gz, .*/mnist/train-images-"):
        opened(tmp_path / "*" / "train-images-idx3-ubyte.gz")


def test_what_a_mac_leaves_beside_the_files_is_no_data_set(tmp_path: Path) -> None:
    digits(tmp_path)
    (tmp_path / "._train-images-idx3-ubyte.gz").write_bytes(b"\0\5\x16\7")
    assert opened(tmp_path)[2].count == 20


def test_missing_labels_are_named(tmp_path: Path) -> None:
    digits(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte.gz is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("end", [".gz", ""])
@pytest.mark.parametrize("keep", [3, 10, 200])
def test_cut_files_are_named(tmp_path: Path, end: str, keep: int) -> None:
    digits(tmp_path, end)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte(.gz)? (is|cannot)"):
        opened(tmp_path)


def test_counts_must_agree(tmp_path: Path) -> None:
    digits(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(7))
    with pytest.raises(UserError, match=r"has 20 images and train-labels-idx1-ubyte.gz 7 labels"):
        opened(tmp_path)


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    digits(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 28) + bytes(100)))
    with pytest.raises(UserError, match="cannot hold 2147483648 x 2147483648 x 28"):
        opened(tmp_path)


def test_a_bomb_that_announces_its_size_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((20, 1000, 1000)))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(idx, "MOST_BYTES", 10_000_000)
    with little_memory(), pytest.raises(UserError, match="unpacks to 20,000,000 bytes"):
        opened(tmp_path)


def test_a_bomb_behind_a_small_header_is_not_read(tmp_path: Path) -> None:
    digits(tmp_path)
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, 20, 28, 28)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(30_000_000)))
    with little_memory(), pytest.raises(UserError, match="20 x 28 x 28 bytes announced, more there"):
        opened(tmp_path)


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than 2 MB are taken at any time within, by Python or numpy."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_other_numbers_than_bytes_are_refused(tmp_path: Path) -> None:
    digits(tmp_path, "")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 2, 2) + bytes(16))
    with pytest.raises(UserError, match="no IDX file of unsigned bytes"):
        opened(tmp_path)


# --- CIFAR-10


def batch(first: int, number: int = 10) -> bytes:
    return b"".join(bytes([(first + i) % 10]) + photo(first + i, 32, 32).transpose(2, 0, 1).tobytes() for i in range(number))


def cifar_archive(path: Path, extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"data_batch_1.bin": batch(0), "data_batch_2.bin": batch(10), "test_batch.bin": batch(20)}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if extra:
            tar.addfile(extra)
    return path


def test_cifar_is_read_from_its_archive(tmp_path: Path) -> None:
    images, _, source = opened(cifar_archive(tmp_path / "cifar-10-binary.tar.gz"))
    assert (source.kind, source.classes, source.count) == ("cifar10", cifar.NAMES, 20)
    for i, image in enumerate(images):
        assert image.label == i % 10
        np.testing.assert_array_equal(decode(image.data), photo(i, 32, 32))


def test_its_archive_may_have_been_unpacked_to_a_tar(tmp_path: Path) -> None:
    packed = cifar_archive(tmp_path / "packed.tar.gz")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/cifar-10-binary.tar").write_bytes(gzip.decompress(packed.read_bytes()))
    assert opened(tmp_path / "x")[2].kind == "cifar10"


def test_cifar_splits_classes_and_folders(tmp_path: Path) -> None:
    path = cifar_archive(tmp_path / "cifar-10-binary.tar.gz")
    assert opened(path, split="test")[2].count == 10
    assert opened(tmp_path, split="all", classes=("cat",))[2].count == 3
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert opened(tmp_path / "unpacked")[2].count == 20
    assert opened(tmp_path / "unpacked/cifar-10-batches-bin")[2].count == 20


def test_a_pattern_names_one_archive_or_batches(tmp_path: Path) -> None:
    for name in ("cifar-a.tar.gz", "cifar-b.tar.gz"):
        cifar_archive(tmp_path / name)
    with pytest.raises(UserError, match=r"\*.gz matches 2 files: give one archive"):
        opened(tmp_path / "*.gz")
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data_batch_1.bin").write_bytes(batch(0))
    (tmp_path / "b/data_batch_2.bin").write_bytes(batch(0))
    assert opened(tmp_path / "b/*.bin")[2].count == 20
    with pytest.raises(UserError, match=r"\*.bin matches data_batch_1.bin twice: give one folder"):
        opened(tmp_path / "*/*.bin")


@pytest.mark.parametrize("name", ["/data_batch_3.bin", "../data_batch_3.bin"])
def test_cifar_archives_may_not_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="unsafe file name"):
        opened(cifar_archive(tmp_path / "cifar.tar.gz", tarfile.TarInfo(name)))


def test_cifar_archives_may_not_hold_links(tmp_path: Path) -> None:
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_3.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(UserError, match="is a link"):
        opened(cifar_archive(tmp_path / "cifar.tar.gz", link))


def test_cut_cifar_is_named(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(batch(0)[:-1])
    with pytest.raises(UserError, match=r"data_batch_1.bin has 30729 bytes, no multiple of 3073"):
        opened(tmp_path)
    path = cifar_archive(tmp_path / "cifar.tar.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cifar.tar.gz cannot be read"):
        opened(path)


def bomb(path: Path, *members: tuple[str, int]) -> Path:
    """An archive of members of zeros; it packs to a thousandth."""
    with tarfile.open(path, "w:gz") as tar:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("data_batch_1.bin", 30_730_000 + 3073)], "data_batch_1.bin has 30,733,073 bytes, more than any batch"),
        ([("data_batch_1.bin", 3073), ("x/data_batch_1.bin", 3073)], "x/data_batch_1.bin is there twice"),
        ([("data_batch_6.bin", 3073)], "data_batch_6.bin is no batch of CIFAR-10"),
        ([(f"{number}.txt", 0) for number in range(101)], "has more than 100 members"),
    ],
)
def test_cifar_archives_hold_no_more_than_cifar(tmp_path: Path, members: list[tuple[str, int]], message: str) -> None:
    path = bomb(tmp_path / "cifar.tar.gz", *members)
    assert path.stat().st_size < 50_000
    with little_memory(), pytest.raises(UserError, match=message):
        opened(path)


def test_the_pickled_version_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    with pytest.raises(UserError, match=r"give cifar-10-binary.tar.gz \(the Python version is pickled\)"):
        opened(tmp_path / "cifar-10-python.tar.gz")


# --- WebDataset


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_foreign_webdataset_is_read(tmp_path: Path) -> None:
    for shard in range(2):
        files = {}
        for i in range(3):
            files |= {
                f"s{shard}/{i}.jpg": encoded(photo(i), "JPEG"),
                f"s{shard}/{i}.cls": b"%d" % (i * 2),
                f"s{shard}/{i}.txt": b"?",
            }
        write_tar(tmp_path / f"{shard}.tar", files)
    images, _, source = opened(tmp_path)
    assert (source.kind, source.classes, source.count) == ("webdataset", tuple("01234"), 6)
    assert [image.label for image in images] == [0, 2, 4] * 2
    assert images[0].data == encoded(photo(0), "JPEG")
    assert opened(tmp_path / "*.tar")[2].count == opened(tmp_path / "0.tar")[2].count * 2 == 6


def test_a_webdataset_of_cifar_is_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar10-train-000000.tar", {"0.png": encoded(photo()), "0.cls": b"1"})
    assert opened(path)[2].kind == opened(tmp_path)[2].kind == "webdataset"


def test_a_tar_that_goes_away_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.png": encoded(photo())})
    source = open_source(Request(str(path)))
    path.unlink()
    with pytest.raises(UserError, match=r"x.tar cannot be read: No such file"):
        pictures(source)


def test_what_a_mac_leaves_beside_a_tar_is_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": encoded(photo())})
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7" + bytes(200))
    assert opened(tmp_path)[2].count == 1


def test_the_suffix_of_a_tar_may_be_in_capitals(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "A.TAR", {"0.png": encoded(photo())})
    assert opened(path)[2].count == opened(tmp_path)[2].count == 1


def test_labels_may_be_words_and_stand_in_json(tmp_path: Path) -> None:
    files = {}
    for i, label in enumerate(("plum", "kiwi", "kiwi")):
        files |= {f"{i}.png": encoded(photo(i)), f"{i}.json": json.dumps({"label": label, "url": "x"}).encode()}
    images, _, source = opened(write_tar(tmp_path / "x.tar", files))
    assert (source.classes, [image.label for image in images]) == (("kiwi", "plum"), [1, 0, 0])


def test_labels_are_the_same_however_a_program_writes_them(tmp_path: Path) -> None:
    labels = {"0.cls": b"\xef\xbb\xbf2", "1.json": b'\xef\xbb\xbf{"label": 2}', "2.json": b'{"label": 2.0}', "3.cls": b"2\r\n"}
    images, _, source = opened(write_tar(tmp_path / "x.tar", {f"{i}.png": encoded(photo(i)) for i in range(4)} | labels))
    assert (source.classes, [image.label for image in images]) == (("0", "1", "2"), [2] * 4)


def test_cls_goes_before_json(tmp_path: Path) -> None:
    files = {"0.png": encoded(photo()), "0.cls": b"1\n", "0.json": b'{"label": "kiwi"}'}
    assert opened(write_tar(tmp_path / "x.tar", files))[0][0].label == 1


def test_a_webdataset_without_labels(tmp_path: Path) -> None:
    images, _, source = opened(write_tar(tmp_path / "x.tar", {"0.webp": encoded(photo(), "WEBP"), "0.json": b"[]"}))
    assert (source.classes, [image.label for image in images]) == ((), [-1])


@pytest.mark.parametrize("labels", [("000", "001", "010"), ("01", "1", "001")])
def test_zeros_in_front_of_a_number_are_no_part_of_the_label(tmp_path: Path, labels: tuple[str, ...]) -> None:
    files = {}
    for i, label in enumerate(labels):
        files |= {f"{i}.png": encoded(photo(i)), f"{i}.cls": label.encode()}
    images, _, source = opened(write_tar(tmp_path / "x.tar", files))
    numbers = [int(label) for label in labels]
    assert (source.count, [image.label for image in images]) == (3, numbers)
    assert source.classes == tuple(str(n) for n in range(max(numbers) + 1))


def test_zeros_in_front_are_part_of_a_label_that_is_a_word(tmp_path: Path) -> None:
    files = {"0.png": encoded(photo()), "0.cls": b"007", "1.png": encoded(photo()), "1.cls": b"bond"}
    assert opened(write_tar(tmp_path / "x.tar", files))[2].classes == ("007", "bond")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_is_none(tmp_path: Path, empty: str) -> None:
    files = {"0.png": encoded(photo()), "0.json": json.dumps({"label": empty}).encode()}
    assert opened(write_tar(tmp_path / "x.tar", files))[2].classes == ()
    files |= {"1.png": encoded(photo()), "1.json": b'{"label": "cat"}'}
    with pytest.raises(UserError, match=r"0.png has no label and others have"):
        opened(write_tar(tmp_path / "x.tar", files))


def test_images_with_a_second_dot_in_their_name_are_told(tmp_path: Path) -> None:
    """A WebDataset's key ends at the first dot: these are further parts of the sample `1`, such as masks."""
    files = {"1.png": encoded(photo()), "1.5x.png": encoded(photo()), "1.mask.JPG": encoded(photo()), "._1.0.png": b"Mac"}
    source = opened(write_tar(tmp_path / "x.tar", files))[2]
    assert source.count == 1
    assert source.notes == ("images left alone, as a key ends at the first dot of a name: 2, such as 1.5x.png",)
    del files["1.png"]
    with pytest.raises(UserError, match=r"no images \(.*\); 1.5x.png is none, as a key ends at the first dot"):
        opened(write_tar(tmp_path / "x.tar", files))


def test_our_own_shards_can_be_written_anew(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for i in range(3):
            save(tmp_path / "images" / name / f"{i}.png", photo(i + 10 * ord(name)))
    first = run(tmp_path / "images", tmp_path / "first", "--shard-samples", "4")
    again = run(tmp_path / "first", tmp_path / "again", "--classes", "c,a", "--size", "5x6")
    assert (again.classes, again.class_counts, again.height, again.width) == (("c", "a"), (3, 3), 5, 6)
    assert again.details["from"]["index"] == first.sha256
    kept = run(tmp_path / "first", tmp_path / "kept", "--classes", "a")
    before = {image.tobytes() for image, label in stored(first) if label == 0}
    assert {image.tobytes() for image, _ in stored(kept)} == before
    assert len(before) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.png": b"x", "1.png": b"y", "0.cls": b"1"}, "1.png has no label and others have"),
        ({"0.png": b"x", "0.cls": b"1", "1.cls": b"1"}, "1 has a label and no image"),
        ({"0.png": b"x", "0.jpg": b"y"}, "have the same key"),
        ({"0.txt": b"x"}, "hold no images"),
        ({"../0.png": b"x"}, "unsafe file name"),
        ({"/0.png": b"x"}, "unsafe file name"),
        ({"0.png": b"x", "0.json": b"{"}, "0.json is no JSON"),
        ({"0.png": b"x", "0.json": b'{"label": [0, 1]}'}, "0.json has a list for a label"),
    ],
)
def test_tars_that_make_no_sense_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(write_tar(tmp_path / "x.tar", files))
    assert message in str(raised.value)


@pytest.mark.parametrize("cut", [512, 1024, 1536, 1900])
def test_cut_tars_are_named_wherever_they_are_cut(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.png": bytes(600), "1.png": bytes(600)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"x.tar (is cut|cannot be read)"):
        opened(path)


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="is a link"):
        opened(tmp_path / "x.tar")


@pytest.mark.parametrize(("mode", "program"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_compressed_tars_are_told_as_such(tmp_path: Path, mode: str, program: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(UserError, match=rf"x.tar is packed with {program}, .*: unpack it to a plain tar"):
        opened(tmp_path)
    (tmp_path / "x.tar").rename(tmp_path / f"x.tar.{mode}")
    for path in (tmp_path, tmp_path / f"x.tar.{mode}"):
        with pytest.raises(UserError, match=rf"x.tar.{mode} is a compressed archive: unpack it"):
            opened(path)


def test_a_plain_tar_whose_first_name_begins_as_a_compressed_file_does_is_read(tmp_path: Path) -> None:
    assert opened(write_tar(tmp_path / "x.tar", {"BZhang.png": encoded(photo())}))[2].count == 1


def test_a_member_without_its_empty_parts_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    os.truncate(tmp_path / "0.png", 1 << 20)
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "-cf", tmp_path / "x.tar", "0.png"], check=True)
    with pytest.raises(UserError, match=r"x.tar: 0.png is packed without its empty parts \(sparse\): pack it again"):
        opened(tmp_path / "x.tar")
