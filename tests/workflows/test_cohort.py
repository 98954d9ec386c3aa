"""`cohort`: every pair once, with a record, whatever happens to the process."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from runtime.errors import InputError
from runtime.host.files.folder_lock import folder_lock
from runtime.workflows.cohort.bids import bids_rows, parse_filters
from runtime.workflows.cohort.executors.slurm import SlurmChoices, script
from runtime.workflows.cohort.records import MOST_ATTEMPTS
from runtime.workflows.cohort.table import all_pairs, all_to, in_order, parse_shard, read_table, shard
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--schedule", "1,1,1,1", "--affine", "none", "--forward-only", "--threads", "1")


@pytest.fixture
def pairs(tmp_path):
    """A table of six pairs to two fixed scans, one of which is damaged and one of which has no file."""
    grid = scans.grid((24, 28, 24))
    for number in range(2):
        scans.write_scan(tmp_path / f"f{number}.nii.gz", grid, lambda points, n=number: points * (1 + 0.05 * n))
    for number in range(3):
        scans.write_scan(tmp_path / f"m{number}.nii.gz", grid, lambda points, n=number: points + 0.5 * n)
    (tmp_path / "damaged.nii.gz").write_bytes(b"no scan")
    return write(tmp_path, ["m0", "m1", "damaged", "m2", "missing", "m0"])


def write(folder: Path, moving: list[str]) -> Path:
    lines = ["id\tfixed\tmoving\tgroup"]
    lines += [f"p{n}\tf{n % 2}.nii.gz\t{name}.nii.gz\tg{n}" for n, name in enumerate(moving)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.tsv"


@pytest.fixture
def run(pairs, shipped, tmp_path):
    """`cohort` on the table into tmp_path/out, with further arguments; the result."""

    def call(*arguments, code=1):
        words = ("cohort", "--pairs", pairs, "--output", tmp_path / "out", "--engine-dir", shipped, *QUICK, *arguments)
        result = CliRunner().invoke(cli.main, [*map(str, words)])
        assert result.exit_code == code, result.output
        return result

    return call


def records(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))}


def states(folder: Path) -> dict[str, str]:
    return {name: record["state"] for name, record in records(folder).items()}


def times(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "pairs").glob("*/report.json")}


GOOD, BAD = ("p0", "p1", "p3", "p5"), ("p2", "p4")
OUTCOME = {**dict.fromkeys(GOOD, "done"), **dict.fromkeys(BAD, "failed")}


class TestEveryPair:
    def test_has_its_files_its_record_and_its_line(self, run, tmp_path):
        result = run("--write", "itk")
        out = tmp_path / "out"
        assert states(out) == OUTCOME
        assert {path.name for path in (out / "pairs").iterdir()} == set(GOOD)
        assert all((out / "pairs" / name / "report.html").exists() for name in GOOD)
        assert "no file" in records(out)["p4"]["error"] and not records(out)["p4"]["scarce"]
        with (out / "summary.tsv").open(newline="") as file:
            lines = {line["id"]: line for line in csv.DictReader(file, delimiter="\t")}
        assert {name: line["state"] for name, line in lines.items()} == OUTCOME
        assert float(lines["p0"]["sd_log_jacobian"]) > 0 and lines["p5"]["group"] == "g5"
        page = (out / "index.html").read_text()
        assert all(f'"name": "{name}"' in page for name in BAD) and "pairs/p0/report.html" in page
        assert "2 failed, 4 done" in result.stdout or "4 done, 2 failed" in result.stdout

    def test_is_that_of_register(self, run, tmp_path, shipped):
        run()
        given = ("--fixed", tmp_path / "f1.nii.gz", "--moving", tmp_path / "m1.nii.gz", "--output", tmp_path / "one")
        words = ("register", "--engine-dir", shipped, *given, *QUICK)
        assert CliRunner().invoke(cli.main, [*map(str, words)]).exit_code == 0
        for name in ("warped.nii.gz", "warp.nii.gz", "affine.txt"):
            assert (tmp_path / "out" / "pairs" / "p1" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    def test_excluded_pairs_are_left_out_and_others_redone_with_their_options(self, run, tmp_path):
        run()
        before = times(tmp_path / "out")
        table = "name\tdecision\toptions\tnote\np0\texclude\t\t\np1\tredo\t--smooth 1.5\tfolds\np3\tkeep\t\tfine\n"
        (tmp_path / "ratings.tsv").write_text(table)
        run("--ratings", tmp_path / "ratings.tsv")
        after = times(tmp_path / "out")
        assert {name for name in before if before[name] != after[name]} == {"p1"}
        report = json.loads((tmp_path / "out" / "pairs" / "p1" / "report.json").read_text())
        assert report["options"]["smooth"] == 1.5
        summary = (tmp_path / "out" / "summary.tsv").read_text().splitlines()
        assert not any(line.startswith("p0\t") for line in summary)
        assert run("--ratings", tmp_path / "ratings.tsv").stdout.startswith("this run: 2 failed, 3 kept")

    def test_an_option_in_ratings_that_is_none_is_one_line(self, run, tmp_path):
        (tmp_path / "ratings.tsv").write_text("name\tdecision\toptions\tnote\np1\tredo\t--smoother 2\t\n")
        assert "options of p1: No such option" in run("--ratings", tmp_path / "ratings.tsv").stderr


class TestAgain:
    def test_finished_pairs_are_kept(self, run, tmp_path):
        run()
        before, written = times(tmp_path / "out"), records(tmp_path / "out")
        assert "2 failed, 4 kept" in run().stdout
        assert times(tmp_path / "out") == before and records(tmp_path / "out") == written

    def test_a_changed_scan_redoes_its_pairs_alone(self, run, tmp_path):
        run()
        before = times(tmp_path / "out")
        scans.write_scan(tmp_path / "m1.nii.gz", scans.grid((24, 28, 24)), lambda points: points + 0.9)
        shutil.copy(tmp_path / "m0.nii.gz", tmp_path / "damaged.nii.gz")
        run()
        after = times(tmp_path / "out")
        assert {name for name in after if before.get(name) != after[name]} == {"p1", "p2"}

    def test_other_options_redo_all(self, run, tmp_path):
        run()
        before = times(tmp_path / "out")
        run("--smooth", "1")
        assert all(before[name] != time for name, time in times(tmp_path / "out").items())

    def test_a_result_that_is_gone_is_made_again(self, run, tmp_path):
        run()
        shutil.rmtree(tmp_path / "out" / "pairs" / "p0")
        assert "1 done, 2 failed, 3 kept" in run().stdout

    def test_failed_pairs_are_tried_again_when_asked(self, run, tmp_path):
        run()
        first = records(tmp_path / "out")["p2"]["written"]
        time.sleep(1.1)
        run("--retry-failed")
        assert records(tmp_path / "out")["p2"]["written"] != first

    def test_a_passing_shortage_is_tried_again(self, run, tmp_path, monkeypatch):
        from runtime.registration import preprocessing

        with monkeypatch.context() as patch:
            patch.setattr(preprocessing, "check_fits", _too_little_memory)
            result = run(code=1)  # two of the failures will not pass
        assert "may succeed later" in result.stdout
        assert sum(record["scarce"] for record in records(tmp_path / "out").values()) == 5  # all but the missing one
        run()
        assert states(tmp_path / "out") == OUTCOME


def _too_little_memory(*_):
    from runtime.errors import ScarceError

    raise ScarceError("--fixed: needs 3 GiB of memory, 1 GiB is available")

    def test_an_exception_that_should_not_happen_is_recorded_and_the_others_go_on(self, run, tmp_path, monkeypatch):
        from runtime.registration.scans import FixedScan

        register = FixedScan.try_register

        def broken(self, moving, *more, **named):
            (scan, labels) = moving.take()
            if scan.volume.path.name == "m1.nii.gz":
                raise ZeroDivisionError("an error of ours")
            return register(self, type("Read", (), {"take": lambda self: (scan, labels)})(), *more, **named)

        with monkeypatch.context() as patch:
            patch.setattr(FixedScan, "try_register", broken)
            run()
        # A damaged scan raises its error where this test takes it, so it ends like the other.
        assert states(tmp_path / "out") == {**OUTCOME, "p1": "failed"}
        found = records(tmp_path / "out")["p1"]
        assert found["error"] == "ZeroDivisionError: an error of ours" and "Traceback" in found["traceback"]


class TestSeveralProcesses:
    def test_shards_are_all_pairs_once(self, run, tmp_path):
        found = []
        for part in ("0/3", "1/3", "2/3"):
            before = set(states(tmp_path / "out")) if (tmp_path / "out").exists() else set()
            run("--shard", part, code=0 if part == "2/3" else 1)
            found.append(set(states(tmp_path / "out")) - before)
        assert sum(map(len, found)) == 6 and states(tmp_path / "out") == OUTCOME
        assert (tmp_path / "out" / "index.html").exists()

    def test_a_pair_that_another_process_holds_is_left_to_it(self, run, tmp_path):
        with folder_lock(tmp_path / "out" / "pairs" / "p0"):
            assert "1 busy" in run(code=75).stdout
        assert "p0" not in states(tmp_path / "out")
        run()
        assert states(tmp_path / "out") == OUTCOME

    def test_a_pair_over_which_processes_die_is_recorded(self, run, tmp_path):
        run()
        path = tmp_path / "out" / "records" / "p1.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "state": "running", "attempt": MOST_ATTEMPTS}))
        run()
        found = records(tmp_path / "out")["p1"]
        assert found["state"] == "failed" and f"{MOST_ATTEMPTS} attempts" in found["error"]

    def test_a_pair_over_which_one_process_died_gets_another_attempt(self, run, tmp_path):
        run()
        path = tmp_path / "out" / "records" / "p1.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running"}))
        run()
        assert (records(tmp_path / "out")["p1"]["state"], records(tmp_path / "out")["p1"]["attempt"]) == ("done", 2)


class Started:
    """A `cohort` in a process of its own, whose pairs take at least `pause` seconds each."""

    def __init__(self, pairs: Path, output: Path, shipped: Path, *arguments: str, pause: float = 0.6) -> None:
        code = textwrap.dedent(f"""
            import time
            import runtime.registration.scans as scans
            register = scans.FixedScan.register_read
            def slow(self, moving, *more, **named):
                time.sleep({pause})
                return register(self, moving, *more, **named)
            scans.FixedScan.register_read = slow
            import cli
            cli.run(cli.main, "cli.py")
        """)
        given = ("--pairs", pairs, "--output", output, "--engine-dir", shipped, *QUICK, *arguments)
        words = [sys.executable, "-c", code, "cohort", *map(str, given)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = output

    def wait_for(self, count: int) -> None:
        for _ in range(600):
            if sum(state == "done" for state in _states_now(self.output).values()) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(self.process.communicate(timeout=1))


def _states_now(folder: Path) -> dict[str, str]:
    found = {}
    for path in (folder / "records").glob("*.json"):
        found[path.stem] = json.loads(path.read_text())["state"]
    return found


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
class TestSignals:
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
    def test_one_ends_the_work_after_the_present_pair(self, pairs, shipped, tmp_path, run, name):
        started = Started(pairs, tmp_path / "out", shipped)
        started.wait_for(1)
        started.process.send_signal(getattr(signal, name))
        text = started.process.communicate(timeout=60)[0]
        assert started.process.returncode == 75, text
        found = states(tmp_path / "out")
        assert "running" not in found.values() and sum(state == "done" for state in found.values()) < len(GOOD)
        run()
        assert states(tmp_path / "out") == OUTCOME

    def test_a_killed_run_goes_on_where_it_was(self, pairs, shipped, tmp_path, run):
        started = Started(pairs, tmp_path / "out", shipped)
        started.wait_for(1)
        time.sleep(0.3)
        started.process.kill()
        started.process.communicate()
        before = times(tmp_path / "out")
        run()
        after = times(tmp_path / "out")
        assert states(tmp_path / "out") == OUTCOME and all(after[name] == time for name, time in before.items())
        assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]

    def test_a_pair_that_takes_too_long_is_recorded_and_the_others_go_on(self, pairs, shipped, tmp_path):
        """The process starts itself again; after three attempts the pair counts as failed."""
        code = textwrap.dedent("""
            import time
            import runtime.registration.scans as scans
            register = scans.FixedScan.register_read
            def hangs(self, moving, *more, **named):
                scan = moving.take()
                moving = type("Read", (), {"take": lambda self: scan})()
                if scan[0].volume.path.name == "m1.nii.gz":
                    time.sleep(1000)
                return register(self, moving, *more, **named)
            scans.FixedScan.register_read = hangs
            import cli
            cli.run(cli.main, "cli.py")
        """)
        given = ("--pairs", pairs, "--output", tmp_path / "out", "--engine-dir", shipped, *QUICK, "--time-limit", 4)
        words = [sys.executable, "-c", code, "cohort", *map(str, given)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 1, done.stderr
        assert states(tmp_path / "out") == {**OUTCOME, "p1": "failed"}
        found = records(tmp_path / "out")["p1"]
        assert f"longer than the time limit of 4 s; {MOST_ATTEMPTS} attempts" in found["error"]


class TestDask:
    def test_two_workers_do_what_one_process_does(self, run, tmp_path):
        pytest.importorskip("distributed")
        run("--executor", "dask", "--workers", "2")
        assert states(tmp_path / "out") == OUTCOME
        assert len({record["process"] for record in records(tmp_path / "out").values()} - {os.getpid()}) >= 1
        assert "2 failed, 4 kept" in run().stdout

    def test_an_unknown_cluster_is_one_line(self, run):
        pytest.importorskip("distributed")
        assert "--cluster: got 'beowulf'" in run("--executor", "dask", "--cluster", "beowulf").stderr

    def test_workers_are_for_dask(self, run):
        assert "are for --executor dask" in run("--workers", "2", code=2).stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
class TestSlurm:
    def test_the_script_registers_a_shard_and_asks_for_another_turn(self, pairs, shipped, tmp_path):
        words = ("cohort", "--pairs", pairs, "--output", tmp_path / "out", "--engine-dir", shipped, *QUICK)
        result = CliRunner().invoke(
            cli.main, [*map(str, words), "--executor", "slurm", "--workers", "2", "--print", "--slurm-option=--qos=low"]
        )
        assert result.exit_code == 0, result.output
        assert "#SBATCH --array=0-1\n" in result.stdout and "#SBATCH --qos=low\n" in result.stdout
        assert "--executor" not in result.stdout.partition("cohort --")[2] and "--print" not in result.stdout
        done = self.bash(result.stdout, tmp_path, "0")
        assert done.returncode == 1, done.stderr
        assert set(states(tmp_path / "out")) == {"p0", "p2", "p4"}
        with folder_lock(tmp_path / "out" / "pairs" / "p1"):
            done = self.bash(result.stdout, tmp_path, "1")
        assert done.returncode == 75 and (tmp_path / "requeued").read_text() == "requeue 17_1\n"

    def bash(self, text: str, folder: Path, task: str) -> subprocess.CompletedProcess:
        """Run the script as Slurm does, with a `scontrol` that writes down what it is asked."""
        place = folder / "bin"
        place.mkdir(exist_ok=True)
        (place / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder}/requeued\n')
        (place / "scontrol").chmod(0o755)
        given = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": task, "PATH": f"{place}:{os.environ['PATH']}"}
        words = ["bash", "-c", text]
        return subprocess.run(words, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=240)

    def test_a_signal_reaches_the_work(self, tmp_path):
        (tmp_path / "work.py").write_text(
            "import signal, sys, time\n"
            "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
            "print('ready', flush=True)\ntime.sleep(60)\n"
        )
        text = script([sys.executable, str(tmp_path / "work.py")], SlurmChoices(1))
        given = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "10"}
        started = subprocess.Popen(["bash", "-c", text], env={**os.environ, **given}, stdout=subprocess.PIPE, text=True)
        assert started.stdout.readline() == "ready\n"
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 75
        started.stdout.close()

    def test_without_sbatch_it_says_what_to_do(self, pairs, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        words = ("cohort", "--pairs", pairs, "--output", tmp_path / "out", "--executor", "slurm")
        result = CliRunner().invoke(cli.main, [*map(str, words)])
        assert result.exit_code == 1 and "use --print" in result.stderr


class TestTable:
    def test_columns_in_any_order_and_paths_against_the_table(self, tmp_path):
        (tmp_path / "t.csv").write_text(
            "Moving,session,fixed,affine\na/m.nii,1,f.nii.gz,rigid\nb/n.nii,2,/x/f.mgz,a.txt\n"
        )
        rows = read_table(tmp_path / "t.csv")
        assert [row.id for row in rows] == ["f-m", "f-n"]
        assert rows[0].moving == tmp_path / "a" / "m.nii" and rows[1].fixed == Path("/x/f.mgz")
        assert rows[0].affine == "rigid" and rows[1].affine == str(tmp_path / "a.txt")

    @pytest.mark.parametrize(
        "text, word",
        [
            ("fixed,movign\na,b\n", "has the columns fixed, movign"),
            ("fixed,moving\n", "lists no pair"),
            ("fixed,moving\na,\n", "line 2 names no moving scan"),
            ("id,fixed,moving\nA,a,b\na,a,c\n", "two pairs called a"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tmp_path, text, word):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(InputError, match=word):
            read_table(tmp_path / "t.csv")

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
    def test_shards_are_contiguous_and_even(self, count):
        rows = list(range(17))
        parts = [shard(rows, index, count) for index in range(count)]
        assert [row for part in parts for row in part] == rows and max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0"])
    def test_a_shard_that_is_none_is_refused(self, text):
        with pytest.raises(InputError, match="--shard: got"):
            parse_shard(text)

    def test_pairs_with_one_fixed_scan_follow_one_another(self):
        rows = in_order(all_pairs([Path(f"/{name}.nii") for name in "cab"]))
        fixed = [row.fixed for row in rows]
        assert fixed == sorted(fixed) and len(rows) == 6
        assert [row.moving.name for row in all_to(Path("/t.nii"), [Path("/a.nii"), Path("/t.nii")])] == ["a.nii"]


class TestBids:
    @pytest.fixture
    def dataset(self, tmp_path):
        for name in (
            "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_T2w.nii.gz",
            "sub-02/anat/sub-02_acq-x_T1w.nii",
            "sub-02/anat/sub-02_acq-x_T1w.json",
            "sub-02/func/sub-02_task-rest_bold.nii.gz",
        ):
            (tmp_path / "bids" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "bids" / name).touch()
        return tmp_path / "bids"

    def test_every_scan_to_a_template(self, dataset):
        rows = bids_rows(dataset, Path("/t.nii"), parse_filters([]))
        assert [row.id for row in rows] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_acq-x"]
        assert [(row.subject, row.session) for row in rows] == [("01", "a"), ("01", "b"), ("02", "")]

    def test_sessions_within_subjects_and_filters(self, dataset):
        (row,) = bids_rows(dataset, None, parse_filters([]))
        assert row.fixed.name == "sub-01_ses-a_T1w.nii.gz" and row.moving.name == "sub-01_ses-b_T1w.nii.gz"
        (row,) = bids_rows(dataset, Path("/t.nii"), parse_filters(["suffix=T2w", "session=b"]))
        assert row.moving.name == "sub-01_ses-b_T2w.nii.gz"
        with pytest.raises(InputError, match="none of the 4 anatomical scans"):
            bids_rows(dataset, None, parse_filters(["acq=y"]))

    def test_the_command_writes_a_table_that_can_be_read(self, dataset, tmp_path):
        words = ["pairs", "--bids", str(dataset), "--within-subject", "--output", str(tmp_path / "t.tsv")]
        assert CliRunner().invoke(cli.main, words).output == f"wrote {tmp_path / 't.tsv'}: 1 pairs\n"
        (row,) = read_table(tmp_path / "t.tsv")
        assert row.moving == dataset / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_T1w.nii.gz"
        assert (row.subject, row.session) == ("01", "b")
