"""Writes what people and programs read: summary.json, tables.md, figures and the self-contained
report.html."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from aux_code import config
from aux_code.checkpoints import write_atomically, write_json
from aux_code.datasets.surveillance import SurveillanceVideo
from aux_code.errors import UserError
from aux_code.reporting import plots
from aux_code.reporting.ablation_plot import ablation_changes
from aux_code.reporting.detail_tables import attacker_table, attribute_table, category_tables
from aux_code.reporting.html import figure_block, page, paragraph, table_block
from aux_code.reporting.published import DATASET_LABELS
from aux_code.reporting.results import Results, load_scores
from aux_code.reporting.run_tables import settings_table, timing_table
from aux_code.reporting.samples import Picture, SampleSource
from aux_code.reporting.summary import build_summary
from aux_code.reporting.tables import any_table, main_table
from aux_code.reporting.texts import headline, state_line, write_markdown
from aux_code.reporting.training_pictures import spread_over, training_pictures
from reproduction.methods import ABLATION_TABLES, METHODS, Method
from reproduction.plan import training_log
from reproduction.tasks import Task

log = logging.getLogger(__name__)

CURVES_OF = ("ted_spad", "ted_spad_plus")
"""Whose scores and training are shown beside raw, where they were run; else the first two other
rows'."""


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows besides the results."""

    tasks: tuple[Task, ...]
    """For timings and settings."""
    picture_size: int
    """Height and width in pixels of the frames that the networks see."""
    tables: tuple[str, ...] = ("8",)
    """Numbers of the paper's tables to show."""


