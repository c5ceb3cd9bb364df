"""Tables and verdicts from results, and the page that shows them."""

import json
import re
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from scipy import stats

from dual_denoising import DualDenoising
from dual_denoising.reports.cells import Cell, cell, placed
from dual_denoising.reports.paper import PAPERS
from dual_denoising.reproduction import claims, report
from dual_denoising.reproduction.claims import FAILS, HOLDS, OPEN, UNTESTED
from dual_denoising.reproduction.figures import figures
from dual_denoising.reproduction.tables import PLACES, made_tables
from dual_denoising.run import load_config
from tests.conftest import ink


def row(model="ours", seed=0, measure="", top1=0.7, at=(8, 500), **more):
    fields = {"dataset": "modelnet10", "split": "test", "n": 900, "label": "Dual Denoising"}
    fields |= {"num_noise": at[0], "timestep": at[1], "top1_mean": top1}
    fields |= {"top1_sd": 0.01, "robust_sd": 0.02, "seeds": [0]}
    fields |= dict.fromkeys(("top1_taught", "top1_untaught", "feature_noise"))
    of = {"model": model, "seed": seed, "measure": measure, "job": f"{measure}_{model}_{seed}"}
    return fields | of | more


def attacked(model, robust, seed=0, attack="PGD", measure="attacked", **more):
    more = {"faithful": True} | more
    more = {"eps": 0.025, "steps": 50, "clean_mean": 0.8, "last": True, "n": 60} | more
    return row(model, seed, measure, attack=attack, robust_mean=robust, **more)


def verdicts(rows):
    return {c["words"]: c["verdict"] for c in claims.claims(rows, lambda paths: 1.2)}


def several(*values, n=10**9):
    return Cell(values, n=n, seeds=tuple(range(len(values))))


def test_a_difference_has_the_interval_of_seeds_and_of_clouds():
    first, second = several(70.0, 74.0, 72.0), several(60.0, 62.0, 64.0)
    gap, half = claims.difference(first, second)
    paired = stats.ttest_rel(first.values, second.values).confidence_interval()
    assert gap == pytest.approx(10)
    assert half == pytest.approx((paired.high - paired.low) / 2, rel=1e-3)
    _, half = claims.difference(Cell((50.0,), n=100), Cell((50.0,), n=100))
    assert half == pytest.approx(196 * np.sqrt(2 * 0.25 / 104))
    assert claims.difference(Cell((0.0,), n=60), Cell((0.0,), n=60))[1] > 1


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [(0.8, 0.6, HOLDS), (0.6, 0.8, FAILS), (0.7, 0.71, OPEN), (0.7, None, UNTESTED)],
)
def test_verdicts_change_when_numbers_do(better, worse, expected):
    rows = [row("ours", seed, top1=better + 0.001 * seed) for seed in range(3)]
    if worse is not None:
        rows += [row("mask", seed, top1=worse - 0.001 * seed) for seed in range(3)]
    assert verdicts(rows)["Denoising generalises better than masked reconstruction"] == expected


def made_up(draw):
    """Results of every run that a claim looks at, each accuracy drawn from {0.2, 0.8}."""
    models = "ours", "mask", "s_0", "learned_tokens", "s_0.12", "delta_1", "delta_1000"
    rows = []

    def value():
        return draw.choice([0.2, 0.8]) + 0.001 * draw.random()

    for model in models:
        clean, pgd, control = value(), value(), value()
        for seed in range(3):
            rows.append(row(model, seed, top1=clean, n=10**6))
            rows.append(attacked(model, pgd, seed, n=10**6))
            rows.append(attacked(model, control, seed, measure="control", n=10**6))
    rows.append(attacked("ours", value(), attack="APGD", measure="adaptive", n=10**6))
    ours = {"system": "Dual Denoising", "dataset": "modelnet40", "n": 10**6}
    for at in product((1, 8, 16), (0, 500)):
        rows.append(row(measure="grid", at=at, top1=value(), **ours))
        rows.append(attacked("ours", value(), measure="table5", at=at, n=10**6))
    for steps in (10, 50):
        pgd = {"attack": "PGD-50", "steps": steps, "n": 10**6}
        rows.append(attacked("ours", value(), measure="fig8", **pgd))
    rows.append(attacked("ours", value(), measure="table2", **ours))
    for name in ("PointCLIP V2", "CLIP2Point", "ULIP", "ReCon", "ULIP-2", "Uni3D"):
        theirs = ours | {"system": name, "at": (1, 0)}
        rows.append(row(measure="systems", top1=value(), **theirs))
        rows.append(attacked("ours", value(), measure="table2", **theirs))
    return rows


