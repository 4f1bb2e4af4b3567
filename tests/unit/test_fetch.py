"""`scalegan fetch`: what comes, how much of it, and what is said when it does not."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from helpers.terminal import on_terminal
from scalegan import cli
from scalegan.data import fetch, fruits360
from scalegan.data.sources.base import Request
from scalegan.data.sources.detect import open_source
from scalegan.errors import UserError

CLASSES = ("Apple Golden 1", "Kiwi 1", "Pear", "Pear Red 1", "Plum")
FILE_BYTES = 20_000
FILES = {"Training": 4, "Test": 2}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Fruits-360 in small: incompressible files of 20 kB, and one large file that no class needs. Its tag is `v1`."""
    folder = tmp_path_factory.mktemp("repository")
    noise = np.random.default_rng(0)
    for split, count in FILES.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"r_{i}_100.jpg").write_bytes(noise.bytes(FILE_BYTES))
    (folder / "LICENSE").write_text("CC BY-SA 4.0\n")
    (folder / "README.md").write_text("Fruits-360\n")
    (folder / "papers.bin").write_bytes(noise.bytes(1_000_000))
    git(folder, "init", "--quiet", "--initial-branch=main", ".")
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=data")
    git(folder, "tag", "v1")
    (folder / "Training" / "Zucchini 1").mkdir()
    (folder / "Training" / "Zucchini 1" / "0_100.jpg").write_bytes(noise.bytes(FILE_BYTES))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=more")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_class_comes_alone(repository, tmp_path):
    out = tmp_path / "fruits"
    fetched = fruits360.fetch(out, ["Plum"], url=repository.as_uri())
    pictures = [f"{split}/Plum/r_{i}_100.jpg" for split, count in FILES.items() for i in range(count)]
    assert files(out) == sorted([*pictures, "LICENSE", "README.md", fruits360.RECORD])
    assert all((out / name).read_bytes() == (repository / name).read_bytes() for name in pictures)
    assert fetched.classes == ("Plum",)
    assert fetched.counts == FILES
    assert fetched.commit == git(repository, "rev-parse", "main")


def test_the_bytes_that_come_are_those_of_the_class(repository, tmp_path):
    fetched = fruits360.fetch(tmp_path / "fruits", ["Plum"], url=repository.as_uri())
    wanted = sum(FILES.values()) * FILE_BYTES
    whole = 1_000_000 + len(CLASSES) * wanted
    assert wanted < fetched.bytes < wanted + 20_000 < whole / 5


def test_a_class_is_also_found_by_the_name_before_its_number(repository, tmp_path):
    fetched = fruits360.fetch(tmp_path / "fruits", ["Kiwi", "Apple Golden"], url=repository.as_uri())
    assert fetched.classes == ("Apple Golden 1", "Kiwi 1")


def test_an_exact_name_is_taken_alone():
    assert fruits360.match("Pear", ["Pear", "Pear 2", "Pear Red 1"]) == ["Pear"]


def test_no_classes_means_all(repository, tmp_path):
    fetched = fruits360.fetch(tmp_path / "fruits", [], revision="v1", url=repository.as_uri())
    assert fetched.classes == CLASSES
    assert not (tmp_path / "fruits" / "papers.bin").exists()


@pytest.mark.parametrize("revision", ["v1", "commit"])
def test_the_revision_can_be_a_tag_or_a_commit(repository, tmp_path, revision):
    old = git(repository, "rev-parse", "v1")
    fetched = fruits360.fetch(tmp_path / "f", ["Plum"], revision=old if revision == "commit" else "v1", url=repository.as_uri())
    assert fetched.commit == old != git(repository, "rev-parse", "main")


def test_a_second_class_joins_the_first_and_nothing_comes_twice(repository, tmp_path):
    out = tmp_path / "fruits"
    fruits360.fetch(out, ["Plum"], url=repository.as_uri())
    again = fruits360.fetch(out, ["Plum"], url=repository.as_uri())
    assert again.counts == FILES
    assert again.bytes < 20_000
    fruits360.fetch(out, ["Pear"], url=repository.as_uri())
    assert sorted(path.name for path in (out / "Training").iterdir()) == ["Pear", "Plum"]
    assert set(json.loads((out / fruits360.RECORD).read_text())["classes"]) == {"Pear", "Plum"}


def test_the_record_says_what_was_asked_for_and_what_came(repository, tmp_path):
    fruits360.fetch(tmp_path / "f", ["Plum"], revision="v1", url=repository.as_uri())
    record = json.loads((tmp_path / "f" / fruits360.RECORD).read_text())
    origin = {"url": repository.as_uri(), "revision": "v1", "commit": git(repository, "rev-parse", "v1")}
    assert record == {"classes": {"Plum": origin}}


