"""From defaults, a preset file and dotted options to a checked `Config`. Imports no torch.

The order is defaults < `--config` file < options. An unknown name is an error that says which one is near, in YAML and on
the command line alike.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from scalegan import __version__
from scalegan import config as config_module
from scalegan.augment_config import OFF, PIPES, AugmentConfig
from scalegan.config import Config
from scalegan.errors import MachineError, UserError, on_this_machine, require, sought
from scalegan.evaluation_config import EvaluationConfig
from scalegan.loss_config import LossConfig
from scalegan.model_config import ModelConfig
from scalegan.run import flatten

if TYPE_CHECKING:
    from scalegan.checkpoint import Checkpoint

PRESETS = Path(__file__).parents[2] / "configs"
LOOSE = ("run", "init_from", "init_networks", "init_partial", "override_resume")
"""Fields of `Config` that stand in no section."""
FLAG: dict[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
"""An option that may stand alone, for true."""
PATHS = {"run", "init_from", "data.path", "data.held_out", "evaluation.weights", "evaluation.lpips_weights"}
"""Where a tilde at the beginning is the user's home, as the shell has it in front of an argument and nowhere else."""
TUPLES = {"betas_g", "betas_d", "power"}
"""Fields that hold several numbers, which YAML and JSON read as lists."""
SECTIONS = {
    "data": config_module.DataConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "augment": AugmentConfig,
    "optim": config_module.OptimConfig,
    "ema": config_module.EmaConfig,
    "burn_in": config_module.BurnInConfig,
    "train": config_module.TrainConfig,
    "log": config_module.LogConfig,
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True)
class Request:
    """A configuration and what is to be done with it."""

    config: Config
    debug: bool
    dry_run: bool


class Parser(ArgumentParser):
    """jsonargparse's parser, with errors as one line for the reader."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_reworded(message))


class Words(yaml.BaseLoader):
    """Scalars as they are written, but for null and ~, which are nothing, like an empty place. A key that stands twice is an
    error, as YAML has it: the later one would take the place of the other, with all that it holds."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        made = super().construct_mapping(node, deep)
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"{name} stands there twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return made


Words.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL)\Z"), ["~", "n", "N"])
Words.add_constructor("tag:yaml.org,2002:null", lambda loader, node: "")


@cache
def parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    made = Parser(
        prog="scalegan train",
        description="Train a GAN. Options override the file given by --config, which overrides the defaults.",
        default_env=False,
    )
    told = {field.arg_name: field.description for field in parse_from_object(Config).params}
    made.add_argument("--config", action="config", help="YAML file, such as configs/kiwi.yaml, or the name of one in configs/")
    made.add_argument("--debug", **FLAG, help="cut the same configuration down and try every part in a minute")
    made.add_argument("--dry_run", **FLAG, help="show what would run, how long and how large; write nothing")
    made.add_argument("--override_resume", **FLAG, help=told["override_resume"])
    made.add_argument("--run", type=str, default="", help=told["run"])
    made.add_argument("--init_from", type=str, default="", help=told["init_from"])
    made.add_argument(
        "--init_networks", type=Literal["both", "generator", "critic"], default="both", help=told["init_networks"]
    )
    made.add_argument("--init_partial", **FLAG, help=told["init_partial"])
    for name, section in SECTIONS.items():
        made.add_class_arguments(section, name)
    return made


def parse(argv: Sequence[str]) -> Request:
    """Raises `UserError`; prints and exits for `--help` and `--print_config`."""
    made = parser()
    known = set(flatten(made.get_defaults().as_dict())) - {"config"}  # of a command line alone
    files, options = _apart([str(a) for a in argv])
    options = _unfolded(options)
    _check_options(options, known)
    with on_this_machine():
        groups = [_options_in(path, known) for path in files] + [options]
    found = made.parse_args([argument for group in groups for argument in _with_pipe(group)])
    config = to_config({name: found[name] for name in (*LOOSE, *SECTIONS)})
    if not config.data.path:
        raise UserError("data.path is not given: name a folder of shards with --data.path (make one with `scalegan shards`)")
    return Request(config, found.debug, found.dry_run)


def to_config(fields: dict[str, Any]) -> Config:
    """The checked dataclasses from nested fields, such as those of a run's config.yaml."""
    sections = {}
    for name, section in SECTIONS.items():
        values = fields[name]
        values = values.as_dict() if isinstance(values, Namespace) else dict(values)
        for name_ in TUPLES & values.keys():
            values[name_] = tuple(float(number) for number in values[name_])
        sections[name] = section(**_at_home(values, f"{name}."))
    loose = _at_home({name: fields[name] for name in LOOSE if name in fields})
    loose["run"] = loose["run"] or f"runs/{os.path.basename(os.path.abspath(sections['data'].path)) or 'run'}"
    return Config(**loose, **sections)


