"""Tasks in processes give their results in order, and what is wrong in one of them comes back."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

import pytest
from opening import encoded, photo

from scalegan.data.sources.base import Damaged, Picture
from scalegan.data.sources.encode import Transform
from scalegan.data.sources.processes import in_processes, work
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
        if self.fails == "damaged":
            raise Damaged(f"number {self.number} is no volume")
        if self.fails == "fault":
            raise Unwieldy("what", "where")
        return [], {"number": self.number}


def test_results_come_in_the_order_of_the_tasks() -> None:
    found = [result.facts["number"] for result in in_processes([Numbered(i) for i in range(40)], TRANSFORM, 3)]
    assert found == list(range(40))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("fails", "kind", "words"), [("user", UserError, "^number 2 is bad$"), ("fault", RuntimeError, "Unwieldy: what")]
)
def test_what_is_wrong_comes_back_in_its_turn(fails: str, kind: type[Exception], words: str) -> None:
    results = in_processes([Numbered(0), Numbered(1), Numbered(2, fails), Numbered(3)], TRANSFORM, 2)
    assert [next(results).facts["number"] for _ in range(2)] == [0, 1]
    with pytest.raises(kind, match=words):
        next(results)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_read_is_a_result_and_the_tasks_behind_it_are_done() -> None:
    results = list(in_processes([Numbered(0), Numbered(1, "damaged"), Numbered(2)], TRANSFORM, 2))
    assert [result.damaged for result in results] == [[], ["number 1 is no volume"], []]
    assert [result.facts for result in results] == [{"number": 0}, {}, {"number": 2}]


def test_images_beside_one_that_cannot_be_read_are_in_the_result() -> None:
    @dataclass(frozen=True)
    class Three:
        def open(self) -> tuple[list[Picture], dict[str, Any]]:
            good = encoded(photo())
            return [Picture("a.png", good), Picture("b.png", b"broken"), Picture("c.png", good)], {}

    result = work(Three(), TRANSFORM)
    assert [image.name for image in result.images] == ["a.png", "c.png"]
    assert result.damaged == ["b.png is no readable image"]
