"""Attacks against foolbox, analytic optima, and the traps of randomised models."""

import math

import foolbox
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dual_denoising import attacks
from dual_denoising.attacks import base
from dual_denoising.evaluation.classifier import ZeroShotClassifier
from tests.conftest import C, Curved, Linear, N, Noisy, assert_refuses, each

B = 24


@pytest.fixture
def data():
    clouds = torch.rand(B, N, 3, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    return clouds, torch.arange(B) % C


def accuracy(model, clouds, labels):
    return (model(clouds).argmax(1) == labels).float().mean().item()


ALL = {
    "PGD": lambda m, **k: attacks.PGD(m, steps=4, **k),
    "PGD l2": lambda m, **k: attacks.PGD(m, steps=4, norm="l2", **k),
    "IFGM": lambda m, **k: attacks.IFGM(m, steps=4, **k),
    "FGM": lambda m, **k: attacks.FGM(m, **k),
    "EOTPGD": lambda m, **k: attacks.EOTPGD(m, steps=4, draws=2, restarts=2, **k),
    "APGD": lambda m, **k: attacks.APGD(m, steps=12, **k),
    "APGD dlr": lambda m, **k: attacks.APGD(m, steps=12, loss="dlr", **k),
    "Square": lambda m, **k: attacks.Square(m, steps=10, **k),
    "SPSA": lambda m, **k: attacks.SPSA(m, steps=4, pairs=3, **k),
    "RandomNoise": lambda m, **k: attacks.RandomNoise(m, **k),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.3])
def test_no_step_leaves_the_ball(data, name, eps):
    clouds, labels = data
    seen = []

    def record(step, points):
        moved = points - clouds
        size = moved.flatten(1).norm(dim=1) if "l2" in name else moved.abs().amax((1, 2))
        assert (size <= eps + 1e-6).all()
        seen.append(step)

    attack = ALL[name](Curved(), eps=eps)
    record(0, attack(clouds, labels, record=record))
    assert seen[:2] in ([1, 2], [1, 0], [0])


@pytest.mark.parametrize("name", ALL)
def test_attacks_are_functions_of_seed_and_index_alone(data, name):
    clouds, labels = data
    indices = torch.arange(B) + 100
    model = Noisy(scale=0.3)
    whole = ALL[name](model, eps=0.05, seed=3)(clouds, labels, indices)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    parts = [
        ALL[name](model, eps=0.05, seed=3)(clouds[rows], labels[rows], indices[rows])
        for rows in order.split(7)
    ]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-5, rtol=1e-5)
    other = ALL[name](model, eps=0.05, seed=4)(clouds, labels, indices)
    if name not in ("IFGM", "FGM"):  # of a linear model all draws have one gradient
        assert not torch.equal(other, whole)


@pytest.mark.parametrize("target", ["untargeted", "best_wrong"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_foolboxs(data, norm, target):
    clouds, labels = data
    clouds = clouds.double()  # where an attack has succeeded, gradients are of rounding's size
    model, eps = Curved().double().eval(), {"linf": 0.05, "l2": 0.3}[norm]
    ours = attacks.PGD(model, eps, eps / 10, 20, norm, "clean", target=target)
    adversarial = ours(clouds, labels.to(torch.uint8))  # any integers are taken
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs = kind(abs_stepsize=eps / 10, steps=20, random_start=False)
    criterion = foolbox.criteria.Misclassification(labels)
    if target == "best_wrong":
        criterion = foolbox.criteria.TargetedMisclassification(ours.targets)
    wrapped = foolbox.PyTorchModel(model, bounds=(-1, 1))
    _, expected, _ = theirs(wrapped, clouds, criterion, epsilons=eps)
    torch.testing.assert_close(adversarial, expected, atol=1e-9, rtol=0)


def test_ifgm_l2_has_if_defenses_ball(data):
    clouds, labels = data
    eps = 0.02 * math.sqrt(3 * N)  # the ball that L∞'s of 0.02 touches from within
    adversarial = attacks.IFGML2(Linear(), 0.02, steps=30)(clouds, labels)
    size = (adversarial - clouds).flatten(1).norm(dim=1)
    torch.testing.assert_close(size, torch.full((B,), eps))


def test_cw_finds_the_analytic_distance_to_a_linear_boundary(data):
    clouds, labels = data
    model = Linear(classes=2)
    labels = model(clouds).argmax(1)  # all right when clean
    attack = attacks.CW(model, target="best_wrong", searches=4, steps=400, lr=0.003)
    adversarial = attack(clouds, labels)
    assert not attack.unsuccessful.any()
    assert (model(adversarial).argmax(1) != labels).all()
    normal = model.weight[0] - model.weight[1]
    gap = (model(clouds) @ torch.tensor([1.0, -1])).abs()
    exact = gap / normal.norm()
    found = (adversarial - clouds).flatten(1).norm(dim=1)
    assert (found >= exact * (1 - 1e-4)).all()
    assert (found <= exact * 1.02).all()


class Waits(TorchDispatchMode):
    """Counts the operations that a GPU would be waited for."""

    names = ("aten.nonzero", "aten._local_scalar_dense", "aten.is_nonzero", "aten.masked_select")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith(self.names)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda model, steps: attacks.PGD(model, 0.05, steps=steps),
        lambda model, steps: attacks.EOTPGD(model, 0.05, steps=steps, draws=2),
        lambda model, steps: attacks.CW(model, searches=1, steps=steps),
    ],
)
def test_steps_wait_for_no_device(clouds, toy, make):
    """Two steps more wait no more often."""
    model, waits = ZeroShotClassifier(toy().eval(), torch.eye(4, 12), 2, 500), []
    for steps in (2, 4):
        with Waits() as mode:
            make(model, steps)(clouds, torch.tensor([0, 1, 2, 3, 0]))
        waits.append(mode.count)
    assert waits[1] == waits[0]