def test_every_claim_can_hold_and_can_fail():
    seen, draw = {}, np.random.default_rng(0)
    for _ in range(60):
        for claim in claims.claims(made_up(draw), lambda paths: draw.choice([1.1, 8.0])):
            seen.setdefault(claim["words"], set()).add(claim["verdict"])
            assert claim["jobs"]
    assert [words for words, found in seen.items() if not found >= {HOLDS, FAILS}] == []
    assert len(seen) > 25


def test_systems_are_compared_on_the_first_data_set_that_both_have():
    ours = {"system": "Dual Denoising", "measure": "grid"}
    rows = [row(top1=t, dataset=d, **ours) for d, t in (("modelnet40", 0.2), ("modelnet10", 0.9))]
    theirs = {"system": "ReCon", "measure": "systems"}
    rows += [row(top1=0.5, dataset=d, **theirs) for d in ("scanobjectnn_obj_bg", "modelnet40")]
    (found,) = [v for words, v in verdicts(rows).items() if "accurate than ReCon" in words]
    assert found == FAILS


def test_an_adaptive_attack_that_leaves_less_refutes_the_papers():
    for left, expected in ((0.2, FAILS), (0.9, HOLDS)):
        rows = [attacked("ours", 0.6), attacked("ours", left, attack="APGD", measure="adaptive")]
        assert [v for words, v in verdicts(rows).items() if "APGD" in words] == [expected]


def test_a_margin_moves_the_verdict():
    pair = several(70.0, 70.1), several(75.0, 75.1)
    assert [claims.verdict(*pair, least)[0] for least in (-10, 0)] == [HOLDS, FAILS]
    found = [claims.verdict(*pair, within=points)[0] for points in (7, 5, 3)]
    assert found == [HOLDS, OPEN, FAILS]


def test_one_seed_decides_nothing_between_two_trainings():
    pair = several(90.0), several(10.0)
    assert claims.verdict(*pair)[0] == OPEN
    assert claims.verdict(*pair, seeds=1)[0] == HOLDS


def test_only_seeds_that_both_have_are_compared():
    pair = several(90.0, 70.0, 71.0), Cell((60.0, 61.0), n=10**9, seeds=(1, 2))
    assert claims.verdict(*pair)[1].startswith("70.5 ± 0.7 against 60.5 ± 0.7: +10.0")


def test_what_noise_tokens_decide_stands_beside_every_claim_about_them():
    share = {"output_share": 0.012, "agreement": 0.95}
    rows = [row("ours", at=(s, 0), measure="grid") for s in (1, 16)]
    rows += [row("ours", feature_noise=share), row("learned_tokens"), row("s_0")]
    about = [c for c in claims.claims(rows, lambda paths: 1.0) if "1.2%" in c["numbers"]]
    assert len(about) == 4


def test_a_cell_is_one_number_per_training_seed_and_its_difference_is_to_the_paper():
    rows = [row(seed=1, top1=0.72), row(seed=0, top1=0.7), row("s_0", top1=0.1)]
    found = cell(rows, 69.0, model="ours")
    assert found.values == (70.0, 72.0)
    assert (found.here, found.difference) == ("71.0 ± 1.4", "+2.0")
    assert cell(rows, 80.0, model="s_0").difference == "−70.0"
    assert cell(rows, model="s_0").here == "10.0"
    assert cell([r | {"seeds": [0, 1]} for r in rows], model="s_0").here == "10.0 ± 1.0"
    assert cell(rows, model="none").here == ""


