"""Make a cohort of registrations to the MNI152 brain, and measure its pages in a browser: size, time to open, memory.

    python -m measurements.pages make --count 100 --output runs/pages
    python -m measurements.pages open runs/pages --pictures runs/pages/pictures
    python -m measurements.pages cost runs/pages/sub-000 --rounds 5

Every pair is the template and a randomly warped copy of it, as in `cli.py demo`; some are spoiled, so that something is
to be found. `make` goes on where it was stopped. `open` needs Chromium and the package playwright.
"""

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

import runtime
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import Volume, read_labels, read_volume
from runtime.pages.index.entries import Entry, entry_of_report
from runtime.pages.index.page import write_index_page
from runtime.registration.output.folder import Outputs
from runtime.registration.output.index import INDEX, results_in, write_index
from runtime.workflows.demo.run import make_pair

Array = np.ndarray
ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader", "--enable-precise-memory-info")
LARGE = 1000  # registrations of the largest list
# What is done to every so many-th scan.
SPOILED: dict[int, tuple[str, Callable[[Array, np.random.Generator], Array]]] = {
    7: ("noise", lambda data, rng: np.abs(data + rng.normal(0, 0.35 * data.max(), data.shape)) * (data > 0)),
    23: ("inverted", lambda data, rng: np.where(data > 0, 1.05 * data.max() - data, 0)),
    51: ("half missing", lambda data, rng: data * (np.arange(data.shape[2]) > 0.55 * data.shape[2])),
    77: ("no brain", lambda data, rng: rng.permutation(data.ravel()).reshape(data.shape)),
}


@click.group(help=__doc__.split("\n\n")[0])
def main() -> None:
    pass


