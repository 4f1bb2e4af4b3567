"""Images from a trained generator: image i of a seed is one and the same, however it is asked for."""

import csv
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_config, make_shards, save_checkpoint

from scalegan import checkpoint, cli, sampling, sampling_cli
from scalegan.data.index import Index
from scalegan.errors import UserError
from scalegan.evaluation import sides
from scalegan.evaluation.team import Team
from scalegan.pixels import to_uint8
from scalegan.sampling import LoadedGenerator, grid_labels, load_generator
from scalegan.walks import walk

CLASSES = ("Apple", "Kiwi", "Plum")
SHAPE = (16, 12, 1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sampling")


@pytest.fixture(scope="module")
def index(folder) -> Index:
    return make_shards(folder / "data", samples=50, classes=CLASSES)


@pytest.fixture(scope="module")
def run(folder, index) -> Path:
    """A run without classes."""
    config = make_config(folder / "data", folder / "run")
    save_checkpoint(config, index, 640)
    return Path(config.run)


@pytest.fixture(scope="module")
def run_with_classes(folder, index) -> Path:
    config = make_config(folder / "data", folder / "run_with_classes", model={"conditional": True})
    save_checkpoint(config, index)
    return Path(config.run)


@pytest.fixture
def generator(run) -> LoadedGenerator:
    return load_generator(run)


@pytest.fixture
def by_class(run_with_classes) -> LoadedGenerator:
    return load_generator(run_with_classes)


@pytest.fixture(scope="module")
def styled_run(folder, index) -> Path:
    """A run of a generator that can be truncated."""
    model = {"family": "stylegan2", "critic_norm": "auto", "map_layers": 2}
    config = make_config(folder / "data", folder / "styled_run", model=model)
    save_checkpoint(config, index)
    return Path(config.run)


# --- the generator from Python


def test_a_generator_gives_as_many_images_as_asked_for(generator):
    images = generator.sample(5)
    assert images.shape == (5, *generator.shape) == (5, 1, 16, 12)
    assert images.dtype == torch.uint8


def test_pixels_that_are_no_numbers_are_refused(generator):
    generator.network.to_image.conv.weight.data[0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite pixels \(images 64 to 127 of seed 3\)"):
        generator.sample_range(70, 5, seed=3)


def test_other_numbers_and_other_seeds_are_other_images(generator):
    images = generator.sample(8)
    assert len({image.numpy().tobytes() for image in images}) == 8
    assert not torch.equal(images, generator.sample(8, seed=1))


@pytest.mark.parametrize(("first", "count"), [(0, 1), (63, 2), (64, 64), (70, 60), (129, 1)])
def test_an_image_is_the_same_in_any_slice(generator, first, count):
    assert torch.equal(generator.sample_range(first, count), generator.sample(130)[first : first + count])


def test_an_image_is_made_in_plain_float32_whatever_is_around(generator, float32_switches, monkeypatch):
    """A training in bfloat16 leaves TF32 on, `scalegan evaluate` has it off, and both are to see the same images."""
    found, forward = [], generator.network.forward

    def look(*given):
        found.append([switch.fp32_precision for switch in float32_switches])
        return forward(*given)

    monkeypatch.setattr(generator.network, "forward", look)
    before = [switch.fp32_precision for switch in float32_switches]
    images = generator.sample(70)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generator.sample(70), images)
    film = walk(generator, 2, [0, 1], 2, torch.full((2,), -1))
    assert next(film).shape == images[:2].shape
    assert found == 5 * [["ieee", "ieee"]]
    assert [switch.fp32_precision for switch in float32_switches] == before == ["tf32", "none"]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("batch", [8, 16, 50, 64, 100, 128])
def test_batches_of_an_extractor_make_no_pass_twice(generator, monkeypatch, batch, processes):
    passes = []
    forward = generator.network.forward
    monkeypatch.setattr(generator.network, "forward", lambda *given: passes.append(1) or forward(*given))
    images = {}
    for rank in range(processes):
        made = sampling.Passes(generator.sample_range)
        for first, count in Team(rank, processes).blocks(400, sampling.at_once(made, batch)):
            images[first] = made(first, count)
            assert len(images[first]) == count
            assert count % batch == 0 or first + count == 400
    if processes == 1 or batch % 50:  # two processes make the passes that their parts share
        assert len(passes) == 7
    assert torch.equal(torch.cat([images[first] for first in sorted(images)]), generator.sample(400))


def test_an_image_with_a_drawn_label_is_the_same_in_any_slice(by_class):
    assert torch.equal(by_class.sample_range(60, 20), by_class.sample(80)[60:])


def test_an_image_with_a_given_label_is_the_same_in_any_slice(by_class):
    labels = torch.arange(80) % 3
    assert torch.equal(by_class.sample_range(60, 20, labels=labels[60:]), by_class.sample(80, labels=labels)[60:])


def test_a_label_decides_the_class(by_class):
    kiwis, plums = by_class.sample(4, labels=[1] * 4), by_class.sample(4, labels=[2] * 4)
    assert not torch.equal(kiwis, plums)


@pytest.mark.parametrize("seed", [1.0, None, "1"])
def test_a_seed_that_is_no_whole_number_is_one_line(generator, seed):
    """It would silently be another seed than 1."""
    with pytest.raises(UserError, match=f"^seed {seed!r} is no whole number: give one, such as 0$"):
        generator.sample(1, seed=seed)


@pytest.mark.parametrize("seed", [np.int64(1), torch.tensor(1), True])
def test_a_whole_number_of_another_type_is_the_same_seed(generator, seed):
    assert torch.equal(generator.sample(2, seed=seed), generator.sample(2, seed=1))


def test_the_folder_of_checkpoints_names_the_run(run):
    with pytest.raises(UserError, match=f"checkpoints is no run: give {run}, or one of the checkpoints in there"):
        load_generator(run / "checkpoints")


def test_a_class_for_a_generator_of_ours_is_refused(run):
    with pytest.raises(
        UserError, match=r"the generator is one of model\.family dcgan, and no class of your own: leave that out"
    ):
        load_generator(run, generator=torch.nn.Identity)


def test_drawn_labels_are_those_that_labels_of_tells_and_follow_the_data(by_class):
    labels = by_class.labels_of(0, 3000)
    assert torch.equal(by_class.sample(70), by_class.sample(70, labels=labels[:70]))
    assert np.bincount(labels) / 3000 == pytest.approx(np.array(by_class.class_counts) / 50, abs=0.03)


def test_the_averaged_weights_are_sampled_not_the_raw_ones(generator, run):
    saved = checkpoint.read(run / "checkpoints" / "000000640")
    loaded = generator.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.tensors("ema").items())
    assert not all(torch.equal(loaded[name], value) for name, value in saved.tensors("generator").items())


