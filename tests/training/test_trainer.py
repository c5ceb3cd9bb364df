import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from dual_denoising.clip.features import StandInBank
from dual_denoising.clip.targets import Targets
from dual_denoising.data.datasets import CloudDataset
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.points import Augmentation
from dual_denoising.errors import InputError
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.reports import pictures
from dual_denoising.run import guarded
from dual_denoising.training import checkpoint
from dual_denoising.training.loggers import tensorboard
from dual_denoising.training.optimiser import Optimisation
from dual_denoising.training.record import TrainingRecord
from dual_denoising.training.settings import Loop
from dual_denoising.training.trainer import Trainer, read_metrics
from tests.conftest import TOY, assert_refuses, each

PLAIN = {"token_norm": "layer", "drop_path": 0.0}
LOOP = {"workers": 0, "log_every": 1, "checkpoint_every": 2, "picture_every": 5000, "resume": True}
LOOP |= {"compile": "auto", "sharded": False, "half_file": False}


def build(paths, folder, epochs=2, batch_size=4, seed=0, model=(), kind=Trainer, **fields):
    source = ModelNetH5(*paths, split="train", name="toy", up="y")
    optim = {k: fields.pop(k) for k in list(fields) if k in Optimisation.__dataclass_fields__}
    torch.manual_seed(seed)
    options = TOY | {"feature_types": ["text"], "drop_path": 0.2} | dict(model)
    folder.mkdir(exist_ok=True)
    return kind(
        model=DualDenoising(**options),
        dataset=CloudDataset(source, 32, Augmentation(90), resample=True, seed=seed),
        targets=Targets(["text"], source, StandInBank(12)),
        optim=Optimisation(epochs=epochs, batch_size=batch_size, **{"lr": 1e-3} | optim),
        folder=folder,
        device=torch.device(fields.pop("device", "cpu")),
        draw=pictures.progress,
        logger=fields.pop("logger", None),
        config={"optim": {"epochs": epochs}, "mix_text": 0.0, "logger": None},
        loop=Loop(**LOOP | {"seed": seed} | fields),
    )


@pytest.fixture
def trainer_in(modelnet_h5, tmp_path):
    """Builds a trainer on twelve clouds in its own folder: trainer_in(name, field=value, ...)."""
    paths = modelnet_h5()
    return lambda name="run", *args, **fields: build(paths, tmp_path / name, *args, **fields)


def check_start(trainer, **changed):
    fields = vars(trainer) | changed
    own = (fields[name] for name in ("optim", "dataset", "model", "folder", "config"))
    trainer.loop.check_start(*own)


def fitted(trainer):
    trainer.fit()
    return trainer


def logged(trainer, field):
    """The values of a field in the lines of a run."""
    return [line[field] for line in read_metrics(trainer.folder / "metrics.jsonl")]


def die_in_step(trainer, number):
    """Trains until this step, counted from 1, and is interrupted before it."""
    step = trainer.train_step

    def die(parts):
        if trainer.step == number - 1:
            raise KeyboardInterrupt
        step(parts)

    trainer.train_step = die
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_training_is_exactly_repeatable_and_learns(trainer_in):
    first, second = trainer_in("a", 20), fitted(trainer_in("b", 20))
    counts = first.fit()
    assert same(first.model.state_dict(), second.model.state_dict())
    assert (counts["steps"], counts["samples"]) == (60, 240)
    assert logged(first, "step") == list(range(1, 61))
    assert logged(first, "samples") == list(range(4, 241, 4))
    fields = "step samples loss loss_point loss_feature lr samples_per_second"  # others read them
    assert read_metrics(first.folder / "metrics.jsonl")[0].keys() == set(fields.split())
    losses = logged(first, "loss_feature")
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