def test_the_record_and_the_licence_are_no_images_to_shards(repository, tmp_path):
    fruits360.fetch(tmp_path / "f", ["Plum", "Pear"], url=repository.as_uri())
    source = open_source(Request(str(tmp_path / "f")))
    assert (source.kind, source.classes, source.count) == ("folders", ("Pear", "Plum"), 2 * FILES["Training"])
    assert source.notes[0] == "other files left alone: 3"


@pytest.fixture
def moving(repository, tmp_path) -> Path:
    """A clone whose branch `move` takes further, as a publisher does; it allows what any server has to, and no more."""
    git(tmp_path, "clone", "--quiet", "--no-local", str(repository), "moving")
    git(tmp_path / "moving", "config", "uploadpack.allowFilter", "true")
    return tmp_path / "moving"


def move(folder: Path) -> None:
    for name in CLASSES:
        (folder / "Training" / name / "r_0_100.jpg").write_bytes(f"another {name}".encode())
    git(folder, "commit", "--quiet", "--all", "--message=other images")


def printed_again(printed: str) -> list[list[str]]:
    """The commands that are said to bring the same images, without `scalegan`."""
    marked = [line.partition("the same images again: scalegan ") for line in printed.splitlines()]
    return [shlex.split(command) for _, found, command in marked if found]


@pytest.mark.parametrize("classes", ["Kiwi,Plum", "all"])
def test_the_printed_command_brings_the_same_images_after_the_branch_has_moved(moving, tmp_path, capsys, classes):
    asked = ["fetch", "fruits360", "--classes", classes, "--url", moving.as_uri(), str(tmp_path / "first")]
    assert cli.main(asked) == 0
    (again,) = printed_again(capsys.readouterr().out)
    move(moving)
    (tmp_path / "first").rename(tmp_path / "kept")
    assert cli.main(again) == 0
    pictures = [name for name in files(tmp_path / "kept") if name.endswith(".jpg")]
    assert len(pictures) >= 2 * sum(FILES.values())
    assert files(tmp_path / "first") == files(tmp_path / "kept")
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes() for name in pictures)


def test_a_class_that_is_there_from_another_commit_is_left_and_that_is_said(moving, tmp_path, capsys):
    out = tmp_path / "f"
    asked = ["fetch", "fruits360", "--url", moving.as_uri(), str(out), "--classes"]
    old = git(moving, "rev-parse", "main")
    assert cli.main([*asked, "Plum"]) == 0
    assert "left as fetched before" not in capsys.readouterr().out
    move(moving)
    new = git(moving, "rev-parse", "main")
    assert cli.main([*asked, "Pear,Plum"]) == 0
    printed = capsys.readouterr().out
    assert (
        f"left as fetched before, from commit {old[:12]} of {moving.as_uri()}: Plum; to have them from {new[:12]}, " in printed
    )
    assert f"delete their folders in {out}/Training and {out}/Test first\n" in printed
    again = [(command[3], command[5]) for command in printed_again(printed)]
    assert again == [("Pear", new), ("Plum", old)]
    assert (out / "Training" / "Plum" / "r_0_100.jpg").stat().st_size == FILE_BYTES
    assert (out / "Training" / "Pear" / "r_0_100.jpg").read_text() == "another Pear"
    record = json.loads((out / fruits360.RECORD).read_text())["classes"]
    assert {name: origin["commit"] for name, origin in record.items()} == {"Pear": new, "Plum": old}
    shutil.rmtree(out / "Training" / "Plum")
    shutil.rmtree(out / "Test" / "Plum")
    assert cli.main([*asked, "Plum"]) == 0
    assert printed_again(capsys.readouterr().out)[0][3:6] == ["Plum", "--revision", new]
    assert (out / "Training" / "Plum" / "r_0_100.jpg").read_text() == "another Plum"


def test_a_half_moved_class_is_fetched_anew(repository, tmp_path, monkeypatch):
    out = tmp_path / "fruits"

    class Killed(BaseException):
        pass

    def killed(path, target):
        target.mkdir()
        (target / "half.jpg").write_bytes(b"")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            fruits360.fetch(out, ["Plum"], url=repository.as_uri())
    assert files(out) == ["Training/Plum/half.jpg", "fruits360.json"]
    assert fruits360.fetch(out, ["Plum"], url=repository.as_uri()).counts == FILES
    assert set(json.loads((out / fruits360.RECORD).read_text())) == {"classes"}


