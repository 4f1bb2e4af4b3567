"""Images that are kept out of the training: the test split of a source that has one, or a share of its images.

Whole volumes are kept out, as slices of one volume are almost alike, and of each class its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scalegan.data.sources.base import Request, Source, listed
from scalegan.data.sources.detect import open_source
from scalegan.errors import UserError

SPLITS = ("test", "val")
"""Those that are kept out by themselves, the first that is there."""
HINT = "--hold-out 0.05 keeps 5 % out of the training, which tells whether the critic knows the others by heart"


def other_split(request: Request, source: Source, share: float | None) -> tuple[Source | None, str]:
    """The images to hold out beside training images that were taken by default, in the same classes; or why there are none.

    None, too, where a share is asked for. Raises `UserError` where that would take some slices of a volume and leave others.
    """
    if share and "slices_of_volumes" in source.details:
        raise UserError(
            f"--hold-out {share:g}: {request.path} holds slices and does not say which are of one volume, so volumes would be "
            "split: give the volumes themselves as SOURCE, or leave it out"
        )
    if share is not None or request.split is not None:
        return None, ""
    if source.held_out:
        beside = replace(request, path=source.held_out, kind="webdataset", classes=source.classes)
        found, reason = fitting(beside, source, source.held_out)
        return found, reason and f"nothing is held out ({reason}): {HINT}"
    if source.details.get("split") != "train":
        return None, f"nothing is held out: {HINT}"
    reasons = []
    for split in SPLITS:
        found, reason = fitting(
            replace(request, kind=source.kind, split=split, classes=source.classes), source, f"--split {split}"
        )
        if found is not None:
            return found, ""
        reasons.append(reason)
    return None, f"nothing is held out ({'; '.join(reasons)}): {HINT}"


def fitting(request: Request, source: Source, what: str) -> tuple[Source | None, str]:
    """The source that is asked for, where it holds images and has the classes of `source`; or why not."""
    try:
        found = open_source(request)
    except UserError as error:
        return None, f"{what}: {error}"
    if not found.count:
        return None, f"{what}: no images of these classes"
    if found.classes != source.classes:
        return None, f"{what}: its classes are {listed(found.classes)}"
    return found, ""


def chosen(labels: Sequence[int], units: Sequence[int], share: float, seed: int) -> NDArray[np.bool_]:
    """Which images [n] are kept out: of the units of each class, such as whole volumes, a share drawn by `seed`.

    `units` says which unit each image is of; all images of a unit have one label. Raises `UserError` where none or all
    of a class would be kept out.

    >>> int(chosen([0] * 10, range(10), 0.2, seed=0).sum())
    2
    """
    names, first, unit_of = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    label_of = np.asarray(labels)[first]
    numbers = np.random.Generator(np.random.Philox([seed, 1])).random(len(names))
    kept = np.zeros(len(names), bool)
    for label in np.unique(label_of):
        places = np.flatnonzero(label_of == label)
        count = round(share * len(places))
        if count == len(places):
            raise UserError(f"--hold-out {share:g} leaves a class of {len(places)} nothing to train on: give a smaller share")
        kept[places[np.argsort(numbers[places], kind="stable")[len(places) - count :]]] = True
    if not kept.any():
        raise UserError(
            f"--hold-out {share:g} of {len(names)} is none: give a larger share, or leave it out (of each class its share is "
            "kept out, and of volumes whole ones)"
        )
    held: NDArray[np.bool_] = kept[unit_of]
    return held
