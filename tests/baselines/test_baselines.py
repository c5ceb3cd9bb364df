"""The baselines against vectors of the official code, and by first principles where there are none.

The vectors lie in a folder 'golden' beside DUAL_DENOISING_DATA, or in DUAL_DENOISING_GOLDEN; every
file of a known name is tried, whatever its sizes.
"""

import argparse
import json
import os
import re
import runpy
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from dual_denoising.baselines import clip2point, pointclip, pointclip_v2
from dual_denoising.baselines.point_transformer import group
from dual_denoising.baselines.recon import ReCon
from dual_denoising.baselines.ulip import ULIP, ULIP2
from dual_denoising.baselines.uni3d import EVA, Uni3D
from dual_denoising.clip.towers import OpenClip
from dual_denoising.errors import InputError
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from tests.conftest import Evil, assert_refuses

DATA = os.environ.get("DUAL_DENOISING_DATA")
GOLDEN = Path(
    os.environ.get("DUAL_DENOISING_GOLDEN")
    or (Path(DATA).resolve().parent / "golden" if DATA else "nowhere")
)
NO_VECTORS = "no recorded vectors of other systems (DUAL_DENOISING_GOLDEN)"
MICRO = "local-dir:data/micro_clip"


def files(*prefixes: str) -> list:
    """Recorded files of these systems; those of full size take long."""
    found = [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * ("full" in p.stem))
        for p in sorted(GOLDEN.glob("*.h5"))
        if p.stem.startswith(prefixes)
    ]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=NO_VECTORS))]


def tensor(entry) -> torch.Tensor:
    return torch.from_numpy(np.asarray(entry[()]))


def near(found: torch.Tensor, entry) -> bool:
    """Whether a tensor's relative distance from a recorded one of its shape is below 1e-4."""
    expected = tensor(entry).double()
    off = (found.detach().double() - expected).norm() if found.shape == expected.shape else np.inf
    return bool(off < 1e-4 * expected.norm())


