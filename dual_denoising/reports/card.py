"""The model card: README.md of a model's folder, in the form of the Hugging Face Hub."""

from pathlib import Path

from dual_denoising.data.storage import write_text
from dual_denoising.evaluation.calibration import ACCEPTED
from dual_denoising.reports.tables import accuracy_rows, calibration_rows
from dual_denoising.reports.templates import render
from dual_denoising.training.record import TrainingRecord


def write_card(folder: Path) -> None:
    """Writes README.md of a model's folder: what its training.json says, for people.

    The model's name there is the folder's, or that of its run.
    """
    record = TrainingRecord.load(folder)
    text = record.text or {}
    card = render(
        Path(__file__).with_name("card.md.jinja"),
        record=record,
        name=folder.parent.name if folder.name == "model" else folder.name,
        checkpoint=folder if folder.name == "model" else folder.name,
        features=str(text.get("_target_", "none on record")).rpartition(".")[2],
        features_of=text.get("path") or text.get("model") or "",
        noise=record.feature_noise,
        accuracies=accuracy_rows(record.results),
        calibration=record.calibration,
        accepted=ACCEPTED,
        calibrated=calibration_rows(record.results),
    )
    write_text(folder / "README.md", card)
