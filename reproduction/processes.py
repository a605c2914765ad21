"""Processes of steps: plain children, or copies of one process that has imported the libraries.

The copies come from the standard library's fork server. Nothing of the project but this file is
imported there, since its paths come from the environment that each copy is given.
"""

import atexit
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PRELOADED = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "torch.optim.swa_utils", "torchvision",
    "numpy", "PIL.Image", "av", "nvidia.dali.fn", "tyro", "sklearn.metrics", "matplotlib.pyplot",
)  # fmt: skip
"""What the fork server imports once for the miniature's hundred short steps; torch._dynamo is what
every optimizer imports when it is made. OpenVINO is not here: its import starts a thread."""


class Command(NamedTuple):
    """What to run, and with what."""

    words: Sequence[str]  # what follows `python`: SCRIPT or -m MODULE, and its arguments
    folder: str  # to work in; the script's path is relative to it
    log: str  # file that stdout and stderr are appended to
    environment: Mapping[str, str]  # all variables
    kept_open: Connection  # a lock, held as long as the process lives


class PlainProcess:
    """A child with a session of its own; `cpu_seconds`, over all cores, is known at the end."""

    def __init__(self, command: Command):
        self.returncode: int | None = None
        self.cpu_seconds: float | None = None
        with open(command.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command.words], cwd=command.folder, env=dict(command.environment),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=(command.kept_open.fileno(),),
            )  # fmt: skip
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Exit status, minus the signal's number if one ended it; None while it runs."""
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.returncode


class ForkedProcess:
    """The same as a copy of the fork server, which starts with the first one."""

    def __init__(self, command: Command):
        self.cpu_seconds: float | None = None
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, __name__])
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=become, args=(command, sender))
        with _seen_by_the_server(command.environment), sender:
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """As of a plain process; 255 if the server itself was killed."""
        status = self._process.exitcode
        if status is not None and not self._receiver.closed and self._receiver.poll():
            try:
                self.cpu_seconds = self._receiver.recv()
            except EOFError:  # it was killed
                pass
            self._receiver.close()
        return status


def stop(processes: Sequence[PlainProcess | ForkedProcess], seconds: float) -> None:
    """Tells processes and their children to leave (SIGINT may be ignored in a background job), and
    kills what is still there after some seconds."""
    _signal(processes, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while _signal(processes, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(processes, signal.SIGKILL)
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)


def _signal(processes: Sequence[PlainProcess | ForkedProcess], number: int) -> bool:
    """Signals the process groups; 0 only looks. Returns whether there is any."""
    found = False
    for process in processes:
        is_alone = process.poll() is None
        for send in (os.killpg, os.kill) if is_alone else (os.killpg,):
            try:  # a copy that has just begun has no group of its own yet
                send(process.pid, number)
                found = True
                break
            except ProcessLookupError:
                continue
    return found


@contextmanager
def _seen_by_the_server(environment: Mapping[str, str]) -> Iterator[None]:
    """The server starts with these variables: libraries read OMP_NUM_THREADS when imported. Its
    copies do not import the script that this process runs."""
    main, variables = sys.modules["__main__"], dict(os.environ)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(environment)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(variables)


def become(command: Command, cpu_seconds: Connection) -> None:
    """In a copy: the process that `python SCRIPT ...` or `python -m MODULE ...` would be."""
    os.setsid()
    os.chdir(command.folder)
    with open(command.log, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(command.environment)
    multiprocessing.set_start_method(None, force=True)  # the usual one, not the fork server's
    first, *rest = command.words
    comm = Path("/proc/self/comm")
    if comm.exists():  # what ps shows
        comm.write_text(Path(rest[0] if first == "-m" else first).name[:15])
    try:
        if first == "-m":
            sys.path[0], sys.argv = command.folder, rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            script = os.path.join(command.folder, first)
            sys.path[0], sys.argv = os.path.dirname(script), [script, *rest]
            runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_seconds.send(sum(usage.ru_utime + usage.ru_stime for usage in usages))
