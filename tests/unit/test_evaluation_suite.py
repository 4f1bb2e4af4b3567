"""Every metric that is asked for stands in the record of one evaluation, from one pass over the images of each side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation_evaluator import COUNT, CPU, FACTS, Areas, pictures, small_extractor  # noqa: F401 (an automatic fixture)
from tiny import make_shards as write_blobs

from helpers.lpips_weights import made_up_lpips
from helpers.shards import make_shards, png
from scalegan.config import DataConfig
from scalegan.data.index import Index
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError
from scalegan.evaluation import evaluator, suite
from scalegan.evaluation.evaluator import evaluate, labels_of
from scalegan.evaluation.features import Extractor
from scalegan.evaluation.path_length import LatentPaths
from scalegan.evaluation.suite import ClassScore
from scalegan.evaluation.table import LINES, rows
from scalegan.evaluation_config import EvaluationConfig
from scalegan.model_config import ModelConfig
from scalegan.models import build_generator


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", count=COUNT, height=24, width=16)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Index:
    return make_shards(tmp_path_factory.mktemp("data") / "held_out", count=30, height=24, width=16, seed=7)


def run(index: Index, folder: Path, metrics: str, count: int = 40, held_out: str = "", made=None, **options):
    images = pictures(count, 1, index) if made is None else made
    config = EvaluationConfig(samples=len(images), batch=8, metrics=metrics)
    data = DataConfig(path=index.root, held_out=held_out)
    return evaluate(
        lambda first, count: images[first : first + count], index, config, cache=folder, data=data, **FACTS, **options
    )


def labels(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count) % 2


def test_all_metrics_stand_in_one_record(index, held_out, tmp_path, monkeypatch):
    head = ClassScore(torch.randn(5, 48, generator=torch.Generator().manual_seed(0)), None)
    monkeypatch.setattr(suite, "class_score", lambda config, extractor: head)
    passes = []
    made = Extractor("areas", Areas(), "no weights", CPU, 8)
    monkeypatch.setattr(evaluator, "load_extractor", lambda *_: Counting(made, passes))
    monkeypatch.setattr(evaluator, "load_lpips", lambda *_: made_up_lpips())
    names = "ssim,ms_ssim,lpips,ppl,interval,infinity,kid,prdc,per_class,accuracy,inception_score,memorisation"
    record = run(index, tmp_path, names, 200, held_out.root, labels=labels, paths=latent_paths("stylegan2"))
    assert sum(passes) == COUNT + 30 + 200  # each image once, whatever is measured
    said = {"held_out": 30, "held_out_sha256": held_out.sha256, "real": COUNT, "generated": 200}
    assert record.items() >= said.items()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    printed = {name for name, *_ in rows(record)}
    assert len(printed) == len(LINES) - 1  # all but kid_subsets
    assert {"fd_areas_se", "kd_areas", "class_score_areas", "mifd_areas", "precision", "c_t"} <= printed
    assert record["fd_areas_low"] < record["fd_areas"] < record["fd_areas_high"]
    for name in ("fd_areas_per_class", "accuracy_per_class", "accuracy_real_per_class", "accuracy_held_out_per_class"):
        assert set(record[name]) == {"disc", "square"}
    assert 0 < record["precision"] <= 1 and 0 < record["authenticity"] <= 1  # noqa: PT018


def latent_paths(family: str) -> LatentPaths:
    torch.manual_seed(0)
    config = ModelConfig(family=family, z_dim=8, width=4, max_width=8, critic_width=4, critic_max_width=8)
    network = build_generator(config, (3, 24, 16), 0).eval().requires_grad_(False)
    return LatentPaths(network, config.z_dim, (), seed=0)


def test_lpips_and_path_length_stand_beside_their_controls_and_provenance(index, tmp_path, monkeypatch):
    distance = made_up_lpips()
    monkeypatch.setattr(evaluator, "load_lpips", lambda *_: distance)
    record = run(index, tmp_path, "lpips,ppl", paths=latent_paths("dcgan"))
    said = {
        "lpips": "alex", "lpips_weights_sha256": "made up", "lpips_heads_sha256": distance.heads_sha256,
        "lpips_resize": "bilinear from 24x16 to 46x31", "ppl_steps": 40, "ppl_resize": "none",
    }  # fmt: skip
    assert record.items() >= said.items()
    assert "ppl_w" not in record
    assert record["ppl_z"] > 0 < record["ppl_z_se"]
    made = pictures(40, 1, index)
    found = distance(made[::2], made[1::2]).numpy()
    assert record["lpips_pairs"] == pytest.approx(found.mean())
    assert record["lpips_pairs_se"] == pytest.approx(found.std(ddof=1) / 20**0.5)
    assert record["lpips_pairs_real"] > 2 * record["lpips_pairs_real_se"] > 0
    alike = run(index, tmp_path, "lpips", made=made[:1].expand(40, -1, -1, -1))
    assert alike["lpips_pairs"] < 1e-6
    assert alike["lpips_pairs_real"] == record["lpips_pairs_real"]


def test_images_that_lie_somewhere_are_paired_at_random(index, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "load_lpips", lambda *_: made_up_lpips())
    made = pictures(20, 1, index).repeat_interleave(2, 0)  # neighbours are alike, as turns of one object
    assert run(index, tmp_path, "lpips", made=made, paths=latent_paths("dcgan"))["lpips_pairs"] < 1e-6
    record = run(index, tmp_path, "lpips", made=made)
    assert record["lpips_pairs"] > 0.5 * record["lpips_pairs_real"]


class Counting:
    """An extractor that counts the images it is given."""

    def __init__(self, extractor: Extractor, passes: list[int]) -> None:
        self.extractor, self.passes = extractor, passes

    def __getattr__(self, name):
        return getattr(self.extractor, name)

    def __call__(self, images):
        self.passes.append(len(images))
        return self.extractor(images)


def test_copies_of_training_images_are_named_and_shown(index, held_out, tmp_path):
    made = pictures(40, 1, index)
    made[[5, 17]] = pictures(COUNT, 0, index)[[33, 8]]
    record = run(index, tmp_path, "memorisation", held_out=held_out.root, made=made, pictures=tmp_path / "pictures")
    first, second = record["closest"][:2]
    assert {(p["generated"], p["real"], p["distance"]) for p in (first, second)} == {(5, 33, 0.0), (17, 8, 0.0)}
    assert record["near_copies"] >= 2 / 40
    with Image.open(tmp_path / "pictures" / record["closest_picture"]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (24 * 2 + 2, 8 * 16 + 7 * 2, 3)
    assert np.array_equal(pixels[:24, :34], pixels[26:, :34])  # both copies, and the originals under them


def patterns(count: int, seed: int) -> torch.Tensor:
    """uint8 [count, 3, 16, 16]: smooth, no two alike."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw) * 255
    return torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 255).round().to(torch.uint8)


