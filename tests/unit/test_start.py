"""A new run starts from the networks of another one, where they fit; what does not is told before anything is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny import make_config, make_shards

from scalegan import checkpoint, run, settings, start
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.errors import UserError
from scalegan.steps import Game, build_networks

CLASSES = ("Apple", "Kiwi", "Plum")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def index(folder) -> Index:
    return make_shards(folder / "data", classes=CLASSES)


def save(config: Config, index: Index, images_seen: int = 640, seed: int = 1) -> Path:
    """A checkpoint whose networks differ from those that a seed of 0 gives."""
    parts = {}
    for name, own in (("ema", seed), ("generator", seed + 1)):
        other = replace(config, train=replace(config.train, seed=own))
        parts[name] = build_networks(other, start.facts_of(index))[0].state_dict()
    parts["critic"] = build_networks(other, start.facts_of(index))[1].state_dict()
    data = {"shape": [index.channels, index.height, index.width], "classes": index.classes, "class_counts": index.class_counts}
    data |= {"path": index.root, "sha256": index.sha256}
    return checkpoint.save(Path(config.run), images_seen, parts, {"config": config.to_dict(), "data": data})


@pytest.fixture(scope="module")
def other(folder, index) -> Path:
    config = make_config(folder / "data", folder / "other", model={"conditional": True})
    save(config, index, 320)
    save(config, index, 640)
    return Path(config.run)


@pytest.fixture
def config(folder, other, tmp_path) -> Config:
    made = make_config(folder / "data", tmp_path / "new", model={"conditional": True})
    Path(made.run).mkdir()
    return replace(made, init_from=str(other))


def begun(config: Config, index: Index) -> Game:
    """The networks of a run that starts as it is told."""
    game = Game(config, Accelerator(cpu=True), start.facts_of(index))
    record = start.find(config, index)
    assert record is not None
    start.load(game, record)
    return game


def equal(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[bool]:
    return [torch.equal(value, tensors[name]) for name, value in network.state_dict().items()]


def test_generator_and_average_start_from_the_average_and_the_critic_from_the_critic(config, index, other):
    game, newest = begun(config, index), checkpoint.read(other / "checkpoints" / "000000640")
    assert all(equal(game.bare_generator, newest.tensors("ema")))
    assert all(equal(game.ema, newest.tensors("ema")))
    assert all(equal(game.bare_critic, newest.tensors("critic")))
    assert not checkpoint.optimizer_tensors(game.opt_d.optimizer)


def test_one_network_alone_can_be_taken(config, index, other):
    ours = build_networks(config, start.facts_of(index))
    game = begun(replace(config, init_networks="critic"), index)
    assert all(equal(game.bare_generator, ours[0].state_dict()))
    assert not all(equal(game.bare_critic, ours[1].state_dict()))
    game = begun(replace(config, init_networks="generator"), index)
    assert not all(equal(game.bare_generator, ours[0].state_dict()))
    assert all(equal(game.bare_critic, ours[1].state_dict()))


def test_a_checkpoint_can_be_named(config, index, other):
    record = start.find(replace(config, init_from=str(other / "checkpoints" / "000000320")), index)
    assert record is not None
    assert record["images_seen"] == 320


def test_a_folder_of_one_network_alone_says_how_to_take_it(config, index, other, tmp_path):
    """As `scalegan ema` leaves it."""
    found = checkpoint.read(other / "checkpoints" / "000000640")
    alone = checkpoint.save(tmp_path / "made", 640, {"ema": found.tensors("ema")}, dict(found.state))
    config = replace(config, init_from=str(alone))
    with pytest.raises(UserError, match=r"has no critic: take the generator alone, --init_networks generator"):
        start.find(config, index)
    assert start.find(replace(config, init_networks="generator"), index) is not None


def test_the_record_names_the_files_by_their_sha256(config, index, other):
    record = start.find(config, index)
    path = other / "checkpoints" / "000000640"
    assert record == {
        "checkpoint": str(path),
        "images_seen": 640,
        "data": {"path": index.root, "sha256": index.sha256},
        "files": {name: checkpoint.sha256(path / name) for name in ("ema.safetensors", "critic.safetensors")},
        "anew": {},
    }
    assert start.described(record, index) == f"networks from {path} (640 images seen)"


def test_networks_of_other_data_are_told(config, index, other):
    """A preset that starts from another run names one of the project's examples, and it may lie there."""
    record = start.find(config, index)
    elsewhere = replace(index, sha256="0" * 64, root="data/mine")
    assert start.described(record, elsewhere).endswith(f"(640 images seen, of {index.root}, not of data/mine)")


