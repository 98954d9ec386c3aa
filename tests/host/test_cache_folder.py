"""The cache folder of compiled code, and its keys."""

import os
import pickle
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime.host import cache_folder as cache
from runtime.host import compiled
from runtime.host.cache_folder import cache_folder, keep, kept

ROOT = Path(__file__).resolve().parents[2]


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
        assert cache_folder() == cache.NOWHERE


POSIX = pytest.mark.skipif(os.name != "posix", reason="owners and modes")


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """An RPNET_CACHE that is not empty; the fallback folder lies in `temporary`."""
    folder = tmp_path / "chosen"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "one").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("RPNET_CACHE", str(folder))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return folder


@POSIX
class TestWhoMayWrite:
    """Files in a cache are executed, so no other user may be able to write them."""

    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
    @pytest.mark.parametrize("part", ["", "kernels"])
    def test_a_folder_that_others_may_write_to_is_not_used(self, chosen, tmp_path, part, mode):
        (chosen / part).chmod(mode)
        assert cache_folder("kernels").parent == tmp_path / "temporary"

    def test_nor_one_that_belongs_to_another_user(self, chosen, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "getuid", lambda: chosen.stat().st_uid + 1)
        if chosen.stat().st_uid == 0:
            assert cache_folder() == chosen, "the system's own"
            os.chown(chosen, 4711, -1)
        assert cache_folder() != chosen

    def test_a_folder_we_make_is_ours_whatever_the_umask(self, chosen, home, monkeypatch):
        before = os.umask(0)
        try:
            monkeypatch.delenv("RPNET_CACHE")
            assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
            keep(chosen / "new" / "file", b"content")
        finally:
            os.umask(before)
        assert kept(chosen / "new" / "file") == b"content"
        (chosen / "new" / "file").chmod(0o666)
        assert kept(chosen / "new" / "file") is None


class TestWhereNothingCanBeWritten:
    @pytest.fixture(autouse=True)
    def full(self, monkeypatch):
        monkeypatch.setattr(cache, "_usable", lambda folder, mode: False)

    def test_a_folder_that_holds_what_is_wanted_is_used(self, chosen):
        assert cache_folder() == cache_folder("kernels") == chosen

    def test_without_that_there_is_none(self, chosen):
        assert cache_folder("engines") == cache.NOWHERE

    def test_nowhere_takes_nothing_and_gives_nothing(self):
        keep(cache.NOWHERE / "a" / "b", b"content")
        assert kept(cache.NOWHERE / "a" / "b") is None
        assert not cache.NOWHERE.exists()


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path):
        keep(tmp_path / "file", bytes(range(100)))
        return tmp_path / "file"

    def test_what_is_kept_comes_back(self, file):
        assert kept(file) == bytes(range(100))

    @pytest.mark.parametrize("size", [0, 1, cache.HASH - 1, cache.HASH, cache.HASH + 99])
    def test_a_file_that_was_cut(self, file, size):
        file.write_bytes(file.read_bytes()[:size])
        assert kept(file) is None

    @pytest.mark.parametrize("place", [0, cache.HASH, -1])
    def test_a_byte_that_was_changed(self, file, place):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        assert kept(file) is None

    def test_nothing_there(self, tmp_path):
        assert kept(tmp_path / "missing") is None


USE = """
    import sys, numpy as np
    from numba.core import event
    from runtime.registration.affine.kernels import block_means
    names = []
    class Compilations(event.Listener):
        def on_start(self, event): names.append(event.data["dispatcher"].py_func.__name__)
        def on_end(self, event): pass
    event.register("numba:compile", Compilations())
    block_means(np.ones((2, 2, 2), np.float32), (2, 2, 2), out := np.empty((1, 1, 1), np.float32))
    print("compiled" if "block_means" in names else "loaded", out[0, 0, 0])
"""


def use(folder: Path) -> str:
    """Say whether a new process compiled a kernel or loaded it, and what the kernel computed."""
    code, environment = textwrap.dedent(USE), {**os.environ, "RPNET_CACHE": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "warm"
    assert use(folder) == "compiled 1.0\n"
    assert use(folder) == "loaded 1.0\n"
    return folder


class TestKernels:
    """Kernels whose files are damaged, or were written by somebody else, are compiled again."""

    @pytest.fixture
    def warm(self, compiled_once, tmp_path):
        return Path(shutil.copytree(compiled_once, tmp_path / "warm"))

    @pytest.mark.parametrize("suffix, size", [("nbi", 0), ("nbi", 50), ("nbc", 0), ("nbc", 2000)])
    def test_a_cut_file(self, warm, tmp_path, suffix, size):
        (file,) = warm.rglob(f"*block_means*.{suffix}")
        file.write_bytes(file.read_bytes()[:size])
        assert use(warm) == "compiled 1.0\n"
        assert use(warm) == "loaded 1.0\n", "mended"

    def test_what_somebody_else_put_there_is_not_run(self, warm, tmp_path):
        for file in warm.rglob("*block_means*"):
            file.write_bytes(pickle.dumps(Touches(tmp_path / "run")) + file.read_bytes())
        assert use(warm) == "compiled 1.0\n"
        assert not (tmp_path / "run").exists()


class Touches:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def package(tmp_path) -> Path:
    """A package with a kernel, a module that the kernel uses, and an unrelated module."""
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "kernels.py").write_text("from numba import njit\n")
    (folder / "inner" / "cells.py").write_text("import x\nfrom numba.extending import intrinsic\n")
    (folder / "inner" / "sliced.py").write_text("from runtime.host.kernels import in_slices\n")
    (folder / "words.py").write_text("words\n")
    return folder


class TestKey:
    def test_dates_and_places_do_not_count(self, package, tmp_path):
        key = compiled.code_key(package)
        for path in package.rglob("*.py"):
            os.utime(path, (0, 0))
        assert compiled.code_key(package) == key
        assert compiled.code_key(Path(shutil.copytree(package, tmp_path / "elsewhere" / "package"))) == key

    def test_the_packages_name_counts(self, package):
        """Compiled code contains it: that of a clone, `runtime`, cannot be loaded by the installed `rpnet`."""
        key = compiled.code_key(package)
        assert compiled.code_key(package.rename(package.with_name("another"))) != key

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
        """A compiled function in a source that the key does not cover would be used although it is outdated."""
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
