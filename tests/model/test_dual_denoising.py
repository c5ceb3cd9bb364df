import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from dual_denoising import keyed_random
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from dual_denoising.keyed_random import POINT_NOISE, TIMESTEP
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.model.tokens import Grouping, choose_centers, group
from dual_denoising.ops import chamfer_distance
from dual_denoising.run import load_config
from tests.conftest import assert_refuses, each

KEYS = torch.arange(5)


def targets(types=2):
    return torch.randn(5, types, 12, generator=torch.Generator().manual_seed(2))


def test_a_preset_is_the_papers_but_for_what_it_states():
    """Sections 3 and 4.1, and ReCon's sizes."""
    papers = load_config("pretrain", []).model
    known = {"width": 384, "heads": 6, "encoder_depth": 12, "decoder_depth": 4, "num_groups": 64}
    known |= {"group_size": 32, "noise_scale": 0.08, "noise_steps": 1000, "timestep_merge": 100}
    known |= {"feature_types": ["image", "text"], "mask_ratio": 0, "stop_gradient": True}
    assert {name: papers[name] for name in known} == known
    other = load_config("pretrain", ["model.width=48"]).model
    assert {name for name in papers if papers[name] != other[name]} == {"width"}


def test_the_loss_is_the_papers_from_its_parts(toy, clouds, wake):
    model = wake(toy(feature_weight=0.7))
    step = model.noising.draw_timesteps(KEYS)
    assert torch.equal(
        step, (keyed_random.uniform(keyed_random.key(KEYS, TIMESTEP), 1)[:, 0] * 1000).long()
    )
    sigma = 0.08 * step / 999
    epsilon = keyed_random.gaussian(keyed_random.key(KEYS, POINT_NOISE), 96, 3)
    centers = Grouping(choose_centers(clouds, 8))  # on the clean cloud
    noisy = group(clouds + sigma[:, None, None] * epsilon, centers, 6)
    layers = model.point_dae.encode(noisy, step // 100)
    rebuilt = model.point_dae.decode(layers[-1], noisy.centers, step // 100)
    clean = group(clouds, centers, 6).points
    distance, _ = chamfer_distance(rebuilt.flatten(0, 1), clean.flatten(0, 1), batch_reduction=None)
    expected = (distance.view(5, 8).mean(1) / (1 + sigma**2)).mean()
    out = model(clouds, targets(), KEYS)
    torch.testing.assert_close(out["loss_point"], expected)
    torch.testing.assert_close(out["loss"], expected + 0.7 * out["loss_feature"])  # equation 3


@pytest.mark.parametrize("stop", [True, False])
def test_stop_gradient_cuts_the_branches_in_training(toy, clouds, wake, stop):
    model = wake(toy(stop_gradient=stop))
    model(clouds, targets(), KEYS)["loss_feature"].backward()
    reached = [
        p.grad is not None and bool(p.grad.any()) for p in model.point_dae.encoder.parameters()
    ]
    assert any(reached) is not stop
    assert all(p.grad is not None for p in model.feature_denoiser.blocks.parameters())


@pytest.mark.parametrize(("paths", "step"), [(3, 0), (2, 400)])
def test_logits_have_the_gradient_of_finite_differences(toy, clouds, wake, paths, step):
    model = wake(toy(token_norm="layer")).double().eval()
    weights = torch.nn.functional.normalize(torch.randn(4, 12), dim=-1)
    classify = ZeroShotClassifier(model, weights, paths, step).double()
    cloud = clouds[:1].double().requires_grad_()
    (gradient,) = torch.autograd.grad(classify(cloud)[0, 1], cloud)
    assert (gradient.norm(dim=-1) > 0).double().mean() > 0.3  # the winners of the max-pools
    direction = torch.randn_like(cloud)
    h = 1e-6  # far below the gaps at which FPS or kNN would choose anew
    with torch.no_grad():
        ahead, behind = classify(cloud + h * direction), classify(cloud - h * direction)
    numeric = (ahead - behind)[0, 1] / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("step", "encoded"), [(0, 5), (700, 15)])  # clean clouds once for all
def test_paths_run_as_one_batch_and_each_alone_agrees(toy, clouds, wake, step, encoded):
    model, all_keys = wake(toy()).eval(), keyed_random.path_keys(4, KEYS, 3)
    sizes = []
    model.point_dae.tokenizer.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    paths = model.encode_paths(clouds, all_keys, step)
    assert sizes == [encoded]
    assert paths.std(1).max() > 0  # the paths differ
    torch.testing.assert_close(model.encode(clouds, 3, step, seed=4), paths.mean(1))
    keys, steps = all_keys[:, 2], torch.full((5,), step)
    noisy = model.noising.add_noise(clouds, steps, keys)
    centers = Grouping(choose_centers(clouds, 8))
    layers = model.point_dae.encode(group(noisy, centers, 6), steps // 100)
    torch.testing.assert_close(paths[:, 2], model.denoise_features(layers, keys[:, None])[:, 0])


@pytest.mark.parametrize("step", [0, 500])
def test_batch_size_never_changes_a_prediction(toy, clouds, wake, step):
    model = wake(toy()).eval()
    indices = torch.tensor([40, 3, 999, 0, 7])
    whole = model.encode(clouds, 4, step, seed=2, indices=indices)
    for size in (1, 2):
        parts = [
            model.encode(c, 4, step, seed=2, indices=i)
            for c, i in zip(clouds.split(size), indices.split(size), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-6)
    other = model.encode(clouds, 4, step, seed=3, indices=indices)
    assert not torch.allclose(other, whole)


def test_timesteps_are_merged(toy, clouds, wake):
    model = wake(toy(noise_scale=0.0)).eval()
    assert torch.equal(model.encode(clouds, 2, 100), model.encode(clouds, 2, 199))
    assert not torch.equal(model.encode(clouds, 2, 100), model.encode(clouds, 2, 200))
    blind = wake(toy(noise_scale=0.0, timestep_merge=1000)).eval()
    assert torch.equal(blind.encode(clouds, 2, 0), blind.encode(clouds, 2, 999))


def test_masking_hides_tokens_from_the_encoder_and_scores_the_hidden(toy, clouds):
    model = toy(mask_ratio=0.6, noise_scale=0.0)
    seen, rebuilt = [], []
    model.point_dae.tokenizer.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    model.point_dae.head.register_forward_hook(lambda *a: rebuilt.append(a[2].shape))
    loss = model(clouds, targets(), KEYS)["loss_point"]
    assert seen[0][1] == 4  # 8 − ⌊0.6·8⌋
    assert rebuilt[0][1] == 8
    loss.backward()
    assert model.point_dae.mask_token.grad.any()
    model.eval().encode(clouds, 1, 0)
    assert seen[1][1] == 8  # nothing is hidden at inference


def test_bfloat16_autocast_trains_with_the_losses_of_float32(toy, clouds, wake):
    model = wake(toy(token_norm="layer"))
    exact = model(clouds, targets(), KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(clouds, targets(), KEYS)
    half["loss"].backward()
    for name, value in exact.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0.03, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_are_drawn_per_cloud_and_key_and_hidden_tokens_alone_are_scored(toy, clouds):
    model, step = toy(mask_ratio=0.6), torch.zeros(5, dtype=torch.long)
    noisy, clean = model.noisy_and_clean_tokens(clouds, step, KEYS)
    other, _ = model.noisy_and_clean_tokens(clouds, step, KEYS + 5)
    assert not torch.equal(noisy.centers, other.centers)
    same_cloud = clouds[:1].expand(5, -1, -1)
    per_key, _ = model.noisy_and_clean_tokens(same_cloud, step, KEYS)
    assert len(per_key.centers.flatten(1).unique(dim=0)) == 5
    rebuilt = model.decode_points(model.encode_points(noisy, step)[-1], noisy, step)
    loss = model.point_loss(rebuilt, clean, step)
    clean.points[:, :4] += 1  # the visible ones
    assert model.point_loss(rebuilt, clean, step) == loss
    clean.points[:, 4:] += 1
    assert model.point_loss(rebuilt, clean, step) != loss


def test_positions_are_added_before_every_block(toy, clouds, wake):
    dae = wake(toy()).eval().point_dae
    tokens = group(clouds, Grouping(choose_centers(clouds, 8)), 6)
    entered = []
    for block in (*dae.encoder, *dae.decoder):
        block.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    step = torch.zeros(5, dtype=torch.long)
    layers = dae.encode(tokens, step)
    dae.decode(layers[-1], tokens.centers, step)
    before = [dae.tokenizer(tokens.points), layers[0], layers[1]]
    position = [dae.encoder_position, dae.encoder_position, dae.decoder_position]
    for x, stream, embed in zip(entered, before, position, strict=True):
        torch.testing.assert_close(x, stream + embed(tokens.centers))


def test_a_target_dimension_without_spread_does_no_harm(toy, clouds):
    model = toy(target_scale="standardised")
    model.fit_targets(torch.zeros(2, 12), torch.zeros(2, 12))
    assert model(clouds, torch.zeros(5, 2, 12), KEYS)["loss"].isfinite()


def test_the_similarity_term_compares_cosines_of_clouds_with_those_of_their_targets(toy, clouds):
    plain, model = toy(), toy(similarity_weight=3.0)
    model.load_state_dict(plain.state_dict())
    for made in (plain, model):
        made.fit_targets(targets().mean(0), targets().std(0))
    predicted = []
    denoise = plain.denoise_features
    model.denoise_features = lambda *args: predicted.append(denoise(*args)) or predicted[-1]
    loss, without = (made(clouds, targets(), KEYS)["loss_feature"] for made in (model, plain))
    found = predicted[0][:, 0] * model.target_std + model.target_mean  # (5, 2, 12)
    mine, wanted = (cosine_similarity(x[:, None], x, dim=-1) for x in (found, targets()))
    torch.testing.assert_close(loss - without, 3 * (mine - wanted).square().mean())


@pytest.mark.parametrize("scale", ["standardised", "raw"])
def test_features_come_in_the_scale_of_their_targets(toy, clouds, scale):
    mean, std = 5 * torch.randn(2, 12), torch.rand(2, 12) + 0.1
    model = toy(target_scale=scale).eval()
    plain = model.encode(clouds, 2, 0)
    model.fit_targets(mean, std)
    expected = mean + (plain if scale == "raw" else plain * std)
    torch.testing.assert_close(model.encode(clouds, 2, 0), expected)


def test_a_saved_model_comes_back_whole(toy, clouds, wake, tmp_path):
    model = wake(toy(target_scale="standardised")).eval()
    model.fit_targets(torch.randn(2, 12), torch.rand(2, 12) + 0.5)
    model.save_pretrained(tmp_path)
    again = DualDenoising.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(again.encode(clouds), model.encode(clouds))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text('{"layers": 3}'),
        lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4pickle"),
        lambda f: (f / "model.safetensors").unlink(),
    ],
)
def test_damaged_models_are_named(toy, tmp_path, damage):
    toy().save_pretrained(tmp_path)
    damage(tmp_path)
    assert_refuses(str(tmp_path), DualDenoising.from_pretrained, tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(toy, tmp_path):
    toy().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_depth": 3}))
    assert_refuses(r"blocks\.2", DualDenoising.from_pretrained, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    each(width=[17], token_widths=[[8]], token_norm=["instance"], feature_types=[[], ["audio"]])
    + each(timestep_merge=[0], noise_steps=[1], mask_ratio=[1.0, 0.1], target_scale=["log"])
    + each(noise_scale=[-0.5], num_groups=[0], heads=[0]),
)
def test_impossible_models_are_named(toy, wrong):
    assert_refuses(f"model.{next(iter(wrong))}", toy, **wrong)


def test_rebuild_gives_noised_and_rebuilt_clouds(toy, clouds):
    model = toy().train()
    noisy, rebuilt = model.rebuild(clouds, 999)
    assert model.training
    model.eval()
    centers = Grouping(choose_centers(clouds, 8))
    tokens, step = group(noisy, centers, 6), torch.full((5,), 9)
    latent = model.point_dae.encode(tokens, step)[-1]
    by_hand = model.point_dae.decode(latent, tokens.centers, step)
    by_hand = by_hand + group(clouds, centers, 6).centers[:, :, None]
    torch.testing.assert_close(rebuilt, by_hand.flatten(1, 2))
    keys = keyed_random.path_keys(0, torch.arange(5), 1)[:, 0]
    torch.testing.assert_close(noisy, model.noising.add_noise(clouds, torch.full((5,), 999), keys))
    np.testing.assert_allclose((noisy - clouds).std().item(), 0.08, rtol=0.1)


def test_numpy_in_numpy_out(toy, wake, clouds):
    model = wake(toy()).eval()
    indices = torch.tensor([3, 1, 4, 0, 5])
    expected = model.encode(clouds, 2, 300, indices=indices).detach().numpy()
    for kind in ("f8", ">f4"):  # the latter as files of other machines have it
        given = model.encode(clouds.numpy().astype(kind), 2, 300, indices=indices.numpy())
        np.testing.assert_array_equal(given, expected)
    assert model.encode(np.ones((1, 20, 3), np.uint16), 2, 300).shape == (1, 2, 12)


NO_CLOUDS = [np.zeros((20, 3)), np.zeros((1, 20, 6)), np.zeros((0, 20, 3))]
NO_CLOUDS += [np.full((1, 20, 3), np.nan), np.full((1, 20, 3), "a"), [[[0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("wrong", each(clouds=NO_CLOUDS, num_noise=[0], timestep=[1000, -1]))
def test_what_cannot_be_encoded_is_named(toy, clouds, wrong, unchecked):
    assert_refuses(next(iter(wrong)), toy().eval().encode, **{"clouds": clouds} | wrong)