def test_unreachable_targets_are_marked(data):
    def constant(clouds):
        return torch.tensor([3.0, 2, 1]) + 0 * clouds.sum((1, 2))[:, None]

    clouds, labels = data
    attack = attacks.CW(constant, searches=2, steps=5)
    attack(clouds, labels % 3)
    assert attack.unsuccessful.all()


class Quadratic(nn.Module):
    """The margin of class 1 over class 0 is −(x − aim)ᵀ diag(scale) (x − aim) of one point.

    bumps: the height of waves on it, which give it many maxima.
    """

    aim = torch.tensor([0.031, -0.017, 0.043], dtype=torch.float64)
    scale = torch.tensor([1.0, 9, 0.2], dtype=torch.float64)

    def __init__(self, bumps=0.0):
        super().__init__()
        self.bumps = bumps

    def forward(self, clouds):
        x = clouds[:, 0]
        score = (self.bumps * (400 * x).sin() - self.scale * (x - self.aim).square()).sum(1)
        return torch.stack([-score, torch.zeros_like(score)], 1)


def algorithm_1(start, eps, steps, bumps=0.0):
    """Algorithm 1 of Croce and Hein 2020 on the quadratic, in NumPy: f_max after every step.

    Its checkpoints are p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the steps.
    """
    aim, scale = Quadratic.aim.numpy(), Quadratic.scale.numpy()
    low, high = start - eps, start + eps
    f = lambda x: (bumps * np.sin(400 * x) - scale * (x - aim) ** 2).sum()  # noqa: E731
    g = lambda x: np.sign(400 * bumps * np.cos(400 * x) - 2 * scale * (x - aim))  # noqa: E731
    inside = lambda x: np.clip(x, low, high)  # noqa: E731
    eta, x = 2 * eps, [start]
    x.append(inside(x[0] + eta * g(x[0])))
    x_max = max(x, key=f)
    f_maxes, etas, w_last = {0: f(x_max)}, {0: eta}, 0
    for k in range(1, steps):
        z = inside(x[k] + eta * g(x[k]))
        x.append(inside(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])))
        if f(x[k + 1]) > f(x_max):
            x_max = x[k + 1]
        f_maxes[k], etas[k] = f(x_max), eta
        if k in (22, 41, 57, 70, 80, 87, 93, 99):
            rises = sum(f(x[i + 1]) > f(x[i]) for i in range(w_last, k))
            same = etas[w_last] == etas[k] and f_maxes[w_last] == f_maxes[k]
            if rises < 0.75 * (k - w_last) or same:
                eta, x[k + 1] = eta / 2, x_max
            w_last = k
    return list(f_maxes.values()), eta


