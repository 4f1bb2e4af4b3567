"""Defaults < preset < options, and a mistake is told in one line with the nearest name."""

import re
from pathlib import Path

import pytest

from scalegan import settings
from scalegan.config import Config
from scalegan.errors import UserError

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: shards}\nmodel: {width: 32}\noptim: {betas_d: [0, 0.9]}\n")
    return str(path)


def test_options_override_the_file_and_the_file_the_defaults(preset):
    config = settings.parse(["--config", preset, "--model.z_dim", "50"]).config
    assert (config.model.width, config.model.z_dim, config.model.critic_width) == (32, 50, Config().model.critic_width)
    assert config.optim.betas_d == (0.0, 0.9)
    assert config.run == "runs/shards"


def test_options_override_the_file_wherever_they_stand(preset):
    options = ["--model.width=48", "--augment.pipe=photo", "--augment.mirror=false"]
    assert settings.parse([*options, "--config", preset]) == settings.parse([f"--config={preset}", *options])
    config = settings.parse([*options, "--config", preset]).config
    assert (config.model.width, config.augment.mirror, config.augment.rotate90) == (48, False, True)


@pytest.mark.parametrize("given", [["--augment={pipe: photo, mirror: false}"], ["--augment", "{pipe: photo, mirror: false}"]])
def test_a_section_as_one_option_is_its_settings_one_by_one(preset, given):
    apart = ["--augment.pipe=photo", "--augment.mirror=false"]
    assert settings.parse(["--config", preset, *given]) == settings.parse(["--config", preset, *apart])


def test_a_section_may_be_in_a_file_of_its_own(preset, tmp_path):
    (tmp_path / "augment.yaml").write_text("pipe: photo\nmirror: false\n")
    given, apart = ["--augment", str(tmp_path / "augment.yaml")], ["--augment.pipe=photo", "--augment.mirror=false"]
    assert settings.parse(["--config", preset, *given]) == settings.parse(["--config", preset, *apart])
    with pytest.raises(UserError, match=r"--augment gone\.yaml \(in .*\): no such file"):
        settings.parse(["--config", preset, "--augment", "gone.yaml"])
    for content in (b"pipe: [\n", b"\xff\n"):
        (tmp_path / "augment.yaml").write_bytes(content)
        with pytest.raises(UserError, match=r"augment\.yaml is no valid YAML: [^\n]*$"):
            settings.parse(["--config", preset, *given])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--augment", "{pip: photo}"], "unknown option --augment.pip; did you mean --augment.pipe?"),
        (["--model", "3"], "--model 3: give settings in braces, as in --model '{NAME: VALUE}', or --model.NAME VALUE"),
        (["--model={width: 8"], "--model {width: 8: give settings in braces"),
        (["--model"], "--model : give settings in braces"),
    ],
)
def test_a_section_that_holds_no_settings_is_one_line(preset, given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        settings.parse(["--config", preset, *given])


def test_words_of_a_file_are_what_is_written_there(tmp_path):
    """YAML 1.1, as most programs read it, says that `off` is false and 1e-3 is a text."""
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: 123}\nlog: {wandb: off}\noptim: {lr_g: 1e-3}\ninit_partial: true\noverride_resume: false\n")
    config = settings.parse(["--config", str(path)]).config
    assert (config.data.path, config.log.wandb, config.optim.lr_g) == ("123", "off", 1e-3)
    assert (config.init_partial, config.override_resume) == (True, False)


@pytest.mark.parametrize(("word", "expected"), [("True", True), ("yes", True), ("on", True), ("False", False), ("off", False)])
def test_a_flag_in_a_file_is_spelt_as_any_other_boolean(tmp_path, word, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{path: x, mirror: {word}}}\ndry_run: {word}\ninit_partial: {word}\n")
    request = settings.parse(["--config", str(path)])
    assert (request.config.data.mirror, request.dry_run, request.config.init_partial) == (expected, expected, expected)


