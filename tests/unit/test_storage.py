"""A shard is opened whole and checked, from the folder it lies in or from a copy of what lies far away."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import fsspec
import numpy as np
import pytest
from small_shards import damage, make_shards, numbers, open_shards

from helpers.servers import halving
from scalegan.config import DataConfig
from scalegan.data import cache, storage
from scalegan.data.cache import NotGiven, Unreadable
from scalegan.data.index import Index, read_index
from scalegan.data.storage import Prefetcher, Storage
from scalegan.data.stream import StreamReader
from scalegan.errors import UserError


def config(tmp_path: Path, **fields: object) -> DataConfig:
    return DataConfig(cache=str(tmp_path / "cache"), **fields)  # type: ignore[arg-type]


def whole(shards: Storage, number: int) -> bytes:
    handle = shards.open(number)
    try:
        return os.pread(handle, 1 << 20, 0)
    finally:
        os.close(handle)


def copies(tmp_path: Path) -> Path:
    [folder] = (tmp_path / "cache").glob("scalegan-*")
    return folder


# --- local


def test_a_shard_is_read_where_it_lies(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    assert whole(Storage(index, config(tmp_path)), 1) == (tmp_path / "shards" / index.shards[1].name).read_bytes()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    (tmp_path / "shards" / index.shards[1].name).unlink()
    with pytest.raises(Unreadable, match=r"shard-000001.tar cannot be opened"):
        Storage(index, config(tmp_path)).open(1)


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    os.truncate(tmp_path / "shards" / index.shards[2].name, 1000)
    with pytest.raises(Unreadable, match=r"shard-000002.tar has 1000 bytes, the index says"):
        Storage(index, config(tmp_path)).open(2)


def test_one_changed_byte_is_noticed_and_no_handle_is_left_open(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    damage(tmp_path / "shards" / index.shards[0].name, 3000)
    with pytest.raises(Unreadable, match=r"shard-000000.tar does not match its checksum"):
        Storage(index, config(tmp_path)).open(0)
    assert open_shards() == 0


def test_the_bytes_are_checked_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_shards(tmp_path / "shards")
    checked = []
    true_digest = storage.digest
    monkeypatch.setattr(storage, "digest", lambda handle: checked.append(handle) or true_digest(handle))
    for _ in range(3):
        whole(Storage(index, config(tmp_path)), 0)
    assert len(checked) == 1
    damage(tmp_path / "shards" / index.shards[0].name, 3000)
    with pytest.raises(Unreadable):
        Storage(index, config(tmp_path)).open(0)
    assert [path.name for path in (tmp_path / "cache" / "checked").iterdir() if path.suffix != ".lock"] == [index.sha256]


def test_a_cache_that_cannot_be_written_only_costs_the_check(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert whole(Storage(index, config(tmp_path)), 0)


# --- remote


class Remote:
    """The shards in fsspec's memory, and what was fetched from there."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.fetched: list[str] = []
        self.faults: list[Exception] = []
        self.looks = 0
        """How often somebody has yet to look at the index in vain before the server is there again."""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr("scalegan.data.index.REMOTE_PROTOCOLS", ("memory",))
    monkeypatch.setattr(cache, "PAUSE", 0.0)
    make_shards(tmp_path / "shards")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.put(str(tmp_path / "shards"), "/far/shards", recursive=True)
    shutil.rmtree(tmp_path / "shards")
    found = Remote(read_index("memory://far/shards"))
    get_file, cat_file = type(system).get_file, type(system).cat_file

    def counted(self: object, source: str, target: str, **options: object) -> None:
        found.fetched.append(source.rsplit("/", 1)[1])
        if found.looks:
            raise ConnectionRefusedError("refused")
        if found.faults:
            raise found.faults.pop(0)
        get_file(self, source, target, **options)

    def looked_at(self: object, path: str, *arguments: object) -> bytes:
        if found.looks:
            found.looks -= path.endswith("index.json")
            raise ConnectionRefusedError("refused")
        return cat_file(self, path, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(system), "get_file", counted)
    monkeypatch.setattr(type(system), "cat_file", looked_at)
    return found


