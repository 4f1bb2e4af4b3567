"""The run on Weights & Biases: one for a whole training, however often it is resumed, and never a reason to stop.

W&B can neither be cut back nor told a step twice (it throws away what is not above its last one). So steps are never
given, the axis of every curve is `images_seen`, and `RUN/wandb.json` keeps the id and, per kind of row, the last
`images_seen` that was sent (`RUN/wandb_evaluations.json` what `scalegan evaluate` sent). One process at a time sends. A
process that is killed can lose what it sent in its last 15 seconds, there and only there.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scalegan.config import Config, LogConfig
from scalegan.files import if_there_is_room, write_atomically
from scalegan.run import Held, Lock

PATIENCE = 30.0
"""Seconds that W&B gets to answer at the start and to finish uploading at the end; a preempted job has little more."""
TRAINING, EVALUATIONS = "wandb.json", "wandb_evaluations.json"
"""What was sent, by a training and by `scalegan evaluate`."""
LOCK = ".wandb.lock"


class WandbRun:
    """Sends rows while W&B works, and says once when it does not. `wandb` is imported only if it is wanted."""

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        images_seen: int,
        wandb_id: str | None,
        say: Callable[[str], None],
        kept_in: str = TRAINING,
        patience: float = 2 * PATIENCE,
    ) -> None:
        """`patience` in seconds, until another process has sent what it has: a training waits for a `scalegan evaluate`."""
        self.id = wandb_id
        self._run: Any = None
        self._lock: Lock | None = None
        self._failed = False
        self._say = say
        self._path = run_dir / kept_in
        self._sent: dict[str, int] = {}
        # A run that is known from its checkpoint alone has got everything up to there.
        self._sent_before = -1 if wandb_id is None else images_seen
        asked = wanted_mode(config.log)
        if asked == "off":
            return
        with self._guarded("W&B does not start"):
            self._lock = held(run_dir, patience)
            known = self._take_up(run_dir)
            self._start(run_dir, config, asked, known)

    def _take_up(self, run_dir: Path) -> bool:
        """The id of the run and what it has got, from what is kept; whether there was one. If it cannot be kept it is none."""
        given, kept = self.id, read(self._path)
        if kept and given in (None, kept["id"]):
            self.id, self._sent, self._sent_before = kept["id"], kept["sent"], -1
        if self.id is None and (other := read(run_dir / (EVALUATIONS if self._path.name == TRAINING else TRAINING))):
            self.id = other["id"]
        known = self.id is not None
        self.id = self.id or secrets.token_hex(4)
        try:
            self._keep()
        except OSError:
            self.id = given
            raise
        return known

    def _start(self, run_dir: Path, config: Config, asked: str, known: bool) -> None:
        # Its error reports go to the network even offline, and delay the exit by 10 s where packets are dropped.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", init_timeout=PATIENCE, finish_timeout=PATIENCE, finish_timeout_raises=True
        )
        common: dict[str, Any] = {"id": self.id, "resume": "allow", "dir": str(run_dir), "project": config.log.project}
        # Only the first time: a name that was changed on the site since then stays.
        common |= {"name": None if known else run_dir.resolve().name, "settings": settings}
        # An older checkpoint that is evaluated may have another configuration than the training has by now.
        common["config"] = None if known and self._path.name == EVALUATIONS else config.to_dict()
        common["allow_val_change"] = True
        has_key = key_exists(wandb.setup(settings).settings)
        if asked == "online" and not has_key:
            self._say("W&B: no API key (WANDB_API_KEY or `wandb login`), so the run is kept offline, in the run folder")
        if has_key and asked != "offline":
            try:
                self._run = wandb.init(mode="online", **common)
            except Exception as error:
                later = f"to upload it later: wandb sync {run_dir / 'wandb'}"
                self._say(f"W&B: no connection ({one_line(error)}); the run is kept offline, {later}")
                # The failed start keeps the id in use as long as its service process lives.
                with suppress(SystemExit):
                    wandb.teardown()
                wandb.setup(settings)
        if self._run is None:
            self._run = wandb.init(mode="offline", **common)
        self._run.define_metric("images_seen", hidden=True)
        self._run.define_metric("*", step_metric="images_seen")

    def wants(self, kind: str, images_seen: int) -> bool:
        """Whether a row would be sent: W&B works and no earlier process has sent it."""
        return self._run is not None and images_seen > self._sent.get(kind, self._sent_before)

    def log(self, kind: str, images_seen: int, values: Mapping[str, Any], image: Path | None = None, panel: str = "") -> None:
        """Send one row of a kind, if it is wanted; a picture goes under the name of the kind, or of `panel`."""
        if not self.wants(kind, images_seen):
            return
        with self._guarded("W&B failed"):
            if image:
                import wandb

                values = {panel or kind: wandb.Image(str(image), caption=f"{images_seen / 1000:.1f} kimg"), **values}
            self._run.log({"images_seen": images_seen, **values})
        if self._run is not None:
            self._sent[kind] = images_seen
            with if_there_is_room():
                self._keep()

    def close(self) -> None:
        if self._run is not None:
            folder = Path(self._run.dir).parent
            with self._guarded(f"W&B has not got everything; to upload the rest: wandb sync --include-online {folder}"):
                self._run.finish()
        if self._failed:
            # What W&B would do at exit, where its errors end in a traceback.
            with suppress(Exception, SystemExit):
                import wandb

                wandb.teardown()
        self._run = None
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def _keep(self) -> None:
        write_atomically(self._path, json.dumps({"id": self.id, "sent": self._sent}, sort_keys=True).encode())

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        # W&B raises its own errors, protobuf's, socket's and plain ones; none of them is worth a training.
        try:
            yield
        except Exception as error:
            self._run = None
            self._failed = True
            self._let_go()
            self._say(f"{what} ({one_line(error)}); the files in the run folder have it all")


def read(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def held(run_dir: Path, patience: float) -> Lock:
    """The right to send. Raises `RuntimeError` where another process keeps it for longer than `patience`, in seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            return Lock(run_dir, LOCK)
        except Held as error:
            if time.monotonic() >= until:
                raise RuntimeError(f"{error.owner} is sending to it") from None
        time.sleep(0.2)


def wanted_mode(log: LogConfig) -> str:
    """`auto` also listens to WANDB_MODE, as people set it for a whole cluster."""
    mode = os.environ.get("WANDB_MODE", "auto") if log.wandb == "auto" else log.wandb
    return {"disabled": "off", "dryrun": "offline", "run": "online"}.get(mode, mode)


def key_exists(settings: Any) -> bool:
    """Whether W&B would find a key where it looks for one: environment, settings file, netrc. Asks no server."""
    if settings.api_key or settings.identity_token_file:
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        entry = netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
