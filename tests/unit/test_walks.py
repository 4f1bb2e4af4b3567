"""Ways between random latents: where they begin, how evenly they lead on, and that nothing but the latents changes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_config, make_shards, save_checkpoint

from scalegan import cli
from scalegan.figures import fit, grid
from scalegan.sampling import LoadedGenerator, load_generator
from scalegan.walks import slerp, walk

SEEDS, STEPS, COUNT = (3, 4, 7), 5, 6
"""15 frames of 6 images: not a whole number of passes."""


FAMILIES = {
    "dcgan": {"conditional": True},
    "stylegan2": {"family": "stylegan2", "critic_norm": "auto", "map_layers": 2},
    "fastgan": {"family": "fastgan", "critic_norm": "spectral"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of each family."""
    folder = tmp_path_factory.mktemp("walks")
    index = make_shards(folder / "data", samples=20, classes=("Apple", "Kiwi"))
    for family, model in FAMILIES.items():
        save_checkpoint(make_config(folder / "data", folder / family, model=model), index)
    return folder


def trained(folder: Path, family: str) -> LoadedGenerator:
    """With noise that shows, where there is any."""
    generator = load_generator(folder / family)
    for name, parameter in generator.network.named_parameters():
        if name.endswith("strength"):
            parameter.fill_(0.3)
    return generator


def labels_for(family: str) -> list[int]:
    return [0, 1] * (COUNT // 2) if family == "dcgan" else [-1] * COUNT


def frames(generator: LoadedGenerator, labels: list[int], steps: int = STEPS) -> torch.Tensor:
    return torch.stack(list(walk(generator, COUNT, SEEDS, steps, torch.tensor(labels))))


def test_a_way_on_the_sphere_turns_evenly():
    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = t * math.pi / 2
        expected = (3 - 2 * t) * torch.tensor([[math.cos(angle), math.sin(angle), 0.0]]).double()
        torch.testing.assert_close(slerp(a, b, torch.tensor([[t]]).double()), expected, rtol=0, atol=1e-7)
    x, y = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double()
    none, whole = torch.zeros(50, 1).double(), torch.ones(50, 1).double()
    torch.testing.assert_close(slerp(x, y, none), x)
    torch.testing.assert_close(slerp(x, y, whole), y)
    assert slerp(x, x, 0.3 * whole).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_way_begins_with_the_images_of_its_seed(folder, family):
    generator, labels = trained(folder, family), labels_for(family)
    walked = frames(generator, labels)
    assert walked.shape == (len(SEEDS) * STEPS, COUNT, *generator.shape)
    for number, seed in enumerate(SEEDS):
        expected = generator.sample(COUNT, seed, labels if family == "dcgan" else None)
        apart = (walked[number * STEPS].int() - expected.int()).abs().max()
        assert (apart <= 1) == (family == "dcgan" or number == 0), "noise stays that of the first seed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_step_is_a_small_change_also_back_to_the_start(folder, family):
    """Noise that followed the latents would be another in each frame."""
    walked = frames(trained(folder, family), labels_for(family), steps=200).float()
    steps = (walked - walked.roll(-1, 0)).abs().mean((1, 2, 3, 4))
    across = (walked[0] - walked[200]).abs().mean()
    assert 0 < steps.max() < across / 20


def test_a_class_is_kept_all_the_way(folder):
    generator = trained(folder, "dcgan")
    apples, kiwis = (frames(generator, [label] * COUNT) for label in (0, 1))
    assert all(not apple.equal(kiwi) for apple, kiwi in zip(apples, kiwis, strict=True))


def test_the_film_has_a_frame_a_step_and_a_column_a_class(folder, tmp_path):
    generator = trained(folder, "dcgan")
    arguments = ["sample", str(folder / "dcgan"), "--format", "gif", "--n", str(COUNT), "--class", "Kiwi", "Apple"]
    assert cli.main([*arguments, "--seed", "3", "--seeds", "2", "--steps", "4", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "walk.gif") as film:
        assert film.n_frames == 8
        first = np.asarray(film.convert("L"), np.int64)
    expected = generator.sample(COUNT, 3, [1, 0] * 3).numpy()
    assert np.abs(first - np.asarray(fit(grid(expected, 2), 320, 960), np.int64)).max() <= 1
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 2, "the film that lies there is kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "--seeds means nothing for --format png"),
        (["--steps", "3"], "--steps means nothing for --format png"),
        (["--format", "gif", "--seeds", "1"], "--seeds is 1: give at least 2"),
        (["--format", "gif", "--steps", "0"], "--steps is 0: give at least 1"),
        (["--format", "gif", "--first", "8"], "--first means nothing for --format gif"),
        (["--format", "gif", "--n", "257"], "--n 257 is too much for a film: give at most 256"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, capsys, arguments, message):
    assert cli.main(["sample", str(folder / "none"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"scalegan: error: {message}")
    assert not (tmp_path / "out").exists()