def test_a_remote_shard_is_fetched_once_and_checked(tmp_path: Path, remote: Remote) -> None:
    for _ in range(3):
        shards = Storage(remote.index, config(tmp_path))
        assert whole(shards, 3) == fsspec.filesystem("memory").cat("/far/shards/shard-000003.tar")
        assert shards.offsets(3).shape == (16, 3)
    assert remote.fetched == ["shard-000003.tar"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_broken_connection_is_tried_again(tmp_path: Path, remote: Remote) -> None:
    remote.faults = [ConnectionResetError("reset by peer"), TimeoutError(), RuntimeError("503 slow down")]
    assert whole(Storage(remote.index, config(tmp_path)), 0)
    assert len(remote.fetched) == 4


def test_what_a_server_does_not_give_while_it_gives_the_index_is_told_in_one_line(tmp_path: Path, remote: Remote) -> None:
    remote.faults = [RuntimeError("503 slow down\nand a page of HTML")] * 8
    with pytest.raises(Unreadable) as caught:
        Storage(remote.index, config(tmp_path)).open(0)
    assert str(caught.value) == (
        "memory://far/shards/shard-000000.tar cannot be fetched, 4 times tried: RuntimeError: 503 slow down"
    )


def test_a_server_that_is_back_when_the_index_is_asked_for_gives_the_shard_too(tmp_path: Path, remote: Remote) -> None:
    remote.faults = [RuntimeError("503 slow down")] * 4
    assert whole(Storage(remote.index, config(tmp_path)), 0)
    assert len(remote.fetched) == 5


@pytest.mark.parametrize("what", ["shard", "offsets"])
def test_while_a_server_gives_nothing_it_is_waited_for(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    shards = Storage(remote.index, config(tmp_path))
    remote.looks = 6
    assert whole(shards, 0) if what == "shard" else len(shards.offsets(0))
    assert remote.looks == 0
    assert len(remote.fetched) == (6 * 4 + 1 if what == "shard" else 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scalegan: waiting for memory://far/shards: memory://far/shards/shard-000000.")


def test_a_server_that_stays_away_ends_the_run_and_makes_nothing_unreadable(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "OUTAGE", 0.03)
    remote.looks = 10**9
    reader = StreamReader(remote.index, config(tmp_path, on_error="skip"))
    with pytest.raises(UserError, match=r"far/shards has given nothing for 0.0005 minutes \(.*refused.*\): when it"):
        reader.load(np.array([0]))
    assert not reader.broken


def test_copies_that_made_room_do_not_stay_on_the_disk_as_open_files(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    reader = StreamReader(remote.index, config(tmp_path, cache_gb=2.2 * size / 1e9))
    reader.load(np.arange(100))
    assert open_shards(" (deleted)") == 0
    assert open_shards() == 2
    assert sorted(remote.fetched) == [shard.name for shard in remote.index.shards]


def test_a_copy_that_made_room_is_kept_open_for_the_load_that_needs_it(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    reader = StreamReader(remote.index, config(tmp_path, cache_gb=2.2 * size / 1e9))
    reader.load(np.arange(80, 100))  # the last two shards
    assert reader.load(np.array([0, 20, 90, 99])).labels.tolist() == [0, 2, 0, 0]
    assert len(remote.fetched) == 4
    reader.load(np.array([40]))
    assert open_shards(" (deleted)") == 0


def test_keys_that_expired_are_no_fault_of_the_shards(tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "_serves", lambda self: not remote.faults)
    remote.faults = [PermissionError("403")] * 5
    assert whole(Storage(remote.index, config(tmp_path)), 0)


def test_a_remote_shard_with_other_bytes_never_gets_into_the_cache(tmp_path: Path, remote: Remote) -> None:
    system = fsspec.filesystem("memory")
    data = bytearray(system.cat("/far/shards/shard-000001.tar"))
    data[2000] ^= 1
    system.pipe("/far/shards/shard-000001.tar", bytes(data))
    with pytest.raises(Unreadable, match=r"shard-000001.tar cannot be fetched, 4 times tried: it does not match the checksum"):
        Storage(remote.index, config(tmp_path)).open(1)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".tar", ".part")]


def test_a_missing_remote_shard_is_named_at_once(tmp_path: Path, remote: Remote) -> None:
    fsspec.filesystem("memory").rm("/far/shards/shard-000001.tar")
    with pytest.raises(Unreadable, match=r"far/shards/shard-000001.tar is missing"):
        Storage(remote.index, config(tmp_path)).open(1)
    assert remote.fetched == ["shard-000001.tar"]


def test_a_copy_that_a_crash_cut_is_fetched_again(tmp_path: Path, remote: Remote) -> None:
    shards = Storage(remote.index, config(tmp_path))
    data = whole(shards, 0)
    os.truncate(copies(tmp_path) / "shard-000000.tar", 100)
    assert whole(shards, 0) == data


def test_the_cache_stays_within_its_bound_and_drops_what_was_used_longest_ago(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=3.2 * size / 1e9))
    for number in (0, 1, 2):
        whole(shards, number)
        os.utime(copies(tmp_path) / f"shard-00000{number}.tar", (number, number))
    whole(shards, 0)  # used just now: 1 is the oldest
    whole(shards, 3)
    held = {path.name for path in copies(tmp_path).glob("*.tar")}
    assert held == {"shard-000000.tar", "shard-000002.tar", "shard-000003.tar"}


def test_other_files_in_the_cache_folder_are_left_alone(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    mine = tmp_path / "cache" / "thesis.tar"
    mine.parent.mkdir()
    mine.write_bytes(bytes(10 * size))
    shards = Storage(remote.index, config(tmp_path, cache_gb=1.1 * size / 1e9))
    for number in range(4):
        whole(shards, number)
    assert mine.exists()
    assert len(list(copies(tmp_path).glob("*.tar"))) == 1


def test_an_open_shard_can_be_read_after_it_made_room(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=1.1 * size / 1e9))
    handle = shards.open(0)
    whole(shards, 1)
    assert len(os.pread(handle, 1 << 20, 0)) == remote.index.shards[0].bytes
    os.close(handle)


def test_a_cache_smaller_than_one_shard_is_refused(tmp_path: Path, remote: Remote) -> None:
    with pytest.raises(UserError, match=r"data.cache_gb 1e-06 is less than the shard memory://far/shards/shard-000000.tar"):
        Storage(remote.index, config(tmp_path, cache_gb=1e-6)).open(0)


def test_a_cache_may_have_no_limit(tmp_path: Path, remote: Remote) -> None:
    shards = Storage(remote.index, config(tmp_path, cache_gb=math.inf))
    assert len(whole(shards, 0)) == remote.index.shards[0].bytes


@pytest.mark.parametrize("size", [math.nan, -1.0])
def test_a_cache_whose_size_is_none_is_refused(size: float) -> None:
    with pytest.raises(UserError, match=r"data.cache_gb is"):
        DataConfig(cache_gb=size)


def test_what_a_killed_process_left_half_fetched_is_cleared_away(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=1.5 * size / 1e9))
    whole(shards, 0)
    left = copies(tmp_path) / f".shard-000005.tar.99-99.{size}.part"
    left.write_bytes(b"half")
    old = time.time() - 2 * cache.STALE
    os.utime(left, (old, old))
    whole(shards, 1)
    assert not left.exists()


DIE_AMID_A_DOWNLOAD = """
import os, signal, sys
from pathlib import Path
from scalegan.data import cache
def download(url, part, size, sha256):
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
cache.download = download
cache.Cache(Path(sys.argv[1]), 10**9).open("memory://far/x", sys.argv[2], int(sys.argv[3]), "")
"""


@pytest.mark.parametrize("wanted", [1, 5])
def test_what_a_process_that_was_just_killed_held_makes_room_at_once(tmp_path: Path, remote: Remote, wanted: int) -> None:
    """Also for the very shard that it fetched."""
    size = max(shard.bytes for shard in remote.index.shards)
    place = f"{remote.index.sha256[:16]}/shard-000005.tar"
    command = [sys.executable, "-c", DIE_AMID_A_DOWNLOAD, str(tmp_path / "cache"), place, str(size)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = copies(tmp_path).glob(".*.part")
    assert whole(Storage(remote.index, config(tmp_path, cache_gb=1.5 * size / 1e9)), wanted)
    assert not left.exists()


def test_what_is_being_fetched_makes_no_room(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=1.5 * size / 1e9))
    path = tmp_path / "cache" / f"{cache.PREFIX}{remote.index.sha256[:16]}" / "shard-000005.tar"
    part = path.with_name(f".{path.name}.{cache.OURS}99-99.{size}.part")
    other = threading.Thread(target=whole, args=(shards, 1))
    with cache.locked(path.with_name(f".{path.name}.lock")):
        part.write_bytes(b"half")
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it waits for room"
        assert part.exists()
    other.join(10)
    assert remote.fetched == ["shard-000001.tar"]
    assert not part.exists()


def test_locks_say_nothing_of_what_another_machine_fetches(tmp_path: Path, remote: Remote) -> None:
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=2.5 * size / 1e9))
    whole(shards, 0)
    part = copies(tmp_path) / f".shard-000005.tar.elsewhere-99-99.{size}.part"
    part.write_bytes(b"half")
    whole(shards, 1)
    assert part.exists()
    assert [path.name for path in copies(tmp_path).glob("*.tar")] == ["shard-000001.tar"]


