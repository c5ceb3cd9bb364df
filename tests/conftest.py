import json
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import jaxtyping
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import trimesh
from playwright.sync_api import sync_playwright
from torch import nn

if not torch.cuda.is_available():  # Triton looks at it when a kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"

from dual_denoising import keyed_random
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.errors import InputError
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.training import checkpoint, ranks
from dual_denoising.training.record import TrainingRecord

torch.set_num_threads(1)  # point ops on a loaded machine are many times slower with more


def pytest_terminal_summary(terminalreporter):
    """One line on what was skipped, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    said = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped: {said or 'nothing'}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that DUAL_DENOISING_DATA names."""
    root = os.environ.get("DUAL_DENOISING_DATA")
    if not root:
        pytest.skip("DUAL_DENOISING_DATA is unset: no real data")
    if not Path(root).is_dir():
        pytest.skip(f"DUAL_DENOISING_DATA={root} is no folder")
    return Path(root).resolve()


@pytest.fixture
def clouds() -> torch.Tensor:
    """Five clouds of 96 points in the unit sphere."""
    points = torch.randn(5, 96, 3, generator=torch.Generator().manual_seed(1))
    return points / points.norm(dim=-1).amax(1)[:, None, None]


TOY = {"width": 16, "heads": 2, "encoder_depth": 2, "decoder_depth": 1, "feature_width": 12}
TOY |= {"num_groups": 8, "group_size": 6, "token_widths": [8, 16, 16], "drop_path": 0.0}


@pytest.fixture
def toy():
    """Builds small models with seeded weights: toy(field=value, ...)."""

    def build(**fields) -> DualDenoising:
        torch.manual_seed(0)
        return DualDenoising(**(TOY | fields))

    return build


@pytest.fixture
def wake():
    """Sets every zero-initialised modulation to small random values, as training would."""

    def wake(model):
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "modulation" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return wake


def write_h5(path, data, label, **fields):
    """Clouds and labels as ModelNet's and ScanObjectNN's files hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, label
        for key, value in fields.items():
            file[key] = value


def write_features(path, keys, features, kind="name", model="tiny", pretrained="none") -> str:
    """A file of a teacher's features: of names, or of ids of shapes."""
    with h5py.File(path, "w") as file:
        file[kind] = np.array(keys, dtype=object)
        file["feature"] = features
        file.attrs.update(model=model, pretrained=pretrained, prompt="a {name}")
    return str(path)


@pytest.fixture
def unchecked():
    """Switches off the checks of types that tests alone have: a user meets the code's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def modelnet_h5(tmp_path):
    """Writes a ModelNet-style h5 of random clouds and its class names; returns both paths."""

    def write(data=None, label=None, names=("bed", "chair", "sofa"), **extra):
        rng = np.random.default_rng(0)
        data = rng.normal(size=(12, 40, 3)).astype(np.float32) if data is None else data
        label = np.arange(len(data)) % len(names) if label is None else label
        write_h5(tmp_path / "clouds.h5", data, label, **extra)
        (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
        return str(tmp_path / "clouds.h5"), str(tmp_path / "names.txt")

    return write


@pytest.fixture
def source(modelnet_h5):
    """Twelve random clouds of three classes."""
    return ModelNetH5(*modelnet_h5(), split="test", name="toy", up="y")


@pytest.fixture
def record():
    """What a model was trained on: one name, by the teacher of ``write_features``."""
    return TrainingRecord("toy", "train", ["bed"], 64, "tiny/none")


@pytest.fixture
def trained(tmp_path, toy, record):
    """A saved model that learned from a tiny bank of three names, and the bank."""
    checkpoint.save_model(toy(feature_types=["text"]), tmp_path / "model", record)
    features = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    write_features(tmp_path / "bank.h5", ["bed", "chair", "lamp"], features)
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Five clouds of each of three classes, in a folder per class."""
    for label, kind in enumerate(("bed", "chair", "lamp")):
        (tmp_path / "clouds" / kind).mkdir(parents=True)
        for number in range(5):
            rng = np.random.default_rng((label, number))
            np.save(tmp_path / "clouds" / kind / f"{number}.npy", rng.normal(size=(80, 3)))
    return tmp_path / "clouds"


@pytest.fixture
def on_folders(trained, folders):
    """Settings of a script that takes the toy model to these clouds."""
    text = f"teacher=clip_vitb32 teacher.text.path={trained / 'bank.h5'}"
    return f"checkpoint=model data=folder data.root={folders} threads=1 {text}"


