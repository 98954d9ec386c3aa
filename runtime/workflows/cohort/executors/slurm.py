"""A cohort as an array of Slurm jobs, one shard each: the script, printed or submitted. No daemon of ours is needed."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ....errors import InputError, NotAvailableError, first_line

MOST_RESTARTS = 10  # of one task, after which it ends with its exit code


@dataclass(frozen=True)
class SlurmChoices:
    """Resources of each task of the array.

    Attributes:
        shards: number of tasks.
        cpus: per task.
        memory: per task, as Slurm takes it.
        time: limit per task, as Slurm takes it.
        at_once: most tasks at a time; None: as many as there is room for.
        further: further options for sbatch.
    """

    shards: int
    cpus: int = 2
    memory: str = "4G"
    time: str = "04:00:00"
    at_once: int | None = None
    further: tuple[str, ...] = ()


def script(command: Sequence[str], choices: SlurmChoices) -> str:
    """Return the job script of an array.

    The number of shards is written into it: Slurm's own count is that of the tasks submitted, which is another one when
    some are submitted again. Two minutes before the limit, and when it is cancelled, a task is asked to end after its
    present pair; if that leaves work, or something was short for the moment, it is queued again.

    Args:
        command: the `cohort` command without --executor and --shard, as words.
        choices: resources.
    """
    limit = f"%{choices.at_once}" if choices.at_once else ""
    options = [
        "--job-name=rpnet-cohort",
        f"--array=0-{choices.shards - 1}{limit}",
        f"--cpus-per-task={choices.cpus}",
        f"--mem={choices.memory}",
        f"--time={choices.time}",
        "--signal=B:USR1@120",
        "--requeue",
        "--open-mode=append",
        "--output=cohort_%A_%a.log",
        *choices.further,
    ]
    words = shlex.join(command)
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "",
            f'{words} --shard "$SLURM_ARRAY_TASK_ID/{choices.shards}" --threads {choices.cpus} &',
            "worker=$!",
            "trap 'kill -USR1 $worker' USR1 TERM",
            "wait $worker; code=$?",
            "while kill -0 $worker 2>/dev/null; do wait $worker; code=$?; done  # a signal ends the first wait",
            f'if [ $code = 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MOST_RESTARTS} ]; then',
            '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
            "fi",
            "exit $code",
            "",
        ]
    )


def submit(text: str) -> str:
    """Submit a job script and return what sbatch says.

    Raises:
        NotAvailableError: there is no sbatch here.
        InputError: sbatch refuses the script.
    """
    try:
        done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotAvailableError(
            "--executor slurm: there is no sbatch here; use --print, and submit the script where there is"
        ) from None
    if done.returncode:
        raise InputError(f"--executor slurm: sbatch refused the script ({first_line(done.stderr)})")
    return done.stdout.strip()
