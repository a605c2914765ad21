"""Stage 3: surveillance videos -> f_A, frame by frame -> f_T, clip by clip -> one float32 feature
per 32 frames.

Writes OUTPUT/<video>.npy, one per video, and OUTPUT/manifest.json. The same command again extracts
only what is missing, failed or has another source now, with or without --resume; features made in
another way are replaced with --overwrite only. Exit status 3: some videos failed; they are named in
the manifest and at the end.

Several processes share the videos, balanced by frames, and one output folder, on one machine or a
common file system:

    torchrun --standalone --nproc_per_node 4 dali_extraction.py ...   a GPU each
    python dali_extraction.py --shard 2/8 ...                         the third of eight processes
"""

import os
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    # works in an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aux_code import distributed
from aux_code.datasets.lists import N_NAMED, some_of
from aux_code.datasets.unreadable import write_unreadable
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.person_boxes import open_person_boxes
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.extractor import ClipEncoder, Extraction
from feature_extraction.manifest import FeatureFolder, manifest_header, output_folder, weights_of
from feature_extraction.params_feature_extraction import PRESETS, FeatureExtractionParams
from feature_extraction.read_ahead import ReadAhead
from feature_extraction.readers import make_reader
from feature_extraction.video_inputs import list_inputs, parse_shard, shard_of


def main() -> int:
    params = parse(PRESETS, description=__doc__)
    run = start_run(params, "dali_extraction")
    outcome = extract(params, run)
    return report_end(outcome, run.folder) if distributed.is_main() else 0


class Outcome(NamedTuple):
    """How an extraction ended."""

    extraction: Extraction
    failed: dict[str, str]
    """Video -> why, of all processes of this run."""
    unreadable: dict[str, str]
    """The same of the whole data set, of other shards and earlier runs too."""
    missing: set[str]
    """Videos of the data set that have no features yet."""


def extract(params: FeatureExtractionParams, run: Run) -> Outcome:
    """The whole stage: this process's share of the videos, from files to files."""
    device = run.device
    geometry = ClipGeometry(**{f.name: getattr(params, f.name) for f in fields(ClipGeometry)})
    anonymizer_name, utility_path = weights_of(params)
    anonymizer, utility = load_anonymizer(anonymizer_name), load_utility(utility_path)
    inputs = list_inputs(params.dataset)
    videos = shard_of(inputs.videos, *parse_shard(params.shard, os.environ))
    boxes = None
    if anonymizer.requires_boxes:
        boxes = open_person_boxes(params.boxes, params.detector_weights, inputs.root, device)
        boxes.require(video.path for video in inputs.videos)
    header = manifest_header(params, inputs, device) | {"feature_dim": int(utility.feature_dim)}
    header["utility"] |= {"arch": utility.architecture["arch"]}

    permitted = params.overwrite, params.allow_mixed
    with FeatureFolder(output_folder(params, inputs), header, *permitted) as folder:
        run.write_parameters(params)
        todo = folder.left(videos)
        for video in todo:  # of another source perhaps: a kill must not leave them as this one's
            (folder.folder / f"{video.name}.npy").unlink(missing_ok=True)
        sys.stderr.write(
            f"{len(todo)} of {len(videos)} videos to extract into {folder.folder} "
            f"({header['reader']}, colours {header['colour_conversion']}, {header['precision']}, "
            f"{device})\n"
        )
        batch_size = max(1, params.batch_size // params.n_crops)
        share = params.min_decoded_share
        readers = partial(make_reader, header["reader"], geometry, share, boxes, device)
        # threads begin to read while the networks are prepared
        with ReadAhead(todo, readers, params.n_decoders, 2 * batch_size) as items:
            arithmetic = header["precision"], params.frames_per_pass, params.seed
            encoder = ClipEncoder(anonymizer, utility, device, *arithmetic)
            extraction = Extraction(encoder, folder, geometry.n_clips, batch_size)
            for n_clips, rate in extraction.run(items, len(todo)):
                run.writer.add_scalar("extraction/clips_per_second", rate, n_clips)
        extraction.failed |= inputs.unusable
        done = folder.read()["videos"] if inputs.unusable else ()
        for name in inputs.unusable.keys() - done:
            folder.add_failure(name, inputs.unusable[name])
        # all wait here: torchrun ends the other ranks when one leaves with a status for failures
        of_ranks = distributed.gather_objects(extraction.failed)
        failed = {name: reason for of_rank in of_ranks for name, reason in of_rank.items()}
        manifest = folder.read()
    names = {*(video.name for video in inputs.videos), *inputs.unusable}
    missing = names - set(manifest["videos"])
    unreadable = {name: why for name, why in manifest["failed"].items() if name in missing}
    return Outcome(extraction, failed, unreadable, missing)


def report_end(outcome: Outcome, folder: Path) -> int:
    """Names what failed, and what other shards have to do; exit status. unreadable.txt has all."""
    path, failed = write_unreadable(folder, outcome.unreadable), outcome.failed.items()
    sys.stderr.writelines(f"failed: {name}: {reason}\n" for name, reason in [*failed][:N_NAMED])
    if len(failed) > N_NAMED:
        sys.stderr.write(f"failed: {len(failed)} videos, all named in {path}\n")
    others = sorted(outcome.missing - set(outcome.failed))
    if others:
        (line,) = some_of("videos of other shards are not there yet", others)
        sys.stderr.write(f"{line}\n")
    return 3 if outcome.failed else 0


if __name__ == "__main__":
    run_script(main)