def probe(output: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """The scalar that the recorded gradients are of."""
    flat = output.flatten(dims)
    return (flat * torch.cos(0.37 * torch.arange(flat.shape[-1]))).sum()


def recorded_state(file: h5py.File) -> dict[str, torch.Tensor]:
    if len(file.get("state_dict", ())):
        return {key: tensor(value) for key, value in file["state_dict"].items()}
    listed = file.attrs.get("state_shapes")
    shapes = json.loads(file["state_shapes"][()] if listed is None else listed)
    fill = runpy.run_path(str(GOLDEN / "fill_rule.py"))["fill"]
    return {
        key: torch.from_numpy(np.asarray(fill(key, v["shape"] if isinstance(v, dict) else v)))
        for key, v in shapes.items()
    }


FULL = {  # what loads a system's files, and where in them the weights are
    "recon": (ReCon.from_checkpoint, "base_model"),
    "ulip": (ULIP.from_checkpoint, "state_dict"),
    "ulip2": (ULIP2.from_checkpoint, "state_dict"),
    "uni3d": (Uni3D.from_checkpoint, "module"),
    "clip2point": (clip2point.pretrained_tower, None),
}


def save_official(system: str, state: dict, path: Path) -> str:
    """A file in the official outer format, prefixes included."""
    if system == "recon":
        heads = ("img_proj", "text_proj")
        state = {k if k.startswith(heads) else f"MAE_encoder.{k}": v for k, v in state.items()}
    state = {f"module.{key}": value for key, value in state.items()}
    torch.save({FULL[system][1]: state, "epoch": 3, "metrics": {"acc": 0.5}}, path)
    return str(path)


OURS = {  # the official configurations' words for what no weight tells
    "num_group": "num_groups",
    "num_heads": "heads",
    "pc_model": "eva",
    "timm_overrides": "eva_sizes",
    "transformer_heads": "text_heads",
} | {name: name for name in ("group_size", "ratio", "type")}


def point_model(path: Path, file: h5py.File, folder: Path):
    """A recorded model through the loader of real checkpoints, and what its input is put into."""
    config, system = json.loads(file.attrs["config"]), path.stem.split("_")[0]
    saved = save_official(system, recorded_state(file), folder / "checkpoint.pth")
    stated = config | config.get("point", {}) | config.get("ulip", {})
    load, _ = FULL[system]
    model = load(saved, **{OURS[key]: value for key, value in stated.items() if key in OURS})
    if system == "recon":
        return model, model.encode, "feature"
    return model, model.encode_coloured, "pc_embed"


def check_texts(model: ULIP, file: h5py.File) -> None:
    """ULIP's own text tower, and class vectors: each text normalised, mean, normalised."""
    ids = tensor(file["input/text_tokens"])
    texts = model.text_tower(ids.flatten(0, -2)).unflatten(0, ids.shape[:-1])
    assert near(texts, file["output/text_embed_each"])
    if "logits_pc_text" in file["output"]:
        weights = normalize(normalize(texts, dim=-1).mean(1), dim=-1)
        logits = ZeroShotClassifier(model, weights, 1, 0)(tensor(file["input/points"]))
        assert near(model.logit_scale, file["output/logit_scale"])
        assert near(logits / model.logit_scale, file["output/logits_pc_text"])


@pytest.mark.parametrize("path", files("recon", "ulip", "uni3d"))
def test_point_encoders_are_the_official_ones(path, tmp_path):
    with h5py.File(path) as file:
        model, encode, name = point_model(path, file, tmp_path)
        seen, embed = [], model.transformer.pos_embed
        embed.register_forward_hook(lambda _, args, __: seen.append(args[0]))
        points = tensor(file["input/points"]).requires_grad_()
        output = encode(points)
        assert near(output, file[f"output/{name}"])
        if "grad_points" in file["output"]:
            (slope,) = torch.autograd.grad(probe(output), points)
            assert near(slope, file["output/grad_points"])
        if "logit_scale_exp" in file["output"]:
            assert near(model.logit_scale, file["output/logit_scale_exp"])
        centers = file["intermediate/centers"]  # of a full-size file the first alone were kept
        assert near(seen[0][:, : centers.shape[1]], centers)
        if path.stem.startswith("ulip_"):
            check_texts(model, file)


LISTED = """recon_zeroshot recon_pretrain ulip_pointbert ulip2_pointbert_colored ulip2_pointbert_xyz
uni3d_tiny uni3d_small uni3d_base uni3d_large uni3d_giant clip2point_pretrain"""


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED.split())
def test_official_keys_of_full_size_load_strictly(name, tmp_path):
    system = name.split("_")[0]
    load, outer = FULL[system]
    path = GOLDEN / f"official_keys_{'ulip' if system == 'ulip2' else system}.json"
    if not path.exists():
        pytest.skip(NO_VECTORS)
    listed, saved = json.loads(path.read_text()), tmp_path / "official.pt"
    shapes = next(e["state_dict"] for key, e in listed.items() if key.startswith(name))
    state = {
        key: torch.zeros(v["shape"], dtype=getattr(torch, v["dtype"])) for key, v in shapes.items()
    }
    torch.save({outer: state} if outer else state, saved)
    weights = load(str(saved)).parameters()
    assert not any(weight.any() for weight in weights)  # all are the file's zeros


def openai_clip(state: dict[str, torch.Tensor]) -> OpenClip:
    """A state dict in OpenAI's layout, of any size, as OpenClip offers it."""
    model = open_clip.openai.build_model_from_openai_state_dict(dict(state)).float()
    model.load_state_dict(state)  # once more: the builder's own copy is half precision
    clip, tower = object.__new__(OpenClip), model.eval().requires_grad_(False)
    vars(clip).update(tower=tower, tokenize=str, names=("golden",), width=model.visual.output_dim)
    return clip


@pytest.mark.parametrize("path", files("pointclip_zs"))
def test_pointclip_is_the_official_one(path):
    with h5py.File(path) as file:
        clip = openai_clip(recorded_state(file))
        own = tensor(file["output/view_weights"]).tolist()
        model = pointclip.PointCLIP(clip, view_weights=own)
        points = tensor(file["input/points"]).requires_grad_()
        images = model.images(points)
        assert near(images, file["output/depth_128"])
        (slope,) = torch.autograd.grad(probe(images, 2), points)
        assert near(slope, file["output/grad_points_of_depth"])
        pixels = model.pixels(points).unflatten(0, (-1, model.views))
        assert near(pixels[:1, :, 0], file["output/image_224_channel0_first_cloud"])
        views = model.encode_views(points).flatten(1)
        assert near(views, file["output/image_feat_concat"])
        weights = model.repeat(model.clip.encode_text(tensor(file["input/text_tokens"])))
        assert near(weights, file["intermediate/text_feat_concat"])
        logits = ZeroShotClassifier(model, weights.detach(), 1, 0)(points)
        assert near(logits, file["output/logits_weighted"])
        plain = pointclip.PointCLIP(clip)
        logits = ZeroShotClassifier(plain, weights.detach(), 1, 0)(points)
        assert near(logits, file["output/logits"])