def written(images: torch.Tensor, folder: Path) -> Index:
    samples = [Sample(png(image), "png") for image in images.permute(0, 2, 3, 1).numpy()]
    return write_shards(samples, folder, height=16, width=16, channels=3)


def test_the_share_of_planted_copies_is_found(tmp_path):
    """Among 500 generated images; a copy is nearer than any held-out image, of which 5 % are near by definition."""
    training = patterns(600, 1)
    index, held_out = written(training, tmp_path / "training"), written(patterns(500, 2), tmp_path / "held_out")
    new, places = patterns(500, 3), np.random.default_rng(0).permutation(500)
    shares, found = (0.0, 0.01, 0.05, 0.2), []
    for share in shares:
        made, copies = new.clone(), round(500 * share)
        made[places[:copies]] = training[100 : 100 + copies]
        found.append(run(index, tmp_path, "memorisation", held_out=held_out.root, made=made))
    near, statistic = ([record[name] for record in found] for name in ("near_copies", "c_t"))
    assert near == sorted(set(near))
    assert near == pytest.approx([share + 0.05 * (1 - share) for share in shares], abs=0.025)
    assert statistic == sorted(set(statistic), reverse=True)
    assert statistic[-1] < -2


def test_real_images_are_looked_at_again_where_their_features_are_wanted(index, tmp_path):
    first = run(index, tmp_path, "kid,prdc")
    again = run(index, tmp_path, "kid,prdc")
    assert again | {"seconds": 0} == first | {"seconds": 0}
    assert len(list(tmp_path.iterdir())) == 1
    plain = run(index, tmp_path, "")
    assert plain["fd_areas"] == first["fd_areas"]
    assert not {"kd_areas", "precision", "ssim_max"} & plain.keys()


