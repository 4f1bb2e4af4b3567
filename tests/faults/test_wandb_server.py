"""A W&B server on this machine that is good enough for one run: what it gets, and what its death costs a training."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.daily import one_a_day
from helpers.runs import configured, contents, disturbed_training, newest, training
from helpers.worlds import run_world
from scalegan.config import Config

pytestmark = pytest.mark.faults

TRAIN = """
import sys, time
from pathlib import Path
import scalegan.wandb_run
from scalegan.config import Config, LogConfig
from scalegan.tracking import Tracker
scalegan.wandb_run.PATIENCE = 8.0
run_dir, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tracker = Tracker(run_dir, Config(log=LogConfig(wandb="online")), first)
print("started", flush=True)
sys.stdin.readline()
for seen in range(first + 1000, last + 1, 1000):
    tracker.log(seen, {"loss/D": seen / 7})
tracker.close()
"""


class Server(ThreadingHTTPServer):
    """Keeps the history rows that were sent, and what is needed to resume their run."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: list[dict[str, Any]] = []
        self.run, self.runs = "", set[str]()
        self.mute, self.over = threading.Event(), threading.Event()

    def die(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        if self.server.mute.is_set():
            self.server.over.wait()  # as where packets are dropped: neither an answer nor an end
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = json.loads(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.answer(self.graphql(message) if self.path == "/graphql" else self.stream(message))

    def answer(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def graphql(self, message: dict[str, Any]) -> dict[str, Any]:
        query, rows = message["query"], self.server.rows
        if "RunResumeStatus" in query:
            tail = json.dumps([json.dumps(row) for row in rows[-1:]])
            run = {"name": self.server.run, "historyLineCount": len(rows), "historyTail": tail, "summaryMetrics": "{}"}
            run |= {"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]", "config": "{}", "tags": []}
            run |= {"wandbConfig": '{"t": 1}', "displayName": "run", "id": "1"}
            return {
                "data": {
                    "model": {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}, "bucket": run if rows else None}
                }
            }
        if "UpsertBucket" in query:
            self.server.run = message["variables"]["name"]
            self.server.runs.add(self.server.run)
            project = {"id": "1", "name": "scalegan", "entity": {"id": "1", "name": "me"}}
            bucket = {"id": "1", "name": self.server.run, "displayName": "run", "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "CreateRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"http://{self.headers['Host']}/file"} for name in message["variables"]["files"]
            ]
            return {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
        return {"data": None}

    def do_GET(self) -> None:
        """/die: the server's own end, for a process that has no other way to it; /mute: it answers nothing from now on."""
        self.answer({})
        if self.path == "/die":
            threading.Thread(target=self.server.die).start()
        if self.path == "/mute":
            self.server.mute.set()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def stream(self, message: dict[str, Any]) -> dict[str, Any]:
        history = (message.get("files") or {}).get("wandb-history.jsonl")
        if history:
            self.server.rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        return {}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


def start(server: Server, run_dir: Path, first: int, last: int) -> subprocess.Popen[str]:
    """A training that has connected and waits for a line before it goes on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    where = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "HOME": str(run_dir)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(run_dir), str(first), str(last)], env=kept | where, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_resumed_training_goes_on_in_the_same_run(server: Server, tmp_path: Path) -> None:
    said = start(server, tmp_path, 0, 3000).communicate("\n", timeout=60)[0]
    wandb_id = server.run
    said += start(server, tmp_path, 2000, 5000).communicate("\n", timeout=60)[0]
    assert said == ""
    assert server.run == wandb_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [row["images_seen"] for row in server.rows] == [1000, 2000, 3000, 4000, 5000]
    assert [row["_step"] for row in server.rows] == [0, 1, 2, 3, 4]


def test_a_server_that_is_lost_on_the_way_costs_one_line_and_a_few_seconds(server: Server, tmp_path: Path) -> None:
    training = start(server, tmp_path, 0, 3000)
    server.die()
    began = time.monotonic()
    said = training.communicate("\n", timeout=60)[0].splitlines()
    assert training.returncode == 0
    assert time.monotonic() - began < 30
    assert len(said) == 1
    assert "wandb sync --include-online" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def beside_a_server(config: Config, url: str, home: Path, at: int = -1, what: str = "") -> bool:
    """A real training that W&B gets everything of, until, in the step from `at` images on, it is told to stop (`what` stop),
    or its server to do something else."""
    import scalegan.wandb_run

    def disturb() -> None:
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            urllib.request.urlopen(f"{url}/{what}").close()

    scalegan.wandb_run.PATIENCE = 8.0
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "HOME": str(home)}
    return disturbed_training(config, at, disturb)


def test_a_real_training_ends_with_the_same_bytes_without_wandb_with_it_and_when_its_server_is_lost(
    server: Server, shards: Path, tmp_path: Path
) -> None:
    url, images = f"http://127.0.0.1:{server.server_port}", 32 * 20
    changes = {"log__samples": 64, "log__checkpoint": 64, "log__step_losses": "true"}
    reference = configured(shards, tmp_path / "off", images, **changes)
    assert run_world(tmp_path, 1, training, reference)[0].value
    for name, lost_at, mode in (("offline", -1, "offline"), ("kept", -1, "online"), ("lost", 32 * 10, "online")):
        config = configured(shards, tmp_path / name, images, **changes, log__wandb=mode)
        (ended,) = run_world(tmp_path, 1, beside_a_server, config, url, tmp_path, lost_at, "die")
        assert ended.value is True, ended
        assert (tmp_path / name / "wandb").is_dir()
        ours, theirs = contents(tmp_path / name), contents(tmp_path / "off")
        assert ours.keys() == theirs.keys()
        assert [file for file in ours if ours[file] != theirs[file]] == []
        wandb_id = json.loads((tmp_path / name / "wandb.json").read_text())["id"]
        assert (server.run == wandb_id) == (mode == "online"), "it was there before it was lost"
        assert name != "kept" or images in {row["images_seen"] for row in server.rows}
        server.rows.clear()


@pytest.mark.parametrize("known_from", one_a_day(["wandb.json", "checkpoint"]))
def test_a_real_training_that_is_stopped_and_resumed_is_one_run_in_which_nothing_comes_twice(
    server: Server, shards: Path, tmp_path: Path, known_from: str
) -> None:
    url, images = f"http://127.0.0.1:{server.server_port}", 32 * 12
    config = configured(shards, tmp_path / "run", images, log__wandb="online")
    (stopped,) = run_world(tmp_path, 1, beside_a_server, config, url, tmp_path, 32 * 6, "stop")
    assert stopped.value is False, stopped
    state = json.loads((newest(tmp_path / "run") / "manifest.json").read_text())["state"]
    assert server.runs == {state["wandb_id"]}
    before = len(server.rows)
    if known_from == "checkpoint":
        (tmp_path / "run" / "wandb.json").unlink()
    (ended,) = run_world(tmp_path, 1, beside_a_server, config, url, tmp_path)
    assert ended.value is True, ended
    assert server.runs == {state["wandb_id"]}
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] == state["wandb_id"]
    assert 0 < before < len(server.rows)
    for key in ("loss/D", "timing/images_per_s"):
        assert [row["images_seen"] for row in server.rows if key in row] == list(range(64, images + 1, 64)), key
    assert [row["_step"] for row in server.rows] == list(range(len(server.rows)))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["start", "later"])
def test_a_network_that_drops_everything_costs_a_real_training_some_seconds(
    server: Server, shards: Path, tmp_path: Path, when: str
) -> None:
    """Other than one that refuses, it is waited for: where W&B is to connect, or to send what it has left at the end."""
    images, changes = 32 * 12, {"log__samples": 64, "log__checkpoint": 64}
    assert run_world(tmp_path, 1, training, configured(shards, tmp_path / "off", images, **changes))[0].value
    config = configured(shards, tmp_path / "run", images, **changes, log__wandb="online")
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connections are made, and nobody takes them
        port = deaf.getsockname()[1] if when == "start" else server.server_port
        began = time.monotonic()
        (ended,) = run_world(
            tmp_path,
            1,
            beside_a_server,
            config,
            f"http://127.0.0.1:{port}",
            tmp_path,
            32 * 6 if when == "later" else -1,
            "mute",
        )
    assert ended.value is True, ended
    assert time.monotonic() - began < 60
    assert server.mute.is_set() == (when == "later")
    told = {"start": "W&B: no connection", "later": "W&B has not got everything"}[when]
    assert [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if told in line]
    ours, theirs = contents(tmp_path / "run"), contents(tmp_path / "off")
    assert ours.keys() == theirs.keys()
    assert [file for file in ours if ours[file] != theirs[file]] == []