@pytest.mark.parametrize("path", files("pointclip_v2"))
def test_pointclip_v2_is_the_official_one(path):
    with h5py.File(path) as file:
        clip = openai_clip(recorded_state(file))
        weights = tensor(file["output/view_weights"]).tolist()
        model = pointclip_v2.PointCLIPV2(clip, "a {}", weights)
        points = tensor(file["input/points"]).requires_grad_()
        placed = model.place(points)
        assert near(placed, file["intermediate/points_in_view"])
        grid = pointclip_v2.depth_grid(placed[: model.views])
        assert near(grid, file["intermediate/grid_first_cloud"])
        images = model.images(points)
        assert near(images, file["output/image_channel0"])
        (slope,) = torch.autograd.grad(probe(images), points)
        assert near(slope, file["output/grad_points_of_image"])
        text = model.repeat(model.clip.encode_text(tensor(file["input/text_tokens"])))
        logits = ZeroShotClassifier(model, text.detach(), 1, 0)(points)
        assert near(logits, file["output/logits"])


@pytest.mark.parametrize("path", files("clip2point_dpa_small"))
def test_clip2points_pictures_are_the_official_ones(path):
    with h5py.File(path) as file:
        count = json.loads(file.attrs["config"])["views"]
        if count != len(clip2point.VIEWS):
            pytest.skip("of the few-shot cameras, which are not kept")
        camera = clip2point.cameras(clip2point.VIEWS)
        assert near(camera, file["intermediate/camera_R"])
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        points = tensor(file["input/points"]).requires_grad_()
        turned = points @ torch.tensor(clip2point.FROM_Z_UP)
        for name, cloud in (("false", points), ("true", turned)):
            buffer = clip2point.rasterise(clip2point.look(cloud, camera))
            stored = file[f"intermediate/zbuf_rot_{name}"]
            assert near(buffer.unflatten(0, (-1, count)), stored)
            image = clip2point.shade(buffer).unflatten(0, (-1, count))
            image = (image - mean[0]) / std[0]
            assert near(image, file[f"output/image_rot_{name}_channel0"])
        largest = buffer.detach().amax((1, 2), keepdim=True)  # the official gradient is not of it
        fixed = torch.where(buffer > 0, buffer / largest * 200 / 255 / std[0], 0)
        (slope,) = torch.autograd.grad(probe(fixed.unflatten(0, (-1, count))), points)
        assert near(slope, file["output/grad_points_of_image_rot_true_channel0"])
        grey = image.detach().flatten(0, 1) * std[0] + mean[0]
        pixels = clip2point.standardise(grey[:, None].expand(-1, 3, -1, -1), mean, std)
        state, pre = recorded_state(file), "pre_model."
        tower = {k.removeprefix(pre): v for k, v in state.items() if k.startswith(pre)}
        views = normalize(clip2point.image_tower(tower)(pixels), dim=-1)
        stored = file["output/zeroshot_view_feat"]
        assert near(views.unflatten(0, (-1, count)), stored)


# ---------------------------------------------------------------- without official vectors


def clouds(count: int = 2, points: int = 160, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1).amax(1)[:, None, None]


SMALL = {"width": 24, "depth": 2, "heads": 2, "num_groups": 12, "group_size": 6}
WIDTHS = {"encoder_width": 16, "feature_width": 16}
TEXT = {"text_width": 64, "text_layers": 1, "text_heads": 1}
SMALL_EVA = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 28}


def small(system: str):
    groups = {key: SMALL[key] for key in ("num_groups", "group_size")}
    eva = {"eva": EVA[192], "eva_sizes": SMALL_EVA}
    makers = {
        "recon": lambda: ReCon.from_checkpoint("random", **SMALL, feature_width=16),
        "ulip": lambda: ULIP.from_checkpoint("random", **SMALL, **WIDTHS, **TEXT),
        "ulip2": lambda: ULIP2.from_checkpoint("random", **SMALL, **WIDTHS, channels=6),
        "uni3d": lambda: Uni3D.from_checkpoint("random", **eva, **groups, **WIDTHS),
        "pointclip": lambda: pointclip.PointCLIP.from_clip(OpenClip(MICRO)),
        "pointclip_v2": lambda: pointclip_v2.PointCLIPV2.from_clip(OpenClip(MICRO), prompts="a {}"),
        "clip2point": lambda: clip2point.CLIP2Point.from_clip(OpenClip(MICRO)),
    }
    return makers[system]()


