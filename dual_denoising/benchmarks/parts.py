"""Timings of point operations, training, inference and attacks, each beside an alternative."""

import copy
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dual_denoising import ops
from dual_denoising.attacks import CW, PGD, Attack
from dual_denoising.benchmarks.timing import Machine, flops, medians, unit_clouds
from dual_denoising.errors import check
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.keyed_random import path_keys
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training.optimiser import Optimisation

VARIANTS = ("eager", "compiled", "graphs", "float32", "unfused optimiser")


def naive_fps(points: Tensor, count: int) -> Tensor:
    """The loop of the usual PyTorch code: (B, N, 3) -> indices (B, count)."""
    rows = torch.arange(len(points), device=points.device)
    nearest = torch.full(points.shape[:2], torch.inf, device=points.device)
    chosen = [torch.zeros_like(rows)]
    for _ in range(count - 1):
        gaps = ((points - points[rows, chosen[-1]][:, None]) ** 2).sum(-1)
        nearest = torch.minimum(nearest, gaps)
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, 1)


def naive_knn(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """By the expanded form |a|² − 2ab + |b|², which loses close neighbours."""
    return torch.cdist(queries, points).topk(count, largest=False).indices


def naive_chamfer(x: Tensor, y: Tensor) -> Tensor:
    """All distances at once."""
    gaps = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    return gaps.amin(2).mean() + gaps.amin(1).mean()


def _step(model: DualDenoising, variant: str, batch: tuple, on_gpu: bool) -> Callable:
    """A step of a copy of the model, so that every variant starts from the same weights."""
    model = copy.deepcopy(model)
    if variant in ("compiled", "graphs"):
        model.compile(dynamic=False, mode="reduce-overhead" if variant == "graphs" else None)
    optimizer, _ = Optimisation(lr=1e-4, fused=variant != "unfused optimiser").build(model, 1)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu and variant != "float32"):
            loss = model(*batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class OnePathAtATime(ZeroShotClassifier):
    """The same logits from S forward passes, one for each noise path."""

    def features(self, clouds: Tensor, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        keys = path_keys(seeds, indices, self.num_noise)  # (B, R, S)
        passes = keys.flatten(1).split(1, dim=1)
        paths = [self.model.encode_paths(clouds, key, self.timestep) for key in passes]
        return torch.cat(paths, 1).unflatten(1, keys.shape[1:]).mean(2).transpose(0, 1)


KINDS = {"ours": ZeroShotClassifier, "a pass per path": OnePathAtATime}


def _gradient(classifier: nn.Module, clouds: Tensor) -> None:
    points = clouds.clone().requires_grad_()
    classifier(points).sum().backward()


class Benchmark:
    """A method for each part, which takes the part's settings and gives the rows of its table.

    repeats: timed rounds.
    """

    def __init__(self, model: DualDenoising, machine: Machine, repeats: int):
        self.model, self.machine, self.repeats = model, machine, repeats
        self.device = machine.device

    def classifier(self, num_noise: int, timestep: int, kind: type = ZeroShotClassifier):
        """The model with random class weights."""
        drawn = torch.Generator().manual_seed(2)
        weights = torch.randn(40, self.model.feature_width, generator=drawn)
        weights = nn.functional.normalize(weights, dim=-1)
        return kind(self.model, weights, num_noise, timestep).eval().to(self.device)

    def ops(self, clouds: int, points: int, groups: int, group_size: int) -> list[dict]:
        """FPS, kNN and Chamfer with its gradient as a batch of ``clouds`` needs them."""
        fits = group_size <= points
        check("ops.group_size", group_size, fits, f"of ops.points={points} choose at most all")
        cloud = unit_clouds(clouds, points, self.device)
        centers = ops.sample_farthest_points(cloud, K=groups)[0]
        clean = unit_clouds(clouds * groups, group_size, self.device)
        rebuilt = clean.flip(0).requires_grad_()

        def slope(loss: Callable) -> Tensor:
            return torch.autograd.grad(loss(rebuilt, clean), rebuilt)[0]

        tokens = clouds * groups  # every distance once: 8 operations, FPS 10
        jobs: dict[str, tuple[Callable, Callable, int]] = {
            "FPS": (
                lambda: naive_fps(cloud, groups),
                lambda: ops.sample_farthest_points(cloud, K=groups),
                10 * tokens * points,
            ),
            "kNN": (
                lambda: naive_knn(centers, cloud, group_size),
                lambda: ops.knn_indices(centers, cloud, group_size, return_sorted=False),
                8 * tokens * points,
            ),
            "Chamfer + backward": (
                lambda: slope(naive_chamfer),
                lambda: slope(lambda x, y: ops.chamfer_distance(x, y)[0]),
                tokens * (8 * group_size**2 + 18 * group_size),
            ),
        }
        backends = [name for name in ("torch", "pytorch3d") if importlib.util.find_spec(name)]
        rows = []
        for operation, (naive, own, least) in jobs.items():
            calls = {"naive torch": naive, "ours": ops.use_backend("auto")(own)}
            calls |= {f"backend {name}": ops.use_backend(name)(own) for name in backends}
            times = medians(calls, self.device, self.repeats)
            for name, timing in times.items():
                row = {"operation": operation, "by": name} | timing.row(self.machine.floor(least))
                rows.append(row | {"ours / it": times["ours"].median / timing.median})
        return rows

    def train(
        self, batch_size: int, points: int, samples: int, variants: Sequence[str] | None
    ) -> list[dict]:
        """An optimiser step in every variant; None: all on a GPU, the plain one on a CPU.

        On a GPU it is bf16 but where the variant's name says otherwise. The floor is that of its
        matrix products at the machine's peak and of AdamW's traffic.
        """
        device, on_gpu = self.device, self.device.type == "cuda"
        variants = VARIANTS[: None if on_gpu else 1] if variants is None else variants
        known = variants and set(variants) <= set(VARIANTS)
        check("train.variants", variants, known, f"choose of {', '.join(VARIANTS)}")
        model = self.model.to(device).train()
        shape = (batch_size, len(model.feature_types), model.feature_width)
        targets = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
        keys = torch.arange(batch_size, device=device)
        batch = unit_clouds(batch_size, points, device), targets, keys
        steps = {name: _step(model, name, batch, on_gpu) for name in variants}
        few = tuple(x[:8] for x in batch)
        per_sample = flops(_step(model, "eager", few, on_gpu)) / min(batch_size, 8)
        traffic = 28 * sum(p.numel() for p in model.parameters())
        rows = []
        for name, timing in medians(steps, device, self.repeats).items():
            kind = "bfloat16" if on_gpu and name != "float32" else "float32"
            floor = self.machine.floor(batch_size * per_sample, kind=kind)
            floor += self.machine.floor(0, traffic)
            rate, hours = batch_size / timing.median, f"hours for {samples / 1e6:g} M"
            row = {"step": name, **timing.row(floor), "samples/s": rate}
            row |= {"GFLOP/sample": per_sample / 1e9, hours: samples / rate / 3600}
            rows.append(row)
        return rows

    @torch.inference_mode()
    def infer(
        self, clouds: int, points: int, num_noise: Sequence[int], timestep: Sequence[int]
    ) -> list[dict]:
        """Milliseconds per cloud of every (S, t), and of the largest S also a pass per path."""
        for name, values in (("num_noise", num_noise), ("timestep", timestep)):
            check(f"infer.{name}", values, isinstance(values, list) and values, "give a list")
        most, batch = max(num_noise), unit_clouds(clouds, points, self.device)
        jobs: dict[tuple[int, int, str], Callable] = {}
        for t in timestep:
            for paths, by in (*((s, "ours") for s in num_noise), (most, "a pass per path")):
                jobs[paths, t, by] = partial(self.classifier(paths, t, KINDS[by]), batch)
        times, rows = medians(jobs, self.device, self.repeats), []
        for (paths, t, by), timing in times.items():
            floor = self.machine.floor(flops(jobs[paths, t, "ours"]))
            row = {"S": paths, "t": t, "by": by} | timing.row(floor, clouds / 1e3)
            ratio = timing.median / times[num_noise[0], t, "ours"].median
            rows.append(row | {f"ratio to S = {num_noise[0]}": ratio})
        return rows

    def attack(
        self,
        clouds: int,
        points: int,
        num_noise: int,
        steps: int,
        searches: int,
        search_steps: int,
        total: int,
    ) -> list[dict]:
        """Seconds per cloud of C&W at t = 0, and of PGD at t = 0 and 500, beside a pass per path.

        total: clouds that the hours are computed for.
        """
        self.model.requires_grad_(False)
        drawn, rows = unit_clouds(clouds, points, self.device), []
        labels = torch.zeros(clouds, dtype=torch.long, device=self.device)
        cw = partial(CW, searches=searches, steps=search_steps, target="best_wrong")
        pgd = partial(PGD, eps=0.01, steps=steps)
        plan: list[tuple[str, Callable[..., Attack], int]]
        plan = [(f"C&W, {searches} × {search_steps}", cw, 0)]
        plan += [(f"PGD-{steps}", pgd, t) for t in (0, 500)]
        for name, made, t in plan:
            rivals = {by: made(self.classifier(num_noise, t, k)) for by, k in KINDS.items()}
            calls = {by: partial(attack, drawn, labels) for by, attack in rivals.items()}
            times = medians(calls, self.device, self.repeats, warm_up=1)
            once = flops(partial(_gradient, rivals["ours"].model, drawn))
            floor = self.machine.floor(once * rivals["ours"].passes)
            for by, timing in times.items():
                row = {"attack": name, "S": num_noise, "t": t, "by": by}
                row |= timing.row(floor, clouds, "s per cloud")
                row["times as fast"] = times["a pass per path"].median / timing.median
                row[f"hours for {total}"] = total * timing.median / clouds / 3600
                rows.append(row)
        return rows


def on_gpu(jobs: Mapping[str, str]) -> list[dict]:
    """Runs the tests of the kernels, then {name: script and settings}, and says how each ended.

    Each is a process, so that peak memory is its own. Tables of the scripts are in runs/gpu_<name>.
    """
    commands = {"tests": ["-m", "pytest", "-q", "-o", "addopts=", "tests/ops/test_gpu.py"]}
    for name, words in jobs.items():
        script, *settings = shlex.split(words)
        commands[name] = [f"scripts/{script}.py", f"name=gpu_{name}", *settings]
    return [
        {"job": name, "exit status": subprocess.run([sys.executable, *command]).returncode}
        for name, command in commands.items()
    ]
