"""The batches of a training are a function of the images seen: nothing about them is saved, and nothing needs to be."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shards import HEIGHT, WIDTH, damage, encode, label, make_shards, numbers, picture
from test_stream import with_bad_images

from scalegan.config import Config, DataConfig, TrainConfig
from scalegan.data import loader
from scalegan.data.index import Index, read_index
from scalegan.data.loader import Batch, Batches, Reader, StreamBatches, batches, windows_at_hand
from scalegan.data.storage import Prefetcher
from scalegan.data.tolerance import BEFORE, Tolerance
from scalegan.data.workers import AHEAD, Decoded, Task, Workers
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError
from scalegan.pixels import normalise

CPU = torch.device("cpu")
READERS = [("resident", 0), ("stream", 0), ("stream", 1), ("stream", 2)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", samples=130, shard_samples=16)


def config(index: Index, *, batch: int = 12, accumulate: int = 1, seed: int = 0, **data: object) -> Config:
    fields = {
        "path": index.root,
        "cache": f"{index.root}-cache",
        "streams": 4,
        "window": 20,
        "reader": "stream",
        "workers": 0,
    } | data
    return Config(data=DataConfig(**fields), train=TrainConfig(batch=batch, accumulate=accumulate, seed=seed))  # type: ignore[arg-type]


@contextmanager
def opened(index: Index, config: Config, images_seen: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batches]:
    found = batches(index, config, images_seen, rank, processes, CPU)
    try:
        yield found
    finally:
        found.close()


def read(index: Index, config: Config, count: int, images_seen: int = 0, rank: int = 0, processes: int = 1) -> list[Batch]:
    with opened(index, config, images_seen, rank, processes) as found:
        return list(islice(found, count))


def samples(batch: Batch) -> list[int]:
    """Which samples a batch holds; checks on the way that each has its own pixels and its own label."""
    images = batch.images.permute(0, 2, 3, 1).numpy()
    found = numbers(images).tolist()
    assert all(np.array_equal(image, picture(n)) for image, n in zip(images, found, strict=True))
    assert batch.labels.tolist() == [label(n) for n in found]
    return found


def flat(found: list[Batch]) -> list[int]:
    return [n for batch in found for n in samples(batch)]


# --- which images


def test_a_batch_has_images_and_their_labels(index: Index) -> None:
    [batch] = read(index, config(index), 1)
    assert batch.images.shape == (12, 3, HEIGHT, WIDTH)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert len(set(samples(batch))) == 12


def test_each_image_comes_once_an_epoch(index: Index) -> None:
    assert sorted(flat(read(index, config(index, batch=13), 10))) == list(range(130))


@pytest.mark.parametrize("order", ["full", "blocks"])
def test_memory_disk_and_any_number_of_workers_give_the_same_batches(index: Index, order: str) -> None:
    found = [flat(read(index, config(index, order=order, reader=kind, workers=n), 25, 24)) for kind, n in READERS]
    assert all(other == found[0] for other in found)
    assert len(set(found[0])) > 100


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_resumed_run_gets_the_batches_that_the_first_would_have_got(index: Index, data: st.DataObject) -> None:
    order = data.draw(st.sampled_from(["full", "blocks"]))
    done = data.draw(st.integers(0, 30))
    one = config(index, order=order, seed=data.draw(st.integers(0, 9)))
    whole = read(index, one, done + 3)
    assert flat(read(index, one, 3, images_seen=12 * done)) == flat(whole[done:])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_number_of_processes_and_rounds_share_out_the_same_global_batches(index: Index, data: st.DataObject) -> None:
    order = data.draw(st.sampled_from(["full", "blocks"]))
    processes = data.draw(st.sampled_from([1, 2, 4]))
    rounds = data.draw(st.sampled_from([1, 3]))
    seen = 12 * data.draw(st.integers(0, 40))
    whole = flat(read(index, config(index, order=order), 2, seen))
    one = config(index, order=order, accumulate=rounds)
    parts = [read(index, one, 2 * rounds, seen, rank, processes) for rank in range(processes)]
    assert all(len(batch.images) == 12 // processes // rounds for part in parts for batch in part)
    steps = [flat([batch for part in parts for batch in part[k * rounds : (k + 1) * rounds]]) for k in range(2)]
    assert [n for step in steps for n in step] == whole


def test_more_processes_than_shards(index: Index, tmp_path: Path) -> None:
    few = make_shards(tmp_path / "shards", samples=60, shard_samples=40)
    for order in ("full", "blocks"):
        one = config(few, order=order, streams=12)
        parts = [flat(read(few, one, 5, 0, rank, 6)) for rank in range(6)]
        assert sorted(n for part in parts for n in part) == list(range(60))


def test_seeds_give_other_batches(index: Index) -> None:
    assert flat(read(index, config(index, seed=1), 2)) != flat(read(index, config(index, seed=2), 2))


def test_no_global_random_generator_is_touched(index: Index) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    read(index, config(index, workers=1), 3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002


# --- what comes out


def test_normalise_maps_bytes_to_minus_one_to_one_and_keeps_the_memory_format() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 8, 8, 4).permute(0, 3, 1, 2)
    values = normalise(images)
    assert values.dtype == torch.float32
    assert values.min() == -1
    assert values.max() == 1
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(((values + 1) * 127.5).round().to(torch.uint8), images)


def test_single_images_by_number(index: Index) -> None:
    with_reader = Reader(index, config(index).data, CPU)
    assert samples(with_reader.read(np.array([129, 0, 5, 5]))) == [129, 0, 5, 5]
    with_reader.close()


def test_small_data_stays_in_memory_by_itself(index: Index) -> None:
    kinds = [type(batches(index, config(index, reader="auto", memory_gb=gb), 0, 0, 1, CPU)).__name__ for gb in (1.0, 1e-9)]
    assert kinds == ["ResidentBatches", "StreamBatches"]


# --- bad input


def test_resident_images_that_do_not_fit(index: Index) -> None:
    with pytest.raises(UserError, match=r"data.memory_gb allows 1e-09: raise it, or read them from disk"):
        batches(index, config(index, reader="resident", memory_gb=1e-9), 0, 0, 1, CPU)


@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("stream", 0), ("stream", 2)])
def test_a_bad_image_ends_the_run_in_one_line(tmp_path: Path, kind: str, workers: int) -> None:
    index = with_bad_images(tmp_path / "shards", {20: b"nothing"})
    with pytest.raises(UserError) as caught:
        read(index, config(index, batch=10, reader=kind, workers=workers), 4)
    assert str(caught.value).startswith(f"image 000000020.png of shard {tmp_path}/shards/shard-000001.tar is no JPEG")
    assert "\n" not in str(caught.value)


def test_shards_sorted_by_class_are_told_of(tmp_path: Path, index: Index) -> None:
    images = (Sample(encode(picture(n)), "png", n // 40) for n in range(120))
    by_class = write_shards(
        images, tmp_path / "shards", height=HEIGHT, width=WIDTH, channels=3, classes=("a", "b", "c"), shard_samples=10
    )
    with pytest.warns(UserWarning, match=r"sorted by class: data.window 20 mixes about 2 of them"):
        batches(by_class, config(by_class, order="blocks"), 0, 0, 1, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(index, config(index, order="blocks"), 0, 0, 1, CPU)
        batches(by_class, config(by_class, order="full"), 0, 0, 1, CPU)


# --- leaving images out


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("order", ["full", "blocks"])
def test_skipped_images_are_replaced_alike_by_all_readers_and_any_number_of_processes(tmp_path: Path, order: str) -> None:
    index = with_bad_images(tmp_path / "shards", dict.fromkeys((3, 4, 5, 20, 21, 39), b"nothing"))
    fields = {"order": order, "on_error": "skip", "skip_budget": 0.2}
    found = [flat(read(index, config(index, reader=kind, workers=n, **fields), 10)) for kind, n in READERS]
    assert all(other == found[0] for other in found)
    assert not set(found[0]) & {3, 4, 5, 20, 21, 39}
    parts = [read(index, config(index, **fields), 10, rank=rank, processes=4) for rank in range(4)]
    assert [n for step in range(10) for part in parts for n in samples(part[step])] == found[0]


@pytest.mark.filterwarnings("ignore:left out")
def test_only_the_slots_of_unreadable_images_change(tmp_path: Path) -> None:
    good = make_shards(tmp_path / "good", samples=40)
    bad = with_bad_images(tmp_path / "bad", {7: b"nothing", 8: b"nothing"})
    one = flat(read(good, config(good), 20))
    two = flat(read(bad, config(bad, on_error="skip", skip_budget=0.1), 20))
    assert [n for n in one if n not in (7, 8)] == [two[i] for i, n in enumerate(one) if n not in (7, 8)]
    assert sum(a != b for a, b in zip(one, two, strict=True)) == one.count(7) + one.count(8)


@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("stream", 0), ("stream", 2)])
def test_each_skipped_image_is_told_once_and_counted_once(tmp_path: Path, kind: str, workers: int) -> None:
    index = with_bad_images(tmp_path / "shards", {7: b"nothing"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with opened(index, config(index, reader=kind, workers=workers, on_error="skip", skip_budget=0.05)) as found:
            list(islice(found, 20))
            assert len(found.tolerance.unreadable) == 1
    assert [str(line.message).split(" of shard")[0] for line in told] == ["left out: image 000000007.png"]


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("stream", 0), ("stream", 2)])
def test_more_than_the_budget_ends_the_run(tmp_path: Path, kind: str, workers: int) -> None:
    index = with_bad_images(tmp_path / "shards", dict.fromkeys((3, 4, 5), b"nothing"))
    told = (
        r"3 of 40 images cannot be read, more than data.skip_budget 0.05 allows; the last.*, or go on with a larger --data.ski"
    )
    with pytest.raises(UserError, match=told):
        read(index, config(index, reader=kind, workers=workers, on_error="skip", skip_budget=0.05), 20)


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_what_was_left_out_before_a_restart_counts(tmp_path: Path, kind: str) -> None:
    index = with_bad_images(tmp_path / "shards", dict.fromkeys((3, 4, 5), b"nothing"))
    given = config(index, reader=kind, on_error="skip", skip_budget=0.1)
    with opened(index, given) as found, pytest.raises(UserError, match=r"5 of 40 images.*; the last: image 00000000[34].png"):
        go_on(found, [5, 9, 10])


def go_on(found: Batches, left_out: list[int]) -> None:
    found.tolerance.restore(left_out)  # the resident reader has met the others already
    list(islice(found, 20))


def test_the_last_image_told_is_one_of_this_start(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", samples=40)
    tolerance = Tolerance(index, config(index, on_error="skip", skip_budget=0.05).data)
    tolerance.restore([1, 2])
    told = [[(1, BEFORE), (2, BEFORE), (7, "seven")], [(1, BEFORE), (2, BEFORE)]]
    with pytest.raises(UserError, match=r"3 of 40 images.*the last: seven"):
        tolerance.share(told)


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_a_whole_bad_shard_within_the_budget(tmp_path: Path, kind: str) -> None:
    index = make_shards(tmp_path / "shards")
    damage(tmp_path / "shards" / index.shards[1].name, 9000)
    found = flat(read(index, config(index, reader=kind, on_error="skip", skip_budget=0.2), 30))
    assert set(found) == set(range(100)) - set(range(16, 32))


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("stream", 0), ("stream", 2)])
def test_a_shard_that_one_process_has_lost_is_left_out_by_all(tmp_path: Path, kind: str, workers: int) -> None:
    """Two machines with copies of their own, one of them damaged: from when they tell each other on they read the same."""
    good, bad = (make_shards(tmp_path / name) for name in ("good", "bad"))
    damage(tmp_path / "bad" / bad.shards[1].name, 9000)
    fields = {"reader": kind, "workers": workers, "on_error": "skip", "skip_budget": 0.2}
    ahead = 0 if kind == "resident" else 20  # what is kept in memory is shared before the first step
    with opened(bad, config(bad, **fields), 0, 0, 2) as one, opened(good, config(good, **fields), 0, 1, 2) as other:
        assert kind != "stream" or set(flat(list(islice(other, ahead)))) & set(range(16, 32))
        list(islice(one, ahead))
        shared = [[list(each.tolerance.unreadable.items()) for each in (one, other)]]
        shared += [[list(each.tolerance.lost.items()) for each in (one, other)]]
        for each in (one, other):
            each.tolerance.share(*shared)
        list(islice(other, AHEAD * workers))
        found = flat(list(islice(other, 30)))
    assert found == flat(read(bad, config(bad, **fields), ahead + AHEAD * workers + 30, 0, 1, 2)[-30:])


@pytest.mark.filterwarnings("ignore:left out")
def test_a_stream_without_a_readable_image_ends_the_run(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", samples=40, shard_samples=20)
    damage(tmp_path / "shards" / index.shards[1].name, 9000)
    one = config(index, order="blocks", streams=12, on_error="skip", skip_budget=1.0)
    for kind in ("resident", "stream"):
        with pytest.raises(
            UserError, match=r"no image can be found in place of one that cannot be read, 64 were tried: .*000001"
        ):
            read(index, config(index, order="blocks", streams=12, reader=kind, on_error="skip", skip_budget=1.0), 20)
    assert one.data.streams == 12


@pytest.mark.filterwarnings("ignore:left out")
def test_single_images_are_replaced_by_the_next_that_can_be_read(tmp_path: Path) -> None:
    index = with_bad_images(tmp_path / "shards", dict.fromkeys((7, 8, 39), b"nothing"))
    reader = Reader(index, config(index, on_error="skip", skip_budget=0.1).data, CPU)
    assert samples(reader.read(np.array([6, 7, 8, 39]))) == [6, 9, 9, 0]


@pytest.mark.filterwarnings("ignore:left out")
def test_single_images_end_where_none_can_be_read(tmp_path: Path) -> None:
    """Instead of looking for one in circles: a budget of 1 lets all others be unreadable."""
    index = with_bad_images(tmp_path / "shards", dict.fromkeys(range(40), b"nothing"))
    reader = Reader(index, config(index, on_error="skip", skip_budget=1.0).data, CPU)
    with pytest.raises(UserError, match="none of the 40 images can be read; the last: image 0000000"):
        reader.read(np.array([6, 7]))


# --- remote


@pytest.fixture
def here_and_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, Index]:
    """Shards on this machine, and the same far away: in fsspec's memory."""
    import fsspec

    monkeypatch.setattr("scalegan.data.index.REMOTE_PROTOCOLS", ("memory",))
    local = make_shards(tmp_path / "shards")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.put(local.root, "/far/loader", recursive=True)
    return local, read_index("memory://far/loader")


