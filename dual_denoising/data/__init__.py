"""Clouds from files and from recipes: every source is read into one frame, one scale, one batch."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "data"  # class names, recipes, aliases
