"""`scalegan shards SOURCE OUT`: the same shards however many workers write them, and one line for whatever is wrong."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from opening import encoded, photo, run, save, scan, stored
from PIL import Image

from helpers.terminal import on_terminal
from scalegan import cli
from scalegan.data import shards_cli
from scalegan.data.index import read_index
from scalegan.data.shards_cli import parse_size
from scalegan.data.sources import convert
from scalegan.errors import UserError

DATA = Path(os.environ.get("SCALEGAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def classes(root: Path, number: int = 6) -> Path:
    for label, name in enumerate(("kiwi", "pear", "plum")):
        for i in range(number):
            save(root / name / f"{i}.png", photo(100 * label + i))
    return root


def test_a_folder_becomes_shards_with_the_right_labels(tmp_path: Path) -> None:
    index = run(classes(tmp_path / "fruit"), tmp_path / "s", "--licence", "CC0", "--shard-samples", "5")
    assert (index.samples, index.height, index.width, index.channels) == (18, 10, 12, 3)
    assert (index.classes, index.class_counts) == (("kiwi", "pear", "plum"), (6, 6, 6))
    assert (index.source, index.licence, index.details) == ("fruit", "CC0", {"kind": "folders", "seed": 0})
    assert [shard.samples for shard in index.shards] == [5, 5, 5, 3]
    known = {photo(100 * label + i).tobytes(): label for label in range(3) for i in range(6)}
    assert [label for _, label in stored(index)] == [known[image.tobytes()] for image, _ in stored(index)]
    assert len({image.tobytes() for image, _ in stored(index)}) == 18


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit")
    command = [sys.executable, "-m", "scalegan", "shards", str(source), "--hold-out", "0"]
    code, shown = on_terminal([*command, str(tmp_path / "s")])
    assert code == 0
    assert re.search(r"images .*18/18", shown)
    assert "18 images, 10x12" in shown
    assert read_index(tmp_path / "s").samples == 18
    piped = subprocess.run([*command, str(tmp_path / "p")], capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert "18/18" not in piped.stdout


def test_files_are_stored_as_they_are(tmp_path: Path) -> None:
    save(tmp_path / "fruit/a/1.jpg", photo(), quality=80)
    run(tmp_path / "fruit", tmp_path / "s")
    assert (tmp_path / "fruit/a/1.jpg").read_bytes() in (tmp_path / "s/shard-000000.tar").read_bytes()


def test_images_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit")
    first, again, other = (run(source, tmp_path / str(i), "--seed", seed) for i, seed in enumerate(("1", "1", "2")))
    assert first.sha256 == again.sha256 != other.sha256
    labels = [label for _, label in stored(first)]
    assert labels != sorted(labels)
    assert Counter(labels) == Counter(label for _, label in stored(other))


def test_the_place_of_the_source_does_not_matter(tmp_path: Path) -> None:
    first = run(classes(tmp_path / "x/fruit"), tmp_path / "a")
    second = run(classes(tmp_path / "y/z/fruit"), tmp_path / "b")
    assert first.sha256 == second.sha256


def test_any_number_of_workers_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "INLINE", 0)
    source = classes(tmp_path / "fruit", 50)
    options = ("--size", "8x9", "--shard-samples", "40")
    alone = run(source, tmp_path / "1", *options)
    assert run(source, tmp_path / "3", *options, "--workers", "3").sha256 == alone.sha256


def test_an_error_in_a_worker_is_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "INLINE", 0)
    source = classes(tmp_path / "fruit", 50)
    (source / "pear/30.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"pear/30.png is no readable image"):
        run(source, tmp_path / "s", "--workers", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["fruit"]


def damage(file: Path) -> Path:
    file.write_bytes(b"broken")
    return file


@pytest.mark.parametrize("workers", ["1", "2"])
def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    monkeypatch.setattr(convert, "INLINE", 0)
    source = classes(tmp_path / "fruit", 50)
    cut = source / "kiwi/7.png"
    cut.write_bytes(cut.read_bytes()[:-100])
    text, empty = damage(source / "pear/30.png"), source / "plum/9.png"
    empty.write_bytes(b"")
    with pytest.raises(UserError) as raised:
        run(source, tmp_path / "s", "--workers", workers)
    assert str(raised.value) == (
        f"3 files cannot be read: {cut} is no readable image (image file is truncated), {text} is no readable image, "
        f"{empty} is no readable image: repair them or take them away"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["fruit"]


def test_a_single_file_that_cannot_be_read_is_told_as_one(tmp_path: Path) -> None:
    text = damage(classes(tmp_path / "fruit") / "pear/3.png")
    with pytest.raises(UserError) as raised:
        run(tmp_path / "fruit", tmp_path / "s")
    assert str(raised.value) == f"{text} is no readable image: repair it or take it away"


def test_of_many_files_that_cannot_be_read_the_first_are_named(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit", 4)
    for name in ("kiwi", "pear", "plum"):
        for i in range(4):
            damage(source / name / f"{i}.png")
    with pytest.raises(UserError, match=r"^12 files cannot be read: .*pear/3.png is no readable image and 4 more: ") as raised:
        run(source, tmp_path / "s")
    assert "plum" not in str(raised.value)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reading_ends_after_a_hundred_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """They are 150, read by sixteens."""
    monkeypatch.setattr(convert, "INLINE", 0)
    source = classes(tmp_path / "fruit", 50)
    for file in source.glob("*/*.png"):
        damage(file)
    with pytest.raises(UserError, match=r"^at least 112 files cannot be read: .* and 104 more: repair them or take them away$"):
        run(source, tmp_path / "s", "--workers", workers)
    assert multiprocessing.active_children() == []


def test_another_error_behind_a_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit")
    damage(source / "kiwi/1.png")
    save(source / "kiwi/2.png", photo(0, 7, 9))
    damage(source / "plum/1.png")
    with pytest.raises(UserError, match=r"^images of several sizes"):
        run(source, tmp_path / "s")


def test_a_range_of_intensities_is_of_one_depth(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    save(source / "a.png", scan())
    save(source / "b.png", scan().astype(np.uint16) * 257)
    with pytest.raises(UserError, match=r"^images of 8 bits \(.*a\.png\) and of more \(.*b\.png\), and --window .* p1,p99$"):
        run(source, tmp_path / "s", "--window", "0,65535")
    one, other = (image.astype(int) for image, _ in stored(run(source, tmp_path / "s", "--window", "p0,p100")))
    assert abs(one - other).max() <= 1


def test_an_error_of_the_reader_leaves_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "INLINE", 0)
    source = classes(tmp_path / "fruit", 50)
    save(source / "kiwi/0.png", photo(0, 7, 9))
    with pytest.raises(UserError, match="images of several sizes"):
        run(source, tmp_path / "s", "--workers", "2")
    assert multiprocessing.active_children() == []


def test_size_is_height_by_width(tmp_path: Path) -> None:
    index = run(classes(tmp_path / "fruit"), tmp_path / "s", "--size", "20x6")
    assert (index.height, index.width) == (20, 6)
    assert {image.shape for image, _ in stored(index)} == {(20, 6, 3)}
    assert index.details == {"kind": "folders", "seed": 0, "size": [20, 6], "fit": "crop", "filter": "lanczos"}


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("208x176", (208, 176)), ("104X88", (104, 88))])
def test_sizes_are_read(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "x", "64x", "-4", "64x64x3", "9000", "64.5", "64 x 64"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--size .*: give one number or height x width"):
        parse_size(text)


def test_mixed_sizes_name_both_and_an_example_of_each(tmp_path: Path) -> None:
    save(tmp_path / "fruit/a/1.png", photo())
    save(tmp_path / "fruit/a/2.png", photo(0, 7, 9))
    with pytest.raises(UserError, match=r"10x12 \(.*a/1.png\) and 7x9 \(.*a/2.png\): choose one with --size"):
        run(tmp_path / "fruit", tmp_path / "s")
    assert run(tmp_path / "fruit", tmp_path / "s", "--size", "7").samples == 2


def test_mixed_grey_and_colour_name_an_example_of_each(tmp_path: Path) -> None:
    save(tmp_path / "fruit/a/1.png", photo())
    save(tmp_path / "fruit/a/2.png", scan())
    with pytest.raises(UserError, match=r"grey \(.*a/2.png\) and colour \(.*a/1.png\): choose with --channels"):
        run(tmp_path / "fruit", tmp_path / "s")
    assert run(tmp_path / "fruit", tmp_path / "s", "--channels", "1").channels == 1
    assert run(tmp_path / "fruit", tmp_path / "t", "--channels", "3").channels == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "kiwi,,plum"), "--classes has an empty name"),
        (("--classes", "kiwi,kiwi"), "names a class twice"),
        (("--classes", "kiwis"), "did you mean kiwi?"),
        (("--workers", "0"), "--workers 0: give at least 1"),
        (("--shard-samples", "0"), "--shard-samples 0: give at least 1"),
        (("--seed", "-1"), "--seed -1: give 0 or more"),
        (("--window", "5"), "--window 5: give LO,HI"),
        (("--slices", "5"), "--slices 5: give LO:HI"),
        (("--size", ""), "--size : give one number"),
        (("--slices", ""), "--slices : give LO:HI"),
        (("--window", ""), "--window : give LO,HI"),
        (("--slices", "1:5"), "--slices means nothing for class folders"),
        (("--window", "0,9"), "in colour"),
    ],
)
def test_options_that_make_no_sense_leave_nothing(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as raised:
        run(classes(tmp_path / "fruit"), tmp_path / "s", *options)
    assert message in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["fruit"]


def test_out_may_not_hold_the_source(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit")
    for out in (source, tmp_path):
        with pytest.raises(UserError, match="exists already"):
            run(source, out)
    shards = tmp_path / "shards"
    run(source, shards)
    (shards / "more").mkdir()
    picture = save(shards / "more/1.png", photo())
    (tmp_path / "link.png").symlink_to(picture)
    for place in (shards, picture, shards / "*.tar", tmp_path / "link.png"):
        with pytest.raises(UserError, match="holds SOURCE"):
            run(place, shards, "--force")
    assert read_index(shards).samples == 18


def test_force_replaces_earlier_shards(tmp_path: Path) -> None:
    source = classes(tmp_path / "fruit")
    run(source, tmp_path / "s")
    with pytest.raises(UserError, match="exists already"):
        run(source, tmp_path / "s")
    assert run(source, tmp_path / "s", "--classes", "plum", "--force").samples == 6


def test_a_class_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    for name in ("plum, red", "plum", "kiwi"):
        save(tmp_path / "fruit" / name / "1.png", photo())
    assert run(tmp_path / "fruit", tmp_path / "s", "--classes", 'kiwi, "plum, red"').classes == ("kiwi", "plum, red")


def test_the_command_line_turns_errors_into_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", str(tmp_path / "nowhere"), str(tmp_path / "s")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scalegan: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [1, 3, 25])
def test_the_contact_sheet_has_a_row_for_each_class(tmp_path: Path, number: int) -> None:
    for i in range(number):
        save(tmp_path / f"x/{i:02d}/1.png", photo(i))
    run(tmp_path / "x", tmp_path / "s")
    with Image.open(tmp_path / "s/contact.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.height == min(number, 20) * (80 + 2 + 14) - 2


def test_a_contact_sheet_of_grey_images_without_labels(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / f"x/{i}.png", scan(i, 300, 200))
    run(tmp_path / "x", tmp_path / "s")
    with Image.open(tmp_path / "s/contact.png") as sheet:
        assert (sheet.mode, sheet.size) == ("L", (10 * 87 - 2, 2 * 130 - 2))


@pytest.fixture
def many(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that writes the shards of so many images that it takes two workers for seconds."""
    folder = tmp_path / "x/a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(encoded(photo(0, 400, 400)))
    for i in range(1, 1500):
        os.link(folder / "0.png", folder / f"{i}.png")
    command = [sys.executable, "-m", "scalegan", "shards", str(folder.parent), str(tmp_path / "s"), "--size", "390"]
    command += ["--workers", "2"]
    # A shell starts what runs in its background deaf to SIGINT, and whatever that starts is born so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        yield process
        process.kill()


