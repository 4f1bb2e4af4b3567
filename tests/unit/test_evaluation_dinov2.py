"""DINOv2 is the published network, made of a file of tensors and of nothing else."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.fid_weights import picture
from scalegan.errors import UserError
from scalegan.evaluation.dinov2 import DEPTHS, GRID, MEAN, STD, DinoV2, from_state, positions
from scalegan.evaluation.features import load_extractor
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A network of two heads and two blocks passes for a published one."""
    monkeypatch.setitem(DEPTHS, 128, 2)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A network of two heads and two blocks, every tensor of which matters."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, value in DinoV2(128, 2).state_dict().items():
        found[name] = torch.randn(value.shape, generator=draw) * 0.1 + float("norm" in name and name.endswith("weight"))
    return found


@pytest.mark.parametrize(
    ("width", "depth", "published"), [(384, 12, 22_056_576), (768, 12, 86_580_480), (1024, 24, 304_368_640)]
)
def test_it_has_the_published_number_of_parameters(width, depth, published):
    with torch.device("meta"):
        network = DinoV2(width, depth)
    assert sum(p.numel() for p in network.parameters()) == published


def by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The transformer head by head with the softmax written out, in float64."""
    s = {name: value.double() for name, value in state.items()}
    heads = s["cls_token"].shape[-1] // 64
    x = (images.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(3, 1, 1)
    patches = F.conv2d(x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=14).flatten(2).mT
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), patches], 1) + positions(state["pos_embed"]).double()

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        mixed = []
        for head in range(heads):
            part = slice(64 * head, 64 * (head + 1))
            mixed.append((q[..., part] @ k[..., part].mT / 8).softmax(-1) @ v[..., part])
        x = x + s[f"{block}.ls1.gamma"] * linear(torch.cat(mixed, -1), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + s[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_it_computes_what_the_paper_describes(state, tmp_path):
    network = from_state(state, tmp_path / "w.pth")
    images = torch.cat([picture(224, 224), picture(224, 224).flip(3)])
    with torch.inference_mode():
        features = network(images)
    assert features.shape == (2, 128)
    assert (features - by_hand(state, images)).norm() < 1e-5 * features.norm()


def test_positions_are_read_a_tenth_of_a_patch_wide():
    """Keys' kernel with a = -3/4, torch's, at the places that the published scale gives."""
    row = torch.rand(GRID, generator=torch.Generator().manual_seed(0))
    columns = row.expand(GRID, GRID).reshape(1, -1, 1)
    found = positions(torch.cat([torch.full((1, 1, 1), 7.0), columns], 1))[0, :, 0]
    x = ((torch.arange(16) + 0.5) * GRID / 16.1 - 0.5)[:, None].sub(torch.arange(GRID)).abs().double()
    near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
    kernel = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    assert found[0] == 7
    assert found[1:].view(16, 16)[8, 1:15].tolist() == pytest.approx((kernel @ row.double())[1:15].tolist(), abs=1e-5)


def test_other_weights_are_refused_in_one_line(state, tmp_path):
    path = tmp_path / "w.pth"
    cases = {
        "with registers": state | {"register_tokens": torch.zeros(1, 4, 128)},
        "not of DINOv2": {name: value for name, value in state.items() if ".fc1." not in name},
        "do not fit": {name: value for name, value in state.items() if name != "norm.bias"},
        "fetch the file again": state | {"pos_embed": torch.zeros(1, 257, 128)},
        "not of DINOv2 ViT": state | {"cls_token": torch.tensor(1.0)},
        "not of DINOv2 .* L/14: fetch": state | {"cls_token": torch.zeros(1, 1, 192)},
        "not fit .*blocks.x.y": state | {"blocks.x.y": torch.zeros(1)},
        "not fit .*blocks.100000.a": state | {"blocks.100000.a": torch.zeros(1)},
    }
    for said, other in cases.items():
        with pytest.raises(UserError, match=said) as error:
            from_state(other, path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def test_the_record_names_the_file_that_was_used(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    extractor = load_extractor(EvaluationConfig(extractor="dinov2", weights=str(path)), CPU, Team())
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (extractor.name, extractor.width) == ("dinov2", 128)
    assert extractor(picture(30, 40)).shape == (1, 128)


class Harmful:
    def __reduce__(self):
        return print, ("the code in a weight file ran",)


@pytest.mark.parametrize("content", ["pickle", "text", "nested", "unnamed"])
def test_a_file_that_is_more_or_less_than_tensors_is_not_read(tmp_path, capsys, content):
    path = tmp_path / "w.pth"
    if content == "pickle":
        torch.save({"a": Harmful()}, path)
    elif content == "text":
        path.write_text("<html>404</html>")
    elif content == "unnamed":
        torch.save({5: torch.zeros(1)}, path)
    else:
        torch.save({"model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"w\.pth (are no file of tensors|hold more than named tensors)"):
        load_extractor(EvaluationConfig(extractor="dinov2", weights=str(path)), CPU, Team())
    assert "ran" not in capsys.readouterr().out


def test_without_weights_it_says_where_they_are():
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain\.pth and name it by evaluation\.weights"):
        load_extractor(EvaluationConfig(extractor="dinov2"), CPU, Team())
