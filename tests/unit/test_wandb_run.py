"""One W&B run for a whole training: the same id after a resume, nothing twice, and no trouble of W&B's stops anything.

Offline, W&B writes a transaction log; what it holds is what `wandb sync` would upload.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scalegan.config import Config, LogConfig
from scalegan.figures import save_png
from scalegan.tracking import Tracker
from scalegan.wandb_run import key_exists, wanted_mode


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a key, a netrc or settings of their own."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))


TRAIN = """
import sys
from pathlib import Path
from scalegan.config import Config, LogConfig
from scalegan.tracking import Tracker
run_dir, mode, first, last, wandb_id = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] or None
tracker = Tracker(run_dir, Config(log=LogConfig(wandb=mode)), first, wandb_id)
for seen in range(first + 1000, last + 1, 1000):
    tracker.log(seen, {"loss/D": seen / 7})
    tracker.timing(seen, {"images_per_s": 292.0})
    if seen % 2000 == 0:
        tracker.images(seen, run_dir / "samples.png")
        tracker.record(seen, {"fd_lite0": 1e5 / seen, "extractor": "lite0"})
AFTER
tracker.close()
"""


def train(run_dir: Path, mode: str, first: int, last: int, wandb_id: str = "", after: str = "", **env: str) -> str:
    """Run a little training in a process of its own and return all that it printed."""
    save_png(run_dir / "samples.png", np.zeros((4, 1, 8, 8), np.uint8))
    command = [sys.executable, "-c", TRAIN.replace("AFTER", after), str(run_dir), mode, str(first), str(last), wandb_id]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def records(path: Path) -> Iterator[Any]:
    """The records of a W&B transaction log: a 7 byte header, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record = (record if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)


def finished(path: Path) -> list[Any]:
    """Its records up to the last: W&B's service may write it some milliseconds after `finish` has returned."""
    until = time.monotonic() + 30
    while not ((found := list(records(path))) and found[-1].HasField("exit")) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of all processes of a run, oldest first, without W&B's own keys."""
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for record in finished(path):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if row:
                found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found


def test_a_resumed_training_is_one_run_and_sends_nothing_twice(tmp_path: Path) -> None:
    run = tmp_path / "kiwi"
    printed = train(run, "auto", 0, 4000)
    wandb_id = json.loads((run / "wandb.json").read_text())["id"]
    printed += train(run, "auto", 2000, 6000, wandb_id)  # the checkpoint was at 2,000
    assert printed == ""
    assert {path.name.split("-")[-1] for path in run.glob("wandb/offline-run-*")} == {wandb_id}
    sent = rows(run)
    assert [row["images_seen"] for row in sent if "loss/D" in row] == [1000, 2000, 3000, 4000, 5000, 6000]
    assert [row["images_seen"] for row in sent if "timing/images_per_s" in row] == [1000, 2000, 3000, 4000, 5000, 6000]
    assert [row["images_seen"] for row in sent if "evaluation/fd_lite0" in row] == [2000, 4000, 6000]
    assert [row["images_seen"] for row in sent if "samples/path" in row] == [2000, 4000, 6000]
    axes = [r.metric for path in run.glob("wandb/offline-run-*/*.wandb") for r in records(path) if r.HasField("metric")]
    assert {(axis.glob_name, axis.step_metric) for axis in axes} == {("", ""), ("*", "images_seen")}


def test_what_was_written_while_wandb_was_off_is_sent_later(tmp_path: Path) -> None:
    train(tmp_path, "off", 0, 2000)
    assert not (tmp_path / "wandb").exists()
    train(tmp_path, "offline", 2000, 3000)
    assert [row["images_seen"] for row in rows(tmp_path) if "loss/D" in row] == [1000, 2000, 3000]
    assert [row["images_seen"] for row in rows(tmp_path) if "evaluation/fd_lite0" in row] == [2000]


def test_a_run_known_from_its_checkpoint_alone_goes_on_from_there(tmp_path: Path) -> None:
    train(tmp_path, "off", 0, 2000)
    train(tmp_path, "offline", 2000, 3000, wandb_id="abcd1234")
    assert [row["images_seen"] for row in rows(tmp_path) if "loss/D" in row] == [3000]