def test_the_papers_numbers_stand_where_they_belong():
    at = (1, 0), (1, 500), (8, 0), (8, 500)
    rows = [row(measure="grid", at=pair, dataset="modelnet40") for pair in at]
    table1 = PAPERS["table1"]([*rows, row(measure="grid", dataset="mine", top1=0.3)])
    assert table1["Ours"]["ModelNet40"].difference == "+1.0"
    assert table1["Ours"]["mine"].values == (pytest.approx(30),)
    assert table1["ReCon"].get("mine", Cell()).words == ""
    table5 = PAPERS["table5"](rows)
    assert table5["clean, S = 8"]["t = 500"].paper == 68.9
    assert table5["clean, S = 2"]["t = 0"] == Cell(paper=61.5)
    for r in rows:
        r["dataset"], r["measure"] = "scanobjectnn_obj_only", "table5_scanobjectnn_obj_only"
    table5 = PAPERS["table5"](rows)
    assert {name.rpartition(", S = ")[0] for name in table5} == {"PGD-10, ScanObjectNN"}
    assert table5["PGD-10, ScanObjectNN, S = 8"]["t = 500"].paper == 28.2
    rows = [attacked("ours", 0.3, measure="table2", eps=0.025)]
    table2 = PAPERS["table2"](rows)
    assert table2["PGD@0.025"]["Ours(N=8,t=500)"].difference == "−1.8"
    assert table2["clean"]["Ours(N=8,t=500)"].values == (pytest.approx(80),)
    assert table2["PGD@0.01"]["Ours(N=8,t=500)"] == Cell(paper=48.1)
    for changed in ({"faithful": False}, {"comparable": False}, {"steps": 20}):
        table2 = PAPERS["table2"]([rows[0] | changed])
        assert table2["PGD@0.025"]["Ours(N=8,t=500)"].difference == ""
        assert table2["PGD@0.025"]["Ours(N=8,t=500)"].here == "30.0"


def test_accuracies_of_taught_and_other_names_have_their_harmonic_mean():
    rows = [
        row(model, seed, top1=0.5, n_taught=600, top1_taught=0.6, top1_untaught=0.2)
        for seed in (0, 1)
        for model in ("base", "larger")
    ]
    found = placed(PLACES["accuracies"](rows))
    assert list(found) == ["base, modelnet10 test, n = 900", "larger, modelnet10 test, n = 900"]
    everything, taught, others, both = found["base, modelnet10 test, n = 900"].values()
    assert (everything.here, taught.here, others.here) == ("50.0 ± 0.0", "60.0 ± 0.0", "20.0 ± 0.0")
    assert (both.here, taught.n, others.n) == ("30.0 ± 0.0", 600, 300)


def test_a_table_has_the_models_and_the_measures_that_a_scale_names_for_it():
    rows = [row(model, measure=m) for m in ("", "plain") for model in ("base", "larger")]
    spec = {"models": ["base"], "measures": ["plain"]}
    both, own = made_tables(
        rows,
        {
            "accuracies": spec,
            "other": spec | {"title": "A title", "columns": "accuracies", "measures": []},
        },
    )
    assert list(both.rows) == [
        "base, modelnet10 test, n = 900",
        "base, plain, modelnet10 test, n = 900",
    ]
    assert (own.name, own.title) == ("other", "A title")
    assert list(own.rows) == ["base, modelnet10 test, n = 900"]


def test_attacks_have_a_row_for_each_model_and_measure():
    rows = [attacked("base", 0.2, seed, measure="attacks") for seed in (0, 1)]
    rows += [attacked("base", 0.4, measure="noise"), attacked("base", 0.9, last=False), row("base")]
    found = placed(PLACES["attacks"](rows))
    here = {name: cells["PGD, (8, 500)"].here for name, cells in found.items()}
    assert here == {"base, attacks": "20.0 ± 0.0", "base, noise": "40.0"}


def test_a_table_says_what_noise_tokens_decide_in_every_model():
    keys = "output_share", "agreement", "top1_s1", "top1_s16", "top1_without"
    noise = dict(zip(keys, (0.01, 0.9, 0.5, 0.6, 0.4), strict=True))
    rows = [row("base", seed, feature_noise=noise) for seed in (0, 1)] + [row("other")]
    found = placed(PLACES["feature_noise"](rows))
    assert list(found) == ["base"]
    assert [c.values for c in found["base"].values()] == [(100 * v,) * 2 for v in noise.values()]