SYSTEMS = ("recon", "ulip", "ulip2", "uni3d", "pointclip", "pointclip_v2", "clip2point")


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_agree_with_finite_differences(system):
    # float64, along random directions; two steps tell where a group or a pixel changes within them
    model = small(system).double()
    for buffer in ("rotation", "tilt", "camera", "frame"):
        if hasattr(model, buffer):
            setattr(model, buffer, getattr(model, buffer).double())
    cloud = clouds(1).double().requires_grad_()

    def value(x):
        return probe(model.encode(x))

    (slope,) = torch.autograd.grad(value(cloud), cloud)
    generator, agreed = torch.Generator().manual_seed(3), 0
    for _ in range(12):
        way = torch.randn(cloud.shape, generator=generator, dtype=torch.float64)
        steps = [
            float(value(cloud + h * way) - value(cloud - h * way)) / (2 * h) for h in (5e-9, 1e-8)
        ]
        if abs(steps[0] - steps[1]) > 1e-3 * abs(steps[0]):
            continue  # a neighbour, a pixel or an extreme changed
        assert float((slope * way).sum()) == pytest.approx(steps[0], rel=1e-3, abs=1e-6)
        agreed += 1
    assert agreed >= 4


@pytest.mark.parametrize("system", SYSTEMS)
def test_batches_do_not_mix(system):
    model, cloud = small(system), clouds(3)
    alone = torch.cat([model.encode(one[None]) for one in cloud])
    torch.testing.assert_close(model.encode(cloud), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("system", ["recon", "ulip", "uni3d"])
def test_the_order_of_the_points_matters_only_for_the_first(system):
    model, cloud = small(system), clouds(1)
    order = torch.randperm(cloud.shape[1] - 1, generator=torch.Generator().manual_seed(1)) + 1
    shuffled = cloud[:, torch.cat([torch.zeros(1, dtype=torch.long), order])]
    torch.testing.assert_close(model.encode(cloud), model.encode(shuffled), atol=1e-5, rtol=1e-4)


def test_farthest_points_pass_over_what_lies_at_the_origin():
    # by hand: from (1, 0, 0) the next is (−1, 0, 0), then (0, 1, 0); the point near 0 never is
    cloud = torch.tensor([[[1.0, 0, 0], [0.01, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0.5, 0, 0]]])
    centers, _ = group(cloud, 4, 1)
    expected = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0.5, 0, 0]])
    torch.testing.assert_close(centers[0], expected)
    inward = torch.tensor([[[0.02, 0, 0], [0.9, 0, 0], [-0.9, 0, 0]]])
    torch.testing.assert_close(group(inward, 1, 1)[0][0, 0], inward[0, 0])  # the first may be there


def test_special_tokens_of_recon_read_the_patches_and_are_not_read():
    model, cloud = small("recon"), clouds(1)
    block = model.transformer.blocks[0]
    stream = torch.randn(1, 15, 24, generator=torch.Generator().manual_seed(0))
    other = stream.clone()
    other[:, :3] += 1
    assert torch.equal(block(stream)[:, 3:], block(other)[:, 3:])
    other = stream.clone()
    other[:, 3:] *= -1
    assert not torch.allclose(block(stream)[:, :3], block(other)[:, :3])
    assert model.encode(cloud).shape == (1, 16)


def test_uni3d_sees_grey_points_and_the_mirrored_frame():
    model, cloud = small("uni3d"), clouds(1)
    mirrored = cloud * torch.tensor([1.0, 1.0, -1.0])
    grey = torch.cat([mirrored, torch.full_like(mirrored, 0.4)], -1)
    torch.testing.assert_close(model.encode(cloud), model.encode_coloured(grey))
    model.flip_z = False
    assert not torch.allclose(model.encode(cloud), model.encode_coloured(grey), atol=1e-4)


