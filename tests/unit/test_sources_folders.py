"""Folders of images: a folder for each class, splits above them, or one flat folder with a table of labels."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from opening import opened, photo, run, save, scan

from scalegan.data.sources.folders import Files
from scalegan.errors import UserError


def fruits(root: Path) -> Path:
    """Fruits-360's own layout and file names."""
    for split, first in (("Training", 0), ("Test", 50)):
        for label, name in enumerate(("Apple Golden 1", "Kiwi", "Plum")):
            for i, file in enumerate(("32_100.jpg", "r_32_100.jpg", "r2_5_100.jpg", "r3_7_100.jpg")):
                save(root / split / name / file, photo(first + 10 * label + i))
    (root / "readme.md").write_text("Fruits")
    (root / "Training/Kiwi/.DS_Store").write_bytes(b"x")
    return root


def names_of(path: Path, **options: object) -> list[str]:
    """Files below `path`, in the order of the source."""
    images, *_ = opened(path, **options)
    return [os.path.relpath(image.name, path) for image in images]


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        save(tmp_path / name / "1.png", photo())
    images, _, source = opened(tmp_path)
    assert source.kind == "folders"
    assert source.classes == ("a", "b", "c")
    assert [image.label for image in images] == [0, 1, 2]


def test_fruits360_is_read_as_it_comes(tmp_path: Path) -> None:
    images, _, source = opened(fruits(tmp_path))
    assert source.classes == ("Apple Golden 1", "Kiwi", "Plum")
    assert source.details == {"split": "train"}
    assert source.count == len(images) == 12
    assert all("Training" in image.name for image in images)
    assert "other files left alone: 1" in source.notes
    assert source.outside == 12


@pytest.mark.parametrize(("split", "count"), [("Training", 12), ("train", 12), ("Test", 12), ("test", 12), ("all", 24)])
def test_a_split_is_chosen_by_its_folder_or_its_meaning(tmp_path: Path, split: str, count: int) -> None:
    _, _, source = opened(fruits(tmp_path), split=split)
    assert source.count == count


def test_a_split_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--split val: .*\(Test, Training\) has test, train, all"):
        opened(fruits(tmp_path), split="val")
    with pytest.raises(UserError, match=r"--split test: .* has no folders Training and Test"):
        opened(tmp_path / "Training", split="test")


def test_a_split_folder_can_be_given_itself(tmp_path: Path) -> None:
    _, _, source = opened(fruits(tmp_path) / "Test")
    assert (source.classes, source.count, source.details) == (("Apple Golden 1", "Kiwi", "Plum"), 12, {})


def test_wrappers_of_an_unpacked_download_are_seen_through(tmp_path: Path) -> None:
    fruits(tmp_path / "fruits-360_100x100/fruits-360")
    _, _, source = opened(tmp_path)
    assert (source.classes, source.count) == (("Apple Golden 1", "Kiwi", "Plum"), 12)


def test_further_folders_beside_the_splits_are_left_out(tmp_path: Path) -> None:
    save(fruits(tmp_path) / "test-multiple_fruits/mango.jpg", photo())
    _, _, source = opened(tmp_path)
    assert source.count == 12
    assert source.outside == 13
    _, _, source = opened(tmp_path, classes=("Kiwi",))
    assert (source.count, source.outside) == (4, 4)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    for name in ("test", "control"):
        save(tmp_path / name / "1.png", photo())
    assert opened(tmp_path)[2].classes == ("control", "test")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "bus", "train"):
        save(tmp_path / name / "1.png", photo())
    source = opened(tmp_path)[2]
    assert (source.kind, source.classes, source.count, source.details) == ("folders", ("bus", "car", "train"), 3, {})
    save(tmp_path / "car/2020/1.png", photo())
    save(tmp_path / "train/steam/1.png", photo())
    assert opened(tmp_path)[2].classes == ("bus", "car", "train")


