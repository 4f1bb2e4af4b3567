"""An evaluation compares every generated and every real image once, says what it compared, and changes nothing around it."""

import json
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.shards import make_images, make_shards, png
from scalegan.config import DataConfig
from scalegan.data.index import Index, read_offsets
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError
from scalegan.evaluation import evaluator, real
from scalegan.evaluation.evaluator import evaluate
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.frechet import FrechetDistance
from scalegan.evaluation.real import RealImages
from scalegan.evaluation.team import Team
from scalegan.evaluation_config import EvaluationConfig

CPU = torch.device("cpu")
COUNT = 45
FACTS = {"seed": 3, "images_seen": 640, "ema": True, "rank": 0, "processes": 1, "device": CPU}


class Areas(nn.Module):
    """48 features: means of 4x4 areas of each colour."""

    num_features = 48
    cpu_batch = 4
    resize = "none"

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)


@pytest.fixture(autouse=True)
def small_extractor(monkeypatch):
    torch.set_num_threads(1)
    made = Extractor("areas", Areas(), "no weights", CPU, 4)
    monkeypatch.setattr(evaluator, "load_extractor", lambda config, device, team: made)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", count=COUNT, height=24, width=16)


def pictures(count: int, seed: int, index: Index) -> Tensor:
    images, _ = make_images(count, index.height, index.width, index.channels, seed)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def run(index: Index, cache, made: Tensor, classes=None, **changes):
    options = {"samples": len(made), "batch": 8} | changes
    asked = []

    def generator(first: int, count: int) -> Tensor:
        asked.append((first, count))
        return made[first : first + count]

    labels = None if classes is None else lambda first, count: classes[first : first + count]
    record = evaluate(generator, index, EvaluationConfig(**options), cache=cache, labels=labels, **FACTS)
    return record, asked


