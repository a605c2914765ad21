"""manifest.json of a folder of features, and the one question what is left to extract into it.

Every video has its record, .entries/<video>.json, written whole or not at all after its .npy (or
when it failed); the manifest is put together from them when a process enters or leaves the folder.
So processes on several machines write side by side without a lock; a kill loses the videos in work.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from aux_code import config
from aux_code.artefacts import Recipe, describe_inputs, differences, record_of, sha256
from aux_code.checkpoints import read_json, write_json
from aux_code.devices import environment, inference_precision
from aux_code.errors import UserError
from aux_code.models.obfuscation import OBFUSCATIONS, is_named
from aux_code.models.person_boxes import boxes_origin
from aux_code.parameters import fingerprint
from feature_extraction.params_feature_extraction import FeatureExtractionParams
from feature_extraction.readers import resolve_reader
from feature_extraction.video_inputs import VideoInput, VideoInputs, list_inputs, source_or_none

log = logging.getLogger(__name__)

_TABLES = ("videos", "failed")
MAY_MIX = ("precision", "colour_conversion", "device_kind")
"""What must not change inside a folder but by --allow_mixed."""
_ADDED_LATER = ("seed", "colour_conversion", "device_kind")
"""What an earlier version did not record."""
_RECORDED_ONLY = ("reader", "environment", "feature_dim")
"""Of the header: no other features follow from it, but from what else is there."""
COLOUR_CONVERSION = {"pyav": "as the file is tagged", "dali": "BT.601 where DALI decodes"}
"""Reader -> how YCbCr becomes RGB."""


def manifest_header(
    params: FeatureExtractionParams, inputs: VideoInputs, device: torch.device
) -> dict[str, Any]:
    """The manifest without videos and feature_dim; `precision`: in force."""
    header = {"format_version": 1, "dataset": inputs.dataset, **fingerprint(params)}
    header["reader"] = resolve_reader(params.reader)
    header["precision"] = inference_precision(params.precision, device)
    found = environment(device, header["precision"])
    header["colour_conversion"] = COLOUR_CONVERSION[header["reader"]]
    header["device_kind"] = found["device_kind"]
    header["environment"] = {key: found[key] for key in ("device_name", "versions")}
    anonymizer, utility = weights_of(params)
    if not _adds_noise(anonymizer):
        del header["seed"]  # which decides nothing else
    files = describe_inputs({"anonymizer": anonymizer, "utility": utility})
    header["anonymizer"] = {"name": anonymizer, "sha256": files["anonymizer"]["sha256"]}
    header["utility"] = files["utility"]
    if anonymizer in OBFUSCATIONS and OBFUSCATIONS[anonymizer]().requires_boxes:
        header["person_boxes"] = boxes_origin(params.boxes, params.detector_weights, inputs.root)
    return header


def _adds_noise(anonymizer: str) -> bool:
    if is_named(anonymizer):
        return "_noise" in anonymizer
    try:
        networks = record_of(anonymizer, "architectures").get("architectures", {})
    except UserError:  # a file without a record, such as published weights
        return False
    return networks.get("fa", {}).get("arguments", {}).get("output_noise", 0) > 0


def weights_of(params: FeatureExtractionParams) -> tuple[str, str]:
    """(anonymizer, file of f_T), empty options resolved. Raises UserError: not written yet."""
    anonymizer = params.anonymizer or _written_by("train_anonymizer", "last.pth", params)
    utility = params.utility or anonymizer
    if is_named(utility):
        utility = _written_by("init_utility", "ft_action.pth", params)
    return anonymizer, utility


def _written_by(stage: str, file: str, params: FeatureExtractionParams) -> str:
    path = config.SAVED_MODELS_ROOT / f"{stage}_{params.preset}" / file
    if not path.is_file():
        option = "--utility PATH" if stage == "init_utility" else "--anonymizer NAME or PATH"
        raise UserError(f"{path} does not exist: run {stage}.py first, or give {option}")
    return str(path)


def output_folder(params: FeatureExtractionParams, inputs: VideoInputs) -> Path:
    """--output, or its default."""
    run_id = params.run_id or f"dali_extraction_{params.preset}"
    return Path(params.output) if params.output else config.FEATURES_ROOT / inputs.dataset / run_id


def progress(
    params: FeatureExtractionParams, device: torch.device
) -> Literal["done", "resumes", "to do"]:
    """What stands there of an extraction with these parameters; builds no network.

    A video that failed is not done: a rerun tries it again. Features made in another way are of no
    use. Missing data or weights are no error here: the extraction names them.
    """
    try:
        inputs = list_inputs(params.dataset)
        header = manifest_header(params, inputs, device)
        folder = FeatureFolder(output_folder(params, inputs), header)
        if folder.path.is_file():
            left = inputs.unusable or folder.left(inputs.videos, by_content=False)
            return "resumes" if left else "done"
    except UserError as error:
        log.debug("to do: %s", error)
    return "to do"


class FeatureFolder:
    """The feature files of one data set and their manifest; a context manager for who writes.

    `header`: the manifest without `videos` and `failed`. Features that were made in another way are
    a UserError in `with` and in all that reads, or given up with `overwrite`. With `allow_mixed`
    MAY_MIX may differ; the entries of the videos that are added say so.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        overwrite: bool = False,
        allow_mixed: bool = False,
    ):
        self.folder, self.header, self.overwrite = Path(folder), dict(header), overwrite
        self.allow_mixed, self._own = allow_mixed, {}
        self.path, self._entries = self.folder / "manifest.json", self.folder / ".entries"

    def __enter__(self) -> "FeatureFolder":
        try:
            self._entries.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"cannot write to {self.folder} ({error.strerror}); choose another --output"
            raise UserError(text) from error
        empty = {**self.header, "videos": {}, "failed": {}}
        if not self.path.exists():
            self._create_manifest(empty)
        elif self.overwrite and self._differences(self._stored()):
            log.warning("%s: features made in another way are replaced", self.folder)
            write_json(self.path, empty)
        self._join(self._stored())
        self.assemble()
        self._remove_half_files()
        return self

    def __exit__(self, *_) -> None:
        self.assemble()

    def left(self, videos: Iterable[VideoInput], by_content: bool = True) -> list[VideoInput]:
        """The videos without complete features of their present source; warns of changed ones.

        `by_content` reads all features, gigabytes of real data; else their headers alone count.
        """
        entries, left, n_unknown = self.read()["videos"], [], 0
        for video in videos:
            entry = entries.get(video.name)
            if entry is None or not self._is_whole(entry, by_content):
                left.append(video)
                continue
            before, now = entry.get("source"), source_or_none(video.path)
            if before is None or now is None:
                n_unknown += 1
            elif any(before[key] != now[key] for key in ("bytes", "sha256")):
                text = "%s: %s is another file than the extracted %s: extracted anew"
                log.warning(text, video.name, now["path"], before["path"])
                left.append(video)
        if n_unknown:
            text = "%s: %d videos are kept without comparison: sources not recorded or gone"
            log.warning(text, self.folder, n_unknown)
        return left

    def add_video(self, name: str, entry: dict[str, Any]) -> None:
        """Records a video whose feature file is on disk."""
        self._record(name, {"entry": entry | self._own})

    def add_failure(self, name: str, reason: str) -> None:
        """Records a video that could not be extracted."""
        self._record(name, {"reason": reason})

    def assemble(self) -> None:
        """Writes the manifest anew, unless it says what the records say already.

        Whoever writes looks again: another process may have put its manifest there in between. It
        need not look for ever, since whoever records more assembles later.
        """
        for _ in range(10):
            manifest = self.read()
            if manifest == self._stored():
                return
            write_json(self.path, manifest)

    def read(self) -> dict[str, Any]:
        """The manifest as the records have it now: videos and failures of all processes."""
        manifest = self._stored()
        if different := self._differences(manifest):
            text = f"{self.folder} holds features made in another way ({'; '.join(different)})"
            mixable = all(line.split(":")[0] in MAY_MIX for line in different)
            mixing = ", or --allow_mixed to add to them" if mixable else ""
            remedy = f"give another --output, or --overwrite to replace them{mixing}"
            raise UserError(f"{text}; {remedy}")
        videos, failed, made_of = manifest["videos"], manifest["failed"], self._made_of
        for record in map(read_json, sorted(self._entries.glob("*.json"))):
            if record["made_of"] != made_of:
                continue  # of features that --overwrite gave up
            videos.pop(record["name"], None)
            failed.pop(record["name"], None)
            table, key = (videos, "entry") if "entry" in record else (failed, "reason")
            table[record["name"]] = record[key]
        return manifest | {table: dict(sorted(manifest[table].items())) for table in _TABLES}

    def _record(self, name: str, content: dict[str, Any]) -> None:
        record = {"name": name, "made_of": self._made_of, **content}
        write_json(self._entries / f"{name}.json", record)

    @property
    def _made_of(self) -> str:
        """Digest of how the features are made, equal for all processes of one folder."""
        recipe = _recipe(self.header)
        contents = {role: part["sha256"] or part["path"] for role, part in recipe.inputs.items()}
        text = json.dumps([recipe.parameters, contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _stored(self) -> dict[str, Any]:
        manifest = read_json(self.path)
        tables = [manifest.get(key) for key in _TABLES] if isinstance(manifest, dict) else [None]
        if not all(isinstance(table, dict) for table in tables):
            remedy = "give another --output or remove it"
            raise UserError(f"{self.path} is not a manifest of this script; {remedy}")
        if reader := manifest.get("reader"):  # from which an earlier version's colours follow
            manifest.setdefault("colour_conversion", COLOUR_CONVERSION.get(reader))
        return manifest

    def _differences(self, manifest: dict[str, Any]) -> list[str]:
        header = {key: value for key, value in manifest.items() if key not in _TABLES}
        unknown = {key for key in _ADDED_LATER if key not in header}
        now = {key: value for key, value in self.header.items() if key not in unknown}
        if self.allow_mixed:
            now |= {key: header[key] for key in MAY_MIX if key in header}
        return differences(vars(_recipe(header)), _recipe(now))

    def _join(self, begun: dict[str, Any]) -> None:
        """Takes over how the folder was begun; what is own, the entries of its videos will say."""
        if self._differences(begun):
            return
        now = {key: self.header[key] for key in MAY_MIX if key in self.header}
        for key in set(_ADDED_LATER) - begun.keys():
            self.header.pop(key, None)
        self.header |= {key: begun[key] for key in MAY_MIX if key in begun}
        self._own = {key: now[key] for key in now if now[key] != self.header.get(key)}

    def _create_manifest(self, empty: dict[str, Any]) -> None:
        """The first of several processes writes its header; the others will compare theirs."""
        draft = self.folder / f".manifest.json.{os.getpid()}_{secrets.token_hex(4)}.tmp"
        write_json(draft, empty)
        try:
            os.link(draft, self.path)  # fails where rename would replace another process's
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(draft, self.path)
        draft.unlink(missing_ok=True)

    def _is_whole(self, entry: dict[str, Any], by_content: bool) -> bool:
        try:
            path = self.folder / entry["file"]
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype != np.float32 or len(array) != entry["n_clips"]:
                return False
            known = by_content and "sha256" in entry  # an earlier version recorded none
            return not known or sha256(path) == entry["sha256"]
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return False

    def _remove_half_files(self) -> None:
        """Of killed processes: an hour old by the file system's clock; writing takes seconds."""
        os.utime(self._entries)
        for path in (*self.folder.glob(".*.tmp"), *self._entries.glob(".*.tmp")):
            with contextlib.suppress(FileNotFoundError):  # renamed by a process that lives
                if path.stat().st_mtime < self._entries.stat().st_mtime - 3600:
                    path.unlink()


def _recipe(header: dict[str, Any]) -> Recipe:
    """A header as `artefacts.differences` compares it: networks and boxes by content."""
    inputs = {}
    for role in ("anonymizer", "utility", "person_boxes"):
        if part := header.get(role):
            name = next(part[key] for key in ("name", "path", "source") if key in part)
            inputs[role] = {"path": name, "sha256": part["sha256"]}
    others = (*inputs, *_RECORDED_ONLY)
    return Recipe({key: value for key, value in header.items() if key not in others}, inputs)
