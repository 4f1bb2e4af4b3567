"""`scalegan evaluate --metrics` measures what is named and prints each figure beside its control."""

import json

from test_evaluation_command import index, refused, run  # noqa: F401 (fixtures)
from test_evaluation_evaluator import small_extractor  # noqa: F401 (an automatic fixture)
from tiny import make_shards

from scalegan import cli
from scalegan.evaluation.table import rows


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