@pytest.mark.parametrize("nothing", ["null", "~", "Null", ""])
def test_null_in_a_file_is_nothing_and_no_word(tmp_path, nothing):
    """As YAML has it, `run: null`, `run: ~` and `run:` are one and the same."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{path: x}}\nrun: {nothing}\ninit_from: {nothing}\nmodel:\n  generator: {nothing}\n")
    config = settings.parse(["--config", str(path)]).config
    assert (config.run, config.init_from, config.model.generator) == ("runs/x", "", "")
    path.write_text("data: {path: 'null'}\nrun: '~'\n")
    config = settings.parse(["--config", str(path)]).config
    assert (config.data.path, config.run) == ("null", "~")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"data: {path: x}\ndry_run: 1\n", "dry_run is 1: expected true or false"),
        (b"data: {path: x}\ndebug: [true]\n", "debug is [True]: expected true or false"),
        (b"data: {path: x}\ndebug:\n", "debug: expected true or false"),
        (b"data: {path: x}\ntrain:\n", "section train holds no settings: give it one, or take its line out"),
        (b"data: {path: x}\ntrain: null\n", "section train holds no settings: give it one, or take its line out"),
        (b"data: {path: x}\ntrain:\n  batch:\n", "train.batch: expected a whole number"),
        (b"data: {path: x}\ntrain:\n  batch: null\n", "train.batch: expected a whole number"),
        (b"data: {path: x}\ntrain: 5\n", "section train holds no settings"),
        (b"on: 1\n", "unknown key on"),
        (b"data: {path: x}\nconfig: other.yaml\n", "unknown key config"),
        (b"\x89PNG\r\n\x1a\n", "is no valid YAML"),
        (b"- 1\n", "must hold sections"),
        (b"data: [\n", "is no valid YAML"),
        (b"data: {path: x}\ntrain: {batch: 8}\ntrain: {images: 9}\n", "train stands there twice, in lines 2 and 3"),
        (b"data: {path: x}\ntrain:\n  images: 9\n  images: 9\n", "images stands there twice, in lines 3 and 4"),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_in_one_line(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        settings.parse(["--config", str(path)])
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--debug"], True),
        (["--debug", "true"], True),
        (["--debug=no"], False),
        (["--debug", "--debug", "false"], False),
        (["--debug", "--run", "x"], True),
    ],
)
def test_a_flag_stands_alone_or_takes_a_boolean(given, expected):
    assert settings.parse(["--data.path=x", *given]).debug is expected


def test_a_flag_of_a_file_can_be_taken_back(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: x}\ninit_partial: true\n")
    assert settings.parse(["--config", str(path)]).config.init_partial
    assert not settings.parse(["--config", str(path), "--init_partial", "false"]).config.init_partial


def test_what_is_written_is_read_back(preset, tmp_path):
    from scalegan import run

    config = settings.parse(["--config", preset]).config
    run.claim(tmp_path, config, "0")
    assert settings.read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(path):
    assert settings.parse(["--config", path.stem]).config.check(2) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.widht", "3"], "unknown option --model.widht; did you mean --model.width?"),
        (["--width", "3"], "did you mean --model.width?"),
        (["--model.width", "wide"], "model.width is wide: expected a whole number"),
        (["--ema.power", "0.05"], "ema.power is 0.05: expected numbers in brackets, as in [0.1, 0.2]"),
        (["--optim.betas_g", "(0,0.99)"], "optim.betas_g is (0,0.99): expected numbers in brackets, as in [0.1, 0.2]"),
        (["--optim.betas_g", "[0.5]"], "optim.betas_g is [0.5]: expected 2 numbers in brackets, as in [0.1, 0.2]"),
        (["--model.width", "0"], "model.width is 0: give at least 1"),
        (["--data.memory_gb", "-1"], "data.memory_gb is -1.0: give 0 or more"),
        (["--train.precision", "bf61"], "train.precision is bf61: expected one of ['auto', 'fp32', 'bf16', 'fp16']"),
        (["--config", "kiwi_smal"], "did you mean kiwi_small?"),
    ],
)
def test_mistakes_are_told_in_one_line(preset, arguments, expected):
    with pytest.raises(UserError) as told:
        settings.parse(["--config", preset, *arguments])
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["kiwi", "kiwi.yaml", "configs/kiwi.yaml"])
def test_a_preset_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.parse(["--config", name]).config.run == "runs/kiwi"


@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_that_is_not_there_is_no_preset_of_the_same_name(absolute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "mine" / "kiwi.yaml") if absolute else "mine/kiwi.yaml"
    with pytest.raises(UserError, match=f"--config {name}: no such file or preset; did you mean kiwi?"):
        settings.parse(["--config", name])


@pytest.mark.parametrize(("path", "run"), [("..", "runs/fruit"), (".", "runs/kiwi"), ("../apple/", "runs/apple")])
def test_a_run_is_called_by_its_data_wherever_the_command_stands(path, run, tmp_path, monkeypatch):
    (tmp_path / "fruit" / "kiwi").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "fruit" / "kiwi")
    assert settings.parse(["--data.path", path]).config.run == run


def test_an_unknown_key_in_a_file_is_named_with_its_neighbour(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("data: {path: x}\noptim: {lr: 1.0}\n")
    with pytest.raises(UserError, match=r"unknown key optim.lr; did you mean optim.lr_[gd]\?"):
        settings.parse(["--config", str(path)])


@pytest.mark.parametrize("lines", ["train: {batch: 16}\ntrain.batch: 8\n", "train.batch: 8\ntrain: {batch: 16}\n"])
def test_a_setting_of_a_section_and_once_more_outside_it_is_refused(tmp_path, lines):
    path = tmp_path / "mine.yaml"
    path.write_text("data.path: shards\n" + lines)
    with pytest.raises(UserError, match=r"mine.yaml: train.batch stands there twice, once in its section train: keep one"):
        settings.parse(["--config", str(path)])


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: ~/shards, held_out: ~, cache: ~/b}\ninit_from: ~nobody-of-this-name/x\n")
    config = settings.parse(["--config", str(path), "--run=~/runs/x"]).config
    assert (config.run, config.data.path, config.data.held_out) == ("/home/ann/runs/x", "/home/ann/shards", "")
    assert (config.data.cache, config.init_from) == ("~/b", "~nobody-of-this-name/x")


def test_a_wrong_type_in_a_file_is_named_in_one_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("data: {path: x}\nmodel: {width: wide}\n")
    with pytest.raises(UserError, match=r"model.width is wide: expected a whole number") as told:
        settings.parse(["--config", str(path)])
    assert "\n" not in str(told.value)


def test_the_printed_configuration_is_the_one_that_would_run(preset, tmp_path, capsys):
    given = ["--config", preset, "--model.width", "48", "--optim.betas_g=[0.1,0.9]"]
    with pytest.raises(SystemExit) as left:
        settings.parse([*given, "--print_config"])
    assert not left.value.code
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert settings.parse(["--config", str(tmp_path / "printed.yaml")]).config == settings.parse(given).config


def test_a_batch_must_divide_over_processes_and_rounds():
    config = settings.to_config({**Config().to_dict(), "run": "r"})
    with pytest.raises(UserError, match=r"not divisible by 3 processes x train.accumulate 1: try --train.batch 63"):
        config.check(3)


def test_what_only_moves_files_keeps_the_identity(preset):
    one = settings.parse(["--config", preset]).config
    other = settings.parse(["--config", preset, "--run", "elsewhere", "--data.path", "moved", "--log.every", "5"]).config
    changed = settings.parse(["--config", preset, "--optim.lr_g", "0.1"]).config
    assert one.identity() == other.identity() != changed.identity()


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"data: 5\n", b"data: [\n", b"\xff\n", b"data: {path: x}\n"])
def test_a_damaged_configuration_of_a_run_is_one_line(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config.yaml cannot be read as a run's configuration \(.*\): restore it; ") as told:
        settings.read_config(tmp_path / "config.yaml")
    assert "\n" not in str(told.value)
