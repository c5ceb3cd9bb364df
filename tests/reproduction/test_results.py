"""The results that the repository holds: pages and front page say what the files say."""

import json
import re

import pytest

from dual_denoising.reproduction import report
from tests.conftest import ROOT

RESULTS = sorted((ROOT / "data" / "results").glob("*/results.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_a_page_is_what_its_results_give(path):
    record = json.loads(path.read_text())
    assert path.with_name("report.md").read_text() == report.in_markdown(record)


def test_the_front_page_has_the_numbers_of_the_report():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "results/" in line]
    assert rows
    for row in rows:
        page = re.search(r"\((data/results/[\w/.]+)", row)[1]
        text = (ROOT / page).read_text()
        numbers = re.findall(r"\d+\.\d ± \d+\.\d", row)
        assert numbers
        assert [number for number in numbers if number not in text] == []
