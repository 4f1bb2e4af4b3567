"""DICOM series: put in order by their place in space, rescaled, windowed, and never quietly misread."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import opened, photo, run, save

from scalegan.data.sources.encode import decode
from scalegan.data.sources.window import parse_slices, parse_window
from scalegan.errors import UserError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

HEIGHT, WIDTH, SLICES = 24, 20, 16
AXIAL = [1, 0, 0, 0, 1, 0]
RAW = parse_window("0,255")


def dataset(pixels: np.ndarray, **fields: Any) -> Any:
    """A file of one image, MR unless the fields say otherwise."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2] if pixels.ndim < 4 else pixels.shape[1:3]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    return data


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, *, skip: tuple[int, ...] = (), **fields: Any) -> np.ndarray:
    """An axial series with file names in no order; its pixels [slices, H, W]."""
    pixels = np.random.default_rng(0).integers(0, 256, (SLICES, HEIGHT, WIDTH)).astype(np.int16)
    for z in range(SLICES):
        if z not in skip:
            place = {"ImagePositionPatient": [-50, -60, 3.0 * z], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
            write(folder / f"{(z * 7) % SLICES:03d}.dcm", dataset(pixels[z], InstanceNumber=99 - z, **(place | fields)))
    return pixels


def all_of(path: Path, **options: Any) -> np.ndarray:
    images, *_ = opened(path, **({"window": RAW, "slices": parse_slices(":")} | options))
    return np.stack([decode(image.data) for image in images])


def test_slices_are_in_the_order_of_their_place_and_as_acquired(tmp_path: Path) -> None:
    pixels = series(tmp_path)
    images, facts, source = opened(tmp_path, window=RAW)
    assert (source.kind, source.unit, source.count, source.details["axis"]) == ("dicom", "volumes", 1, "as acquired")
    np.testing.assert_array_equal([decode(image.data) for image in images], pixels)
    assert facts == [{"window": [0, 255], "slices": [0, SLICES], "taken": SLICES, "of": SLICES}]


def test_an_axis_cuts_through_the_volume_upright(tmp_path: Path) -> None:
    pixels = series(tmp_path)
    # DICOM's rows run to the patient's left and columns to the back: upright axial slices show the patient's left at the left.
    np.testing.assert_array_equal(all_of(tmp_path, axis=2), pixels[:, :, ::-1])
    coronal = all_of(tmp_path, axis=1)
    assert coronal.shape == (HEIGHT, SLICES * 3, WIDTH)  # 3 mm apart with pixels of 1 mm
    native = all_of(tmp_path, axis=1, window=RAW)
    assert abs(native[:, 1::3].astype(int) - pixels[::-1, ::-1, ::-1].transpose(1, 0, 2)).mean() < 30


def test_nifti_of_the_same_volume_gives_the_same_slices(tmp_path: Path) -> None:
    import nibabel

    pixels = series(tmp_path / "dicom", PixelSpacing=[1, 1])
    affine = np.array([[-1.0, 0, 0, 50], [0, -1, 0, 60], [0, 0, 3, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(2, 1, 0), affine), tmp_path / "x.nii")
    for axis in range(3):
        np.testing.assert_array_equal(all_of(tmp_path / "dicom", axis=axis), all_of(tmp_path / "x.nii", axis=axis))


def test_rescaling_is_applied_before_the_window(tmp_path: Path) -> None:
    pixels = series(tmp_path, RescaleSlope=2, RescaleIntercept=-1000)
    np.testing.assert_array_equal(all_of(tmp_path, window=parse_window("-1000,-490")), pixels)


def test_monochrome1_is_turned_round(tmp_path: Path) -> None:
    pixels = series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(all_of(tmp_path), 255 - pixels)


def test_monochrome1_goes_through_the_same_percentiles(tmp_path: Path) -> None:
    """Its background, which is no part of them, has the highest value."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint16)
    pixels[6:18, 5:15] = np.linspace(1000, 3000, 120).reshape(12, 10)
    for name, values in (("MONOCHROME1", 4095 - pixels), ("MONOCHROME2", pixels)):
        write(tmp_path / name / "x.dcm", dataset(values, PhotometricInterpretation=name))
    made, expected = (all_of(tmp_path / f"MONOCHROME{n}", window=parse_window("p10,p95")).astype(int) for n in (1, 2))
    assert (expected == 0).sum() > 300
    np.testing.assert_allclose(made, expected, atol=1)


def test_the_files_own_window(tmp_path: Path) -> None:
    pixels = series(tmp_path, WindowCenter=[100, 40], WindowWidth=[101, 80])
    images, facts, _ = opened(tmp_path, window=parse_window("dicom"), slices=parse_slices(":"))
    expected = np.rint(np.clip((pixels - 49.5) / 100.0, 0, 1) * 255)  # PS3.3 C.11.2.1.2.1: c - 0.5 -+ (w - 1) / 2
    np.testing.assert_array_equal([decode(image.data) for image in images], expected)
    assert facts[0]["window"] == "dicom"


def test_the_own_window_of_monochrome1(tmp_path: Path) -> None:
    pixels = series(tmp_path, PhotometricInterpretation="MONOCHROME1", WindowCenter=128, WindowWidth=256)
    made = all_of(tmp_path, window=parse_window("dicom"))
    np.testing.assert_array_equal(made, 255 - pixels)


def test_a_missing_own_window_is_told(tmp_path: Path) -> None:
    series(tmp_path)
    with pytest.raises(UserError, match=r"--window dicom: .* states no window"):
        opened(tmp_path, window=parse_window("dicom"))


def test_a_missing_slice_makes_no_volume_but_the_others_can_be_used(tmp_path: Path) -> None:
    series(tmp_path, skip=(5,))
    assert len(all_of(tmp_path)) == SLICES - 1
    with pytest.raises(UserError, match=r"gaps of 3 to 6 mm.*leave --axis out"):
        all_of(tmp_path, axis=0)


def test_images_without_a_place_make_no_volume(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.dcm", dataset(np.full((8, 8), i * 50, np.uint16), InstanceNumber=3 - i))
    assert all_of(tmp_path)[:, 0, 0].tolist() == [100, 50, 0]
    with pytest.raises(UserError, match="no place in space"):
        all_of(tmp_path, axis=0)


def test_radiographs_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    for i, side in enumerate((8, 9)):
        pixels = np.arange(side * side, dtype=np.uint16).reshape(side, side)
        write(tmp_path / f"{i}.dcm", dataset(pixels, SeriesInstanceUID=f"1.2.{i}"))
    with pytest.raises(UserError, match=r"images of several sizes, height x width: 8x8 .* and 9x9 .*--size"):
        run(tmp_path, tmp_path / "s")
    index = run(tmp_path, tmp_path / "s", "--size", "8")
    assert (index.samples, index.details.get("held_out_note")) == (2, None)


def test_files_without_suffix_and_reports_among_them(tmp_path: Path) -> None:
    pixels = series(tmp_path)
    for path in list(tmp_path.glob("*.dcm")):
        path.rename(path.with_suffix(""))
    report = dataset(np.zeros((1, 1), np.uint16))
    del report.PixelData, report.Rows, report.Columns
    write(tmp_path / "report.dcm", report)
    (tmp_path / "notes.txt").write_text("nothing")
    np.testing.assert_array_equal(all_of(tmp_path), pixels)
    assert opened(tmp_path)[2].notes == ("files without an image left alone: 1",)


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE"])
def test_masks_and_doses_are_left_out(tmp_path: Path, modality: str) -> None:
    pixels = series(tmp_path, Modality="MR")
    write(tmp_path / "mask.dcm", dataset(np.ones((HEIGHT, WIDTH), np.int16), SeriesInstanceUID="1.2.4", Modality=modality))
    np.testing.assert_array_equal(all_of(tmp_path), pixels)
    assert opened(tmp_path)[2].notes == ("files without an image left alone: 1",)


@pytest.mark.parametrize("spacing", [["0", "0"], ["0", "0.5"], ["-1", "1"], ["1e999", "1"]])
def test_pixels_of_impossible_sizes_are_square(tmp_path: Path, spacing: list[str]) -> None:
    write(tmp_path / "1.dcm", dataset(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.int16), PixelSpacing=spacing))
    [image], *_ = opened(tmp_path)
    assert (image.height, image.width) == (HEIGHT, WIDTH)


def test_a_picture_among_them_does_not_decide(tmp_path: Path) -> None:
    pixels = series(tmp_path)
    for path in list(tmp_path.glob("*.dcm")):
        path.rename(path.with_suffix(""))
    save(tmp_path / "preview.jpg", photo())
    with pytest.raises(UserError, match=r"several kinds \(flat: preview.jpg, dicom: 000\): choose one with --kind"):
        opened(tmp_path)
    assert len(pixels) == len(opened(tmp_path, kind="dicom", slices=parse_slices(":"))[0])


def test_a_scout_in_another_direction_is_a_stack_of_its_own(tmp_path: Path) -> None:
    series(tmp_path)
    scout = dataset(
        np.full((HEIGHT, WIDTH), 9, np.int16), ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )
    write(tmp_path / "scout.dcm", scout)
    assert opened(tmp_path, window=RAW, slices=parse_slices("0:1"))[2].count == 2


@pytest.mark.parametrize("emptied", [("SeriesInstanceUID",), ("SeriesInstanceUID", "SOPInstanceUID")])
def test_files_whose_series_was_blanked_out_are_not_put_into_one(tmp_path: Path, emptied: tuple[str, ...]) -> None:
    for name in ("a", "b"):
        data = dataset(np.eye(8, dtype=np.uint16))
        for element in emptied:
            setattr(data, element, "")
        write(tmp_path / f"{name}.dcm", data)
    assert opened(tmp_path)[2].count == 2


def test_series_get_labels_by_their_folder(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        series(tmp_path / "scans" / name, SeriesInstanceUID=f"1.2.{name[1]}")
    (tmp_path / "labels.csv").write_text("file,label\np1,sick\np2,well\n")
    images, _, source = opened(tmp_path / "scans", labels=str(tmp_path / "labels.csv"), slices=parse_slices("0:1"))
    assert (source.classes, [image.label for image in images]) == (("sick", "well"), [0, 1])


def test_series_that_share_a_folder_get_labels_by_their_files(tmp_path: Path) -> None:
    """Radiographs: thousands of them in one folder, each a series."""
    for number, name in enumerate(("a", "b", "sub/c", "sub/d")):
        write(tmp_path / f"scans/{name}.dcm", dataset(np.eye(8, dtype=np.uint16), SeriesInstanceUID=f"1.2.{number}"))
    (tmp_path / "labels.csv").write_text("file,label\na.dcm,sick\nb.dcm,well\nsub/c.dcm,well\nsub/d.dcm,sick\n")
    images = opened(tmp_path / "scans", labels=str(tmp_path / "labels.csv"))[0]
    assert [image.label for image in images] == [0, 1, 1, 0]
    (tmp_path / "labels.csv").write_text("file,label\na.dcm,sick\nsub,well\n")
    with pytest.raises(UserError, match=r"labels.csv has no label for b.dcm: add a line 'b.dcm,LABEL'"):
        opened(tmp_path / "scans", labels=str(tmp_path / "labels.csv"))


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 9)).astype(np.uint16)
    data = dataset(pixels, NumberOfFrames=5, Rows=8, Columns=9)
    write(tmp_path / "x.dcm", data)
    np.testing.assert_array_equal(all_of(tmp_path), pixels)


def test_enhanced_files_say_it_frame_by_frame(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(**inside: Dataset) -> Dataset:
        made = Dataset()
        for name, item in inside.items():
            setattr(made, name, Sequence([item]))
        return made

    def item(**fields: Any) -> Dataset:
        made = Dataset()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    pixels = np.random.default_rng(0).integers(0, 100, (5, 8, 9)).astype(np.uint16)
    data = dataset(pixels, NumberOfFrames=5, Rows=8, Columns=9)
    data.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PlaneOrientationSequence=item(ImageOrientationPatient=AXIAL),
                PixelMeasuresSequence=item(PixelSpacing=[1, 1]),
                PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=5),
            )
        ]
    )
    data.PerFrameFunctionalGroupsSequence = Sequence(
        [group(PlanePositionSequence=item(ImagePositionPatient=[0, 0, -float(z)])) for z in range(5)]
    )
    write(tmp_path / "x.dcm", data)
    np.testing.assert_array_equal(all_of(tmp_path), pixels * 2 + 5)
    np.testing.assert_array_equal(all_of(tmp_path, axis=2), (pixels * 2 + 5)[::-1, :, ::-1])  # frames run downwards


def test_colour_is_stored_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write(tmp_path / "x.dcm", dataset(pixels, **colour))
    images, *_ = opened(tmp_path)
    np.testing.assert_array_equal(decode(images[0].data), pixels)
    with pytest.raises(UserError, match="is in colour: give it without"):
        opened(tmp_path, window=RAW)


def test_other_colour_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.dcm", dataset(np.zeros((8, 8), np.uint8), PhotometricInterpretation="PALETTE COLOR"))
    with pytest.raises(UserError, match="PALETTE COLOR"):
        opened(tmp_path)


def test_compression_without_a_decoder_is_one_line(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    data = dataset(np.zeros((8, 8), np.uint16))
    data.PixelData = encapsulate([b"\xff\xd8" + bytes(100)])
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    write(tmp_path / "x.dcm", data)
    with pytest.raises(UserError, match=r"x.dcm (is compressed \(JPEG-LS Lossless|cannot be read)") as raised:
        opened(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(importlib.util.find_spec("pylibjpeg") is not None, reason="there is no decoder to be advised")
def test_what_the_decoder_at_hand_does_not_know_may_be_whole(tmp_path: Path) -> None:
    """12 bits in a JPEG, of which Pillow reads eight alone."""
    whole = pydicom.data.get_testdata_file("JPEG-lossy.dcm", download=False)
    with pytest.raises(UserError, match=r"JPEG-lossy.dcm cannot be read \(.* file is whole, pip install 'pylibjpeg\[all\]'"):
        opened(whole)


def test_cut_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", dataset(np.zeros((64, 64), np.uint16)))
    whole = path.read_bytes()
    for keep in (140, 300, 1000, len(whole) - 1000):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"x.dcm|no DICOM images") as raised:
            opened(tmp_path)
        assert "\n" not in str(raised.value)


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    series(tmp_path)
    for name in ("003", "011"):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(
        UserError, match=r"^2 files cannot be read: (?=.*003\.dcm cannot be read \()(?=.*011\.dcm cannot be read \()"
    ):
        opened(tmp_path)
    for name in ("003", "011"):
        (tmp_path / f"{name}.dcm").write_text("hello")
    with pytest.raises(
        UserError, match=r"^2 files cannot be read: .*003\.dcm is no readable DICOM .*011\.dcm is no readable DICOM "
    ):
        opened(tmp_path)


def test_what_has_only_the_suffix_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("hello")
    with pytest.raises(UserError, match=r"x.dcm is no readable DICOM file"):
        opened(tmp_path)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path)
    honest = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pydicom"):
            raise ImportError("No module named 'pydicom'")
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'scalegan\[medical\]'"):
        opened(tmp_path, kind="dicom")
