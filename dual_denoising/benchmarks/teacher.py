"""What the teacher costs: drawing views, encoding them, and reading what was cached instead."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from dual_denoising.benchmarks.timing import medians
from dual_denoising.clip import cache as caching
from dual_denoising.clip.features import Targets, TextBank
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import Rendered, Renderer, drawable
from dual_denoising.data.primitives import Primitives


def teacher(
    clip: OpenClip, renderer: Renderer, device: torch.device, repeats: int, shapes: int
) -> list[dict]:
    """Milliseconds for a batch of shapes, and views (of the cache: shapes) per second.

    Views are drawn by this process alone; drawing shapes counts making them from their recipes.
    """
    source = Primitives("train", 1, num_points=1024)
    rows_read = list(range(min(shapes, len(source.labels))))
    pictures = Rendered(source, renderer)
    views = [view for row in rows_read for view in pictures[row]]
    pixels = torch.stack([clip.preprocess(view) for view in views])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        caching.cache(clip, source, pictures, ["a {}"], path)
        targets = Targets(["image", "text"], source, TextBank(str(path)), str(path))
    indices, keys = torch.tensor(rows_read), torch.arange(len(rows_read))
    jobs = {
        "draw meshes": lambda: [renderer(drawable(source, row)) for row in rows_read],
        "draw clouds": lambda: [renderer(source.read(row)) for row in rows_read],
        "preprocess": lambda: [clip.preprocess(view) for view in views],
        "encode": lambda: clip.encode_images(pixels),
        "read the cache": lambda: targets(indices, keys),
    }
    times = medians(jobs, device, repeats)
    loop = sum(times[name].median for name in ("draw meshes", "preprocess", "encode")) / len(views)
    rows = []
    for name, timing in times.items():
        cached = name == "read the cache"
        count = len(rows_read) if cached else len(views)
        rows.append(
            {"of": name}
            | timing.row()
            | {
                "per second": count / timing.median,
                "faster than the teacher in the loop": loop * count / timing.median
                if cached
                else None,
            }
        )
    return rows
