"""Dual Denoising: robust 3D representation from CLIP (arXiv 2407.00905)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dual_denoising.evaluation.classifier import ZeroShotClassifier
    from dual_denoising.model.dual_denoising import DualDenoising

__all__ = ["DualDenoising", "ZeroShotClassifier"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the public classes when they are asked for: torch and timm take seconds."""
    homes = {"DualDenoising": "model.dual_denoising", "ZeroShotClassifier": "evaluation.classifier"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
