"""The run folder: one writer at a time, and one configuration for life."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from scalegan import settings
from scalegan.config import Config, DataConfig, LogConfig, OptimConfig, TrainConfig
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.run import Lock, claim, differences, flatten, plain, refuse_file, refuse_second_writer


def config(**sections) -> Config:
    return replace(Config(run="runs/x", data=DataConfig(path="data/x")), **sections)


# --- identity


def test_the_same_configuration_may_go_on(tmp_path):
    claim(tmp_path, config(), "sha")
    before = (tmp_path / "run.json").read_text()
    claim(tmp_path, config(), "sha")
    assert (tmp_path / "run.json").read_text() == before


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    claim(tmp_path, config(), "sha")
    before = (tmp_path / "run.json").read_text(), (tmp_path / "config.yaml").read_text()
    other = config(optim=OptimConfig(lr_g=1e-3, betas_d=(0.0, 0.99)), train=TrainConfig(seed=7))
    with pytest.raises(UserError) as error:
        claim(tmp_path, other, "sha")
    message = str(error.value)
    assert "optim.lr_g: 0.0002 -> 0.001" in message
    assert "optim.betas_d: [0.5, 0.999] -> [0.0, 0.99]" in message
    assert "train.seed: 0 -> 7" in message
    assert message.count("->") == 3
    assert f"run folder {tmp_path}" in message
    assert before == ((tmp_path / "run.json").read_text(), (tmp_path / "config.yaml").read_text())


def test_a_run_of_before_a_setting_there_was_goes_on_with_its_default(tmp_path):
    claim(tmp_path, config(), "sha")
    identity = json.loads((tmp_path / "run.json").read_text())
    del identity["config"]["loss"]["diversity_weight"], identity["config"]["loss"]["diversity_limit"]
    (tmp_path / "run.json").write_text(json.dumps(identity))
    with pytest.raises(UserError, match=r"loss.diversity_weight: 0.0 -> 1.0\)"):
        claim(tmp_path, config(loss=LossConfig(diversity_weight=1.0)), "sha")
    claim(tmp_path, config(), "sha")


def test_other_data_is_another_configuration(tmp_path):
    claim(tmp_path, config(), "one")
    with pytest.raises(UserError, match="data: one -> two"):
        claim(tmp_path, config(), "two")


@pytest.mark.parametrize(
    "other",
    [
        config(log=LogConfig(every=1, wandb="off")),
        config(data=DataConfig(path="elsewhere/x", reader="stream", workers=7)),
        config(train=TrainConfig(images=2_000_000)),
        config(run="runs/moved"),
    ],
    ids=["log", "reader", "longer", "moved"],
)
def test_what_does_not_change_the_weights_may_change(tmp_path, other):
    claim(tmp_path, config(), "sha")
    claim(tmp_path, other, "sha")
    assert settings.read_config(tmp_path / "config.yaml") == other


def test_whether_images_are_mirrored_may_not_change(tmp_path):
    claim(tmp_path, config(), "sha")
    with pytest.raises(UserError, match=r"data.mirror"):
        claim(tmp_path, config(data=DataConfig(path="data", mirror=True)), "sha")


def test_the_length_may_not_change_where_the_schedule_depends_on_it(tmp_path):
    cosine = OptimConfig(schedule="cosine")
    claim(tmp_path, config(optim=cosine), "sha")
    with pytest.raises(UserError, match=r"train.images: 1000000 -> 2000000"):
        claim(tmp_path, config(optim=cosine, train=TrainConfig(images=2_000_000)), "sha")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_identity_is_told(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        claim(tmp_path, config(), "sha")


def test_a_crash_while_writing_leaves_no_half_identity(tmp_path, monkeypatch):
    def fails(source: Path, target: Path) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="no"):
            claim(tmp_path, config(), "sha")
    assert list(tmp_path.iterdir()) == []
    claim(tmp_path, config(), "sha")


def test_the_configuration_is_kept_as_plain_yaml(tmp_path):
    claim(tmp_path, config(), "sha")
    fields = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert fields["optim"]["betas_g"] == [0.5, 0.999]
    assert settings.to_config(fields) == config()
    assert json.loads((tmp_path / "run.json").read_text())["data"] == "sha"


# --- the lock


def test_a_folder_whose_name_is_no_utf_8_is_refused(tmp_path):
    refuse_file(tmp_path / "Bäume")
    with pytest.raises(UserError, match=r"^--run .*/B\ufffdume/x has letters that are no UTF-8: rename the folder$"):
        refuse_file(tmp_path / os.fsdecode("Bäume".encode("latin-1")) / "x")


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    lock = Lock(tmp_path / "run")
    with pytest.raises(UserError, match=rf"being written by process {os.getpid()} on .*: stop it, or give --run another"):
        Lock(tmp_path / "run")
    lock.close()


def test_a_second_process_is_refused(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom scalegan.errors import UserError\nfrom scalegan.run import Lock\n"
        "try:\n    Lock(Path(sys.argv[1]))\nexcept UserError as error:\n    sys.exit(str(error))"
    )
    lock = Lock(tmp_path)
    refused = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    lock.close()
    assert refused.returncode == 1
    assert f"process {os.getpid()}" in refused.stderr
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_the_folder_is_free_again_after_close(tmp_path):
    Lock(tmp_path).close()
    assert (tmp_path / ".lock").read_text() == ""
    again = Lock(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    again.close()


def test_a_killed_writer_holds_nothing(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom scalegan.run import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\nos.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert (tmp_path / ".lock").read_text(), "it had no time to empty it"
    again = Lock(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    again.close()


def test_another_host_that_did_not_say_that_it_ended_is_told_of(tmp_path, capsys):
    """Its training was killed, or still writes: some file systems have no locks between hosts."""
    left = "process 7 on another since 2026-11-29 12:00:00"
    (tmp_path / ".lock").write_text(f"{left}\n")
    Lock(tmp_path).close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"scalegan: {tmp_path} was last written by {left}, which did not say that it ended: see that it did"
    Lock(tmp_path).close()
    assert capsys.readouterr().out == "", "who closes says so"
    (tmp_path / ".lock").write_text(left.replace("another", os.uname().nodename))
    Lock(tmp_path).close()
    assert capsys.readouterr().out == "", "on one host the lock is enough"


def test_a_child_that_outlives_its_writer_holds_nothing(tmp_path):
    """As a loader worker that was forked does for some seconds when a training is killed."""
    lock, (reading, writing), (begun, beginning) = Lock(tmp_path), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(beginning, b"x")
        os.read(reading, 1)
        os._exit(0)
    os.read(begun, 1)
    try:
        with pytest.raises(UserError, match="being written by"):
            refuse_second_writer(tmp_path)
        lock.close()
        refuse_second_writer(tmp_path)
        Lock(tmp_path).close()
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)


def test_looking_for_a_writer_writes_nothing_and_keeps_nobody_out(tmp_path):
    refuse_second_writer(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Lock(tmp_path / "run").close()
    (tmp_path / "run" / ".lock").write_text(before := "process 7 on another\n")
    refuse_second_writer(tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_text() == before
    Lock(tmp_path / "run").close()


def test_who_looks_for_a_writer_does_not_make_a_starter_give_up(tmp_path):
    Lock(tmp_path).close()
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        looked = threading.Timer(0.2, file.close)
        looked.start()
        lock = Lock(tmp_path)
        assert file.closed
        lock.close()
        looked.join()


def test_of_starters_at_the_same_instant_exactly_one_writes(tmp_path):
    Lock(tmp_path).close()
    together, held, refused = threading.Barrier(8), [], []

    def start():
        together.wait()
        try:
            for _ in range(3):  # by the processes of one run
                refuse_second_writer(tmp_path)
            held.append(Lock(tmp_path))
        except UserError as error:
            refused.append(error)

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].close()


# --- small parts


def test_differences_name_new_and_lost_fields():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": (3,)}}) == ["a.c: 2 -> None", "a.d: None -> [3]"]


def test_flatten_joins_names_by_dots():
    assert flatten({"a": {"b": {"c": 1}}, "d": (1, 2)}) == {"a.b.c": 1, "d": [1, 2]}


def test_plain_has_no_tuples():
    assert plain({"a": (1, (2, 3)), "b": [{"c": (4,)}]}) == {"a": [1, [2, 3]], "b": [{"c": [4]}]}
