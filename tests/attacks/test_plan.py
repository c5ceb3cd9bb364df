"""What is attacked how: plans, their errors, and every attack configuration."""

import pytest
from omegaconf import OmegaConf

from dual_denoising.attacks.plan import Job, build_attack, plan
from dual_denoising.errors import InputError
from dual_denoising.evaluation.robustness import is_faithful
from dual_denoising.run import Run, load_config
from tests.conftest import ROOT, Linear, assert_refuses, each

PGD = "dual_denoising.attacks.PGD"


@pytest.fixture
def build():
    return Run({"name": "test"}).build


def job_of(track="paper", made_on=(8, 500), record=(), eps=0.1, **spec):
    size = {} if eps is None else {"eps": eps}
    return Job("A", track, (8, 500), eps, spec | size, list(record), made_on)


def test_jobs_are_attacks_times_sizes_times_settings():
    cw = {"track": "adaptive", "_target_": "y.CW", "eps": None, "record": []}
    cw |= {"settings": [[4, 0]], "surrogate": [1, 0]}
    jobs = {"A": {"track": "paper", "_target_": "x", "steps": 5}, "C&W": cw}
    config = {"settings": [[1, 0], [8, 500]], "eps": [0.01, 0.02], "record": [1], "jobs": jobs}
    found = list(plan(config))
    assert [(j.name, j.setting, j.eps, j.record) for j in found] == [
        *(("A", setting, eps, [1]) for setting in ((1, 0), (8, 500)) for eps in (0.01, 0.02)),
        ("C&W", (4, 0), None, []),
    ]
    assert found[0].spec == {"_target_": "x", "steps": 5, "eps": 0.01}
    assert "eps" not in found[4].spec
    assert (found[4].made_on, found[0].made_on) == ((1, 0), (1, 0))
    assert len({job.stem for job in found}) == 5


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"settings": [1, 0]}, "settings"),
        ({"jobs": {}}, "jobs"),
        ({"settings": [[8, "five"]]}, "settings: t is five"),
        ({"eps": []}, "eps"),
        ({"record": 10}, "record is 10"),
        ({"jobs": {"A": {"track": "paper", "surrogate": [1], "_target_": PGD}}}, "surrogate"),
        ({"jobs": {"A": {"track": "mine", "_target_": PGD}}}, "track"),
    ],
)
def test_plans_that_mean_nothing_are_named(config, field):
    good = {"settings": [[1, 0]], "eps": 0.1, "jobs": {"A": {"track": "paper", "_target_": PGD}}}
    assert len(plan(good)) == 1
    assert_refuses(field, plan, good | config)


@pytest.mark.parametrize(
    ("kind", "fields", "stages"),
    [
        ("PGD", {"steps": 3}, 3),
        ("PGD", {"restarts": 2}, 0),
        ("CW", {"searches": 4}, 4),
        ("RandomNoise", {}, 0),
    ],
)
def test_only_steps_that_exist_are_recorded(build, kind, fields, stages):
    eps = None if kind == "CW" else 0.1
    job = job_of(record=[9], eps=eps, _target_=f"dual_denoising.attacks.{kind}", **fields)
    assert_refuses(rf"record is \[9\].* {stages} steps", build_attack, job, Linear(), 0, build)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"_target_": "dual_denoising.attacks.PDG"}, "PDG"),
        ({"_target_": PGD, "stepz": 3}, "PGD.*.stepz.*nearest: steps"),
        ({"_target_": PGD, "norm": "l1"}, "norm is 'l1'"),
        ({"_target_": PGD, "eps": None}, "eps is None"),
        ({"_target_": PGD, "seed": 2**16}, "seed is 65536"),
        ({}, "_target_"),
    ],
)
def test_attacks_that_do_not_exist_are_named(build, spec, words):
    with pytest.raises(Exception, match=words) as caught:
        build_attack(job_of(**spec), Linear(), 0, build)
    assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)


def test_a_jobs_own_seed_counts(build):
    assert build_attack(job_of(_target_=PGD, seed=5), Linear(), 0, build).seed == 5
    assert build_attack(job_of(_target_=PGD), Linear(), 3, build).seed == 3


def test_a_model_that_offers_less_is_put_through_less():
    own = {"plain": {}, "frozen": {"grouping": "frozen"}, "transfer": {"surrogate": [1, 0]}}
    own["own"] = {"settings": [[8, 0]]}
    jobs = {name: spec | {"track": "paper"} for name, spec in own.items()}
    config = {"settings": [[8, 500]], "eps": 0.1, "jobs": jobs}
    still = plan(config, keeps_tokens=False, has_noise=False)
    assert [(job.name, job.setting) for job in still] == [("plain", (1, 0)), ("own", (1, 0))]
    assert [job.name for job in plan(config, keeps_tokens=False)] == ["plain", "transfer", "own"]
    assert [job.name for job in plan(config)] == list(jobs)


def test_an_attack_is_the_papers_or_not(build):
    def faithful(kind="PGD", **fields):
        fields |= {"_target_": f"dual_denoising.attacks.{kind}"}
        job = job_of(eps=None if kind == "CW" else 0.05, **fields)
        return is_faithful(build_attack(job, Linear(), 0, build), job)

    for kind in ("PGD", "IFGM", "CW"):
        assert faithful(kind)
    assert faithful("CW", bounds=[0.0, 80.0])
    for other in (
        *each(target=["best_wrong"], draws=[4], alpha=[0.01], loss=["margin"], norm=["l2"]),
        *each(noise=["fixed"], momentum=[0.5], restarts=[2], track=["adaptive"]),
        {"made_on": (1, 0)},
    ):
        assert not faithful(**other)
    assert not faithful("CW", searches=5)
    assert not faithful("CW", bounds=(10.0, 80.0))


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs/attack").glob("*.yaml")))
def test_every_attack_configuration_builds(name, build):
    cfg = load_config("attack", [f"attack={name}", "checkpoint=x"])
    for job in plan(OmegaConf.to_container(cfg.attack, resolve=True)):
        attack = build_attack(job, Linear(), 0, build)
        assert (job.track == "paper") <= (attack.target in ("second_best", "best_wrong"))