@pytest.mark.parametrize("split", fruits360.SPLITS)
@pytest.mark.parametrize("others", [[], ["Pear"]])
def test_a_class_that_somebody_else_put_there_is_not_replaced(repository, tmp_path, split, others):
    out = tmp_path / "fruits"
    if others:
        fruits360.fetch(out, others, url=repository.as_uri())
    (out / split / "Plum").mkdir(parents=True)
    (out / split / "Plum" / "own.jpg").write_bytes(b"own")
    before = files(out)
    with pytest.raises(UserError, match=rf"{split}/Plum is there and fruits360.json does not say that it was fetched"):
        fruits360.fetch(out, ["Plum"], url=repository.as_uri())
    assert files(out) == before


def test_the_folder_may_be_a_mount_point(repository, tmp_path):
    """Of a container or a cluster's disk: what is beside it lies on another file system, or may not be written."""
    out, disk = tmp_path / "out", tmp_path / "disk"
    out.mkdir()
    disk.mkdir()
    if subprocess.run(["mount", "--bind", disk, out], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        assert fruits360.fetch(out, ["Plum"], url=repository.as_uri()).counts == FILES
        assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "README.md", "Test", "Training", fruits360.RECORD]
    finally:
        subprocess.run(["umount", out], check=True)


def test_nothing_is_left_beside_the_folder(repository, tmp_path):
    fruits360.fetch(tmp_path / "fruits", ["Plum"], url=repository.as_uri())
    with pytest.raises(UserError):
        fruits360.fetch(tmp_path / "fruits", ["Nonsense"], url=repository.as_uri())
    assert [path.name for path in tmp_path.iterdir()] == ["fruits"]


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("Golden", "did you mean Apple Golden 1?"),
        ("Kiwy 1", "did you mean Kiwi 1?"),
        ("xxxx", "it has 6: Apple Golden 1, Kiwi 1"),
    ],
)
def test_an_unknown_class_names_the_nearest(repository, tmp_path, wanted, hint):
    with pytest.raises(UserError) as error:
        fruits360.fetch(tmp_path / "fruits", [wanted], url=repository.as_uri())
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "name", ["../etc", "..", "-all", "*", "Kiwi*", "Ki[w]i", "!Kiwi", "#Kiwi", "a/b", "a\nb", "a\\b", "Kiwi ", ""]
)
def test_names_that_are_no_class_never_reach_git(monkeypatch, tmp_path, name):
    monkeypatch.setattr(fruits360.subprocess, "Popen", None)
    with pytest.raises(UserError, match="is no class of Fruits-360"):
        fruits360.fetch(tmp_path / "fruits", [name])


@pytest.mark.parametrize(
    "url", ["ext::sh -c touch% owned", "ssh://host/x", "git@host:x", "--upload-pack=x", "/srv/x", "http://host/x"]
)
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="give an https:// or file:// address"):
        fruits360.fetch(tmp_path / "fruits", ["Kiwi"], url=url)


@pytest.mark.parametrize("revision", ["--upload-pack=x", "a..b", "a b", "", "-"])
def test_a_revision_cannot_be_an_option(tmp_path, revision):
    with pytest.raises(UserError, match="no branch, tag or commit"):
        fruits360.fetch(tmp_path / "fruits", ["Kiwi"], revision=revision)


def test_hooks_and_links_of_the_user_and_the_repository_do_nothing(repository, tmp_path, monkeypatch):
    hostile = tmp_path / "hostile"
    git(tmp_path, "clone", "--quiet", str(repository), "hostile")
    (hostile / "Training" / "Plum" / "link.jpg").symlink_to("/etc/passwd")
    git(hostile, "add", "--all")
    git(hostile, "commit", "--quiet", "--message=link")
    template, owned = tmp_path / "template", tmp_path / "owned"
    (template / "hooks").mkdir(parents=True)
    (template / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {owned}\n")
    (template / "hooks" / "post-checkout").chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    fruits360.fetch(tmp_path / "fruits", ["Plum"], url=hostile.as_uri())
    link = tmp_path / "fruits" / "Training" / "Plum" / "link.jpg"
    assert not link.is_symlink()
    assert link.read_text() == "/etc/passwd"
    assert not owned.exists()


def test_a_missing_revision_is_one_line(repository, tmp_path, capsys):
    argv = ["fetch", "fruits360", "--classes", "Plum", "--revision", "nope", "--url", repository.as_uri(), str(tmp_path / "f")]
    assert cli.main(argv) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "couldn't find remote ref nope" in printed
    assert list(tmp_path.iterdir()) == []


def test_missing_git_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["fetch", "fruits360", "--classes", "Kiwi", str(tmp_path / "f")]) == 2
    assert capsys.readouterr().err == "scalegan: error: git was not found: install git 2.25 or newer to fetch Fruits-360\n"


