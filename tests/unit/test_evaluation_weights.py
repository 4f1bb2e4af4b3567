"""Weights are the known file or one clear line; without network that line comes at once."""

import contextlib
import hashlib
import http.server
import io
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch

from scalegan.errors import UserError
from scalegan.evaluation import weights
from scalegan.evaluation.features import find_weights
from scalegan.evaluation_config import EvaluationConfig

INCEPTION = EvaluationConfig(extractor="inception")


@pytest.fixture(autouse=True)
def empty_home(monkeypatch, tmp_path):
    for known in (weights.INCEPTION, *weights.LPIPS.values()):
        monkeypatch.delenv(known.variable, raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def server(content: bytes, status: int = 200, cut: int = 0):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - cut])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/weights.pth"
        running.shutdown()


def test_lite0_needs_no_download():
    path = find_weights(EvaluationConfig())
    state = weights.read_checked(path, weights.LITE0_SHA256)
    assert state["_conv_head.weight"].shape == (1280, 320, 1, 1)


def test_another_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth are not the expected file \(sha256 "):
        weights.read_checked(tmp_path / "other.pth", weights.INCEPTION.sha256)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_one_line_or_still_tensors(tmp_path):
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(2), "b": torch.ones(3)}, whole, _use_new_zipfile_serialization=False)
    for at in range(len(content := whole.getvalue())):
        damaged = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
        with contextlib.suppress(UserError):
            assert all(isinstance(value, torch.Tensor) for value in weights.tensors(damaged, tmp_path / "w.pth").values())


def test_a_file_that_is_not_there_is_named(tmp_path):
    for config in (EvaluationConfig(weights=str(tmp_path / "no.pth")), replace(INCEPTION, weights=str(tmp_path / "no.pth"))):
        with pytest.raises(UserError, match=r"no\.pth of extractor .* do not exist"):
            find_weights(config)


def test_batch_norm_folds_into_the_convolution():
    state = {"c.weight": torch.randn(4, 3, 3, 3), "n.weight": torch.rand(4), "n.bias": torch.randn(4)}
    state |= {"n.running_mean": torch.randn(4), "n.running_var": torch.rand(4)}
    x = torch.randn(2, 3, 8, 8)
    weight, bias = weights.folded(state, "c", "n", eps=1e-3)
    expected = torch.nn.functional.batch_norm(
        torch.conv2d(x, state["c.weight"]), state["n.running_mean"], state["n.running_var"], state["n.weight"], state["n.bias"],
        eps=1e-3,
    )  # fmt: skip
    assert torch.allclose(torch.conv2d(x, weight, bias), expected, atol=1e-5)


def assert_all_ways_are_named(error: pytest.ExceptionInfo[UserError], known: weights.Published = weights.INCEPTION) -> None:
    message = str(error.value)
    for way in (known.of, known.file, known.variable, f"evaluation.{known.field}", f"--{known.field.replace('_', '-')}"):
        assert way in message
    assert "\n" not in message


def other(monkeypatch, **changes) -> None:
    """The published file of Inception, but for `changes`."""
    monkeypatch.setattr(weights, "INCEPTION", replace(weights.INCEPTION, **changes))


def test_inception_without_network_fails_at_once(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        other(monkeypatch, url=f"http://127.0.0.1:{closed.getsockname()[1]}/w.pth")
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        find_weights(INCEPTION)
    assert time.perf_counter() - began < 5
    assert_all_ways_are_named(error)


def test_inception_behind_a_network_that_never_answers_fails_in_5_s(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other(monkeypatch, url=f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth")
        began = time.perf_counter()
        with pytest.raises(UserError) as error:
            find_weights(INCEPTION)
        assert time.perf_counter() - began < 5
    assert_all_ways_are_named(error)


@pytest.mark.parametrize("name", weights.LPIPS)
def test_lpips_without_network_fails_as_fast(monkeypatch, name):
    known = weights.LPIPS[name]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/w.pth"
        monkeypatch.setitem(weights.LPIPS, name, replace(known, url=url))
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        weights.lpips_path(name, "")
    assert time.perf_counter() - began < 5
    assert_all_ways_are_named(error, known)


def test_the_first_digits_of_a_download_suffice_where_no_more_are_published(monkeypatch):
    content = b"weights" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    for digits, good in ((sha256[:8], True), (sha256[1:9], False)):
        with server(content) as url:
            monkeypatch.setitem(weights.LPIPS, "alex", replace(weights.LPIPS["alex"], url=url, sha256=digits))
            if good:
                weights.lpips_path("alex", "").unlink()
            else:
                with pytest.raises(UserError, match="the download has sha256"):
                    weights.lpips_path("alex", "")


def test_inception_is_found_where_it_was_put(monkeypatch, tmp_path):
    for number, name in enumerate((weights.INCEPTION.file, "weights-inception-2015-12-05-6726825d.pth")):
        hub = tmp_path / f"torch{number}" / "hub" / "checkpoints"
        hub.mkdir(parents=True)
        (hub / name).touch()
        monkeypatch.setenv("TORCH_HOME", str(hub.parent.parent))
        assert find_weights(INCEPTION) == hub / name
    (tmp_path / "mine.pth").touch()
    monkeypatch.setenv(weights.INCEPTION.variable, str(tmp_path / "mine.pth"))
    assert find_weights(INCEPTION) == tmp_path / "mine.pth"
    (tmp_path / "given.pth").touch()
    assert find_weights(replace(INCEPTION, weights=str(tmp_path / "given.pth"))) == tmp_path / "given.pth"


@pytest.mark.parametrize("value", ["", "cache"], ids=["empty", "relative"])
def test_a_cache_that_is_no_absolute_path_counts_as_none(monkeypatch, tmp_path, value):
    """As the XDG Base Directory Specification has it: else it would lie wherever the command stands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert weights.user_cache() == tmp_path / ".cache"


def test_a_download_is_kept(monkeypatch, tmp_path):
    content = b"weights" * 1000
    with server(content) as url:
        other(monkeypatch, url=url, sha256=hashlib.sha256(content).hexdigest())
        path = find_weights(INCEPTION)
    assert path.read_bytes() == content
    assert path.parent == tmp_path / "cache" / "scalegan" / "weights"
    assert find_weights(INCEPTION) == path


@pytest.mark.parametrize("fault", [{"status": 404}, {"cut": 100}, {}], ids=["missing", "cut", "other content"])
def test_a_bad_download_leaves_nothing(monkeypatch, tmp_path, fault):
    with server(b"weights" * 1000, **fault) as url:
        other(monkeypatch, url=url)
        with pytest.raises(UserError) as error:
            find_weights(INCEPTION)
    assert_all_ways_are_named(error)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