@pytest.fixture
def shapenet(tmp_path):
    """A ShapeNet55-34 tree of three clouds, one with '-' in its id, and two malformed rows."""
    rows = ["02691156-abc.npy", "03001627-a-b-c.npy", "04379243-.npy", "04379243-t.npy", "x y.npy"]
    (tmp_path / "shapenet_pc").mkdir()
    (tmp_path / "ShapeNet-55").mkdir()
    (tmp_path / "ShapeNet-55" / "train.txt").write_text("\n".join(rows[:3]) + "\n")
    (tmp_path / "ShapeNet-55" / "test.txt").write_text("\n".join(rows[3:]) + "\n")
    for row in (rows[0], rows[1], rows[3]):
        rng = np.random.default_rng(len(row))
        np.save(tmp_path / "shapenet_pc" / row, rng.normal(size=(64, 3)).astype(np.float32))
    return tmp_path


def each(**fields) -> list[dict]:
    """[{field: value}, ...], one value at a time: what tests of bad settings are given."""
    return [{field: value} for field, values in fields.items() for value in values]


def assert_refuses(words, call, /, *given, **fields) -> str:
    """The message of the InputError that a call is to raise; these words match it."""
    with pytest.raises(InputError, match=words) as error:
        call(*given, **fields)
    return str(error.value)


def free_port() -> int:
    """A port for processes that are to find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def as_rank(rank, job, port, arguments):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    with ranks.process_group(torch.device("cpu")):
        job(rank, *arguments)


@pytest.fixture
def two_ranks():
    """Runs job(rank, ...) in two processes of one group: two_ranks(job, ...).

    Forked, they import nothing again; with a GPU torch's gradients do not survive a fork.
    """

    def run(job, *arguments):
        way = "spawn" if torch.cuda.is_available() else "fork"
        mp.start_processes(as_rank, (job, free_port(), arguments), nprocs=2, start_method=way)

    return run


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(tmp_path):
    """Runs a script as a user would, in a folder of its own: script("name override", ...)."""

    def run(line, *arguments, check=True, start=False, ranks=1, timeout=300, **environment):
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        name, *words = line.split()
        command += [str(ROOT / "scripts" / f"{name}.py"), *words, *map(str, arguments)]
        options = {
            "cwd": tmp_path,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        }
        if start:
            return subprocess.Popen(command, start_new_session=True, **options)
        done = subprocess.run(command, timeout=timeout, **options)
        if check:
            assert done.returncode == 0, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a script in this process, in a folder of its own: call("name override", ...).

    Gives its exit status, its output and its errors, and saves the seconds that imports take.
    """

    def run(line, *arguments, status=0, **environment):
        monkeypatch.chdir(tmp_path)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        name, *words = line.split()
        path = ROOT / "scripts" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *words, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        out, errors = capsys.readouterr()
        assert (end.value.code or 0) == status, errors[-3000:]
        assert "Traceback" not in errors
        return out, errors

    return run


CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system's packages."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


def ink(page, place):
    """How many colours a canvas shows: 1 where nothing is drawn."""
    return page.evaluate(
        """(place) => { const c = document.querySelectorAll("canvas")[place];
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        const seen = new Set(); for (let i = 0; i < d.length; i += 4)
        seen.add(d[i] + 256 * d[i + 1] + 65536 * d[i + 2]); return seen.size; }""",
        place,
    )


N, C = 10, 5  # points and classes of the models below


@pytest.fixture
def labelled():
    """Thirteen clouds, their labels, and their indices in a dataset."""
    clouds = torch.rand(13, N, 3, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    return clouds, torch.arange(13) % C, torch.arange(13) * 3


class Linear(nn.Module):
    """Logits linear in the coordinates."""

    def __init__(self, classes=C, seed=0, points=N):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, points * 3, generator=generator))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator))

    def forward(self, clouds):
        return clouds.flatten(1) @ self.weight.T + self.bias


class Curved(Linear):
    def forward(self, clouds):
        return torch.tanh(2 * clouds.flatten(1)) @ self.weight.T + 0.3 * self.bias


class Noisy(Linear):
    """A randomised model: every draw shifts the logits by Gaussian noise of its own."""

    def __init__(self, scale=1.0, **fields):
        super().__init__(**fields)
        self.scale = scale

    def draws(self, clouds, indices, seeds):
        logits = self(clouds)
        return torch.stack([logits + self.scale * self._noise(indices, s) for s in seeds])

    def _noise(self, indices, seed):
        rows = [
            torch.randn(len(self.bias), generator=torch.Generator().manual_seed(int(key) % 2**32))
            for key in keyed_random.key(seed, indices)
        ]
        return torch.stack(rows)


class Evil:
    """Runs a command where its pickle is trusted."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def glb(document, binary=b""):
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if binary:
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def instances(count):
    """A small glb whose scene shows one mesh of 5120 triangles ``count`` times."""
    made = trimesh.creation.icosphere(4).export(file_type="glb")
    end = 20 + int.from_bytes(made[12:16], "little")
    document = json.loads(made[20:end])
    document["nodes"] = [{"mesh": 0, "translation": [k, 0, 0]} for k in range(count)]
    document["scenes"] = [{"nodes": list(range(count))}]
    return glb(document, made[end + 8 :])
