"""index.html of many registrations: order, filters, flicker, ratings."""

import json

import pytest
from click.testing import CliRunner

import cli
from runtime.errors import InputError
from runtime.pages.index.entries import Entry, compared
from runtime.pages.index.ratings import Rating, read_ratings
from tests.pages.conftest import COUNT, run


@pytest.fixture
def opened(cohort, open_page):
    return open_page(cohort / "index.html", viewport={"width": 1280, "height": 900})


def names(opened) -> list[str]:
    return opened.locator("#list h3").all_text_contents()


class TestOrder:
    def test_the_worst_come_first_by_verdict_and_robust_z(self):
        entries = [Entry(f"p{n}", "ok", (), {"local": 0.9 + 0.001 * n, "folded_share": 0.1}) for n in range(9)]
        entries += [Entry("low", "ok", (), {"local": 0.8, "folded_share": 0.1})]
        entries += [Entry("fails", "failed", ("why",), {"local": 0.9}), Entry("breaks", "error", ("gone",))]
        found = compared(entries)
        assert [entry.name for entry in found[:3]] == ["breaks", "fails", "low"]
        # Of 11 values the median is 0.903 and the median absolute deviation 0.003; a low value is the worse one.
        assert found[2].z["local"] == pytest.approx((0.903 - 0.8) / (1.4826 * 0.003))
        assert "folded_share" not in found[2].z  # all are equal

    def test_too_few_pairs_have_no_z(self):
        assert all(not entry.z for entry in compared([Entry(str(n), "ok", (), {"local": n / 10}) for n in range(4)]))


class TestCommand:
    def test_register_lists_its_results_and_its_errors(self, registered, tmp_path):
        (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
        moving = ("--moving", registered / "m0.nii.gz", "--moving", tmp_path / "broken.nii.gz")
        given = ("register", "--fixed", registered / "fixed.nii.gz", *moving, "--output", tmp_path / "out")
        quick = ("--threads", 1, "--schedule", "1,1,1,1", "--affine", "none", "--forward-only", "--quiet")
        result = CliRunner().invoke(cli.main, [*map(str, (*given, *quick))])
        assert result.exit_code == 1
        text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        first = data["entries"][0]
        assert (first["name"], first["verdict"]) == ("broken", "error")
        assert data["entries"][1]["name"] == "m0" and data["entries"][1]["link"] == "m0/report.html"

    def test_an_index_of_somebody_else_is_not_replaced(self, registered, tmp_path):
        (tmp_path / "index.html").write_text("mine", encoding="utf-8")
        moving = [word for n in range(2) for word in ("--moving", registered / f"m{n}.nii.gz")]
        given = ("register", "--fixed", registered / "fixed.nii.gz", *moving, "--output", tmp_path)
        result = CliRunner().invoke(cli.main, [*map(str, given)])
        assert result.exit_code == 1 and "was not written by rpnet" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["index.html"]  # before any work


class TestRatings:
    def test_a_table_is_read(self, tmp_path):
        path = tmp_path / "ratings.tsv"
        path.write_text("name\tdecision\toptions\tnote\tverdict\na\tredo\t--smooth 1.5\tfolds\tlook\nb\t\t\thm\tok\n")
        assert read_ratings(path) == {"a": Rating("a", "redo", "--smooth 1.5", "folds"), "b": Rating("b", "", "", "hm")}

    @pytest.mark.parametrize(
        "text, word",
        [("a,b\n1,2\n", "columns"), ("name\tdecision\toptions\tnote\na\tdrop\t\t\n", "line 2"), (None, "No such")],
    )
    def test_another_table_is_one_line(self, tmp_path, text, word):
        path = tmp_path / "ratings.tsv"
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=word):
            read_ratings(path)

    def test_by_keyboard_saved_loaded_and_kept(self, opened, cohort, open_page, tmp_path):
        opened.keyboard.press("j")
        opened.keyboard.press("3")
        opened.keyboard.press("j")
        opened.keyboard.press("2")
        opened.locator(".selected .options").fill("--smooth 1.5")
        opened.keyboard.press("Escape")
        opened.keyboard.press("n")
        opened.keyboard.type("rough\tat the top")
        opened.keyboard.press("Escape")
        opened.keyboard.press("j")
        opened.keyboard.press("1")
        opened.keyboard.press("0")
        assert opened.inner_text("#rated") == "2"
        first = names(opened)[:2]
        assert set(first) == {"sub-017", "sub-058"}
        with opened.expect_download() as saved:
            opened.click("#save")
        saved.value.save_as(tmp_path / "ratings.tsv")
        found = read_ratings(tmp_path / "ratings.tsv")
        assert found[first[0]] == Rating(first[0], "exclude")
        assert (found[first[1]].decision, found[first[1]].options) == ("redo", "--smooth 1.5")
        assert found[first[1]].note.startswith("rough") and len(found) == 2
        opened.reload()
        assert opened.inner_text("#rated") == "2"  # kept by the browser
        assert opened.locator(f"li:has-text('{first[0]}') [aria-pressed=true]").inner_text().startswith("exclude")
        other = open_page(cohort / "index.html")
        assert other.inner_text("#rated") == "0"
        other.set_input_files("#load", tmp_path / "ratings.tsv")
        other.wait_for_selector("#rated:text-is('2')")
        assert opened.errors == [] and other.errors == []

    def test_a_page_can_start_with_ratings(self, cohort, tmp_path, open_page):
        (tmp_path / "r.tsv").write_text("name\tdecision\toptions\tnote\nsub-003\texclude\t\tghosts\n")
        before = (cohort / "index.html").read_bytes()
        try:
            run("report", cohort, "--index-only", "--ratings", tmp_path / "r.tsv")
            assert open_page(cohort / "index.html").inner_text("#rated") == "1"
        finally:
            (cohort / "index.html").write_bytes(before)