@pytest.mark.parametrize("bumps", [0.0, 2e-4, 2e-3])
def test_apgd_follows_the_papers_algorithm(bumps):
    model, values = Quadratic(bumps), []
    starts = model.aim.numpy() + np.random.default_rng(0).uniform(-0.05, 0.05, (60, 1, 3))
    clouds, labels = torch.from_numpy(starts), torch.zeros(60, dtype=torch.long)
    attack = attacks.APGD(model, 0.05, steps=100, loss="margin", start="clean")
    found = attack(clouds, labels, record=lambda _, x: values.append(-model(x)[:, 0].numpy()))
    traces = [algorithm_1(start[0], 0.05, 100, bumps) for start in starts]
    np.testing.assert_allclose(np.array(values).T, [trace for trace, _ in traces], atol=1e-12)
    assert max(size for _, size in traces) < 0.05  # it was halved
    if not bumps:
        assert (found[:, 0] - Quadratic.aim).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("kind", "scale", "fields"),
    [
        (attacks.APGD, 4.0, {"steps": 60, "loss": "margin", "draws": 2}),
        (attacks.Square, 2.0, {"steps": 150, "draws": 4}),
    ],
)
def test_the_best_is_not_kept_by_a_lucky_draw(data, kind, scale, fields):
    """Of many iterates under heavy noise the luckiest is far from the best."""
    clouds, _ = data
    model = Noisy(scale=scale)
    labels = model(clouds).argmax(1)

    def margin(points):
        return base.objective(model(points), labels, None, "margin")

    found = kind(model, 0.1, **fields)(clouds, labels)
    exact = kind(Noisy(scale=0.0), 0.1, **fields)(clouds, labels)
    start = attacks.RandomNoise(model, 0.1)(clouds, labels)
    reached = (margin(found) - margin(start)) / (margin(exact) - margin(start))
    assert reached.median() > 0.8


@pytest.mark.parametrize("name", ["Square", "SPSA"])
def test_black_boxes_use_no_gradient_and_beat_noise(data, name):
    clouds, _ = data
    model = Curved()
    labels = model(clouds).argmax(1)

    def asked(points):
        assert not torch.is_grad_enabled()
        assert not points.requires_grad
        return model(points)

    found, noise = (ALL[n](asked, eps=0.2)(clouds, labels) for n in (name, "RandomNoise"))
    assert accuracy(model, found, labels) < accuracy(model, noise, labels)


# ---- the two traps of the paper's protocol ----


def test_second_best_creates_right_answers_and_best_wrong_does_not(data):
    """At a huge ε the paper's target rule leaves (top-2 − top-1) accuracy, best_wrong nothing."""
    clouds, labels = data
    model = Linear(seed=5)
    ranked = model(clouds).topk(2).indices
    second = (ranked[:, 1] == labels).float().mean().item()
    assert 0 < second < 1
    left = {}
    for target in ("second_best", "best_wrong"):
        found = attacks.PGD(model, 5.0, steps=60, target=target)(clouds, labels)
        left[target] = accuracy(model, found, labels)
    assert left["second_best"] == pytest.approx(second)
    assert left["best_wrong"] == 0


@pytest.mark.slow
def test_lucky_noise_fools_the_papers_cw_but_not_the_judged_one(data):
    clouds, _ = data
    model = Noisy(scale=3.0, classes=2)
    labels = model(clouds).argmax(1)
    gap = (model(clouds) @ torch.tensor([1.0, -1])).abs()
    sure = gap > gap.median()
    clouds, labels = clouds[sure], labels[sure]
    indices = torch.arange(len(clouds))

    def fooled(points):
        logits = model.draws(points, indices, range(200, 260)).mean(0)
        return (logits.argmax(1) != labels).float().mean().item()

    published = attacks.CW(model, target="best_wrong", searches=4, steps=60)
    points = published(clouds, labels, indices)
    claimed = (~published.unsuccessful).float().mean().item()
    assert claimed == 1  # it "succeeds" everywhere
    assert fooled(points) < 0.7  # and mostly has not
    judged = attacks.CWEOT(model, target="best_wrong", searches=4, steps=150, judges=100, kappa=1.5)
    points = judged(clouds, labels, indices)
    assert fooled(points) >= 0.8


# ---- losses, targets, faults ----


