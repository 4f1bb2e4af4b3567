"""Checkpoints written beside the training: old ones go when the new one is whole, and not before."""

import errno
import shutil
import weakref
from contextlib import contextmanager

import pytest
import torch
from test_checkpoint import STATE, damage, holds, names, tensors
from torch import Tensor

from scalegan import checkpoint
from scalegan.background import Saver


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def save(saver: Saver, images_seen: int) -> str | None:
    saver.start(images_seen, tensors(images_seen), STATE, [])
    return saver.wait()


def test_the_newest_are_kept(tmp_path):
    saver = Saver(tmp_path, 2)
    assert [save(saver, images_seen) for images_seen in (100, 200, 300)] == [None] * 3
    assert saver.whole
    assert names(tmp_path) == ["000000200", "000000300"]


def test_one_that_reads_back_damaged_costs_none_of_the_old_ones_and_takes_no_place(tmp_path, monkeypatch):
    saver, write = Saver(tmp_path, 2), checkpoint.write
    for images_seen in (100, 200):
        save(saver, images_seen)

    def on_a_bad_disk(*arguments):
        path = write(*arguments)
        damage(path / "critic.safetensors")
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", on_a_bad_disk)
        problem = save(saver, 300)
    assert problem is not None
    assert problem.startswith("checkpoint at 300 images was NOT saved: ")
    assert "critic.safetensors is damaged" in problem
    assert not saver.whole
    assert names(tmp_path) == ["000000100", "000000200"]
    assert save(saver, 400) is None
    assert saver.whole
    assert names(tmp_path) == ["000000200", "000000400"]


def test_one_is_saved_though_an_old_one_cannot_be_deleted(tmp_path, monkeypatch):
    saver, delete = Saver(tmp_path, 1), shutil.rmtree
    save(saver, 100)

    def rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        delete(path, ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        problem = save(saver, 200)
    assert problem is not None
    assert problem.startswith("an old checkpoint could not be deleted, and takes up room until the next is saved: ")
    assert saver.whole
    assert holds(checkpoint.checkpoints(tmp_path) / "000000200", 200)
    assert save(saver, 300) is None
    assert names(tmp_path) == ["000000300"]


def test_on_a_gpu_copies_leave_by_a_stream_of_their_own_when_they_are_made(tmp_path, monkeypatch):
    """On the training's stream, each step that was queued meanwhile would wait until they are in host memory."""
    done = []

    def noted(name, plain):
        def call(self):
            done.append(name)
            return plain(self)

        return call

    class Event:
        device = "cuda:1"

        def wait(self):
            done.append("wait for them")

    class Training:
        def record_event(self):
            done.append("all made")
            return Event()

    @contextmanager
    def stream(other):
        done.append(f"on {other}")
        yield
        done.append("back")

    for name in ("clone", "cpu"):
        monkeypatch.setattr(Tensor, name, noted(name, getattr(Tensor, name)))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Training)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    saver, given = Saver(tmp_path, 2), tensors(1)
    saver.start(100, given, STATE, [])
    assert saver.wait() is None
    count = sum(map(len, given.values()))
    expected = ["clone"] * count + ["all made", "on a stream of cuda:1", "wait for them"] + ["cpu"] * count + ["back"]
    assert done[: len(expected)] == expected
    assert holds(checkpoint.checkpoints(tmp_path) / "000000100", 1)


def test_copies_on_a_gpu_are_let_go_of_before_the_file_is_written(tmp_path, monkeypatch):
    """Their memory is what the next steps may need, and a slow disk takes minutes."""
    left, write = [], checkpoint.write

    def cpu(copy):
        left.append(weakref.ref(copy))
        return copy.clone()  # on a CPU it would be the same tensor

    def looking(*arguments):
        assert [copy() for copy in left] == [None] * sum(map(len, tensors(100).values()))
        return write(*arguments)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(checkpoint, "write", looking)
    saver = Saver(tmp_path, 2)
    assert save(saver, 100) is None
    assert saver.whole
