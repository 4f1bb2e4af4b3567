"""Means of what the steps report: read when due, carried over a restart, and skipped steps counted in a row."""

import math

import pytest
import torch

from scalegan import statistics
from scalegan.statistics import Statistics, Values

CPU = torch.device("cpu")


def values(**scalars: float) -> Values:
    made = Values()
    made.add({name.replace("_", "/"): torch.tensor(value) for name, value in scalars.items()})
    return made


def add(statistics: Statistics, number: int, *, d_skipped: float = 0, g_skipped: float = 0, **more: float) -> None:
    """Step `number` of 8 images, with loss/D = number and loss/G = 10 * number; gradient 100 + number of the critic and
    200 + number of the generator would be the first that is not finite."""
    critic = values(loss_D=float(number), skipped_D=d_skipped, **more)
    gradients = torch.tensor([100 + number, 200 + number])
    statistics.add(critic, values(loss_G=10.0 * number, skipped_G=g_skipped), 8 * number, gradients)


def make(every_step: bool = False, limit: int = 20) -> Statistics:
    return Statistics(CPU, every_step=every_step, limit=limit)


def test_the_mean_is_over_the_steps_since_the_last_reading():
    kept = make()
    for number in (1, 2, 6):
        add(kept, number)
    means, _ = kept.read()
    assert (means["loss/D"], means["loss/G"]) == (3.0, 30.0)
    add(kept, 5)
    means, _ = kept.read()
    assert (means["loss/D"], means["loss/G"]) == (5.0, 50.0)


def test_rounds_of_one_step_count_as_one():
    made = Values()
    for loss in (1.0, 2.0, 6.0):
        made.add({"loss/D": torch.tensor(loss)})
    assert made.means()["loss/D"] == 3.0


def test_what_came_only_in_some_steps_is_averaged_over_those():
    kept = make()
    add(kept, 1, r1=4.0)
    for number in (2, 3, 4):
        add(kept, number)
    assert kept.read()[0]["r1"] == 4.0


def test_what_never_came_is_left_out():
    kept = make()
    add(kept, 1)
    assert set(kept.read()[0]) == {"loss/D", "loss/G", "skipped/D", "skipped/G", "skipped_steps"}


def test_nothing_is_kept_of_the_graph():
    loss = torch.ones(3, requires_grad=True).sum()
    made = Values()
    made.add({"loss/D": loss})
    assert not made.means()["loss/D"].requires_grad


def test_skipped_steps_are_counted():
    kept = make()
    add(kept, 1, d_skipped=1)
    add(kept, 2, d_skipped=1, g_skipped=1)
    add(kept, 3)
    means, row = kept.read()
    assert means["skipped_steps"] == 3.0
    assert row == 2
    assert (means["skipped/D"], means["skipped/G"]) == pytest.approx((2 / 3, 1 / 3))


def test_a_row_of_skipped_steps_goes_on_over_a_reading_and_ends_with_a_good_step():
    kept = make()
    rows = []
    for number, skipped in enumerate([1, 1, 1, 0, 1, 1], 1):
        add(kept, number, g_skipped=skipped)
        rows.append(kept.read()[1])
    assert rows == [1, 2, 3, 0, 1, 2]


def test_the_longest_row_since_the_last_reading_is_told_though_a_good_step_ended_it():
    kept = make()
    for number, skipped in enumerate([0, 1, 1, 1, 0, 1], 1):
        add(kept, number, d_skipped=skipped)
    assert kept.longest_row() == kept.read()[1] == 3
    add(kept, 7, d_skipped=1)
    assert kept.read()[1] == 2
    add(kept, 8)
    assert kept.read()[1] == 0


def test_where_a_row_got_to_the_limit_is_known_though_it_went_on_or_ended():
    for skipped in ([0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]):
        kept = make(limit=3)
        for number, d_skipped in enumerate(skipped, 1):
            add(kept, number, d_skipped=d_skipped)
        assert kept.read()[1] >= 3
        assert kept.too_many() == (8 * 4, 0, 104)