def test_the_command_ends_with_the_one_that_follows(repository, tmp_path, capsys):
    assert cli.main(["fetch", "fruits360", "--classes", "Kiwi", "--url", repository.as_uri(), str(tmp_path / "my fruits")]) == 0
    printed = capsys.readouterr().out
    assert "Kiwi 1: 4 training and 2 test images" in printed
    assert printed.splitlines()[-1].startswith(f"next: scalegan shards '{tmp_path}/my fruits' data/kiwi --classes 'Kiwi 1'")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder, and its address on a web server of this machine."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def remote(path: Path) -> fetch.Remote:
    content = path.read_bytes()
    return fetch.Remote(path.name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def tiny_mnist(web, monkeypatch):
    folder, url = web
    for known in fetch.DATASETS["mnist"].files:
        (folder / known.name).write_bytes(gzip.compress(known.name.encode() * 100))
    known_files = tuple(remote(path) for path in sorted(folder.iterdir()))
    monkeypatch.setitem(fetch.DATASETS, "mnist", fetch.Dataset("MNIST", "data/mnist", (url,), known_files))
    return folder, url


def test_idx_files_come_as_they_are(tiny_mnist, tmp_path, capsys):
    folder, _ = tiny_mnist
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == files(folder)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"MNIST is in {tmp_path}/out: 4 files, sha256 as expected"
    assert printed[-1].startswith(f"next: scalegan shards {tmp_path}/out data/mnist")


OF_TINY_MNIST = """
import sys
from scalegan import cli
from scalegan.data import fetch
fetch.DATASETS["mnist"] = eval(sys.argv.pop(1), vars(fetch))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_terminal_gets_a_bar_a_file_and_a_pipe_does_not(tiny_mnist, tmp_path):
    command = [sys.executable, "-c", OF_TINY_MNIST, repr(fetch.DATASETS["mnist"]), "fetch", "mnist"]
    code, shown = on_terminal([*command, str(tmp_path / "shown")])
    assert code == 0
    for known in fetch.DATASETS["mnist"].files:
        assert re.search(rf"{known.name} .*{known.size}/{known.size} bytes", shown)
    piped = subprocess.run([*command, str(tmp_path / "piped")], capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert "bytes" not in piped.stdout
    assert files(tmp_path / "piped") == files(tmp_path / "shown")


def test_files_that_are_there_are_checked_and_not_fetched_again(tiny_mnist, tmp_path, capsys):
    folder, _ = tiny_mnist
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 0
    for path in folder.iterdir():
        path.unlink()
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "t10k-images-idx3-ubyte.gz").write_bytes(b"cut")
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 2
    assert "delete it to fetch it again" in capsys.readouterr().err


def test_a_changed_file_is_refused_and_leaves_nothing(tiny_mnist, tmp_path, capsys):
    folder, _ = tiny_mnist
    target = folder / "train-images-idx3-ubyte.gz"
    target.write_bytes(target.read_bytes()[:-1] + b"!")
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 2
    assert "not the known" in capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" not in files(tmp_path / "out")
    assert not [name for name in files(tmp_path / "out") if name.startswith(".")]


def test_an_endless_answer_is_cut_off(tiny_mnist, tmp_path, capsys):
    folder, _ = tiny_mnist
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"x" * 1_000_000)
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 2
    assert "(more than " in capsys.readouterr().err


def test_the_second_mirror_serves_when_the_first_does_not(tiny_mnist, tmp_path, monkeypatch):
    _, url = tiny_mnist
    known = fetch.DATASETS["mnist"]
    monkeypatch.setitem(fetch.DATASETS, "mnist", fetch.Dataset("MNIST", "data/mnist", (url + "no/", url), known.files))
    assert cli.main(["fetch", "mnist", str(tmp_path / "out")]) == 0


def test_without_network_one_line_says_which_file_goes_where(tiny_mnist, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["fetch", "mnist", "--url", "http://127.0.0.1:1/mnist", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "http://127.0.0.1:1/mnist/t10k-images-idx3-ubyte.gz" in printed
    assert f"put it at {out}/t10k-images-idx3-ubyte.gz and run this again" in printed
    assert all(f"http://127.0.0.1:1/mnist/{known.name}" in printed for known in fetch.DATASETS["mnist"].files)
    assert not out.exists()


def test_cifar10_comes_as_its_binary_archive():
    assert [file.name for file in fetch.DATASETS["cifar10"].files] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["fruits360", "out"], "Give --classes Kiwi"),
        (["mnist", "--classes", "3", "out"], "--classes and --revision are for fruits360"),
        (["mnist", "--url", "ftp://x", "out"], "give an https://, http:// or file:// address"),
        (["cifar100", "out"], "invalid choice: 'cifar100'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, capsys, argv, line):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fetch", *argv]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert line in printed
