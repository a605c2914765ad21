"""Stage 3: surveillance videos -> f_A, frame by frame -> f_T, clip by clip -> one float32 feature
per 32 frames.

Writes OUTPUT/<video>.npy, one per video, and OUTPUT/manifest.json. The same command again extracts
only what is missing or failed, with or without --resume. Exit status 3: some videos failed; they
are named in the manifest and at the end.

Several processes share the videos, balanced by frames, and one output folder, on one machine or a
common file system:

    torchrun --standalone --nproc_per_node 4 dali_extraction.py ...   a GPU each; rank 0 names what failed or is missing
    python dali_extraction.py --shard 2/8 ...                         the third of eight processes of any scheduler
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(
        0, str(Path(__file__).resolve().parent.parent)
    )  # works in an uninstalled clone, from any folder

import torch
from torch import nn

from aux_code import config, distributed
from aux_code.artefacts import sha256
from aux_code.datasets.unreadable import write_unreadable
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.obfuscation import OBFUSCATIONS
from aux_code.models.person_boxes import open_person_boxes
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.extractor import ClipEncoder, Extraction
from feature_extraction.manifest import FeatureFolder
from feature_extraction.params_feature_extraction import PRESETS, FeatureExtractionParams
from feature_extraction.read_ahead import ReadAhead
from feature_extraction.readers import make_reader, resolve_reader
from feature_extraction.video_inputs import VideoInput, list_inputs, parse_shard, shard_of


def main() -> int:
    params = parse(PRESETS, description=__doc__)
    run = start_run(params, "dali_extraction")
    outcome = extract(params, run)
    return report_end(outcome, run.folder) if distributed.is_main() else 0


class Outcome(NamedTuple):
    """How an extraction ended.

    Attributes:
        extraction: what this process did.
        failed: video -> why, of all processes of this run.
        unreadable: the same of the whole data set, as the output folder has it: of other shards and
            earlier runs too.
        missing: videos of the data set that have no features yet.
    """

    extraction: Extraction
    failed: dict[str, str]
    unreadable: dict[str, str]
    missing: set[str]


def extract(params: FeatureExtractionParams, run: Run) -> Outcome:
    """The whole stage: this process's share of the videos, from files to files."""
    device = current_device(run.device)
    reader_name = resolve_reader(params.reader)
    shard_index, n_shards = parse_shard(params.shard, os.environ)
    geometry = ClipGeometry(
        params.frames_per_clip,
        params.stride,
        params.frames_per_feature,
        params.crop,
        params.n_crops,
        params.size,
    )
    anonymizer_name, utility_path = weights_of(params)
    anonymizer, utility = load_anonymizer(anonymizer_name), load_utility(utility_path)

    inputs = list_inputs(params.dataset)
    videos = shard_of(inputs.videos, shard_index, n_shards)
    boxes = None
    if anonymizer.requires_boxes:
        boxes = open_person_boxes(params.boxes, params.detector_weights, inputs.root, device)
        boxes.require(video.path for video in inputs.videos)
    output = (
        Path(params.output) if params.output else config.FEATURES_ROOT / inputs.dataset / run.run_id
    )
    header = manifest_header(inputs.dataset, params, reader_name)
    header |= describe_networks(anonymizer_name, utility_path, utility)
    header |= {"person_boxes": boxes.origin} if boxes else {}

    with FeatureFolder(output, header) as folder:
        folder.remove_partial_files()
        finished = folder.finished()
        if params.resume and not finished:
            sys.stderr.write(
                f"--resume: no finished video in {output}, so this starts with the first one\n"
            )
        todo = [video for video in videos if video.name not in finished]
        run_summary = f"{len(todo)} of {len(videos)} videos to extract into {output}"
        sys.stderr.write(f"{run_summary} ({reader_name}, {params.precision}, {device})\n")
        batch_size = max(1, params.batch_size // params.n_crops)
        readers = partial(
            make_reader, reader_name, geometry, params.min_decoded_share, boxes, device
        )
        with ReadAhead(
            todo, readers, params.n_decoders, 2 * batch_size
        ) as items:  # while the networks are prepared
            encoder = ClipEncoder(
                anonymizer, utility, device, params.precision, params.frames_per_pass, params.seed
            )
            extraction = Extraction(encoder, folder, geometry.n_clips, batch_size, scalars_to(run))
            extraction.run(items, len(todo))
        folder.merge()
        # everybody waits here: torchrun ends the other ranks when one leaves with a status for
        # failed videos
        of_ranks = distributed.gather_objects(extraction.failed)
        failed = {name: reason for of_rank in of_ranks for name, reason in of_rank.items()}
        return Outcome(extraction, failed, *still_without_features(inputs.videos, folder))


def still_without_features(
    videos: Sequence[VideoInput], folder: FeatureFolder
) -> tuple[dict[str, str], set[str]]:
    """({video: why it failed}, all that have no features) of the data set, as the folder has
    them."""
    missing = {video.name for video in videos} - folder.finished()
    return {name: reason for name, reason in folder.failures().items() if name in missing}, missing


def weights_of(params: FeatureExtractionParams) -> tuple[str, Path]:
    """(anonymizer, file of f_T), the empty options resolved.

    Raises:
        UserError: a default that no stage has written yet.
    """
    anonymizer = params.anonymizer
    if not anonymizer:
        path = config.SAVED_MODELS_ROOT / f"train_anonymizer_{params.preset}" / "last.pth"
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: run train_anonymizer.py first, or give --anonymizer NAME or PATH"
            )
        anonymizer = str(path)
    if params.utility:
        return anonymizer, Path(params.utility)
    if anonymizer in OBFUSCATIONS:
        utility = config.SAVED_MODELS_ROOT / f"init_utility_{params.preset}" / "ft_action.pth"
        if not utility.is_file():
            raise UserError(
                f"{utility} does not exist: run init_utility.py first, or give --utility PATH"
            )
        return anonymizer, utility
    return anonymizer, Path(anonymizer)


