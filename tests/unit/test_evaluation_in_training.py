"""The evaluations of a training measure what its generator's latents do, without a disc between."""

import json

import pytest
import torch
from tiny import make_config, make_shards

from helpers.lpips_weights import made_up_file


@pytest.mark.parametrize("channels", [1, 3])
def test_path_lengths_are_measured_in_training(training, tmp_path, monkeypatch, channels):
    from scalegan.outputs import Outputs

    torch.set_num_threads(1)
    monkeypatch.setattr(Outputs, "finished", lambda self, images_seen: None)
    path = made_up_file(monkeypatch, tmp_path)
    classes = ("a", "b")
    index = make_shards(tmp_path / "shards", samples=24, channels=channels, classes=classes)
    config = make_config(
        index.root,
        tmp_path / "run",
        model={"family": "stylegan2", "conditional": True, "map_layers": 2, "critic_norm": "auto"},
        train={"images": 16},
        evaluation={"samples": 8, "metrics": "lpips,ppl", "lpips_weights": str(path)},
    )
    assert training(config, evaluation=True)
    record = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert record["ppl_steps"] == 8
    for name in ("lpips_pairs", "lpips_pairs_real", "ppl_z", "ppl_w"):
        assert record[name] > 0
