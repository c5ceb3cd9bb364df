"""open_clip's real two towers, tiny, with weights in local files."""

import copy
import json
import logging
import os

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from dual_denoising.clip.features import TextBank, class_weights, read_prompts
from dual_denoising.clip.towers import OpenClip, OpenClipText
from dual_denoising.data import ASSETS
from dual_denoising.errors import InputError
from tests.conftest import assert_refuses

TINY = {
    "embed_dim": 12,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A registered tiny model and the file of its random weights."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip", force_quick_gelu=True)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return model.eval(), folder / "tiny.pt"


def encoder(tower, tmp_path, **fields):
    own = {"model": "tiny-clip", "pretrained": "openai", "weights": str(tower[1])}
    return OpenClipText(**own | {"prompts": "pointclip", "cache": str(tmp_path / "cache")} | fields)


@torch.no_grad()
def direct(model, texts):
    return model.encode_text(open_clip.get_tokenizer("tiny-clip")(texts))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (50, 70, 3), np.uint8)) for _ in range(3)]


def teacher(tower, **fields):
    fields = {"model": "tiny-clip", "pretrained": "openai", "weights": str(tower[1])} | fields
    return OpenClip(**fields)


@torch.no_grad()
def test_both_towers_are_open_clips_own(tower, pictures):
    clip = teacher(tower)
    own = open_clip.image_transform(
        32, is_train=False, mean=clip.tower.visual.image_mean, std=clip.tower.visual.image_std
    )
    pixels = torch.stack([own(picture) for picture in pictures])
    assert torch.equal(torch.stack([clip.preprocess(picture) for picture in pictures]), pixels)
    torch.testing.assert_close(clip.encode_images(pixels), tower[0].encode_image(pixels))
    torch.testing.assert_close(clip.encode_texts(["a bed"]), direct(tower[0], ["a bed"]))
    assert not clip.tower.training
    assert not any(p.requires_grad for p in clip.tower.parameters())
    rough = teacher(tower, precision="bf16").encode_images(pixels)
    assert rough.dtype == torch.float32
    similarity = torch.cosine_similarity(rough, clip.encode_images(pixels))
    assert (similarity > 0.99).all()
    assert_refuses("precision is 'int8'", teacher, tower, precision="int8")


def test_folders_are_known_by_their_content(tower, tmp_path, pictures):
    folder = tmp_path / "micro"
    folder.mkdir()
    config = {"model_cfg": TINY | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tower[0].state_dict(), folder / "open_clip_model.safetensors")
    clip = OpenClip(f"local-dir:{folder}")
    torch.testing.assert_close(clip.encode_texts(["a bed"]), direct(tower[0], ["a bed"]))
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert torch.equal(clip.preprocess(pictures[0]), preprocess(pictures[0]))
    name, version = clip.names
    assert name == "micro"
    assert OpenClip(f"local-dir:{folder}/").names == (name, version)
    assert clip.weights_hash == teacher(tower).weights_hash
    text = OpenClipText(f"local-dir:{folder}", prompts="name", cache=str(tmp_path / "cache"))
    assert text.teacher == f"micro/{version}"
    state = {key: value + 1 for key, value in tower[0].state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    assert OpenClip(f"local-dir:{folder}").names[1] != version
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="local-dir"):
        _ = OpenClip(f"local-dir:{folder}").tower
    assert_refuses("local-dir", OpenClip, f"local-dir:{tmp_path}")
    assert_refuses("weights", OpenClip, f"local-dir:{folder}", weights=str(tower[1]))