def test_losses_against_their_formulas():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, targets = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 2])
    ce = nn.functional.cross_entropy
    value = base.objective
    torch.testing.assert_close(
        value(logits, labels, None, "ce"), ce(logits, labels, reduction="none")
    )
    torch.testing.assert_close(
        value(logits, labels, targets, "ce"), -ce(logits, targets, reduction="none")
    )
    for i, row in enumerate(logits):
        z, y, t = row.tolist(), int(labels[i]), int(targets[i])
        ranked = sorted(z, reverse=True)
        wrong = max(v for j, v in enumerate(z) if j != y)
        others = max(v for j, v in enumerate(z) if j != t)
        assert value(logits, labels, None, "margin")[i] == pytest.approx(wrong - z[y])
        assert value(logits, labels, targets, "margin")[i] == pytest.approx(z[t] - others)
        clamped = value(logits, labels, targets, "clamped_margin", 0.5)[i]
        assert clamped == pytest.approx(min(z[t] - others, 0.5))
        dlr = -(z[y] - wrong) / (ranked[0] - ranked[2])
        assert value(logits, labels, None, "dlr")[i] == pytest.approx(dlr)
        dlr = -(z[y] - z[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2)
        assert value(logits, labels, targets, "dlr")[i] == pytest.approx(dlr)


@pytest.mark.parametrize("name", ["PGD", "Square", "SPSA"])
def test_clouds_whose_gradient_or_answer_breaks_stay_clean_and_are_named(data, name, caplog):
    class Breaks(Curved):
        def forward(self, clouds):
            logits, flat = super().forward(clouds), clouds[3:4, 0, :1] * 0
            bad = flat.sqrt() if name == "PGD" else torch.nan  # 0, but its gradient is NaN
            return torch.cat([logits[:3], logits[3:4] + bad, logits[4:]])

    clouds, labels = data
    attack = ALL[name](Breaks(), eps=0.05)
    found = attack(clouds, labels, indices=torch.arange(B) + 40)
    assert attack.failed.nonzero()[:, 0].tolist() == [3]
    assert torch.equal(found[3], clouds[3])
    assert not torch.equal(found[4], clouds[4])
    assert caplog.text.count("[43] are not finite") == 1


def test_a_loss_that_is_flat_at_its_goal_is_no_flat_gradient(data):
    clouds, _ = data
    labels = Linear()(clouds).argmax(1)
    attack = attacks.PGD(Linear(), 0.5, loss="clamped_margin", target="best_wrong")
    found = attack(clouds, labels)
    assert accuracy(Linear(), found, labels) == 0
    assert not attack.flat.any()


def test_frozen_tokens_do_not_judge(defence, clouds, monkeypatch):
    """Targets, restarts and C&W's panels ask the defence itself."""
    classifier, asked = defence(timestep=500), {True: [], False: []}
    original = ZeroShotClassifier.draws

    def draws(self, clouds, indices, seeds):
        asked[self is classifier] += seeds
        return original(self, clouds, indices, seeds)

    monkeypatch.setattr(ZeroShotClassifier, "draws", draws)
    attack = attacks.EOTPGD(classifier, 0.05, 3, 2, restarts=2, grouping="frozen", seed=1)
    attack(clouds, torch.tensor([0, 1, 2, 3, 0]))
    assert len(asked[True]) == 2 * 8 + 2  # of two restarts and of the clean clouds
    assert not set(asked[True]) & set(asked[False])  # on noise that no gradient saw
    assert asked[False]
    assert attack.model is classifier


def test_the_model_is_left_as_it_was(defence, clouds):
    classifier = defence()
    assert classifier.training  # as every module is when made, around a model in evaluation mode
    assert not classifier.model.training
    attacks.PGD(classifier, steps=1)(clouds, torch.tensor([0, 1, 2, 3, 0]))
    assert classifier.training
    assert not any(module.training for module in classifier.model.modules())


@pytest.mark.parametrize("timestep", [0, 500])
def test_frozen_tokens_are_those_of_the_clean_cloud(defence, clouds, timestep):
    classifier, indices = defence(timestep=timestep), torch.tensor([9, 4, 1, 0, 7])
    frozen = classifier.frozen(clouds, indices)
    if timestep == 0:  # with noise the neighbours would be searched in the noisy cloud
        same = classifier.draws(clouds, indices, [3])
        torch.testing.assert_close(frozen.draws(clouds, indices, [3]), same)
    shuffled = clouds + 0.3 * torch.randn(clouds.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(
        frozen.draws(shuffled, indices, [3]), classifier.draws(shuffled, indices, [3])
    )


def test_noise_of_torchs_own_generators_is_seeded(data):
    """A model without ``draws`` can be repeated; torch's state is left alone."""

    def model(clouds):
        logits = Curved()(clouds)
        return logits + 3 * torch.randn_like(logits)

    clouds, _ = data
    indices, state = torch.arange(B), torch.get_rng_state()
    first = base.draw_logits(model, clouds, indices, [5, 6])
    assert torch.equal(first, base.draw_logits(model, clouds, indices, [5, 6]))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(state, torch.get_rng_state())
    bases = base.draw_logits(model, clouds, indices, [2**40, 2**41, 2**42, 2**50])
    assert len({draw.sum().item() for draw in bases}) == 4  # mt19937 keeps 32 bits of a seed


def test_bad_input_is_named(data, caplog, unchecked):
    clouds, labels = data
    plain, ninth = attacks.PGD(Linear()), labels.index_fill(0, torch.tensor([5]), 9)
    for attack, wrong, field in (
        (attacks.APGD(Linear(classes=2), loss="dlr"), {"labels": labels % 2}, "dlr"),
        *((plain, {"labels": x}, "labels") for x in (labels[:3], labels.float(), labels > 0)),
        (plain, {"labels": ninth}, "labels are 0 to 9"),
        *((plain, {"clouds": x}, "clouds") for x in (clouds[0], clouds[:0], clouds * torch.nan)),
        (plain, {"indices": labels[:2]}, "indices"),
        (attacks.PGD(lambda x: Linear()(x)[:, 0]), {}, "shape of logits"),
        (attacks.PGD(lambda x: Linear()(x).detach()), {}, "detach"),
        (attacks.PGD(lambda x: Linear()(x.detach())), {}, "detach"),
    ):
        assert_refuses(field, attack, **{"clouds": clouds, "labels": labels} | wrong)
    with caplog.at_level("WARNING"):
        attacks.PGD(nn.Sequential(Linear(), nn.Softmax(1)), steps=1)(clouds, labels)
        attacks.PGD(Linear(), 100.0, steps=1)(clouds, labels)
    assert "probabilities" in caplog.text
    assert "eps is 100" in caplog.text


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("PGD", field)
        for field in each(target=["x"], loss=["x"], noise=["x"], draws=[0], norm=["l1"])
    ]
    + [("Square", field) for field in each(eps=[-0.1, float("nan"), None])]
    + [("CW", field) for field in each(bounds=[5, [0], ["a", "b"], [80, 0]])]
    + [("PGD", {"model": 5}), ("APGD", {"momentum": 0.5}), ("SPSA", {"pairs": 0})],
)
def test_settings_that_do_not_exist_are_named(kind, fields, unchecked):
    assert_refuses(next(iter(fields)), getattr(attacks, kind), **{"model": Linear()} | fields)