@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("Training", "val")])
def test_folders_of_splits_may_have_others_beside_them(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for name in ("a", "b"):
            save(tmp_path / split / name / "1.png", photo())
    save(tmp_path / "figures/1.png", photo())
    source = opened(tmp_path)[2]
    assert (source.classes, source.count, source.details) == (("a", "b"), 2, {"split": "train"})


def test_split_says_that_a_folder_is_no_class(tmp_path: Path) -> None:
    for name in ("train", "extra"):
        save(tmp_path / name / "a/1.png", photo())
    assert opened(tmp_path)[2].classes == ("extra", "train")
    source = opened(tmp_path, split="train")[2]
    assert (source.classes, source.count) == (("a",), 1)


def test_classes_are_chosen_and_numbered_as_given(tmp_path: Path) -> None:
    images, _, source = opened(fruits(tmp_path), classes=("Plum", "Kiwi"))
    assert source.classes == ("Plum", "Kiwi")
    assert {(Path(image.name).parent.name, image.label) for image in images} == {("Plum", 0), ("Kiwi", 1)}


def test_a_name_without_its_number_takes_the_numbered_varieties(tmp_path: Path) -> None:
    for name in ("Apple Golden 1", "Apple Golden 2", "Apple Golden Red 1", "Kiwi 1"):
        save(tmp_path / name / "1.png", photo())
    assert opened(tmp_path, classes=("Kiwi", "Apple Golden"))[2].classes == ("Kiwi 1", "Apple Golden 1", "Apple Golden 2")
    with pytest.raises(UserError, match="names a class twice"):
        opened(tmp_path, classes=("Kiwi", "Kiwi 1"))


@pytest.mark.parametrize(
    ("wrong", "hint"), [("kiwi", "did you mean Kiwi?"), ("Plumm", "did you mean Plum?"), ("Zebra", "it has Apple")]
)
def test_an_unknown_class_names_the_nearest(tmp_path: Path, wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match="has no class") as raised:
        opened(fruits(tmp_path), classes=(wrong,))
    assert hint in str(raised.value)


def test_a_class_with_a_comma_is_named_as_it_has_to_be_typed(tmp_path: Path) -> None:
    save(tmp_path / "Apple, red/1.png", photo())
    save(tmp_path / "Pear/1.png", photo())
    with pytest.raises(UserError, match=r"""has no class 'Apple': did you mean '"Apple, red"'\?$"""):
        opened(tmp_path, classes=("Apple", "red"))


def test_deeper_folders_belong_to_their_class_and_hidden_ones_to_none(tmp_path: Path) -> None:
    save(tmp_path / "a/2020/1.png", photo())
    save(tmp_path / "b/1.png", photo())
    save(tmp_path / "b/.thumbs/1.png", photo())
    images, _, source = opened(tmp_path)
    assert [(os.path.relpath(image.name, tmp_path), image.label) for image in images] == [("a/2020/1.png", 0), ("b/1.png", 1)]
    assert source.classes == ("a", "b")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/1.png", photo())
    save(tmp_path / "set/b/1.png", photo())
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/loop").symlink_to(tmp_path / "set")
    _, _, source = opened(tmp_path / "set")
    assert (source.classes, source.count) == (("a", "b"), 2)


def test_a_link_that_leads_to_itself_or_nowhere_is_a_file_that_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", photo())
    for name, target in (("round", "round"), ("lost", "nowhere")):
        (tmp_path / "a" / name).symlink_to(target)
    source = opened(tmp_path)[2]
    assert (source.count, source.notes) == (1, ("other files left alone: 2",))


def test_a_class_may_be_a_link_to_another(tmp_path: Path) -> None:
    save(tmp_path / "b/1.png", photo())
    for name in ("a", "c"):
        (tmp_path / name).symlink_to(tmp_path / "b")
    source = opened(tmp_path)[2]
    assert (source.classes, source.count) == (("a", "b", "c"), 3)


def test_shards_below_the_images_are_no_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "set" / name / "1.png", photo())
    first = run(tmp_path / "set", tmp_path / "set/shards")
    again = run(tmp_path / "set", tmp_path / "set/shards", "--force")
    assert again.classes == run(tmp_path / "set", tmp_path / "set/small", "--size", "8").classes == ("a", "b")
    assert again.sha256 == first.sha256
    for name in ("a", "b"):
        (tmp_path / "set" / name / "1.png").rename(tmp_path / "set" / f"{name}.png")
    assert opened(tmp_path / "set")[2].kind == "flat"


