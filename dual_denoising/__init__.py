"""Dual Denoising: robust 3D representation from CLIP (arXiv 2407.00905), in public."""

__version__ = "0.1.0"