def test_a_run_stands_for_its_newest_checkpoint_and_a_checkpoint_for_itself(folder, index):
    config = make_config(folder / "data", folder / "two")
    older, newer = save_checkpoint(config, index, 100, seed=1), save_checkpoint(config, index, 200, seed=2)
    assert load_generator(config.run).images_seen == 200
    assert load_generator(newer).sample(2).equal(load_generator(config.run).sample(2))
    assert load_generator(older).images_seen == 100


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(folder, index, capsys):
    config = make_config(folder / "data", folder / "damaged")
    save_checkpoint(config, index, 100)
    damage(save_checkpoint(config, index, 200) / "ema.safetensors")
    assert load_generator(config.run).images_seen == 100
    told = capsys.readouterr().err
    assert told.startswith(f"scalegan: checkpoint {config.run}/checkpoints/000000200: ema.safetensors is damaged")
    assert told.endswith("; the one before is taken\n")
    assert told.count("\n") == 1


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(folder, index):
    path = save_checkpoint(make_config(folder / "data", folder / "asked"), index)
    damage(path / "ema.safetensors")
    with pytest.raises(UserError, match=r"asked.*ema.safetensors is damaged"):
        load_generator(path)


def test_a_checkpoint_with_settings_of_another_version_is_an_error(folder, index):
    path = save_checkpoint(make_config(folder / "data", folder / "newer"), index)
    state = checkpoint.read(path).state
    state["config"]["model"]["depth"] = 3
    path = checkpoint.write(folder / "other", 640, {}, state | {"versions": {"scalegan": "9.0"}})
    with pytest.raises(
        UserError, match=r"other has settings that this code of scalegan .*'depth'\): use the code that wrote it, 9\.0"
    ):
        load_generator(path)
    with pytest.raises(UserError, match="has settings that this code"):
        sides.config_of(str(path))


def test_no_images_are_an_empty_tensor_and_fewer_an_error(generator, by_class):
    none = generator.sample(0)
    assert (none.dtype, none.shape) == (torch.uint8, (0, 1, 16, 12))
    assert generator.sample_range(70, 0).shape == none.shape
    assert by_class.sample(0).shape == by_class.sample(0, labels=[]).shape == (0, *by_class.shape)
    with pytest.raises(UserError, match="-1 images cannot be made"):
        generator.sample(-1)
    with pytest.raises(UserError, match="there is no image -5: the first one of a seed is 0"):
        generator.sample_range(-5, 3)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        [0, 1, 3],
        [0, -1, 1],
        [0.5, 1.9, 0.0],
        torch.tensor([0.0, 1.0, 2.0]),
        ["Apple", "Kiwi", "Plum"],
        [[0], [1, 2], [0]],
    ],
    ids=str,
)
def test_labels_must_be_class_numbers_one_for_each_image(by_class, labels):
    with pytest.raises(UserError, match=r"3 class numbers from 0 to 2 \(Apple, Kiwi, Plum\)"):
        by_class.sample(3, labels=labels)


