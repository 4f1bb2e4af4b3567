"""Held-out images: kept beside the shards by `scalegan shards`, and found by every run on them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from opening import photo, run, save, scan, stored

from helpers.runs import configured, metrics
from helpers.shards import make_shards
from scalegan import cli
from scalegan.data.held_out import held_out_of
from scalegan.data.index import Index, content_hash, index_text, read_index
from scalegan.data.sources.hold_out import chosen
from scalegan.errors import MachineError, UserError


def fruits(root: Path, test: str = "Test", classes: tuple[str, ...] = ("Kiwi", "Plum")) -> Path:
    for split, number, first in (("Training", 8, 0), (test, 3, 500)):
        for label, name in enumerate(("Kiwi", "Plum") if split == "Training" else classes):
            for i in range(number):
                save(root / split / name / f"{i}_100.jpg", photo(first + 100 * label + i))
    return root


def kept(index: Index) -> Index:
    return read_index(held_out_of("", index))


def pictures(index: Index) -> set[bytes]:
    return {image.tobytes() for image, _ in stored(index)}


@pytest.mark.parametrize("name", ["Test", "val"])
def test_the_other_split_is_kept_beside_the_training_images(tmp_path: Path, name: str) -> None:
    source = fruits(tmp_path / "fruit", name)
    index = run(source, tmp_path / "s")
    held_out = kept(index)
    assert (index.samples, held_out.samples) == (16, 6)
    assert held_out.classes == index.classes == ("Kiwi", "Plum")
    assert held_out.details["split"] == name.lower()
    assert not pictures(index) & pictures(held_out)
    alone = run(source, tmp_path / "alone", "--split", "train")
    assert (index.shards, index.sha256) == (alone.shards, alone.sha256)  # a run that was begun without goes on
    assert kept(index).shards == run(source, tmp_path / "other", "--split", name).shards
    assert held_out_of("", alone) == ""


def test_held_out_labels_are_those_of_the_training(tmp_path: Path) -> None:
    """Plum, asked for first, is class 0 in both."""
    held_out = kept(run(fruits(tmp_path / "fruit"), tmp_path / "s", "--classes", "Plum,Kiwi"))
    plums = {image.tobytes() for image, label in stored(held_out) if label == 0}
    assert held_out.classes == ("Plum", "Kiwi")
    assert plums == pictures(run(tmp_path / "fruit", tmp_path / "p", "--classes", "Plum", "--split", "Test"))


def test_a_class_without_test_images_holds_nothing_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fruits(tmp_path / "fruit", classes=("Plum",))
    assert cli.main(["shards", str(source), str(tmp_path / "s")]) == 0
    assert "has no class 'Kiwi'" in (said := capsys.readouterr().out)
    assert "note: nothing is held out" in said
    assert "--hold-out 0.05" in said
    assert held_out_of("", read_index(tmp_path / "s")) == ""


@pytest.mark.parametrize("classes", [("Kiwi 1", "Kiwi 2", "Plum"), ("Kiwi 1", "Plum")])
def test_classes_that_are_called_otherwise_are_not_mixed_up(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """Asked for Kiwi, a source that has none gives its numbered varieties: labels of their own."""
    index = run(fruits(tmp_path / "fruit", classes=classes), tmp_path / "s")
    assert (index.classes, held_out_of("", index)) == (("Kiwi", "Plum"), "")


def test_a_test_image_of_another_size_is_told_with_the_way_out(tmp_path: Path) -> None:
    save(fruits(tmp_path / "fruit") / "Test" / "Kiwi" / "large.png", photo(1, 20, 20))
    with pytest.raises(UserError, match=r"of several sizes.*; this is of the held-out images: --hold-out 0 does without them"):
        run(tmp_path / "fruit", tmp_path / "s")
    assert run(tmp_path / "fruit", tmp_path / "s", "--hold-out", "0").samples == 16


def damage(file: Path) -> Path:
    file.write_bytes(b"broken")
    return file


def test_test_images_that_cannot_be_read_are_told_with_the_way_out(tmp_path: Path) -> None:
    broken = damage(fruits(tmp_path / "fruit") / "Test" / "Kiwi" / "1_100.jpg")
    with pytest.raises(UserError) as raised:
        run(tmp_path / "fruit", tmp_path / "s")
    assert str(raised.value) == (
        f"{broken} is no readable image: repair it or take it away; this is of the held-out images: "
        "--hold-out 0 does without them"
    )


def test_files_of_both_splits_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    source = fruits(tmp_path / "fruit")
    training, test = damage(source / "Training" / "Plum" / "1_100.jpg"), damage(source / "Test" / "Kiwi" / "1_100.jpg")
    with pytest.raises(UserError) as raised:
        run(source, tmp_path / "s")
    assert str(raised.value) == (
        f"2 files cannot be read: {training} is no readable image, {test} is no readable image: repair them or take them away"
    )
    assert not (tmp_path / "s").exists()


def test_shards_that_are_read_again_keep_what_was_held_out(tmp_path: Path) -> None:
    index = run(fruits(tmp_path / "fruit"), tmp_path / "s")
    again = run(tmp_path / "s", tmp_path / "again", "--size", "8x9", "--classes", "Plum")
    assert (again.samples, kept(again).samples, kept(again).classes) == (8, 3, ("Plum",))
    assert (kept(again).height, index.height) == (8, 10)


def test_slices_of_one_volume_that_were_shards_before_stay_told(tmp_path: Path) -> None:
    make_shards(tmp_path / "s", 20, labelled=False)
    index = read_index(tmp_path / "s")
    told = replace(index, details={"held_out_note": "of one volume"})
    told = replace(told, sha256=content_hash(told.content()))
    (tmp_path / "s" / "index.json").write_text(index_text(told))
    again = run(tmp_path / "s", tmp_path / "again", "--hold-out", "0.1")
    assert again.details["held_out_note"] == "of one volume"


def test_the_summary_says_what_was_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", str(fruits(tmp_path / "fruit")), str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert f"held out: 6 images of the test split, in {tmp_path / 's' / 'held_out'}" in said
    assert "not among them" not in said
    assert cli.main(["shards", str(tmp_path / "fruit"), str(tmp_path / "none"), "--hold-out", "0"]) == 0
    assert "held out" not in (said := capsys.readouterr().out)
    assert "note: 6 images outside the split train are not among them (--split chooses)" in said
    assert cli.main(["shards", str(tmp_path / "fruit"), str(tmp_path / "plum"), "--hold-out", "0", "--classes", "Plum"]) == 0
    assert "note: 3 images outside the split train are not among them" in capsys.readouterr().out
    assert not (tmp_path / "none" / "held_out").exists()


def test_a_share_is_held_out_of_every_class(tmp_path: Path) -> None:
    for name, number in (("kiwi", 40), ("pear", 20)):
        for i in range(number):
            save(tmp_path / "fruit" / name / f"{i}.png", photo(1000 * number + i))
    index = run(tmp_path / "fruit", tmp_path / "s", "--hold-out", "0.1")
    assert (index.class_counts, kept(index).class_counts) == ((36, 18), (4, 2))
    whole = run(tmp_path / "fruit", tmp_path / "whole")
    assert pictures(index) | pictures(kept(index)) == pictures(whole)
    assert len(pictures(whole)) == 60
    again, other = (run(tmp_path / "fruit", tmp_path / seed, "--hold-out", "0.1", "--seed", seed) for seed in ("0", "1"))
    assert again.sha256 == index.sha256
    assert pictures(kept(other)) != pictures(kept(index))


def test_a_share_of_a_source_with_splits_is_of_its_training_images(tmp_path: Path) -> None:
    index = run(fruits(tmp_path / "fruit"), tmp_path / "s", "--hold-out", "0.25")
    assert (index.samples, kept(index).samples) == (12, 4)
    assert pictures(index) | pictures(kept(index)) == pictures(run(tmp_path / "fruit", tmp_path / "t", "--split", "train"))


def test_volumes_are_held_out_whole(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "scans").mkdir()
    for number in range(4):
        slices = np.stack([scan(10 * number + i) for i in range(3 + number)], axis=2).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(slices, np.eye(4)), tmp_path / "scans" / f"{number}.nii")
    options = ("--window", "0,255", "--slices", "0:", "--size", "12x10")
    index = run(tmp_path / "scans", tmp_path / "s", *options, "--hold-out", "0.25")
    volume = [fact["taken"] for fact in kept(index).details["volumes"]]
    assert (len(volume), kept(index).samples, index.details["volume_count"]) == (1, volume[0], 3)
    assert sum(fact["taken"] for fact in index.details["volumes"]) == index.samples == 3 + 4 + 5 + 6 - volume[0]
    assert "held_out_note" not in index.details.keys() | kept(index).details.keys()
    with pytest.raises(UserError, match=r"--hold-out 0.1 of 4 is none: give a larger share"):
        run(tmp_path / "scans", tmp_path / "none", *options, "--hold-out", "0.1")
    assert not (tmp_path / "none").exists()


def test_shards_of_volumes_are_not_split_between_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for folder, depth in (("scans", 3), ("plates", 1)):
        (tmp_path / folder).mkdir()
        for number in range(4):
            slices = np.stack([scan(10 * number + i) for i in range(depth)], axis=2).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(slices, np.eye(4)), tmp_path / folder / f"{number}.nii")
        run(tmp_path / folder, tmp_path / f"{folder}-shards", "--slices", "0:")
    run(tmp_path / "scans-shards", tmp_path / "again", "--size", "8")
    for source in ("scans-shards", "again"):
        with pytest.raises(UserError, match=r"--hold-out 0.5: .* volumes would be split: give the volumes themselves"):
            run(tmp_path / source, tmp_path / "s", "--hold-out", "0.5")
        assert not (tmp_path / "s").exists()
    assert kept(run(tmp_path / "plates-shards", tmp_path / "s", "--hold-out", "0.5")).samples == 2  # of one slice each


@pytest.mark.parametrize(
    ("share", "error"),
    [("1", "--hold-out 1: give a share"), ("-0.1", "--hold-out -0.1: give a share"), ("0.9", "leaves a class of 3 nothing")],
)
def test_impossible_shares_are_refused(tmp_path: Path, share: str, error: str) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", photo(i))
    with pytest.raises(UserError, match=error):
        run(tmp_path, tmp_path / "s", f"--hold-out={share}")


def test_units_stay_together() -> None:
    units = np.repeat(np.arange(20), 5)
    held_out = chosen(np.repeat([0, 1], 50).tolist(), units.tolist(), 0.3, seed=4)
    assert set(Counter(units[held_out].tolist()).values()) == {5}
    assert [int(held_out[:50].sum()), int(held_out[50:].sum())] == [15, 15]


def test_an_index_cannot_point_elsewhere(tmp_path: Path) -> None:
    index = replace(make_shards(tmp_path / "s", 20), held_out="../other")
    (tmp_path / "s" / "index.json").write_text(index_text(index))
    with pytest.raises(UserError, match="unsafe file name"):
        held_out_of("", read_index(tmp_path / "s"))


def test_held_out_images_lie_beside_remote_ones_too(tmp_path: Path) -> None:
    index = replace(make_shards(tmp_path / "s", 20), root="s3://fruits/kiwi/", held_out="held_out")
    assert held_out_of("", index) == "s3://fruits/kiwi/held_out"


def test_every_run_on_such_shards_is_watched_by_them(training, tmp_path: Path) -> None:
    for i in range(60):
        save(tmp_path / "fruit" / "ab"[i % 2] / f"{i}.png", photo(i, 16, 16))
    run(tmp_path / "fruit", tmp_path / "s", "--hold-out", "0.2")
    for name, asked in (("found", ""), ("none", "none")):
        training(configured(tmp_path / "s", tmp_path / name, 64, **{"data.held_out": asked}))
    assert "overfit_gap" in metrics(tmp_path / "found")[-1]
    assert "overfit_gap" not in metrics(tmp_path / "none")[-1]


def test_a_folder_that_was_not_copied_along_is_told_with_the_way_out(training, tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "fruit" / f"{i}.png", photo(i, 16, 16))
    run(tmp_path / "fruit", tmp_path / "s", "--hold-out", "0.2")
    shutil.rmtree(tmp_path / "s" / "held_out")
    with pytest.raises(MachineError, match=r"held-out images: .*index.json is missing.*; or do without, --data.held_out none"):
        training(configured(tmp_path / "s", tmp_path / "run", 64))
    assert not (tmp_path / "run").exists()


def test_a_metric_that_wants_more_held_out_images_is_refused_before_the_training(training, shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "few", 12, seed=1)
    asked = {"evaluation.metrics": "memorisation", "data.held_out": tmp_path / "few"}
    with pytest.raises(UserError, match="needs 20 images that were never trained on, and there are 12"):
        training(configured(shards, tmp_path / "run", 64, **asked))


def test_memorisation_without_held_out_images_is_refused_before_the_training(training, shards, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs 20 images that were never trained on, and there are 0"):
        training(configured(shards, tmp_path / "run", 64, **{"evaluation.metrics": "memorisation"}))
    assert not (tmp_path / "run").exists()


def test_evaluate_finds_them_and_does_without(training, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(80):
        save(tmp_path / "fruit" / f"{i}.png", photo(i, 16, 16))
    run(tmp_path / "fruit", tmp_path / "s", "--hold-out", "0.3")
    training(configured(tmp_path / "s", tmp_path / "run", 64))
    asked = [
        "evaluate",
        str(tmp_path / "run"),
        "--metrics",
        "memorisation",
        "--samples",
        "20",
        "--real",
        "0",
        "--device",
        "cpu",
    ]
    assert cli.main([*asked, "--json", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["held_out"], record["held_out_sha256"]) == (24, kept(read_index(tmp_path / "s")).sha256)
    capsys.readouterr()
    assert cli.main([*asked, "--held-out", "none"]) == 2
    assert "metric memorisation needs images that were never trained on, and there are none" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "s" / "held_out")
    assert cli.main(asked) == 2
    assert "index.json is missing" in (said := capsys.readouterr().err)
    assert "or do without, --held-out none" in said
