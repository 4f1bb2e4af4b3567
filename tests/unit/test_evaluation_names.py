"""Metrics are chosen by name; an unknown one is told with the nearest, and too few images with the number needed."""

import pytest

from scalegan.errors import UserError
from scalegan.evaluation.names import METRICS, check_counts, distances, key
from scalegan.evaluation_config import EvaluationConfig


def test_names_come_with_commas():
    assert EvaluationConfig(metrics="kid, prdc,ssim,kid").wanted == ("kid", "prdc", "ssim")
    assert EvaluationConfig(metrics="").wanted == ()
    assert EvaluationConfig(metrics=",".join(METRICS)).wanted == tuple(METRICS)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"evaluation.metrics: 'prcd' is unknown: did you mean prdc\?"):
        EvaluationConfig(metrics="kid,prcd")
    with pytest.raises(UserError, match="'zzz' is unknown: there are ssim, "):
        EvaluationConfig(metrics="zzz")


@pytest.mark.parametrize(
    ("name", "generated", "real", "message"),
    [
        ("kid", 2, 9, "kid needs 3 generated images and evaluation.samples is 2"),
        ("kid", 9, 2, "kid needs 3 real images and 2 are compared"),
        ("kid_subsets", 5000, 999, "needs 1000 real images"),
        ("interval", 39, 99, "needs 40 generated images"),
        ("infinity", 5119, 99, "needs 5120 generated images"),
        ("lpips", 3, 99, "lpips needs 4 generated images"),
        ("prdc", 5, 99, "needs 6 generated images"),
        ("memorisation", 19, 99, "needs 20 generated images"),
    ],
)
def test_too_few_images_are_told_with_the_number_needed(name, generated, real, message):
    with pytest.raises(UserError, match=message):
        check_counts((name,), generated, real, width=1280)
    check_counts((name,), 100_000, 100_000, width=1280)


def test_where_the_number_of_features_is_not_known_the_rest_is_checked():
    check_counts(("infinity",), 100, 100, width=None)
    with pytest.raises(UserError, match="kid needs 3 generated images"):
        check_counts(("infinity", "kid"), 2, 100, width=None)


def test_only_figures_of_inception_have_the_names_of_inception():
    names = ("fid", "fid_floor", "kid_se", "mifid", "inception_score_sd", "precision", "memorisation_distance")
    assert [key(name, "inception") for name in names] == list(names)
    assert key("fid", "my.module:Small") == "fd_small"
    assert key("fid_se", "my.module:Small") == "fd_small_se"
    assert [key(name, "lite0") for name in names] == [
        "fd_lite0", "fd_lite0_floor", "kd_lite0_se", "mifd_lite0", "class_score_lite0_sd", "precision", "memorisation_distance",
    ]  # fmt: skip


def test_figures_of_features_in_bfloat16_have_names_of_their_own():
    names = ("fid", "fid_floor", "kid_se", "mifid", "inception_score_sd", "recall", "nearest_held_out", "diversity_real")
    assert [key(name, "inception", "bfloat16") for name in names] == [
        "fid_bf16", "fid_bf16_floor", "kid_bf16_se", "mifid_bf16", "inception_score_bf16_sd", "recall_bf16",
        "nearest_held_out_bf16", "diversity_real",
    ]  # fmt: skip
    assert key("kid", "my.module:Small", "bfloat16") == "kd_small_bf16"
    both = ["fd_lite0", "fd_lite0_bf16", "fd_lite0_bf16_floor", "fd_lite0_floor", "fid_bf16", "fid_bf16_se", "fid"]
    assert distances(both) == ["fd_lite0", "fd_lite0_bf16", "fid", "fid_bf16"]
    assert distances(["fid_bf16_floor", "fid_bf16"]) == ["fid_bf16"]


def test_distances_of_a_record_are_told_from_their_errors():
    assert distances(["fid", "fid_floor", "fid_se", "kid", "real"]) == ["fid"]
    assert distances(["fd_lite0_infinity", "fd_lite0", "fd_lite0_floor", "fd_areas", "fid"]) == ["fd_areas", "fd_lite0", "fid"]