@main.command()
@click.option("--count", default=100, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--threads", type=int)
def make(count: int, output: Path, threads: int | None) -> None:
    """Register warped copies of the template to it, and write the page of all."""
    with runtime.open_engines(threads=threads) as engines:
        onto = None
        for number in range(count):
            place = output / f"sub-{number:03d}"
            if (place / "report.json").exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                pair = make_pair(folder, seed=number)
                onto = onto or runtime.FixedScan(_kept(pair.fixed, output / "fixed.nii.gz"), engines)
                moving, labels = read_volume(pair.moving, "moving"), read_labels(pair.moving_labels, "labels")
            if number in SPOILED:
                rng = np.random.default_rng(number)
                data = SPOILED[number][1](moving.data, rng).astype(np.float32)
                moving = Volume(**{**vars(moving), "data": np.ascontiguousarray(data)})
            path = output / "scans" / f"sub-{number:03d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_volume(path, moving.data, moving.grid)
            result = onto.register(path, labels)
            result.save(place, overwrite=True, outputs=Outputs(both=False))
            for name in ("warp.nii.gz", "jacobian.nii.gz"):
                (place / name).unlink()  # 160 MB that no page shows
            click.echo(f"{number + 1} of {count}: {result.verdict}")
    write_index(output, results_in(output))


def _kept(path: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(path, place))


@main.command("open")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for screenshots.")
def open_pages(folder: Path, pictures: Path | None) -> None:
    """Measure the pages of a cohort in Chromium, as files on this machine."""
    results = results_in(folder)
    sizes = [(result / "report.html").stat().st_size / 1e6 for result in results]
    click.echo(f"report.html of {len(results)}: median {statistics.median(sizes):.2f} MB, largest {max(sizes):.2f} MB")
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        large = Path(place) / INDEX
        _write_large(large, results, folder)
        click.echo("| page | MB | shown after, s | script heap, MB |\n| --- | --- | --- | --- |")
        for name, path, shown in (
            ("report.html", results[0] / "report.html", ".stack"),
            (f"index.html, {len(results)}", folder / INDEX, ".card"),
            (f"index.html, {LARGE}", large, ".card"),
        ):
            times, heap = [], 0.0
            for _ in range(5):
                page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
                start = time.perf_counter()
                page.goto(path.resolve().as_uri())
                page.locator(shown).first.wait_for()
                times.append(time.perf_counter() - start)
                heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
                page.context.close()
            click.echo(
                f"| {name} | {path.stat().st_size / 1e6:.2f} | {statistics.median(times):.2f} "
                f"({min(times):.2f} to {max(times):.2f}) | {heap:.0f} |"
            )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((results[0] / "report.html").resolve().as_uri())
        start = time.perf_counter()
        page.click("#viewer-open")
        page.wait_for_selector("#viewer-frame[data-ready=yes]", timeout=300_000)
        click.echo(f"viewer, WebGL 2 in software: ready after {time.perf_counter() - start:.1f} s")
        if pictures:
            _draw(browser, folder, results, pictures)


def _write_large(path: Path, results: list[Path], folder: Path) -> None:
    """Write the page of a thousand registrations: the cohort's entries repeated, their figures changed a little."""
    entries: list[Entry] = []
    for result in results:
        report = json.loads((result / "report.json").read_text(encoding="utf-8"))
        entries.append(entry_of_report(result.name, report, None, result / "preview.png"))
    rng = np.random.default_rng(0)
    many = []
    for number in range(LARGE):
        entry = entries[number % len(entries)]
        figures = {k: v and v * (1 + 0.01 * rng.standard_normal()) for k, v in entry.figures.items()}
        many.append(dataclasses.replace(entry, name=f"sub-{number:04d}", figures=figures))
    write_index_page(path, f"{LARGE} registrations", many)


def _draw(browser: Any, folder: Path, results: list[Path], pictures: Path) -> None:
    """Write screenshots: light and dark, wide and narrow, and the viewer."""
    pictures.mkdir(parents=True, exist_ok=True)
    one = (results[0] / "report.html").resolve().as_uri()
    index = (folder / INDEX).resolve().as_uri()
    for name, url, width, height, scheme, keys in (
        ("report", one, 1280, 1100, "light", ()),
        ("report-dark", one, 1280, 1100, "dark", ("1",)),
        ("report-phone", one, 390, 844, "light", ()),
        ("index", index, 1280, 1300, "light", ("j", "j", "2")),
        ("index-dark", index, 1280, 1300, "dark", ("j",)),
        ("index-phone", index, 390, 844, "dark", ()),
    ):
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        page.goto(url)
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        page.screenshot(path=pictures / f"{name}.png")
        page.context.close()
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(one)
    page.click("#viewer-open")
    page.wait_for_selector("#viewer-frame[data-ready=yes]", timeout=300_000)
    page.locator("#viewer-title").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.locator("#viewer").screenshot(path=pictures / "report-viewer.png")
    page.context.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a started browser."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise click.ClickException("there is no Chromium; Debian: apt install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@main.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=int)
def cost(result: Path, rounds: int, threads: int | None) -> None:
    """Measure what the page adds to `register`: whole processes with and without it, in turn, on a result's scans."""
    report = json.loads((result / "report.json").read_text(encoding="utf-8"))
    scans = [word for name in ("fixed", "moving") for word in (f"--{name}", report["inputs"][name]["path"])]
    found: dict[str, list[float]] = {"--report": [], "--no-report": []}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(ROOT / "cli.py"), "register", *scans, "--output", f"{folder}/out", "--overwrite"]
        words += ["--quiet", *(["--threads", str(threads)] if threads else [])]
        for option in (*found, *list(found) * rounds):
            start = time.perf_counter()
            subprocess.run([*words, option], check=True)
            found[option].append(time.perf_counter() - start)
    with_page, without = (times[1:] for times in found.values())
    ratios = [one / other for one, other in zip(with_page, without, strict=True)]
    click.echo(
        f"with the page {statistics.median(with_page):.2f} s, without {statistics.median(without):.2f} s; ratio median "
        f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, {rounds} rounds"
    )


if __name__ == "__main__":
    main()
