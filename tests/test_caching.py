"""Caches of teacher features: content, restarts, faults, and pre-training from them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from dual_denoising import caching
from dual_denoising.clip import OpenClip
from dual_denoising.data.primitives import Primitives
from dual_denoising.errors import InputError
from dual_denoising.teacher import FeatureFile, Targets, TextBank
from dual_denoising.views import DatasetImages, Rendered, Renderer

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["a {}.", "{} model"]
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that open_clip loads a tiny CLIP of random weights from."""
    folder = tmp_path_factory.mktemp("micro")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return OpenClip(f"local-dir:{folder}")


class Shapes:
    """A source of ids and class names."""

    name, up, origin = "shapes", "y", "here"

    def __init__(self, count, classes=("night_stand", "sofa")):
        self.class_names, self.labels = list(classes), np.arange(count) % len(classes)
        self.ids = [f"shape_{i}" for i in range(count)]


@pytest.fixture
def shapes(tmp_path):
    """Nine shapes with pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    for i in range(9):
        pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "img" / f"shape_{i}.png")
    return Shapes(9)


def cache(clip, shapes, tmp_path, output="a.h5", **fields):
    pictures = DatasetImages(shapes, str(tmp_path / "img"))
    path = tmp_path / output
    return path, caching.cache(clip, shapes, pictures, PROMPTS, path, **{"batch_size": 4} | fields)


def test_files_hold_the_towers_features_of_every_view_and_prompt(clip, tmp_path):
    source = Primitives("train", 2, classes=["chair", "night_stand"], num_points=64)
    pictures = Rendered(source, Renderer([(0, 0), (90, 20), (200, 40)], size=40))
    path = tmp_path / "a.h5"
    assert caching.cache(clip, source, pictures, PROMPTS, path, batch_size=3) == {}
    images = FeatureFile(str(path), "id")
    assert images.features.shape == (4, 3, 12)
    for index in (0, 3):
        pixels = torch.stack([clip.preprocess(view) for view in pictures[index]])
        torch.testing.assert_close(images.take([source.ids[index]])[0], clip.encode_images(pixels))
    bank = TextBank(str(path))
    assert bank.prompts == PROMPTS
    expected = clip.encode_texts(["a night stand.", "night stand model"])
    torch.testing.assert_close(bank.lookup(["night_stand"])[0], expected)
    assert bank.teacher == images.teacher == "/".join(clip.names)
    with h5py.File(path) as file:
        assert file.attrs["weights"] == clip.weights_hash
        assert "size=40" in file.attrs["images"]
        assert "seed 0" in file.attrs["content"]
    with_workers = tmp_path / "b.h5"
    caching.cache(clip, source, pictures, PROMPTS, with_workers, batch_size=1, workers=2)
    np.testing.assert_allclose(
        FeatureFile(str(with_workers), "id").features, images.features, atol=1e-5
    )


def test_crops_are_variants_of_their_view(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path, crops=3)
    features = FeatureFile(str(path), "id").features
    assert features.shape == (9, 3, 12)
    assert len(np.unique(features[0].round(5), axis=0)) == 3
    again, _ = cache(clip, shapes, tmp_path, output="b.h5", crops=3, batch_size=2)
    np.testing.assert_allclose(FeatureFile(str(again), "id").features, features, atol=1e-5)


def test_a_broken_picture_is_named_and_nothing_else_is_lost(clip, shapes, tmp_path, caplog):
    whole, _ = cache(clip, shapes, tmp_path)
    (tmp_path / "img" / "shape_4.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "img" / "shape_7.png").unlink()
    path, failed = cache(clip, shapes, tmp_path, output="b.h5")
    assert list(failed) == ["shape_4", "shape_7"]
    assert "not a whole picture" in failed["shape_4"]
    assert "missing" in failed["shape_7"]
    assert "shape_4.png: not a whole picture" in caplog.text
    others = [key for key in shapes.ids if key not in failed]
    torch.testing.assert_close(
        FeatureFile(str(path), "id").take(others), FeatureFile(str(whole), "id").take(others)
    )
    with pytest.raises(InputError, match=r"no feature for 2 of 9 keys.*'shape_4' \(.*whole pict"):
        FeatureFile(str(path), "id").take(shapes.ids)
    assert cache(clip, shapes, tmp_path, output="b.h5")[1] == failed  # complete: read, not made


def test_an_interrupted_run_loses_no_finished_batch(clip, shapes, tmp_path, monkeypatch):
    whole, _ = cache(clip, shapes, tmp_path)
    encoded, stop = [], 2

    def encode(self, pixels, original=OpenClip.encode_images):
        if len(encoded) == stop:
            raise KeyboardInterrupt
        encoded.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(OpenClip, "encode_images", encode)
    with pytest.raises(KeyboardInterrupt):
        cache(clip, shapes, tmp_path, output="b.h5", batch_size=2)
    assert not (tmp_path / "b.h5").exists()
    encoded.clear()
    stop = None
    path, _ = cache(clip, shapes, tmp_path, output="b.h5", batch_size=2)
    assert encoded == [2, 2, 1]
    torch.testing.assert_close(
        FeatureFile(str(path), "id").take(shapes.ids),
        FeatureFile(str(whole), "id").take(shapes.ids),
    )
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["a.h5", "b.h5"]


def test_what_does_not_belong_together_is_refused(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path)
    with pytest.raises(InputError, match=r"a\.h5: its images is DatasetImages, 0 crops .* 2 crops"):
        cache(clip, shapes, tmp_path, crops=2)
    shapes.name = "others"
    with pytest.raises(InputError, match=r"its dataset is shapes, not others"):
        cache(clip, shapes, tmp_path)
    with pytest.raises(InputError, match=r"features of shapes .*but the clouds are others"):
        Targets(["image"], shapes, TextBank(str(path)), str(path))
    shapes.name = "shapes"
    shapes.ids[8] = shapes.ids[2]
    with pytest.raises(InputError, match="1 ids are of two shapes, the first is 'shape_2'"):
        cache(clip, shapes, tmp_path, output="b.h5")
    shapes.ids[8] = "new"
    with pytest.raises(InputError, match="no feature for 1 of 9 keys, the first is 'new'"):
        Targets(["image"], shapes, TextBank(str(path)), str(path))
    with h5py.File(path, "r+") as file:
        file.attrs["weights"] = "0"
    other, _ = cache(clip, Shapes(9), tmp_path, output="c.h5")
    with pytest.raises(InputError, match="of other weights of"):
        Targets(["image"], Shapes(9), TextBank(str(other)), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.h5: not a whole HDF5 file"):
        Targets(["image"], shapes, TextBank(str(other)), str(path))
    with pytest.raises(InputError, match=r"a\.h5: damaged"):
        cache(clip, Shapes(9), tmp_path)


def test_where_nothing_can_be_written(clip, shapes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written .*choose output="):
        cache(clip, shapes, tmp_path, output="file/a.h5")


def test_primitives_of_another_seed_are_not_mistaken(clip, tmp_path):
    sources = [Primitives("train", 1, s, 64, ["chair"]) for s in (0, 1)]
    path = tmp_path / "a.h5"
    caching.cache(clip, sources[0], Rendered(sources[0], Renderer(size=32)), PROMPTS, path)
    bank = TextBank(str(path))
    assert Targets(["image", "text"], sources[0], bank, str(path)).statistics()[0].shape == (2, 12)
    with pytest.raises(InputError, match="features of primitives split train, seed 0"):
        Targets(["image"], sources[1], bank, str(path))


def script(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def test_from_a_killed_cache_to_a_trained_model(folder, tmp_path):
    """The scripts, as a user runs them: cache, killed and started again; pre-train; evaluate."""
    data = ["data=primitives", "data.train.per_class=12", "data.train.classes=[chair,sofa,mug]",
            "data.train.num_points=128"]  # fmt: skip
    options = [*data, f"clip.model=local-dir:{folder}", "images=render", "renderer.size=32",
               "batch_size=1", "workers=1", "prompts=name", "output=features.h5",
               "pictures=2"]  # fmt: skip
    job = script("cache_teacher", *options, cwd=tmp_path)
    while job.poll() is None and not (tmp_path / "features.h5.begun").exists():
        time.sleep(0.02)
    time.sleep(1)
    job.send_signal(signal.SIGKILL)
    job.wait()
    job = script("cache_teacher", *options, cwd=tmp_path)
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output[-2000:]
    assert "3 names × 1 prompts, 36 shapes, 0 failed" in output
    assert (tmp_path / "runs" / "cache_teacher" / "pictures" / "views.png").exists()
    features = FeatureFile(str(tmp_path / "features.h5"), "id").features
    assert (np.abs(features).sum((1, 2)) > 0).all()
    train = [*data, "teacher=cached", "teacher.path=features.h5", "model=tiny", "name=f2",
             "model.feature_types=[image,text]", "data.num_points=128", "optim.epochs=2",
             "optim.batch_size=6", "optim.warmup_epochs=1", "workers=0", "threads=1",
             "eval.num_noise=[1]", "eval.timestep=[0]", "eval.seeds=[0]",
             "data.tests=[]"]  # fmt: skip
    job = script("pretrain", *train, cwd=tmp_path)
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output[-2000:]
    config = json.loads((tmp_path / "runs" / "f2" / "model" / "config.json").read_text())
    assert config["feature_types"] == ["image", "text"]
