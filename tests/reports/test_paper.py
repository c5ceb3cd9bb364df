import csv
import re

import numpy as np
import pandas as pd
import pytest

from dual_denoising.evaluation import metrics
from dual_denoising.evaluation.result import OURS, Result
from dual_denoising.reports import beside_paper, tables


def result(dataset="toy", paths=8, step=500, top1=0.625, **fields):
    common = {"dataset": dataset, "split": "test", "n": 4, "seeds": [0, 1], "top1_mean": top1}
    common |= {"num_noise": paths, "timestep": step, "top1_sd": 0.125, "note": "no name seen"}
    common |= {"top1_interval": list(metrics.wilson_interval(top1, 4)), "class_mean": 0.625}
    common |= {"top3_mean": 1.0, "top5_mean": 1.0, "seconds_per_cloud": 0.002}
    common |= {"class_names": ["bed", "sofa"], "confusion": [[3, 1], [2, 2]]}
    return Result(**common | fields)


def rows_of(path):
    """The cells of every row of the tables in a Markdown file."""
    rows = [line.strip("|") for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_accuracies_are_written_with_n_settings_seeds_intervals_and_confusions(tmp_path):
    tables.write_accuracies(tmp_path, [result()], {"other": "gone"})
    rows = rows_of(tmp_path / "zeroshot.md")
    words = "toy test|4|2|50.0|8|500|2|62.5 ± 12.5|21.9 to 90.8|100.0|62.5||||2.0|no name seen"
    assert rows[-1] == words.split("|")
    assert ["bed", "75.0", "sofa 25"] in rows
    assert re.search("other.*gone", (tmp_path / "zeroshot.md").read_text())
    assert (tmp_path / "pictures" / "confusion_toy_test.png").exists()


def test_a_name_with_a_bar_stays_in_its_column():
    assert tables.markdown([{"file": "a|b"}]).splitlines()[-1].count(" |") == 1


def test_the_harmonic_mean_is_of_taught_and_other_names():
    row = result(top1_taught=0.6, top1_untaught=0.2, n_taught=3).short()
    assert tables.accuracy_rows([row])[0]["harmonic mean"] == "30.0"  # 2 · 0.6 · 0.2 / 0.8


def test_table1_sets_the_paper_beside_ours_and_says_what_is_absent(tmp_path):
    results = [
        result("modelnet40", step=500, top1=0.60),
        result("modelnet40", step=100, top1=0.70),
        result("modelnet40", paths=1, step=0, top1=0.99),  # the table is of S = 8
        result("modelnet10", step=500, top1=0.90, seen=True),
    ]
    beside_paper.writer("table1")(tmp_path, results, {"scanobjectnn_obj_bg": "x.h5: missing"})
    rows = {row[0]: row[1:] for row in rows_of(tmp_path / "table1.md")}
    assert rows[""][:3] == ["ModelNet10", "ModelNet40", "S-OBJ_ONLY"]
    assert rows["ReCon"][1] == "61.7 / – / –"
    assert rows["Ours"][:2] == ["79.5 / 90.0 ± 12.5, seen / –", "69.0 / 60.0 ± 12.5 / −9.0"]
    assert rows["Ours"][2] == "52.7 / – / –"
    assert rows["Ours, best t"][1] == "69.0 / 70.0 ± 12.5 at 100 / +1.0"
    assert "scanobjectnn_obj_bg: absent: x.h5: missing" in (tmp_path / "table1.md").read_text()
    table = pd.read_csv(tmp_path / "table1.csv").set_index(["row", "column"])
    assert table.loc[("Ours", "ModelNet40"), "here"] == pytest.approx(60)
    assert np.isnan(table.loc[("Ours", "S-OBJ_BG"), "here"])


def test_table5_writes_differences_and_a_heat_map(tmp_path):
    results = [result("modelnet40", s, t, 0.5) for s in (1, 8) for t in (0, 500)]
    beside_paper.writer("table5")(tmp_path, results, {"scanobjectnn_obj_only": "gone"})
    rows = list(csv.DictReader((tmp_path / "table5.csv").open()))[:4]
    found = {(int(r["num_noise"]), int(r["timestep"])): float(r["difference"]) for r in rows}
    assert found == pytest.approx({(1, 0): -7.7, (1, 500): -10.1, (8, 0): -16.5, (8, 500): -18.9})
    assert (tmp_path / "pictures" / "table5_modelnet40_test.png").stat().st_size > 5000
    assert "scanobjectnn_obj_only: absent: gone" in (tmp_path / "table5.md").read_text()
    assert ["S = 8", "66.5", "68.9"] in rows_of(tmp_path / "table5.md")


@pytest.mark.parametrize("given", [{"step": 500, "seen": True}, {"step": 150}])
def test_table5_compares_neither_what_was_seen_nor_a_t_that_the_paper_lacks(tmp_path, given):
    results = [result("modelnet40", 8, top1=0.5, **given)]
    beside_paper.writer("table5")(tmp_path, results, {"x": "gone"})
    table = pd.read_csv(tmp_path / "table5.csv")
    assert pd.isna(table["difference"][0])
    assert table.loc[1, ["dataset", "n", "note"]].tolist() == ["x", 0, "gone"]
    assert "nan" not in (tmp_path / "table5.md").read_text()


def test_predictions_are_saved_per_cloud(tmp_path, source):
    results = [result("toy", s, t) for s in (1, 8) for t in (0, 500)]
    predicted = np.random.default_rng(0).integers(-1, 3, (2, 2, 2, 12))
    tables.write_predictions(tmp_path, source, results, predicted)
    table = pd.read_csv(tmp_path / "predictions" / "toy_test.csv", keep_default_na=False)
    names = np.array(["bed", "chair", "sofa", ""])
    assert table["label"].tolist() == names[source.labels].tolist()
    assert table["S8_t0_seed1"].tolist() == names[predicted[0, 1, 1]].tolist()
    assert table["S1_t500_seed0"].tolist() == names[predicted[1, 0, 0]].tolist()
    assert list(table.columns[:3]) == ["index", "id", "label"]
    two = [result("toy", 8, [0, 500], timestep_weights=[1, w]) for w in (1, 3)]
    tables.write_predictions(tmp_path, source, two, predicted[:, :1])
    table = pd.read_csv(tmp_path / "predictions" / "toy_test.csv")
    assert len(table.columns) == 3 + 2 * 2  # ensembles of the same timesteps stand apart


def test_every_system_has_a_row_of_its_own_in_table1(tmp_path):
    recon = {"system": "ReCon", "label": "ReCon", "model": "a", "comparable": True}
    noisy = {"label": "ReCon, noise s = 0.08", "noise_scale": 0.08, "comparable": False}
    results = [
        result("modelnet40", 1, 0, 0.60, **recon),
        result("modelnet40", 1, 0, 0.90, **recon | {"model": "b", "comparable": False}),
        result("modelnet40", 8, 500, 0.50, **recon | noisy),
    ]
    beside_paper.writer("table1")(tmp_path, results, {})
    rows = {row[0]: row[2] for row in rows_of(tmp_path / "table1.md")}
    assert rows["ReCon"] == "61.7 / 60.0 ± 12.5 / −1.7"
    assert rows["ReCon #2"] == "90.0 ± 12.5 (!)"
    assert rows["ReCon, noise s = 0.08"] == "50.0 ± 12.5 (!)"


def test_table2_has_a_column_for_every_system_and_its_weights(tmp_path):
    fixed = {"paths": 1, "step": 0, "track": "paper", "attack": "PGD", "eps": 0.05, "steps": 50}
    fixed |= {"clean_mean": 0.9, "system": "ReCon", "label": "ReCon", "model": "a", "note": ""}
    fixed |= {"faithful": True}

    def attacked(robust, dataset="modelnet40", **fields):
        return result(dataset, **(fixed | {"robust_mean": robust} | fields))

    ours = {"system": OURS, "label": OURS, "paths": 8, "step": 500}
    results = [attacked(0.1), attacked(0.2, model="b", comparable=False), attacked(0.3, **ours)]
    results += [attacked(0.05, attack="PGD best_wrong"), attacked(0.4, track="adaptive")]
    beside_paper.write_table("table2", tmp_path, results, {"uni3d": "x.pt: no such checkpoint"})
    table = pd.read_csv(tmp_path / "table2.csv").set_index(["row", "column"])
    here = table.loc["PGD@0.05", "here"].dropna()
    assert dict(here) == pytest.approx({"ReCon": 10, "ReCon #2": 20, "Ours(N=8,t=500)": 30})
    assert table.loc[("PGD@0.05", "ReCon"), "difference"] == pytest.approx(6.5)
    assert pd.isna(table.loc[("PGD@0.05", "ReCon #2"), "difference"])
    assert table.loc[("PGD best_wrong@0.05", "ReCon"), "here"] == pytest.approx(5)
    assert "uni3d: absent: x.pt: no such checkpoint" in (tmp_path / "table2.md").read_text()
    beside_paper.write_table("table2", tmp_path, [attacked(0.1, "modelnet10")], {})
    table = pd.read_csv(tmp_path / "table2.csv")
    assert table["here"].notna().any()
    assert table["difference"].isna().all()  # the paper's numbers are of ModelNet40
