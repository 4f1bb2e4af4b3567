"""Another program by its own command line: run by an interpreter that has it, never imported.

evaluation_peer.py pytorch_fid|torch_fidelity.fidelity ARGUMENTS...
"""

import runpy
import sys

import torch


def import_torchvision() -> None:
    """Its wheel of PyPI has a compiled part for CUDA; without that, its Python part only wants the operators declared."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    import_torchvision()
    del sys.path[0], sys.argv[0]  # no script of this folder stands in for a module of theirs
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
