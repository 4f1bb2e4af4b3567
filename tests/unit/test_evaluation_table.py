"""`scalegan evaluate --metrics` measures what is named and prints each figure beside its control."""

import argparse
import json

import numpy as np
import pytest
from test_evaluation_command import fill, index, refused, run  # noqa: F401 (fixtures)
from test_evaluation_evaluator import small_extractor  # noqa: F401 (an automatic fixture)
from tiny import make_shards

from helpers.lpips_weights import made_up_file
from helpers.shards import make_images, png
from helpers.shards import make_shards as labelled_shards
from scalegan import cli
from scalegan.data.order import COMPARED, draw, permute
from scalegan.data.writer import Sample, write_shards
from scalegan.errors import UserError
from scalegan.evaluation.command import overridden
from scalegan.evaluation.table import rows
from scalegan.evaluation_config import EvaluationConfig


def test_metrics_and_held_out_images_are_named_on_the_command_line(run, tmp_path, capsys):  # noqa: F811
    held_out = labelled_shards(tmp_path / "held_out", 25, 16, 12, channels=1, seed=7)
    options = ["--metrics", "kid,prdc,memorisation", "--held-out", held_out.root, "--samples", "24"]
    assert cli.main(["evaluate", str(run), *options]) == 0
    (path,) = (run / "evaluations").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["held_out"], record["held_out_sha256"]) == (25, held_out.sha256)
    assert not {"ssim_max", "diversity"} & record.keys()
    printed = capsys.readouterr().out
    for name in ("kd_areas", "precision", "coverage", "authenticity", "c_t", "near_copies", "mifd_areas"):
        assert f" {name} " in printed
    assert f"{record['kd_areas']:.3g}" in printed
    assert record["closest_picture"] == f"{path.stem}-closest.png"
    assert cli.main(["evaluate", str(run), *options, "--against", held_out.root, "--held-out", record["against"]]) == 0
    assert cli.main(["evaluate", str(run), *options, "--real", "28"]) == 0
    files = {path.name for path in (run / "evaluations").iterdir()}
    names = {name.removesuffix(".json") for name in files if name.endswith(".json")}
    assert len(names) == 3
    assert files == {f"{name}{ending}" for name in names for ending in (".json", "-closest.png")}


