"""Runs train_anonymizer.py with these arguments several times, as forks of one process that has
imported PyTorch, and prints the list of exit codes.

On stdin a JSON list [[run_id, signal, file, n, "before" | "after"], ...]: the run gets the signal
just before or after the file of this name gets its content for the n-th time.
"""

import json
import os
import signal
import sys

import torch._dynamo  # noqa: F401  (optimizers import it, each fork anew)
import torch.utils.tensorboard  # noqa: F401

from anonymization_training import train_anonymizer
from aux_code.runs import run_script


def signal_at(number: int, file: str, n: int, moment: str) -> None:
    """Makes this process send itself the signal around a write."""
    replace, count = os.replace, [0]

    def counting(source, target) -> None:
        is_file = os.path.basename(target) == file
        count[0] += is_file
        due = is_file and count[0] == n
        if due and moment == "before":
            os.kill(os.getpid(), number)
        replace(source, target)
        if due and moment == "after":
            os.kill(os.getpid(), number)

    os.replace = counting


if __name__ == "__main__":
    statuses = []
    for run_id, name, *when in json.load(sys.stdin):
        if not (child := os.fork()):
            signal_at(getattr(signal, name), *when)
            argv = [*sys.argv[1:], "--run_id", run_id]
            run_script(lambda argv=argv: train_anonymizer.main(argv))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(statuses))