def test_a_server_out_of_reach_costs_one_line_and_the_run_is_kept_offline(tmp_path: Path) -> None:
    impatient = "import scalegan.wandb_run; scalegan.wandb_run.PATIENCE = 5.0\n"
    code = TRAIN.replace("AFTER", "")
    save_png(tmp_path / "samples.png", np.zeros((4, 1, 8, 8), np.uint8))
    command = [sys.executable, "-c", impatient + code, str(tmp_path), "auto", "0", "2000", ""]
    nowhere = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere, timeout=60, check=True)
    said = (done.stdout + done.stderr).splitlines()
    assert len(said) == 1
    assert said[0].startswith("W&B: no connection (")
    assert said[0].endswith(f"the run is kept offline, to upload it later: wandb sync {tmp_path / 'wandb'}")
    assert [row["images_seen"] for row in rows(tmp_path) if "loss/D" in row] == [1000, 2000]


def test_online_without_a_key_says_so_and_is_kept_offline(tmp_path: Path) -> None:
    said = train(tmp_path, "online", 0, 1000).splitlines()
    assert said == ["W&B: no API key (WANDB_API_KEY or `wandb login`), so the run is kept offline, in the run folder"]
    assert [row["images_seen"] for row in rows(tmp_path) if "loss/D" in row] == [1000]


def test_a_wandb_that_dies_on_the_way_costs_one_line(tmp_path: Path) -> None:
    kill = f"""
import os, time
children = [pid for pid in os.listdir("/proc") if pid.isdigit() and os.path.exists(f"/proc/{{pid}}/stat")
            and open(f"/proc/{{pid}}/stat").read().rsplit(")", 1)[1].split()[1] == str(os.getpid())]
[core] = [pid for pid in children if b"wandb-core" in open(f"/proc/{{pid}}/cmdline", "rb").read()]
os.kill(int(core), {int(signal.SIGKILL)})
time.sleep(0.5)
for seen in range(last + 1000, last + 6000, 1000):
    tracker.log(seen, {{"loss/D": 1.0}})
    time.sleep(0.1)
"""
    said = train(tmp_path, "offline", 0, 1000, after=kill).splitlines()
    assert len(said) == 1
    assert said[0].startswith("W&B failed (")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_off_imports_nothing_of_wandb_and_keeps_the_id(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from scalegan.config import *; from scalegan.tracking import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), Config(log=LogConfig(wandb='off')), 0, 'abcd1234'); t.log(1, {'a': 1.0}); t.close()\n"
        "print(t.wandb_id, 'wandb' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "abcd1234 False False\n"


def test_nothing_wandb_raises_stops_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that importing it fails
    said: list[str] = []
    tracker = Tracker(tmp_path, Config(log=LogConfig(wandb="offline")), 0, say=said.append)
    tracker.log(1000, {"a": 1.0})
    tracker.close()
    assert len(said) == 1
    assert said[0].startswith("W&B does not start (")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"images_seen": 1000, "a": 1.0}\n'


@pytest.mark.parametrize(
    ("option", "variable", "mode"),
    [
        ("auto", None, "auto"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "off"),
        ("online", "disabled", "online"),
        ("off", "online", "off"),
    ],
)
def test_auto_listens_to_the_variable(monkeypatch: pytest.MonkeyPatch, option: Any, variable: str | None, mode: str) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wanted_mode(LogConfig(wandb=option)) == mode


def test_a_key_is_found_where_wandb_looks_for_one(tmp_path: Path) -> None:
    def settings(key: str | None = None, token: str | None = None, url: str = "https://api.wandb.ai") -> Any:
        return SimpleNamespace(api_key=key, identity_token_file=token, base_url=url)

    assert not key_exists(settings())
    assert key_exists(settings(key="from WANDB_API_KEY or the settings file"))
    assert key_exists(settings(token="a file"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai login user password not-a-real-key\n")
    assert key_exists(settings())
    assert not key_exists(settings(url="https://wandb.example.org"))
