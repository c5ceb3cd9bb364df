"""The model card: README.md of a model's folder, in the form of the Hugging Face Hub."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import yaml

from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.calibration import ACCEPTED
from dual_denoising.reports.tables import accuracy_rows, calibration_rows, markdown, percent
from dual_denoising.training.record import TrainingRecord

HEAD = {
    "license": "mit",
    "library_name": "dual-denoising",
    "pipeline_tag": "zero-shot-classification",
    "tags": ["point-cloud", "3d", "clip", "zero-shot", "dual-denoising"],
}

IN_PYTHON = """\
from dual_denoising import DualDenoising

model = DualDenoising.from_pretrained("{name}")
features = model.encode(clouds)  # (B, N, 3) -> (B, F, E)"""
IN_SHELL = """\
python scripts/zeroshot.py checkpoint={name}
python scripts/classify.py chair.glb --labels "chair,table" --checkpoint {name}"""


def write_record(folder: Path, record: TrainingRecord) -> None:
    """Writes training.json, and README.md: what it says, for people.

    The model's name there is the folder's, or that of its run.
    """
    record.save(folder)
    name = folder.parent.name if folder.name == "model" else folder.name
    names = ", ".join(name.replace("_", " ") for name in record.class_names)
    parts = [
        f"---\n{yaml.safe_dump(HEAD, sort_keys=False)}---",
        f"# {name}",
        "A model of [Dual Denoising](https://arxiv.org/abs/2407.00905), an implementation that is "
        "not the authors'. It takes point clouds and gives features in the space of its teacher, "
        f"{record.teacher}. {record.parameters / 1e6:.2f} M parameters.",
        f"```python\n{IN_PYTHON.format(name=name)}\n```",
        f"```bash\n{IN_SHELL.format(name=name)}\n```",
        f"- **Input**: {record.num_points} points; {record.frame}.\n"
        f"- **Trained on**: {record.dataset} {record.split}, {record.clouds} clouds of "
        f"{len(record.class_names)} names, {record.samples} samples, {record.seconds / 60:.0f} "
        f"minutes, seed {record.seed}.\n"
        f"- **Text features**: {_text(record)}; prompts: {len(record.prompts)}, as "
        f"'{record.prompts[0] if record.prompts else ''}'.\n"
        + (
            f"- **Compared**: {'centred' if record.centre else 'plain'} cosines"
            f"{', less the hubness of each name' if record.references else ''}, taught names "
            f"−{record.taught_penalty:g}.\n"
            if record.centre or record.taught_penalty or record.references
            else ""
        )
        + f"- **Weights**: SHA-256 {record.weights}.\n"
        f"- **Again**: `{record.command}`, version {record.version}.",
    ]
    if record.feature_noise:
        parts.append(noise_words(record.feature_noise))
    if record.results:
        parts += ["## Accuracy", markdown(accuracy_rows(record.results))]
    if record.calibration:
        parts += ["## Calibration", *calibration_words(record)]
    parts += ["## Names it was trained on", f"{names}."]
    filled = (
        part if part.startswith("```") else "\n".join(map(fill, part.split("\n"))) for part in parts
    )
    write_text(folder / "README.md", "\n\n".join(filled) + "\n")


def fill(line: str) -> str:
    """A line of text in several of at most 100 columns; tables stay as they are."""
    if len(line) <= 100 or line.startswith("|"):
        return line
    return textwrap.fill(
        line,
        100,
        subsequent_indent="  " * line.startswith("-"),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text(record: TrainingRecord) -> str:
    settings = dict(record.text or {})
    kind = str(settings.pop("_target_", "none on record")).rpartition(".")[2]
    return f"{kind} {settings.get('path') or settings.get('model') or ''}".strip()


def noise_words(noise: Mapping) -> str:
    """How much ε₂ decides, in one sentence."""
    std = f"{noise['token_std_initial']:.3g} before training"
    if "on" not in noise:
        return f"- **ε₂**: its tokens' standard deviation is {std}."
    shares = {key: percent(value) for key, value in noise.items() if isinstance(value, float)}
    return (
        f"- **ε₂**: its tokens' standard deviation is {std} and {noise['token_std']:.3g} after. On "
        f"{noise['on']}, it decides {shares['output_share']}% of the features' variance, two draws "
        f"agree on {shares['agreement']}% of the clouds, and top-1 is {shares['top1_s1']}% with "
        f"S = 1, {shares['top1_s16']}% with S = 16 and {shares['top1_without']}% with ε₂ = 0."
    )


def calibration_words(record: TrainingRecord) -> list[str]:
    """What was fitted on validation shapes, and how it does on the test sets."""
    c = record.calibration or {}
    v = c["validation"]
    low, high = v["names_offered"]
    words = (
        f"Temperature {c['temperature']:.3g}, fitted on {v['n']} shapes of {v['data']} with "
        f"{low} to {high} names each at (S, t) = {tuple(v['setting'])}: "
        f"calibration error {100 * v['ece_uncalibrated']:.1f}% → {100 * v['ece']:.1f}%. The answer "
        f"is none of the names where the score {c['score']} is below {c['threshold']:.4g}, which "
        f"accepts {100 * v.get('accepted', ACCEPTED):g}% of these shapes and, without their own "
        f"name, {100 * v.get('false_accept', v['fpr95']):.1f}%."
    )
    rows = calibration_rows(record.results)
    return [words, markdown(rows)] if rows else [words]
