"""Tables of results as Markdown and CSV, and the pictures that belong to them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import pandas as pd

from dual_denoising.data.sources import Source
from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.files import NONE, Outcome
from dual_denoising.evaluation.result import Result
from dual_denoising.reports import pictures

CLASSES = 20  # classes in a table of errors
COLUMNS = 8  # files in a row of the contact sheet


def markdown(rows: Sequence[Mapping]) -> str:
    """A Markdown table with a column for every key of any row."""
    table = pd.DataFrame(rows).fillna("").map(lambda v: str(v).replace("|", "\\|"))
    return table.to_markdown(index=False, tablefmt="github", disable_numparse=True)


def csv(rows: Sequence[Mapping]) -> str:
    """The same rows as CSV."""
    return pd.DataFrame(rows).convert_dtypes().to_csv(index=False)


def save(folder: Path, name: str, text: str, show: bool = True) -> None:
    """Writes <name>.md, then prints it: a reader that leaves early costs no file."""
    write_text(folder / f"{name}.md", text + "\n")
    if show:
        print(f"\n{text}\n\nwritten to {folder}")


def percent(mean: float, sd: float | None = None) -> str:
    """A share as '12.3', or '12.3 ± 0.4'."""
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def interval(shares: Sequence[float]) -> str:
    """An interval of shares as '12.3 to 14.5'."""
    return "{:.1f} to {:.1f}".format(*(100 * x for x in shares))


def by_set(results: Sequence[Result]) -> dict[tuple[str, str], Result]:
    """The headline of every dataset and split, or the last setting where it has none."""
    chosen: dict[tuple[str, str], Result] = {}
    for result in results:
        key = result.dataset, result.split
        if key not in chosen or chosen[key].setting != (8, 500):
            chosen[key] = result
    return chosen


def write_accuracies(folder: Path, results: Sequence[Result], absent: Mapping[str, str]) -> None:
    """Writes the accuracies to zeroshot.md, with a confusion matrix per set, and prints them.

    absent: {dataset: why it could not be evaluated}.
    """
    if not results and not absent:
        return
    parts = []
    for (dataset, split), r in by_set(results).items():
        setting = f"S = {r.num_noise}, t = {timestep_words(r.timestep, r.timestep_weights)}"
        title = f"{dataset} {split}, {setting}, n = {r.n}, {r.note}"
        parts += [f"{title}; class weights: {r.class_weights}", class_table(r)]
        parts += [r.warning] if r.warning else []
        picture = folder / "pictures" / f"confusion_{dataset}_{split}.png"
        pictures.confusion_matrix(np.array(r.confusion), r.class_names, picture, title)
    calibrated = calibration_rows([r.short() for r in results])
    parts += [markdown(calibrated), CALIBRATION] if calibrated else []
    parts += [f"{name}: not evaluated: {reason}" for name, reason in absent.items()]
    parts += [markdown(accuracy_rows([r.short() for r in results]))] if results else []
    save(folder, "zeroshot", "\n\n".join(parts))


def _setting(r: Mapping) -> dict:
    data = {"data": f"{r['dataset']} {r['split']}", "n": r["n"], "names": r["names"]}
    at = {"S": r["num_noise"], "t": timestep_words(r["timestep"], r["timestep_weights"])}
    return data | {"chance": percent(1 / r["names"])} | at


def accuracy_rows(results: Sequence[Mapping]) -> list[dict]:
    """A row per accuracy; ``results`` are Result.short()."""
    rows = []
    for r in results:
        seeds, taught, other = len(r["seeds"]), r["top1_taught"], r["top1_untaught"]
        both = None if None in (taught, other) else harmonic_mean((taught, other))
        others = r["n"] - r["n_taught"]
        row = {
            "seeds": seeds,
            "top-1": percent(r["top1_mean"], r["top1_sd"] if seeds > 1 else None),
            "95% of clouds": interval(r["top1_interval"]),
            "top-5": percent(r["top5_mean"]),
            "per class": percent(r["class_mean"]),
            "taught names": "" if taught is None else f"{percent(taught)} (n = {r['n_taught']})",
            "other names": "" if other is None else f"{percent(other)} (n = {others})",
            "harmonic mean": "" if both is None else percent(both),
            "ms/cloud": f"{1000 * r['seconds_per_cloud']:.1f}",
            "note": r["note"],
        }
        rows.append(_setting(r) | row)
    return rows


CALIBRATION = (
    "ECE: expected calibration error, without and with the temperature. AUROC, FPR at 95%: how the "
    "score tells clouds whose name is offered from the same clouds when it is left out. False "
    "accepts and rejects: of 'none of these' at the model's threshold."
)
CALIBRATED = {
    "top-1": "top1_mean",
    "ECE without": "ece_uncalibrated",
    "ECE": "ece",
    "AUROC": "auroc",
    "FPR at 95%": "fpr95",
    "false accepts": "false_accept",
    "false rejects": "false_reject",
}


def calibration_rows(results: Sequence[Mapping]) -> list[dict]:
    """A row per accuracy of a calibrated model; ``results`` are Result.short()."""
    rows = [
        _setting(r) | {words: percent(r[key]) for words, key in CALIBRATED.items()}
        for r in results
        if r["ece"] is not None
    ]
    return [{key: value for key, value in row.items() if key != "chance"} for row in rows]


def class_table(result: Result) -> str:
    """Accuracy per class, and what each is taken for most often; of many the worst CLASSES."""
    names, rows = result.class_names, []
    for true, counts in enumerate(result.confusion):
        total = max(sum(counts), 1)
        shares = sorted(zip(counts, names, strict=True), reverse=True)
        wrong = [f"{name} {100 * n / total:.0f}" for n, name in shares if n and name != names[true]]
        hit = percent(counts[true] / total)
        rows.append({"class": names[true], "top-1": hit, "taken for (%)": ", ".join(wrong[:2])})
    if len(rows) <= CLASSES:
        return markdown(rows)
    confusion = np.array(result.confusion)
    worst = np.argsort(np.diag(confusion) - confusion.sum(1), kind="stable")[:CLASSES]
    return f"{markdown([rows[i] for i in worst])}\n\nthe {CLASSES} of most errors, of {len(rows)}"


def write_predictions(
    folder: Path, source: Source, results: Sequence[Result], predicted: np.ndarray
) -> None:
    """Writes predictions/<set>_<split>.csv: a row per cloud, a column per (S, t, seed).

    results: of one dataset, in order; predicted (·, S, R, n): classes, −1 for none.
    """
    names = np.array([*source.class_names, ""])  # −1 is the last
    table = {"index": range(len(source)), "id": source.ids, "label": names[source.labels]}
    for row, result in enumerate(results):
        s, m = divmod(row, len(predicted))
        for seed, guess in zip(result.seeds, predicted[m, s], strict=True):
            words = timestep_words(result.timestep, result.timestep_weights)
            step = words.replace(", ", "+").replace(" ", "")
            table[f"S{result.num_noise}_t{step}_seed{seed}"] = names[guess]
    text = pd.DataFrame(table).to_csv(index=False)
    write_text(folder / "predictions" / f"{source.name}_{source.split}.csv", text)


def write_shares(folder: Path, name: str, results: Mapping[str, dict]) -> None:
    """Writes <name>.md: a row of the numbers of every set of views, shares in percent."""
    forms: dict[type, Callable] = {float: percent, list: interval}
    rows = [
        {"views of": of}
        | {k.replace("_", " "): forms.get(type(v), lambda v: v)(v) for k, v in row.items()}
        for of, row in results.items()
    ]
    save(folder, name, markdown(rows))


def write_benchmark(folder: Path, tables: Mapping[str, Sequence[dict]]) -> None:
    """Writes benchmark.md: a table of each part."""
    parts = [
        pd.DataFrame(rows).to_markdown(index=False, tablefmt="github", floatfmt=".3g")
        for rows in tables.values()
    ]
    save(folder, "benchmark", "\n\n".join(parts))


def write_names(folder: Path, outcome: Outcome, top: int) -> None:
    """Writes the ranked names of files: classify.md, classify.csv, a picture of each cloud."""
    rows, clouds, titles = [], [], []
    for number, named in enumerate(outcome.named):
        path, best = Path(named.file), list(named.probabilities.items())[:top]
        shown = {f"{i}.": f"{name} {percent(p)}%" for i, (name, p) in enumerate(best, 1)}
        score = {} if named.score is None else {"score": f"{named.score:.1f}"}
        rows.append({"file": named.file, "answer": named.answer} | score | shown)
        lines = [named.answer, *(f"{name} {100 * p:.0f}%" for name, p in best[:3])]
        picture = folder / "pictures" / f"{number:04d}_{path.stem[:80]}.png"
        title = "\n".join([path.name, *lines])
        pictures.cloud_grid([[named.points]], picture, titles=[[title]], size=2.4)
        words = lines if named.answer == NONE else lines[1:]
        clouds.append(named.points)
        titles.append("\n".join([path.stem[:18], *words]))
    strips = [slice(i, i + COLUMNS) for i in range(0, len(clouds), COLUMNS)]
    picture, above = folder / "pictures" / "contact_sheet.png", [titles[s] for s in strips]
    pictures.cloud_grid([clouds[s] for s in strips], picture, above)
    names = sorted(outcome.named[0].probabilities) if outcome.named else []
    full = [
        {"file": n.file, "answer": n.answer, "score": n.score}
        | {name: n.probabilities[name] for name in names}
        for n in outcome.named
    ]
    write_text(folder / "classify.csv", csv(full))
    parts = [markdown(rows)] if rows else []
    parts += [*outcome.notes, *(f"skipped: {reason}" for reason in outcome.failed.values())]
    parts += [f"{len(rows)} classified, {len(outcome.failed)} skipped"]
    save(folder, "classify", "\n\n".join(parts))


def timestep_words(timestep: int | Sequence[int], weights: Sequence[float] | None) -> str:
    """A timestep, or those of an ensemble with their weights."""
    if isinstance(timestep, int):
        return str(timestep)
    return f"{', '.join(map(str, timestep))} ({':'.join(f'{w:g}' for w in weights or ())})"