def children(process: subprocess.Popen[str]) -> list[int]:
    """The resource tracker first, then the workers."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


def has_written(tmp_path: Path) -> bool:
    spool = tmp_path / ".s.partial" / "spool"
    return spool.exists() and spool.stat().st_size > 0


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_and_says_so(
    many: subprocess.Popen[str], tmp_path: Path, how: signal.Signals, early: bool
) -> None:
    """Early is when the workers are there and still import."""
    wait_until(many, lambda: len(children(many)) == 3 if early else has_written(tmp_path))
    os.killpg(many.pid, how) if how is signal.SIGINT else many.send_signal(how)
    out, err = many.communicate(timeout=30)
    assert many.returncode == 130
    assert (out, err) == ("", "scalegan: interrupted: nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_ends_the_command_and_the_other_worker(
    many: subprocess.Popen[str], tmp_path: Path, victim: int
) -> None:
    """While the command stands still, its workers fill what it reads from: one at least is killed amid its answer."""
    wait_until(many, lambda: has_written(tmp_path) and len(children(many)) == 3)
    many.send_signal(signal.SIGSTOP)
    time.sleep(1)
    workers = children(many)[1:]
    os.kill(workers[victim], signal.SIGKILL)
    many.send_signal(signal.SIGCONT)
    out, err = many.communicate(timeout=30)
    assert many.returncode == 2
    assert out == ""
    assert err.startswith("scalegan: error: a worker process was killed, most likely for want of memory")
    assert not Path(f"/proc/{workers[1 - victim]}").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from scalegan import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    cli.main(['shards', '--help'])\n"
        "print([name for name in ('torch', 'webdataset', 'numpy', 'PIL', 'rich', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_kind_has_a_source() -> None:
    from scalegan.data.sources.detect import KINDS

    assert ("auto", *KINDS) == shards_cli.KINDS
    parser = argparse.ArgumentParser()
    shards_cli.add_arguments(parser)
    for kind in KINDS:
        assert f"\n  {kind} " in parser.format_help()


@pytest.mark.skipif(not (DATA / "fruits360").is_dir(), reason="needs the real images (SCALEGAN_DATA)")
def test_real_kiwis(tmp_path: Path) -> None:
    index = run(DATA / "fruits360", tmp_path / "s", "--classes", "Kiwi")
    assert (index.samples, index.height, index.width, index.channels, index.classes) == (466, 100, 100, 3, ("Kiwi",))
    files = {path.read_bytes() for path in (DATA / "fruits360/Training/Kiwi").iterdir()}
    tar = (tmp_path / "s/shard-000000.tar").read_bytes()
    assert all(data in tar for data in sorted(files)[:20])
    assert run(DATA / "fruits360", tmp_path / "t", "--classes", "Kiwi", "--split", "Test").samples == 156


@pytest.mark.skipif(not (DATA / "brain").is_dir(), reason="needs the real images (SCALEGAN_DATA)")
def test_real_brain_slices(tmp_path: Path) -> None:
    index = run(DATA / "brain", tmp_path / "s", "--classes", "ModerateDemented", "--split", "all", "--size", "104x88")
    assert (index.samples, index.height, index.width, index.channels) == (64, 104, 88, 1)
