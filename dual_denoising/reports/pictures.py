"""Pictures: clouds, denoising, loss curves, confusion matrices."""

import base64
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.storage import atomic
from dual_denoising.errors import check_choice
from dual_denoising.training.trainer import Trainer, read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = 20  # of clouds on a page
CONFUSED = 30  # classes in the picture of a confusion matrix

VIEWER = Path(__file__).with_name("clouds.js")  # draws clouds in a page

plt.rcParams["text.parse_math"] = False  # a file's name may hold a $


def project(points: np.ndarray) -> np.ndarray:
    """View of y-up points (N, 3) from the front right, above: right, up, towards the eye."""
    yaw, elevation = np.deg2rad([-35, 20])
    x = points[:, 0] * np.cos(yaw) + points[:, 2] * np.sin(yaw)
    z = points[:, 2] * np.cos(yaw) - points[:, 0] * np.sin(yaw)
    up = points[:, 1] * np.cos(elevation) - z * np.sin(elevation)
    return np.stack([x, up, z * np.cos(elevation) + points[:, 1] * np.sin(elevation)], axis=1)


def for_canvas(points: np.ndarray, shades: np.ndarray | None = None) -> dict:
    """A cloud (N, 3) for VIEWER; ``shades`` (N,) from 0 to 1 colour it, in place of depth."""
    largest = max(float(np.abs(points).max()), 1.3)
    whole = np.round(points / largest * 32767).astype("<i2")
    colours = None if shades is None else np.round(shades * 255).astype(np.uint8)
    return {
        key: None if array is None else base64.b64encode(array.tobytes()).decode()
        for key, array in (("points", whole), ("colours", colours))
    }