@pytest.mark.parametrize(
    ("stray", "kinds"),
    [
        ("photos.tar", "webdataset: photos.tar, folders: a/1.png"),
        ("train-images-idx3-ubyte.gz", "idx: train-images-idx3-ubyte.gz, folders: a/1.png"),
        ("a/brain.nii.gz", "folders: a/1.png, nifti: a/brain.nii.gz"),
        ("a/1.dcm", "folders: a/1.png, dicom: a/1.dcm"),
        ("data_batch_1.bin", "cifar10: data_batch_1.bin, folders: a/1.png"),
    ],
)
def test_one_file_of_another_kind_does_not_decide(tmp_path: Path, stray: str, kinds: str) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", photo())
    (tmp_path / stray).write_bytes(b"anything")
    with pytest.raises(UserError) as raised:
        opened(tmp_path)
    assert f"holds files of several kinds ({kinds}): choose one with --kind" in str(raised.value)
    assert opened(tmp_path, kind="folders")[2].classes == ("a", "b")


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "no JSON"])
def test_an_index_of_another_program_is_no_index_of_shards(tmp_path: Path, text: str) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", photo())
        (tmp_path / name / "index.json").write_text(text)
    (tmp_path / "index.json").write_text(text)
    assert opened(tmp_path)[2].classes == ("a", "b")


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", photo())
    save(tmp_path / "preview.png", photo())
    with pytest.raises(UserError, match=r"has class folders and 1 images outside them, such as .*preview.png"):
        opened(tmp_path)


def test_a_class_whose_name_is_not_in_utf8_is_refused_at_the_start(tmp_path: Path) -> None:
    for name in (b"p\xeache", "grün".encode(), b"kiwi"):
        save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) / "1.png", photo())
    with pytest.raises(UserError, match=r"has a folder 'p\\udceache', whose name is not in UTF-8: rename it"):
        opened(tmp_path)
    assert opened(tmp_path, classes=("kiwi", "grün"))[2].count == 2


def test_no_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path)
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path, kind="folders")
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "nowhere")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", photo())
    (tmp_path / "a/2.png").write_text("not an image")
    with pytest.raises(UserError, match=r"a/2.png is no readable image"):
        opened(tmp_path)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.png cannot be read: No such file"):
        list(Files(str(tmp_path), ("gone.png",), (0,)).open()[0])


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", photo())
    with pytest.raises(UserError, match="--axis means nothing for class folders"):
        opened(tmp_path, axis=2)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "case_001_slice_0.nii.png", scan(1))
    save(tmp_path / "case_001_slice_1.nii.png", scan(2))
    images, _, source = opened(tmp_path)
    assert (source.kind, source.classes, [image.label for image in images]) == ("flat", (), [-1, -1])
    with pytest.raises(UserError, match="--classes needs labels"):
        opened(tmp_path, classes=("a",))


def test_split_folders_of_loose_images_are_flat(tmp_path: Path) -> None:
    save(tmp_path / "train/1.png", photo())
    save(tmp_path / "test/1.png", photo())
    assert names_of(tmp_path) == ["train/1.png"]
    assert names_of(tmp_path, split="all") == ["test/1.png", "train/1.png"]


def test_single_files_and_patterns(tmp_path: Path) -> None:
    for name in ("a_1.png", "a_2.png", "b_1.png"):
        save(tmp_path / name, photo())
    assert opened(tmp_path / "a_*.png")[2].count == 2
    assert opened(tmp_path / "a_1.png")[2].count == 1


def test_files_of_a_pattern_that_are_not_read_are_counted_as_those_of_a_folder_are(tmp_path: Path) -> None:
    save(tmp_path / "1.png", photo())
    for name in ("2.gif", "3.jfif"):
        (tmp_path / name).write_bytes(b"anything")
    assert opened(tmp_path / "*")[2].notes == opened(tmp_path)[2].notes == ("other files left alone: 2",)
    assert opened(tmp_path / "*.png")[2].notes == ()


