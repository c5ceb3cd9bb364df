"""Robustness in words: verdicts, tables, the paper's numbers."""

import pandas as pd
import pytest

from dual_denoising.evaluation.result import Result
from dual_denoising.reports.paper import paper_number
from dual_denoising.reports.robustness import write_attacks
from dual_denoising.reports.verdicts import verdicts
from tests.conftest import each


def result(attack="PGD", robust=0.5, eps=0.05, steps=10, **fields):
    kinds = {"Square": "black", "noise": "noise", "FGM": "one step"}
    common = {"dataset": "modelnet40", "split": "test", "track": "paper", "n": 100, "eot": 1}
    common |= {"kind": kinds.get(attack, "white"), "norm": "none" if attack == "C&W" else "linf"}
    common |= {"num_noise": 8, "timestep": 500, "target": "second_best", "faithful": True}
    common |= {"seconds_per_cloud": 0.1, "seeds": list(range(10)), "clean_mean": 0.9}
    common |= {"robust_sd": 0.01, "robust_interval": [0.4, 0.6], "linf_max": 0.05, "l2_mean": 1.0}
    own = {"attack": attack, "robust_mean": robust, "eps": eps, "steps": steps}
    return Result(**common | own | fields)


def verdict(results, words):
    return next(v for k, v in verdicts(results).items() if words in k)


def test_verdicts_of_a_defence_that_hides_its_gradients():
    good = [
        result(robust=0.6, eps=0.01),
        result(robust=0.2),
        result(robust=0.0, eps=0.5),
        result("Square", 0.4),
        result("noise", 0.85),
        result("FGM", 0.5),
    ]
    assert set(verdicts(good).values()) == {"pass"}
    masked = [
        result(robust=0.6, eps=0.01),
        result(robust=0.7, flat=12),
        result(robust=0.3, eps=0.5),
        result("Square", 0.4),
        result("noise", 0.5),
    ]
    assert verdict(masked, "gradients are not zero").startswith("suspicious: zero on 12")
    assert "60.0% at eps 0.01, 70.0% at 0.05" in verdict(masked, "falls with ε")
    assert verdict(masked, "huge").startswith("suspicious: 30.0%")
    assert verdict(masked, "Square").startswith("suspicious: 30.0")
    assert "20.0 points stronger" in verdict(masked, "noise")
    weak = [result(robust=0.7), result("noise", 0.75)]
    assert "takes 20.0 points, noise 15.0" in verdict(weak, "noise")
    few = [result(robust=0.4, n=2), result("noise", 0.9, n=2)]
    assert "takes 50.0 points, noise 0.0: 2 clouds" in verdict(few, "noise")
    for first, second in ((0.2, 0.0), (0.0, 0.2)):  # whichever stands first
        huge = [result("A", first, eps=0.5), result("B", second, eps=0.5)]
        assert verdict(huge, "huge") == "pass"
    other = [result(robust=0.8), result("L2", 0.1, eps=0.6, norm="l2"), result("Square", 0.3)]
    assert "50.0 points stronger" in verdict(other, "Square")  # whatever another ball allows
    assert not any("huge" in check for check in verdicts(other))  # L2 of 0.6 is small
    still = [result(robust=0.9, eps=0.01), result(robust=0.9)]
    assert "it stays, 90.0% at eps 0.01, 90.0% at 0.05" in verdict(still, "falls with ε")
    gone = [result(robust=0.0, eps=0.01), result(robust=0.0)]
    assert verdict(gone, "falls with ε") == "pass"
    nothing = [result(robust=0.9), result("noise", 0.9)]
    assert "takes 0.0 points, noise 0.0" in verdict(nothing, "noise")
    apart = [result(robust=0.9), result("noise", 0.9, track="adaptive")]
    assert "takes 0.0 points, noise 0.0" in verdict(apart, "noise")
    assert verdicts([result("noise", 0.8)]) == {}