def test_image_features_do_not_go_with_shapes_drawn_anew(trainer_in):
    trainer = trainer_in(kind=SimpleNamespace)
    fresh = replace(trainer.dataset, fresh=True)
    check_start(trainer, dataset=fresh)
    both = DualDenoising(**TOY | {"feature_types": ["image", "text"]})
    assert_refuses(r"data\.fresh", check_start, trainer, dataset=fresh, model=both)
    assert_refuses("mix_text", check_start, trainer, config={"mix_text": "abc"})


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}, {"accumulation": 2, "clip_norm": 1.0}])
def test_resuming_inside_an_epoch_is_exact(trainer_in, fields):
    whole = fitted(trainer_in("whole", **fields))
    die_in_step(trainer_in("dies", **fields), 6)  # 5 is logged, the checkpoint is of step 4
    resumed = fitted(trainer_in("dies", **fields))
    assert same(resumed.trained.state_dict(), whole.trained.state_dict())
    assert logged(resumed, "step") == [1, 2, 3, 4, 5, 6]


def test_the_moving_average_is_what_is_kept(trainer_in):
    trainer = trainer_in(ema_decay=0.9)
    start = {k: v.clone() for k, v in trainer.trained.state_dict().items()}
    trainer.fit()
    name = "feature_denoiser.norm.weight"
    kept, last = trainer.trained.state_dict()[name], trainer.model.state_dict()[name]
    assert 0 < (kept - start[name]).norm() < (last - start[name]).norm()


def test_gradients_are_clipped_to_the_norm_asked_for(trainer_in):
    trainer = trainer_in(clip_norm=1e-3)
    norms = []
    trainer.optimizer.step = lambda: norms.append(flat_gradient(trainer.model).norm().item())
    trainer.train_step(next(trainer.step_parts()))
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_noise_points_and_augmentation_are_drawn_anew_in_every_epoch(trainer_in):
    trainer = trainer_in()
    drawn = {}

    def keep(clouds, targets, keys):
        for cloud, key in zip(clouds, keys.tolist(), strict=True):
            drawn[key] = cloud
        return trainer.model(clouds, targets, keys)

    trainer.on_ranks.module = keep
    trainer.fit()
    assert len(drawn) == 24  # twelve clouds, two epochs
    assert len(torch.stack(list(drawn.values())).flatten(1).unique(dim=0)) == 24


def test_processes_that_read_ahead_of_the_epoch_change_nothing(trainer_in):
    alone = fitted(trainer_in("alone", 3))
    read = fitted(trainer_in("read", 3, workers=2))
    assert same(alone.model.state_dict(), read.model.state_dict())


def test_the_model_trains_with_its_targets_statistics(trainer_in):
    model = {"target_scale": "standardised", "drop_path": 0.2}
    trainer = trainer_in(model=model)
    mean, std = trainer.targets.statistics()
    torch.testing.assert_close(trainer.model.target_mean, mean)
    torch.testing.assert_close(trainer.model.target_std, std)
    trainer.fit()
    assert trainer.model.training
    assert trainer.model.point_dae.tokenizer.local[1].norm.num_batches_tracked == 6


def test_a_line_holds_the_mean_of_its_steps(trainer_in):
    each = logged(fitted(trainer_in("each")), "loss")
    third = logged(fitted(trainer_in("third", log_every=3, checkpoint_every=3)), "loss")
    assert third == pytest.approx([np.mean(each[:3]), np.mean(each[3:])], abs=2e-6)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(trainer_in):
    trainer = trainer_in(epochs=10, warmup_epochs=2, lr=0.1, min_lr=0.001)
    lr = logged(fitted(trainer), "lr")
    assert lr[3] == pytest.approx(0.001 + 3 / 6 * 0.099)  # half-way through 6 steps of warm-up
    expected = 0.001 + 0.099 * 0.5 * (1 + np.cos(np.pi * 15 / 30))
    assert lr[15] == pytest.approx(expected)
    assert lr[-1] == pytest.approx(0.001, abs=5e-4)


def test_one_dimensional_parameters_do_not_decay(trainer_in):
    trainer = trainer_in()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)


def test_accumulation_has_the_gradient_of_the_whole_batch(trainer_in):
    whole, *others = (
        first_gradient(trainer_in(accumulation=parts, model=PLAIN)) for parts in (1, 2, 4)
    )
    for accumulated in others:
        torch.testing.assert_close(accumulated, whole)


