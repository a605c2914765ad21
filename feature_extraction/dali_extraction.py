"""Stage 3: surveillance videos -> f_A, frame by frame -> f_T, clip by clip -> one float32 feature per 32 frames.

Writes OUTPUT/<video>.npy, one per video, and OUTPUT/manifest.json. The same command again extracts only what is missing
or failed, with or without --resume. Exit status 3: some videos failed; they are named in the manifest and at the end.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works in an uninstalled clone, from any folder

import torch
from torch import nn

from aux_code import config
from aux_code.checkpoints import sha256_of
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.obfuscation import OBFUSCATIONS
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.extractor import ClipEncoder, Extraction, read_ahead, remove_partial_files
from feature_extraction.manifest import FeatureFolder
from feature_extraction.params_feature_extraction import PRESETS, FeatureExtractionParams
from feature_extraction.readers import BoxSource, make_reader, resolve_reader
from feature_extraction.video_inputs import list_inputs, parse_shard, shard_of


def main() -> int:
    params = parse(PRESETS, description=__doc__)
    run = start_run(params, "dali_extraction")
    device = local_device(run.device, os.environ)
    reader_name = resolve_reader(params.reader)
    shard_index, n_shards = parse_shard(params.shard, os.environ)
    geometry = ClipGeometry(
        params.frames_per_clip, params.stride, params.frames_per_feature, params.crop, params.n_crops, params.size
    )
    anonymizer_name, utility_path = weights_of(params)
    anonymizer, utility = load_anonymizer(anonymizer_name), load_utility(utility_path)

    inputs = list_inputs(params.dataset)
    videos = shard_of(inputs.videos, shard_index, n_shards)
    boxes = BoxSource(params.boxes_path(inputs.root), videos, device) if anonymizer.requires_boxes else None
    output = Path(params.output) if params.output else config.FEATURES_ROOT / inputs.dataset / run.run_id
    header = manifest_header(inputs.dataset, params, reader_name)
    header |= describe_networks(anonymizer_name, utility_path, utility)

    with FeatureFolder(output, header) as folder:
        remove_partial_files(output)
        finished = folder.finished()
        if params.resume and not finished:
            sys.stderr.write(f"--resume: no finished video in {output}, so this starts with the first one\n")
        todo = [video for video in videos if video.name not in finished]
        run_summary = f"{len(todo)} of {len(videos)} videos to extract into {output}"
        encoder = ClipEncoder(anonymizer, utility, device, params.precision, params.frames_per_pass, params.seed)
        extraction = Extraction(encoder, folder, geometry.n_clips, params.batch_size, scalars_to(run))
        items = read_ahead(
            todo,
            lambda: make_reader(reader_name, geometry, params.min_decoded_share, boxes, device),
            params.n_decoders,
            2 * params.batch_size,
        )
        sys.stderr.write(f"{run_summary} ({reader_name}, {params.precision}, {device})\n")
        extraction.run(items, len(todo))
        folder.merge()
        missing = {video.name for video in inputs.videos} - folder.finished()
    return report_end(extraction.failed, missing, n_shards)


def weights_of(params: FeatureExtractionParams) -> tuple[str, Path]:
    """(anonymizer, file of f_T), the empty options resolved.

    Raises:
        UserError: a default that no stage has written yet.
    """
    anonymizer = params.anonymizer
    if not anonymizer:
        path = config.SAVED_MODELS_ROOT / f"train_anonymizer_{params.preset}" / "last.pth"
        if not path.is_file():
            raise UserError(f"{path} does not exist: run train_anonymizer.py first, or give --anonymizer NAME or PATH")
        anonymizer = str(path)
    if params.utility:
        return anonymizer, Path(params.utility)
    if anonymizer in OBFUSCATIONS:
        utility = config.SAVED_MODELS_ROOT / f"init_utility_{params.preset}" / "ft_action.pth"
        if not utility.is_file():
            raise UserError(f"{utility} does not exist: run init_utility.py first, or give --utility PATH")
        return anonymizer, utility
    return anonymizer, Path(anonymizer)


def local_device(device: torch.device, environment: Mapping[str, str]) -> torch.device:
    """Under torchrun, the GPU of this process."""
    if device.type == "cuda" and "LOCAL_RANK" in environment:
        device = torch.device("cuda", int(environment["LOCAL_RANK"]))
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
        "anonymizer": {"name": anonymizer_name, "sha256": "" if is_name else content_of(Path(anonymizer_name))},
        "utility": {
            "path": str(utility_path),
            "sha256": content_of(utility_path),
            "arch": utility.architecture["arch"],
        },
    }


def content_of(path: Path) -> str:
    """SHA-256 of a weight file; of a folder's first safetensors file."""
    return sha256_of(next(iter(sorted(path.glob("*.safetensors"))), path) if path.is_dir() else path)


def scalars_to(run: Run) -> Callable[[int, float], None]:
    """(clips so far, clips per second) -> TensorBoard."""
    return lambda n_clips, rate: run.writer.add_scalar("extraction/clips_per_second", rate, n_clips)


def report_end(failed: dict[str, str], missing: set[str], n_shards: int) -> int:
    """Names what failed and, for shards, how many videos of the whole data set are still missing; the exit status."""
    for name, reason in failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    if missing - set(failed) and n_shards > 1:
        others = sorted(missing - set(failed))
        sys.stderr.write(f"{len(others)} videos of other shards are not there yet: {', '.join(others[:10])}\n")
    return 3 if failed else 0


if __name__ == "__main__":
    run_script(main)
