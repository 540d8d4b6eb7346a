"""Script of an array job: each task processes the participants of one line of ``shards.txt``."""

from __future__ import annotations

import shlex
from pathlib import Path

from bids_app import __version__
from bids_app.cluster.cohort import Cohort
from bids_app.cluster.schedulers import FIRST, SCHEDULERS

TASKS, SHARDS, SCRIPT = "tasks", "shards.txt", "job.sh"
SHARE_OF_MEMORY = 0.9
"""Share of the memory of a job that the steps may use, as by default."""

TEMPLATE = r"""#!/bin/bash
# Written by neurostorm-cluster {version}. Task N processes the participants of line N of {shards}, and writes when it
# started and ended to tasks/N.tsv.
set -u
case "{task}" in '' | *[!0-9]*) echo "Usage: bash {script} NUMBER, the number of a task from 1" >&2; exit 64 ;; esac
number=$((${{{first}:-0}} + 10#{task}))
cd {folder} || exit 74
labels=$(sed -n "${{number}}p" {shards})
if [ -z "$labels" ]; then
  echo "{shards} has no line $number." >&2
  exit 64
fi
{redirect}printf 'started\t%s\t%s\n' "$(date +%s)" "{job}" > "tasks/$number.tsv"
row=$PWD/tasks/$number.tsv

scratch=$(mktemp -d "${{TMPDIR:-/tmp}}/neurostorm-XXXXXX") || exit 73
trap 'rm -rf "$scratch"' EXIT
# Apptainer removes these variables with --containall; they show that a lock is from before this job was requeued.
export APPTAINERENV_SLURM_JOB_ID=${{SLURM_JOB_ID:-}} APPTAINERENV_SLURM_RESTART_COUNT=${{SLURM_RESTART_COUNT:-0}}
cd {working_folder} || exit 66

app=
trap '[ -n "$app" ] && kill -TERM "$app" 2> /dev/null' TERM # and wait for it: schedulers kill it when this script ends
# shellcheck disable=SC2086 # labels are words
{command} {bids_dir} {out_dir} participant --participant-label $labels \
  --work-dir "$scratch" --nprocs {cpus} --mem {memory}GB {options} &
app=$!
wait "$app"
code=$?
while kill -0 "$app" 2> /dev/null; do # the signal ended the first wait
  wait "$app"
  code=$?
done
printf 'ended\t%s\t%s\n' "$(date +%s)" $code >> "$row"
exit $code
"""


def job_script(cohort: Cohort, folder: Path) -> str:
    """Return the script of a submission."""
    scheduler = SCHEDULERS[cohort.scheduler]
    return TEMPLATE.format(
        version=__version__,
        first=FIRST,
        task=scheduler.task,
        job=scheduler.job,
        folder=shlex.quote(str(folder)),
        shards=SHARDS,
        script=SCRIPT,
        redirect="" if scheduler.log else 'exec >> "tasks/$number.log" 2>&1\n',
        working_folder=shlex.quote(cohort.working_folder),
        command=shlex.join(shlex.split(cohort.command)),
        bids_dir=shlex.quote(cohort.bids_dir),
        out_dir=shlex.quote(cohort.out_dir),
        cpus=cohort.resources.cpus,
        memory=f"{SHARE_OF_MEMORY * cohort.resources.memory_gb:g}",
        options=shlex.join(cohort.options),
    )