def _at_home(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return values | {name: os.path.expanduser(v) for name, v in values.items() if prefix + name in PATHS and v and "/" in v}


def read_config(path: Path) -> Config:
    """The configuration that a run was started with. Raises `UserError`."""
    fields = read_fields(path)
    try:
        return to_config(fields)
    except (TypeError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def config_of(found: Checkpoint) -> Config:
    """The configuration in a checkpoint. Raises `UserError` for settings that this version has not."""
    try:
        return to_config(found.state["config"])
    except (TypeError, KeyError, ValueError) as error:
        theirs = found.state.get("versions", {}).get("scalegan", "an older one")  # which those do not tell
        raise UserError(
            f"{found.path} has settings that this code of scalegan {__version__} cannot take ({_one_line(error)}): use the "
            f"code that wrote it, {theirs}"
        ) from None


def read_fields(path: Path) -> dict[str, Any]:
    """What a run's config.yaml says, of whatever version it is. Raises `UserError`."""
    try:
        fields = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(fields, dict) or not all(isinstance(fields[name], dict) for name in SECTIONS.keys() & fields.keys()):
        raise _unreadable(path, "it does not hold sections such as `data:`")
    return fields


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(
        f"{path} cannot be read as a run's configuration ({_one_line(why)}): restore it; the run's own command writes it anew"
    )


def _apart(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files that `--config` names, wherever it stands, and all other arguments."""
    files, options, rest = [], [], iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name == "--config":
            files.append(_preset(value if "=" in argument else next(rest, "")))
        else:
            options.append(argument)
    return files, options


def _unfolded(options: list[str]) -> list[str]:
    """`--model '{width: 32, z_dim: 64}'`, or a file that says so, as one option for each setting."""
    unfolded, rest = [], iter(options)
    for option in rest:
        section, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or section not in SECTIONS:
            unfolded.append(option)
            continue
        value = os.path.expanduser(value if equals else next(rest, ""))
        in_file = value.endswith((".yaml", ".yml"))
        require(not in_file or os.path.isfile(value), f"--{section} {sought(value)}: no such file")
        fields = _read_yaml(Path(value)) if in_file else _mapping(value)
        if not isinstance(fields, dict):
            raise UserError(
                f"--{section} {value}: give settings in braces, as in --{section} '{{NAME: VALUE}}', or --{section}.NAME VALUE"
            )
        unfolded += [f"--{section}.{name}={_as_option(given)}" for name, given in flatten(fields).items()]
    return unfolded


def _mapping(text: str) -> Any:
    """What stands in braces; None for what is no YAML."""
    try:
        return yaml.load(text, Words)
    except yaml.YAMLError:
        return None


def _read_yaml(path: Path) -> Any:
    """Scalars are taken as they are written: `wandb: off` is no boolean."""
    try:
        return yaml.load(path.read_text(), Words)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {_one_line(error)}") from None


def _options_in(path: Path, known: set[str]) -> list[str]:
    """The settings in a file as options."""
    fields = _read_yaml(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold sections such as `data:` and `model:`, one setting a line")
    options = []
    for section, _, name in (str(key).partition(".") for key in fields):
        if isinstance(fields.get(section), dict) and name in fields[section]:
            raise UserError(f"{path}: {section}.{name} stands there twice, once in its section {section}: keep one of them")
    for name, value in flatten(fields).items():
        if name in SECTIONS:
            raise UserError(f"{path}: section {name} holds no settings: give it one, or take its line out")
        if name not in known:
            raise UserError(f"{path}: unknown key {name}{_near(name, known | set(SECTIONS))}")
        options.append(f"--{name}={_as_option(value)}")
    return options


def _as_option(value: Any) -> str:
    return f"[{', '.join(map(_as_option, value))}]" if isinstance(value, list) else str(value)


def _with_pipe(options: list[str]) -> list[str]:
    """With the fields that the last `--augment.pipe` stands for before the others, which override them; empty, that is none
    of what an earlier file has."""
    pairs = zip(options, [*options[1:], ""], strict=False)
    names = [b if a == "--augment.pipe" else a.split("=", 1)[1] for a, b in pairs if re.match(r"--augment\.pipe(=|$)", a)]
    stands_for = ({"": OFF} | PIPES).get(names[-1], {}) if names else {}
    return [*(f"--augment.{name}={str(value).lower()}" for name, value in stands_for.items()), *options]


def _preset(name: str) -> Path:
    ours = PRESETS / f"{name}.yaml", PRESETS / name, PRESETS.parent / name  # also where the command does not stand beside them
    for path in (Path(name).expanduser(), Path("configs") / f"{name}.yaml", *ours):
        if path.is_file():
            return path
    there = sorted({p.stem for folder in (Path("configs"), PRESETS) for p in folder.glob("*.yaml")})
    raise MachineError(f"--config {name}: no such file or preset{_near(Path(name).stem, there)} (presets: {', '.join(there)})")


def _check_options(arguments: list[str], known: set[str]) -> None:
    known = known | set(SECTIONS) | {"help", "print_config"}
    for argument in arguments:
        name = argument.removeprefix("--").split("=", 1)[0]
        if argument.startswith("--") and name not in known:
            raise UserError(f"unknown option --{name}{_near(name, known, dashes='--')}")


def _near(name: str, known: Sequence[str] | set[str], dashes: str = "") -> str:
    """', did you mean X?' for the nearest known name, whole or by its last part."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    if not close:
        leaves = {k.rsplit(".", 1)[-1]: k for k in sorted(known)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)]
    return f"; did you mean {dashes}{close[0]}?" if close else ""


def _reworded(message: str) -> str:
    """jsonargparse's several lines as one: which key, what it was given, what it takes."""
    text = _one_line(message)
    key = re.search(r'(?:key|argument) "?([\w.]+)"?', text)
    if key and (expected := re.search(r"Expected (.*?)(?:\. Got|\s*$)", text)):
        value = re.search(r"Got value: (.*?)(?:\s|$)", text)
        kind = (
            re.sub(r"<class '(\w+)'>", r"\1", expected[1].strip())
            .replace("typing.Literal", "one of ")
            .replace("a one of", "one of")
            .replace("a bool", "true or false")
            .replace("a int", "a whole number")
            .replace("a tuple with 2 elements", "2 numbers in brackets, as in [0.1, 0.2]")
            .replace("a tuple", "numbers in brackets, as in [0.1, 0.2]")
        )
        return f"{key[1]}{f' is {value[1]}' if value else ''}: expected {kind}"
    return text


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