class TestInABrowser:
    def test_all_pairs_are_there_the_worst_first(self, opened):
        assert opened.locator(".numbers").inner_text().split()[:2] == [str(COUNT), "pairs"]
        for _ in range(10):
            opened.evaluate("window.scrollTo(0, document.body.scrollHeight)")
            opened.wait_for_timeout(30)
        assert len(set(names(opened))) == COUNT and set(names(opened)[:2]) == {"sub-017", "sub-058"}
        opened.is_sound()

    def test_search_filters_and_order(self, opened):
        opened.fill("#search", "sub-05")
        assert set(names(opened)) == {f"sub-05{n}" for n in range(10)} and "10 of 100" in opened.inner_text("#shown")
        opened.select_option("#verdict", "failed")
        assert names(opened) == ["sub-058"]
        opened.fill("#search", "")
        opened.select_option("#verdict", "")
        opened.select_option("#order", "name")
        assert names(opened)[:3] == ["sub-000", "sub-001", "sub-002"]
        opened.select_option("#order", "sd_log_jacobian")
        assert set(names(opened)[:2]) == {"sub-017", "sub-058"}
        opened.select_option("#decision", "keep")
        assert names(opened) == []
        opened.is_sound()

    def test_pictures_flip(self, opened):
        def visible():
            images = opened.locator(".pair").first.locator("img")
            return [
                one.get_attribute("class")
                for one in images.all()
                if one.evaluate("i => getComputedStyle(i).visibility") == "visible"
            ]

        assert visible() == ["warped"]
        opened.keyboard.press("f")
        assert visible() == ["fixed"]
        opened.locator(".pair").first.hover()
        assert visible() == ["warped"]
        opened.is_sound()

    def test_the_selected_pair_is_marked_in_every_distribution(self, opened):
        opened.keyboard.press("j")
        marks = opened.locator(".mark:visible")
        assert marks.count() == opened.locator(".distributions figure").count() > 5
        rough = opened.locator("figure[data-figure=sd_log_jacobian]")
        assert float(rough.locator(".mark").evaluate("mark => parseFloat(mark.style.left)")) > 80

    def test_enter_opens_the_page_of_a_pair(self, opened):
        opened.keyboard.press("j")
        opened.keyboard.press("Enter")
        opened.wait_for_url("**/report.html")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_is_accessible_and_fits(self, cohort, open_page, serious, scheme, width):
        opened = open_page(cohort / "index.html", color_scheme=scheme, viewport={"width": width, "height": 800})
        assert serious(opened) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.is_sound()