def test_local_weights_are_treated_as_their_tag_says(tower, monkeypatch, pictures):
    """A tag's own preprocessing and activation count, whether its weights are downloaded or not."""
    look = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    look |= {"resize_mode": "squash", "interpolation": "bilinear"}
    tag = look | {"quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag)
    clip = teacher(tower, pretrained="some_tag")
    own = open_clip.image_transform(32, is_train=False, **look)
    assert torch.equal(clip.preprocess(pictures[0]), own(pictures[0]))
    torch.testing.assert_close(clip.encode_texts(["a bed"]), direct(tower[0], ["a bed"]))


def test_a_download_that_fails_is_one_line(capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        open_clip.factory,
        "download_pretrained",
        lambda *_, **__: logging.getLogger("huggingface_hub").warning("Retrying") or 1 / 0,
    )
    with pytest.raises(InputError, match="ViT-B-32/openai") as error:
        _ = OpenClip().tower
    assert "\n" not in str(error.value)
    assert "Retrying" not in capfd.readouterr().err


# ---- QuickGELU: x·sigmoid(1.702 x) for weights that were trained with it ----


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openais_weights_get_quickgelu_however_they_come(tmp_path):
    tiny = {
        "embed_dim": 12,
        "vision_cfg": TINY["vision_cfg"] | {"head_width": 64},
        "text_cfg": TINY["text_cfg"] | {"width": 64, "heads": 1},
    }
    (tmp_path / "openai-tiny.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(tmp_path / "openai-tiny.json")
    torch.manual_seed(0)
    quick = open_clip.create_model("openai-tiny", force_quick_gelu=True).half().float().eval()
    torch.save(quick.state_dict(), tmp_path / "plain.pt")
    archive, given = copy.deepcopy(quick), (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77).long())
    archive.attn_mask = None  # as of OpenAI's archives, it holds weights alone
    torch.jit.trace(archive, given, check_trace=False).save(tmp_path / "archive.pt")
    ways = [("plain.pt", "openai"), ("archive.pt", "openai"), ("archive.pt", "mine")]
    for weights, pretrained in ways:
        clip = OpenClip("openai-tiny", pretrained, str(tmp_path / weights))
        torch.testing.assert_close(clip.encode_texts(["a bed"]), direct(quick, ["a bed"]))
    other = OpenClip("openai-tiny", "mine", str(tmp_path / "plain.pt"))
    slow = open_clip.create_model("openai-tiny").eval()
    slow.load_state_dict(quick.state_dict())
    found = other.encode_texts(["a bed"])
    torch.testing.assert_close(found, direct(slow, ["a bed"]))
    assert (found - direct(quick, ["a bed"])).abs().max() > 1e-4  # they are told apart


def test_class_weights_are_open_clips_own(tower, tmp_path):
    templates = [lambda name, p=p: p.replace("{}", name) for p in read_prompts("ulip64")]
    expected = open_clip.build_zero_shot_classifier(
        tower[0], open_clip.get_tokenizer("tiny-clip"), ["bed", "sofa"], templates
    )
    features = encoder(tower, tmp_path, prompts="ulip64").lookup(["bed", "sofa"])
    torch.testing.assert_close(class_weights(features), expected.T, atol=1e-5, rtol=1e-4)
    (kept,) = encoder(tower, tmp_path).lookup(["night_stand"], underscores=True)
    expected = direct(tower[0], ["point cloud depth map of a night_stand."])
    torch.testing.assert_close(kept, expected)


def test_raw_sum_weights_sum_raw_features():
    features = torch.tensor([[[3.0, 0], [0, 1]], [[1, 0], [1, 0]]])
    expected = torch.tensor([[3.0, 1], [2, 0]]) / torch.tensor([[10**0.5], [2]])
    torch.testing.assert_close(class_weights(features, raw_sum=True), expected)
    assert class_weights(features)[0].tolist() == pytest.approx([0.5**0.5] * 2)


def test_the_cache_is_keyed_by_content_and_is_a_bank(tower, tmp_path, monkeypatch):
    first = encoder(tower, tmp_path).lookup(["bed", "sofa"])
    (path,) = (tmp_path / "cache").iterdir()
    bank = TextBank(str(path), prompts="pointclip")
    assert bank.weights == teacher(tower).weights_hash == encoder(tower, tmp_path).weights
    assert bank.teacher == "tiny-clip/openai"
    torch.testing.assert_close(bank.lookup(["sofa"])[0], first[1])
    with monkeypatch.context() as patch:
        patch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("encoded again"))
        torch.testing.assert_close(encoder(tower, tmp_path).lookup(["bed", "sofa"]), first)
    for fields, names in (({}, ["bed", "desk"]), ({"prompts": "name"}, ["bed", "sofa"])):
        encoder(tower, tmp_path, **fields).lookup(names)
    other = torch.load(tower[1])
    other["text_projection"] += 1
    torch.save(other, tmp_path / "other.pt")
    changed = encoder(tower, tmp_path, weights=str(tmp_path / "other.pt")).lookup(["bed", "sofa"])
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert not torch.allclose(changed, first)


def test_what_cannot_be_loaded_is_named(tower, tmp_path):
    assert_refuses("ViT-Z", encoder, tower, tmp_path, model="ViT-Z")
    assert_refuses(r"none\.pt", encoder, tower, tmp_path, weights=str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.pt"):
        encoder(tower, tmp_path, weights=str(tmp_path / "bad.pt")).lookup(["bed"])
    assert not (tmp_path / "cache").exists()


def test_prompt_sets():
    sets = {path.stem: read_prompts(path.stem) for path in (ASSETS / "prompts").glob("*.txt")}
    counts = {name: len(set(lines)) for name, lines in sets.items()}
    expected = {"a_name": 1, "name": 1, "pointclip": 1, "micro": 9, "recon60": 60, "ulip64": 64}
    assert counts == expected
    kinds = "model,image,3D model,rendering model,point cloud,point cloud model,3D rendering model"
    kinds += ",rendering image,3D rendering image"
    heads = ["", "A "] + [f"A {k} of {a}" for k in kinds.split(",") for a in ("", "a ")]
    tails = [".", " with white background.", " with black context."]
    assert set(sets["recon60"]) == {f"{head}{{}}{tail}" for head in heads for tail in tails}


def test_own_prompts_need_one_place_for_the_name(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("ein {} aus Holz.\r\n\r\n{}\r\n", encoding="utf-8")
    assert read_prompts(str(path)) == ["ein {} aus Holz.", "{}"]
    path.write_text("a thing\n")
    assert_refuses(r"own\.txt: 'a thing'", read_prompts, str(path))
    assert_refuses("a_name, micro, name, pointclip, recon60, ulip64", read_prompts, "clip80")


def test_the_repositorys_clip_has_the_name_and_hash_that_checkpoints_and_caches_record():
    clip = OpenClip("local-dir:data/micro_clip")
    assert clip.names == ("micro_clip", "e943b7b8d009")
    assert clip.weights_hash.startswith("65d0cb7518ba")


@pytest.mark.skipif(
    "DUAL_DENOISING_CLIP" not in os.environ,
    reason=("DUAL_DENOISING_CLIP is unset: no file of OpenAI's CLIP ViT-B/32"),
)
def test_the_shipped_bank_is_what_open_clip_gives(tmp_path):
    weights = os.environ["DUAL_DENOISING_CLIP"]
    text = OpenClipText(weights=weights, prompts="a_name", cache=str(tmp_path))
    bank = TextBank("data/clip_text/clip_vitb32_openai_text.h5")
    names = bank.names[::20]
    cosine = text.class_weights(names) @ bank.class_weights(names).T
    assert (cosine.argmax(1) == torch.arange(len(names))).all()
    assert cosine.diag().min() > 0.99
