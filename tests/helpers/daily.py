"""Of many cases of one kind `make test` runs another one each day; `make test-all` runs them all."""

import datetime
from collections.abc import Callable, Iterable
from typing import Any

import pytest

TODAY = datetime.date.today().toordinal()


def by_the_day(number: int, days: int) -> Callable[..., Any]:
    """For a test that is slow but on one of so many days."""
    return (lambda test: test) if TODAY % days == number else pytest.mark.slow


def one_a_day(cases: Iterable[Any]) -> list[Any]:
    """What `parametrize` takes: the cases, tuples where there are several arguments, all slow but one."""
    cases = list(cases)
    return [case if number == TODAY % len(cases) else slow(case) for number, case in enumerate(cases)]


def slow(case: Any) -> Any:
    if hasattr(case, "marks"):
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
