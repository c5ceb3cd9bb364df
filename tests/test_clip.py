"""open_clip's real text tower, tiny, with weights in a local file."""

import json

import open_clip
import pytest
import torch

from dual_denoising.clip import OpenClipText
from dual_denoising.data import ASSETS
from dual_denoising.errors import InputError
from dual_denoising.teacher import TextBank, class_weights, read_prompts

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
    return OpenClipText(**{
        "model": "tiny-clip", "pretrained": "openai", "weights": str(tower[1]),
        "prompts": "pointclip", "cache": str(tmp_path / "cache"),
    } | fields)  # fmt: skip


@torch.no_grad()
def direct(model, texts):
    return model.encode_text(open_clip.get_tokenizer("tiny-clip")(texts))


def test_features_are_the_towers_own(tower, tmp_path):
    features = encoder(tower, tmp_path, prompts="recon60").lookup(["night_stand", "sofa"])
    assert features.shape == (2, 60, 12)
    prompts = read_prompts("recon60")
    texts = [prompt.replace("{}", "night stand") for prompt in prompts]
    torch.testing.assert_close(features[0], direct(tower[0], texts))
    (kept,) = encoder(tower, tmp_path).lookup(["night_stand"], keep_underscores=True)
    expected = direct(tower[0], ["point cloud depth map of a night_stand."])
    torch.testing.assert_close(kept, expected)


def test_class_weights_are_open_clips_own(tower, tmp_path):
    templates = [lambda name, p=p: p.replace("{}", name) for p in read_prompts("ulip64")]
    expected = open_clip.build_zero_shot_classifier(
        tower[0], open_clip.get_tokenizer("tiny-clip"), ["bed", "sofa"], templates
    )
    features = encoder(tower, tmp_path, prompts="ulip64").lookup(["bed", "sofa"])
    torch.testing.assert_close(class_weights(features), expected.T, atol=1e-5, rtol=1e-4)


def test_lineage_weights_sum_raw_features():
    features = torch.tensor([[[3.0, 0], [0, 1]], [[1, 0], [1, 0]]])
    expected = torch.tensor([[3.0, 1], [2, 0]]) / torch.tensor([[10**0.5], [2]])
    torch.testing.assert_close(class_weights(features, lineage=True), expected)
    assert class_weights(features)[0].tolist() == pytest.approx([0.5**0.5] * 2)


def test_the_cache_is_keyed_by_content_and_is_a_bank(tower, tmp_path, monkeypatch):
    first = encoder(tower, tmp_path).lookup(["bed", "sofa"])
    (path,) = (tmp_path / "cache").iterdir()
    bank = TextBank(str(path), prompts="pointclip")
    assert bank.teacher == "tiny-clip/openai"
    torch.testing.assert_close(bank.lookup(["sofa"])[0], first[1])
    with monkeypatch.context() as patch:
        patch.setattr(OpenClipText, "_load", lambda self: pytest.fail("encoded again"))
        torch.testing.assert_close(encoder(tower, tmp_path).lookup(["bed", "sofa"]), first)
    for fields, names in (({}, ["bed", "desk"]), ({"prompts": "name"}, ["bed", "sofa"])):
        encoder(tower, tmp_path, **fields).lookup(names)
    other = torch.load(tower[1])
    other["text_projection"] += 1
    torch.save(other, tmp_path / "other.pt")
    changed = encoder(tower, tmp_path, weights=str(tmp_path / "other.pt")).lookup(["bed", "sofa"])
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert not torch.allclose(changed, first)
    path.write_bytes(path.read_bytes()[:100])
    torch.testing.assert_close(encoder(tower, tmp_path).lookup(["bed", "sofa"]), first)


def test_what_cannot_be_loaded_is_named(tower, tmp_path):
    with pytest.raises(InputError, match=r"'ViT-Z': open_clip knows no such model"):
        encoder(tower, tmp_path, model="ViT-Z")
    with pytest.raises(InputError, match=r"none\.pt: no such file"):
        encoder(tower, tmp_path, weights=str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.pt: CLIP weights cannot be loaded"):
        encoder(tower, tmp_path, weights=str(tmp_path / "bad.pt")).lookup(["bed"])
    assert not (tmp_path / "cache").exists()


def test_prompt_sets():
    sets = {path.stem: read_prompts(path.stem) for path in (ASSETS / "prompts").glob("*.txt")}
    assert {name: len(lines) for name, lines in sets.items()} == {
        "recon60": 60, "ulip64": 64, "pointclip": 1, "name": 1,
    }  # fmt: skip
    assert len(set(sets["recon60"])) == 60
    assert len(set(sets["ulip64"])) == 64
    kinds = ("model", "image", "3D model", "rendering model", "point cloud", "point cloud model",
             "3D rendering model", "rendering image", "3D rendering image")  # fmt: skip
    heads = ["", "A "] + [f"A {k} of {a}" for k in kinds for a in ("", "a ")]
    tails = [".", " with white background.", " with black context."]
    assert set(sets["recon60"]) == {f"{head}{{}}{tail}" for head in heads for tail in tails}


def test_own_prompts_need_one_place_for_the_name(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("ein {} aus Holz.\r\n\r\n{}\r\n", encoding="utf-8")
    assert read_prompts(str(path)) == ["ein {} aus Holz.", "{}"]
    path.write_text("a thing\n")
    with pytest.raises(InputError, match=r"own\.txt: 'a thing' must hold {} once"):
        read_prompts(str(path))
    with pytest.raises(InputError, match=r"neither a set \(name, pointclip, recon60, ulip64\)"):
        read_prompts("clip80")
