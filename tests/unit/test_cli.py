"""The `scalegan` command."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import time
import types

import pytest

import scalegan
from scalegan import cli
from scalegan.errors import UserError

HEAVY = ("torch", "accelerate", "webdataset", "torchmetrics", "wandb", "matplotlib", "numpy")


@pytest.fixture
def command(monkeypatch):
    """Puts a made-up subcommand `probe` in place, whose `run` is the function it is called with."""

    def install(run):
        module = types.ModuleType("scalegan_probe")
        module.add_arguments = lambda parser: [
            parser.add_argument("--size", type=int, default=1),
            parser.add_argument("--text"),
        ]
        module.run = run
        monkeypatch.setitem(sys.modules, "scalegan_probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("scalegan_probe", "a probe"))

    return install


def raiser(error):
    def run(args):
        raise error

    return run


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scalegan {scalegan.__version__}\n"


def test_help_is_instant_and_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from scalegan import cli\n"
        "assert cli.main(['--help']) == 0\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
        assert done.stdout.endswith("loaded: []\n")
    assert best < 0.7


def test_module_form_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "scalegan", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"scalegan {scalegan.__version__}\n"


def test_options_reach_the_subcommand_and_its_result_is_the_exit_code(command):
    seen = []
    command(lambda args: seen.append(args.size) or 7)
    assert cli.main(["probe", "--size", "3"]) == 7
    assert seen == [3]


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["evalute", "runs/kiwi"]) == 2
    assert capsys.readouterr().err == "scalegan: error: unknown command 'evalute': did you mean `scalegan evaluate`?\n"


def test_unknown_command_that_is_like_none_lists_all(capsys):
    assert cli.main(["xyzzy"]) == 2
    assert "the commands are fetch, shards, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--sise", "3"], "unknown argument --sise: did you mean --size? (see `scalegan probe --help`)"),
        (["--size", "big"], "argument --size: invalid int value: 'big' (see `scalegan probe --help`)"),
    ],
)
def test_bad_options_are_one_line(command, capsys, argv, line):
    command(lambda args: 0)
    assert cli.main(["probe", *argv]) == 2
    assert capsys.readouterr().err == f"scalegan: error: {line}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no images in data/: give another folder"), 2, "scalegan: error: no images in data/: give another folder\n"),
        (KeyboardInterrupt(), 130, "scalegan: stopped by Ctrl-C\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.tar"),
            2,
            "scalegan: error: the disk is full: out/a.tar: free some space or write to another one\n",
        ),
        (
            OSError(errno.ENOTDIR, "Not a directory", "a.png/out"),
            2,
            "scalegan: error: a file stands where a folder should: a.png/out: choose another path\n",
        ),
        (
            OSError(errno.EEXIST, "File exists", "out"),
            2,
            "scalegan: error: there is such a file already: out: choose another path\n",
        ),
        (
            OSError(errno.EISDIR, "Is a directory", "out"),
            2,
            "scalegan: error: a folder stands where a file should: out: choose another path\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "out"),
            2,
            "scalegan: error: the name of a file or folder is too long: out: choose a shorter path\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(command, capsys, error, code, line):
    command(raiser(error))
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == line


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path):
    talk = "print('x' * 100_000)\nprint('y' * 100_000)\n"
    code = f"import sys\nfrom scalegan import cli\ncli.dispatch = lambda argv: exec({talk!r})\nsys.exit(cli.main([]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams_a_command_runs_and_no_file_takes_their_numbers(tmp_path, closed):
    """As of a job in the background, `scalegan train ... >&- 2>&- &`: what C code prints would go into that file."""
    talk = "import os\nprint('hello', sys.stdout.isatty())\nfile = open(sys.argv[1], 'w')\nfile.write(str(file.fileno()))"
    code = f"import sys\nfrom scalegan import cli\ncli.dispatch = lambda argv: exec({talk!r})\nsys.exit(cli.main([]))"
    ended = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path / "file")])
    assert ended.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_what_standard_output_has_no_letter_for_is_a_question_mark():
    """As where the locale is Latin-1: bars and frames of tables, or the name of a class, are no reason to stop."""
    talk = "print('P\\u00eache \\u2588')"
    code = f"import sys\nfrom scalegan import cli\ncli.dispatch = lambda argv: {talk}\nsys.exit(cli.main([]))"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"P\xeache ?\n", b"")


def test_a_pipe_of_its_own_that_breaks_is_a_bug(command):
    command(raiser(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    with pytest.raises(BrokenPipeError):
        cli.main(["probe"])


def test_a_bug_keeps_its_traceback(command):
    command(raiser(FileNotFoundError(errno.ENOENT, "No such file", "x")))
    with pytest.raises(FileNotFoundError):
        cli.main(["probe"])


def test_train_gets_its_command_line_untouched(monkeypatch):
    seen = []
    module = types.ModuleType("scalegan.train")
    module.main = lambda argv: seen.append(argv) or 0
    monkeypatch.setitem(sys.modules, "scalegan.train", module)
    assert cli.main(["train", "--config", "kiwi", "--help"]) == 0
    assert seen == [["--config", "kiwi", "--help"]]


def test_a_tilde_behind_an_equals_sign_is_the_home_of_the_user(command, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    seen = []
    command(lambda args: seen.append(args.text) or 0)
    for text in ("~/x", "x~/y", "~", "~nobody-of-this-name/x"):
        assert cli.main(["probe", f"--text={text}"]) == cli.main(["probe", "--text", text]) == 0
    assert seen == ["/home/ann/x"] * 2 + ["x~/y"] * 2 + ["~"] * 2 + ["~nobody-of-this-name/x"] * 2


def test_parser_takes_no_abbreviations():
    parser = cli.Parser("scalegan probe", "A probe.")
    parser.add_argument("--size", type=int)
    assert parser.parse_args(["--size", "2"]) == argparse.Namespace(size=2)
    with pytest.raises(UserError, match="unknown argument --siz"):
        parser.parse_args(["--siz", "2"])
