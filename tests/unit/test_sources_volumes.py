"""Slices of NIfTI volumes come out upright, in square pixels and through a stated window."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import opened, run, save, scan, stored

from scalegan.data.sources.encode import decode
from scalegan.data.sources.volume import held_out_note
from scalegan.data.sources.window import Window, parse_slices, parse_window
from scalegan.errors import UserError

nibabel = pytest.importorskip("nibabel")

RAW = Window("range", 0, 255)


def head(x: int = 20, y: int = 24, z: int = 16) -> np.ndarray:
    """A volume in RAS+ whose corners tell the sides apart: right is 100, front is 150, top is 200."""
    values = np.full((x, y, z), 40.0)
    values[-4:] = 100
    values[:, -4:] = 150
    values[:, :, -4:] = 200
    return values


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None, dtype: Any = np.int16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values.astype(dtype), np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    nibabel.save(image, path)
    return path


def first(path: Path, **options: Any) -> np.ndarray:
    """The first slice along an axis."""
    images, *_ = opened(path, **({"window": RAW, "slices": parse_slices(":")} | options))
    return decode(images[0].data)


def test_axial_slices_have_the_front_at_the_top_and_the_right_at_the_right(tmp_path: Path) -> None:
    image = first(write(tmp_path / "x.nii.gz", head()), axis=2)
    assert image.shape == (24, 20)
    assert (image[:4] == 150).all()
    assert (image[4:, -4:] == 100).all()
    assert (image[4:, :-4] == 40).all()


def test_coronal_slices_have_the_top_at_the_top(tmp_path: Path) -> None:
    image = first(write(tmp_path / "x.nii.gz", head()), axis=1)
    assert image.shape == (16, 20)
    assert (image[:4] == 200).all()
    assert (image[4:, -4:] == 100).all()


def test_sagittal_slices_have_the_top_at_the_top_and_the_front_at_the_right(tmp_path: Path) -> None:
    image = first(write(tmp_path / "x.nii.gz", head()), axis=0)
    assert image.shape == (16, 24)
    assert (image[:4] == 200).all()
    assert (image[4:, -4:] == 150).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("code", ["LPS", "ASR", "SPL", "RIA"])
def test_it_does_not_matter_how_the_scanner_wrote_them(tmp_path: Path, axis: int, code: str) -> None:
    straight = nibabel.Nifti1Image(head(), np.diag([1.0, 1.0, 1.0, 1.0]))
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(straight.affine), nibabel.orientations.axcodes2ornt(code)
    )
    turned = straight.as_reoriented(change)
    write(tmp_path / "turned.nii", np.asarray(turned.dataobj), turned.affine)
    expected = first(write(tmp_path / "straight.nii", head()), axis=axis)
    np.testing.assert_array_equal(first(tmp_path / "turned.nii", axis=axis), expected)


def test_pixels_become_square(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", head(), np.diag([1.0, 1.0, 3.0, 1.0]))
    assert first(path, axis=1).shape == (48, 20)
    assert first(path, axis=2).shape == (24, 20)


def test_the_scale_in_the_header_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "x.nii")
    shown = first(tmp_path / "x.nii", axis=2, window=Window("range", -1000, -490))
    np.testing.assert_array_equal(shown, first(write(tmp_path / "y.nii", head()), axis=2))


def test_sixteen_bits_go_through_the_window_in_full_depth(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4))
    values[:, 0, 0] = [1000, 1002, 1500, 30000]
    image = first(write(tmp_path / "x.nii", values), axis=2, window=parse_window("1000,2000"))
    assert image[-1].tolist() == [0, 1, 128, 255]


def test_the_default_window_is_of_the_foreground_and_is_recorded(tmp_path: Path) -> None:
    values = np.zeros((20, 20, 20))
    values[5:15, 5:15, 5:15] = np.linspace(500, 1500, 1000).reshape(10, 10, 10)
    images, facts, source = opened(write(tmp_path / "x.nii", values))
    assert source.details["window"] == "p1,p99"
    assert facts[0]["window"] == [pytest.approx(510, abs=2), pytest.approx(1490, abs=2)]
    assert facts[0] | {"window": 0} == {"window": 0, "slices": [5, 15], "taken": 10, "of": 20}
    assert len(images) == 10


def test_the_window_of_small_intensities_is_recorded(tmp_path: Path) -> None:
    """Diffusivities in m²/s, say."""
    values = np.zeros((20, 20, 20))
    values[5:15, 5:15, 5:15] = np.linspace(500, 1500, 1000).reshape(10, 10, 10) * 1e-12
    _, facts, _ = opened(write(tmp_path / "x.nii", values, dtype=np.float32))
    assert facts[0]["window"] == [pytest.approx(510e-12, rel=0.01), pytest.approx(1490e-12, rel=0.01)]


def test_slices_are_taken_as_asked_even_if_empty(tmp_path: Path) -> None:
    values = np.zeros((20, 20, 20))
    values[5:15, 5:15, 5:15] = 100
    path = write(tmp_path / "x.nii", values)
    assert len(opened(path, slices=parse_slices("2:8"))[0]) == 6
    assert len(opened(path, slices=parse_slices("25%:75%"))[0]) == 10
    with pytest.raises(UserError, match=r"--slices 10:30: .*x.nii has 20 slices"):
        opened(path, slices=parse_slices("10:30"))


def test_a_mask_is_white_on_black(tmp_path: Path) -> None:
    values = np.zeros((20, 20, 20))
    values[5:15, 5:15, 5:15] = 1
    image = decode(opened(write(tmp_path / "x.nii", values))[0][0].data)
    assert sorted(np.unique(image)) == [0, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), 7.0), "same intensity 7 everywhere"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 5, np.nan, 1.0), "has 1 values that are no numbers"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 5, np.inf, 1.0), "has 1 values that are no numbers"),
        (np.zeros((4, 4, 4, 3)), "has 4 dimensions (4 x 4 x 4 x 3)"),
        (np.zeros((4, 4)), "has 2 dimensions"),
        (np.where(np.arange(8000).reshape(20, 20, 20) == 5, 1.0, 0), "no slice has 5% foreground"),
    ],
)
def test_volumes_that_make_no_sense_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(write(tmp_path / "x.nii.gz", values, dtype=np.float32))
    assert message in str(raised.value)
    assert "x.nii.gz" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [0, 100, 360, 2000])
def test_cut_files_are_named(tmp_path: Path, end: str, keep: int) -> None:
    path = write(tmp_path / f"x{end}", np.random.default_rng(0).integers(0, 1000, (20, 20, 20)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.nii(\.gz)? (cannot be read|claims)") as raised:
        opened(path)
    assert "\n" not in str(raised.value)


def test_all_volumes_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"v/{name}.nii.gz", head())
    for name in "ac":
        (tmp_path / f"v/{name}.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^2 files cannot be read: .*a\.nii\.gz cannot be read \(.*c\.nii\.gz cannot be read"):
        run(tmp_path / "v", tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", head())
    data = bytearray(path.read_bytes())
    data[40:48] = struct.pack("<4h", 3, 30000, 30000, 30000)
    path.write_bytes(data)
    with pytest.raises(UserError, match="claims 30000 x 30000 x 30000 voxels"):
        opened(path)


def test_a_degenerate_orientation_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", head())
    data = bytearray(path.read_bytes())
    data[280:296] = bytes(16)  # srow_x
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.nii cannot be read \(its orientation matrix is degenerate\)"):
        opened(path)


def test_a_file_that_does_not_say_where_it_lies_is_noted(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(head().astype(np.int16), None), tmp_path / "x.nii")
    assert "does not say which way" in opened(tmp_path / "x.nii")[1][0]["note"]
    assert "note" not in opened(write(tmp_path / "y.nii", head()))[1][0]


def test_analyze_and_freesurfer_files_are_read(tmp_path: Path) -> None:
    values = head().astype(np.int16)
    for folder, image in (
        ("m", nibabel.MGHImage(values.astype(np.float32), np.eye(4))),
        ("a", nibabel.Spm2AnalyzeImage(values, np.eye(4))),
    ):
        (tmp_path / folder).mkdir()
        nibabel.save(image, tmp_path / folder / ("x.mgz" if folder == "m" else "x.img"))
        assert len(opened(tmp_path / folder)[0]) == 16


def test_many_volumes_and_their_labels(tmp_path: Path) -> None:
    for subject, label in (("s1", "ad"), ("s2", "cn"), ("s3", "ad")):
        write(tmp_path / f"scans/{subject}/t1.nii", head())
        with (tmp_path / "labels.csv").open("a") as file:
            file.write("" if file.tell() else "file,label\n")
            file.write(f"{subject}/t1.nii,{label}\n")
    labels = str(tmp_path / "labels.csv")
    images, facts, source = opened(tmp_path / "scans", labels=labels, slices=parse_slices("0:2"))
    assert (source.unit, source.count, len(facts)) == ("volumes", 3, 3)
    assert (source.classes, [image.label for image in images]) == (("ad", "cn"), [0, 0, 1, 1, 0, 0])
    assert opened(tmp_path / "scans", labels=labels, classes=("cn",))[2].count == 1
    assert opened(tmp_path / "scans" / "*" / "t1.nii")[2].count == 3


def test_classes_of_volumes_need_a_table(tmp_path: Path) -> None:
    """Folders called after classes are no labels of volumes."""
    write(tmp_path / "sick/1.nii", head())
    with pytest.raises(UserError, match=r"--classes needs labels: give --labels file.csv .* or class folders of images$"):
        opened(tmp_path, classes=("sick",))


def test_a_pattern_of_folders_is_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path / "scans/s1/t1.nii", head())
    with pytest.raises(UserError, match=r"scans/\* matches folders and no files: give the folder they are in"):
        opened(tmp_path / "scans" / "*")


def test_a_volume_that_is_there_packed_and_unpacked_is_one(tmp_path: Path) -> None:
    """As `gunzip -k` leaves it. Twice, it would be on both sides of --hold-out."""
    for folder in ("a", "b"):
        for end in (".nii", ".nii.gz"):
            write(tmp_path / f"{folder}/scan{end}", head())
    for source in (tmp_path, tmp_path / "*" / "scan*"):
        images, facts, found = opened(source)
        assert (found.count, len(facts)) == (2, 2)
        assert found.notes == ("packed volumes left alone, as they are there unpacked too: 2",)
        assert {image.name.partition(",")[0] for image in images} == {str(tmp_path / f"{folder}/scan.nii") for folder in "ab"}


def test_images_and_volumes_together_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "x.nii", head())
    save(tmp_path / "x.png", scan())
    with pytest.raises(UserError, match=r"several kinds \(flat: x.png, nifti: x.nii\): choose one with --kind"):
        opened(tmp_path)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", head())
    with pytest.raises(UserError, match="NIfTI files carry no window"):
        opened(path, window=parse_window("dicom"))
    with pytest.raises(UserError, match="--split means nothing for NIfTI volumes"):
        opened(path, split="train")


def test_shards_of_a_volume_say_what_was_done(tmp_path: Path) -> None:
    write(tmp_path / "x.nii", head())
    index = run(tmp_path / "x.nii", tmp_path / "s", "--axis", "coronal", "--size", "32x24", "--window", "0,255")
    assert (index.height, index.width, index.channels) == (32, 24, 1)
    details = index.details
    assert (details["kind"], details["axis"], details["window"], details["fit"]) == ("nifti", "coronal", "0,255", "pad")
    assert details["volumes"] == [{"window": [0, 255], "slices": [0, 24], "taken": 24, "of": 24}]
    assert "there is no held-out part" in details["held_out_note"]
    assert all(image[:5].max() == 0 for image, _ in stored(index))  # 16x20 into 32x24: a black margin, not a crop


def test_the_note_on_held_out_data_counts_volumes() -> None:
    assert "one volume" in str(held_out_note([50]))
    assert "3 volumes" in str(held_out_note([50, 20, 20]))
    assert held_out_note([1, 1, 1]) is None
