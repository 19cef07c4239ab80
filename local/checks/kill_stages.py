r"""Kills a recipe with SIGKILL in the middle of every stage and sees that its command finishes.

    python local/checks/kill_stages.py --work-dir DIR -- \
        recipes/mini/run.sh --max-steps 40 --asr-max-steps 40

First the command runs undisturbed, with `--output-dir DIR/whole`, which shows how long each stage
takes. Then it runs with `--output-dir DIR/killed`: all its processes are killed at a random moment
of each stage, and the same command is started again. The summaries must agree to the letter but
for the folder's name: an interrupted job gives the numbers of an undisturbed one.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STAGE = re.compile(r"\bstage (\d+): ")


@dataclass(frozen=True)
class Moment:
    """When a stage said that it begins."""

    stage: int
    time_s: float


class Job:
    """A recipe's command in a session of its own; all its processes can be killed at once."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def stages(self) -> Iterator[Moment]:
        """Yields every stage as it begins, until the command ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._log.write(line)
            self._log.flush()
            if found := STAGE.search(line):
                yield Moment(int(found.group(1)), time.monotonic())

    def kill(self) -> bool:
        """Kills every process of the session; False if the command had ended by itself."""
        was_running = self._process.poll() is None
        for pid in _session_members(self._process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        return was_running

    def wait(self) -> int:
        """Returns the exit status."""
        return self._process.wait()


def _session_members(session: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,sess="], capture_output=True, text=True, check=True
    )
    pairs = (map(int, line.split()) for line in listing.stdout.splitlines())
    return [pid for pid, member_of in pairs if member_of == session]


def time_stages(command: Sequence[str], log: Path) -> dict[int, float]:
    """Runs the command to its end; returns the seconds that each stage took."""
    job = Job(command, log)
    moments = list(job.stages())
    if status := job.wait():
        sys.exit(f"kill_stages.py: the undisturbed run ended with status {status}, see {log}")
    ends = [moment.time_s for moment in moments[1:]] + [time.monotonic()]
    return {m.stage: end - m.time_s for m, end in zip(moments, ends, strict=True)}


def kill_in(stage: int, after_s: float, command: Sequence[str], log: Path) -> bool:
    """Starts the command and kills it `after_s` seconds into a stage; whether that came to be."""
    job = Job(command, log)
    for moment in job.stages():
        if moment.stage == stage:
            time.sleep(after_s)
            return job.kill()
    return False


def same_results(whole: Path, killed: Path) -> bool:
    """Whether both summaries say the same."""
    texts = [(folder / "exp" / "summary.md").read_text("utf-8") for folder in (whole, killed)]
    return texts[0].replace(str(whole), str(killed)) == texts[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for every kill; 1 if the job did not finish or gave other numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--kills", type=int, default=1, help="kills in each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("command", nargs="+", help="the recipe's run.sh and its options, after --")
    args = parser.parse_args(argv)
    work = args.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    log = work / "kill_stages.log"
    rng = random.Random(args.seed)
    seconds = time_stages([*args.command, "--output-dir", str(work / "whole")], log)
    command = [*args.command, "--output-dir", str(work / "killed")]
    for stage, duration_s in seconds.items():
        for _ in range(args.kills):
            after_s = rng.uniform(0.05, 0.9) * duration_s
            outcome = "killed" if kill_in(stage, after_s, command, log) else "had finished"
            sys.stdout.write(
                f"stage {stage}: {outcome} after {after_s:.2f} of {duration_s:.2f} s\n"
            )
            sys.stdout.flush()
    job = Job(command, log)
    list(job.stages())
    status = job.wait()
    same = status == 0 and same_results(work / "whole", work / "killed")
    sys.stdout.write(f"finished with status {status}; summaries {'agree' if same else 'DIFFER'}\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
