"""`scalegan train` in whose third step the critic's loss is a billion times as large: float16 holds no such gradient."""

import runpy
from itertools import count

from torch import Tensor, nn

from scalegan.steps import Game

plain, steps = Game._backward, count()


def backward(self: Game, loss: Tensor, round_: int, network: nn.Module) -> None:
    third = network is self.critic and next(steps) == 2
    plain(self, loss * 1e9 if third else loss, round_, network)


if __name__ == "__main__":
    Game._backward = backward  # type: ignore[method-assign]
    runpy.run_module("scalegan.train", run_name="__main__", alter_sys=True)