def test_labels_of_samples_come_from_the_index(index):
    from helpers.shards import make_images

    expected = make_images(COUNT, 24, 16, 3)[1]
    assert labels_of(index, np.array([3, 44, 0])).tolist() == expected[[3, 44, 0]].tolist()


def test_mixed_precision_around_an_evaluation_changes_no_figure(index, tmp_path):
    names = "interval,kid,prdc,accuracy"
    plain = run(index, tmp_path / "plain", names, labels=labels)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert run(index, tmp_path / "mixed", names, labels=labels) | {"seconds": 0} == plain | {"seconds": 0}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_held_out_images_of_other_classes_are_no_control(index, tmp_path):
    blobs = write_blobs(tmp_path / "blobs", samples=10, height=24, width=16, channels=3, classes=("a", "b"))
    record = run(index, tmp_path, "accuracy", held_out=blobs.root, labels=labels)
    assert {"accuracy", "accuracy_real"} <= record.keys()
    assert not {"held_out", "accuracy_held_out"} & record.keys()  # nor are they said to have been looked at


def test_what_a_metric_lacks_is_told_before_any_work(index, held_out, tmp_path):
    few = make_shards(tmp_path / "few", count=19, height=24, width=16)
    wide = make_shards(tmp_path / "wide", count=30, height=24, width=18)
    unlabelled = make_shards(tmp_path / "unlabelled", count=30, height=24, width=16, labelled=False)
    for message, arguments in (
        (
            "memorisation needs images that were never trained on, and there are none: name them by --held-out",
            {"metrics": "memorisation"},
        ),
        ("memorisation needs 20 held-out images; .* holds 19", {"metrics": "memorisation", "held_out": few.root}),
        ("give the same size", {"metrics": "memorisation", "held_out": wide.root}),
        ("share 1 shards with .*: name images that are not trained on", {"metrics": "memorisation", "held_out": index.root}),
        ("per_class needs generated images with labels: a generator that is told", {"metrics": "per_class"}),
        ("accuracy needs generated images with labels", {"metrics": "kid,accuracy"}),
        (
            "of square there are .* and 0: raise evaluation.samples",
            {"metrics": "per_class", "labels": lambda f, n: np.zeros(n)},
        ),
        ("needs 1000 generated images and evaluation.samples is 40", {"metrics": "kid_subsets"}),
        ("infinity needs 192 generated images", {"metrics": "infinity"}),
        ("ppl needs a generator and its latents, .* in a folder or in shards", {"metrics": "lpips,ppl"}),
        ("inception_score needs class probabilities, which extractor areas has not", {"metrics": "inception_score"}),
    ):
        with pytest.raises(UserError, match=message):
            run(index, tmp_path / "cache", **arguments)
    with pytest.raises(UserError, match=r"accuracy needs real images with labels and .*unlabelled has none"):
        run(unlabelled, tmp_path / "cache", "accuracy", labels=labels)
    one = write_blobs(tmp_path / "one", samples=30, height=24, width=16, channels=3, classes=("a",))
    with pytest.raises(UserError, match="accuracy needs 2 classes and there are 1"):
        run(one, tmp_path / "cache", "accuracy", labels=lambda first, count: np.zeros(count, int))
