"""Tasks in processes give their results in order, and what is wrong in one of them comes back."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

import pytest

from scalegan.data.sources.base import Picture
from scalegan.data.sources.encode import Transform
from scalegan.data.sources.processes import in_processes
from scalegan.errors import UserError

TRANSFORM = Transform(None, "crop", None, None)


class Unwieldy(Exception):
    """Cannot be sent: it is made of two things and remembers one."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)


@dataclass(frozen=True)
class Numbered:
    number: int
    fails: str = ""

    def open(self) -> tuple[list[Picture], dict[str, Any]]:
        if self.fails == "user":
            raise UserError(f"number {self.number} is bad")
        if self.fails == "fault":
            raise Unwieldy("what", "where")
        return [], {"number": self.number}


def test_results_come_in_the_order_of_the_tasks() -> None:
    found = [facts["number"] for _, facts in in_processes([Numbered(i) for i in range(40)], TRANSFORM, 3)]
    assert found == list(range(40))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("fails", "kind", "words"), [("user", UserError, "^number 2 is bad$"), ("fault", RuntimeError, "Unwieldy: what")]
)
def test_what_is_wrong_comes_back_in_its_turn(fails: str, kind: type[Exception], words: str) -> None:
    results = in_processes([Numbered(0), Numbered(1), Numbered(2, fails), Numbered(3)], TRANSFORM, 2)
    assert [next(results)[1]["number"] for _ in range(2)] == [0, 1]
    with pytest.raises(kind, match=words):
        next(results)
    assert multiprocessing.active_children() == []
