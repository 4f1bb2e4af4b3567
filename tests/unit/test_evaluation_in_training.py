"""What a training says by itself: of the classes of its data, and in its evaluations of its generator's latents."""

import copy
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


@pytest.mark.parametrize(
    ("classes", "model", "told"),
    [
        (("a", "b"), {}, "the 2 classes are not used: model.conditional is false\n"),
        (("a", "b"), {"conditional": True}, ""),
        (("a", "b"), {"conditional": True, "class_start": 8}, ""),
        (
            ("a", "b"),
            {"conditional": True, "class_start": 9},
            "the 2 classes are not used: model.class_start is 9, and the run ends at 16 images\n",
        ),
        ((), {}, ""),
    ],
)
def test_classes_that_are_not_used_are_told(training, tmp_path, capsys, classes, model, told):
    torch.set_num_threads(1)
    index = make_shards(tmp_path / "shards", samples=16, classes=classes)
    config = make_config(index.root, tmp_path / "run", model=model, train={"images": 16})
    assert training(config)
    out = capsys.readouterr().out
    assert told in out
    assert ("classes are not used" in out) == bool(told)


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        (
            {"speed": 81},
            "augment.p can rise to 0.2 at most in 16 images, as augment.speed is 81 images: give --augment.speed 4",
        ),
        ({"speed": 80}, ""),
        ({"target": 0.0}, ""),
    ],
)
def test_adaptive_augmentation_that_has_no_time_to_set_in_is_told(training, tmp_path, capsys, augment, told):
    torch.set_num_threads(1)
    index = make_shards(tmp_path / "shards", samples=16)
    config = make_config(index.root, tmp_path / "run", augment={"shift": 0.1, "target": 0.6} | augment, train={"images": 16})
    assert training(config)
    out = capsys.readouterr().out
    assert told in out
    assert ("augment.p can rise" in out) == bool(told)


def test_a_grid_with_nan_in_it_is_told_and_left_out_and_the_training_goes_on(training, tmp_path, monkeypatch, capsys):
    from scalegan.outputs import Outputs

    torch.set_num_threads(1)
    samples = Outputs.samples

    def of_a_diverged_average(self, ema, images_seen):
        if images_seen == 16:
            ema = copy.deepcopy(ema)
            for parameter in ema.parameters():
                parameter.fill_(torch.nan)
        samples(self, ema, images_seen)

    monkeypatch.setattr(Outputs, "samples", of_a_diverged_average)
    index = make_shards(tmp_path / "shards", samples=16)
    config = make_config(index.root, tmp_path / "run", train={"images": 32}, log={"samples": 16, "every": 8})
    assert training(config)
    assert "samples at 16 images were NOT made: " in capsys.readouterr().out
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").glob("[0-9]*.png"))
    assert grids == ["000000032.png"]
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_seen"] for line in lines] == [32]
