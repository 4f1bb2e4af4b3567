"""The status line and where it goes: standard output, RUN/log.txt, and over the bar on a terminal."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.terminal import on_terminal
from scalegan.outputs import Fetched
from scalegan.status import Status, human_time, record_line, tick_line

METRICS = {"loss/D": 1.2345, "loss/G": 0.8712, "accuracy/real": 0.61, "accuracy/fake": 0.58, "skipped_steps": 0.0}
TIMING = {"seconds": 192.0, "images_per_s": 292.4, "data_wait_share": 0.02, "memory_mb": 812.3}


def test_a_tick_is_one_line_in_the_dialect_of_the_field() -> None:
    assert tick_line(48_000, METRICS, TIMING, 250.0) == (
        "kimg 48.0  time 3m 12s  sec/kimg 3.42  img/s 292  D 1.23  G 0.871  acc real 61% fake 58%  mem 812MB  eta 4m 10s"
    )


def test_trouble_is_on_the_line() -> None:
    line = tick_line(1_000, {"skipped_steps": 3.0}, {"data_wait_share": 0.4}, None)
    assert line == "kimg 1.0  skipped 3  waits for data 40%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.7, "1m 00s"), (250, "4m 10s"), (7_500, "2h 05m"), (273_600, "3d 04h")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_an_evaluation_shows_each_figure_beside_its_control() -> None:
    record = {
        "fd_lite0": 61.84,
        "fd_lite0_half": 63.1,
        "fd_lite0_floor": 11.21,
        "ssim_max": 0.713,
        "ssim_mean_image": 0.688,
        "diversity": 0.31,
        "n": 5,
    }
    line = record_line(200_000, record | {"diversity_real": 0.352, "seconds": 14.0})
    assert line == (
        "kimg 200.0  fd_lite0 61.84, half 63.1 (floor 11.21)  SSIM 0.713 (mean image 0.688)  diversity 0.31 (real 0.352)  "
        "took 14s"
    )


def test_lines_go_to_standard_output_and_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Status(100_000, tmp_path / "run") as status:
        status.tick(48_000, METRICS, TIMING)
        status.say("[red] is printed as it stands")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kimg 48.0  time 3m 12s")
    assert lines[1] == "[red] is printed as it stands"
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line[21:] for line in log] == lines


def test_the_log_goes_on_after_a_resume(tmp_path: Path) -> None:
    for _ in range(2):
        with Status(100, tmp_path) as status:
            status.say("hello")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_the_remaining_time_counts_from_where_this_process_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Status(100_000, tmp_path, images_seen=40_000) as status:
        now[0] += 30
        status.tick(60_000, {}, {})
    assert capsys.readouterr().out == "kimg 60.0  eta 1m 00s\n"


def test_a_reader_who_leaves_does_not_stop_the_run(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from scalegan.status import Status\n"
        "with Status(1000, Path(sys.argv[1])) as s:\n"
        "    for i in range(50): s.say('line'); time.sleep(0.01)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 50


def test_a_terminal_that_is_closed_does_not_stop_the_run(tmp_path: Path) -> None:
    """As where a connection is lost and the training was told not to mind (`setsid`, `disown`)."""
    code = (
        "import sys, time; from pathlib import Path; from scalegan.status import Status\n"
        "with Status(1000, Path(sys.argv[1])) as s:\n"
        "    for i in range(50):\n"
        "        s.say('line'); time.sleep(0.03)\n"
        "        if i > 40: print('said beside it', file=sys.stderr)"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=child,
        stderr=child,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(child)
    os.read(parent, 1)
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 50


@pytest.mark.parametrize("moment", ["as it begins", "before the first line", "while it is drawn", "before it ends"])
def test_a_terminal_is_closed_at_any_moment_of_the_bar(tmp_path: Path, moment: str) -> None:
    """The first of them is while its text is put together, after it was asked whether there is a terminal."""
    code = (
        "import os, sys, time; from pathlib import Path; from rich.console import Console; from scalegan.status import Status\n"
        "moment, drawn = sys.argv[2], Console._render_buffer\n"
        "def closed(): os.write(1, b'.'); sys.stdin.read()\n"
        "if moment == 'as it begins': Console._render_buffer = lambda *a: (closed(), drawn(*a))[1]\n"
        "with Status(1000, Path(sys.argv[1])) as s:\n"
        "    Console._render_buffer = drawn\n"
        "    if moment == 'before the first line': closed()\n"
        "    s.say('line')\n"
        "    if moment == 'while it is drawn': closed(); time.sleep(2)\n"
        "    s.say('line')\n"
        "    if moment == 'before it ends': closed()"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), moment],
        stdin=subprocess.PIPE,
        stdout=child,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(child)
    while b"." not in os.read(parent, 1):
        pass
    os.close(parent)
    _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, b"")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_standard_output_on_a_full_disk_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["first", "second" * 2000, "third"]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with Status(100, tmp_path) as status:
            for text in said:
                status.say(text)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert [line.split("  ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == said


def test_a_line_goes_to_the_standard_output_of_its_time(tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as first:
        status = Status(100, tmp_path)
        status.say("first")
    first.close()
    with contextlib.redirect_stdout(io.StringIO()) as second, status:
        status.say("second")
    assert second.getvalue() == "second\n"


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from scalegan.status import Status\n"
        "with Status(1000, Path(sys.argv[1])) as s:\n    s.advance(250); s.tick(500, {'loss/D': 1.0}, {}); s.advance(1000)\n"
        "    s.looking('real images', 2000, 5000); time.sleep(1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert piped.stdout.startswith("kimg 0.5  D 1")
    assert "images" not in piped.stdout + piped.stderr

    code, shown = on_terminal(command)
    assert code == 0
    assert "kimg 0.5  D 1" in shown
    assert "1,000/1,000 images" in shown
    assert "evaluation: real images 2,000/5,000" in shown


def test_what_was_fetched_in_an_epoch_begins_anew_with_the_next():
    fetched = Fetched(length=100, images_seen=0)
    lines = [fetched.line(seen, mb) for seen, mb in ((50, [3.0, 1.0]), (100, [5.0, 2.0]), (150, [6.0, 2.0]), (350, [6.5, 9.0]))]
    assert [line["fetched_mb_epoch"] for line in lines] == [[3, 1], [5, 2], [1, 0], [0.5, 7]]
    assert lines[-1]["fetched_mb"] == [6.5, 9.0]
    assert Fetched(100, 150).line(180, [2.0])["fetched_mb_epoch"] == [2.0], "a resumed run counts from there"
