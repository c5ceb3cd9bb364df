"""Clouds from files and from recipes: every source is read into one frame, one scale, one batch."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "data"  # class names, recipes, aliases


def shipped(path: str | Path) -> Path:
    """The path if it exists, else the same path in the repository if that does."""
    path = Path(path).expanduser()
    own = ASSETS.parent / path
    return own if own.exists() and not path.exists() else path
