"""Runs train_anonymizer.py several times and ends each at another moment; a process of its own for
the tests.

Usage: interrupted_runs.py ARGUMENTS..., with a JSON list [[run_id, signal, file, n, "before" |
"after"], ...] on stdin: the signal arrives just before or after the file of this name gets its
content for the n-th time. Prints the list of wait statuses. The runs are forks, so that PyTorch is
imported once.
"""

import json
import os
import signal
import sys

from anonymization_training import train_anonymizer
from aux_code.runs import run_script


def main() -> None:
    """One fork after the other."""
    statuses = []
    for run_id, name, file, n, moment in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            signal_at(getattr(signal, name), file, n, moment)
            run_script(
                lambda run_id=run_id: train_anonymizer.main([*sys.argv[1:], "--run_id", run_id])
            )
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(statuses))


def signal_at(number: int, file: str, n: int, moment: str) -> None:
    """Makes this process send itself the signal around a write."""
    replace, count = os.replace, [0]

    def counting(source, target) -> None:
        count[0] += os.path.basename(target) == file
        due = count[0] == n and os.path.basename(target) == file
        if due and moment == "before":
            os.kill(os.getpid(), number)
        replace(source, target)
        if due and moment == "after":
            os.kill(os.getpid(), number)

    os.replace = counting


if __name__ == "__main__":
    main()
