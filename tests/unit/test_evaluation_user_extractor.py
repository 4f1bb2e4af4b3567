"""A user's own extractor is one class by its dotted name, and only the command line can name it."""

import sys

import pytest
import torch

from helpers.fid_weights import picture
from scalegan.errors import UserError
from scalegan.evaluation.features import find_weights, load_extractor
from scalegan.evaluation.team import Team
from scalegan.evaluation.user_extractor import fingerprint, load_module, load_user_extractor
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
SOURCE = """
import torch

class Means(torch.nn.Module):
    num_features = 3
    resize = "none"

    def __init__(self, weights=None):
        super().__init__()
        factor = torch.load(weights, weights_only=True) if weights else torch.ones(3)
        self.factor = torch.nn.Parameter(factor)

    def forward(self, images):
        return images.double().mean((2, 3)) * self.factor

class Wrong(Means):
    num_features = 4

class Broken(Means):
    def __init__(self):
        raise KeyError("layer4")

nothing = len
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "features.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own", "own.features"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("own", "own.features"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own.features:Means", "own.features.Means"])
def test_a_class_of_the_current_folder_makes_features(name):
    extractor = load_user_extractor(name, "", CPU, 64)
    assert (extractor.name, extractor.width, extractor.network.resize) == ("own.features:Means", 3, "none")
    image = picture(8, 10)
    features = extractor(image.expand(11, -1, -1, -1))
    assert features.dtype == torch.float32
    assert torch.allclose(features, image.float().mean((2, 3)).expand(11, -1))


def test_its_weights_and_its_source_are_its_fingerprint(tmp_path):
    torch.save(torch.full((3,), 2.0), tmp_path / "w.pth")
    plain = load_user_extractor("own.features:Means", "", CPU, 64)
    weighted = load_user_extractor("own.features:Means", str(tmp_path / "w.pth"), CPU, 64)
    assert torch.allclose(weighted(picture(8, 8)), 2 * plain(picture(8, 8)))
    again = load_user_extractor("own.features.Means", "", CPU, 64)
    assert plain.weights_sha256 == again.weights_sha256 != weighted.weights_sha256
    (tmp_path / "own" / "features.py").write_text(SOURCE + "\n# changed\n")
    assert load_user_extractor("own.features:Means", "", CPU, 64).weights_sha256 != plain.weights_sha256


def test_state_that_is_no_tensor_is_in_the_fingerprint(tmp_path):
    extra = "    num_features = 3\n\n    def get_extra_state(self):\n        return {'mean': STATE}\n"
    (tmp_path / "own" / "features.py").write_text("STATE = 0.5\n" + SOURCE.replace("    num_features = 3\n", extra))
    module = load_module("own.features", "own.features:Means")
    found = []
    for module.STATE in (0.5, 0.5, 0.25):
        found.append(fingerprint(module.Means(), module))
    assert found[0] == found[1] != found[2]


def test_the_fingerprint_covers_the_modules_that_define_its_layers(tmp_path):
    (tmp_path / "own" / "__init__.py").write_text("from own.features import Means")
    before = load_user_extractor("own:Means", "", CPU, 64).weights_sha256
    (tmp_path / "own" / "features.py").write_text(SOURCE + "\n# changed\n")
    assert load_user_extractor("own:Means", "", CPU, 64).weights_sha256 != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own.features:Mean", "has no Mean"),
        ("own.feature:Means", "cannot be imported"),
        (":Means", "give module:Class"),
        ("own.features:Broken", "could not be made: KeyError: 'layer4'"),
        ("own.features:nothing", "could not be made: TypeError"),
        ("own:__doc__", "could not be made"),
    ],
)
def test_what_cannot_be_used_is_one_line(name, said):
    with pytest.raises(UserError, match=said) as error:
        load_user_extractor(name, "", CPU, 64)
    assert "\n" not in str(error.value)


def test_features_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"gave \(8, 3\) where \(8, 4\)"):
        load_user_extractor("own.features:Wrong", "", CPU, 64)(picture(8, 8))


def test_weights_that_are_not_there_are_named():
    with pytest.raises(UserError, match=r"no\.pth of extractor own\.features:Means do not exist"):
        load_user_extractor("own.features:Means", "no.pth", CPU, 64)


@pytest.mark.parametrize("name", ["own.features:Means", "own.features.Means"])
def test_a_configuration_may_not_name_code(name):
    for use in (find_weights, lambda config: load_extractor(config, CPU, Team())):
        with pytest.raises(UserError, match="names code, which no configuration may have run"):
            use(EvaluationConfig(extractor=name))
    assert "own.features" not in sys.modules
