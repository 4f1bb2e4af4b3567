"""No step waits for the device, so that the host runs ahead of it: only ticks read what the steps have left there.

The device is `meta`, whose tensors have no values: what asks for one, or for a shape that hangs on one, fails here as it would
wait on a GPU. Neither may anything be copied there from memory that is not pinned: such a copy waits too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from test_steps import SMALL, STYLEGAN2
from tiny import make_shards
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.daily import one_a_day
from scalegan import settings
from scalegan.critic import Scores
from scalegan.data import loader
from scalegan.data.index import Index
from scalegan.trainer import Trainer
from scalegan.watchdog import Watchdog

META, BATCH, STEPS = torch.device("meta"), 8, 2
aten = torch.ops.aten


class Copies(TorchDispatchMode):
    """Fails where something is copied from the host, or to it, and the host waits."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        copied: tuple[Tensor, Tensor, bool] | None = None
        if function is aten._to_copy.default:
            copied = args[0], result, kwargs.get("non_blocking", False)
        elif function is aten.copy_.default:
            copied = args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if copied and copied[0].device != copied[1].device:
            waited = not copied[2] or not hasattr(copied[0], "pinned")
            assert not waited, "a copy that is waited for"
        return result


class Numbers(TorchFunctionMode):
    """Fails where numbers of the host become a tensor on the device: such a copy is hidden from the one above."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and not isinstance(args[0], Tensor):
            assert result.device != META, "numbers that are waited for"
        return result


@contextmanager
def ahead() -> Iterator[None]:
    with Copies(), Numbers():
        yield


def pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """For the device `meta`, which has no autocast and no fused optimizers, where nothing has pinned memory."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *arguments: False)
    adam = importlib.import_module("torch.optim.adam")  # which is no attribute of torch.optim
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *arguments, **options: None)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    made = Accelerator(cpu=True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)  # by which Accelerate would take another device for a mistake
    made.state.device = PartialState().device = META
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("data") / "shards"
    return make_shards(folder, samples=24, height=16, width=20, channels=3, classes=("a", "b", "c"))


