"""Writes what people and programs read: summary.json, tables.md, figures and the self-contained report.html."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from aux_code import config
from aux_code.checkpoints import write_atomically, write_json
from aux_code.datasets.surveillance import SurveillanceVideo
from aux_code.errors import UserError
from aux_code.pipeline.methods import METHODS
from aux_code.pipeline.plan import training_log
from aux_code.pipeline.tasks import Task
from aux_code.reporting import plots
from aux_code.reporting.html import figure_block, page, paragraph, table_block
from aux_code.reporting.results import Results, load_scores
from aux_code.reporting.samples import Picture, SampleSource
from aux_code.reporting.summary import build_summary
from aux_code.reporting.tables import (
    any_table,
    attacker_table,
    attribute_table,
    category_table,
    headline,
    main_table,
    published_table,
    settings_table,
    timing_table,
    write_markdown,
)
from aux_code.reporting.training_pictures import spread_over, training_pictures

log = logging.getLogger(__name__)

CURVES_OF = ("raw", "ted_spad", "ted_spad_plus")


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows besides the results."""

    tasks: tuple[Task, ...]
    """For timings and settings."""
    picture_size: int
    """Height and width in pixels of the frames that the networks see."""
    ablations: tuple[str, ...] = ()
    """Numbers of the tables other than 8."""