def test_the_data_itself_is_at_distance_zero(index, tmp_path):
    record, _ = run(index, tmp_path, pictures(COUNT, 0, index))
    assert record["fd_areas"] == pytest.approx(0, abs=1e-9)
    assert record["fd_areas_floor"] > 0.01
    assert record["ssim_max"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("samples", [60, 10])
def test_what_the_floor_is_held_against_has_its_counts(index, tmp_path, samples):
    made, whole = pictures(samples, 1, index), pictures(COUNT, 0, index)
    record, _ = run(index, tmp_path, made)
    again, _ = run(index, tmp_path, made)  # from the file
    images = RealImages(index, 0, None, samples)
    assert record["half_counts"] == record["floor_counts"] == [min(samples, COUNT // 2), COUNT // 2]
    assert not (images.in_first_half & images.in_floor).any()
    for name, beside in (("half", made[: COUNT // 2]), ("floor", whole[images.in_floor])):
        direct = FrechetDistance(48)
        direct.update(Areas()(whole[images.in_first_half]), real=True)
        direct.update(Areas()(beside), real=False)
        assert int(direct.fake_features_num_samples) == record["floor_counts"][0]
        assert record[f"fd_areas_{name}"] == again[f"fd_areas_{name}"] == pytest.approx(float(direct.compute()), rel=1e-6)


def test_fewer_generated_images_have_a_floor_of_their_own(index, tmp_path):
    floors = [run(index, tmp_path, pictures(60, 1, index)[:samples])[0]["fd_areas_floor"] for samples in (10, 22, 60)]
    assert floors[0] > floors[1] == floors[2]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_floor_is_a_function_of_the_counts_alone(index):
    one, again, fewer = (RealImages(index, 0, None, samples) for samples in (10, 10, 7))
    assert torch.equal(one.in_floor, again.in_floor)
    assert (int(one.in_floor.sum()), int(fewer.in_floor.sum())) == (10, 7)
    assert bool((one.in_floor | ~fewer.in_floor).all())
    assert torch.equal(one.in_first_half, fewer.in_first_half)


def test_features_that_are_no_numbers_are_one_line(index, tmp_path, monkeypatch):
    class Broken(Areas):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * float("nan")

    monkeypatch.setattr(evaluator, "load_extractor", lambda *_: Extractor("areas", Broken(), "no weights", CPU, 4))
    with pytest.raises(UserError, match="features of extractor areas hold NaN or infinity: it cannot take such images"):
        run(index, tmp_path, pictures(60, 1, index), metrics="interval,kid")
    assert not list(tmp_path.iterdir())


def test_other_images_of_the_kind_are_near_and_noise_is_far(index, tmp_path):
    kin, _ = run(index, tmp_path, pictures(60, 1, index))
    noise, _ = run(index, tmp_path, torch.randint(0, 256, (60, 3, 24, 16), dtype=torch.uint8))
    assert kin["fd_areas"] < 2 * kin["fd_areas_floor"] < noise["fd_areas"]
    assert kin["ssim_max"] > noise["ssim_max"]


@pytest.mark.parametrize(("place", "seen"), [(0, True), (7, True), (8, False), (19, False)])
def test_the_largest_ssim_is_that_of_the_first_eight_samples(index, tmp_path, place, seen):
    made = torch.randint(0, 256, (20, 3, 24, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made[place] = pictures(COUNT, 0, index)[30]
    record, _ = run(index, tmp_path, made, metrics="ssim")
    assert record["ssim_max"] == pytest.approx(1, abs=1e-6) if seen else record["ssim_max"] < 0.5


def test_one_picture_a_class_shows_within_the_classes(index, tmp_path):
    labels = make_images(COUNT, 24, 16, 3, 0)[1]
    firsts = torch.tensor([int((labels == label).argmax()) for label in labels])
    real = pictures(COUNT, 0, index)
    whole, _ = run(index, tmp_path, real, labels)
    collapsed, _ = run(index, tmp_path, real[firsts], labels)
    assert whole["diversity_in_class"] == pytest.approx(whole["diversity_in_class_real"], rel=1e-12)
    assert collapsed["diversity"] > 0.4 * collapsed["diversity_real"]
    assert collapsed["diversity_in_class"] == 0
    assert collapsed["diversity_in_class_real"] == whole["diversity_in_class_real"] > 10
    assert "diversity_in_class" not in run(index, tmp_path, real)[0]
    assert "diversity_in_class" not in run(index, tmp_path, real, labels, metrics="kid")[0]


def test_a_collapsed_generator_has_no_diversity(index, tmp_path):
    record, _ = run(index, tmp_path, pictures(COUNT, 0, index)[:1].expand(20, -1, -1, -1))
    assert record["diversity"] == 0
    assert record["diversity_real"] > 10
    assert 0 < record["ssim_mean_image"] < record["ssim_max"]


def test_the_record_says_what_was_compared(index, tmp_path):
    record, _ = run(index, tmp_path, pictures(20, 1, index))
    said = {
        "generated": 20, "real": COUNT, "floor_counts": [20, 22], "index_sha256": index.sha256, "extractor": "areas",
        "weights_sha256": "no weights", "resize": "none", "ema": True, "images_seen": 640, "seed": 3, "processes": 1,
    }  # fmt: skip
    assert record.items() >= said.items()
    assert record["dtype"].startswith("float32")
    assert record["seconds"] > 0
    assert json.loads(json.dumps(record)) == record


def test_every_image_is_made_once_in_aligned_blocks(index, tmp_path):
    _, asked = run(index, tmp_path, pictures(20, 1, index), metrics="")
    assert asked == [(0, 8), (8, 8), (16, 4)]
    blocks = [block for rank in range(3) for block in Team(rank, 3).blocks(20, 8)]
    assert sorted(blocks) == asked


def test_real_images_are_read_once_and_kept(index, tmp_path, monkeypatch):
    first, _ = run(index, tmp_path, pictures(20, 1, index))

    def fail(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(real, "measure", fail)
    again, _ = run(index, tmp_path, pictures(20, 1, index))
    assert again | {"seconds": 0} == first | {"seconds": 0}


def test_a_damaged_cache_is_made_again(index, tmp_path):
    first, _ = run(index, tmp_path, pictures(20, 1, index))
    (file,) = tmp_path.glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again, _ = run(index, tmp_path, pictures(20, 1, index))
    assert again | {"seconds": 0} == first | {"seconds": 0}
    assert file.read_bytes() == whole


def test_other_data_is_another_cache(index, tmp_path):
    other = make_shards(tmp_path / "other", count=COUNT, height=24, width=16, seed=9)
    run(index, tmp_path / "cache", pictures(20, 1, index))
    record, _ = run(other, tmp_path / "cache", pictures(COUNT, 9, index))
    assert record["fd_areas"] == pytest.approx(0, abs=1e-9)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_part_of_the_real_images_is_a_fixed_random_choice(index):
    def chosen(wanted: int) -> RealImages:
        return RealImages(index, wanted, reader=None)

    assert np.array_equal(chosen(20).samples, chosen(20).samples)
    assert set(chosen(20).samples) < set(chosen(21).samples)
    assert np.array_equal(chosen(0).samples, np.arange(COUNT))
    assert chosen(20).samples.max() > 30
    assert chosen(20).in_first_half.sum() == 10
    assert len(set(chosen(0).in_first_half[:20].tolist())) == 2  # mixed, not the first and the last


def test_a_part_of_the_real_images_is_compared_when_asked(index, tmp_path):
    record, _ = run(index, tmp_path, pictures(20, 1, index), real=20)
    assert (record["real"], record["floor_counts"]) == (20, [10, 10])


def test_ssim_is_left_out_when_not_wanted_and_where_images_are_too_small(index, tmp_path):
    record, _ = run(index, tmp_path, pictures(20, 1, index), metrics="")
    assert not {"ssim_max", "ssim_mean_image", "diversity", "diversity_real"} & record.keys()
    small = make_shards(tmp_path / "small", count=8, height=4, width=40, channels=1)
    record, _ = run(small, tmp_path, pictures(8, 0, small))
    assert {"ssim_max", "ssim_mean_image"} & record.keys() == set()
    assert record["diversity"] == pytest.approx(record["diversity_real"])


def test_training_does_not_notice(index, tmp_path):
    state, legacy, plain = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    run(index, tmp_path, pictures(20, 1, index))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert random.getstate() == plain
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_too_few_images_are_refused_with_the_number_needed(index, tmp_path):
    few = make_shards(tmp_path / "few", count=3, height=24, width=16)
    with pytest.raises(UserError, match=r"a comparison needs 4 real images and .* holds 3: use more data"):
        run(few, tmp_path, pictures(20, 1, index))


def test_more_real_images_than_there_are_means_all(index, tmp_path):
    """Or a preset would not start on fewer images than its author had."""
    made = pictures(20, 1, index)
    more, every = (run(index, tmp_path / str(real), made, real=real)[0] for real in (COUNT + 1, 0))
    assert more["real"] == COUNT
    assert {**more, "seconds": 0} == {**every, "seconds": 0}


@pytest.mark.parametrize("real", [1, 2, 3])
def test_a_choice_of_too_few_real_images_is_refused_before_any_is_looked_at(index, tmp_path, real, monkeypatch):
    monkeypatch.setattr(evaluator, "real_statistics", lambda *_: pytest.fail("looked at"))
    said = rf"evaluation.real is {real}, and each half of the real images needs 2: give at least 4, or 0 to take all"
    with pytest.raises(UserError, match=said):
        run(index, tmp_path, pictures(20, 1, index), real=real)


def test_an_unreadable_image_is_named_or_skipped_as_the_data_config_says(tmp_path):
    images, _ = make_images(20, 24, 16, 3)
    samples = [Sample(png(image) if number != 7 else b"no image", "png") for number, image in enumerate(images)]
    index = write_shards(samples, tmp_path / "shards", height=24, width=16, channels=3)
    made = pictures(20, 1, index)
    with pytest.raises(UserError, match=r"image 0*7.png of shard .* is no JPEG"):
        run(index, tmp_path, made)
    skipping = DataConfig(path=index.root, on_error="skip", skip_budget=0.1)
    config = EvaluationConfig(samples=20, batch=8)
    with pytest.warns(UserWarning, match="left out"):
        record = evaluate(lambda first, count: made[first:][:count], index, config, cache=tmp_path, data=skipping, **FACTS)
    assert (record["real"], record["real_unreadable"]) == (20, 1)
    # Statistics with a neighbour in its place are not kept: who wants every image is still told.
    with pytest.raises(UserError, match=r"image 0*7.png of shard .* is no JPEG"):
        run(index, tmp_path, made)


def test_all_figures_of_a_record_are_of_the_same_real_images(tmp_path):
    """Where a metric looks at the real images anew, of which a shard has been damaged since its statistics were kept."""
    samples = [Sample(png(image), "png") for image in make_images(COUNT, 24, 16, 3)[0]]
    index = write_shards(samples, tmp_path / "shards", height=24, width=16, channels=3, shard_samples=9)
    made, data = pictures(20, 1, index), DataConfig(path=index.root, on_error="skip", skip_budget=0.5)
    config = EvaluationConfig(samples=20, batch=8, metrics="kid")

    def measured(cache: str) -> dict:
        return evaluate(lambda first, count: made[first:][:count], index, config, cache=tmp_path / cache, data=data, **FACTS)

    whole = measured("cache")
    offset, length, _ = read_offsets(index, 0)[0].tolist()
    with (tmp_path / "shards" / index.shards[0].name).open("r+b") as shard:
        shard.seek(offset)
        shard.write(bytes(length))
    with pytest.warns(UserWarning, match="left out"):
        again, fresh = measured("cache"), measured("other")
    assert again["real_unreadable"] == 9
    assert again["fd_areas"] != whole["fd_areas"]
    assert again | {"seconds": 0} == fresh | {"seconds": 0}