# ---- on the real defence ----


@pytest.fixture
def defence(toy, wake):
    model = wake(toy(feature_types=["text"])).eval()
    weights = torch.nn.functional.normalize(torch.randn(4, 12, generator=torch.Generator()), dim=-1)
    return lambda **fields: ZeroShotClassifier(model, weights, **({"num_noise": 3} | fields))


def test_noise_may_be_kept(defence, clouds):
    classifier, seen = defence(timestep=500), []
    original = classifier.draws
    classifier.draws = lambda c, i, seeds: seen.append(tuple(seeds)) or original(c, i, seeds)
    attack = attacks.PGD(classifier, 0.01, steps=3, draws=2, noise="fixed")
    attack(clouds, torch.tensor([0, 1, 2, 3, 0]))
    assert len(set(seen)) == 1


def test_the_feature_attack_turns_the_feature_away(defence, clouds):
    classifier, labels = defence(timestep=0), torch.tensor([0, 1, 2, 3, 0])
    attack = attacks.FeatureAttack(classifier, 0.1, steps=20, draws=2)
    found = attack(clouds, labels)
    indices, seeds = torch.arange(5), [1, 2, 3]

    def similarity(points):
        pair = [classifier.features(x, indices, seeds).mean(0).flatten(1) for x in (points, clouds)]
        return torch.nn.functional.cosine_similarity(*pair, dim=-1)

    random = attacks.RandomNoise(classifier, 0.1)(clouds, labels)
    assert similarity(found).mean() < similarity(random).mean() - 0.05
