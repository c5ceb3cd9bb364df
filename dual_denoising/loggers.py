"""Where metrics go besides metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from dual_denoising.errors import InputError


class NoLogger:
    """Keeps metrics.jsonl alone."""

    def log(self, values: dict, step: int) -> None:
        """Takes one line of metrics at a step."""


class TensorBoardLogger(NoLogger):
    """Event files in the run's folder."""

    def __init__(self, folder: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("logger=tensorboard: run pip install -e '.[loggers]'") from error
        self.writer = SummaryWriter(folder)

    def log(self, values: dict, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class WandbLogger(NoLogger):
    """Weights & Biases; ``mode`` is 'online', 'offline' or 'disabled'."""

    def __init__(self, folder: str, project: str, name: str, mode: str):
        try:
            import wandb
        except ImportError as error:
            raise InputError("logger=wandb: run pip install -e '.[loggers]'") from error
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(dir=folder, project=project, name=name, mode=mode, resume="allow")

    def log(self, values: dict, step: int) -> None:
        self.run.log(values, step=step)