def test_depth_maps_of_two_points_by_hand():
    # one view along z at distance 1: (0, 0, 0) and (0, 0, 1) share the middle pixel, depths 1 and 2
    cloud = torch.tensor([[[0.0, 0, 0], [0, 0, 1.0]]])
    image = pointclip.depth_maps(cloud, torch.eye(3)[None], 1.0, 8)[0, 0]
    assert image[4, 4] == pytest.approx(2 / (1 / 1 + 1 / 2))  # harmonic mean, 4/3
    assert image.count_nonzero() == 1


def test_the_depth_buffer_is_brute_forces():
    points = clouds(1, 300)[0] + torch.tensor([0.0, 0.0, 0.3])  # some lie behind the camera
    axis = 1 - (2 * torch.arange(224) + 1) / 224
    far = (axis[:, None, None] - points[:, 1]) ** 2 + (axis[None, :, None] - points[:, 0]) ** 2
    depth = torch.where((far < 0.02**2) & (points[:, 2] >= 0), points[:, 2], torch.inf).amin(-1)
    expected = torch.where(depth.isinf(), -1.0, depth)
    assert torch.equal(clip2point.rasterise(points[None])[0], expected)


def test_depth_cells_keep_their_largest_depth():
    points = clouds(1, 200)
    grid = pointclip_v2.depth_grid(points)[0]
    low, high = points.amin(1), points.amax(1)
    scaled = (points[0] - (low + high) / 2) / (high - low).amax() * 2
    expected = torch.zeros_like(grid)
    for x, y, z in scaled.tolist():
        row, column = (min(max(int(np.ceil((c * 0.8 + 1) / 2 * 112)), 1), 110) for c in (x, y))
        level = ((z + 1) / 2 + 0.2) / 1.2 * 6
        cell = int(np.ceil(round(level, 5))), row, column
        expected[cell] = max(float(expected[cell]), min(max(level, 1.0), 6.0))
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=0)


def test_clip2points_logits_are_the_views_cosines_added_up():
    model, cloud = small("clip2point"), clouds(2)
    texts = normalize(OpenClip(MICRO).encode_texts(["image of a chair", "image of a bed"]), dim=-1)
    views = model.encode_views(cloud)  # (B, V, E), unit vectors
    expected = model.clip.logit_scale.exp() * torch.einsum("bve,ce->bc", views, texts)
    found = ZeroShotClassifier(model, model.class_weights(["chair", "bed"]), 1, 0)(cloud)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_class_vectors_of_views_are_the_text_per_view():
    model = small("pointclip")
    weights = model.class_weights(["night_stand", "chair"])
    text = OpenClip(MICRO).encode_texts(["point cloud depth map of a night stand."])[0]
    expected = normalize(text, dim=0).repeat(6) / 6**0.5
    torch.testing.assert_close(weights[0], expected, atol=1e-5, rtol=0)


def test_searched_prompts_have_a_text_for_every_class_of_their_set():
    names = Path("data/classes/modelnet40.txt").read_text().split()
    for kind in ("ViT-B-16", "ViT-B-32"):
        texts, weights = pointclip_v2.texts(f"modelnet40/{kind}")
        assert list(texts) == names
        assert len(weights) == len(pointclip_v2.VIEWS)
    model = pointclip_v2.PointCLIPV2(OpenClip(MICRO))
    assert_refuses("'spaceship'", model.class_weights, ["chair", "spaceship"])
    assert_refuses("modelnet40/ViT-B-16", pointclip_v2.texts, "modelnet40/RN50")


# ---------------------------------------------------------------- bad input


def recon_state() -> dict[str, torch.Tensor]:
    """A small ReCon in official keys."""
    back = {}
    for key, value in small("recon").state_dict().items():
        key = re.sub(r"transformer\.tokens\.(\w+)", r"MAE_encoder.\1_token", key)
        key = re.sub(r"transformer\.positions\.(\w+)", r"MAE_encoder.\1_pos", key)
        key = key.replace("transformer.blocks.", "MAE_encoder.blocks.blocks.")
        back[key.replace("transformer.", "MAE_encoder.")] = value
    return back


@pytest.fixture
def load(tmp_path):
    """Reads a checkpoint of this content: load(content, setting=value, ...)."""

    def load(content, system=ReCon, **settings):
        torch.save(content, tmp_path / "recon.pth")
        return system.from_checkpoint(str(tmp_path / "recon.pth"), **settings)

    return load


