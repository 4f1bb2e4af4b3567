"""What other programs make of the same features: run by an interpreter that has them, never imported by a test.

    metric_peer.py IN.npz OUT.json

IN.npz holds features `real` and `fake`, float32 [n, width], and `logits` [n, classes].
"""

import json
import sys

import numpy as np
import torch

# Of torchvision's compiled part, which asks for CUDA in the wheel of PyPI; its Python part only wants them declared.
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from cleanfid.fid import frechet_distance  # noqa: E402
from prdc import compute_prdc  # noqa: E402
from pytorch_fid.fid_score import calculate_frechet_distance  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

torch.set_num_threads(1)
with np.load(sys.argv[1], allow_pickle=False) as file:
    real, fake, logits = file["real"], file["fake"], file["logits"]
x, y = torch.from_numpy(real), torch.from_numpy(fake)
moments = [part for side in (real, fake) for part in (side.mean(0, dtype=np.float64), np.cov(side, rowvar=False))]
found = {
    "prdc": {k: compute_prdc(real, fake, nearest_k=k) for k in (3, 5)},
    "torch-fidelity": kid_features_to_metric(y, x, kid_subsets=20, kid_subset_size=60, rng_seed=2020, verbose=False)
    | fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    | isc_features_to_metric(torch.from_numpy(logits), splits=1, shuffle=False)
    | prc_features_to_metric(y, x, prc_neighborhood=3, prc_batch_size=50, verbose=False),
    "pytorch-fid": calculate_frechet_distance(*moments),
    "clean-fid": frechet_distance(*moments),
}
with open(sys.argv[2], "w") as out:
    json.dump(found, out, default=float)