def test_of_two_rows_the_one_that_got_there_first_is_told_and_the_critics_of_equal_ones():
    for d_skipped, g_skipped, expected in (
        ([0, 0, 1, 1], [0, 1, 1, 0], (8 * 3, 1, 203)),
        ([0, 1, 1, 0], [0, 0, 1, 1], (8 * 3, 0, 103)),
        ([0, 1, 1], [0, 1, 1], (8 * 3, 0, 103)),
    ):
        kept = make(limit=2)
        for number, (d, g) in enumerate(zip(d_skipped, g_skipped, strict=True), 1):
            add(kept, number, d_skipped=d, g_skipped=g)
        assert kept.too_many() == expected


def test_where_a_row_got_to_the_limit_is_known_after_a_restart():
    kept, again = make(limit=2), make(limit=2)
    for number in (1, 2):
        add(kept, number, g_skipped=1)
    add(kept, 3)
    again.restore(kept.state(), 0, 1)
    assert again.read()[1] == 2
    assert again.too_many() == (8 * 2, 1, 202)


def test_a_row_that_is_too_long_since_the_limit_was_lowered_is_told_with_its_next_step():
    kept, again = make(limit=9), make(limit=3)
    for number in range(1, 6):
        add(kept, number, d_skipped=1)
    again.restore(kept.state(), 0, 1)
    assert again.read()[1] == 2
    add(again, 6, d_skipped=1)
    assert again.read()[1] == 3
    assert again.too_many() == (8 * 6, 0, 106)


def test_rows_of_critic_and_generator_are_counted_apart():
    kept = make()
    for number in range(1, 7):
        add(kept, number, d_skipped=number % 2, g_skipped=1 - number % 2)
    assert kept.read()[1] == 1


def test_a_row_of_skips_goes_on_over_steps_in_which_the_generator_had_none():
    kept = make(every_step=True)
    for number in range(1, 5):
        generator = values(loss_G=1.0, skipped_G=1.0) if number % 2 else Values()
        kept.add(values(loss_D=1.0, skipped_D=0.0), generator, 8 * number, torch.zeros(2))
    assert [seen for seen, _, loss in kept.read_steps() if not math.isnan(loss)] == [8, 24]
    shares = {"skipped/D": 0.0, "skipped/G": 1.0}  # the latter of the generator's own two steps
    assert kept.read() == ({"loss/D": 1.0, "loss/G": 1.0, "skipped_steps": 2.0} | shares, 2)


def test_the_losses_of_single_steps_are_given_once():
    kept = make(every_step=True)
    add(kept, 1)
    add(kept, 2)
    assert kept.read_steps() == [(8, 1.0, 10.0), (16, 2.0, 20.0)]
    assert kept.read_steps() == []


def test_the_losses_of_single_steps_are_not_kept_unless_asked_for():
    kept = make()
    add(kept, 1)
    assert kept.read_steps() == []


def test_a_restart_between_two_readings_changes_no_mean():
    unbroken, first, second = make(), make(), make()
    for number in range(1, 5):
        skipped = 1.0 if number in (2, 3) else 0.0
        more = {"r1": 0.1} if number == 1 else {}
        add(unbroken, number, d_skipped=skipped, **more)
        add(first if number < 3 else second, number, d_skipped=skipped, **more)
        if number == 2:
            second.restore(first.state(), 0, 1)
    assert second.read() == unbroken.read()


def test_a_saved_state_stays_as_it_was_saved():
    kept = make()
    add(kept, 1)
    saved = {name: value.clone() for name, value in kept.state().items()}
    state = kept.state()
    restored = make()
    restored.restore(state, 0, 1)
    add(restored, 2)
    assert all(torch.equal(saved[name], state[name]) for name in saved)


@pytest.mark.parametrize("now", [1, 2, 3, 4])
def test_after_a_restart_on_other_processes_the_mean_is_the_same(monkeypatch, now):
    """Each process adds its own sums; a reading divides their total by the number of processes."""
    before = [make() for _ in range(2)]
    for rank, kept in enumerate(before):
        add(kept, 1 + 2 * rank)  # means 1 and 3
    monkeypatch.setattr(statistics.dist, "is_initialized", lambda: False)
    state = before[0].state() | {"sums": torch.stack([kept.sums for kept in before])}
    after = [make() for _ in range(now)]
    for rank, kept in enumerate(after):
        kept.restore(state, rank, now)
    assert sum(kept.read()[0]["loss/D"] for kept in after) / now == pytest.approx(2.0)