def write_all(results: Results, options: ReportOptions) -> list[Path]:
    """Writes everything below RESULTS_ROOT and returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    root = config.RESULTS_ROOT
    write_json(root / "summary.json", build_summary(results))
    _write_text(root / "tables.md", write_markdown(results, options.ablations))
    _write_text(root / "report.html", build_report(results, options, root / "figures"))
    return [root / "summary.json", root / "tables.md", root / "report.html"]


def build_report(results: Results, options: ReportOptions, figures: Path) -> str:
    """The report as one HTML text with its pictures inside; the pictures are written to `figures` as well."""
    blocks = [paragraph(headline(results), "lead"), *_result_blocks(results, figures)]
    try:
        source = SampleSource(results.preset, results.seeds[0], options.picture_size)
        blocks += _picture_blocks(results, source, figures)
    except UserError as error:
        log.warning("the report has no pictures: %s", error)
        blocks.append(paragraph(f"No pictures: {error}"))
    blocks += _training_blocks(results, figures)
    blocks += [
        "<h2>Leakage in detail</h2>",
        table_block(attribute_table(results)),
        table_block(attacker_table(results)),
    ]
    categories = category_table(results)
    if categories:
        blocks += ["<h2>Detection by kind of anomaly</h2>", _category_figure(results, categories.header[1:], figures)]
        blocks.append(table_block(categories))
    if options.ablations:
        blocks.append("<h2>Ablations</h2>")
        blocks += [table_block(any_table(results, number)) for number in options.ablations]
    blocks += ["<h2>Settings and timings</h2>", table_block(settings_table(results, options.tasks))]
    blocks.append(table_block(timing_table(options.tasks)))
    return page(f"TeD-SPAD, {results.preset} preset", blocks)


def _result_blocks(results: Results, figures: Path) -> list[str]:
    trade_off = _figure(plots.trade_off(results), figures / "trade_off.png")
    bars = _figure(plots.attribute_bars(results), figures / "attributes.png")
    return [
        figure_block(
            trade_off,
            "Privacy against utility. To the right less is leaked, upwards more is detected: the upper right corner is "
            "best. A method is worth using if it is further right than another at the same height. Hollow markers are "
            "controls. Bars show the standard deviation over seeds, where there are several.",
        ),
        "<h2>The main table</h2>",
        table_block(main_table(results)),
        table_block(published_table(results), "published"),
        "<h2>What an attacker still sees</h2>",
        figure_block(
            bars,
            "Average precision of the strongest attacker per private attribute. A bar that ends at the dashed line is "
            "no better than guessing.",
        ),
    ]


def _picture_blocks(results: Results, source: SampleSource, figures: Path) -> list[str]:
    images = source.images()
    blocks = ["<h2>What the later stages are given</h2>"]
    grid = _grid(results, source, images)
    if grid:
        caption = "The same test images, as every method releases them (first test images with two attributes or more)."
        blocks.append(figure_block(_figure(grid, figures / "images.png"), caption, "pictures"))
    videos = source.videos()
    if videos:
        frames, _ = source.video_frames(videos[0])
        grid = _grid(results, source, frames)
        if grid:
            caption = f"Frames of the UCF-Crime test video {videos[0].name}, as every method releases them."
            blocks.append(figure_block(_figure(grid, figures / "frames.png"), caption, "pictures"))
    blocks.append("<h2>Scores over time</h2>")
    blocks.append(
        paragraph(
            "Test videos chosen without looking at scores: the first of the first two anomaly categories and the first "
            "normal one, by name. Each score stands for 32 frames."
        )
    )
    for number, video in enumerate(videos, 1):
        figure = _score_figure(results, source, video)
        if figure:
            path = figures / f"scores_{number}.png"
            blocks.append(figure_block(_figure(figure, path), f"{video.name} ({video.category})."))
    return blocks


def _training_blocks(results: Results, figures: Path) -> list[str]:
    """Raw and anonymized pictures over the epochs of each trained row of the curves, where its log is there."""
    blocks = []
    for method in (METHODS[name] for name in CURVES_OF if METHODS[name].kind == "trained"):
        pictures = spread_over(training_pictures(training_log(results.preset, results.seeds[0], method)))
        if not pictures:
            continue
        rows = [("raw", pictures[0].raw), *((f"epoch {shown.epoch}", shown.anonymized) for shown in pictures)]
        grid = plots.picture_grid(rows, [""] * len(pictures[0].raw))
        caption = f"{method.label}: training images, and what the anonymizer made of them after each epoch shown."
        path = figures / f"training_{method.name}.png"
        blocks.append(figure_block(_figure(grid, path), caption, "pictures"))
    return ["<h2>Pictures over the training</h2>", *blocks] if blocks else []


def _category_figure(results: Results, categories: tuple[str, ...], figures: Path) -> str:
    figure = plots.category_bars(results, CURVES_OF, categories)
    caption = (
        "UCF-Crime: frame AUC of each kind of anomaly, its videos together with all normal test videos. Dashed: chance."
    )
    return figure_block(_figure(figure, figures / "categories.png"), caption)


def _grid(results: Results, source: SampleSource, pictures: list[Picture]) -> Figure | None:
    rows = []
    for method in [*results.methods(control=False), *results.methods(control=True)]:
        released = source.released(method, pictures) if pictures else None
        if released is not None:
            rows.append((method.label, released))
    return plots.picture_grid(rows, [picture.label for picture in pictures]) if rows else None


def _score_figure(results: Results, source: SampleSource, video: SurveillanceVideo) -> Figure | None:
    curves, strips, events = [], [], video.events
    pictures, at = source.video_frames(video)
    for name in CURVES_OF:
        scores = load_scores(results.preset, results.seeds[0], name, "ucf_crime").get(video.name)
        entry = _test_video(results, name, video.name)
        if scores is None or entry is None:
            continue
        events = entry["events"]
        curves.append(plots.Curve(METHODS[name], _per_frame(scores, entry)))
        released = source.released(METHODS[name], pictures)
        if released is not None:
            strips.append(plots.Strip(METHODS[name].label, released, at))
    return plots.score_figure(f"{video.name}", curves, events, strips) if curves else None


def _test_video(results: Results, method: str, name: str) -> dict | None:
    """The entry of a test video in the method's result file, with the clip's length in frames added."""
    detection = next(
        (r.detection["ucf_crime"] for r in results.by_method.get(method, ()) if "ucf_crime" in r.detection), None
    )
    if detection is None:
        return None
    found = next((video for video in detection.raw_result["videos"] if video["name"] == name), None)
    return {**found, "frames_per_feature": detection.raw_result.get("frames_per_feature", 32)} if found else None


def _per_frame(clip_scores: np.ndarray, entry: dict) -> np.ndarray:
    return np.repeat(clip_scores, entry["frames_per_feature"])[: entry["n_frames"]]


def _figure(figure: Figure, path: Path) -> Path:
    return plots.save_figure(figure, path)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
