"""Classes of the user's own are found by dotted name, and never imported on the word of a run."""

import importlib
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import make_config, make_shards

from scalegan import checkpoint, cli, load_generator, own, settings, start
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.data.loader import Batch
from scalegan.distributed import make_accelerator
from scalegan.errors import UserError
from scalegan.loss_config import LossConfig
from scalegan.steps import Game
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog

DOCS = Path(__file__).parents[2] / "docs" / "own_networks.md"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to start in, with the module of the documentation."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = re.search(r"```python\n(import math.*?)```", DOCS.read_text(), re.DOTALL)
    assert code
    Path("mine.py").write_text(code[1])
    yield tmp_path
    for name in ("mine", "trap", "broken", "normed", "styled", "tied"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture
def index(folder) -> Index:
    return make_shards(folder / "data")


@pytest.fixture
def config(folder, index) -> Config:
    config = make_config(folder / "data", folder / "run", loss={"own": "mine.LOSS", "r1_gamma": 1.0})
    return replace(config, model=replace(config.model, generator="mine.Generator", discriminator="mine.Discriminator"))


def save(config: Config, index: Index) -> None:
    """A checkpoint of a run with the own generator, whose module is afterwards as if it had never been imported."""
    made = own.network("--model.generator", "mine.Generator")
    assert made is not None
    shape = (index.channels, index.height, index.width)
    data = {"shape": shape, "classes": [], "class_counts": [], "path": index.root, "sha256": index.sha256}
    parts = {"ema": made(config.model, shape, 0).state_dict()}
    checkpoint.save(Path(config.run), 640, parts, {"config": config.to_dict(), "data": data, "best": {}})
    sys.modules.pop("mine")


def test_the_documented_networks_and_loss_play_against_each_other(config, index):
    game = Game(config, Accelerator(cpu=True), start.facts_of(index))
    assert {type(net).__module__ for net in (game.bare_generator, game.bare_critic.discriminator)} == {"mine"}
    real = Batch(torch.randint(0, 256, (8, 1, 16, 12), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    before = [p.clone() for net in (game.bare_generator, game.bare_critic) for p in net.parameters()]
    values = game.discriminator_step([real], 0).means() | game.generator_step([real], 0).means()
    assert values["loss/D"].isfinite()
    assert values["r1"] > 0
    after = [p for net in (game.bare_generator, game.bare_critic) for p in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_layers_of_a_generator_may_share_their_weights(config, index):
    Path("tied.py").write_text(
        "import mine\nfrom torch import nn\nclass Generator(mine.Generator):\n    def __init__(self, config, *facts):\n"
        "        super().__init__(config, *facts)\n        self.again = nn.Linear(config.z_dim, config.width)\n"
        "        self.again.weight = self.hidden.weight\n    def forward(self, latents, labels):\n"
        "        return super().forward(latents, labels) + 0 * self.again(latents).sum()\n"
    )
    ema, log = replace(config.ema, power=(0.05, 0.1)), replace(config.log, snapshots=32)
    config = replace(config, model=replace(config.model, generator="tied.Generator"), ema=ema, log=log)
    assert Trainer(config, make_accelerator(config.train), index, None, Watchdog(0, Path(), 0)).train()
    kept = checkpoint.read(Path("run/snapshots/000000064")).tensors("power_0.1")
    assert torch.equal(kept["again.weight"], kept["hidden.weight"])


def test_a_path_length_penalty_needs_a_generator_with_intermediate_latents(config):
    paths = replace(config, loss=replace(config.loss, path_weight=2.0))
    paths.check(1)
    with pytest.raises(UserError, match=r"mine\.Generator has no styles and no synthesise: set it to 0, or derive the class"):
        own.check(paths)
    with Path("mine.py").open("a") as file:
        file.write("\nfrom scalegan.models import stylegan2\nclass Styled(stylegan2.Generator): pass\n")
    sys.modules.pop("mine")
    own.check(replace(paths, model=replace(paths.model, generator="mine.Styled")))
    own.check(config)


@pytest.mark.parametrize("kept", ["None", "torch.zeros(())", "RunningMean()"])
def test_a_path_length_penalty_needs_a_place_for_its_running_mean(config, index, kept):
    Path("styled.py").write_text(
        "import mine, torch\nfrom scalegan.models.batch_norm import RunningMean\n"
        "class Generator(mine.Generator):\n    def __init__(self, config, shape, classes):\n"
        f"        super().__init__(config, shape, classes)\n        self.path_length = {kept}\n"
        "    def styles(self, latents, labels, keys):\n        return self.hidden(latents)[:, None]\n"
        "    def synthesise(self, ws, keys):\n        return self.to_image(ws[:, 0].relu()).tanh().view(-1, *self.shape)\n"
    )
    model = replace(config.model, generator="styled.Generator")
    paths = replace(config, model=model, loss=replace(config.loss, path_weight=2.0, path_every=1))
    own.check(paths)
    told = pytest.raises(UserError, match=r"styled\.Generator: loss\.path_weight 2\.0 keeps .* self\.path_length = RunningMean")
    fits = kept == "RunningMean()"
    with nullcontext() if fits else told:
        game = Game(paths, Accelerator(cpu=True), start.facts_of(index))
    if fits:
        real = Batch(torch.zeros(8, 1, 16, 12, dtype=torch.uint8), torch.full((8,), -1))
        assert game.generator_step([real], 0).means()["path_length"] > 0
        assert game.bare_generator.path_length.mean > 0


@pytest.mark.parametrize("way", [[], ["--dry_run"], ["--debug"]])
def test_that_is_told_before_anything_is_made(index, capsys, way):
    given = ["--data.path", "data", "--run", "new", "--train.batch", "8", "--train.device", "cpu"]
    assert cli.main(["train", *given, "--model.generator", "mine.Generator", "--loss.path_weight", "2", *way]) == 2
    assert "loss.path_weight 2.0 needs intermediate latents, and mine.Generator has no styles" in capsys.readouterr().err
    assert not list(Path().glob("new*"))


def test_a_generator_that_knows_no_truncation_is_not_truncated(config, index, capsys):
    config = replace(config, model=replace(config.model, family="stylegan2", critic_norm="auto"))
    save(config, index)
    given = ["sample", "run", "--out", "samples", "--generator", "mine.Generator", "--truncation", "0.7"]
    assert cli.main(given) == 2
    assert "is of the generator mine.Generator, which cannot be truncated: sample it as it is" in capsys.readouterr().err


def test_the_documented_loss_is_smoothed():
    import math

    loss = own.loss_of(LossConfig(own="mine.LOSS"))
    real = torch.tensor([math.log(0.9 / 0.1)])  # D(x) = 0.9 is its target
    slope = torch.func.grad(lambda logits: loss.critic(logits, torch.zeros(1)))(real)
    assert slope.item() == pytest.approx(0, abs=1e-7)


def test_a_run_is_opened_with_the_class_given_again(config, index, capsys):
    save(config, index)
    assert cli.main(["sample", "run", "--n", "2", "--out", "samples", "--generator", "mine.Generator"]) == 0
    from mine import Generator

    assert load_generator("run", generator=Generator).sample(3).shape == (3, 1, 16, 12)


@pytest.mark.parametrize("command", [["sample", "run", "--out", "samples"], ["evaluate", "run", "--against", "data"]])
def test_without_it_nothing_is_imported_and_one_line_says_what_to_give(config, index, capsys, command):
    Path("trap.py").write_text("open('sprung', 'w')\nfrom mine import Generator\n")
    save(replace(config, model=replace(config.model, generator="trap.Generator")), index)
    Path("run/config.yaml").write_text("model: {generator: trap.Generator}\n")
    assert cli.main([*command, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "the generator is the class trap.Generator, which is not imported" in error
    assert "--generator trap.Generator" in error
    assert error.count("\n") == 1
    with pytest.raises(UserError, match="is not imported on the word of a run"):
        load_generator("run")
    assert not Path("sprung").exists()
    assert cli.main([*command, "--device", "cpu", "--generator", "trap.Generatr"]) == 2  # the trap springs when it is set off
    assert Path("sprung").exists()


def test_another_class_than_that_of_the_run_is_told(config, index):
    save(config, index)
    from mine import Discriminator

    with pytest.raises(UserError, match=r"holds another generator than Discriminator \(.*\): give its class"):
        load_generator("run", generator=Discriminator)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Generator", "give a module and a name in it"),
        ("mine..Generator", "give a module and a name in it"),
        ("mine/Generator.x", "give a module and a name in it"),
        ("mine.py", "give a module and a name in it"),
        ("mien.Generator", "mien cannot be imported (No module named 'mien')"),
        ("mine.Generatr", "mine has no Generatr; did you mean Generator?"),
        ("mine.LOSS", "is no class of torch.nn.Module"),
        ("mine.Judgement", "is no class of torch.nn.Module"),
    ],
)
def test_a_bad_name_is_told_in_one_line(name, message):
    with pytest.raises(UserError) as told:
        own.network("--model.generator", name)
    assert str(told.value).startswith(f"--model.generator {name}")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


RAISES = {
    "import": (
        "    raise ValueError('two\\nlines')\n",
        r"--model.generator fails_import.Generator: fails_import raised ValueError at .*fails_import.py:3 \(two lines\): ",
    ),
    "syntax": (
        "    x = (\n",
        r"--model.generator fails_syntax.Generator: fails_syntax raised SyntaxError \(.* \(fails_syntax.py, line 3\)\): ",
    ),
    "making": (
        "    def __init__(self, width):\n        super().__init__()\n",
        r"the generator fails_making.Generator raised TypeError \(.*positional.*\): .* is made with \(config, shape, classes\)",
    ),
    "signature": (
        "    def forward(self, latents):\n        return latents\n",
        r"--model.generator fails_signature.Generator raised TypeError \(.*positional.*\): its forward pass was given latents ",
    ),
    "shapes": (
        "    def forward(self, latents, labels):\n        return self.hidden(latents[:, 1:])\n",
        r"--model.generator fails_shapes.Generator raised RuntimeError at .*fails_shapes.py:4 \(mat1 and mat2",
    ),
}


@pytest.mark.parametrize("way", RAISES)
def test_what_own_code_raises_is_told_in_one_line_with_its_place(config, index, way):
    body, told = RAISES[way]
    Path(f"fails_{way}.py").write_text(f"import mine\nclass Generator(mine.Generator):\n{body}")
    bad = replace(config, model=replace(config.model, generator=f"fails_{way}.Generator"))
    with pytest.raises(UserError, match=told) as error:
        Game(bad, Accelerator(cpu=True), start.facts_of(index))
    assert "\n" not in str(error.value)


def test_what_an_own_loss_raises_is_told_in_one_line():
    Path("failing_loss.py").write_text(
        "from scalegan.losses import Loss\n"
        "MINE = Loss(critic=lambda logits: logits.mean(), generator=lambda fake: -fake.mean())\n"
    )
    with pytest.raises(UserError, match=r"--loss.own failing_loss.MINE raised TypeError \(.*\): it was given logits \[2\]"):
        own.loss_of(LossConfig(own="failing_loss.MINE"))


def test_signs_are_not_followed_where_a_loss_gives_them_no_meaning(config, index):
    with open("mine.py", "a") as file:
        file.write("\nimport dataclasses\nAPART = dataclasses.replace(LOSS, boundary=None)\n")
    sys.modules.pop("mine", None)
    apart = replace(config, loss=replace(config.loss, own="mine.APART"), augment=replace(config.augment, shift=0.1, target=0.6))
    with pytest.raises(UserError, match=r"in loss.own mine.APART only differences of logits mean anything"):
        Game(apart, Accelerator(cpu=True), start.facts_of(index))


def test_a_loss_is_an_object_of_its_class():
    with pytest.raises(UserError, match=r"--loss.own mine.smoothed is no scalegan.losses.Loss"):
        own.loss_of(LossConfig(own="mine.smoothed"))
    with pytest.raises(UserError, match=r"loss.name hinge has no effect with loss.own"):
        LossConfig(own="mine.LOSS", name="hinge")


def test_a_bad_name_is_told_before_a_run_folder_is_made(index, capsys):
    assert cli.main(["train", "--data.path", "data", "--run", "new", "--train.batch", "8", "--loss.own", "mine.LOS"]) == 2
    assert "mine has no LOS; did you mean LOSS?" in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_discriminator_has_to_say_whether_it_couples_samples(config, index):
    Path("broken.py").write_text(
        "import mine\nclass Discriminator(mine.Discriminator):\n    pass\ndel mine.Discriminator.couples_samples\n"
    )
    bad = replace(config, model=replace(config.model, discriminator="broken.Discriminator"))
    with pytest.raises(UserError, match=r"model.discriminator broken.Discriminator does not say .* couples_samples"):
        Game(bad, Accelerator(cpu=True), start.facts_of(index))


@pytest.mark.parametrize(("layer", "refused"), [
    ("nn.BatchNorm2d(1)", True),
    ("nn.InstanceNorm2d(1, track_running_stats=True)", True),
    ("nn.BatchNorm2d(1, track_running_stats=False)", False),
    ("nn.BatchNorm2d(1).eval()", False),
    ("nn.SyncBatchNorm(1)", False),
    ("nn.InstanceNorm2d(1)", False),
    ("BatchNorm(1)", False),
])  # fmt: skip
def test_running_statistics_of_one_process_alone_are_refused_on_several(layer, refused):
    Path("normed.py").write_text(
        "from torch import nn\nfrom scalegan.models.batch_norm import BatchNorm\nclass Normed(nn.Module):\n"
        f"    def __init__(self):\n        super().__init__()\n        self.norm = {layer}\n"
    )
    network = own.network("--model.generator", "normed.Normed")()
    if refused:
        with pytest.raises(UserError, match=r"of its \w+ norm would be others on each process: take scalegan"):
            own.check_statistics("--model.generator normed.Normed", network)
    else:
        own.check_statistics("--model.generator normed.Normed", network)


@pytest.mark.parametrize(("layer", "refused"), [
    ("nn.BatchNorm2d(1)", True),
    ("nn.BatchNorm2d(1, track_running_stats=False)", True),
    ("nn.BatchNorm2d(1).eval()", False),
    ("nn.InstanceNorm2d(1)", False),
    ("BatchNorm(1, running=False)", False),
])  # fmt: skip
def test_a_discriminator_that_normalises_by_the_images_of_one_process_is_refused_on_several(layer, refused):
    Path("normed.py").write_text(
        "from torch import nn\nfrom scalegan.models.batch_norm import BatchNorm\nclass Normed(nn.Module):\n"
        f"    def __init__(self):\n        super().__init__()\n        self.norm = {layer}\n"
    )
    network = own.network("--model.discriminator", "normed.Normed")()
    told = r"--model.discriminator normed.Normed: its BatchNorm2d norm .* take scalegan\S+BatchNorm\(channels, running=False\)"
    with pytest.raises(UserError, match=told) if refused else nullcontext():
        own.check_moments("--model.discriminator normed.Normed", network)


SLIPS = {
    "no judgement": ("Discriminator", "made.logits", "returns Tensor: return scalegan.models.conditions.Judgement"),
    "one logit": ("Discriminator", "Judgement(made.logits.sum(), {})", r"its logits of 2 inputs are \[\] in torch.float32"),
    "half": ("Discriminator", "Judgement(made.logits.half(), {})", r"its logits .* \[2\] in torch.float16: .* in float32"),
    "no such loss": ("Discriminator", "Judgement(made.logits, {'foo': made.logits})", "returns a loss foo: name it one of"),
    "a sum": ("Discriminator", "Judgement(made.logits, {'class': made.logits.sum()})", r"its losses class .* are \[\]"),
    "a size": ("Generator", "made[..., 1:]", r"its images .* are \[2, 1, 16, 11\] .* a tensor \[2, 1, 16, 12\]"),
    "bfloat16": ("Generator", "made.bfloat16()", "its images .* in torch.bfloat16: return a tensor"),
    "a pair": ("Generator", "(made, y)", "its images of 2 inputs are tuple: return a tensor"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_a_network_returns_is_looked_at_before_the_first_step(config, index, slip):
    network, returned, told = SLIPS[slip]
    Path("broken.py").write_text(
        "import mine\nfrom scalegan.models.conditions import Judgement\n"
        f"class {network}(mine.{network}):\n    def forward(self, x, y):\n"
        f"        made = super().forward(x, y)\n        return {returned}\n"
    )
    bad = replace(config, model=replace(config.model, **{network.lower(): f"broken.{network}"}))
    with pytest.raises(UserError, match=f"--model.{network.lower()} broken.{network}:? {told}"):
        Game(bad, Accelerator(cpu=True), start.facts_of(index))


class Computed(torch.nn.Module):
    """Its weight is computed, as by the older weight norm of torch, and one of its layers is held in evaluation."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.weight = 2 * self.gain
        self.held, self.norm = torch.nn.Dropout().eval(), torch.nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(self.held(x)) * self.weight


def test_looking_at_what_a_network_returns_leaves_no_trace():
    network = Computed()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert own.passed(network, torch.full((2, 1), 3.0)).shape == (2, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (network.training, network.norm.training, network.held.training) == (True, True, False)


@pytest.mark.parametrize(("returned", "told"), [("fake - real", r"\[2\]"), ("(fake - real).mean().item()", "float")])
def test_a_loss_that_is_no_mean_is_refused(returned, told):
    loss = f"Loss(critic=lambda real, fake: {returned}, generator=lambda fake: -fake.mean())"
    name = f"broken_{told.isalpha()}"  # a module is imported once
    Path(f"{name}.py").write_text(f"from scalegan.losses import Loss\nMINE = {loss}\n")
    with pytest.raises(UserError, match=rf"--loss.own {name}.MINE: its critic returns {told}: return the mean, one number"):
        own.loss_of(LossConfig(own=f"{name}.MINE"))


@pytest.mark.parametrize(("layer", "couples", "told"), [
    ("nn.BatchNorm1d(8)", False, r"its BatchNorm1d hidden\.1 compares the images of a batch: set couples_samples to True"),
    ("nn.BatchNorm1d(8)", True, r"no exact penalty goes through the running statistics of its BatchNorm1d hidden\.1: take"),
    ("nn.BatchNorm1d(8, track_running_stats=False)", True, ""),
    ("BatchNorm(8, running=False)", True, ""),
    ("nn.BatchNorm1d(8).eval()", False, ""),
])  # fmt: skip
def test_torchs_batch_norm_in_a_discriminator(config, index, layer, couples, told):
    Path("normed.py").write_text(
        "import mine\nfrom torch import nn\nfrom scalegan.models.batch_norm import BatchNorm\n"
        f"class Discriminator(mine.Discriminator):\n    couples_samples = {couples}\n    def __init__(self, *facts):\n"
        f"        super().__init__(*facts)\n        self.hidden = nn.Sequential(self.hidden, {layer})\n"
    )
    config = replace(config, model=replace(config.model, discriminator="normed.Discriminator"))
    with pytest.raises(UserError, match=told) if told else nullcontext():
        game = Game(config, Accelerator(cpu=True), start.facts_of(index))
        images = torch.zeros(8, 1, 16, 12, dtype=torch.uint8)
        assert game.discriminator_step([Batch(images, torch.full((8,), -1))], 0).means()["r1"].isfinite()


def test_parsing_imports_nothing():
    given = ["--model.generator", "no.such.Module", "--loss.own", "no.such.LOSS"]
    config = settings.parse(["--data.path", "x", *given]).config
    assert (config.model.generator, config.loss.own) == ("no.such.Module", "no.such.LOSS")