def first_gradient(trainer):
    trainer.optimizer.step = lambda: None
    trainer.optimizer.zero_grad = lambda **_: None
    trainer.train_step(next(trainer.step_parts()))
    return flat_gradient(trainer.model)


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rank_gradient(rank, paths, folder):
    trainer, sent = build(paths, folder, model=PLAIN), []

    def count(state, bucket):
        sent.append(bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(None, bucket)

    trainer.on_ranks.module.register_comm_hook(None, count)
    torch.save((first_gradient(trainer), sum(sent)), folder / f"{rank}.pt")


def test_two_ranks_give_the_gradient_of_one_and_send_no_more(modelnet_h5, tmp_path, two_ranks):
    paths = modelnet_h5()
    alone = build(paths, tmp_path / "alone", model=PLAIN)
    expected = first_gradient(alone)
    two_ranks(rank_gradient, paths, tmp_path)
    for rank in (0, 1):
        gradient, sent = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gradient, expected)
        assert sent == sum(p.nbytes for p in alone.model.parameters())


def fit_sharded(rank, paths, folder):
    options = {"model": PLAIN, "clip_norm": 1.0, "seed": 3, "accumulation": 2, "sharded": True}
    trainer = build(paths, folder / "whole", **options)
    mine = sum(p.to_local().numel() for p in trainer.model.parameters())
    trainer.fit()
    die_in_step(build(paths, folder / "dies", **options), 5)
    resumed = fitted(build(paths, folder / "dies", **options))
    if rank == 0:
        result = mine, trainer.trained.state_dict(), resumed.trained.state_dict()
        torch.save(result, folder / "result.pt")


def test_a_model_sharded_over_two_ranks_trains_and_resumes_like_one(
    modelnet_h5, tmp_path, two_ranks
):
    paths = modelnet_h5()
    alone = fitted(build(paths, tmp_path / "alone", model=PLAIN, clip_norm=1.0, seed=3))
    two_ranks(fit_sharded, paths, tmp_path)
    mine, trained, resumed = torch.load(tmp_path / "result.pt")
    total = sum(p.numel() for p in alone.model.parameters())
    assert mine == pytest.approx(total / 2, rel=0.01)
    assert same(trained, resumed)
    start = build(paths, tmp_path / "start", model=PLAIN, seed=3).model.state_dict()
    moved = max((alone.model.state_dict()[k] - start[k]).abs().max() for k in start)
    for name, expected in alone.model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-3, atol=0.02 * float(moved))


def test_a_step_never_reads_a_value_from_the_device(trainer_in):
    """The meta device has no values: whatever waited for one would fail there."""
    fields = {"clip_norm": 1.0, "fused": False}  # no fused optimiser there
    trainer = trainer_in(device="meta", **fields)
    batches = trainer.step_parts()
    for _ in range(4):  # across an epoch's end
        trainer.train_step(next(batches))
    assert (trainer.step, len(trainer.unlogged)) == (4, 4)
    assert {losses.device.type for *_, losses in trainer.unlogged} == {"meta"}


@pytest.mark.parametrize(
    "fields",
    [
        *each(compile=["fast"], sharded=["maybe", True], log_every=[0]),
        *each(workers=[-1], batch_size=[13], accumulation=[3]),
        {"compile": "max-autotune", "accumulation": 2},
        {"compile": "reduce-overhead", "sharded": True},
        {"ema_decay": 0.9, "sharded": True},
    ],
)
def test_impossible_loops_are_named(trainer_in, fields):
    assert_refuses(
        next(iter(fields)), lambda: check_start(trainer_in(kind=SimpleNamespace, **fields))
    )


@pytest.mark.parametrize(
    "fields",
    each(epochs=[0, "abc"], batch_size=[1.5], lr=["abc", -1, 0, float("nan")], fused=["maybe"])
    + each(ema_decay=[1.0], weight_decay=[-1], warmup_epochs=[None], min_lr=[1.0]),
)
def test_impossible_optimisation_is_named(fields):
    assert_refuses(f"optim.{next(iter(fields))}", Optimisation, **fields)


