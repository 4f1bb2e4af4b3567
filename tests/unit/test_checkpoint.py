"""Checkpoints: there whole or not at all, and what comes back is what went in, to the bit."""

import errno
import itertools
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scalegan import checkpoint
from scalegan.checkpoint import latest, list_valid, optimizer_tensors, prune, read, restore_optimizer, save
from scalegan.errors import UserError
from scalegan.models import place

STATE = {"best": {"metric": "fd_lite0", "value": 61.5, "images_seen": 100}, "wandb_id": None}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tensors(seed: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "generator": {"weight": torch.randn(4, 3, generator=generator), "count": torch.tensor(seed)},
        "critic": {"weight": torch.randn(5, generator=generator)},
    }


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def holds(path: Path, seed: int) -> bool:
    """Whether a checkpoint is just what was saved with this seed."""
    found = read(path)
    expected = tensors(seed)
    return all(same(found.tensors(part)[name], value) for part in expected for name, value in expected[part].items())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in checkpoint.checkpoints(run_dir).iterdir())


# --- writing and reading


def test_what_is_saved_comes_back(tmp_path):
    path = save(tmp_path, 100, tensors(1), STATE)
    found, complaints = latest(tmp_path)
    assert found is not None
    assert (found.path, found.images_seen, found.state, complaints) == (path, 100, STATE, [])
    assert holds(path, 1)


def test_no_checkpoint_is_no_complaint(tmp_path):
    assert latest(tmp_path) == (None, [])


def test_the_newest_counts_by_images_not_by_time(tmp_path):
    for images_seen in (900, 1000, 100):
        save(tmp_path, images_seen, tensors(1), STATE)
    assert [c.images_seen for c in list_valid(tmp_path)] == [1000, 900, 100]


def test_any_layout_of_memory_comes_back_with_its_values(tmp_path):
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    view = torch.arange(12.0).view(3, 4)[:, 1:3]
    found = read(save(tmp_path, 1, {"part": {"weight": weight, "view": view}}, {})).tensors("part")
    assert same(found["weight"], weight)
    assert same(found["view"], view)


def test_nothing_is_pickled(tmp_path):
    path = save(tmp_path, 1, tensors(1), STATE)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    json.loads((path / "manifest.json").read_text())


# --- damage


