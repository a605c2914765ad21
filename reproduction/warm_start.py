"""Starts steps as copies of one process that has imported the libraries already: see
warm_server.py."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from aux_code import config
from aux_code.errors import UserError

LIBRARIES = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "torch.optim.swa_utils", "torchvision", "numpy", "PIL.Image",
    "av", "nvidia.dali.fn", "tyro", "sklearn.metrics", "matplotlib.pyplot",
)  # fmt: skip
"""What the stages import, now or later; each is imported once for all steps. torch._dynamo is what
every optimizer imports when it is made, which takes a second. OpenVINO is not here: its import
starts a thread."""

_SERVER = Path(__file__).with_name("warm_server.py")

SECONDS_BETWEEN_LOOKS = 0.05
"""How often `wait` looks."""


class StartedStep:
    """A running step, with the part of subprocess.Popen's interface that its owner needs."""

    def __init__(self, server: "StepServer", pid: int):
        self.server, self.pid = server, pid

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal's number if one ended it; None as long as it runs or nobody
        has polled."""
        return self.server.ended[self.pid]["status"] if self.pid in self.server.ended else None

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time of the step and of what it started and waited for; None as long as it
        runs."""
        return self.server.ended[self.pid]["cpu_seconds"] if self.pid in self.server.ended else None

    def poll(self) -> int | None:
        """The same, after a look."""
        self.server.receive()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return self.returncode


class StepServer:
    """Owner's side: one server process, started with the first step.

    Args:
        environment: variables of the server beside this process's, such as OMP_NUM_THREADS, which
            libraries read when they are imported.
        kept_open: file descriptors that every step inherits, such as a lock's.
    """

    def __init__(self, environment: dict[str, str], kept_open: Sequence[int] = ()):
        self.environment, self.kept_open = environment, tuple(kept_open)
        self.process: subprocess.Popen | None = None
        self.channel: IO[bytes] | None = None
        self.ended: dict[int, dict] = {}
        self.started: list[int] = []

    def start(
        self, command: Sequence[str], output: str, environment: dict[str, str]
    ) -> StartedStep:
        """Runs `command`, [interpreter, SCRIPT or -m MODULE, ...], as leader of a process group of
        its own.

        Args:
            command: the interpreter is that of this process.
            output: file that stdout and stderr are appended to.
            environment: variables beside this process's.

        Raises:
            UserError: the server has ended, which only happens if somebody or the kernel has killed
                it.
        """
        if self.process is None:
            self._start_server()
        request = {
            "command": list(command[1:]),
            "output": output,
            "environment": {**os.environ, **environment},
        }
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        except ConnectionError:
            pass  # what it said last, or its end, is read below
        n_before = len(self.started)
        while len(self.started) == n_before:
            self.receive(timeout=1.0)
        return StartedStep(self, self.started[-1])

    def receive(self, timeout: float = 0.0) -> None:
        """Takes in what the server has said."""
        while select.select([self.socket], [], [], timeout)[0]:
            message = json.loads(self._next_line())
            if "started" in message:
                self.started.append(message["started"])
            else:
                self.ended[message["ended"]] = message
            timeout = 0.0

    def _next_line(self) -> bytes:
        try:
            line = self.channel.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise UserError(
                f"the process that starts the steps ended with status {self.process.wait()}; run the same command "
                "again, and look at the machine's memory if it was killed (-9)"
            )
        return line

    def close(self) -> None:
        """Ends the server; steps that still run go on."""
        if self.process is not None:
            self.channel.close()
            self.socket.close()
            self.process.wait()
            self.process = None

    def _start_server(self) -> None:
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, str(_SERVER), str(theirs.fileno()), *LIBRARIES]
        self.process = subprocess.Popen(
            command, cwd=config.REPOSITORY_ROOT, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL,
            start_new_session=True, pass_fds=(theirs.fileno(), *self.kept_open),
        )  # fmt: skip
        theirs.close()
        # unbuffered reading: what select() calls readable is all in the socket
        self.channel = self.socket.makefile("rb", buffering=0)
