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

from dual_denoising.clip import cache as caching
from dual_denoising.clip.features import FeatureFile, Targets, TextBank
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import DatasetImages, Rendered, Renderer
from dual_denoising.data.primitives import Primitives
from dual_denoising.errors import InputError

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

    seed = 0

    def __init__(self, count, classes=("night_stand", "sofa")):
        self.class_names, self.labels = list(classes), np.arange(count) % len(classes)
        self.ids = [f"shape_{i}" for i in range(count)]

    def read(self, index):
        return np.random.default_rng((self.seed, index)).normal(size=(20, 3))


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
    with_workers = tmp_path / "b.h5"
    caching.cache(clip, source, pictures, PROMPTS, with_workers, batch_size=1, workers=2)
    np.testing.assert_allclose(
        FeatureFile(str(with_workers), "id").features, images.features, atol=1e-5
    )


class Ramp:
    """One picture that brightens to the right."""

    ids = ("a", "b")

    def __getitem__(self, index):
        ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 64, 3))
        return [Image.fromarray(np.ascontiguousarray(ramp))]


def test_crops_are_variants_of_their_view(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path, crops=3)
    features = FeatureFile(str(path), "id").features
    assert features.shape == (9, 3, 12)
    assert len(np.unique(features[0].round(5), axis=0)) == 3
    pixels = caching.Pixels(DatasetImages(shapes, str(tmp_path / "img")), clip.preprocess, 32, 40)
    flips = [pixels[i][1] for i in (0, 1)]
    corners = [  # the same picture for both shapes: other crops, flipped and not
        caching.Pixels(Ramp(), clip.preprocess, 32, 40)[index][1]
        .diff(dim=-1)
        .mean((1, 2, 3))
        .sign()
        for index in (0, 1)
    ]
    assert all(0.2 < (corner > 0).float().mean() < 0.8 for corner in corners)
    assert not torch.equal(*corners)
    assert not torch.equal(*flips)
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
    assert cache(clip, shapes, tmp_path, output="b.h5")[1] == failed  # tried again, in vain
    rng = np.random.default_rng(1)
    for key in failed:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(
            tmp_path / "img" / f"{key}.png"
        )
    assert cache(clip, shapes, tmp_path, output="b.h5")[1] == {}  # mended: only those two are made
    mended = FeatureFile(str(path), "id")
    torch.testing.assert_close(mended.take(others), FeatureFile(str(whole), "id").take(others))
    pixels = clip.preprocess(Image.open(tmp_path / "img" / "shape_7.png"))[None]
    torch.testing.assert_close(mended.take(["shape_7"])[0], clip.encode_images(pixels))
    (tmp_path / "img" / "shape_0.png").write_bytes((tmp_path / "img" / "shape_1.png").read_bytes())
    path, _ = cache(clip, shapes, tmp_path, output="b.h5")  # another picture: made again
    both = FeatureFile(str(path), "id").take(["shape_0", "shape_1"])
    torch.testing.assert_close(both[0], both[1])


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


class Counting:
    """A CLIP that counts the pictures it encodes."""

    def __init__(self, clip):
        self.clip, self.count = clip, 0

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def encode_images(self, pixels):
        self.count += len(pixels)
        return self.clip.encode_images(pixels)


def test_what_is_still_the_same_is_kept_when_shapes_change(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path)
    before = FeatureFile(str(path), "id")
    other, counting = Shapes(9), Counting(clip)
    other.ids[3] = "new"
    other.class_names = ["bed", "sofa"]
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "img" / "new.png")
    assert cache(counting, other, tmp_path)[1] == {}
    assert counting.count == 1
    after = FeatureFile(str(path), "id")
    kept = [key for key in shapes.ids if key != "shape_3"]
    assert torch.equal(after.take(kept), before.take(kept))
    assert "shape_3" not in after.rows
    Targets(["image", "text"], other, TextBank(str(path)), str(path))
    other.seed = 1  # every shape is another
    assert cache(counting, other, tmp_path)[1] == {}
    assert counting.count == 10


def test_a_feature_that_is_not_finite_fails_its_shape_alone(clip, shapes, tmp_path):
    class Overflowing(Counting):
        def encode_images(self, pixels):
            features = super().encode_images(pixels).clone()
            features[1:2] = torch.inf
            return features

    path, failed = cache(Overflowing(clip), shapes, tmp_path)
    assert set(failed) == {"shape_1", "shape_5"}  # the second of each whole batch of four
    assert failed["shape_1"] == "its features are not finite in fp32"
    assert cache(clip, shapes, tmp_path)[1] == {}
    assert FeatureFile(str(path), "id").take(shapes.ids).isfinite().all()


