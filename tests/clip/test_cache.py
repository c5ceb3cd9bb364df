"""Caches of teacher features: content, restarts, faults, and pre-training from them."""

import json

import h5py
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from dual_denoising.clip import cache as caching
from dual_denoising.clip.cache import DatasetImages, Rendered
from dual_denoising.clip.features import FeatureFile, TextBank
from dual_denoising.clip.targets import Targets
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import Renderer
from dual_denoising.data.primitives import Primitives
from dual_denoising.data.sources import Source
from dual_denoising.errors import InputError
from tests.clip.test_towers import TINY

PROMPTS = ["a {}.", "{} model"]


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


class Shapes(Source):
    """A source of ids and class names."""

    name, split, up, origin = "shapes", "train", "y", "here"

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
    caching.cache(clip, source, pictures, PROMPTS, with_workers, batch_size=1, workers=1)
    np.testing.assert_allclose(
        FeatureFile(str(with_workers), "id").features, images.features, atol=1e-5
    )


class Ramp(Shapes):
    """One picture that brightens to the right."""

    source = property(lambda self: self)

    def __getitem__(self, index):
        ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 64, 3))
        return [Image.fromarray(np.ascontiguousarray(ramp))]


def test_crops_are_variants_of_their_view(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path, crops=3)
    features = FeatureFile(str(path), "id").features
    assert features.shape == (9, 3, 12)
    assert len(np.unique(features[0].round(5), axis=0)) == 3
    pixels = caching.Pixels(Ramp(2), clip, 40)  # the same picture for both shapes
    rises = [pixels[i].diff(dim=-1).mean((1, 2, 3)).sign() for i in (0, 1)]
    assert all(0.2 < (rise > 0).float().mean() < 0.8 for rise in rises)  # flipped and not
    assert not torch.equal(*rises)
    assert not FeatureFile(str(path), "id").whole_views
    assert FeatureFile(str(cache(clip, shapes, tmp_path, output="c.h5")[0]), "id").whole_views
    again, _ = cache(clip, shapes, tmp_path, output="b.h5", crops=3, batch_size=2)
    np.testing.assert_allclose(FeatureFile(str(again), "id").features, features, atol=1e-5)


def test_whole_views_are_named_where_they_are_distilled(clip, shapes, tmp_path, caplog):
    path, _ = cache(clip, shapes, tmp_path)
    Targets(["image"], shapes, TextBank(str(path)), str(path))
    assert "whole views" in caplog.text


def test_a_broken_picture_is_named_and_nothing_else_is_lost(clip, shapes, tmp_path, caplog):
    whole, _ = cache(clip, shapes, tmp_path)
    (tmp_path / "img" / "shape_4.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "img" / "shape_7.png").unlink()
    path, failed = cache(clip, shapes, tmp_path, output="b.h5")
    assert list(failed) == ["shape_4", "shape_7"]
    assert "shape_4.png" in failed["shape_4"]
    assert "shape_4.png" in caplog.text
    others = [key for key in shapes.ids if key not in failed]
    torch.testing.assert_close(
        FeatureFile(str(path), "id").take(others), FeatureFile(str(whole), "id").take(others)
    )
    with pytest.raises(InputError, match=r"2 of 9 keys.*'shape_4'"):
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
    encoded, stop, picture = [], 2, tmp_path / "img" / "shape_1.png"
    content = picture.read_bytes()
    picture.write_bytes(b"broken")

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
    failed = cache(clip, shapes, tmp_path, output="b.h5", batch_size=2)[1]
    assert list(failed) == ["shape_1"]
    assert encoded == [1, 2, 2]
    encoded.clear()
    picture.write_bytes(content)
    path, _ = cache(clip, shapes, tmp_path, output="b.h5", batch_size=2)
    assert encoded == [1]  # the mended one alone
    torch.testing.assert_close(
        FeatureFile(str(path), "id").take(shapes.ids),
        FeatureFile(str(whole), "id").take(shapes.ids),
    )
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["a.h5", "b.h5"]


class Overflowing:
    """A CLIP whose second feature of every batch is infinite."""

    def __init__(self, clip):
        self.clip = clip

    def __getattr__(self, name):
        return getattr(self.clip, name)

    def encode_images(self, pixels):
        features = self.clip.encode_images(pixels).clone()
        features[1:2] = torch.inf
        return features


def test_a_feature_that_is_not_finite_fails_its_shape_alone(clip, shapes, tmp_path):
    path, failed = cache(Overflowing(clip), shapes, tmp_path)
    assert set(failed) == {"shape_1", "shape_5"}  # the second of each whole batch of four
    assert cache(clip, shapes, tmp_path)[1] == {}
    assert FeatureFile(str(path), "id").take(shapes.ids).isfinite().all()


def test_changed_shapes_are_made_again(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path)
    before = FeatureFile(str(path), "id")
    other = Shapes(9)
    other.ids[3], other.class_names = "new", ["bed", "sofa"]
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "img" / "new.png")
    assert cache(clip, other, tmp_path)[1] == {}
    after = FeatureFile(str(path), "id")
    kept = [key for key in shapes.ids if key != "shape_3"]
    torch.testing.assert_close(after.take(kept), before.take(kept))
    assert "shape_3" not in after.rows
    Targets(["image", "text"], other, TextBank(str(path)), str(path))