@pytest.mark.parametrize("file", ["generator.safetensors", "critic.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(tmp_path, file, how):
    save(tmp_path, 100, tensors(1), STATE)
    path = save(tmp_path, 200, tensors(2), STATE) / file
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif file == "manifest.json":
        path.write_bytes(content.replace(b'"', b"'", 3))
    else:
        damage(path)
    found, complaints = latest(tmp_path)
    assert found is not None
    assert holds(found.path, 1)
    assert len(complaints) == 1
    assert file in complaints[0]
    assert "000000200" in complaints[0]
    assert [c.images_seen for c in list_valid(tmp_path)] == [100]


def test_no_byte_of_a_manifest_can_change_unnoticed(tmp_path):
    """Numbers that a resume goes by stand in it: images seen, what was made last, the best."""
    state = STATE | {"done": {"samples": 96, "checkpoint": 128}, "scaler": {"scale": 65536.0, "_growth_tracker": 3}}
    save(tmp_path, 100, tensors(1), state)
    path = save(tmp_path, 128, tensors(2), state)
    before = read(path)
    content = (path / "manifest.json").read_bytes()
    noticed = 0
    for byte, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[byte] ^= 1 << bit
        (path / "manifest.json").write_bytes(changed)
        found, complaints = latest(tmp_path)
        assert found is not None
        if complaints:
            noticed += 1
            assert "manifest.json is damaged" in complaints[0]
        else:
            assert found == before, f"byte {byte}, bit {bit}"
    assert noticed > 7 * len(content)
    (path / "manifest.json").write_bytes(content.replace(b'"images_seen": 128', b'"images_seen": 129'))
    found, complaints = latest(tmp_path)
    assert found is not None
    assert (found.images_seen, len(complaints)) == (100, 1)
    assert "does not match its own checksum" in complaints[0]


def test_a_checkpoint_under_the_number_of_another_is_not_taken(tmp_path):
    save(tmp_path, 100, tensors(1), STATE)
    path = save(tmp_path, 200, tensors(2), STATE)
    path.rename(path.with_name("000000300"))
    found, complaints = latest(tmp_path)
    assert found is not None
    assert found.images_seen == 100
    assert "000000300/manifest.json is damaged: it tells 200 images, and its folder 300" in complaints[0]
    assert [c.images_seen for c in list_valid(tmp_path)] == [100]


def test_a_manifest_of_before_it_had_a_checksum_is_taken(tmp_path):
    path = save(tmp_path, 100, tensors(1), STATE)
    content = json.loads((path / "manifest.json").read_text())
    del content["sha256"]
    (path / "manifest.json").write_text(json.dumps(content, indent=1))
    found, complaints = latest(tmp_path)
    assert found is not None
    assert (found.state, complaints) == (STATE, [])
    assert holds(path, 1)


def test_what_json_changes_is_no_damage(tmp_path):
    path = save(tmp_path, 1, tensors(1), {"shape": (3, 16, 16), "by number": {2: "b", 10: "a"}, "value": float("nan")})
    assert read(path).state["by number"] == {"2": "b", "10": "a"}


def test_tensors_of_a_damaged_file_are_never_given(tmp_path):
    path = save(tmp_path, 100, tensors(1), STATE)
    damage(path / "critic.safetensors")
    read(path).tensors("generator")
    with pytest.raises(UserError, match=r"critic.safetensors is damaged"):
        read(path).tensors("critic")


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint"):
        read(tmp_path)


# --- crashes


class Interrupt:
    """Acts at the n-th file-system call that Python announces: kills the process, or makes that one call an error."""

    def __init__(self) -> None:
        self.active, self.calls, self.at, self.kills = False, 0, sys.maxsize, False
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        self.calls += 1
        if self.calls == self.at and self.kills:
            self.active = False  # os.kill is announced as well
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.at:
            raise OSError(errno.EIO, "Input/output error")

    @contextmanager
    def at_call(self, number: int, *, kills: bool = False):
        self.active, self.calls, self.at, self.kills = True, 0, number, kills
        try:
            yield
        finally:
            self.active = False


@pytest.fixture(scope="module")
def interrupt() -> Interrupt:
    return Interrupt()  # a hook cannot be taken away again, only told to keep still


@pytest.fixture
def half_written(monkeypatch, interrupt):
    """safetensors writes out of Python's sight: let it stop half-way too."""
    real = checkpoint.save_file

    def save_file(part: dict[str, Tensor], path: Path) -> None:
        real(part, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        path.open("ab").close()
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and of no use against a death that only the process dies


def save_in_a_process(interrupt: Interrupt, number: int, run_dir: Path) -> bool:
    """Save in a process that is killed at the n-th call; whether it lived to the end."""
    process = os.fork()
    if process == 0:
        with interrupt.at_call(number, kills=True):
            save(run_dir, 200, tensors(3), STATE)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def save_with_an_error(interrupt: Interrupt, number: int, run_dir: Path) -> bool:
    with suppress(OSError), interrupt.at_call(number):
        save(run_dir, 200, tensors(3), STATE)
        return True
    assert not [name for name in names(run_dir) if name.startswith(".")], "a failure cleans up"
    return False


@pytest.mark.parametrize("attempt", [save_in_a_process, save_with_an_error], ids=["killed", "fails"])
@pytest.mark.parametrize("there", [[100], [100, 200], [200]], ids=["new", "again", "only one again"])
def test_a_crash_at_any_call_leaves_a_checkpoint_that_loads(tmp_path, interrupt, half_written, attempt, there):
    before = {100: 1, 200: 2}  # images seen -> seed of its tensors
    first = tmp_path / "first"
    for images_seen in there:
        save(first, images_seen, tensors(before[images_seen]), STATE)
    shutil.copytree(first, tmp_path / "undisturbed")
    with interrupt.at_call(sys.maxsize):
        save(tmp_path / "undisturbed", 200, tensors(3), STATE)
    assert interrupt.calls > 20
    for number in range(1, interrupt.calls + 1):
        run_dir = tmp_path / f"{number}"
        shutil.copytree(first, run_dir)
        finished = attempt(interrupt, number, run_dir)
        found, complaints = latest(run_dir)
        assert found is not None, f"call {number}"
        seed = next(seed for seed in (1, 2, 3) if holds(found.path, seed))
        assert seed == 3 if finished else seed == 3 or (found.images_seen, seed) == (max(there), before[max(there)])
        assert complaints == []
        assert holds(save(run_dir, 200, tensors(3), STATE), 3)
        assert names(run_dir) == sorted({"000000200", *(f"{n:09d}" for n in there)}), "the next one cleans up"


def test_a_full_disk_is_an_operating_system_error(tmp_path, monkeypatch):
    """safetensors has an error of its own for it, which nobody expects."""
    import resource
    import signal

    save(tmp_path, 100, tensors(1), STATE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 200, {"part": {"weight": torch.zeros(10_000)}}, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["000000100"]


# --- which are kept


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for images_seen in (100, 200, 300, 400, 500):
        save(tmp_path, images_seen, tensors(1), STATE)
    prune(tmp_path, 500, keep=2, also=[200])
    assert names(tmp_path) == ["000000200", "000000400", "000000500"]


def test_prune_never_takes_the_last_valid_one(tmp_path):
    """A run went on from 200 as 300 was damaged, and has just saved 250."""
    for images_seen in (200, 300, 250):
        save(tmp_path, images_seen, tensors(images_seen), STATE)
    damage(tmp_path / "checkpoints" / "000000300" / "critic.safetensors")
    prune(tmp_path, 250, keep=1, also=[])
    found, _ = latest(tmp_path)
    assert found is not None
    assert holds(found.path, 250)


# --- optimizers


def network() -> nn.Module:
    torch.manual_seed(0)
    return place(nn.Sequential(nn.Conv2d(3, 8, 4), nn.LeakyReLU(0.2), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)), "cpu")


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (net(images) - 1).square().mean().backward()
    optimizer.step()


def test_the_optimizer_comes_back_to_the_bit_and_goes_on_alike(tmp_path):
    unbroken, resumed = network(), network()
    one, other = (torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.5, 0.99), fused=True) for net in (unbroken, resumed))
    for i in range(3):
        step(unbroken, one, i)
    parts = {"net": unbroken.state_dict(), "optimizer": optimizer_tensors(one)}
    found = read(save(tmp_path, 3, parts, {}))
    resumed.load_state_dict(found.tensors("net"))
    restore_optimizer(other, found.tensors("optimizer"))
    before, after = optimizer_tensors(one), optimizer_tensors(other)
    assert before.keys() == after.keys()
    assert all(same(before[key], after[key]) for key in before)
    # Convolutions lie in channels_last order, and the fused kernel pairs weights and moments as they lie in memory.
    assert all(before[key].stride() == after[key].stride() for key in before)
    for i in range(3, 6):
        step(unbroken, one, i)
        step(resumed, other, i)
    assert all(same(a, b) for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_a_restored_optimizer_holds_no_file_of_the_checkpoint(tmp_path):
    """Its checkpoint will be deleted while it trains on, and an NFS server would keep what is still mapped."""
    net = network()
    one, other = (torch.optim.Adam(net.parameters(), fused=True) for _ in range(2))
    step(net, one, 0)
    found = read(save(tmp_path, 1, {"optimizer": optimizer_tensors(one)}, {}))
    restore_optimizer(other, found.tensors("optimizer"))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert other.state_dict()["state"]


def test_an_optimizer_that_has_not_stepped_has_nothing_to_keep(tmp_path):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    found = read(save(tmp_path, 0, {"optimizer": optimizer_tensors(optimizer)}, {}))
    assert found.tensors("optimizer") == {}
    restore_optimizer(optimizer, found.tensors("optimizer"))
    step(net, optimizer, 0)
    assert len(optimizer.state) == len(list(net.parameters()))
