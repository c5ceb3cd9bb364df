"""What a training ends with: calibration, reference features and accuracies, in its record."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from dual_denoising.clip.features import Text
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.evaluation import hubness
from dual_denoising.evaluation.calibration import SETTING, fit
from dual_denoising.evaluation.feature_noise import measure
from dual_denoising.evaluation.grid import Evaluation
from dual_denoising.evaluation.result import Result
from dual_denoising.evaluation.systems import System
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training.record import TrainingRecord


def calibrate_and_evaluate(
    model: DualDenoising,
    text: Text,
    record: TrainingRecord,
    folder: Path,
    evaluation: Evaluation,
    clouds: CloudDataset,
    tests: Sequence[CloudDataset],
    validation: CloudDataset | None,
    device: torch.device,
) -> tuple[list[Result], dict]:
    """Calibrates a trained model where there are validation shapes, and evaluates it.

    Its record in ``folder`` gets both, and what ε₂ decides on the first test set. With CSLS,
    features of some of the training ``clouds`` are saved there, too. Returns the results, and the
    fields for summary.json.
    """
    record.centre = bool(evaluation.centre)
    record.taught_penalty = evaluation.taught_penalty or 0.0
    system = System(model, text, record, str(folder), device=device)
    if evaluation.csls:
        classifier = system.classifier(text.names or record.class_names, *SETTING)
        features = hubness.references(classifier, clouds)
        record.references = hubness.save(features, folder)
        system.references = features.half().float()  # as they are kept
    if validation is not None:
        source = validation.source
        classifier = system.classifier(source.class_names, *SETTING)
        batches = validation.batches(range(len(validation)), device)
        with torch.no_grad():
            parts = [(classifier(points, index).cpu(), label) for points, index, label in batches]
        logits, labels = map(torch.cat, zip(*parts, strict=True))
        words = f"{source.name} {source.split}"
        record.calibration = asdict(fit(logits, labels, words, evaluation.accepted))
    results = [result for test in tests for result in evaluation.run(system, test)[0]]
    if tests:
        record.feature_noise |= measure(system, tests[0])
    record.results = [result.short() for result in results]
    record.save(folder)
    evaluated = [result.record() for result in results]
    return results, {"feature_noise": record.feature_noise, "evaluation": evaluated}
