"""Commands that the documents and the presets show are commands: each one parses as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from scalegan import cli, settings
from scalegan.data import shards_cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENTED = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "launch").glob("*.yaml"))]


def fenced(document: Path) -> str:
    """What stands in the fenced blocks of a document that are of no other language than the shell's."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(block for language, block in blocks if language in ("", "bash", "sh"))


def comments(preset: Path) -> str:
    return "\n".join(line.lstrip("# ") for line in preset.read_text().splitlines() if line.startswith("#"))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `scalegan ...` and `accelerate launch ...`."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.match(r"(\w+=\S+ )*(scalegan|accelerate launch) ", line):
            continue
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            one, words = words[:end], words[end + 1 :]
            while re.match(r"\w+=", one[0]):
                one = one[1:]
            yield one


SHOWN = [
    pytest.param(words, id=f"{path.name}: {shlex.join(words)}")
    for path, text in [*((d, fenced(d)) for d in DOCUMENTS), *((c, comments(c)) for c in COMMENTED)]
    for words in commands(text)
]


def launched(words: list[str]) -> list[str]:
    """What `accelerate launch` would start, as words after `scalegan`."""
    args = launch_command_parser().parse_args(words[2:])
    assert args.module, "-m is missing"
    assert (ROOT / args.config_file).is_file()
    return {"scalegan.train": ["train"], "scalegan": []}[args.training_script] + args.training_script_args


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_fenced_blocks_are_closed(document: Path) -> None:
    """What comes after one that is not would be shown as code."""
    fences = re.findall(r"^```.*", document.read_text(), re.MULTILINE)
    assert fences[1::2] == ["```"] * len(fences[::2])


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_is_shown_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *rest = words[1:] if words[0] == "scalegan" else launched(words)
    assert name in cli.COMMANDS
    if name == "train":
        presets = [word for before, word in pairwise(rest) if before == "--config"]
        assert all(Path(preset).is_file() or Path(f"configs/{preset}.yaml").is_file() for preset in presets)
        with suppress(SystemExit):  # of --print_config; what is wrong is a UserError
            settings.parse(rest)
        return
    command = import_module(cli.COMMANDS[name].module)
    parser = cli.Parser(name, "")
    command.add_arguments(parser)
    args = parser.parse_args(rest)
    if name == "shards":
        shards_cli.make_request(args)
        assert args.size is None or shards_cli.parse_size(args.size)


def test_each_kind_of_command_is_shown_somewhere() -> None:
    """That the commands above are found at all."""
    shown = [param.values[0] for param in SHOWN]
    assert {words[1] for words in shown if words[0] == "scalegan"} == cli.COMMANDS.keys() - {"stats", "plot"}
    assert sum(words[0] == "accelerate" for words in shown) >= 8
    assert len(shown) >= 60
