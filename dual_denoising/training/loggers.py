"""Loggers of metrics besides metrics.jsonl; each returns log(values, step)."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dual_denoising.data.storage import write_text


def tensorboard(folder: str) -> Callable[[dict, int], None]:
    """Event files in the run's folder."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def log(values: dict, step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def wandb(folder: str, project: str, name: str, mode: Any) -> Callable[[dict, int], None]:
    """Weights & Biases; ``mode`` is 'online', 'offline' or 'disabled'."""
    import wandb

    path = Path(folder, "wandb_id.txt")  # a resumed run goes on in the same wandb run
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8])
    own: Any = {"project": project, "name": name, "mode": mode, "id": path.read_text()}
    return wandb.init(dir=folder, resume="allow", **own).log