def test_certified_accuracy_counts_right_votes_whose_radius_is_as_large():
    votes = {"answers": [0, 1, -1, 2], "labels": [0, 1, 2, 0], "radii": [0.05, 0.1, 0.0, 0.2]}
    found = placed(PLACES["certificates"]([row(measure="certified", vote_noised=0.75, **votes)]))
    assert list(found) == ["ours, certified, t = 500"]
    shares = {words: c.values[0] for words, c in found["ours, certified, t = 500"].items()}
    assert (shares["vote"], shares["certified"]) == (75, 50)
    assert [shares[f"r ≥ {r}"] for r in (0.04, 0.08, 0.12)] == [50, 25, 0]


@pytest.fixture
def record():
    settings = product((0, 1), ("", "grid"), (1, 8), (0, 500))
    rows = [row("ours", seed, measure, at=at) for seed, measure, *at in settings]
    rows += [
        attacked("ours", 0.4, measure="fig8", attack="PGD-50", steps=steps, eps=0.01)
        for steps in (1, 10, 50)
    ]
    return {
        "name": "reproduce",
        "title": "A <title>",
        "words": "of toys",
        "caution": "It is a toy.",
        "tables": [asdict(t) for t in made_tables(rows, load_config("reproduce", []).tables)],
        "claims": claims.claims(rows, lambda paths: 1.2),
        "commands": {r["job"]: f"python {r['job']}" for r in rows},
    }


def test_the_page_needs_no_network_and_every_number_leads_to_its_command(tmp_path, record, toy):
    model: DualDenoising = toy(num_groups=8, group_size=8).eval()
    report.write_report(tmp_path, record, figures(model))
    text = (tmp_path / "report.html").read_text()
    links = re.findall(r'<[^>]* (?:href|src)="([^"]+)"', text)
    ids = re.findall(r'<[^>]* id="([^"]+)"', text)
    assert "A &lt;title&gt;" in text
    for link in links:
        assert link.startswith(("#", "data:", "../"))
        assert not link.startswith("#") or link[1:] in ids
    assert text.count("<canvas") == 3 + 6 + 12
    cells = [c for t in record["tables"] for line in t["rows"].values() for c in line.values()]
    measured = [c for c in cells if c["values"]]
    assert measured
    assert all(c["jobs"] for c in measured)
    tried = [claim for claim in record["claims"] if claim["verdict"] != UNTESTED]
    assert all(claim["jobs"] for claim in tried)
    linked = [job for found in (*measured, *tried) for job in found["jobs"]]
    assert sorted(link[1:] for link in links if link.startswith("#")) == sorted(linked)
    assert all(f"../{job}/summary.json" in links for job in linked)
    assert not re.search(r"https?://", text)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert report.in_markdown(kept) == (tmp_path / "report.md").read_text()


def test_heat_maps_keep_the_data_sets_apart(tmp_path, record):
    settings = product(("modelnet40", "scanobjectnn_obj_only"), (1, 8), (0, 500))
    rows = [row(measure="grid", dataset=name, at=at) for name, *at in settings]
    tables = made_tables(rows, {"table5": {"models": ["ours"], "measures": ["grid"]}})
    report.write_report(tmp_path, record | {"tables": [asdict(tables[0])]}, [])
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {"table5_clean.png", "table5_clean_ScanObjectNN.png"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_at_any_width(tmp_path, record, toy, browser, width):
    model: DualDenoising = toy(num_groups=8, group_size=8).eval()
    report.write_report(tmp_path, record, figures(model))
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if "http" in request.url else 0)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_timeout(300)
    assert wrong == []
    assert min(ink(page, place) for place in (0, 3, 20)) > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = page.evaluate("document.querySelector('canvas').toDataURL()")
    page.locator("canvas").first.drag_to(page.locator("canvas").nth(1))
    assert page.evaluate("document.querySelector('canvas').toDataURL()") != before
    page.close()