CURVES = """
import pathlib, sys, torch
from tests.training.test_trainer import build, fitted, logged

torch._inductor.config.fallback_random = True  # drop-path by torch's own generator
paths, folder, curves = (sys.argv[1], sys.argv[2]), pathlib.Path(sys.argv[3]), []
for compile in (False, True):
    trainer = fitted(build(paths, folder / str(compile), 8, compile=compile))
    curves.append(logged(trainer, "loss"))
    trainer.model(torch.randn(4, 32, 3), torch.randn(4, 1, 12), torch.arange(4))
first, second = map(torch.tensor, curves)
print(len(first), float((first - second).abs().max()), float(first.max() - first.min()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_run_has_the_loss_curve_of_an_eager_one(modelnet_h5, tmp_path):
    """In a process of its own: the annotations that tests check cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", CURVES, *modelnet_h5(), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    steps, apart, spread = map(float, done.stdout.split()[-3:])
    assert steps == 24
    assert apart < 1e-4 * spread


def test_a_non_finite_loss_names_step_clouds_and_checkpoint(modelnet_h5, tmp_path, monkeypatch):
    names = [f"shape_{i}" for i in range(12)]
    trainer = build(modelnet_h5(name=names), tmp_path / "run", 4, log_every=4)
    targets = Targets.__call__

    def poisoned(self, indices, keys):
        return targets(self, indices, keys) * (float("nan") if trainer.step == 6 else 1.0)

    monkeypatch.setattr(Targets, "__call__", poisoned)
    with pytest.raises(InputError) as error:
        trainer.fit()
    batch = trainer.dataset.epoch_order(0, 2)[:4]  # step 7 is the first of epoch 2
    assert "step 7:" in str(error.value)
    assert all(f"shape_{i}" in str(error.value) for i in batch)
    assert "last.pt" in str(error.value)
    state = checkpoint.load_state(trainer.state_file)
    assert state["step"] == 6
    assert all(t.isfinite().all() for t in state["model"].values())


def test_an_update_that_breaks_the_weights_is_never_saved(trainer_in):
    trainer = trainer_in(checkpoint_every=3)
    update = trainer.optimizer.step

    def broken():
        update()
        if trainer.step == 5:  # of six: the last
            trainer.model.feature_denoiser.norm.weight.data[0] = torch.nan

    trainer.optimizer.step = broken
    assert_refuses(r"step 6: .*feature_denoiser\.norm\.weight", trainer.fit)
    state = checkpoint.load_state(trainer.state_file)
    assert state["step"] == 3
    assert all(t.isfinite().all() for t in state["model"].values())