def test_what_does_not_belong_together_is_refused(clip, shapes, tmp_path):
    path, _ = cache(clip, shapes, tmp_path)
    bank, img = TextBank(str(path)), str(tmp_path / "img")
    other = Shapes(9)
    other.name = "others"
    (tmp_path / "file").write_text("")
    for field, call in (
        ("not written", lambda: cache(clip, shapes, tmp_path, output="file/a.h5")),
        ("images", lambda: cache(clip, shapes, tmp_path, crops=2)),
        ("dataset", lambda: cache(clip, other, tmp_path)),
        ("prompts", lambda: caching.cache(clip, shapes, DatasetImages(shapes, img), ["{}"], path)),
        ("img", lambda: cache(clip, shapes, tmp_path, output="img")),
        ("batch_size", lambda: cache(clip, shapes, tmp_path, output="b.h5", batch_size=0)),
        ("workers", lambda: cache(clip, shapes, tmp_path, output="b.h5", workers=-1)),
        ("crops", lambda: cache(clip, shapes, tmp_path, output="b.h5", crops=-1)),
    ):
        with pytest.raises(InputError, match=field):
            call()
    for changed in ({"up": "z"}, {"seed": 1}):
        moved = Shapes(9)
        vars(moved).update(changed)
        with pytest.raises(InputError, match="'shape_0'"):
            Targets(["image"], moved, bank, str(path))
    for key in ("model", "pretrained", "weights", "precision", "preprocess"):
        with h5py.File(path, "r+") as file:
            kept, file.attrs[key] = file.attrs[key], "other"
        with pytest.raises(InputError, match=key):
            cache(clip, shapes, tmp_path)
        with h5py.File(path, "r+") as file:
            file.attrs[key] = kept
    shapes.ids[8] = shapes.ids[2]
    with pytest.raises(InputError, match="'shape_2'"):
        cache(clip, shapes, tmp_path, output="b.h5")
    shapes.ids[8] = "new"
    with pytest.raises(InputError, match="'new'"):
        Targets(["image"], shapes, bank, str(path))
    with h5py.File(path, "r+") as file:
        file.attrs["weights"] = "0"
    second, _ = cache(clip, Shapes(9), tmp_path, output="c.h5")
    with pytest.raises(InputError, match="weights"):
        Targets(["image"], Shapes(9), TextBank(str(second)), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for call in (
        lambda: Targets(["image"], shapes, TextBank(str(second)), str(path)),
        lambda: cache(clip, Shapes(9), tmp_path),
    ):
        with pytest.raises(InputError, match=r"a\.h5"):
            call()


def test_from_cached_features_to_a_trained_model(folder, tmp_path, call):
    """The scripts, as a user runs them: cache, then pre-train on the file."""
    data = "data=primitives data.train.per_class=6 data.train.classes=[chair,sofa,mug]"
    data += " data.train.num_points=128"
    call(
        f"cache_teacher {data} clip.model=local-dir:{folder} images=render renderer.size=32"
        " workers=0 prompts=name output=features.h5 pictures=2"
    )
    run = tmp_path / "runs" / "cache_teacher"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["names"], summary["shapes"], summary["failed"]) == (3, 18, 0)
    assert (run / "pictures" / "views.png").exists()
    features = FeatureFile(str(tmp_path / "features.h5"), "id").features
    assert (np.abs(features).sum((1, 2)) > 0).all()
    call(
        f"pretrain {data} teacher=cached teacher.path=features.h5 model=tiny name=f2 workers=0"
        " model.feature_types=[image,text] data.num_points=128 optim.epochs=1 optim.batch_size=6"
        " optim.warmup_epochs=1 threads=1 data.tests=[] data.validation=null"
    )
    config = json.loads((tmp_path / "runs" / "f2" / "model" / "config.json").read_text())
    assert config["feature_types"] == ["image", "text"]
