"""What only the networks, their losses and the processes together can tell that it cannot be played."""

from __future__ import annotations

from torch import nn

from scalegan.config import Config
from scalegan.critic import Critic
from scalegan.errors import require
from scalegan.losses import Loss
from scalegan.models.batch_norm import spans_processes


def refuse_impossible(config: Config, generator: nn.Module, critic: Critic, loss: Loss, images: int, processes: int) -> None:
    """`images` are those of a round on each of `processes`. Raises `UserError`."""
    train = config.train
    require(
        not train.cuda_graphs or not spans_processes(generator, critic, images=images),
        f"train.cuda_graphs records each network by itself, and a batch norm over {processes} processes waits for the others "
        f"inside of it: set --model.norm_group {images}, or --train.cuda_graphs false",
    )
    require(
        not (train.compile and config.loss.penalised and spans_processes(critic, images=images)),
        f"train.compile would take wrong gradients of a penalty through the critic's batch norm over {processes} processes: "
        f"set --model.norm_group {images}, or --train.compile false",
    )
    require(
        not critic.discriminator.couples_samples or config.loss.penalty_form == "exact",
        "loss.penalty_form difference moves all images of a batch at once, and this critic compares them (batch norm or "
        "minibatch standard deviation): set --loss.penalty_form exact",
    )
    require(
        not config.augment.target or loss.boundary is not None,
        f"augment.target follows the sign of the critic's logits, and in loss.own {config.loss.own} only differences of "
        "logits mean anything (its boundary is None): leave it 0 and set --augment.p",
    )