def test_a_full_disk_while_logging_is_named(trainer_in):
    trainer = trainer_in()
    step, metrics = trainer.train_step, trainer.folder / "metrics.jsonl"

    def full(parts):
        step(parts)
        metrics.unlink()
        metrics.symlink_to("/dev/full")

    trainer.train_step = full
    assert_refuses(r"metrics\.jsonl", trainer.fit)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_the_run_goes_on(trainer_in, capsys, number):
    whole = fitted(trainer_in("whole"))
    trainer = trainer_in(checkpoint_every=1000)
    step = trainer.train_step

    def stopped(parts):
        step(parts)
        if trainer.step == 3:
            os.kill(os.getpid(), number)

    trainer.train_step = stopped
    assert guarded(trainer.fit) == 128 + number  # a script's exit status
    assert re.search(rf"step 3\b.*{trainer.state_file}", capsys.readouterr().err)
    assert checkpoint.load_state(trainer.state_file)["step"] == 3
    resumed = fitted(trainer_in())
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_processes_that_read_may_get_the_signal_first(trainer_in, monkeypatch):
    whole = fitted(trainer_in("whole"))
    read = CloudDataset.__getitem__

    def end(self, place):
        if place[0] == 1:  # the second epoch, for which the main process waits
            time.sleep(1)
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(CloudDataset, "__getitem__", end)
        trainer = trainer_in(workers=1, checkpoint_every=1000)
        assert guarded(trainer.fit) == 128 + signal.SIGTERM
    assert checkpoint.load_state(trainer.state_file)["step"] == 3
    assert same(fitted(trainer_in()).model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("part", checkpoint.FIXED)
def test_nothing_that_matters_may_change_on_resuming(tmp_path, part):
    before, after = {part: {"x": 1}, "device": "cpu"}, {part: {"x": 2}, "device": "cuda"}
    assert_refuses(rf"{part}\.x=1.* 2", checkpoint.check_settings, before, after, tmp_path)
    checkpoint.check_settings(before, before | {"device": "cuda"}, tmp_path)
    tests = {"data": {"tests": [1]}}, {"data": {"tests": [2]}}
    checkpoint.check_settings(*tests, tmp_path)
    checkpoint.check_settings({"model": {"feature_width": 512}}, {"model": {}}, tmp_path)


def test_a_run_with_other_settings_is_not_resumed(trainer_in):
    trainer_in().fit()
    assert_refuses(r"optim\.epochs=2.* 3", check_start, trainer_in(epochs=3))
    again = trainer_in(epochs=3, resume=False)
    (again.folder / "summary.json").touch()  # of the run that is done over
    assert again.fit()["steps"] == 9
    assert not (again.folder / "summary.json").exists()


def test_pictures_are_left(trainer_in):
    trainer = fitted(trainer_in(picture_every=3))
    pictures = {p.name for p in (trainer.folder / "pictures").iterdir()}
    assert pictures == {"step_0000003.png", "step_0000006.png", "losses.png"}


def test_tensorboard_gets_every_line(trainer_in, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = tensorboard(str(tmp_path / "events"))
    trainer = fitted(trainer_in(logger=logger))
    reader = events.EventAccumulator(str(tmp_path / "events"))
    reader.Reload()
    found = [event.value for event in reader.Scalars("loss_feature")]
    np.testing.assert_allclose(found, logged(trainer, "loss_feature"), rtol=1e-6)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, state = tmp_path / "last.pt", dict.fromkeys(("model", "optimizer", "seconds"))
    checkpoint.save_state(state | {"step": 1, "settings": "{}"}, path)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert_refuses(r"last\.pt", checkpoint.save_state, state | {"step": 2, "settings": "{}"}, path)
    assert checkpoint.load_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_damaged_states_and_metrics_are_named(tmp_path):
    checkpoint.save_state({"step": 1, "settings": "{}"}, tmp_path / "last.pt")
    assert_refuses(r"last\.pt", checkpoint.load_state, tmp_path / "last.pt")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert_refuses(r"metrics\.jsonl", read_metrics, tmp_path / "metrics.jsonl")


def test_a_model_kept_in_half_precision_is_the_one_that_is_tested(toy, record, tmp_path):
    model = toy()
    checkpoint.save_model(model, tmp_path / "whole", record)
    checkpoint.save_model(model, tmp_path / "half", record, half=True)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = DualDenoising.from_pretrained(tmp_path / "half").state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())
    assert {t.dtype for t in loaded.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."]
)
def test_files_that_are_no_checkpoints_are_never_unpickled(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(content)
    assert_refuses(r"last\.pt", checkpoint.load_state, tmp_path / "last.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_model_folder_is_replaced_as_a_whole(toy, record, tmp_path, monkeypatch):
    checkpoint.save_model(toy(), tmp_path / "model", record)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    checkpoint.save_model(toy(), tmp_path / "model", record)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert TrainingRecord.load(tmp_path / "model") == record

    def full(*_, **__):  # as safetensors says it
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("safetensors.torch.save_model", full)
    assert_refuses(
        "model", checkpoint.save_model, toy(), tmp_path / "model", replace(record, dataset="b")
    )
    assert TrainingRecord.load(tmp_path / "model") == record
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
