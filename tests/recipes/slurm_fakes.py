"""Stand-ins for sbatch, squeue, sacct and scancel that really run the jobs, on this machine.

`sbatch` starts a background shell for every task of an array and prints the job's number; the state
of each task is a file. A task that a test wants dead is killed with its shell: it leaves no status.
"""

from pathlib import Path

SBATCH = r"""#!/usr/bin/env bash
echo "$*" >>"$FAKE_SLURM/sbatch.log"
array="" output=/dev/null
while (($# > 1)); do
  case "$1" in
    --array) array="${2%%\%*}"; shift 2 ;;
    --output) output="$2"; shift 2 ;;
    --parsable) shift ;;
    --partition) [[ "$2" != broken ]] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
      shift 2 ;;
    --*=*) shift ;;
    -*) shift 2 ;;
    *) echo "sbatch: error: unexpected $1" >&2; exit 1 ;;
  esac
done
script="$1"
for number in $(if [[ -n "$array" ]]; then seq "${array%-*}" "${array#*-}"; else echo none; fi); do
  (
    [[ "$number" == none ]] || export SLURM_ARRAY_TASK_ID="$number"
    export SLURM_JOB_ID="7_$number"
    setsid bash "$script" >"${output//%a/$number}" 2>&1 &
    echo "$!" >"$FAKE_SLURM/pid.$number"
    wait "$!"
    rm "$FAKE_SLURM/queued.$number"
  ) >/dev/null 2>&1 &
  touch "$FAKE_SLURM/queued.$number"
done
echo "7;cluster"
"""
SQUEUE = r"""#!/usr/bin/env bash
if [[ -e "$FAKE_SLURM/unreachable" ]]; then
  rm "$FAKE_SLURM/unreachable"
  echo "slurm_load_jobs error: Unable to contact slurm controller" >&2
  exit 1
fi
for file in "$FAKE_SLURM"/queued.*; do
  [[ -e "$file" ]] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
  echo "7_${file##*.}"
done
"""
SACCT = r"""#!/usr/bin/env bash
echo "OUT_OF_MEMORY|0:125"
"""
SCANCEL = r"""#!/usr/bin/env bash
echo "$1" >"$FAKE_SLURM/cancelled"
for file in "$FAKE_SLURM"/pid.*; do kill -- -"$(<"$file")"; done
"""


def install(folder: Path) -> dict[str, str]:
    """Writes the programs; returns the environment variables that make them found."""
    state = folder / "slurm_state"
    programs = folder / "slurm_bin"
    state.mkdir()
    programs.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("squeue", SQUEUE),
        ("sacct", SACCT),
        ("scancel", SCANCEL),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"FAKE_SLURM": str(state), "SLURM_POLL_S": "0.1", "SLURM_BIN": str(programs)}