def test_a_checkpoint_comes_back_as_it_was_whatever_plain_values_lie_beside_it(load):
    plain = argparse.Namespace(lr=1e-3, out=Path("runs"))
    numbers = {"acc": np.float64(3), "curve": np.arange(3.0)}
    sizes = {key: SMALL[key] for key in ("heads", "num_groups", "group_size")}
    loaded = load({"base_model": recon_state(), "args": plain, "best": numbers}, **sizes)
    assert torch.equal(loaded.encode(clouds()), small("recon").encode(clouds()))


@pytest.mark.parametrize("system", [ULIP, ULIP2, Uni3D])
def test_a_checkpoint_of_another_model_is_refused(system, load):
    assert_refuses(r"recon\.pth", load, {"base_model": recon_state()}, system)


def test_what_is_no_checkpoint_is_refused_and_not_run(load, tmp_path):
    path, read = tmp_path / "recon.pth", ReCon.from_checkpoint
    assert_refuses(r"recon\.pth", read, str(path))
    assert_refuses(tmp_path.name, read, str(tmp_path))
    assert_refuses(
        r"recon\.pth", load, {"base_model": recon_state(), "metrics": Evil(tmp_path / "made")}
    )
    assert not (tmp_path / "made").exists()
    path.write_bytes(path.read_bytes()[:-4000])
    assert_refuses(r"recon\.pth", read, str(path))
    assert_refuses(r"recon\.pth", load, {"base_model": {"epoch": 3}})


def test_text_features_of_another_teacher_are_refused():
    with pytest.raises(InputError, match=r"baseline\.model\.text"):
        small("recon").class_weights(["chair"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.weight": torch.zeros(24)}, r"'transformer\.norm\.weight' is 'twice'"),
        (
            dict.fromkeys(f"MAE_encoder.blocks.blocks.{n}.norm1.weight" for n in (0, 1))
            | {"MAE_encoder.norm.bias": torch.zeros(7), "other.thing": torch.zeros(1)},
            r"Missing key.*blocks\.0\.norm1\.weight.*blocks\.1\.norm1\.weight.*Unexpected key.*"
            r"other\.thing.*size mismatch for transformer\.norm\.bias",
        ),
    ],
)
def test_every_entry_that_does_not_fit_is_named(change, words, load):
    state = {key: v for key, v in (recon_state() | change).items() if v is not None}
    assert_refuses(words, load, {"base_model": state}, heads=2)


@pytest.mark.parametrize("path", files("clip2point_dpa_small"))
def test_an_image_tower_of_another_clip_is_refused(path, tmp_path):
    with h5py.File(path) as file:
        state, pre = recorded_state(file), "pre_model."
    tower = {k.replace(pre, "point_model."): v for k, v in state.items() if k.startswith(pre)}
    torch.save(tower, tmp_path / "tower.pt")
    with pytest.raises(InputError, match=r"baseline\.model\.clip\.model"):
        clip2point.CLIP2Point(OpenClip(MICRO), str(tmp_path / "tower.pt"))


@pytest.mark.parametrize("system", ["pointclip", "pointclip_v2", "clip2point"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_cloud_has_no_answer_and_harms_no_other(system, value):
    model, cloud = small(system), clouds(2)
    broken = cloud.clone()
    broken[0, 3, 1] = value
    found = model.encode(broken)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], model.encode(cloud)[1])


def test_points_in_one_place_have_a_picture():
    assert small("pointclip_v2").encode(torch.zeros(1, 5, 3)).isfinite().all()


def test_what_is_not_the_papers_model_says_so():
    model = small("recon")
    model.teacher, model.prompts = "ViT-B-32/openai", ["a {}"]
    assert model.deviations() == [
        "no meaning",
        "1 prompts instead of recon60",
        "width 24 instead of 384",
        "depth 2 instead of 12",
        "feature_width 16 instead of 512",
    ]
    views = small("pointclip")
    assert views.deviations() == [f"text of {views.teacher} instead of /openai"]


@pytest.mark.parametrize(
    "settings",
    [{"eva": "resnet18"}, {"eva": "eva00"}, {"eva_sizes": {"nonsense": 3}}, {"num_groups": 0}],
)
def test_an_eva_that_is_none_is_refused(settings):
    assert_refuses(next(iter(settings)), Uni3D, **{"eva": EVA[192]} | settings)