def test_many_threads_fetch_a_shard_once(tmp_path: Path, remote: Remote) -> None:
    read: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: read.append(whole(Storage(remote.index, config(tmp_path)), 2))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert remote.fetched == ["shard-000002.tar"]
    assert read == [read[0]] * 6


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, remote: Remote) -> None:
    remote.faults = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(UserError, match=r"no space left for memory://far/shards/shard-000000.tar"):
        Storage(remote.index, config(tmp_path)).open(0)


def test_a_cache_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, remote: Remote) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"set another data.cache"):
        Storage(remote.index, config(tmp_path)).open(0)


def test_shards_are_fetched_ahead(tmp_path: Path, remote: Remote) -> None:
    shards = Storage(remote.index, config(tmp_path))
    prefetcher = Prefetcher(shards)
    prefetcher.want([4, 2])
    prefetcher.want([2, 4])  # under way already
    deadline = time.monotonic() + 10
    while len(list(tmp_path.rglob("shard-*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    prefetcher.close()
    assert sorted(remote.fetched) == ["shard-000002.tar", "shard-000004.tar"]


def test_what_is_wanted_no_more_when_its_turn_comes_is_not_fetched(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FETCHERS", 0)
    prefetcher = Prefetcher(Storage(remote.index, config(tmp_path)))
    prefetcher.want([4, 2])
    prefetcher.want([2, 1])
    prefetcher.waiting.put(-1)
    prefetcher._run()
    assert remote.fetched == ["shard-000002.tar", "shard-000001.tar"]


def test_a_thread_that_is_quick_does_not_take_what_is_wanted_for_unwanted(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FETCHERS", 0)
    prefetcher = Prefetcher(Storage(remote.index, config(tmp_path)))
    wanted = []
    monkeypatch.setattr(prefetcher, "waiting", SimpleNamespace(put=lambda shard: wanted.append(shard in prefetcher.asked)))
    prefetcher.want([4, 2])
    prefetcher.want([2, 1])
    assert wanted == [True] * 3


def test_what_is_fetched_ahead_makes_room_only_of_what_is_wanted_no_more(tmp_path: Path, remote: Remote) -> None:
    """A copy that waits for its turn has lain unused for longer than those that were read meanwhile."""
    size = max(shard.bytes for shard in remote.index.shards)
    shards = Storage(remote.index, config(tmp_path, cache_gb=2.2 * size / 1e9))
    for number in (0, 1):
        whole(shards, number)
        os.utime(copies(tmp_path) / f"shard-00000{number}.tar", (number + 1, number + 1))  # 0, the older, is wanted still
    prefetcher = Prefetcher(shards)
    prefetcher.asked = {0, 1}
    prefetcher.want([0, 2])
    deadline = time.monotonic() + 10
    while not list(tmp_path.rglob("shard-000002.tar")) and time.monotonic() < deadline:
        time.sleep(0.01)
    prefetcher.close()
    assert {path.name for path in copies(tmp_path).glob("*.tar")} == {"shard-000000.tar", "shard-000002.tar"}


@pytest.mark.parametrize(
    "root", ["http://a/b", "file:///a/b", "pipe:cat a://", "simplecache::s3://a/b", "memory://a", "ftp://a"]
)
def test_other_protocols_and_chains_are_refused_by_name(tmp_path: Path, root: str) -> None:
    index = make_shards(tmp_path / "shards")
    with pytest.raises(UserError, match=r"is not read"):
        Storage(Index(**{**vars(index), "root": root}), config(tmp_path))


def test_a_copy_that_gets_its_name_while_others_are_counted_is_counted(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = remote.index.shards[0].bytes
    data = config(tmp_path, cache_gb=2.2 * size / 1e9)
    whole(Storage(remote.index, data), 0)
    here, go = threading.Event(), threading.Event()
    download, last_use = cache.download, cache.last_use

    def slow_download(url: str, part: Path, size: int, sha256: str) -> None:
        download(url, part, size, sha256)
        here.set()
        assert go.wait(10)

    def look(path: Path) -> tuple[float, int, Path] | None:
        if path.suffix == ".part" and not go.is_set():
            go.set()
            time.sleep(0.3)  # time for the other thread to rename it, if it may
        return last_use(path)

    monkeypatch.setattr(cache, "download", slow_download)
    other = threading.Thread(target=whole, args=(Storage(remote.index, data), 1))
    other.start()
    assert here.wait(10)
    monkeypatch.setattr(cache, "download", download)
    monkeypatch.setattr(cache, "last_use", look)
    whole(Storage(remote.index, data), 2)
    other.join()
    assert len(list(copies(tmp_path).rglob("shard-*.tar"))) == 2


class Drip(BaseHTTPRequestHandler):
    """Sends ten pieces of the body with pauses between them, `silent` after the first, or for ever."""

    PIECE, PIECES, PAUSE = bytes(1000), 10, 0.1

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        endless = "endless" in self.path
        with contextlib.suppress(OSError):  # who asked has gone
            for number in count() if endless else range(self.PIECES):
                self.wfile.write(self.PIECE * (100 if endless else 1))
                if not endless:
                    time.sleep(3 if "silent" in self.path and number == 0 else self.PAUSE)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def drip(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(cache, "PAUSE", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


BODY = Drip.PIECE * Drip.PIECES


def test_a_download_may_take_longer_than_the_http_library_allows(
    tmp_path: Path, drip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    monkeypatch.setattr(cache, "TRIES", 1)
    cache.download(f"{drip}/slow", tmp_path / "part", len(BODY), hashlib.sha256(BODY).hexdigest())
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_server_that_falls_silent_is_given_up(tmp_path: Path, drip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SILENCE", 0.3)
    monkeypatch.setattr(cache, "TRIES", 2)
    began = time.monotonic()
    with pytest.raises(Unreadable, match=r"silent cannot be fetched, 2 times tried: .*[Tt]imeout"):
        cache.download(f"{drip}/silent", tmp_path / "part", len(BODY), "")
    assert time.monotonic() - began < 2.5


def test_a_connection_that_breaks_half_way_is_tried_again_and_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAUSE", 0.0)
    (tmp_path / "shard.tar").write_bytes(BODY)
    digest = hashlib.sha256(BODY).hexdigest()
    with halving(tmp_path, 3) as port:
        cache.download(f"http://127.0.0.1:{port}/shard.tar", tmp_path / "part", len(BODY), digest)
    assert (tmp_path / "part").read_bytes() == BODY
    with halving(tmp_path) as port, pytest.raises(NotGiven, match=r"shard.tar cannot be fetched, 4 times tried: .*Payload"):
        cache.download(f"http://127.0.0.1:{port}/shard.tar", tmp_path / "part", len(BODY), digest)


def test_no_more_than_the_index_says_is_written(tmp_path: Path, drip: str) -> None:
    with pytest.raises(Unreadable, match=r"endless cannot be fetched, 4 times tried: there is more of it than the 10000 bytes"):
        cache.download(f"{drip}/endless", tmp_path / "part", len(BODY), "")
    assert (tmp_path / "part").stat().st_size < 2_000_000


def test_an_index_that_comes_at_a_later_try_is_read(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    system = type(fsspec.filesystem("memory"))
    faults: list[Exception] = [ConnectionResetError("reset by peer"), TimeoutError(), RuntimeError("500")]
    cat_file = system.cat_file

    def faulty(self: object, *arguments: object) -> bytes:
        if faults:
            raise faults.pop(0)
        return cat_file(self, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(system, "cat_file", faulty)
    assert read_index(remote.index.root) == remote.index
    faults += [RuntimeError("500")] * cache.TRIES
    with pytest.raises(UserError, match=r"index.json cannot be read: RuntimeError: 500"):
        read_index(remote.index.root)
    assert not faults
    faults += [PermissionError("403")]
    with pytest.raises(UserError, match=r"index.json cannot be read: PermissionError: 403"):
        read_index(remote.index.root)


READ_OVER_HTTPS = """
import sys
from scalegan.config import DataConfig
from scalegan.data.cache import Unreadable
from scalegan.data.index import read_index
from scalegan.data.storage import Storage
from scalegan.errors import UserError
try:
    index = read_index(sys.argv[1])
    shards = Storage(index, DataConfig(cache=sys.argv[2]))
    shards.open(1)
    print(index.sha256, shards.offsets(1).sum())
    shards.open(2)
except (UserError, Unreadable) as error:
    print(error)
"""


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of the folder `shards`, and the certificate that vouches for it."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *name, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(tmp_path / "shards")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()


def read_over_https(url: str, tmp_path: Path, **environment: str) -> list[str]:
    """In a process of its own, as the HTTP library reads `SSL_CERT_FILE` when it is imported."""
    command = [sys.executable, "-c", READ_OVER_HTTPS, url, str(tmp_path / "cache")]
    ended = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    return ended.stdout.splitlines()


def test_shards_come_over_https(tmp_path: Path, https: tuple[str, Path]) -> None:
    url, certificate = https
    local = make_shards(tmp_path / "shards")
    offsets = Storage(local, config(tmp_path)).offsets(1)
    (tmp_path / "shards" / local.shards[2].name).unlink()
    first, last = read_over_https(url, tmp_path, SSL_CERT_FILE=str(certificate))
    assert first == f"{local.sha256} {offsets.sum()}"
    assert "shard-000002.tar is missing" in last
    (copy,) = copies(tmp_path).rglob("shard-000001.tar")
    assert copy.read_bytes() == (tmp_path / "shards" / local.shards[1].name).read_bytes()


def test_an_index_that_is_not_there_and_one_that_cannot_be_had_are_told_apart(tmp_path: Path, https: tuple[str, Path]) -> None:
    url, certificate = https
    (tmp_path / "shards").mkdir()
    (told,) = read_over_https(url, tmp_path, SSL_CERT_FILE=str(certificate))
    assert "index.json is missing" in told
    (told,) = read_over_https(url, tmp_path, SSL_CERT_FILE=os.devnull)
    assert "index.json cannot be read: ClientConnectorCertificateError" in told


def test_a_copy_that_another_machine_has_dropped_is_fetched_again(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache on NFS, where what one machine deletes can no longer be read by those that have it open."""
    reader = StreamReader(remote.index, config(tmp_path))
    reader.load(np.array([0]))
    stale, pread = list(reader.handles.values()), os.pread

    def once_stale(handle: int, length: int, offset: int) -> bytes:
        if handle in stale:
            stale.remove(handle)
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(handle, length, offset)

    for copy in (tmp_path / "cache").rglob("*.tar"):
        copy.unlink()
    monkeypatch.setattr(os, "pread", once_stale)
    assert numbers(reader.load(np.array([0])).images).tolist() == [0]
    assert remote.fetched == ["shard-000000.tar"] * 2
