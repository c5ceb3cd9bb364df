"""Caches of teacher features: content, restarts, faults, and pre-training from them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dual_denoising.clip import cache as caching
from dual_denoising.clip.cache import DatasetImages, Rendered
from dual_denoising.clip.features import TextBank
from dual_denoising.clip.targets import Targets
from dual_denoising.clip.towers import OpenClip
from dual_denoising.clip.views import Renderer
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.primitives import Primitives
from dual_denoising.data.sources import ArraySource
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses

MICRO, PROMPTS = "local-dir:data/micro_clip", ["a {}.", "{} model"]


@pytest.fixture(scope="module")
def clip():
    return OpenClip(MICRO)


def nine(seed=0):
    """Nine shapes of two names."""
    clouds = [np.random.default_rng((seed, i)).normal(size=(20, 3)) for i in range(9)]
    ids, names = [f"shape_{i}" for i in range(9)], ["night_stand", "sofa"]
    return ArraySource("shapes", "train", "y", names, np.arange(9) % 2, ids, "here", clouds)


def draw_noise(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def shapes(tmp_path):
    """Nine shapes with pictures."""
    (tmp_path / "img").mkdir()
    for i in range(9):
        draw_noise(tmp_path / "img" / f"shape_{i}.png", seed=i)
    return nine()


@pytest.fixture
def cached(clip, shapes, tmp_path):
    """Caches the shapes' pictures: cached(output, field=value, ...) -> the file, what failed."""

    def run(output="a.h5", source=shapes, prompts=PROMPTS, batch_size=4, **fields):
        pictures = DatasetImages(source, str(tmp_path / "img"))
        path, fields = tmp_path / output, fields | {"batch_size": batch_size}
        return path, caching.cache(clip, source, pictures, prompts, path, **fields)

    return run


def images_of(path):
    return FeatureFile(str(path), "id")


def test_files_hold_the_towers_features_of_every_view_and_prompt(clip, tmp_path):
    source = Primitives("train", 2, classes=["chair", "night_stand"], num_points=64)
    pictures = Rendered(source, Renderer([(0, 0), (90, 20), (200, 40)], size=40))
    path = tmp_path / "a.h5"
    assert caching.cache(clip, source, pictures, PROMPTS, path, batch_size=3) == {}
    images = images_of(path)
    assert images.features.shape == (4, 3, clip.width)
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
        assert file.attrs["images"] == pictures.title != str(Renderer(size=40))  # other cameras
    with_workers = tmp_path / "b.h5"
    caching.cache(clip, source, pictures, PROMPTS, with_workers, batch_size=1, workers=1)
    np.testing.assert_allclose(images_of(with_workers).features, images.features, atol=1e-5)