def test_remote_shards_by_both_orders(tmp_path: Path, here_and_far: tuple[Index, Index]) -> None:
    local, far = here_and_far
    size = max(shard.bytes for shard in far.shards) / 1e9
    cache = {"cache": str(tmp_path / "cache")}
    for order in ("full", "blocks"):
        assert flat(read(far, config(far, order=order, **cache), 25)) == flat(read(local, config(local, order=order), 25))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"data.order full needs .* GB of shards at hand and data.cache_gb is .*--data.order blocks"
    ):
        read(far, config(far, cache_gb=4 * size, **cache), 1)
    with pytest.raises(UserError, match=r"data.order blocks needs .* GB of shards at hand"):
        read(far, config(far, order="blocks", cache_gb=4 * size, **cache), 1)
    narrow = config(far, order="blocks", streams=1, window=10, cache_gb=4.5 * size, **cache)
    assert len(set(flat(read(far, narrow, 8)))) == 96
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar")) <= 4.5e9 * size


def test_what_is_at_hand_is_that_of_the_oldest_batch_under_way(
    tmp_path: Path, here_and_far: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are made long before they are read: shards of theirs are not to take the room of those that are read now."""

    class Eager:
        """Workers that are behind by as many tasks as there can be."""

        def __init__(self, decoder: object, tasks: Iterator[Task], *_: object, **__: object) -> None:
            self.decoder, self.tasks = decoder, [next(tasks) for _ in range(30)]

        def __iter__(self) -> Iterator[Decoded]:
            return map(self.decoder.decode, self.tasks)  # type: ignore[attr-defined]

        def close(self) -> None: ...

    _, far = here_and_far
    wanted: list[list[int]] = []
    monkeypatch.setattr(loader, "Workers", Eager)
    monkeypatch.setattr(Prefetcher, "want", lambda self, shards: wanted.append(shards))
    narrow = config(far, order="blocks", streams=1, window=10, cache=str(tmp_path / "cache"), workers=2)
    found = batches(far, narrow, 0, 0, 1, CPU)
    with closing(found):
        for _ in range(20):
            next(found)
    batch, rounds = narrow.train.batch, narrow.train.accumulate
    assert wanted == [windows_at_hand(found.plan, number // rounds * batch) for number in range(21)]
    assert len(set(map(tuple, wanted))) > 3


# --- worker processes


def loader_processes(before: set[object]) -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process not in before and process.pid]


def run_script(index: Index, lines: str) -> subprocess.Popen[str]:
    """A process, in a group of its own, that has read the first of its batches."""
    script = (
        "from test_loader import *\n"
        "if __name__ == '__main__':\n"
        f"    index = read_index({index.root!r})\n"
        "    found = batches(index, config(index, workers=2), 0, 0, 1, CPU)\n"
        "    next(found)\n"
    )
    script += "".join(f"    {line}\n" for line in lines.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        start_new_session=True,
    )


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_a_batch_is_taken_before_its_place_is_written_again(
    index: Index, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far ahead the workers get while one is taken, and after it: each place has been used some four times here."""
    copy = Workers._copy

    def late(self: Workers, values: object) -> torch.Tensor:
        time.sleep(0.03)
        return copy(self, values)  # type: ignore[arg-type]

    monkeypatch.setattr(Workers, "_copy", late)
    wanted = flat(read(index, config(index), 40))
    assert flat(read(index, config(index, workers=2, start_method=start_method), 40)) == wanted


def test_signals_for_the_training_do_not_end_its_workers(index: Index) -> None:
    """As Slurm does, to every process of the step: workers, their server, and what multiprocessing starts beside it."""
    script = run_script(
        index,
        """caught = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: caught.append(number))
    os.killpg(0, number)
time.sleep(0.2)
assert len(caught) == 3
assert len(list(islice(found, 40))) == 40
found.close()
print('fine')
""",
    )
    output, errors = script.communicate(timeout=60)
    assert errors == ""
    assert (output, script.returncode) == ("fine\n", 0)


def test_a_signal_while_the_workers_start_reaches_this_process(index: Index) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
    try:
        script = f"for i in $(seq 50); do kill -USR1 {os.getpid()}; sleep 0.01; done"
        sender = subprocess.Popen(["sh", "-c", script])
        with opened(index, config(index, workers=2)) as found:
            assert len(list(islice(found, 5))) == 5
        sender.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught


def test_a_folder_for_temporary_files_that_is_too_deep_for_the_sockets_of_workers_is_told(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    _, errors = run_script(index, "").communicate(timeout=60)
    assert f"UserError: loader processes cannot be started under {deep} (AF_UNIX path too long): " in errors
    assert errors.endswith("set TMPDIR to a shorter path, or read without them, --data.workers 0\n")


def test_closing_leaves_no_process(index: Index) -> None:
    before = set(multiprocessing.active_children())
    with opened(index, config(index, workers=2)) as found:
        next(found)
        pids = loader_processes(before)
    assert not loader_processes(before)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.faults
def test_a_killed_worker_ends_the_run_in_one_line(index: Index) -> None:
    before = set(multiprocessing.active_children())
    with opened(index, config(index, workers=2)) as found:
        next(found)
        for pid in loader_processes(before):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            UserError, match=r"a loader process .pid \d+. ended: it was killed, or ran out of memory.*--data.workers 0"
        ):
            list(islice(found, 40))


@pytest.mark.faults
def test_workers_do_not_outlive_a_killed_training(index: Index) -> None:
    process = run_script(index, "print(*loader_processes(set()), flush=True)\ntime.sleep(60)")
    assert process.stdout
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("stream", 0), ("stream", 2)])
def test_a_gpu_gets_the_same_batches(index: Index, kind: str, workers: int) -> None:
    one = config(index, reader=kind, workers=workers)
    found = batches(index, one, 24, 0, 1, torch.device("cuda"))
    on_gpu = list(islice(found, 20))
    found.close()
    assert all(batch.images.is_cuda and batch.labels.is_cuda for batch in on_gpu)
    assert flat([Batch(batch.images.cpu(), batch.labels.cpu()) for batch in on_gpu]) == flat(read(index, one, 20, 24))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_wait_in_pinned_memory(index: Index) -> None:
    found = batches(index, config(index, workers=1), 0, 0, 1, torch.device("cuda"))
    assert isinstance(found, StreamBatches)
    decoded = next(found.iterator)
    found.close()
    assert decoded.images.is_pinned()
    assert decoded.labels.is_pinned()