def current_device(device: torch.device) -> torch.device:
    """The same device; a numbered GPU, as torchrun's processes have, becomes the one that libraries
    use."""
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def manifest_header(dataset: str, params: FeatureExtractionParams, reader_name: str) -> dict:
    """What all feature files of a folder share, but for the networks."""
    return {
        "format_version": 1,
        "dataset": dataset,
        "frames_per_clip": params.frames_per_clip,
        "stride": params.stride,
        "frames_per_feature": params.frames_per_feature,
        "crop": params.crop,
        "size": params.size,
        "n_crops": params.n_crops,
        "precision": params.precision,
        "reader": reader_name,
    }


def describe_networks(anonymizer_name: str, utility_path: Path, utility: nn.Module) -> dict:
    """The networks by name, content and width, as the manifest has them."""
    is_name = anonymizer_name in OBFUSCATIONS
    return {
        "feature_dim": int(utility.feature_dim),
        "anonymizer": {
            "name": anonymizer_name,
            "sha256": "" if is_name else content_of(Path(anonymizer_name)),
        },
        "utility": {
            "path": str(utility_path),
            "sha256": content_of(utility_path),
            "arch": utility.architecture["arch"],
        },
    }


def content_of(path: Path) -> str:
    """SHA-256 of a weight file; of a folder's first safetensors file."""
    return sha256(next(iter(sorted(path.glob("*.safetensors"))), path) if path.is_dir() else path)


def scalars_to(run: Run) -> Callable[[int, float], None]:
    """(clips so far, clips per second) -> TensorBoard."""
    return lambda n_clips, rate: run.writer.add_scalar("extraction/clips_per_second", rate, n_clips)


def report_end(outcome: Outcome, folder: Path) -> int:
    """Names what failed, in the run's unreadable.txt too, and what other shards have to do; gives
    the exit status."""
    write_unreadable(folder, outcome.unreadable)
    for name, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    others = sorted(outcome.missing - set(outcome.failed))
    if others:
        named = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
        sys.stderr.write(f"{len(others)} videos of other shards are not there yet: {named}\n")
    return 3 if outcome.failed else 0


if __name__ == "__main__":
    run_script(main)