def write_all(results: Results, options: ReportOptions) -> list[Path]:
    """Writes everything below RESULTS_ROOT and returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    root = config.RESULTS_ROOT
    write_json(root / "summary.json", build_summary(results))
    _write_text(root / "tables.md", write_markdown(results, options.tables))
    _write_text(root / "report.html", build_report(results, options, root / "figures"))
    return [root / "summary.json", root / "tables.md", root / "report.html"]


def build_report(results: Results, options: ReportOptions, figures: Path) -> str:
    """The report as one HTML text with its pictures inside; the pictures are written to `figures`
    as well."""
    methods = shown_methods(results, options.tables)
    blocks = [paragraph(state_line(results), "state"), paragraph(headline(results), "lead")]
    if "8" in options.tables:
        blocks += _main_blocks(results, figures)
    blocks += _ablation_blocks(
        results, [number for number in options.tables if number != "8"], figures
    )
    blocks += _leakage_blocks(results, methods, figures)
    try:
        source = SampleSource(results.preset, results.seeds[0], options.picture_size)
        blocks += _picture_blocks(results, methods, source, figures)
    except UserError as error:
        log.warning("the report has no pictures: %s", error)
        blocks.append(paragraph(f"No pictures: {error}"))
    blocks += _training_blocks(results, figures)
    blocks += _category_blocks(results, figures)
    blocks += ["<h2>Settings and timings</h2>", table_block(settings_table(results, options.tasks))]
    blocks.append(table_block(timing_table(options.tasks)))
    return page("TeD-SPAD: what is leaked, and what is still detected", blocks)


def shown_methods(results: Results, tables: tuple[str, ...]) -> list[Method]:
    """The rows of the figures: Table 8's and the controls, or where that is not asked for, all that
    were run."""
    if "8" in tables:
        return [*results.main_methods(control=False), *results.main_methods(control=True)]
    return [*results.methods(control=False), *results.methods(control=True)]


def compared_methods(results: Results) -> list[Method]:
    """Raw and up to two others, whose curves and bars stand side by side."""
    others = [name for name in CURVES_OF if name in results.by_method]
    others = (
        others
        or [method.name for method in results.methods(control=False) if method.name != "raw"][:2]
    )
    return [METHODS[name] for name in ("raw", *others) if name in results.by_method]


def _main_blocks(results: Results, figures: Path) -> list[str]:
    trade_off = _figure(plots.trade_off(results), figures / "trade_off.png")
    spread = " Bars show the standard deviation over the seeds." if len(results.seeds) > 1 else ""
    caption = (
        "Privacy against utility. To the right less is leaked, upwards more is detected: the upper right corner is "
        f"best. A method is worth using if it is further right than another at the same height.{spread}"
    )
    if results.main_methods(control=True):
        caption += " Hollow markers are controls."
    return [
        "<h2>The main result</h2>",
        figure_block(trade_off, caption),
        table_block(main_table(results)),
    ]


def _ablation_blocks(results: Results, numbers: list[str], figures: Path) -> list[str]:
    if not numbers:
        return []
    blocks = ["<h2>Ablations</h2>"]
    compared = [number for number in numbers if number in ABLATION_TABLES]
    if compared:
        path = _figure(ablation_changes(results, compared), figures / "ablations.png")
        caption = (
            "What each variant changes against raw video, measured here and in the paper. Leakage should move to the "
            "left, detection stay near zero."
        )
        blocks.append(figure_block(path, caption))
    return blocks + [table_block(any_table(results, number)) for number in numbers]


def _leakage_blocks(results: Results, methods: list[Method], figures: Path) -> list[str]:
    methods = [method for method in methods if results.mean(method.name, "cmap") is not None]
    if not methods:
        return []
    bars = _figure(plots.attribute_bars(results, methods), figures / "attributes.png")
    return [
        "<h2>What an attacker still sees</h2>",
        figure_block(
            bars,
            "Average precision of the strongest attacker per private attribute. A bar that ends at the dashed line is "
            "no better than guessing.",
        ),
        table_block(attribute_table(results)),
        table_block(attacker_table(results)),
    ]


def _picture_blocks(
    results: Results, methods: list[Method], source: SampleSource, figures: Path
) -> list[str]:
    images = source.images()
    blocks = ["<h2>What the later stages are given</h2>"]
    grid = _grid(methods, source, images)
    if grid:
        caption = "The same test images, as every method releases them (first test images with two attributes or more)."
        blocks.append(figure_block(_figure(grid, figures / "images.png"), caption, "pictures"))
    videos = source.videos()
    if videos:
        frames, _ = source.video_frames(videos[0])
        grid = _grid(methods, source, frames)
        if grid:
            caption = f"Frames of the UCF-Crime test video {videos[0].name}, as every method releases them."
            blocks.append(figure_block(_figure(grid, figures / "frames.png"), caption, "pictures"))
    curves = []
    for number, video in enumerate(videos, 1):
        figure = _score_figure(results, source, video)
        if figure:
            path = figures / f"scores_{number}.png"
            curves.append(figure_block(_figure(figure, path), f"{video.name} ({video.category})."))
    if curves:
        curves.insert(0, "<h2>Scores over time</h2>")
        text = (
            "Anomaly scores of UCF-Crime test videos, the true events shaded, and frames as each method releases them. "
            "Videos chosen without looking at scores: the first of the first two anomaly categories and the first "
            "normal one, by name. Each score stands for 32 frames."
        )
        curves.insert(1, paragraph(text))
    return blocks + curves


def _training_blocks(results: Results, figures: Path) -> list[str]:
    """Raw and anonymized pictures over the epochs of each trained row of the curves, where its log
    is there."""
    blocks = []
    for method in (method for method in compared_methods(results) if method.kind == "trained"):
        pictures = spread_over(
            training_pictures(training_log(results.preset, results.seeds[0], method))
        )
        if not pictures:
            continue
        rows = [
            ("raw", pictures[0].raw),
            *((f"epoch {shown.epoch}", shown.anonymized) for shown in pictures),
        ]
        grid = plots.picture_grid(rows, [""] * len(pictures[0].raw))
        caption = f"{method.label}: training images, and what the anonymizer made of them after each epoch shown."
        path = figures / f"training_{method.name}.png"
        blocks.append(figure_block(_figure(grid, path), caption, "pictures"))
    return ["<h2>Pictures over the training</h2>", *blocks] if blocks else []


def _category_blocks(results: Results, figures: Path) -> list[str]:
    """Bars and tables per category of anomaly, for the data sets that have some."""
    blocks = []
    for table, dataset in category_tables(results):
        figure = plots.category_bars(results, dataset, compared_methods(results))
        caption = (
            f"{DATASET_LABELS[dataset]}: frame AUC of each kind of anomaly, its videos together with all normal test "
            "videos. Dashed: chance."
        )
        path = _figure(figure, figures / f"categories_{dataset}.png")
        blocks += [figure_block(path, caption), table_block(table)]
    return ["<h2>Detection by kind of anomaly</h2>", *blocks] if blocks else []


def _grid(methods: list[Method], source: SampleSource, pictures: list[Picture]) -> Figure | None:
    rows = []
    for method in methods:
        released = source.released(method, pictures) if pictures else None
        if released is not None:
            rows.append((method.label_in(source.preset), released))
    return plots.picture_grid(rows, [picture.label for picture in pictures]) if rows else None


def _score_figure(
    results: Results, source: SampleSource, video: SurveillanceVideo
) -> Figure | None:
    curves, strips, events = [], [], video.events
    pictures, at = source.video_frames(video)
    for method in compared_methods(results):
        scores = load_scores(results.preset, results.seeds[0], method.name, "ucf_crime").get(
            video.name
        )
        entry = _test_video(results, method.name, video.name)
        if scores is None or entry is None:
            continue
        events = entry["events"]
        curves.append(plots.Curve(method, _per_frame(scores, entry)))
        released = source.released(method, pictures)
        if released is not None:
            strips.append(plots.Strip(method.label_in(results.preset), released, at))
    return plots.score_figure(f"{video.name}", curves, events, strips) if curves else None


def _test_video(results: Results, method: str, name: str) -> dict | None:
    """The entry of a test video in the method's result file, with the clip's length in frames
    added."""
    detection = next(
        (
            r.detection["ucf_crime"]
            for r in results.by_method.get(method, ())
            if "ucf_crime" in r.detection
        ),
        None,
    )
    if detection is None:
        return None
    found = next((video for video in detection.raw_result["videos"] if video["name"] == name), None)
    return (
        {**found, "frames_per_feature": detection.raw_result.get("frames_per_feature", 32)}
        if found
        else None
    )


def _per_frame(clip_scores: np.ndarray, entry: dict) -> np.ndarray:
    return np.repeat(clip_scores, entry["frames_per_feature"])[: entry["n_frames"]]


def _figure(figure: Figure, path: Path) -> Path:
    return plots.save_figure(figure, path)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
