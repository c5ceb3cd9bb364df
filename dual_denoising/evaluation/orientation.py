"""The orientation check: would the clouds be recognised if another axis pointed up?"""

import logging
import math

import torch

from dual_denoising.data.datasets import CloudDataset, evenly_spaced
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.training import ranks

log = logging.getLogger(__name__)

PROBES = 200  # clouds that are turned and classified once more, at S = 1, t = 0
TRUSTED = 0.5  # accuracies from here on raise no doubt


@torch.inference_mode()
def probe(classifier: ZeroShotClassifier, test: CloudDataset) -> tuple[float, float]:
    """Accuracy on up to PROBES clouds, evenly spread, as read, and had another axis pointed up."""
    chosen = evenly_spaced(len(test), PROBES)
    hits = [0, 0]
    for points, index, labels in test.batches(chosen, classifier.device):
        x, y, z = points.unbind(-1)
        other = torch.stack([x, z, -y] if test.source.up == "y" else [x, -z, y], -1)
        for which, cloud in enumerate((points, other)):
            guess = classifier.grid(cloud, index, [1], [0], [0])[0, 0, 0].argmax(-1).cpu()
            hits[which] += int((guess == labels).sum())
    return hits[0] / len(chosen), hits[1] / len(chosen)


def orientation_warning(
    classifier: ZeroShotClassifier, test: CloudDataset, accuracy: float
) -> str | None:
    """Logs and returns a warning where another frame is clearly better, or accuracy is near chance.

    Clearly: by 5 points and by three standard errors of the difference. Near: below twice chance.
    Labels decide nothing but this warning. Only rank 0 looks.
    """
    if accuracy >= TRUSTED or not ranks.is_main():
        return None
    as_read, turned = probe(classifier, test)
    count, chance = min(PROBES, len(test)), 1 / len(test.source.class_names)
    deviation = math.sqrt(sum(p * (1 - p) for p in (as_read, turned)) / count)
    where = f"{test.source.name} {test.source.split}: accuracy is {100 * accuracy:.1f}%"
    up, message = test.source.up, None
    if turned > as_read + max(0.05, 3 * deviation):
        message = (
            f"WRONG FRAME? {where}; of {count} clouds {100 * as_read:.0f}% are right as read, "
            f"with up={up}, and {100 * turned:.0f}% with up={'z' if up == 'y' else 'y'}: look at "
            "the clouds (scripts/contact_sheet.py) and change the up-axis"
        )
    elif accuracy < 2 * chance:
        message = (
            f"NEAR CHANCE: {where}, chance is {100 * chance:.1f}%, and no other up-axis does "
            "better; check the order of the class names, the units and what the model was taught"
        )
    if message:
        log.warning(message)
    return message