def test_labelled_shards_are_compared_by_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = labelled_shards(tmp_path / "real", 60, 16, 12, seed=0)
    made = labelled_shards(tmp_path / "made", 30, 16, 12, seed=1)
    options = ["--against", real.root, "--metrics", "per_class,accuracy", "--json", str(tmp_path / "r.json")]
    assert cli.main(["evaluate", made.root, *options]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    for name in ("fd_areas_per_class", "accuracy_per_class", "accuracy_real_per_class"):
        assert set(record[name]) == {"disc", "square"}
    assert " accuracy " in capsys.readouterr().out
    assert cli.main(["evaluate", made.root, *options, "--samples", "20"]) == 0  # labels of the images that are chosen
    part = json.loads((tmp_path / "r.json").read_text())
    images, labels = make_images(30, 16, 12, 3, seed=1)
    chosen = np.sort(permute(np.arange(20), 30, 30, draw(0, COMPARED)))
    of_disc = images[chosen][labels[chosen] == 0]
    alone = tmp_path / "alone"
    write_shards([Sample(png(i), "png", -1) for i in of_disc], alone, height=16, width=12, channels=3)
    discs = tmp_path / "discs"
    images, labels = make_images(60, 16, 12, 3, seed=0)
    write_shards([Sample(png(i), "png", -1) for i in images[labels == 0]], discs, height=16, width=12, channels=3)
    assert cli.main(["evaluate", str(alone), "--against", str(discs), "--json", str(tmp_path / "r.json")]) == 0
    expected = json.loads((tmp_path / "r.json").read_text())["fd_areas"]
    assert part["fd_areas_per_class"]["disc"] == pytest.approx(expected, rel=1e-9)


def test_shards_whose_labels_do_not_fit_are_told_apart(tmp_path, capsys):
    real = make_shards(tmp_path / "real", classes=("a", "b"))
    for classes, said in (
        ((), "per_class needs generated images with labels: a generator that is told the class (model.conditional), or shards"),
        (("a", "c"), f"needs generated images with the classes of {real.root}, and class b is in one of them alone"),
        (("b", "a"), "and they are in another order"),
    ):
        made = make_shards(tmp_path / "-".join(("made", *classes)), classes=classes)
        assert said in refused(capsys, made.root, "--against", real.root, "--metrics", "per_class")
        if not classes:
            said = "needs real images with labels and"
            assert said in refused(capsys, real.root, "--against", made.root, "--metrics", "accuracy")


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("b", "a"), ("a",)])
def test_images_of_other_classes_are_compared_without_them(tmp_path, classes):
    real = make_shards(tmp_path / "real", classes=("a", "b"))
    made = make_shards(tmp_path / "made", classes=classes)
    assert cli.main(["evaluate", made.root, "--against", real.root, "--json", str(tmp_path / "r.json")]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["diversity"] == pytest.approx(record["diversity_real"])
    assert "diversity_in_class" not in record


def test_path_length_and_lpips_of_a_run_are_printed(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    path = made_up_file(monkeypatch, tmp_path)
    assert cli.main(["evaluate", str(run), "--metrics", "lpips,ppl", "--lpips-weights", str(path)]) == 0
    (written,) = (run / "evaluations").glob("*.json")
    record = json.loads(written.read_text())
    assert (record["lpips"], record["ppl_steps"]) == ("alex", 16)
    printed = capsys.readouterr().out
    for name in ("lpips_pairs", "ppl_z"):
        assert f" {name} " in printed
    assert f"{record['ppl_z']:.4g}" in printed


def test_images_without_latents_have_no_path_length(run, tmp_path, capsys):  # noqa: F811
    made, real = fill(tmp_path / "made", 8, seed=1), fill(tmp_path / "real", 8, seed=2)
    for metrics in ("ppl", "lpips,ppl"):
        said = refused(capsys, str(made), "--against", str(real), "--metrics", metrics)
        assert "metric ppl needs a generator and its latents" in said
    assert "lpips vgg" in refused(capsys, str(run), "--metrics", "lpips", "--lpips", "vgg", "--lpips-weights", "no.pth").lower()


def test_weights_go_with_the_network_that_they_are_of():
    own = EvaluationConfig(metrics="ppl", lpips="vgg", lpips_weights="vgg.pth")
    for options, expected in (
        ({}, ("vgg", "vgg.pth")),
        ({"lpips": "alex"}, ("alex", "")),
        ({"lpips": "alex", "lpips_weights": "alex.pth"}, ("alex", "alex.pth")),
        ({"lpips": "vgg"}, ("vgg", "vgg.pth")),
        ({"extractor": "inception"}, ("vgg", "vgg.pth")),
    ):
        found = overridden(own, argparse.Namespace(**options))
        assert (found.lpips, found.lpips_weights) == expected
    with pytest.raises(UserError, match="name one by --metrics"):
        overridden(own, argparse.Namespace(lpips="alex", metrics="kid"))


def test_held_out_images_that_no_metric_looks_at_are_refused(run, tmp_path, capsys):  # noqa: F811
    held_out = make_shards(tmp_path / "held_out", samples=25)
    for metrics in ([], ["--metrics", "kid,lpips"]):
        said = refused(capsys, str(run), *metrics, "--held-out", held_out.root)
        assert "--held-out is of metrics accuracy and memorisation: name one by --metrics, or leave it out" in said


def test_what_is_wrong_with_them_is_one_line(run, capsys):  # noqa: F811
    assert "'prcd' is unknown: did you mean prdc?" in refused(capsys, str(run), "--metrics", "prcd")
    assert "and there are none: name them by --held-out" in refused(
        capsys, str(run), "--metrics", "memorisation", "--samples", "20"
    )
    assert "needs 40 generated images" in refused(capsys, str(run), "--metrics", "interval")


def test_a_figure_stands_beside_its_control():
    record = {"extractor": "inception", "kid": 0.00123, "kid_se": 0.0002, "precision": 0.5, "fid_se": 0.25}
    assert list(rows(record)) == [
        ("fid_se", "0.25", "", "standard error, other samples of this generator"),
        ("kid", "0.00123", "0.0002", "standard error"),
        ("precision", "0.500", "", "samples among the real images"),
    ]
