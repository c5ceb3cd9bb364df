"""Dual Denoising: robust 3D representation from CLIP (arXiv 2407.00905)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dual_denoising.evaluation.classifier import ZeroShotClassifier
    from dual_denoising.model.dual_denoising import DualDenoising

__all__ = ["DualDenoising", "ZeroShotClassifier"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the public classes when they are asked for: torch and timm take seconds."""
    if name == "DualDenoising":
        from dual_denoising.model.dual_denoising import DualDenoising

        return DualDenoising
    if name == "ZeroShotClassifier":
        from dual_denoising.evaluation.classifier import ZeroShotClassifier

        return ZeroShotClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