def test_what_does_not_belong_together_is_refused(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path)
    with pytest.raises(InputError, match=r"a\.h5: its images is pictures of .*img, not .*2 crops"):
        cache(clip, shapes, tmp_path, crops=2)
    other = Shapes(9)
    other.name = "others"
    with pytest.raises(InputError, match="its dataset is shapes, not others"):
        cache(clip, other, tmp_path)
    for changed in ({"up": "z"}, {"seed": 1}):
        other = Shapes(9)
        vars(other).update(changed)
        with pytest.raises(InputError, match="'shape_0' was another shape when its features"):
            Targets(["image"], other, TextBank(str(path)), str(path))
    pictures = DatasetImages(shapes, str(tmp_path / "img"))
    with pytest.raises(InputError, match="its prompts is"):
        caching.cache(clip, shapes, pictures, ["{}"], path)
    with h5py.File(path) as file:
        keys = set(file.attrs)
    assert keys == {"model", "pretrained", "weights", "precision", "preprocess", "prompts",
                    "dataset", "images", "classes_and_ids", "shapes"}  # fmt: skip
    for key in keys - {"prompts", "images", "dataset", "classes_and_ids", "shapes"}:
        with h5py.File(path, "r+") as file:
            kept, file.attrs[key] = file.attrs[key], "other"
        with pytest.raises(InputError, match=f"its {key} is other, not"):
            cache(clip, shapes, tmp_path)
        with h5py.File(path, "r+") as file:
            file.attrs[key] = kept
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)  # fmt: skip
    other.stdout.readline()
    with pytest.raises(InputError, match="another run is writing it"):
        cache(clip, shapes, tmp_path)
    other.communicate(b"\n")
    with pytest.raises(InputError, match="img: a folder; choose a file"):
        cache(clip, shapes, tmp_path, output="img")
    for wrong in ({"batch_size": 0}, {"workers": -1}, {"crops": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
            cache(clip, shapes, tmp_path, output="b.h5", **wrong)
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
    with pytest.raises(InputError, match=r"a\.h5: not written .*choose output="):
        cache(clip, shapes, tmp_path, output="file/a.h5")


FULL_DISK = """
import resource, sys
from tests.test_caching import *
folder, images, output, room = sys.argv[1:]
shapes = Shapes(9)
clip = OpenClip(f"local-dir:{folder}")
clip.tower
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
try:
    caching.cache(clip, shapes, DatasetImages(shapes, images), PROMPTS, Path(output), 2)
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_said_in_one_line(folder, shapes, tmp_path):
    for room in (0, 3000, 9000):
        job = subprocess.run(
            [sys.executable, "-c", FULL_DISK, folder, tmp_path / "img", tmp_path / "a.h5",
             str(room)], cwd=ROOT, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert job.returncode == 0, job.stderr[-2000:]
        assert "a.h5: not written" in job.stdout
        assert not (tmp_path / "a.h5").exists()


KILLED = """
import sys
from tests.test_caching import *
folder, images, output = sys.argv[1:]
shapes = Shapes(9)
print("ready", flush=True)
caching.cache(OpenClip(f"local-dir:{folder}"), shapes, DatasetImages(shapes, images), PROMPTS,
              Path(output), 1)
"""


def test_a_kill_while_shapes_fail_loses_nothing(clip, folder, shapes, tmp_path):
    for i in (1, 2, 4, 5, 7):
        (tmp_path / "img" / f"shape_{i}.png").write_bytes(b"broken")
    whole, failed = cache(clip, shapes, tmp_path, output="whole.h5")
    rng = np.random.default_rng(0)
    for attempt in range(4):
        path = tmp_path / f"{attempt}.h5"
        job = subprocess.Popen(
            [sys.executable, "-c", KILLED, folder, tmp_path / "img", path], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        job.stdout.readline()
        while job.poll() is None and not path.with_name(f"{attempt}.h5.begun").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        job.kill()
        job.wait()
        assert cache(clip, shapes, tmp_path, output=path.name)[1] == failed
        kept = [key for key in shapes.ids if key not in failed]
        torch.testing.assert_close(
            FeatureFile(str(path), "id").take(kept), FeatureFile(str(whole), "id").take(kept)
        )


def test_primitives_of_another_seed_are_not_mistaken(clip, tmp_path):
    sources = [Primitives("train", 1, s, 64, ["chair"]) for s in (0, 1)]
    path = tmp_path / "a.h5"
    caching.cache(clip, sources[0], Rendered(sources[0], Renderer(size=32)), PROMPTS, path)
    bank = TextBank(str(path))
    assert Targets(["image", "text"], sources[0], bank, str(path)).statistics()[0].shape == (2, 12)
    with pytest.raises(InputError, match="'chair_0000' was another shape"):
        Targets(["image"], sources[1], bank, str(path))


def script(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


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
    os.killpg(job.pid, signal.SIGKILL)  # a reader that is still starting never learns of it
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
