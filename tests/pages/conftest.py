"""A browser, pages of real registrations, and what every page has to keep to."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from runtime.pages.index.entries import COMPARED
from tests import scans

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--enable-unsafe-swiftshader",
)
WITHOUT_WEBGL = ("--disable-gpu", "--disable-software-rasterizer", "--disable-3d-apis")
COUNT = 100  # registrations in the cohort


def run(*arguments) -> str:
    """What a command prints that has to succeed."""
    result = CliRunner().invoke(cli.main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@dataclass
class Opened:
    """A page in the browser, what it asked for, and what went wrong."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def is_sound(self) -> None:
        """Nothing was asked for but the file itself, and nothing went wrong."""
        assert self.errors == []
        outside = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        assert [url.partition(":")[0] for url in outside] == ["file"], outside


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not opened")
    if _browser() is None:
        pytest.skip("there is no Chromium: pages are not opened (Debian: apt install chromium)")
    with api.sync_playwright() as started:
        yield started


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def browser(playwright) -> Iterator[Any]:
    started = playwright.chromium.launch(executable_path=_browser(), args=list(ARGUMENTS))
    yield started
    started.close()


@pytest.fixture(scope="session")
def browser_without_webgl(playwright) -> Iterator[Any]:
    started = playwright.chromium.launch(executable_path=_browser(), args=[*ARGUMENTS[:-1], *WITHOUT_WEBGL])
    yield started
    started.close()


@pytest.fixture
def open_page(request) -> Iterator[Callable[..., Opened]]:
    """Function of a file, and of options of the browser's context: the opened page."""
    contexts = []

    def opened(path: Path, browser: str = "browser", **context) -> Opened:
        contexts.append(request.getfixturevalue(browser).new_context(**context))
        found = Opened(contexts[-1].new_page())
        found.page.on("request", lambda asked: found.requests.append(asked.url))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("console", lambda line: line.type == "error" and found.errors.append(line.text))
        found.page.goto(path.resolve().as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def serious(open_page) -> Callable[[Opened], list[str]]:
    """Function of a page: findings of axe-core that are serious or critical."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

    def findings(opened: Opened) -> list[str]:
        found = module.Axe().run(opened.page).response["violations"]
        return [
            f"{one['id']}: {[node['target'] for node in one['nodes']][:3]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    return findings


@pytest.fixture(scope="session")
def registered(tmp_path_factory) -> Path:
    """Folder with registrations by the engines that ship: four to one scan, one with labels."""
    folder = tmp_path_factory.mktemp("registered")
    fixed = scans.write_scan(folder / "fixed.nii.gz", scans.grid())
    moves = [scans.bend, lambda points: points + 2.0, lambda points: 1.05 * points, lambda points: points]
    moving = [scans.write_scan(folder / f"m{n}.nii.gz", scans.grid(), move) for n, move in enumerate(moves)]
    given = [word for path in moving for word in ("--moving", path)]
    run("register", "--fixed", fixed, *given, "--output", folder / "several", "--threads", 1, "--quiet")
    labels = scans.write_labels(folder / "labels.nii.gz", scans.grid(), scans.bend)
    alone = ("--moving", moving[0], "--moving-labels", labels, "--output", folder / "one")
    run("register", "--fixed", fixed, *alone, "--threads", 1, "--quiet")
    return folder


@pytest.fixture(scope="session")
def cohort(registered, made_once) -> Path:
    """Folder of a hundred registrations: copies of the four, whose figures and verdicts are drawn."""

    def fill(folder: Path) -> None:
        sources = sorted(path.parent for path in (registered / "several").glob("*/report.json"))
        rng = np.random.default_rng(0)
        for n in range(COUNT):
            place = folder / f"sub-{n:03d}"
            place.mkdir()
            source = sources[n % len(sources)]
            report = json.loads((source / "report.json").read_text(encoding="utf-8"))
            figures = report["verdict"]["figures"]
            for name in COMPARED:
                figures[name] = (figures[name] or 1.0) * (1 + 0.02 * rng.standard_normal())
            report["verdict"]["verdict"], report["verdict"]["reasons"] = "ok", []
            if n in (17, 58):
                figures["sd_log_jacobian"] *= 1.5
                report["verdict"]["verdict"], report["verdict"]["reasons"] = "failed", ["the flow is rough"]
            (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
            for name in ("preview.png", "report.html"):
                shutil.copy(source / name, place / name)
        run("report", folder, "--index-only", "--quiet")

    return made_once("cohort", fill)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Pages are made without any connection."""
    connect = socket.socket.connect

    def local(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
