"""scalegan: train, evaluate and use GANs on image collections, from one CPU to many nodes of GPUs."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scalegan.sampling import load_generator as load_generator

__all__ = ["__version__", "load_generator"]


def __getattr__(name: str) -> Any:  # lazily, so that `import scalegan` and `--help` load no torch
    if name == "load_generator":
        from scalegan.sampling import load_generator

        return load_generator
    raise AttributeError(f"module 'scalegan' has no attribute {name!r}")
