"""Where compiled code lies, and under which key."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from runtime import cache, compiled
from runtime.cache import cache_folder


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("RPNET_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    cache._temporary_folder.cache_clear()
    yield
    cache._temporary_folder.cache_clear()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


class TestFolder:
    def test_the_variable_wins_and_the_folder_is_made(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "a" / "b"))
        assert cache_folder() == tmp_path / "a" / "b"
        assert cache_folder().is_dir()

    @pytest.mark.parametrize(
        "system, expected", [("linux", ".cache/rpnet"), ("darwin", "Library/Caches/rpnet"), ("win32", "local/rpnet")]
    )
    def test_each_system_has_its_place(self, home, monkeypatch, system, expected):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv("LOCALAPPDATA", str(home / "local"))
        assert cache_folder() == home / expected

    def test_xdg(self, home, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "rpnet"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
        assert cache_folder() == home / ".cache" / "rpnet"

    def test_a_temporary_folder_of_the_users_own_where_nothing_can_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "file" / "below"))
        monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
        folder = cache_folder()
        assert folder.parent == tmp_path and folder.name.startswith("rpnet")
        assert folder.is_dir() and folder == cache_folder()
        if os.name == "posix":
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.skipif(os.name != "posix", reason="owners and modes")
    @pytest.mark.parametrize("trap", ["open to all", "a link"])
    def test_a_folder_others_may_write_to_is_not_used(self, tmp_path, monkeypatch, trap):
        (tmp_path / "file").touch()
        (tmp_path / "theirs").mkdir()
        planted = tmp_path / f"rpnet-{os.getuid()}"
        if trap == "a link":
            planted.symlink_to(tmp_path / "theirs")
        else:
            planted.mkdir()
            planted.chmod(0o777)
        monkeypatch.setenv("RPNET_CACHE", str(tmp_path / "file"))
        monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
        folder = cache_folder()
        assert folder != planted and folder.is_dir()
        shutil.rmtree(folder)


@pytest.fixture
def package(tmp_path) -> Path:
    """A package of a kernel, what it is made of, and something else."""
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "kernels.py").write_text("from numba import njit\n")
    (folder / "inner" / "cells.py").write_text("import x\nfrom numba.extending import intrinsic\n")
    (folder / "inner" / "sliced.py").write_text("from runtime.slices import in_slices\n")
    (folder / "words.py").write_text("words\n")
    return folder


class TestKey:
    def test_dates_and_places_do_not_count(self, package, tmp_path):
        key = compiled.code_key(package)
        for path in package.rglob("*.py"):
            os.utime(path, (0, 0))
        assert compiled.code_key(package) == key
        assert compiled.code_key(Path(shutil.copytree(package, tmp_path / "elsewhere"))) == key

    @pytest.mark.parametrize("name", ["kernels.py", "inner/cells.py", "inner/sliced.py"])
    def test_contents_of_every_source_with_kernels_count(self, package, name):
        key = compiled.code_key(package)
        with (package / name).open("a") as file:
            file.write("\n")
        assert compiled.code_key(package) != key

    def test_names_count(self, package):
        key = compiled.code_key(package)
        (package / "kernels.py").rename(package / "loops.py")
        assert compiled.code_key(package) != key

    def test_other_sources_do_not_count(self, package):
        key = compiled.code_key(package)
        (package / "words.py").write_text("more words\n")
        assert compiled.code_key(package) == key

    @pytest.mark.parametrize("library", ["numba", "llvmlite"])
    def test_versions_count(self, package, monkeypatch, library):
        key = compiled.code_key(package)
        monkeypatch.setattr(getattr(compiled, library), "__version__", "0.0.1")
        assert compiled.code_key(package) != key

    def test_no_kernel_of_ours_escapes_the_key(self):
        """A compiled function in a source that the key does not read would be taken for fresh when it is not."""
        for path in compiled.PACKAGE.rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if any(word in source for word in ("@njit", "= njit", "@intrinsic", "@in_slices", "@compiled")):
                assert compiled.HAS_KERNELS.search(source), path


def test_versions_used_long_ago_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("RPNET_CACHE", str(tmp_path))
    for n in range(12):
        (tmp_path / compiled.FOLDER / f"{n:016x}").mkdir(parents=True)
        os.utime(tmp_path / compiled.FOLDER / f"{n:016x}", (n, n))
    folder = compiled.code_folder.__wrapped__()
    left = sorted(path.name for path in folder.parent.iterdir())
    assert left == sorted([folder.name, *(f"{n:016x}" for n in range(12 - compiled.KEPT + 1, 12))])
