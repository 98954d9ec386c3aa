"""A real Slurm of two nodes on this machine, and a cohort on it while tasks, nodes and jobs are killed.

    apt-get install --no-install-recommends slurm-wlm munge
    python -m measurements.slurm run --output /tmp/slurm --rows 40

Needs root. `run` starts the daemons, does everything below, and stops them: an array of shards over small pairs, two of
them bad; a task killed, a node killed in the middle (its orphan goes on), a cancelled task, a time limit, a requeue, a
partial resubmission.
`start` and `stop` are for trials by hand (export SLURM_CONF as `start` says).
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click

from measurements.cohort import command, judge, write_table

CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SlurmctldPort=26817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=10
JobRequeue=1
SchedulerParameters=bf_interval=5,sched_interval=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=27001 CPUs=2 CoresPerSocket=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=27002 CPUs=2 CoresPerSocket=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1:00:00 DefMemPerCPU=500 State=UP
"""
NODES = ("n1", "n2")


class Slurm:
    """The daemons, their configuration and their commands.

    Args:
        folder: for configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start munge if it does not run, the controller and two nodes; wait until the nodes are idle."""
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(host=socket.gethostname().partition(".")[0], folder=self.folder)
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n", encoding="utf-8")
        if subprocess.run(["pgrep", "-x", "munged"], capture_output=True).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
        self._daemon("slurmctld", "-D", "-c")
        time.sleep(2)
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self("sinfo", "-h", "-o", "%T").split() == ["idle"], 60, "idle nodes")

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node)

    def stop(self) -> None:
        """Stop the daemons, and what they left running."""
        for name in ("slurmctld", "slurmd", "slurmstepd"):
            subprocess.run(["pkill", "-KILL", "-x", name])

    def _daemon(self, *words: str) -> None:
        log = (self.folder / f"{words[0]}.out").open("a")
        subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def __call__(self, *words: str, text: str | None = None) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(words, env=self.environment, input=text, capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submit a job script; return the job's number."""
        return re.search(r"\d+", self("sbatch", f"--chdir={self.folder}", *options, text=script))[0]

    def running(self, job: str) -> list[str]:
        """Return the tasks of a job that are running, as JOB_TASK."""
        return self("squeue", "-h", "-j", job, "-t", "R", "-o", "%F_%K").split()

    def over(self, job: str) -> bool:
        with contextlib.suppress(click.ClickException):  # unknown once it is over for long
            return not self("squeue", "-h", "-j", job).strip()
        return True

    def wait(self, condition, seconds: float, what: str) -> None:
        """Wait until a condition holds."""
        for _ in range(int(seconds * 5)):
            if condition():
                return
            time.sleep(0.2)
        raise click.ClickException(f"no {what} within {seconds:g} s")


@click.group(help=__doc__.split("\n\n")[0])
def main() -> None:
    pass


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
def start(folder: Path) -> None:
    Slurm(folder).start()
    click.echo(f"export SLURM_CONF={folder.absolute()}/slurm.conf")


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
def stop(folder: Path) -> None:
    Slurm(folder).stop()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    slurm = Slurm(folder)
    slurm.start()
    try:
        yield slurm
    finally:
        slurm.stop()


@main.command()
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=40, show_default=True)
@click.option("--shards", default=4, show_default=True)
def run(output: Path, rows: int, shards: int) -> None:
    """Run a cohort while everything that can be killed is killed."""
    table = write_table(output / "scans", rows, bad_every=rows // 2)
    place = output / "cohort"
    words = command(table, place, "--forward-only", "--executor", "slurm", "--workers", str(shards), "--print")
    words += ["--threads", "1", "--memory", "1500M", "--slurm-time", "00:20:00"]
    script = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    records = place / "records"

    def done() -> int:
        return sum('"done"' in path.read_text() for path in records.glob("*.json")) if records.exists() else 0

    with started(output / "slurm") as slurm:
        job = slurm.submit(script)
        slurm.wait(lambda: done() >= 2, 240, "first results")
        victim = slurm.running(job)[0]
        pids = _processes(place)
        os.kill(pids[0], signal.SIGKILL)
        click.echo(f"killed process {pids[0]} of job {job}: a task is over, its shard unfinished")
        slurm.wait(lambda: done() >= 5, 240, "further results")
        running = slurm.running(job)
        slurm("scancel", running[0])
        click.echo(f"cancelled {running[0]}")
        time.sleep(2)
        orphans = _processes(place)
        subprocess.run(["pkill", "-KILL", "-f", "slurmd -D -N n2"])
        subprocess.run(["pkill", "-KILL", "-x", "slurmstepd"])
        click.echo(f"killed node n2 and every step's daemon; their work goes on: {_processes(place) == orphans}")
        slurm.wait(lambda: "down" in slurm("sinfo", "-h", "-o", "%T"), 120, "dead node")
        slurm.start_node("n2")
        requeued = slurm.running(job)
        if requeued:
            slurm("scontrol", "requeue", requeued[0])
            click.echo(f"requeued {requeued[0]}")
        slurm.wait(lambda: slurm.over(job), 900, "end of the array")
        click.echo(f"array over: {done()} done; first victim {victim}")
        again = slurm.submit(script, f"--array=1,{shards - 1}")
        slurm.wait(lambda: slurm.over(again), 900, "end of the partial array")
        click.echo(f"tasks 1 and {shards - 1} once more: {done()} done")
        short = slurm.submit(script.replace("--signal=B:USR1@120", "--signal=B:USR1@50"), "--time=00:01:00")
        slurm.wait(lambda: slurm.over(short), 900, "end of the array with a limit of a minute")
        last = slurm.submit(script)
        slurm.wait(lambda: slurm.over(last), 900, "end of the last array")
    judge(table, place, [])


def _processes(place: Path) -> list[int]:
    """Return the processes that work on the cohort."""
    found = subprocess.run(["pgrep", "-f", f"cli.py cohort .*{place}"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if "bash" not in Path(f"/proc/{pid}/comm").read_text()]


if __name__ == "__main__":
    main()
