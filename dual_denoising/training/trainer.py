"""The training loop: exact resume, one JSON line per logging step, one or many devices."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from dual_denoising import keyed_random as noise
from dual_denoising.clip.features import Targets
from dual_denoising.data.clouds import CloudDataset, epoch_batches
from dual_denoising.errors import InputError
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports import pictures as plots
from dual_denoising.reports import tables as report
from dual_denoising.training import checkpoint
from dual_denoising.training import ranks as distributed
from dual_denoising.training.batches import Feed
from dual_denoising.training.loggers import NoLogger
from dual_denoising.training.optimiser import Optimisation, positive

log = logging.getLogger(__name__)


LOOP_SETTINGS = (
    "seed", "workers", "log_every", "checkpoint_every", "picture_every", "resume", "on_device",
    "compile", "sharded",
)  # fmt: skip
COMPILE = ("auto", "true", "false", "reduce-overhead", "max-autotune")


class Interrupted(InputError):
    """SIGTERM arrived; the training state is saved. The status is the shell's for that signal."""

    status = 128 + signal.SIGTERM


@dataclass
class Trainer:
    """Pre-trains ``model`` on ``dataset`` against ``targets`` in ``folder``; ``fit`` does it all.

    ``settings`` is the run's whole configuration, kept in config.yaml; what of it may not change is
    checked on resuming. ``picture_every`` 0 leaves only the last picture. Every
    draw is a function of (seed, epoch, index of the cloud), and of the step for drop-path, so a
    run killed at any moment ends with the weights of one that was not.

    on_device: as Feed takes it. compile: whether torch.compile serves the model's forward and
    backward, or its mode; 'auto' on a GPU. sharded: parameters, gradients and moments are split
    over the ranks block by block (FSDP2), not copied.
    Between two log lines a step never waits for the device; of several ranks BatchNorm's shared
    statistics do (token_norm='layer' has none).
    """

    model: DualDenoising
    dataset: CloudDataset
    targets: Targets
    optim: Optimisation
    folder: Path
    device: torch.device
    seed: int = 0
    workers: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    picture_every: int = 2000
    resume: bool = True
    on_device: bool | str = "auto"
    compile: bool | str = "auto"
    sharded: bool = False
    logger: NoLogger = field(default_factory=NoLogger)
    settings: dict = field(default_factory=dict)

    def __post_init__(self):
        optim, count = self.optim, len(self.dataset)
        for name in ("log_every", "checkpoint_every"):
            positive(name, getattr(self, name))
        self.steps_per_epoch = count // optim.batch_size
        parts = distributed.world_size() * optim.accumulation
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{self.dataset.source.name} has {count} clouds, fewer than one batch; set "
                f"optim.batch_size={count} or less"
            )
        if optim.batch_size % parts:
            raise InputError(
                f"optim.batch_size is {optim.batch_size}: it must be a multiple of ranks × "
                f"optim.accumulation = {parts}"
            )
        self.total_steps = optim.epochs * self.steps_per_epoch
        self.step, self.seconds, self.window, self.terminated = 0, 0.0, [], False
        self.last = self.folder / "checkpoints" / "last.pt"
        self._check_modes()
        self.device = torch.empty(0, device=self.device).device  # 'cuda' is 'cuda:0' from here on
        torch.manual_seed(self.seed)
        self.model.to(self.device).train()
        self.model.fit_targets(*(t.to(self.device) for t in self.targets.statistics()))
        self.ema = ModelEmaV3(self.model, optim.ema_decay) if optim.ema_decay else None
        self.whole = copy.deepcopy(self.model).cpu() if self.sharded else self.model
        self._compile()
        self.wrapped = distributed.wrap(self.model, self.device, self.sharded)
        self.optimizer, self.scheduler = optim.build(self.model, self.steps_per_epoch)
        self.feed = Feed(
            self.dataset, self.targets, self.device, self.seed, self.workers, self.on_device
        )

    def _check_modes(self) -> None:
        if str(self.compile).lower() not in COMPILE:
            raise InputError(f"compile is '{self.compile}': choose one of {', '.join(COMPILE)}")
        graphs = str(self.compile).lower() in ("reduce-overhead", "max-autotune")
        if graphs and (self.optim.accumulation > 1 or self.sharded):
            raise InputError(
                f"compile is '{self.compile}': its CUDA graphs keep gradients and weights in one "
                "place, so neither optim.accumulation nor sharded goes with it; set compile=true"
            )
        if not isinstance(self.sharded, bool):
            raise InputError(f"sharded is '{self.sharded}': choose true or false")
        if self.sharded and self.optim.ema_decay:
            raise InputError("optim.ema_decay is set: sharded=true keeps no average; set it to 0")
        if self.sharded and not distributed.running():
            raise InputError("sharded is true: start it with torchrun, on several processes")

    def _compile(self) -> None:
        mode = str(self.compile).lower()
        if mode == "false" or (mode == "auto" and self.device.type != "cuda"):
            return
        options = {"dynamic": False} | ({} if mode in ("auto", "true") else {"mode": mode})
        for part in self.model.blocks if self.sharded else [self.model]:
            part.compile(**options)

    def fit(self) -> dict:
        """Trains to the end, from where a run in ``folder`` stopped; returns counts and speed."""
        if self.last.exists() and not self.resume and distributed.is_main():
            self.last.unlink()
        if self.resume and self.last.exists():
            self._load()
        self._open_folder()
        source = self.dataset.source
        log.info(
            "pre-training on %s %s: %d clouds of %d classes, %d steps of %d",
            source.name, source.split, len(self.dataset), len(source.class_names),
            self.total_steps, self.optim.batch_size,
        )  # fmt: skip
        self.started = time.perf_counter() - self.seconds
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            self._steps()
        finally:
            signal.signal(signal.SIGTERM, previous)
        samples = self.step * self.optim.batch_size
        speed = round(samples / max(self.seconds, 1e-9), 2)
        return {"steps": self.step, "samples": samples, "samples_per_second": speed}

    @property
    def trained(self) -> nn.Module:
        """The weights to keep: the moving average's where there is one. Sharded ones are those of
        the last checkpoint or picture."""
        return self.ema.module if self.ema else self.whole

    def _terminate(self, *_) -> None:
        self.terminated = True

    def _steps(self) -> None:
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="pre-training", unit="step",
            disable=not distributed.is_main(), dynamic_ncols=True,
        )  # fmt: skip
        clock = time.perf_counter()
        with bar:
            for batch in self._batches():
                self._step(batch)
                bar.update()
                last = self.step == self.total_steps
                logs = last or self.step % self.log_every == 0
                stop = self._stops() if logs or distributed.world_size() == 1 else False
                save = last or stop or self.step % self.checkpoint_every == 0
                if save or logs:
                    self._log(bar, time.perf_counter() - clock)
                    clock = time.perf_counter()
                if save:
                    self._save()
                if last or (self.picture_every and self.step % self.picture_every == 0):
                    self._picture()
                if stop:
                    raise Interrupted(f"stopped by SIGTERM at step {self.step}; saved {self.last}")

    def _stops(self) -> bool:
        return distributed.any_rank(self.terminated, self.device)

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """From the current step on: this rank's share of each batch, in accumulated parts."""
        items = self.feed(self._shares(self.step))
        while self.step < self.total_steps:
            yield [next(items) for _ in range(self.optim.accumulation)]

    def _shares(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, indices) of every part from ``step`` to the end of the run."""
        optim, ranks = self.optim, distributed.world_size()
        parts = ranks * optim.accumulation
        for epoch in range(step // self.steps_per_epoch, optim.epochs):
            first = max(step - epoch * self.steps_per_epoch, 0)
            for batch in epoch_batches(len(self.dataset), optim.batch_size, self.seed, epoch)[
                first:
            ]:
                for part in range(distributed.rank(), parts, ranks):
                    yield epoch, batch[part::parts]

    def _step(self, parts: list[dict[str, Tensor]]) -> None:
        torch.manual_seed(int(noise.key(self.seed, self.step, distributed.rank())))  # drop-path's
        half = self.device.type == "cuda"
        for number, part in enumerate(parts):
            with distributed.summing(self.wrapped, number == len(parts) - 1):
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    losses = self.wrapped(part["points"], part["targets"], part["keys"])
                (losses["loss"] / len(parts)).backward()
            detached = torch.stack([value.detach().float() for value in losses.values()])
            self.window.append((self.step + 1, part["index"], detached))
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
        values = torch.stack([losses for *_, losses in self.window])
        self._check_finite(values)
        steps = len(self.window) // self.optim.accumulation
        loss, loss_point, loss_feature = distributed.mean_over_ranks(values.mean(0)).tolist()
        line = {
            "step": self.step,
            "samples": self.step * self.optim.batch_size,
            "loss": round(loss, 6),
            "loss_point": round(loss_point, 6),
            "loss_feature": round(loss_feature, 6),
            "lr": self.lr,
            "samples_per_second": round(steps * self.optim.batch_size / max(seconds, 1e-9), 2),
        }
        self.window = []
        if distributed.is_main():
            shown = ("loss", "loss_point", "loss_feature", "samples_per_second")
            bar.set_postfix({key: f"{line[key]:.4g}" for key in shown})
            self._append(json.dumps(line) + "\n")
            self.logger.log(line, self.step)

    def _append(self, line: str) -> None:
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise InputError(
                f"{path}: not written ({error}); {self._last_good()}; free space and start again"
            ) from error

    def _check_finite(self, values: Tensor) -> None:
        bad = (~values.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            step, indices, losses = self.window[bad[0]]
            clouds = ", ".join(self.dataset.source.ids[i] for i in indices.tolist())
            raise InputError(
                f"step {step}: (loss, loss_point, loss_feature) = {losses.tolist()}; "
                f"{self._last_good()}; lower optim.lr or look at the clouds of the batch: {clouds}"
            )

    def _last_good(self) -> str:
        return f"last good checkpoint: {self.last}" if self.last.exists() else "no checkpoint yet"

    def _open_folder(self) -> None:
        """Writes config.yaml; drops metrics of steps that the resumed run will make again."""
        if not distributed.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        report.write_config(self.folder, self.settings)
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in read_metrics(path) if line["step"] <= self.step]
            report.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _save(self) -> None:
        """Writes the training state, unless an update has left weights that are not finite."""
        model, optimizer = self._gathered(self.optimizer)
        bad = [name for name, t in model.items() if not t.isfinite().all()]
        failure = None
        if bad:
            failure = (
                f"step {self.step}: its update left {len(bad)} tensors that are not finite, the "
                f"first is {bad[0]}; {self._last_good()}; lower optim.lr or set optim.clip_norm=1"
            )
        failure = distributed.first_said(failure)  # of sharded weights the first rank alone knows
        if failure:
            raise InputError(failure)
        if not distributed.is_main():
            return
        self.seconds = time.perf_counter() - self.started
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": json.dumps(self.settings),
            "on_device": self.feed.kept,
            "sharded": self.sharded,
            "model": model,
            "optimizer": optimizer,
        }
        if self.ema:
            state["ema"] = self.ema.module.state_dict()
        checkpoint.save_state(state, self.last)

    def _gathered(self, optimizer: torch.optim.Optimizer | None = None) -> tuple[dict, dict]:
        """State of model and optimiser on the first rank; sharded weights also go to ``whole``."""
        states = distributed.whole_state(self.model, optimizer, self.sharded)
        if self.sharded and distributed.is_main():
            self.whole.load_state_dict(states[0])
        return states

    def _load(self) -> None:
        state = checkpoint.load_state(self.last)
        checkpoint.check_settings(json.loads(state["settings"]), self.settings, self.last)
        if self.feed.asked == "auto":  # as it began
            self.feed.kept = state.get("on_device", False)
        for mode, now in (("on_device", self.feed.kept), ("sharded", self.sharded)):
            if state.get(mode, False) != now:  # their draws, their optimisers differ
                was, now = str(not now).lower(), str(now).lower()
                raise InputError(
                    f"{self.last}: belongs to a run with {mode}={was}, now it is {now}; set "
                    f"{mode}={was}, or choose another name=..."
                )
        distributed.load_whole_state(
            self.model, self.optimizer, state["model"], state["optimizer"], self.sharded
        )
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.scheduler.step_update(self.step)
        log.info("resumed %s at step %d of %d", self.last, self.step, self.total_steps)

    def _picture(self) -> None:
        """Clean, noised and rebuilt clouds side by side, and the loss curves so far."""
        if self.sharded:
            self._gathered()
        if not distributed.is_main():
            return
        items = [
            self.dataset[i] for i in range(0, len(self.dataset), math.ceil(len(self.dataset) / 4))
        ]
        place = next(self.trained.parameters()).device
        clouds = torch.stack([item["points"] for item in items]).to(place)
        names = [self.dataset.source.class_names[item["label"]] for item in items]
        steps = [self.model.noise_steps * k // 10 for k in (3, 6)] + [self.model.noise_steps - 1]
        columns, titles = [clouds], ["clean"]
        for t in steps:
            columns += self.trained.rebuild(clouds, t, self.seed)
            titles += [f"noised, t={t}", "rebuilt"]
        rows = [[column[i].cpu().numpy() for column in columns] for i in range(len(clouds))]
        plots.cloud_grid(
            rows, self.folder / "pictures" / f"step_{self.step:07d}.png", titles, names
        )
        metrics = read_metrics(self.folder / "metrics.jsonl")
        if metrics:
            plots.loss_curves(metrics, self.folder / "pictures" / "losses.png")


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of ``metrics.jsonl``; a line cut by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