def cloud_grid(
    rows: Sequence[Sequence],
    path: Path,
    titles: Sequence[Sequence[str]] = (),
    names: Sequence[str] = (),
    size: float = 1.6,
) -> list[Path]:
    """Saves rows of clouds (N, 3), or of pictures (PIL), in pages of ROWS rows.

    titles: above them, row by row, for as many rows as have any; names: left of the rows. Returns
    the pages: ``path``, or path_1, path_2, ...
    """
    pages, wide = [], max(map(len, rows), default=0)
    tall = size + 0.15 * max((title.count("\n") for row in titles for title in row), default=0)
    for first in range(0, len(rows), ROWS):
        page, number = slice(first, first + ROWS), 1 + first // ROWS
        shown = rows[page]
        inches = size * wide + 0.8, tall * len(shown)
        figure, axes = plt.subplots(len(shown), wide, figsize=inches, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        lines: Any = zip_longest(axes, shown, titles[page], names[page], fillvalue="")
        for line, row, above, name in lines:
            for axis, item in zip(line, row, strict=False):
                _draw(axis, item, size)
            for axis, title in zip(line, above, strict=False):
                axis.set_title(title, fontsize=8)
            place = {"transform": line[0].transAxes, "ha": "right", "va": "center"}
            line[0].text(-0.05, 0.5, name, fontsize=9, **place)
        pages.append(path.with_stem(f"{path.stem}_{number}") if len(rows) > ROWS else path)
        _save(figure, pages[-1])
    return pages


def class_sheet(
    test: CloudDataset, classes: Sequence[str] | None, columns: int, path: Path
) -> list[Path]:
    """Saves a row of at most ``columns`` clouds for every class (None: all); gives the pages."""
    source, rows = test.source, {}
    known = list(source.class_names)
    for name in known if classes is None else classes:
        check_choice("classes", name, known)
        chosen = np.flatnonzero(source.labels == known.index(name))[:columns].tolist()
        if chosen:
            rows[name] = [test[i]["points"].numpy() for i in chosen]
    return cloud_grid(list(rows.values()), path, names=list(rows), size=1.2)


def _draw(axis, shown, size: float, shades: np.ndarray | None = None, **look):
    """A cloud (N, 3), its nearest points last, coloured by ``shades`` or depth; or a picture."""
    axis.axis("off")
    if not isinstance(shown, np.ndarray):
        return axis.imshow(shown)
    view = project(shown)
    order = view[:, 2].argsort()
    x, y, depth = view[order].T
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    colours = depth if shades is None else shades[order]
    return axis.scatter(x, y, c=colours, s=size * 0.8, linewidths=0, **look)


def progress(trainer: Trainer) -> None:
    """Saves clean, noised and rebuilt clouds side by side, and the losses so far."""
    model, dataset, folder = trainer.trained, trainer.dataset, trainer.folder / "pictures"
    items = [dataset[i] for i in range(0, len(dataset), math.ceil(len(dataset) / 4))]
    clouds = torch.stack([item["points"] for item in items]).to(model.target_mean.device)
    names = [dataset.source.class_names[item["label"]] for item in items]
    last = model.noising.steps - 1
    columns, titles = [clouds], ["clean"]
    for t in (3 * (last + 1) // 10, 6 * (last + 1) // 10, last):
        columns += model.rebuild(clouds, t, trainer.loop.seed)
        titles += [f"noised, t={t}", "rebuilt"]
    rows = [[column[i].cpu().numpy() for column in columns] for i in range(len(clouds))]
    cloud_grid(rows, folder / f"step_{trainer.step:07d}.png", [titles], names)
    loss_curves(read_metrics(trainer.folder / "metrics.jsonl"), folder / "losses.png")


def loss_curves(metrics: Sequence[dict], path: Path) -> None:
    """Saves the losses of ``metrics.jsonl``'s lines over the samples, and the learning rate."""
    if not metrics:
        return
    samples = [line["samples"] for line in metrics]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axis, key in zip(axes, ("loss_point", "loss_feature", "lr"), strict=True):
        axis.plot(samples, [line[key] for line in metrics], marker="." * (len(samples) == 1))
        axis.set(title=key, xlabel="samples seen", yscale="linear" if key == "lr" else "log")
        if key != "lr":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_tick_params(labelsize=8)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    _save(figure, path)


def confusion_matrix(counts: np.ndarray, names: Sequence[str], path: Path, title: str) -> None:
    """Saves a confusion matrix (C, C), rows the true classes, in percent of each row.

    Of more than CONFUSED classes only the most confused are shown: those of the most errors, as the
    true class or as the answer.
    """
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(names) > CONFUSED:
        wrong = counts - np.diag(np.diag(counts))
        kept = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:CONFUSED])
        title += f"\nthe {CONFUSED} of most errors of {len(names)} classes; other answers left out"
        share, names = share[np.ix_(kept, kept)], [names[i] for i in kept]
    size = 2.5 + 0.42 * len(names)
    figure, axis = plt.subplots(figsize=(size, size))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for r, c in np.argwhere(share >= 0.5):
        color = "white" if share[r, c] > 50 else "black"
        axis.text(c, r, f"{share[r, c]:.0f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(title, fontsize=9)
    _save(figure, path)


def heat_maps(tables: Mapping[str, pd.DataFrame], path: Path, title: str) -> None:
    """Saves tables S × t of percentages side by side; 'difference' is coloured around zero."""
    paths, steps = next(iter(tables.values())).axes
    size = 1.2 + 0.55 * len(steps), 1.1 + 0.45 * len(paths)
    shape = (len(tables), 1) if len(steps) > 5 else (1, len(tables))
    figure, axes = plt.subplots(
        *shape, figsize=(size[0] * shape[1], size[1] * shape[0]), squeeze=False
    )
    values = np.stack([t.to_numpy() for name, t in tables.items() if name != "difference"])
    low, high = np.nanmin(values), np.nanmax(values)
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=True):
        grid = table.to_numpy()
        if name == "difference":
            far = np.nanmax(np.abs(grid)) or 1.0
            axis.imshow(grid, cmap="RdBu", vmin=-far, vmax=far, aspect="auto")
        else:
            axis.imshow(grid, cmap="viridis", vmin=low, vmax=max(high, low + 1), aspect="auto")
        for (r, c), value in np.ndenumerate(grid):
            if np.isfinite(value):
                dark = name != "difference" and value < (low + high) / 2
                color = "white" if dark else "black"
                axis.text(c, r, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(steps)), steps, fontsize=8)
        axis.set_yticks(range(len(paths)), paths, fontsize=8)
        axis.set(xlabel="t", ylabel="S")
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def curves(
    lines: Mapping[str, Sequence], path: Path, xlabel: str, ylabel: str, title: str = "", **look
) -> None:
    """Saves curves of shares in percent: {name: (x, shares) or (x, shares, sds)}.

    look: how matplotlib draws them.
    """
    if not lines:
        return
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, (x, shares, *sds) in lines.items():
        spread = 100 * np.asarray(sds[0]) if sds else None
        axis.errorbar(x, 100 * np.asarray(shares), spread, label=name, **look)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 100), title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)
    _save(figure, path)


def displacements(
    examples: Sequence[tuple[np.ndarray, np.ndarray, str, bool]], path: Path, title: str
) -> None:
    """Saves rows of clean cloud, adversarial cloud, and the latter coloured by how far it moved.

    An example also has its words, and whether the attack succeeded; where not they are red. All
    rows have one scale of colours.
    """
    moved = [np.linalg.norm(adversarial - clean, axis=1) for clean, adversarial, *_ in examples]
    longest = max(float(far.max()) for far in moved) or 1.0
    shape = len(examples), 3
    figure, axes = plt.subplots(*shape, figsize=(7, 2.1 * shape[0] + 0.7), squeeze=False)
    for row, far, (clean, adversarial, words, won) in zip(axes, moved, examples, strict=True):
        _draw(row[0], clean, 2.2)
        _draw(row[1], adversarial, 2.2)
        dots = _draw(row[2], adversarial, 2.2, far, cmap="inferno", vmin=0, vmax=longest)
        color = "black" if won else "firebrick"
        row[0].text(-1.2, 0, words, fontsize=8, ha="right", va="center", color=color)
    for axis, name in zip(axes[0], ("clean", "adversarial", "displacement"), strict=True):
        axis.set_title(name, fontsize=9)
    figure.colorbar(dots, ax=list(axes.flat), fraction=0.03, label="Euclidean distance moved")
    key = "left: true name / answer to the clean → adversarial cloud; red: the attack failed"
    figure.suptitle(f"{title}\n{key}", fontsize=8)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    with warnings.catch_warnings(), atomic(path) as temporary:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