def table(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8-sig")
    return str(path)


def flat(root: Path) -> Path:
    for i in range(4):
        save(root / f"{i}.png", photo(i))
    return root


def test_a_table_gives_the_labels(tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", "File, Label,age\n0.png,kiwi,3\n1.png,plum,4\n./2.png,kiwi,\n3.png,kiwi,1\n")
    images, _, source = opened(flat(tmp_path / "images"), labels=labels)
    assert (source.classes, [image.label for image in images]) == (("kiwi", "plum"), [0, 1, 0, 0])


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", "file,label\n0.png,10\n1.png,9\n2.png,2\n3.png,10\n")
    assert opened(flat(tmp_path / "images"), labels=labels)[2].classes == ("2", "9", "10")


def test_classes_choose_from_a_table(tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", "file,label\n0.png,a\n1.png,b\n2.png,c\n3.png,b\n")
    images, _, source = opened(flat(tmp_path / "images"), labels=labels, classes=("c", "b"))
    assert source.classes == ("c", "b")
    assert [(Path(image.name).name, image.label) for image in images] == [("1.png", 1), ("2.png", 0), ("3.png", 1)]


def test_a_table_may_name_files_in_folders(tmp_path: Path) -> None:
    save(tmp_path / "images/x/1.png", photo())
    save(tmp_path / "images/y/1.png", photo())
    labels = table(tmp_path / "labels.csv", "file,label\nx/1.png,a\ny\\1.png,b\n")
    assert [image.label for image in opened(tmp_path / "images", labels=labels)[0]] == [0, 1]


def test_a_table_cannot_name_files_of_a_pattern_that_are_called_alike(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save(tmp_path / "images" / folder / "1.png", photo())
        save(tmp_path / "images" / folder / f"{folder}.png", photo())
    both = tmp_path / "images/*/1.png"
    labels = table(tmp_path / "labels.csv", "file,label\n1.png,a\n")
    with pytest.raises(
        UserError, match=r"labels.csv cannot mean one of the 2 files called 1.png: add .* '.*images/x/1.png,LABEL'"
    ):
        opened(both, labels=labels)
    labels = table(tmp_path / "labels.csv", f"file,label\n{tmp_path}/images/x/1.png,a\n{tmp_path}/images/y/1.png,b\n")
    assert [image.label for image in opened(both, labels=labels)[0]] == [0, 1]
    labels = table(tmp_path / "labels.csv", "file,label\nx.png,a\ny.png,b\n")
    assert [image.label for image in opened(tmp_path / "images/*/[xy].png", labels=labels)[0]] == [0, 1]


def test_a_missing_label_names_the_file(tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", "file,label\n0.png,a\n1.png,b\n3.png,b\n")
    with pytest.raises(UserError, match=r"labels.csv has no label for 2.png: add a line '2.png,LABEL'"):
        opened(flat(tmp_path / "images"), labels=labels)


@pytest.mark.parametrize(("disk", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_is_one_letter_or_two_as_the_system_wrote_it(tmp_path: Path, disk: Any, typed: Any) -> None:
    """A Mac writes names with the accent as a letter of its own, other systems do not, and nobody sees which."""
    there, asked = (unicodedata.normalize(form, "prêt") for form in (disk, typed))
    for name in (there, "kiwi"):
        save(tmp_path / "images" / name / "1.png", photo())
    assert opened(tmp_path / "images", classes=(asked,))[2].classes == (there,)
    labels = table(tmp_path / "labels.csv", f"file,label\n{asked}/1.png,b\nkiwi/1.png,a\n")
    assert [image.label for image in opened(tmp_path / "images", labels=labels)[0]] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\n0.png,a\n", "its first line must name file,label"),
        ("", "its first line must name file,label"),
        ("file,label\n", "has no lines below its first"),
        ("file,label\n0.png,\n", "line 2: file or label is empty"),
        ("file,label\n0.png\n", "line 2: file or label is empty"),
        ("file,label\n0.png,a\n0.png,b\n", "line 3: 0.png has two labels, a and b"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(flat(tmp_path / "images"), labels=table(tmp_path / "labels.csv", text))
    assert message in str(raised.value)


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--labels .*none.csv cannot be read: No such file"):
        opened(flat(tmp_path / "images"), labels=str(tmp_path / "none.csv"))
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe.png,a\n")
    with pytest.raises(UserError, match="no CSV file in UTF-8"):
        opened(tmp_path / "images", labels=str(tmp_path / "labels.csv"))