def test_crops_are_variants_of_their_view(cached, clip):
    path, _ = cached(crops=3)
    features = images_of(path).features
    assert features.shape == (9, 3, clip.width)
    assert len(np.unique(features[0].round(5), axis=0)) == 3
    ramp = Image.fromarray(np.tile(3 * np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    pixels = caching.Pixels([[ramp], [ramp]], clip, 40)  # for both the same, brighter to the right
    rises = [pixels[i].diff(dim=-1).mean((1, 2, 3)).sign() for i in (0, 1)]
    assert all(0.2 < (rise > 0).float().mean() < 0.8 for rise in rises)  # flipped and not
    assert not torch.equal(*rises)
    assert not images_of(path).whole_views
    assert images_of(cached("c.h5")[0]).whole_views
    again, _ = cached("b.h5", crops=3, batch_size=2)
    np.testing.assert_allclose(images_of(again).features, features, atol=1e-5)


def test_a_broken_picture_is_named_and_nothing_else_is_lost(cached, clip, shapes, tmp_path, caplog):
    whole, _ = cached()
    (tmp_path / "img" / "shape_4.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "img" / "shape_7.png").unlink()
    path, failed = cached("b.h5")
    assert list(failed) == ["shape_4", "shape_7"]
    assert "shape_4.png" in failed["shape_4"]
    assert "shape_4.png" in caplog.text
    others = [key for key in shapes.ids if key not in failed]
    torch.testing.assert_close(images_of(path).take(others), images_of(whole).take(others))
    with pytest.raises(InputError, match=r"2 of 9 keys.*'shape_4'"):
        images_of(path).take(shapes.ids)
    assert cached("b.h5")[1] == failed  # tried again, in vain
    for seed, key in enumerate(failed, start=10):
        draw_noise(tmp_path / "img" / f"{key}.png", seed)
    assert cached("b.h5")[1] == {}  # mended: only those two are made
    mended = images_of(path)
    torch.testing.assert_close(mended.take(others), images_of(whole).take(others))
    pixels = clip.preprocess(Image.open(tmp_path / "img" / "shape_7.png"))[None]
    torch.testing.assert_close(mended.take(["shape_7"])[0], clip.encode_images(pixels))
    (tmp_path / "img" / "shape_0.png").write_bytes((tmp_path / "img" / "shape_1.png").read_bytes())
    path, _ = cached("b.h5")  # another picture: made again
    both = images_of(path).take(["shape_0", "shape_1"])
    torch.testing.assert_close(both[0], both[1])


def test_an_interrupted_run_loses_no_finished_batch(cached, shapes, tmp_path, monkeypatch):
    whole, _ = cached()
    encoded, stop = [], 2

    def encode(self, pixels, original=OpenClip.encode_images):
        if len(encoded) == stop:
            raise KeyboardInterrupt
        encoded.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(OpenClip, "encode_images", encode)
    with pytest.raises(KeyboardInterrupt):
        cached("b.h5", batch_size=2)
    assert not (tmp_path / "b.h5").exists()
    encoded, stop = [], None
    path, _ = cached("b.h5", batch_size=2)
    assert encoded == [2, 2, 1]  # of nine, four were done
    torch.testing.assert_close(images_of(path).take(shapes.ids), images_of(whole).take(shapes.ids))
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["a.h5", "b.h5"]


def test_a_feature_that_is_not_finite_fails_its_shape_alone(cached, shapes, monkeypatch):
    def overflow(self, pixels, original=OpenClip.encode_images):
        features = original(self, pixels).clone()
        features[1:2] = torch.inf
        return features

    with monkeypatch.context() as patch:
        patch.setattr(OpenClip, "encode_images", overflow)
        path, failed = cached()
    assert set(failed) == {"shape_1", "shape_5"}  # the second of each whole batch of four
    assert cached()[1] == {}
    assert images_of(path).take(shapes.ids).isfinite().all()


def test_changed_shapes_are_made_again(cached, shapes, tmp_path, caplog):
    path, _ = cached()
    before = images_of(path)
    other = nine()
    other.ids[3], other.class_names = "new", ["bed", "sofa"]
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "img" / "new.png")
    assert cached(source=other)[1] == {}
    after = images_of(path)
    kept = [key for key in shapes.ids if key != "shape_3"]
    torch.testing.assert_close(after.take(kept), before.take(kept))
    assert "shape_3" not in after.rows
    Targets(["image", "text"], other, TextBank(str(path)), str(path))
    assert "whole views" in caplog.text


def test_what_does_not_belong_together_is_refused(cached, shapes, tmp_path):
    path, _ = cached()
    other = replace(nine(), name="others")
    (tmp_path / "file").write_text("")
    for field, fields in (
        ("images", {"crops": 2}),
        ("dataset", {"source": other}),
        ("prompts", {"prompts": ["{}"]}),
        ("img", {"output": "img"}),
        ("not written", {"output": "file/a.h5"}),
    ):
        assert_refuses(field, cached, **fields)
    for key in ("model", "pretrained", "weights", "precision", "preprocess"):
        changed = Path(shutil.copy(path, tmp_path / "b.h5"))
        with h5py.File(changed, "r+") as file:
            file.attrs[key] = "other"
        assert_refuses(key, cached, "b.h5")
    shapes.ids[8] = shapes.ids[2]
    assert_refuses("'shape_2'", cached, "c.h5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refuses(r"a\.h5", cached, source=nine())


def test_pictures_of_other_shapes_or_weights_are_no_targets(cached, tmp_path):
    path, _ = cached()
    for moved in (replace(nine(), up="z"), nine(seed=1)):
        assert_refuses("'shape_0'", Targets, ["image"], moved, TextBank(str(path)), str(path))
    others = Path(shutil.copy(path, tmp_path / "b.h5"))
    with h5py.File(others, "r+") as file:
        file.attrs["weights"] = "0"
    assert_refuses("weights", Targets, ["image"], nine(), TextBank(str(path)), str(others))


def test_from_cached_features_to_a_trained_model(tmp_path, call):
    """The scripts, as a user runs them: cache, then pre-train on the file."""
    data = "data=primitives data.train.per_class=6 data.train.classes=[chair,sofa,mug]"
    data += " data.train.num_points=128"
    call(
        f"cache_teacher {data} clip.model={MICRO} images=render renderer.size=32"
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
