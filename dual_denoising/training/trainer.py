"""The training loop: exact resume, one JSON line per logging step, one or many devices."""

import copy
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from dual_denoising import keyed_random
from dual_denoising.clip.features import Text
from dual_denoising.clip.targets import Targets
from dual_denoising.data.datasets import CloudDataset, loader
from dual_denoising.data.storage import write_text
from dual_denoising.errors import InputError, reading
from dual_denoising.keyed_random import Stream
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import checkpoint, ranks
from dual_denoising.training.optimiser import Optimisation
from dual_denoising.training.record import TrainingRecord
from dual_denoising.training.settings import LAST, Loop

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Pre-trains ``model`` on ``dataset`` against ``targets`` in ``folder``; ``fit`` does it all.

    draw: saves pictures of the trainer's state, see reports/pictures.py. config: the run's whole
    configuration. ``Loop.check_start`` is called before. Every draw is a function of (seed, epoch,
    index of the cloud), and of the step for drop-path, so that a run killed at any moment ends with
    the weights of one that was not. Between two log lines no step waits for the device, except for
    BatchNorm's shared statistics on several ranks.
    """

    model: DualDenoising
    dataset: CloudDataset
    targets: Targets
    optim: Optimisation
    folder: Path
    device: torch.device
    draw: Callable[["Trainer"], None]
    loop: Loop
    config: dict = field(default_factory=dict)
    logger: Callable[[dict, int], None] | None = None

    def __post_init__(self):
        self.steps_per_epoch = self.dataset.epoch_size() // self.optim.batch_size
        self.total_steps = self.optim.epochs * self.steps_per_epoch
        self.step, self.seconds, self.stop_signal = 0, 0.0, 0
        self.unlogged: list[tuple[int, Tensor, Tensor]] = []  # steps, their clouds and losses
        self.token_std = self.model.feature_denoiser.token_std()  # before training
        self.state_file, self.metrics = self.folder / LAST, self.folder / "metrics.jsonl"
        loop, optim = self.loop, self.optim
        self.device = torch.empty(0, device=self.device).device  # 'cuda' is 'cuda:0' from here on
        self.model.to(self.device).train()
        self.model.fit_targets(*(t.to(self.device) for t in self.targets.statistics()))
        self.targets.to(self.device)
        self.ema = ModelEmaV3(self.model, optim.ema_decay) if optim.ema_decay else None
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.gathered = copy.deepcopy(self.model).cpu() if loop.sharded else self.model
        mode = loop.compile
        if mode == "auto" and self.device.type == "cuda":
            graphs = not loop.sharded and ranks.world_size() * optim.accumulation == 1
            mode = "reduce-overhead" if graphs else "true"
        if mode not in ("auto", "false"):
            for part in self.model.blocks if loop.sharded else [self.model]:
                part.compile(dynamic=False, mode=None if mode == "true" else mode)
        self.on_ranks = ranks.OnRanks(self.model, self.device, loop.sharded)
        self.optimizer, self.scheduler = optim.build(self.model, self.steps_per_epoch)

    @property
    def trained(self) -> DualDenoising:
        """The weights to keep: the moving average's where there is one.

        Sharded ones are those of the last checkpoint or picture.
        """
        return self.ema.module if self.ema else self.gathered

    @property
    def samples(self) -> int:
        return self.step * self.optim.batch_size

    def fit(self) -> dict:
        """Trains to the end, from where a run in ``folder`` stopped; returns counts and speed."""
        if self.loop.resume and self.state_file.exists():
            self._load()
        if ranks.is_main():  # metrics of steps that the resumed run will make again are dropped
            begun = () if self.loop.resume else (LAST, "summary.json", "model/model.safetensors")
            for old in begun:
                (self.folder / old).unlink(missing_ok=True)
            lines = [line for line in read_metrics(self.metrics) if line["step"] <= self.step]
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))
        log.info("pre-training: %d steps of %d clouds", self.total_steps, self.optim.batch_size)
        self.started = time.perf_counter() - self.seconds
        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = [signal.signal(number, self._stop) for number in numbers]
        try:
            self._run()
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)
        speed = round(self.samples / max(self.seconds, 1e-9), 2)
        counts = {"parameters": self.parameters, "steps": self.step, "samples": self.samples}
        return counts | {"samples_per_second": speed}

    def save_model(self, text: Text) -> TrainingRecord:
        """Writes the trained weights to ``folder``/model, with the record of their training."""
        record = TrainingRecord.of(
            self.dataset,
            text,
            self.config,
            samples=self.samples,
            seconds=round(self.seconds, 1),
            seed=self.loop.seed,
            parameters=self.parameters,
            feature_noise={"token_std_initial": self.token_std},
        )
        checkpoint.save_model(self.trained, self.folder / "model", record, self.loop.half_file)
        return record

    def _stop(self, number: int, _) -> None:
        self.stop_signal = number
        if sys.platform != "win32":  # DataLoader's handler raises where readers end as well
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _run(self) -> None:
        own: Any = {"unit": "step", "disable": not ranks.is_main(), "dynamic_ncols": True}
        clock = time.perf_counter()
        with tqdm(desc="pre-training", total=self.total_steps, initial=self.step, **own) as bar:
            for parts in self.step_parts():
                if parts:
                    self.train_step(parts)
                    bar.update()
                ended = self.step == self.total_steps
                logs = ended or self.step % self.loop.log_every == 0
                agreed = logs or ranks.world_size() == 1  # ranks agree where they wait anyway
                stop = agreed and ranks.any_rank(bool(self.stop_signal), self.device)
                save = ended or stop or self.step % self.loop.checkpoint_every == 0
                if self.unlogged and (save or logs):
                    self._log(bar, time.perf_counter() - clock)
                    clock = time.perf_counter()
                if save:
                    self._save()
                if ended or (self.loop.picture_every and not self.step % self.loop.picture_every):
                    if self.loop.sharded:
                        self._gather()
                    if ranks.is_main():
                        self.draw(self)
                if stop:
                    number = signal.Signals(self.stop_signal or signal.SIGTERM)
                    words = f"stopped by {number.name} at step {self.step}; saved {self.state_file}"
                    error = InputError(f"{words}; start again to go on")
                    error.status = 128 + number  # the shell's for the signal
                    raise error

    def step_parts(self) -> Iterator[list[dict[str, Tensor]]]:
        """From the current step on: this rank's share of each batch, in accumulated parts.

        Empty where a signal to stop has ended the reading processes first.
        """
        items = self._parts(self.step)
        while self.step < self.total_steps:
            try:
                parts = [next(items) for _ in range(self.optim.accumulation)]
            except RuntimeError:
                if not self.stop_signal or ranks.world_size() > 1:
                    raise
                parts = []
            yield parts

    def _parts(self, start: int) -> Iterator[dict[str, Tensor]]:
        """This rank's parts of every batch from step ``start`` to the end, on the device.

        points (B, N, 3), targets (B, F, E), keys (B,); index (B,) stays on the CPU.
        """
        size, each, world = self.optim.batch_size, self.steps_per_epoch, ranks.world_size()
        parts = world * self.optim.accumulation

        def places() -> Iterator[list[tuple[int, int]]]:
            for epoch in range(start // each, self.optim.epochs):
                order = self.dataset.epoch_order(self.loop.seed, epoch)[: each * size]
                for batch in order.reshape(each, size)[max(start - epoch * each, 0) :]:
                    for part in range(ranks.rank(), parts, world):
                        yield [(epoch, int(i)) for i in batch[part::parts]]

        for batch in loader(self.dataset, places(), self.loop.workers):
            names = ("points", "epoch", "index")
            points, epoch, index = (batch[k].to(self.device, non_blocking=True) for k in names)
            keys = keyed_random.key(Stream.TRAINING, self.loop.seed, epoch, index)
            own = {"points": points, "targets": self.targets(index, keys), "keys": keys}
            yield own | {"index": batch["index"]}

    def train_step(self, parts: list[dict[str, Tensor]]) -> None:
        """One step of the optimiser; on a GPU it is enqueued without waiting."""
        drawn = keyed_random.key(Stream.DROP_PATH, self.loop.seed, self.step, ranks.rank())
        torch.manual_seed(int(drawn))
        half = self.device.type == "cuda"
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with self.on_ranks.accumulating(last):
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    losses = self.on_ranks.module(part["points"], part["targets"], part["keys"])
                (losses["loss"] / len(parts)).backward()
            detached = torch.stack([value.detach().float() for value in losses.values()])
            self.unlogged.append((self.step + 1, part["index"], detached))
        if self.optim.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.ema:
            self.ema.update(self.model)

    def _log(self, bar: tqdm, seconds: float) -> None:
        """Writes the mean losses since the last line, unless one of them is not finite."""
        values = torch.stack([losses for *_, losses in self.unlogged])
        bad = (~values.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            step, indices, losses = self.unlogged[bad[0]]
            clouds = ", ".join(self.dataset.source.ids[i] for i in indices.tolist())
            raise InputError(
                f"step {step}: (loss, loss_point, loss_feature) = {losses.tolist()}; "
                f"{self._last_good()}; lower optim.lr or look at the clouds of the batch: {clouds}"
            )
        steps = len(self.unlogged) // self.optim.accumulation
        mean = ranks.sum_over_ranks(values.mean(0), self.device) / ranks.world_size()
        names = ("loss", "loss_point", "loss_feature")
        line = {
            "step": self.step,
            "samples": self.samples,
            **{name: round(value, 6) for name, value in zip(names, mean.tolist(), strict=True)},
            "lr": self.lr,
            "samples_per_second": round(steps * self.optim.batch_size / max(seconds, 1e-9), 2),
        }
        self.unlogged = []
        if ranks.is_main():
            shown = {key: f"{line[key]:.4g}" for key in (*names, "samples_per_second")}
            bar.set_postfix(shown, refresh=False)
            try:
                with self.metrics.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                words = f"not written ({error}); {self._last_good()}; free space, start again"
                raise InputError(f"{self.metrics}: {words}") from error
            if self.logger:
                self.logger(line, self.step)

    def _last_good(self) -> str:
        found = self.state_file.exists()
        return f"last good checkpoint: {self.state_file}" if found else "no checkpoint yet"

    def _save(self) -> None:
        """Writes the training state, unless an update has left weights that are not finite."""
        model, moments = self._gather(self.optimizer)
        bad = [name for name, t in model.items() if not t.isfinite().all()]
        words = f"step {self.step}: its update left weights not finite: {', '.join(bad[:3])}"
        fix = "lower optim.lr or set optim.clip_norm=1"
        failure = f"{words}; {self._last_good()}; {fix}" if bad else None
        ranks.fail_together(failure)  # of sharded weights the first rank alone knows
        if not ranks.is_main():
            return
        self.seconds = time.perf_counter() - self.started
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": json.dumps(self.config),
            "model": model,
            "optimizer": moments,
        }
        if self.ema:
            state["ema"] = self.ema.module.state_dict()
        checkpoint.save_state(state, self.state_file)

    def _gather(self, optimizer: torch.optim.Optimizer | None = None) -> tuple[dict, dict]:
        """States of model and optimiser on the first rank; ``gathered`` gets sharded weights."""
        states = self.on_ranks.state(optimizer)
        if self.loop.sharded and ranks.is_main():
            self.gathered.load_state_dict(states[0])
        return states

    def _load(self) -> None:
        state = checkpoint.load_state(self.state_file)
        self.on_ranks.load(self.optimizer, state["model"], state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.scheduler.step_update(self.step)
        log.info("resumed %s at step %d of %d", self.state_file, self.step, self.total_steps)


def seeded(seed: int, build: Callable[..., nn.Module], *args, **kwargs) -> nn.Module:
    """A model whose initial weights are a function of the seed."""
    torch.manual_seed(int(keyed_random.key(Stream.WEIGHTS, seed)))
    return build(*args, **kwargs)


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of ``metrics.jsonl``; a line cut by a kill is left out."""
    if not path.exists():
        return []
    with reading(path, "file of metrics", "remove it"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        _ = [line["step"] for line in lines]
    return lines
