"""Files made to do harm: nothing in them is run, nothing is written outside, and each is refused by name."""

import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
import zlib

import pytest

from helpers.runs import configured, error_lines, newest, training
from helpers.shards import make_images, png
from helpers.worlds import run_world
from scalegan import checkpoint, cli
from scalegan.data.index import content_hash

pytestmark = pytest.mark.faults


class Harm:
    """Leaves a folder behind when somebody unpickles it."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def harm(tmp_path):
    """The path of a folder that is there once a pickle was read, and that pickle."""
    target = tmp_path / "harm"
    yield target, pickle.dumps(Harm(target))
    assert not target.exists(), "what was in the file was run"


def images(count=4):
    pixels, _ = make_images(count, 16, 16, 3)
    return {f"{number}.png": png(image) for number, image in enumerate(pixels)}


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refused(capsys, *argv):
    """The one line that a command ends with."""
    assert cli.main([str(argument) for argument in argv]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    return line


def everything_below(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["pkl", "pyd", "pth", "PKL", "image.pickle"])
def test_an_archive_with_a_pickle_is_refused(tmp_path, capsys, harm, suffix):
    path = write_tar(tmp_path / "x.tar", images() | {f"3.{suffix}": harm[1]})
    line = refused(capsys, "shards", path, tmp_path / "out")
    assert f"'3.{suffix}' may be a pickle" in line
    assert everything_below(tmp_path) == {path}


def test_a_stylegan_zip_with_a_pickle_is_refused(tmp_path, capsys, harm):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (images() | {"network.pkl": harm[1]}).items():
            archive.writestr(name, content)
    assert "'network.pkl' may be a pickle" in refused(capsys, "shards", path, tmp_path / "out")


def test_a_pickle_that_calls_itself_an_image_is_no_image(tmp_path, capsys, harm):
    path = write_tar(tmp_path / "x.tar", images() | {"9.png": harm[1]})
    assert "9.png" in refused(capsys, "shards", path, tmp_path / "out")
    assert everything_below(tmp_path) == {path}


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png"])
def test_names_that_lead_outside_are_refused(tmp_path, capsys, name):
    path = write_tar(tmp_path / "x.tar", images() | {name: images(1)["0.png"]})
    assert f"unsafe file name '{name}'" in refused(capsys, "shards", path, tmp_path / "out")
    assert everything_below(tmp_path) == {path}


def test_a_decompression_bomb_costs_no_memory(tmp_path, capsys):
    side = 60_000

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
    path = write_tar(tmp_path / "x.tar", images() | {"bomb.png": bomb})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refused(capsys, "shards", path, tmp_path / "out", "--size", "16")
    assert "bomb.png has far more than 100,000,000 pixels" in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "in kB; the pixels would take 10 GB"


@pytest.mark.parametrize("path", ["pipe:touch harm", "file:///tmp/x", "simplecache::s3://bucket/x", "http://localhost/x"])
def test_urls_that_are_not_read_are_refused_before_anything_is_opened(tmp_path, capsys, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "train", "--config=kiwi_small", f"--data.path={path}", "--run=run")
    assert "is not read" in line or "is missing" in line
    assert everything_below(tmp_path) == set()


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (ended,) = run_world(folder, 1, training, configured(shards, folder / "run", 64))
    assert ended.value is True, ended
    return folder / "run"


def with_checksum(manifest):
    """As one who means harm would write it."""
    del manifest["sha256"]
    return manifest | {"sha256": content_hash(manifest)}


def test_a_checkpoint_with_a_pickle_in_it_is_refused(tmp_path, capsys, harm, trained):
    """Even where the manifest names the checksum of the pickle."""
    files = {path.name: path.read_bytes() for path in newest(trained).iterdir()}
    folder = tmp_path / "run" / "checkpoints" / newest(trained).name
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "ema.safetensors").write_bytes(harm[1])
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["ema.safetensors"] = checkpoint.sha256(folder / "ema.safetensors")
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    line = refused(capsys, "sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "samples")
    assert "ema.safetensors is no safetensors file" in line


def test_a_manifest_may_not_name_files_elsewhere(tmp_path, capsys, trained):
    folder = tmp_path / "run" / "checkpoints" / "000000064"
    folder.mkdir(parents=True)
    manifest = json.loads((newest(trained) / "manifest.json").read_text())
    manifest["files"]["../../../../etc/hostname"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    assert "names a file outside its folder" in refused(capsys, "sample", tmp_path / "run", "--n", 4, "--out", tmp_path / "s")
