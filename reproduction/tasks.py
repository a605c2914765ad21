"""A task is one command line of one stage, with the files it reads and writes."""

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aux_code import config
from aux_code.checkpoints import git_commit, read_json, write_json
from aux_code.errors import UserError
from reproduction.digests import data_digest, file_digest, folder_digest, portable


@dataclass(frozen=True)
class Task:
    """One process to run."""

    name: str
    """Unique; names the log and the stamp."""
    script: str
    """Path of the script relative to the repository root, or `-m MODULE`."""
    method: str
    """Which row of the table it is for, or `shared`."""
    seed: int
    arguments: tuple[str, ...]
    """What follows the script on the command line and decides the result."""
    outputs: tuple[Path, ...]
    """Files that exist once the task is done."""
    inputs: tuple[Path, ...] = ()
    """Files of other tasks whose content decides the result."""
    data: tuple[Path, ...] = ()
    """Folders of the data sets that it reads."""
    needs: tuple[str, ...] = ()
    """Names of the tasks that must be done first."""
    machine_arguments: tuple[str, ...] = ()
    """Arguments that decide where and how fast it runs, not what comes out: device, threads."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that differ from this process's."""
    own_folder: Path | None = None
    """Folder that only this task writes to; emptied before a fresh start, so that nothing of other
    inputs stays."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The preset's resolved parameters: a changed preset makes the task unfinished."""

    @property
    def stage(self) -> str:
        """Short name of what runs, for displays and for estimates of time."""
        return (
            self.script.rsplit(".", 1)[-1]
            if self.script.startswith("-m ")
            else Path(self.script).stem
        )

    @property
    def log_path(self) -> Path:
        """Where stdout and stderr go."""
        return config.LOGS_ROOT / "reproduce" / f"{self.name}.log"

    @property
    def stamp_path(self) -> Path:
        """Written when the task is done."""
        return config.LOGS_ROOT / "reproduce" / f"{self.name}.done.json"

    @property
    def started_path(self) -> Path:
        """Written when the task starts, so that an interrupted one is known and resumed."""
        return config.LOGS_ROOT / "reproduce" / f"{self.name}.started.json"

    def command(self, resume: bool = False) -> list[str]:
        """The argument vector."""
        is_module = self.script.startswith("-m ")
        program = (
            self.script.split(" ") if is_module else [str(config.REPOSITORY_ROOT / self.script)]
        )
        return [
            sys.executable,
            *program,
            *self.arguments,
            *self.machine_arguments,
            *(["--resume"] if resume else []),
        ]

    def shell_line(self) -> str:
        """The command as a line that can be pasted into a shell, from the repository's root."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        program = self.script if self.script.startswith("-m ") else shlex.quote(self.script)
        words = [shlex.quote(word) for word in (*self.arguments, *self.machine_arguments)]
        return " ".join([*variables, shlex.quote(sys.executable), program, *words])

    def fingerprint(self) -> str:
        """SHA-256 over what decides the result: script, arguments, preset, and what its inputs and
        data contain."""
        digests = {str(path): file_digest(path) for path in self.inputs}
        # an argument that names an input stands for its content, wherever the file lies
        arguments = [digests.get(word) or portable(word) for word in self.arguments]
        data = [data_digest(root) for root in self.data]
        parts = [self.script, arguments, self.parameters, sorted(digests.values()), data]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the stamp belongs to these very inputs, every output exists and its own folder is
        as it was left."""
        if not self.stamp_path.is_file() or not all(
            path.exists() for path in (*self.inputs, *self.outputs)
        ):
            return False
        try:
            stamp = read_json(self.stamp_path)
            return (
                stamp.get("fingerprint") == self.fingerprint()
                and stamp.get("folder") == self._folder_digest()
            )
        except UserError:
            return False

    def was_interrupted(self) -> bool:
        """Whether the same work was started and has not ended."""
        return (
            self.started_path.is_file()
            and read_json(self.started_path).get("fingerprint") == self.fingerprint()
        )

    def mark_started(self) -> None:
        """Notes that the work goes on from here; an older stamp no longer counts."""
        self.stamp_path.unlink(missing_ok=True)
        write_json(self.started_path, {"fingerprint": self.fingerprint()})

    def mark_done(
        self,
        started: float | None,
        finished: float | None,
        status: int,
        cpu_seconds: float | None = None,
    ) -> None:
        """Writes the stamp: fingerprint, the command, the span of time (seconds since the epoch),
        processor time.

        Times of what was run by hand are not known: None.
        """
        stamp = {"task": self.name, "stage": self.stage, "method": self.method, "seed": self.seed}
        stamp |= {"fingerprint": self.fingerprint(), "command": self.shell_line(), "status": status}
        stamp |= {"folder": self._folder_digest(), "commit": git_commit()}
        write_json(
            self.stamp_path,
            stamp | {"started": started, "finished": finished, "cpu_seconds": cpu_seconds},
        )
        self.started_path.unlink(missing_ok=True)

    def _folder_digest(self) -> str:
        return folder_digest(self.own_folder) if self.own_folder else ""