def test_a_run_that_is_not_there_is_told_with_the_option_and_the_folder(config, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        start.find(replace(config, init_from="runs/none"), index)
    assert str(refused.value) == (
        f"init_from: runs/none (in {tmp_path}) does not exist: give a run folder or one of its checkpoints, by --init_from"
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"width": 4}, r"model.width: 8 -> 4; generator.project.weight, .* do not fit"),
        ({"z_dim": 9}, r"model.z_dim: 8 -> 9; generator.project.weight do not fit"),
        ({"critic_norm": "batch"}, "model.critic_norm: none -> batch; critic.discriminator.layers"),
        ({"conditional": False}, "model.conditional: True -> False"),
        ({"family": "r3gan", "critic_norm": "auto"}, "has the generator dcgan, which is r3gan here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_networks_are_refused_with_the_difference(config, index, model, said):
    with pytest.raises(UserError, match=said) as told:
        start.find(replace(config, model=replace(config.model, **model)), index)
    assert "\n" not in str(told.value)
    assert not list(Path(config.run).iterdir())


def test_a_critic_of_another_family_does_not_matter_where_it_is_not_taken(config, index):
    other = replace(config, model=replace(config.model, critic_family="r3gan", critic_norm="auto", group_width=4))
    with pytest.raises(UserError, match="has the critic dcgan, which is r3gan here"):
        start.find(other, index)
    assert start.find(replace(other, init_networks="generator", init_partial=True), index)
    assert start.find(replace(other, init_networks="generator"), index)


def test_images_of_another_size_are_refused_even_where_every_tensor_fits(config, folder, tmp_path):
    larger = make_shards(tmp_path / "larger", height=16, width=16, classes=CLASSES)
    with pytest.raises(UserError, match=r"images: \[1, 16, 12\] -> \[1, 16, 16\]"):
        start.find(config, larger)


def test_other_classes_are_refused_where_networks_are_told_the_class(config, folder, tmp_path):
    renamed = make_shards(tmp_path / "renamed", classes=("Apple", "Kiwi", "Pear"))
    with pytest.raises(UserError, match=r"classes: \['Apple', 'Kiwi', 'Plum'\] -> \['Apple', 'Kiwi', 'Pear'\]"):
        start.find(config, renamed)


def test_classes_do_not_matter_to_networks_that_are_not_told(index, folder, tmp_path):
    plain = make_config(folder / "data", tmp_path / "plain")
    save(plain, index)
    unlabelled = make_shards(tmp_path / "unlabelled")
    assert start.find(replace(plain, run=str(tmp_path / "new"), init_from=plain.run), unlabelled)


def test_in_part_what_fits_is_taken_and_the_rest_is_named(config, index, other):
    partial = replace(config, init_partial=True, model=replace(config.model, z_dim=9))
    record = start.find(partial, index)
    assert record is not None
    assert record["anew"] == {"generator": ["project.weight"]}
    assert start.described(record, index).endswith("these begin anew: generator.project.weight")
    game, tensors = begun(partial, index), checkpoint.read(Path(record["checkpoint"])).tensors("ema")
    own = build_networks(partial, start.facts_of(index))[0].state_dict()
    for name, value in game.ema.state_dict().items():
        assert torch.equal(value, own[name] if name == "project.weight" else tensors[name])


def test_in_part_something_has_to_fit(config, index, tmp_path):
    other = replace(config.model, critic_norm="batch", critic_width=4)
    with pytest.raises(UserError, match="not one tensor of the critic fits"):
        start.find(replace(config, init_partial=True, model=other), index)


def test_a_stage_that_begins_anew_is_not_frozen(config, index):
    partial = replace(config, init_partial=True, optim=replace(config.optim, freeze_critic=1))
    assert start.find(partial, index)
    wider = replace(partial, model=replace(config.model, critic_width=6))
    with pytest.raises(UserError, match=r"critic\.\S+ would begin anew and stay frozen: lower optim.freeze_critic"):
        start.find(wider, index)


def test_how_far_classes_have_come_in_is_no_weight(config, index, tmp_path):
    ramped = make_config(Path(index.root), tmp_path / "ramped", model={"conditional": True, "class_ramp": 64})
    save(ramped, index)
    assert start.find(replace(config, init_from=ramped.run), index)
    again = replace(ramped, run=str(tmp_path / "again"), init_from=config.init_from)
    assert start.find(again, index)


def test_the_strength_of_fastgans_noise_is_a_weight(index, folder, tmp_path):
    learnt = make_config(folder / "data", tmp_path / "learnt", model={"family": "fastgan", "critic_norm": "auto"})
    networks, facts = build_networks(learnt, start.facts_of(index)), start.facts_of(index)
    strengths = {name: p for name, p in networks[0].named_parameters() if name.endswith(".strength")}
    assert strengths
    for parameter in strengths.values():
        parameter.data.fill_(0.7)
    found = start.match(build_networks(learnt, facts)[0], networks[0].state_dict())
    assert strengths.keys() <= found.fitting.keys()
    assert not found.lacking


def test_a_run_with_a_checkpoint_of_its_own_looks_at_no_other(config, index):
    save(config, index)
    assert start.find(replace(config, init_from="nowhere"), index) is None


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_from_the_same_one(config, index, folder, tmp_path):
    source = Path(shutil.copytree(config.init_from, tmp_path / "source"))
    config = replace(config, init_from=str(source))
    record = start.find(config, index)
    run.claim(Path(config.run), config, "sha", record)
    save(replace(config, run=str(source)), index, 960)
    assert start.find(config, index) == record
    run.claim(Path(config.run), config, "sha")
    assert run.started_from(Path(config.run)) == record
    shutil.rmtree(source / "checkpoints" / "000000640")
    lost = r"000000640, which run folder .* was started from, is gone or damaged.*: restore it, or give --run another folder$"
    with pytest.raises(UserError, match=lost):  # and not to give another --init_from, which would be refused
        start.find(config, index)


def test_a_start_that_has_changed_is_refused(config, index, tmp_path):
    source = Path(shutil.copytree(config.init_from, tmp_path / "source"))
    config = replace(config, init_from=str(source))
    record = start.find(config, index)
    run.claim(Path(config.run), config, "sha", record)
    save(replace(config, run=str(source)), index, seed=3)
    with pytest.raises(UserError, match=r"is not what run folder .* was started from"):
        start.find(config, index)


def test_another_start_is_another_run(config):
    run.claim(Path(config.run), config, "sha")
    with pytest.raises(UserError, match=r"init_from: .*other -> elsewhere"):
        run.claim(Path(config.run), replace(config, init_from="elsewhere"), "sha")


def test_it_is_given_on_the_command_line(tmp_path):
    given = ["--data.path", "x", "--init_from", "runs/a", "--init_networks", "critic", "--init_partial"]
    config = settings.parse([*given, "--optim.freeze_critic", "2"]).config
    assert (config.init_from, config.init_networks, config.init_partial) == ("runs/a", "critic", True)
    assert config.optim.freeze_critic == 2
    run.claim(tmp_path, config, "sha")
    assert settings.read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("arguments", "advice"), [
    ([], "give --init_from RUN, with its critic"),
    (["--init_from", "runs/a", "--init_networks", "generator"], "give --init_networks both"),
])  # fmt: skip
def test_only_a_critic_that_has_learnt_is_frozen(arguments, advice):
    config = settings.parse(["--data.path", "x", "--optim.freeze_critic", "2", *arguments]).config
    with pytest.raises(UserError, match=advice):
        config.check(1)


def test_more_stages_than_there_are_is_told_before_anything_is_written(config, index):
    with pytest.raises(UserError, match=r"freeze_critic 9: this critic has 3 stages"):
        start.find(replace(config, optim=replace(config.optim, freeze_critic=9)), index)