@pytest.fixture
def make_trainer(accelerator: Accelerator, index: Index, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """Trainers of `STEPS` steps in which nothing is due, and their batches."""
    far = {"log.every": 10_000, "log.samples": 10_000, "log.checkpoint": 10_000, "evaluation.every": 0, "log.wandb": "off"}
    ending = ExitStack()

    def make(**changes: Any) -> Trainer:
        told = {"data.path": index.root, "run": tmp_path / "run", "train.images": BATCH * STEPS, "train.hang_minutes": 0}
        options = SMALL | far | told | {name.replace("__", "."): value for name, value in changes.items()}
        config = settings.parse([f"--{name}={value}" for name, value in options.items()]).config
        trainer = Trainer(config, accelerator, index, None, Watchdog(0, Path(), 0))
        ending.callback(trainer.notice.close)
        ending.callback(trainer.outputs.close)
        trainer.loader = ending.enter_context(closing(loader.batches(index, config, 0, 0, 1, META)))
        return trainer

    with ending:
        yield make


PENALTIES = {"loss__r1_gamma": 1.0, "loss__r2_gamma": 1.0, "loss__gp_weight": 1.0, "loss__penalty_every": 2}
ADAPTIVE = {"augment__pipe": "photo", "augment__rotate90": "false", "augment__target": 0.6, "augment__every": 2}
OTHERS = {"model__init": "dcgan", "model__critic_norm": "auto", "model__max_width": 8}
GAMES: dict[str, dict[str, Any]] = {
    "dcgan": PENALTIES | {
        "optim__clip": 1.0, "train__accumulate": 2, "loss__diversity_weight": 1.0, "ema__power": "[0.05, 0.1]",
    },
    "dcgan, augmentation adapts": PENALTIES | ADAPTIVE | {"log__step_losses": "true"},
    "dcgan, no classes": {"model__conditional": "false", "model__critic_norm": "batch", "augment__p": 0},
    "dcgan, slopes by differences": {
        "loss__r1_gamma": 1.0, "loss__penalty_form": "difference", "data__mirror": "true", "augment__pipe": "diffaugment",
    },
    "dcgan, classifier": {
        "model__class_head": "classifier", "model__class_via": "norm", "model__class_ramp": 64, "optim__critic_steps": 2,
        "model__norm_group": 4,
    },
    "resnet": OTHERS | PENALTIES | {"model__family": "resnet", "loss__name": "hinge"},
    "biggan": OTHERS | ADAPTIVE | {"model__family": "biggan", "model__attention": 8, "loss__name": "hinge", "optim__clip": 1.0},
    "biggan, no classes": OTHERS | {"model__family": "biggan", "model__attention": 8, "model__conditional": "false"},
    "fastgan": OTHERS | {"model__family": "fastgan", "loss__r1_gamma": 1.0, "model__critic_norm": "spectral"},
    "fastgan, batch norm": OTHERS | ADAPTIVE | {"model__family": "fastgan"},
    "stylegan2": OTHERS | ADAPTIVE | STYLEGAN2 | {
        "model__critic_family": "same", "loss__path_every": 2, "loss__r1_gamma": 1.0, "loss__penalty_every": 2,
    },
    "stylegan2, no classes": OTHERS | STYLEGAN2 | {
        "model__critic_family": "same", "model__conditional": "false", "loss__path_every": 2,
    },
    "r3gan": OTHERS | {
        "model__family": "r3gan", "model__group_width": 4, "loss__name": "relativistic", "loss__r1_gamma": 1.0,
        "loss__r2_gamma": 1.0, "augment__pipe": "medical", "optim__warmup": 64, "burn_in__images": 64, "burn_in__beta2": 0.9,
    },
    "projected": OTHERS | ADAPTIVE | {"model__critic_family": "projected", "model__backbone_size": 32, "loss__name": "hinge"},
    "projected, no classes": OTHERS | {
        "model__critic_family": "projected", "model__backbone_size": 32, "model__conditional": "false", "loss__r1_gamma": 1.0,
        "model__critic_norm": "spectral",
    },
}  # fmt: skip


CASES = [pytest.param(options, id=name) for name, options in GAMES.items()]
OF_DCGAN = len([name for name in GAMES if name.startswith("dcgan")])


@pytest.mark.parametrize("options", CASES[:OF_DCGAN] + one_a_day(CASES[OF_DCGAN:]))
def test_steps_of_every_family_wait_for_nothing(make_trainer: Callable[..., Trainer], options: dict[str, Any]) -> None:
    """Both networks, their averages, penalties, adaptive augmentation, statistics, and the batches they are given."""
    trainer = make_trainer(**options)
    with ahead():
        assert not trainer.take_steps()
    assert trainer.clock.images_seen == BATCH * STEPS
    counts = dict(zip(trainer.statistics.NAMES, trainer.statistics.counts.tolist(), strict=True))
    assert counts["loss/D"] == STEPS
    assert counts["r1"] == (-(-STEPS // options.get("loss__penalty_every", 1)) if "loss__r1_gamma" in options else 0)
    assert counts["path"] == (-(-STEPS // 2) if "loss__path_weight" in options else 0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reader", ["resident", "stream"])
def test_batches_wait_for_nothing(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, reader: str, workers: int
) -> None:
    """Also where the places of the next ones are reckoned."""
    monkeypatch.setattr(loader, "PLANNED", 2 * BATCH)
    trainer = make_trainer(data__reader=reader, data__workers=workers)
    with ahead():
        found = [next(trainer.loader) for _ in range(STEPS)]
    assert {batch.images.device for batch in found} == {batch.labels.device for batch in found} == {META}


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: 1 if x.sum() > 0 else 0,
    "a list": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "to numpy": lambda x: x.numpy(),
    "by a mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "from the host": lambda x: torch.zeros(3).to(x.device),
    "from the host, into a tensor": lambda x: x.copy_(torch.zeros(len(x))),
    "numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_would_wait_is_found(make_trainer: Callable[..., Trainer], wait: Callable[[Tensor], Any]) -> None:
    trainer = make_trainer()

    def planted(module: nn.Module, inputs: Any, scores: Scores) -> None:
        wait(scores.logits.detach())

    trainer.game.bare_critic.register_forward_hook(planted)
    with pytest.raises((RuntimeError, TypeError, AssertionError)) as caught, ahead():
        trainer.take_steps()
    assert "planted" in [entry.name for entry in caught.traceback]
