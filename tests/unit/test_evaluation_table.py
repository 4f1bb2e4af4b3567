"""`scalegan evaluate --metrics` measures what is named and prints each figure beside its control."""

import argparse
import json

from test_evaluation_command import fill, index, refused, run  # noqa: F401 (fixtures)
from test_evaluation_evaluator import small_extractor  # noqa: F401 (an automatic fixture)
from tiny import make_shards

from helpers.lpips_weights import made_up_file
from scalegan import cli
from scalegan.evaluation.command import overridden
from scalegan.evaluation.table import rows
from scalegan.evaluation_config import EvaluationConfig


def test_metrics_and_held_out_images_are_named_on_the_command_line(run, tmp_path, capsys):  # noqa: F811
    held_out = make_shards(tmp_path / "held_out", samples=25)
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
    assert (run / "evaluations" / record["closest_picture"]).is_file()


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
    own = EvaluationConfig(lpips="vgg", lpips_weights="vgg.pth")
    for options, expected in (
        ({}, ("vgg", "vgg.pth")),
        ({"lpips": "alex"}, ("alex", "")),
        ({"lpips": "alex", "lpips_weights": "alex.pth"}, ("alex", "alex.pth")),
        ({"lpips": "vgg"}, ("vgg", "vgg.pth")),
        ({"extractor": "inception"}, ("vgg", "vgg.pth")),
    ):
        found = overridden(own, argparse.Namespace(**options))
        assert (found.lpips, found.lpips_weights) == expected


def test_what_is_wrong_with_them_is_one_line(run, capsys):  # noqa: F811
    assert "'prcd' is unknown: did you mean prdc?" in refused(capsys, str(run), "--metrics", "prcd")
    assert "name their shards by data.held_out" in refused(capsys, str(run), "--metrics", "memorisation", "--samples", "20")
    assert "needs 40 generated images" in refused(capsys, str(run), "--metrics", "interval")


def test_a_figure_stands_beside_its_control():
    record = {"extractor": "inception", "kid": 0.00123, "kid_se": 0.0002, "precision": 0.5, "fid_se": 0.25}
    assert list(rows(record)) == [
        ("fid_se", "0.25", "", "standard error, other samples of this generator"),
        ("kid", "0.00123", "0.0002", "standard error"),
        ("precision", "0.500", "", "samples among the real images"),
    ]
