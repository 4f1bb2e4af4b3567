"""p of adaptive augmentation: where the signs of real images send it, between its ends, and over a restart."""

from typing import Any

import pytest
import torch
from test_steps import BATCH, make_game, real_batch
from torch import Tensor

from scalegan import adaptive as module
from scalegan.adaptive import Adaptive
from scalegan.augment_config import AugmentConfig

CPU = torch.device("cpu")


def make(boundary: float = 0.0, **fields: Any) -> Adaptive:
    settings: dict[str, Any] = {"brightness": 0.5, "target": 0.6, "speed": 320, "every": 4} | fields
    return Adaptive(AugmentConfig(**settings), 8, boundary, CPU)  # 8 images x 4 steps / 320 = 0.1 an adjustment


def take(adaptive: Adaptive, steps: range, share: float) -> list[float]:
    """p after each of `steps` in which the critic takes `share` of 8 real images for real."""
    found = []
    for step in steps:
        adaptive.see(torch.where(torch.arange(8) < share * 8, 3.0, -0.1))
        adaptive.after(step + 1)
        found.append(adaptive.p.item())
    return found


def test_p_rises_after_every_fourth_step_while_the_critic_is_too_sure() -> None:
    found = take(make(), range(9), share=7 / 8)  # mean sign 0.75
    assert found == pytest.approx([0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2])


def test_p_falls_where_it_is_not_and_stays_within_its_ends() -> None:
    adaptive = make(max_p=0.25)
    assert take(adaptive, range(16), share=1.0)[-1] == 0.25
    assert take(adaptive, range(16, 24), share=6 / 8)[-1] == pytest.approx(0.05)  # mean sign 0.5
    assert take(adaptive, range(24, 40), share=0.0)[-1] == 0.0


def test_it_is_the_mean_of_the_whole_interval_that_counts() -> None:
    adaptive = make()
    for step, share in enumerate((1.0, 1.0, 1.0, 0.5)):  # mean sign 0.75, of the last step alone 0
        (p,) = take(adaptive, range(step, step + 1), share)
    assert p == pytest.approx(0.1)
    for step, share in enumerate((1.0, 0.5, 0.5, 1.0), 4):  # mean sign 0.5
        (p,) = take(adaptive, range(step, step + 1), share)
    assert p == pytest.approx(0.0)


def test_the_sign_is_taken_where_the_loss_puts_real() -> None:
    adaptive = make(boundary=0.5)
    adaptive.see(torch.tensor([0.4, 0.6, 0.7, 0.5]))
    assert adaptive.signs.tolist() == [1, 4]
    assert adaptive.signs.tolist() == [1, 4]


def test_of_several_logits_an_image_each_counts_and_one_that_is_no_number_for_neither_side() -> None:
    adaptive = make()
    adaptive.see(torch.tensor([[1.0, 2.0, -1.0], [torch.nan, 3.0, 4.0]]))
    assert adaptive.signs.tolist() == [3, 6]


def test_a_restart_within_an_interval_changes_nothing() -> None:
    unbroken, first, second = make(), make(), make()
    expected = take(unbroken, range(6), 1.0) + take(unbroken, range(6, 12), 0.5)
    found = take(first, range(6), 1.0)
    second.restore({name: value.clone() for name, value in first.state().items()}, rank=0)
    assert found + take(second, range(6, 12), 0.5) == expected


def test_of_several_processes_one_takes_the_signs_that_were_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"p": torch.tensor(0.3, dtype=torch.float64), "signs": torch.tensor([10, 16])}
    worlds = [make(), make(), make()]
    for rank, adaptive in enumerate(worlds):
        adaptive.restore(state, rank)
        adaptive.see(torch.ones(8))
    assert sum(a.signs for a in worlds).tolist() == [34, 40]  # type: ignore[union-attr]

    def all_reduce(signs: Tensor) -> None:
        signs.copy_(sum(a.signs for a in worlds))  # type: ignore[arg-type]

    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    assert [a.state()["signs"].tolist() for a in worlds] == [[34, 40]] * 3
    worlds[1].after(4)  # 34/40 is above 0.6
    assert worlds[1].p.item() == pytest.approx(0.4)


def test_that_p_is_at_its_largest_is_told_once_each_time() -> None:
    adaptive = make(max_p=0.1)
    told = []
    for start, share in ((0, 1.0), (4, 1.0), (8, 0.0), (12, 1.0)):
        take(adaptive, range(start, start + 4), share)
        told.append(adaptive.warning())
    assert [text is not None for text in told] == [True, False, False, True]
    assert "augment/p is at its largest, 0.1" in str(told[0])


def test_a_p_that_is_no_longer_adaptive_is_at_no_largest() -> None:
    """As where a run goes on at a fixed p, which --override_resume lets in."""
    adaptive, fixed = make(max_p=0.1), make(max_p=0.1, target=0.0)
    take(adaptive, range(4), 1.0)
    fixed.restore(adaptive.state(), rank=0)
    assert fixed.warning() is None


def test_without_a_target_nothing_is_counted() -> None:
    adaptive = make(target=0.0)
    adaptive.see(torch.ones(8))
    adaptive.after(4)
    assert (adaptive.p.item(), adaptive.signs.tolist()) == (0.0, [0, 0])


def test_both_steps_augment_with_the_probability_that_it_has_come_to() -> None:
    options = {"augment__target": 0.1, "augment__every": 2, "augment__speed": 4 * BATCH}
    game, real = make_game(**options), real_batch()
    with torch.no_grad():  # a critic that takes all for real
        game.bare_critic.discriminator.score.bias.fill_(100.0)  # type: ignore[union-attr, operator]
    used, views = [], game.draws.views

    def seen(purpose: str, first: int, p: Tensor | float) -> Tensor | None:
        used.append((purpose, float(p)))
        return views(purpose, first, p)

    object.__setattr__(game.draws, "views", seen)
    signs = []
    for step in range(3):
        signs.append(game.discriminator_step([real], BATCH * step).means()["sign/real"].item())
        game.generator_step([real], BATCH * step)
    assert signs == [1.0, 1.0, 1.0]
    assert used == [
        ("real", 0.0), ("fake", 0.0), ("g", 0.0), ("real", 0.0), ("fake", 0.0), ("g", 0.5), ("real", 0.5), ("fake", 0.5),
        ("g", 0.5),
    ]  # fmt: skip