def test_labels_for_a_generator_without_classes_are_an_error(generator):
    with pytest.raises(UserError, match="not class-conditional"):
        generator.sample(2, labels=[0, 1])


def test_no_run_and_no_checkpoint_are_told_apart(run, tmp_path):
    with pytest.raises(UserError, match=r"ema\.safetensors is a file: give a run folder or one of its checkpoints"):
        load_generator(run / "checkpoints" / "000000640" / "ema.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs no GPU")), "gpu"]
)
def test_a_device_that_is_not_there_is_told(run, device):
    with pytest.raises(UserError, match=f"device {device} cannot be used .*: give another one, such as cpu") as told:
        load_generator(run, device)
    assert "\n" not in str(told.value)


def test_pixels_are_rounded_and_kept_in_range():
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_grid_has_a_column_a_class():
    labels = grid_labels(7, 3)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert grid_labels(7, 0) is None


# --- the command


def sample(*arguments: object) -> int:
    return cli.main(["sample", *map(str, arguments)])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).reshape(SHAPE)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_png_files_are_the_images_by_number(run, generator, tmp_path, capsys):
    assert sample(run, "--n", 3, "--seed", 5, "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for i, image in enumerate(generator.sample(3, seed=5)):
        np.testing.assert_array_equal(pixels(tmp_path / f"{i:06d}.png"), image.permute(1, 2, 0))
    assert f"3 images of seed 5 in {tmp_path}" in capsys.readouterr().out


def test_two_jobs_make_the_same_set_as_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_cli, "CHUNK", 50)
    assert sample(run, "--n", 120, "--out", tmp_path / "one") == 0
    assert sample(run, "--n", 70, "--out", tmp_path / "two") == 0
    assert sample(run, "--n", 50, "--first", 70, "--out", tmp_path / "two") == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(one) == 120
    assert one == two


def test_images_of_another_generator_are_not_mixed_in(run, tmp_path, capsys):
    assert sample(run, "--n", 4, "--out", tmp_path) == 0
    before = (tmp_path / "000003.png").stat().st_mtime_ns
    assert sample(run, "--n", 2, "--first", 3, "--seed", 1, "--out", tmp_path) == 2
    assert "000003.png exists already" in capsys.readouterr().err
    assert (tmp_path / "000003.png").stat().st_mtime_ns == before


def test_npz_holds_images_labels_and_names(run_with_classes, by_class, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_cli, "CHUNK", 32)
    assert sample(run_with_classes, "--n", 70, "--format", "npz", "--out", tmp_path) == 0
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], by_class.sample(70).permute(0, 2, 3, 1))
        np.testing.assert_array_equal(arrays["labels"], by_class.labels_of(0, 70))
        assert tuple(arrays["classes"]) == CLASSES
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_npz_without_classes_says_minus_one(run, tmp_path):
    assert sample(run, "--n", 2, "--format", "npz", "--out", tmp_path) == 0
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (2, *SHAPE)
        assert arrays["labels"].tolist() == [-1, -1]


@pytest.mark.parametrize("form", ["npz", "grid"])
def test_what_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch, form):
    monkeypatch.setattr(sampling_cli, "CHUNK", 32)
    real = LoadedGenerator.sample_range

    def fails(self, first, *rest):
        if first:
            raise OSError(28, "No space left on device")
        return real(self, first, *rest)

    monkeypatch.setattr(LoadedGenerator, "sample_range", fails)
    assert sample(run, "--n", 70, "--format", form, "--out", tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "name"), [("grid", "grid.png"), ("npz", "samples.npz")])
def test_what_another_generator_left_is_not_overwritten(run, tmp_path, capsys, form, name):
    assert sample(run, "--n", 2, "--format", form, "--out", tmp_path) == 0
    content = (tmp_path / name).read_bytes()
    assert sample(run, "--n", 2, "--seed", 1, "--format", form, "--out", tmp_path) == 2
    assert f"{tmp_path / name} exists already: give another --out, or delete it" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == content


def test_the_grid_is_one_picture(run, tmp_path):
    assert sample(run, "--n", 9, "--format", "grid", "--out", tmp_path) == 0
    assert Image.open(tmp_path / "grid.png").size == (3 * 12 + 4, 3 * 16 + 4)


def test_a_grid_of_chosen_classes_has_a_column_for_each(run_with_classes, by_class, tmp_path):
    assert sample(run_with_classes, "--n", 8, "--class", "Plum", "Apple", "--format", "grid", "--out", tmp_path) == 0
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (4 * 16 + 6, 2 * 12 + 2)
    apple = by_class.sample(2, labels=[2, 0])[1, 0].numpy()
    np.testing.assert_array_equal(picture[:16, 14:], apple)


