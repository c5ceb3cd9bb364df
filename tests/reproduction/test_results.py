"""Results that the repository holds, and pages that say what they say."""

import json
import re

import pytest

from dual_denoising.reports.card import write_card
from dual_denoising.reports.tables import percent
from dual_denoising.reproduction import report
from dual_denoising.training.record import TrainingRecord
from tests.conftest import ROOT

MODELS = sorted((ROOT / "data" / "models").glob("*/training.json"))
RESULTS = sorted((ROOT / "data" / "results").glob("*/results.json"))
REPORTS = [path.with_name("report.md") for path in RESULTS]
NUMBER = re.compile(r"\d+\.\d(?: ± \d+\.\d)?")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_a_page_is_what_its_results_give(path):
    record = json.loads(path.read_text())
    assert path.with_name("report.md").read_text() == report.in_markdown(record)


@pytest.mark.parametrize("page", ["README.md", "configs/experiment", "data/models"])
def test_numbers_of_a_page_stand_where_they_are_measured(page):
    path = ROOT / page
    words = (path if path.is_file() else path / "README.md").read_text()
    text = "".join(path.read_text() for path in REPORTS)
    numbers = set(re.findall(r"\d+\.\d ± \d+\.\d", words))
    assert numbers
    assert [number for number in sorted(numbers - OWN) if number not in text] == []


OWN = {"25.5 ± 1.6"}  # README's attack.py subset=20
ELSEWHERE = {"15.7"}  # millions of samples of ShapeNet


def test_every_accuracy_of_the_results_page_stands_in_a_report():
    """Also those of the text, and of single training seeds, which results.json has."""
    known = set(NUMBER.findall("".join(path.read_text() for path in REPORTS)))
    known = {part for number in known for part in number.split(" ± ")}
    for table in (t for path in RESULTS for t in json.loads(path.read_text())["tables"]):
        cells = [cell for row in table["rows"].values() for cell in row.values()]
        known |= {f"{value:.1f}" for cell in cells for value in cell["values"]}
    numbers = {part for number in NUMBER.findall(PAGE) for part in number.split(" ± ")}
    assert sorted(numbers - known - ELSEWHERE) == []


def test_the_row_of_a_report_on_the_front_page_is_of_that_report():
    rows = re.findall(r"^\|.*results/.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows
    for row in rows:
        text = (ROOT / re.search(r"\((data/results/[\w/.]+)", row)[1]).read_text()
        assert all(number in text for number in NUMBER.findall(row.split("|")[3]))


PAGE = (ROOT / "configs" / "experiment" / "README.md").read_text()
FROM = re.compile(r"\[reports?\]\(\.\./\.\./(data/results/\w+/report\.md)\)")
SECTIONS = [section for section in re.split(r"\n(?=##)", PAGE) if FROM.search(section)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_a_table_from_reports_has_their_numbers(section):
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    numbers = NUMBER.findall(rows)
    known = NUMBER.findall("".join((ROOT / path).read_text() for path in FROM.findall(section)))
    assert numbers
    assert sorted(set(numbers) - set(known)) == []


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_a_card_is_what_its_record_gives(path, tmp_path):
    folder = tmp_path / path.parent.name
    folder.mkdir()
    TrainingRecord.load(path.parent).save(folder)
    write_card(folder)
    for file in path.name, "README.md":
        assert (folder / file).read_text() == path.with_name(file).read_text()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_the_page_of_the_models_says_what_their_records_do(path):
    record, page = json.loads(path.read_text()), (ROOT / "data/models/README.md").read_text()
    noise = record["feature_noise"]
    rows = [
        f"| {percent(noise['output_share'])}% | {percent(noise['agreement'])}% | "
        f"{percent(noise['top1_s1'])}, {percent(noise['top1_s16'])} | "
        f"{percent(noise['top1_without'])} |"
    ]
    keys = ("ece_uncalibrated", "ece", "auroc", "fpr95", "false_accept", "false_reject")
    for result in record["results"]:
        if result["dataset"] != "modelnet40_sample":  # 36 shapes are too few for a rate
            rows.append(f"| {' | '.join(percent(result[key]) for key in keys)} |")
        if path.parent.name.startswith("primitives"):  # of shapes_clip the page has three seeds
            rows.append(f"| {percent(result['top1_mean'], result['top1_sd'])} ")
    assert [row for row in rows if row not in page] == []
