"""report.html: what it says without a browser, and what it does in one."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
import runtime
from runtime.geometry.grid import Grid
from runtime.pages.registration.images import PageImages
from runtime.pages.registration.maps import draw_maps
from runtime.pages.registration.page import draw, figure_rows
from runtime.pages.registration.volumes import reduced, reduced_grid
from runtime.registration.output.page import images_of
from tests.pages.conftest import run

MOST_BYTES = 3_000_000


@pytest.fixture
def page(registered):
    return registered / "one" / "report.html"


@pytest.fixture
def one(registered, tmp_path):
    return shutil.copytree(registered / "one", tmp_path / "one")


def shown(opened) -> set[str]:
    """Which images are visible in the first slice."""
    return {
        kind
        for kind in ("fixed", "warped", "moving")
        if opened.locator(f".stack img.{kind}").first.evaluate("image => getComputedStyle(image).visibility")
        == "visible"
    }


class TestContent:
    def test_it_names_the_scans_the_verdict_and_every_figure(self, page):
        text = page.read_text(encoding="utf-8")
        report = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
        assert "<h1>m0.nii.gz" in text and report["inputs"]["fixed"]["sha256"] in text
        for name in report["verdict"]["figures"]:
            assert f'<th scope="row">{name.replace("_", " ")}</th>' in text
        inside = json.loads(re.search(r'id="report">(.*?)</script>', text, re.S)[1])
        assert inside == report
        assert len(text.encode()) < MOST_BYTES

    def test_a_page_of_noise_stays_small(self, tmp_path):
        rng = np.random.default_rng(0)
        grid = Grid((120, 150, 120), np.eye(4))
        fixed, moving, warped = rng.uniform(0.1, 1, (3, *grid.shape)).astype(np.float32)
        flow = rng.normal(0, 1, (3, *grid.shape)).astype(np.float32)
        labels = rng.integers(0, 90, grid.shape)
        drawn = draw(PageImages(fixed, moving, warped, flow, grid, labels), {})
        volumes = sum(len(volume.content) for volume in drawn.volumes)
        assert volumes < 400_000 and len(drawn.volumes) == 3  # at half the resolution they take 700,000 characters

    def test_every_picture_has_words(self, page):
        images = re.findall(r"<img [^>]*>", page.read_text(encoding="utf-8"))
        assert len(images) == 3 * 7 * 3 + 6 * 12
        assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)

    def test_it_is_among_the_files_of_the_report(self, page):
        assert "report.html" in json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["outputs"]

    def test_text_of_a_scan_cannot_become_part_of_the_page(self, registered, tmp_path):
        moving = shutil.copy(registered / "m0.nii.gz", tmp_path / "<img src=x onerror=alert(1)>.nii.gz")
        given = ("--fixed", registered / "fixed.nii.gz", "--moving", moving, "--output", tmp_path / "out")
        run("register", *given, "--threads", 1, "--schedule", "1,1,1,1", "--affine", "none", "--forward-only")
        text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "<img src=x" not in text and "&lt;img src=x" in text
        assert "no similarity was taken" in text  # fixed iterations have no tests

    def test_figures_beyond_their_limits_come_first(self):
        limits = [{"figure": "local", "side": "below", "look": 0.9, "failed": 0.8}]
        limits += [{"figure": "folded_share", "side": "above", "look": 0.1, "failed": 0.2}]
        figures = {"flow_mm": 3.0, "local": 0.85, "folded_share": 0.05}
        score = {"terms": [{"figure": "flow_mm", "usual": 2.0}], "parts": {"flow_mm": 0.5}}
        rows = figure_rows({"figures": figures, "limits": limits, "score": score})
        found = [(row.name, row.verdict) for row in rows]
        assert found == [("local", "look"), ("flow_mm", "ok"), ("folded_share", "ok")]
        assert (rows[1].usual, rows[1].part) == (2.0, 0.5) and rows[0].part is None
        assert rows[0].limits == "look below 0.9, failed below 0.8" and rows[1].limits == ""


class TestAgain:
    """`report DIR` on a result that exists."""

    def test_it_makes_the_same_page_from_the_files(self, one):
        before = (one / "report.html").read_text(encoding="utf-8")
        (one / "report.html").unlink()
        assert run("report", one) == f"wrote {one / 'report.html'}\n"
        after = (one / "report.html").read_text(encoding="utf-8")
        plain = re.compile(
            r'src="data:[^"]*"|<svg.*?</svg>|<script.*?</script>|style="[^"]*"|width="\d+" height="\d+"', re.S
        )
        assert plain.sub("", before) == plain.sub("", after)

    def test_its_images_are_those_of_the_registration(self, registered, shipped, tmp_path):
        with runtime.open_engines(shipped, threads=1) as engines:
            result = runtime.register(registered / "fixed.nii.gz", registered / "m0.nii.gz", engines)
        result.save(tmp_path / "out")
        found = images_of(tmp_path / "out", json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")))
        np.testing.assert_allclose(found.fixed, result.working.fixed, atol=1e-5)
        np.testing.assert_allclose(found.moving, result.working.moving, atol=1e-5)
        assert np.abs(found.flow).max() > 0.3
        # The file holds the transform on the fixed grid, so the flow is known there.
        voxels = np.moveaxis(np.indices(found.grid.shape), 0, -1).reshape(-1, 3)
        known = result.fixed.grid.inside(result.fixed.grid.to_voxels(found.grid.to_physical(voxels)))
        known = known.reshape(found.grid.shape)
        assert known.mean() > 0.4
        np.testing.assert_allclose(found.flow[:, known], result.iterations.flow[:, known], atol=2e-3)
        # Interpolated once here and twice there.
        assert np.abs(found.warped - result.working.warped).mean() < 0.01

    def test_a_scan_that_has_changed_is_one_line(self, one, registered, tmp_path):
        report = json.loads((one / "report.json").read_text(encoding="utf-8"))
        report["inputs"]["moving"]["path"] = str(registered / "m1.nii.gz")
        (one / "report.json").write_text(json.dumps(report), encoding="utf-8")
        assert "has changed since it was registered" in _refused("report", one)
        report["inputs"]["moving"]["path"] = str(tmp_path / "gone.nii.gz")
        (one / "report.json").write_text(json.dumps(report), encoding="utf-8")
        assert "is not there" in _refused("report", one)

    def test_a_folder_without_results_is_one_line(self, tmp_path):
        assert "holds no registration" in _refused("report", tmp_path)

    def test_a_page_of_somebody_else_is_not_replaced(self, one):
        (one / "report.html").write_text("<html>mine</html>", encoding="utf-8")
        assert "was not written by rpnet" in _refused("report", one)
        assert (one / "report.html").read_text(encoding="utf-8") == "<html>mine</html>"

    def test_no_report_writes_none(self, registered, tmp_path):
        given = ("--fixed", registered / "fixed.nii.gz", "--moving", registered / "m0.nii.gz")
        quick = ("--threads", 1, "--schedule", "1,1,1,1", "--affine", "none", "--forward-only")
        run("register", *given, "--output", tmp_path / "out", *quick, "--no-report")
        assert not (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "report.json").exists()


class TestInABrowser:
    def test_images_flip_by_key_click_and_pointer(self, page, open_page):
        opened = open_page(page)
        assert shown(opened) == {"warped"}
        for key, kind in (("1", "fixed"), ("3", "moving"), ("f", "fixed"), ("f", "moving"), ("2", "warped")):
            opened.keyboard.press(key)
            assert shown(opened) == {kind}
        opened.locator(".stack").nth(9).click()
        opened.mouse.move(0, 0)
        assert shown(opened) == {"fixed"} and opened.inner_text("#now") == "fixed"
        opened.locator("[data-show=warped]").click()
        opened.locator(".stack").first.hover()
        assert shown(opened) == {"fixed"}
        opened.mouse.move(0, 0)
        assert shown(opened) == {"warped"}
        opened.is_sound()

    def test_contours_can_be_hidden_and_flicker_ends(self, page, open_page):
        opened = open_page(page)
        contours = opened.locator(".stack svg").nth(3)
        assert contours.is_visible()
        opened.keyboard.press("c")
        assert not contours.is_visible()
        opened.keyboard.press("a")
        opened.wait_for_selector("#alignment[data-shown=fixed]")
        opened.wait_for_selector("#alignment[data-shown=warped]")
        opened.keyboard.press("a")
        assert opened.locator("[data-act=flicker]").get_attribute("aria-pressed") == "false"
        opened.is_sound()

    def test_maps_are_chosen_with_the_keyboard(self, page, open_page):
        opened = open_page(page)
        opened.focus("#map-before")
        opened.keyboard.press("ArrowRight")
        assert opened.locator("[data-map=after]").is_visible() and not opened.locator("[data-map=before]").is_visible()
        opened.is_sound()

    def test_the_viewer_shows_the_volumes(self, page, open_page):
        opened = open_page(page)
        opened.click("#viewer-open")
        opened.wait_for_selector("#viewer-frame[data-ready=yes]", timeout=120_000)
        opened.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        opened.locator("#viewer-canvas").screenshot(path=page.parent / "viewer.png")
        pixels = np.asarray(Image.open(page.parent / "viewer.png").convert("L"), float)
        assert pixels.std() > 10 and (pixels > 100).mean() > 0.01
        opened.select_option("#viewer-layout", "axial")
        opened.fill("#viewer-labels", "0")
        opened.is_sound()

    def test_without_webgl_it_says_so_and_shows_the_pictures(self, page, open_page):
        opened = open_page(page, "browser_without_webgl")
        opened.click("#viewer-open")
        assert "offers no WebGL 2" in opened.inner_text("#viewer-note")
        assert shown(opened) == {"warped"} and not opened.locator("#viewer-frame").is_visible()
        opened.is_sound()

    def test_without_scripts_all_pictures_are_there(self, page, open_page):
        opened = open_page(page, java_script_enabled=False)
        assert opened.locator(".stack img.warped").first.is_visible()
        opened.locator("label[for=map-grid]").click()
        assert opened.locator("[data-map=grid]").is_visible()

    def test_the_report_can_be_saved(self, page, open_page):
        opened = open_page(page)
        opened.click("#everything > summary")
        with opened.expect_download() as saved:
            opened.click("#download")
        assert json.loads(saved.value.path().read_text()) == json.loads((page.parent / "report.json").read_text())
        opened.is_sound()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_is_accessible_and_fits(self, page, open_page, serious, scheme, width):
        opened = open_page(page, color_scheme=scheme, viewport={"width": width, "height": 800})
        opened.click("#everything > summary")
        assert serious(opened) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.is_sound()

    def test_print_shows_every_map(self, page, open_page):
        opened = open_page(page)
        opened.emulate_media(media="print")
        assert all(one.is_visible() for one in opened.locator(".map").all())
        assert not opened.locator("#viewer").is_visible()


class TestMaps:
    """Colours where the answer is known."""

    @pytest.fixture
    def images(self):
        grid = Grid((24, 32, 28), np.eye(4))
        i, j, k = np.indices(grid.shape)
        ball = np.clip(9 - np.sqrt((i - 12) ** 2 + (j - 16) ** 2 + (k - 14) ** 2), 0, 2).astype(np.float32) / 2
        texture = ball * (0.6 + 0.4 * np.sin(i) * np.sin(1.3 * j) * np.sin(0.7 * k)).astype(np.float32)
        return PageImages(texture, texture, texture, np.zeros((3, *grid.shape), np.float32), grid)

    def test_equal_images_leave_every_map_empty(self, images):
        for one in draw_maps(images):
            middle = _decoded(one.planes["axial"][1][0])
            if one.key in ("before", "after", "jacobian"):
                assert middle.max() < 20, one.key
            if one.key == "correlation":
                assert np.ptp(middle.astype(int), axis=-1).max() < 24  # grey

    def test_an_expansion_is_orange_and_a_fold_white(self, images):
        flow = images.flow.copy()
        flow[0] = 0.6 * (np.indices(images.grid.shape)[0] - 12)
        flow[0, 12:14] = np.array([3.0, -3.0])[:, None, None]
        drawn = draw_maps(PageImages(images.fixed, images.moving, images.warped, flow, images.grid))
        jacobian = next(one for one in drawn if one.key == "jacobian")
        picture = _decoded(jacobian.planes["axial"][1][0]).astype(int)
        assert (picture.min(axis=-1) > 200).any()
        red, _, blue = picture[14, 5:8].mean(axis=0)
        assert red > blue + 50

    @pytest.mark.parametrize("factor", [1, 2, 3])
    def test_a_reduced_resolution_is_the_mean_in_the_same_place(self, factor):
        grid = Grid((6, 5, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
        places = grid.to_physical(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)).reshape(*grid.shape, 3)
        half = reduced_grid(grid, factor)
        found = np.stack([reduced(places[..., axis], factor) for axis in range(3)], axis=-1)
        expected = half.to_physical(np.moveaxis(np.indices(half.shape), 0, -1).reshape(-1, 3)).reshape(*half.shape, 3)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def _refused(*arguments) -> str:
    result = CliRunner().invoke(cli.main, [*map(str, arguments)])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    return result.stderr


def _decoded(uri: str) -> np.ndarray:
    import base64
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
