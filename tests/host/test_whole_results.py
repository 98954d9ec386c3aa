"""Files and folders that appear whole or not at all, the lock on a folder, and what killed processes leave behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.errors import InputError, ScarceError
from runtime.host.files import folder_lock as locks
from runtime.host.files import whole_files
from runtime.host.files.folder_lock import LOCK, folder_lock
from runtime.host.files.whole_files import atomic_path, temporary_name, write_text
from runtime.host.files.whole_folder import READY, whole_result

ROOT = Path(__file__).resolve().parents[2]


def killed(code: str) -> None:
    """Run Python code in a process that then kills itself as the system would, without a chance to clean up."""
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport os; os.kill(os.getpid(), 9)"], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder():
    """Start a process that holds a folder until it is killed."""
    started = []

    def hold(folder: Path) -> subprocess.Popen:
        code = f"""
import time
from pathlib import Path
from runtime.host.files.folder_lock import folder_lock
with folder_lock(Path({str(folder)!r})):
    print("held", flush=True)
    time.sleep(100)
"""
        started.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.wait()


class TestFile:
    def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_this_file(self, tmp_path):
        path = tmp_path / "warp.nii.gz"
        killed(f"from runtime.host.files.whole_files import *; from pathlib import Path\n"
               f"writing = atomic_path(Path({str(path)!r})); writing.__enter__().write_text('half')")  # fmt: skip
        (left,) = names(tmp_path)
        assert left.startswith(".warp.") and left.endswith(".nii.gz")
        write_text(tmp_path / "other.nii.gz", "another file")
        assert left in names(tmp_path), "another file's"
        write_text(path, "whole")
        assert names(tmp_path) == ["other.nii.gz", "warp.nii.gz"]

    def test_what_a_living_process_writes_is_left_alone(self, tmp_path):
        with atomic_path(tmp_path / "a.txt") as first:
            first.write_text("first")
            write_text(tmp_path / "a.txt", "second")
            assert first.exists()
        assert (tmp_path / "a.txt").read_text() == "first"

    @pytest.mark.parametrize("age, left", [(0, 1), (2 * whole_files.FORGOTTEN, 0)])
    def test_those_of_another_computer_go_when_they_are_old(self, tmp_path, monkeypatch, age, left):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(whole_files, "_host", lambda: "0123abcd")
            other = temporary_name(tmp_path / "a.txt")
        other.touch()
        os.utime(other, (time.time() - age,) * 2)
        write_text(tmp_path / "a.txt", "ours")
        assert len(names(tmp_path)) == 1 + left

    def test_it_is_on_the_disk_before_it_is_renamed(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(whole_files, "sync", lambda path: calls.append((path.name, (tmp_path / "a").exists())))
        write_text(tmp_path / "a", "text")
        (before, there), (after, there_then) = calls
        assert before.startswith(".a.") and not there
        assert after == tmp_path.name and there_then

    def test_a_full_disk_names_the_file(self, tmp_path):
        with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "a")


class TestResult:
    """Result `new` replaces `old`, whose file `gone` has no successor; `mine` belongs to somebody else."""

    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("a", "gone", "report", "mine"):
            (tmp_path / name).write_text("old")
        return tmp_path

    @staticmethod
    def replace(folder, names=("a", "b", "report")):
        with whole_result(folder, ["a", "gone", "report"], last="report") as stage:
            for name in names:
                (stage / name).write_text("new")

    def contents(self, folder):
        return {path.name: path.read_text() for path in folder.iterdir()}

    def test_it_is_replaced_as_a_whole(self, folder):
        self.replace(folder)
        assert self.contents(folder) == {"a": "new", "b": "new", "report": "new", "mine": "old"}

    def test_an_error_before_the_end_leaves_the_old_one(self, folder):
        before = self.contents(folder)
        with pytest.raises(OSError), whole_result(folder, ["a", "report"], last="report") as stage:
            (stage / "a").write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device", str(stage / "a"))
        assert self.contents(folder) == before

    def test_errors_tell_the_files_final_places(self, folder):
        with pytest.raises(InputError, match=f"^{folder}/a: damaged$"), whole_result(folder, [], "report") as stage:
            raise InputError(f"{stage / 'a'}: damaged")

    @pytest.mark.parametrize("moves", range(4))
    def test_cut_short_while_it_is_put_in_place_the_next_run_ends_it(self, folder, monkeypatch, moves):
        replace, left = os.replace, iter([True] * moves)

        def cut_short(source, target):
            if Path(source).parent.name.startswith(READY) and not next(left, False):
                raise KeyboardInterrupt
            replace(source, target)

        if moves == 3:  # all are moved: what is left is the hidden folder
            monkeypatch.setattr("runtime.host.files.whole_folder.sync", self._interrupt_in(folder))
        else:
            monkeypatch.setattr("runtime.host.files.whole_folder.os.replace", cut_short)
        with pytest.raises(KeyboardInterrupt):
            self.replace(folder)
        monkeypatch.undo()
        assert any(name.startswith(READY) for name in names(folder))
        with folder_lock(folder):
            pass
        assert self.contents(folder) == {"a": "new", "b": "new", "report": "new", "mine": "old"}

    @staticmethod
    def _interrupt_in(folder):
        def sync(path):
            if path == folder and (folder / "b").exists():
                raise KeyboardInterrupt

        return sync

    def test_one_that_was_killed_before_it_was_complete_is_forgotten(self, folder):
        before = self.contents(folder)
        killed(f"from runtime.host.files.whole_folder import *; from pathlib import Path\n"
               f"writing = whole_result(Path({str(folder)!r}), [], 'report')\n"
               f"(writing.__enter__() / 'a').write_text('new')")  # fmt: skip
        assert len(names(folder)) == 5
        with folder_lock(folder):
            assert len(names(folder)) == 4 + 1, "the lock"
        assert self.contents(folder) == before


class TestLock:
    def test_a_second_run_is_refused_by_the_name_of_the_first(self, tmp_path, holder):
        process = holder(tmp_path)
        line = rf"^--output: {tmp_path} is in use by process {process.pid} on \S+, since \S+ \S+; wait until"
        with pytest.raises(ScarceError, match=line), folder_lock(tmp_path):
            pass

    def test_so_is_one_in_the_same_process(self, tmp_path):
        line = f"process {os.getpid()} on"
        with folder_lock(tmp_path), pytest.raises(ScarceError, match=line), folder_lock(tmp_path):
            pass
        with folder_lock(tmp_path):
            assert names(tmp_path) == [LOCK]
        assert names(tmp_path) == []

    def test_it_ends_with_its_process(self, tmp_path, holder):
        process = holder(tmp_path)
        process.kill()
        process.wait()
        assert names(tmp_path) == [LOCK]
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        assert names(tmp_path) == []

    def test_a_folder_made_for_nothing_is_removed(self, tmp_path):
        with pytest.raises(RuntimeError), folder_lock(tmp_path / "a" / "b"):
            raise RuntimeError
        assert names(tmp_path) == []

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        line = r"^--output: cannot write to .*/file/below .Not a directory.; choose"
        with pytest.raises(InputError, match=line), folder_lock(tmp_path / "file" / "below"):
            pass

    def test_left_overs_go_in_the_folder_and_those_below_that_are_named(self, tmp_path, monkeypatch):
        (tmp_path / "pairs").mkdir()
        (tmp_path / "other").mkdir()
        monkeypatch.setattr(whole_files, "_host", lambda: "0123abcd")
        for folder in (tmp_path, tmp_path / "pairs", tmp_path / "other"):
            left = temporary_name(folder / "a.txt")
            left.touch()
            os.utime(left, (time.time() - 2 * whole_files.FORGOTTEN_LOCKED,) * 2)
        (tmp_path / ".hidden.txt").touch()
        monkeypatch.undo()
        with folder_lock(tmp_path, subfolders=["pairs", "missing"]):
            assert names(tmp_path) == sorted([".hidden.txt", "other", "pairs", LOCK])
        assert names(tmp_path / "pairs") == [] and len(names(tmp_path / "other")) == 1

    def test_what_another_computer_writes_into_it_just_now_is_left_alone(self, tmp_path, monkeypatch):
        """A command for a single file, `apply` say, takes no lock."""
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(whole_files, "_host", lambda: "0123abcd")
            written = temporary_name(tmp_path / "a.txt")
        written.touch()
        with folder_lock(tmp_path):
            pass
        assert names(tmp_path) == [written.name]

    def test_what_only_looks_like_a_left_over_is_left_alone(self, tmp_path):
        for name in (".notes.0123456789ab.txt", ".complete.mine", ".complete.result.0123456789ab"):
            (tmp_path / name).mkdir()
        with folder_lock(tmp_path):
            pass
        assert len(names(tmp_path)) == 3

    def test_a_link_in_place_of_the_lock_is_not_followed(self, tmp_path):
        (tmp_path / "precious").write_text("content")
        (tmp_path / LOCK).symlink_to(tmp_path / "precious")
        with pytest.raises(InputError, match=r"^--output: cannot write to"), folder_lock(tmp_path):
            pass
        assert (tmp_path / "precious").read_text() == "content"

    def test_it_is_given_back_whatever_tidying_up_meets(self, tmp_path, monkeypatch):
        def fails(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        with pytest.raises(OSError), folder_lock(tmp_path):
            monkeypatch.setattr(locks, "remove_leftovers", fails)
        monkeypatch.undo()
        with folder_lock(tmp_path):
            pass


class TestWhereTheFileSystemHasNoLocks:
    """The lock file's content tells whether the holder is alive."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch):
        def lock(handle):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks, "_lock", lock)

    def test_a_living_holder(self, tmp_path):
        with folder_lock(tmp_path), pytest.raises(ScarceError, match="in use by process"), folder_lock(tmp_path):
            pass

    def test_a_dead_one(self, tmp_path, holder):
        process = holder(tmp_path)
        process.kill()
        process.wait()
        with folder_lock(tmp_path):
            pass
        assert names(tmp_path) == []

    def test_one_on_another_computer(self, tmp_path, monkeypatch):
        with folder_lock(tmp_path):
            monkeypatch.setattr(whole_files, "_host", lambda: "0123abcd")
            line = rf"is locked by process .*; remove {tmp_path}/{LOCK} if it has"
            with pytest.raises(InputError, match=line), folder_lock(tmp_path):
                pass