def test_labels_are_given_by_name_and_written_beside_the_files(run_with_classes, by_class, tmp_path):
    assert sample(run_with_classes, "--n", 3, "--class", "Kiwi", "--class", "Plum", "--out", tmp_path) == 0
    assert sample(run_with_classes, "--n", 1, "--first", 3, "--class", "Kiwi", "Plum", "--out", tmp_path) == 0
    with open(tmp_path / "labels.csv", newline="") as file:
        rows = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [("000000.png", "Kiwi"), ("000001.png", "Plum"), ("000002.png", "Kiwi"), ("000003.png", "Plum")]
    expected = by_class.sample(4, labels=[1, 2, 1, 2])
    np.testing.assert_array_equal(pixels(tmp_path / "000003.png"), expected[3].permute(1, 2, 0))


def test_labels_of_images_that_were_deleted_are_not_mixed_in(run, run_with_classes, tmp_path, capsys):
    assert sample(run_with_classes, "--n", 2, "--class", "Kiwi", "--out", tmp_path) == 0
    for image in tmp_path.glob("*.png"):
        image.unlink()
    for other in (run, run_with_classes):
        assert sample(other, "--n", 2, "--out", tmp_path) == 2
        assert f"{tmp_path / 'labels.csv'} is left over, with a label of 000000.png" in capsys.readouterr().err
    assert sample(run_with_classes, "--n", 2, "--first", 2, "--out", tmp_path) == 0


def test_what_is_broken_off_has_a_label_for_each_file(run_with_classes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling_cli, "CHUNK", 32)
    real = sampling_cli.write_png

    def stopped(path, image):
        if path.name == "000040.png":
            raise KeyboardInterrupt
        real(path, image)

    monkeypatch.setattr(sampling_cli, "write_png", stopped)
    assert sample(run_with_classes, "--n", 96, "--out", tmp_path) == 130
    assert capsys.readouterr().err == "scalegan: stopped by Ctrl-C\n"
    with open(tmp_path / "labels.csv", newline="") as file:
        labelled = [row["file"] for row in csv.DictReader(file)]
    assert labelled == sorted(path.name for path in tmp_path.glob("*.png"))
    assert 32 < len(labelled) < 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "--n is 0: give at least 1"),
        (["--first", "-1"], "--first is -1: give 0 or more"),
        (["--truncation", "1.5"], "--truncation is 1.5: give a share from 0 to 1"),
        (["--n", "5000", "--format", "grid"], "give at most 4096, or --format png"),
        (["--class", "kiwwi"], "no such class; did you mean Kiwi?"),
        (["--class", "Zebra"], "no such class; there are Apple, Kiwi, Plum"),
        (["--claas", "Kiwi"], "did you mean --class?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_with_classes, tmp_path, capsys, arguments, message):
    assert sample(run_with_classes, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("scalegan: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_class_is_found_however_its_accents_are_written(by_class):
    mac = unicodedata.normalize("NFD", "Küche")
    other = replace(by_class, classes=("Apple", mac, "Plum"))
    assert sampling_cli.class_numbers(["Küche", mac], other) == [1, 1]


def test_classes_for_a_generator_without_are_refused(run, tmp_path, capsys):
    assert sample(run, "--class", "Kiwi", "--out", tmp_path) == 2
    assert "trained without classes" in capsys.readouterr().err


def test_truncated_images_are_more_alike(styled_run, tmp_path):
    spread = []
    for truncation in ("1", "0.5", "0"):
        out = tmp_path / truncation
        assert sample(styled_run, "--n", 8, "--truncation", truncation, "--format", "npz", "--out", out) == 0
        spread.append(np.load(out / "samples.npz")["images"].astype(float).std(0).mean())
    assert spread[0] > spread[1] > spread[2] == 0


def test_truncation_of_another_generator_is_refused(run, tmp_path, capsys):
    assert sample(run, "--truncation", "0.7", "--out", tmp_path) == 2
    assert "is of model.family dcgan, which cannot be truncated" in capsys.readouterr().err


def test_out_must_be_a_folder(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sample(run, "--out", tmp_path / "file") == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    assert sample(run, "--out", tmp_path / "file" / "sub") == 2
    told = f"scalegan: error: a file stands where a folder should: {tmp_path}/file/sub: choose another path\n"
    assert capsys.readouterr().err == told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_told(run, tmp_path, capsys):
    assert sample(run, "--device", "cuda", "--out", tmp_path) == 2
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_help_loads_no_torch():
    code = (
        "import sys, argparse\nfrom scalegan import sampling_cli\n"
        "sampling_cli.add_arguments(argparse.ArgumentParser())\nassert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
