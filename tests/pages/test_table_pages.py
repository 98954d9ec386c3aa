"""The pages of `evaluate` and of `benchmark --html`: their numbers, sorting, and the pairs behind a method."""

import csv
import json

import pytest
from click.testing import CliRunner

import cli
from tests.pages.conftest import run
from tests.workflows.evaluated_pair import write_list, write_pair


@pytest.fixture(scope="module")
def evaluated(engine_dir, tmp_path_factory):
    """Folder of an evaluation of three pairs by three methods."""
    pair = write_pair(tmp_path_factory.mktemp("evaluated"))
    lines = [f"{name},f.nii.gz,m.nii.gz,fl.nii.gz,ml.nii.gz," for name in ("shifted", "again")]
    lines.append("same,f.nii.gz,f.nii.gz,fl.nii.gz,fl.nii.gz,")
    given = ("--affine", "none", "--schedule", "1,1,1,1", "--schedule", "1,2,1,1", "--engine-dir", engine_dir)
    run("evaluate", "--pairs", write_list(pair, *lines), "--output", pair.output, *given, "--threads", 1, "--quiet")
    return pair.output


@pytest.fixture(scope="module")
def measured(engine_dir, tmp_path_factory):
    """Folder with the record b.json and the page b.html of a small benchmark."""
    folder = tmp_path_factory.mktemp("measured")
    given = ("--engine-dir", engine_dir, "--shape", "16,24,16", "--backend", "onnxruntime", "--runs", 2)
    given += ("--no-files", "--no-start-up", "--json", folder / "b.json", "--html", folder / "b.html")
    run("benchmark", *given, "--threads", 1, "--quiet")
    return folder


class TestEvaluation:
    def test_it_has_the_numbers_of_the_scores(self, evaluated):
        text = (evaluated / "index.html").read_text(encoding="utf-8")
        with (evaluated / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 9
        assert all(f">{100 * float(row['dice']):.2f}</td>" in text for row in rows)
        assert "Dice of each label" in text

    def test_a_method_leads_to_its_pairs_and_headings_sort(self, evaluated, open_page):
        opened = open_page(evaluated / "index.html")
        opened.locator("[data-pick]").first.click()
        assert opened.input_value("#method") == "before"
        visible = opened.locator("#pairs tbody tr:visible")
        assert visible.count() == 3
        dice = opened.locator("#pairs thead th").nth(2)
        dice.focus()
        opened.keyboard.press("Enter")
        ascending = visible.locator("th").all_text_contents()
        opened.keyboard.press("Enter")
        descending = visible.locator("th").all_text_contents()
        assert {ascending[0], ascending[-1]} >= {"same"} and ascending.index("same") != descending.index("same")
        values = [float(text) for text in visible.locator("td:nth-child(3)").all_text_contents()]
        assert values in (sorted(values), sorted(values, reverse=True)) and len(set(values)) > 1
        opened.fill("#search", "agai")
        assert visible.locator("th").all_text_contents() == ["again"]
        opened.is_sound()

    @pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
    def test_it_is_accessible_and_fits(self, evaluated, open_page, serious, scheme, width):
        opened = open_page(evaluated / "index.html", color_scheme=scheme, viewport={"width": width, "height": 800})
        assert serious(opened) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.is_sound()


class TestBenchmark:
    def test_it_has_the_tables_of_the_text(self, measured):
        text = (measured / "b.html").read_text(encoding="utf-8")
        record = json.loads((measured / "b.json").read_text(encoding="utf-8"))
        assert record["machine"]["cpu"] in text
        for title in ("Accuracy", "Speed", "Stages", "Where the time goes"):
            assert f"<h3>{title}</h3>" in text
        assert text.count("<svg") == 2

    def test_machines_stand_side_by_side(self, measured, tmp_path, open_page):
        record = json.loads((measured / "b.json").read_text(encoding="utf-8"))
        record["machine"]["cpu"] = "Another processor"
        (tmp_path / "other.json").write_text(json.dumps(record), encoding="utf-8")
        run(
            "benchmark",
            "--compare",
            measured / "b.json",
            "--compare",
            tmp_path / "other.json",
            "--html",
            tmp_path / "p.html",
        )
        opened = open_page(tmp_path / "p.html")
        rows = opened.locator("table").first.locator("tbody tr")
        assert rows.count() == 2 * len(record["contenders"])
        assert any("Another processor" in text for text in rows.all_text_contents())
        assert opened.locator("h1").inner_text() == "2 benchmarks"
        opened.is_sound()

    @pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
    def test_it_is_accessible_and_fits(self, measured, open_page, serious, scheme, width):
        opened = open_page(measured / "b.html", color_scheme=scheme, viewport={"width": width, "height": 800})
        assert serious(opened) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.is_sound()

    @pytest.mark.parametrize(
        "arguments, word",
        [
            (("--html", "b.txt"), "--html: got b.txt"),
            (("--compare", "gone.json", "--html", "b.html"), "--compare"),
            (("--compare", "{other}", "--html", "b.html"), "is no record of a benchmark"),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, monkeypatch, arguments, word):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "other.json").write_text("[]")
        given = [argument.replace("{other}", "other.json") for argument in arguments]
        result = CliRunner().invoke(cli.main, ["benchmark", *given])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and word in result.stderr