def test_verdicts_about_steps():
    steps = [result(robust=r, steps=s, last=s == 50) for r, s in ((0.8, 1), (0.5, 10), (0.2, 50))]
    assert verdict(steps, "steps suffice").startswith("suspicious")
    steps[2].robust_mean = 0.49
    assert verdict(steps, "steps suffice") == "pass"
    steps[2].robust_mean = 0.6
    assert "falls with steps" in " ".join(verdicts(steps))
    assert "50.0% at steps 10, 60.0% at 50" in verdict(steps, "falls with steps")


def test_a_grid_of_settings_is_a_table_of_them(tmp_path):
    left = {0.1: (1, 0), 0.2: (1, 500), 0.3: (8, 0), 0.4: (8, 500)}  # at (S, t)
    results = [
        result("PGD-10", robust, eps=0.01, num_noise=s, timestep=t)
        for robust, (s, t) in left.items()
    ]
    write_attacks(tmp_path, results)
    text = (tmp_path / "attack.md").read_text()
    assert "paper track, PGD-10, ε = 0.01: robust accuracy, S × t" in text
    rows = [line.replace(" ", "") for line in text.splitlines()]
    assert "|S=8|30.0|40.0|" in rows
    assert "|S=8|21.7|43.4|" in rows  # the paper's Table 5, adversarial
    assert "|S=8|8.3|-3.4|" in rows
    assert (tmp_path / "pictures" / "grid_paper_track_PGD-10_eps0.01.png").exists()
    write_attacks(tmp_path, results[1:])
    assert "S × t" not in (tmp_path / "attack.md").read_text()


def test_tables_keep_the_tracks_apart_and_set_the_papers_numbers_beside(tmp_path):
    results = [
        result(robust=0.25, steps=50),
        result("EOT", 0.1, track="adaptive"),
        result(robust=0.3, steps=5, last=False),
    ]
    write_attacks(tmp_path, results)
    text = (tmp_path / "attack.md").read_text()
    paper, _, adaptive = text.partition("adaptive track")
    assert "EOT" not in paper
    assert "25.0 ± 1.0" in paper
    assert "30.0 ± 1.0" not in paper  # a step on the way is for the curves
    assert " 20.2 " in paper  # the paper's Table 2: PGD, ε = 0.05, N = 8, t = 500
    assert "10.0 ± 1.0" in adaptive.split("| check")[0]
    assert len(pd.read_csv(tmp_path / "attack_paper.csv")) == 2
    assert len(pd.read_csv(tmp_path / "attack_adaptive.csv")) == 1
    assert (tmp_path / "pictures" / "steps_paper.png").exists()
    assert not (tmp_path / "pictures" / "steps_adaptive.png").exists()
    write_attacks(tmp_path, [result(norm=norm) for norm in ("linf", "l2", "rms", "none")])
    assert "√(3N)" in (tmp_path / "attack.md").read_text()


RECON = {"eps": 0.025, "steps": 50, "num_noise": 1, "timestep": 0, "system": "ReCon"}
OTHERS = each(steps=[49], faithful=[False], num_noise=[4], dataset=["modelnet10"], eps=[0.02])


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (20.2, {"steps": 50}),  # Table 2: PGD, ε = 0.05, N = 8, t = 500
        (14.6, {"attack": "C&W", "eps": None, "steps": 500}),
        (43.4, {"attack": "PGD-10", "eps": 0.01}),  # Table 5, adversarial: N = 8, t = 500
        (28.2, {"attack": "PGD-10", "eps": 0.01, "dataset": "scanobjectnn_obj_only"}),
        (13.3, RECON),  # Table 2: PGD at 0.025 leaves 13.3 of ReCon, 5.0 of ULIP
        (5.0, RECON | {"system": "ULIP"}),
        (None, RECON | {"comparable": False}),
        (None, RECON | {"num_noise": 8, "timestep": 500}),
        *((None, {"steps": 50} | other) for other in OTHERS),
    ],
)
def test_the_papers_numbers_stand_beside_what_it_did_alone(number, fields):
    assert paper_number(result(**fields)) == number
