"""The process whose copies become the steps of a plan; started by warm_start.py as
`python warm_server.py CHANNEL LIBRARY...`.

A plan of the miniature is close to a hundred short steps, and each would spend some four seconds of
a core on importing PyTorch and the rest. The server imports them once and forks for each step; the
copy then runs the script as `python SCRIPT ...` would. Nothing of this project is imported before,
and no computation has started: threads, devices and settings of a copy are its own.

CHANNEL is the number of an inherited socket. A line of JSON in: {"command", "output",
"environment"}. Lines out: {"started": pid} at once and, later, {"ended": pid, "status": exit status
or minus a signal's number, "cpu_seconds"}.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

SECONDS_BETWEEN_LOOKS = 0.05
"""How often the server looks for steps that have ended."""


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """The server's loop. Returns in every copy, with what it shall run, and in the server at the
    end, with None."""
    children: set[int] = set()
    pending = b""
    while True:
        if select.select([channel], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            received = channel.recv(65536)
            if not received:
                return None
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    channel.close()
                    return json.loads(line)
                children.add(pid)
                _say(channel, {"started": pid})
        for pid in list(children):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                children.remove(pid)
                seconds = usage.ru_utime + usage.ru_stime
                _say(
                    channel,
                    {
                        "ended": pid,
                        "status": os.waitstatus_to_exitcode(status),
                        "cpu_seconds": seconds,
                    },
                )


def _say(channel: socket.socket, message: dict[str, float]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def become(request: dict[str, Any]) -> None:
    """In a copy: takes over process group, output, environment and arguments, then runs the script
    to its end."""
    os.setsid()
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    first, *rest = request["command"]
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(first), [first, *rest]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Imports, serves, and in each copy becomes a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides; copies take the default back
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # the concern of the scripts that need it
    gc.freeze()  # copies do not touch, and so do not duplicate, what is there already
    request = serve(channel)
    if request is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        become(request)


if __name__ == "__main__":
    main()
