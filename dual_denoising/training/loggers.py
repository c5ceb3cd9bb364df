"""Where metrics go besides metrics.jsonl."""

import uuid
from pathlib import Path
from typing import Any


class NoLogger:
    """Keeps metrics.jsonl alone."""

    def log(self, values: dict, step: int) -> None:
        """Takes one line of metrics at a step."""


class TensorBoardLogger(NoLogger):
    """Event files in the run's folder."""

    def __init__(self, folder: str):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder)

    def log(self, values: dict, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class WandbLogger(NoLogger):
    """Weights & Biases; ``mode`` is 'online', 'offline' or 'disabled'."""

    def __init__(self, folder: str, project: str, name: str, mode: Any):
        import wandb

        path = Path(folder, "wandb_id.txt")  # a resumed run goes on in the same wandb run
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:8])
        self.run = wandb.init(
            dir=folder, project=project, name=name, mode=mode, id=path.read_text(), resume="allow"
        )

    def log(self, values: dict, step: int) -> None:
        self.run.log(values, step=step)
