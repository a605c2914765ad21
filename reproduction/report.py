"""Writes results/: summary.json, tables.md, figures/*.png and the self-contained report.html."""

import base64
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jinja2
from matplotlib.figure import Figure

from aux_code import config
from aux_code.checkpoints import write_atomically, write_json
from aux_code.datasets.decode import frame_seconds
from aux_code.datasets.surveillance import SurveillanceVideo
from aux_code.errors import UserError
from aux_code.reporting import figures as shared
from aux_code.reporting.table import Table
from reproduction import figures, tables
from reproduction.images import SampleSource, training_images
from reproduction.methods import ABLATION_TABLES, DATASETS, METHODS
from reproduction.plan import Step, run_prefix, training_log
from reproduction.results import Results, build_summary
from reproduction.runner import Timings

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows besides the results."""

    steps: tuple[Step, ...]  # the plan
    picture_size: int  # height and width in pixels of the frames that the networks see
    tables: tuple[str, ...] = ("8",)  # numbers of the paper's tables to show
    timings: Timings = field(default_factory=dict)  # of the steps that ran
    show_raw: bool = False  # also show real data as it was before anonymization


class Embedded(NamedTuple):
    """A figure in the page."""

    data: str  # base64 of the PNG
    caption: str
    narrow: bool


Blocks = Iterator[str | Table | Embedded]


def write_all(results: Results, options: ReportOptions) -> list[Path]:
    """Writes all below RESULTS_ROOT and returns the paths; UserError if that is impossible."""
    root = config.RESULTS_ROOT
    paths = [root / name for name in ("summary.json", "tables.md", "report.html")]
    write_json(paths[0], build_summary(results))
    texts = tables.write_markdown(results, options.tables), _Report(results, options).page()
    for path, text in zip(paths[1:], texts, strict=True):
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    return paths


class _Report:
    """The report's sections; their figures go to results/figures, too."""

    def __init__(self, results: Results, options: ReportOptions):
        self.results, self.options, self.preset = results, options, results.preset
        self.seed = results.seeds[0]
        self.details = tables.detail_tables(results)
        size, show_raw = options.picture_size, options.show_raw
        render_seed = results.render_seed
        self.prefix = run_prefix(self.preset, render_seed)
        self.source = SampleSource(self.preset, self.seed, size, show_raw, render_seed)
        self.shown = results.main_methods() if "8" in options.tables else results.methods()
        others = [name for name in ("ted_spad", "ted_spad_plus") if name in results.by_method]
        others = others or [m.name for m in results.methods(control=False) if m.name != "raw"][:2]
        # raw and up to two others, whose curves and bars stand side by side
        self.compared = [METHODS[n] for n in ("raw", *others) if n in results.by_method]

    def page(self) -> str:
        """One HTML text with its images inside."""
        contents = {
            "The main result": self._main_result, "Ablations and other tables": self._other_tables,
            "What an attacker still sees": self._leakage,
            "What the later stages are given": self._samples, "Scores over time": self._scores,
            "Images over the training": self._training,
            "Detection by kind of anomaly": self._detection, "Settings and timings": self._settings,
        }  # fmt: skip
        sections = {title: list(_until_data_lacks(make())) for title, make in contents.items()}
        note = tables.measurement_note(self.results)
        environment = jinja2.Environment(autoescape=True, trim_blocks=True)
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            state=f"Preset {self.preset}. {note} Written on {time.strftime('%Y-%m-%d')}.",
            headline=tables.headline(self.results),
            starts=sorted({attack.start for result in self.results for attack in result.attacks}),
            sections=sections, miniature=self.preset == "miniature",
        )  # fmt: skip

    def _main_result(self) -> Blocks:
        if "8" in self.options.tables:
            caption = "Privacy against utility. Bars: deviation over seeds. Hollow: controls."
            yield _embedded(figures.trade_off(self.results), "trade_off", caption)
            yield tables.paper_table(self.results, "8")

    def _other_tables(self) -> Blocks:
        if numbers := [number for number in self.options.tables if number in ABLATION_TABLES]:
            figure = figures.ablation_changes(self.results, numbers)
            yield _embedded(figure, "ablations", "What each variant changes against raw video.")
        if "controls" in self.options.tables:
            caption = "What learns nothing (lines), and the other rows. Hollow: controls."
            yield _embedded(figures.unlearned_curve(self.results), "unlearned", caption)
        for number in (number for number in self.options.tables if number != "8"):
            yield tables.paper_table(self.results, number)

    def _leakage(self) -> Blocks:
        chance, bars = self.results.chance_per_attribute(), []
        for method in self.shown:
            spreads = {n: self.results.spread(method.name, f"attribute:{n}") for n in chance}
            means, deviations = ({n: s[i] for n, s in spreads.items()} for i in (0, 1))
            label, colour = method.label_in(self.preset), figures.look(method)[0]
            if set(means.values()) - {None}:
                bars.append(shared.AttributeScores(label, means, colour, deviations))
        if bars:
            caption = "Average precision of the strongest attacker per private attribute."
            yield _embedded(shared.attribute_bars(bars, chance), "attributes", caption)
            yield self.details["attributes"]
            yield self.details["attackers"]
        if "training" in self.details:
            yield self.details["training"]

    def _samples(self) -> Blocks:
        shown = [("images", self.source.images(), "Test images with two attributes or more")]
        for video in self.source.videos()[:1]:
            frames, _ = self.source.video_frames(video)
            shown.append(("frames", frames, f"Frames of the UCF-Crime test video {video.name}"))
        for name, samples, caption in shown:
            released = [(m, self.source.released(m, samples)) for m in self.shown]
            rows = [(m.label_in(self.preset), r) for m, r in released if r is not None]
            if rows:
                grid = figures.image_grid(rows, [sample.label for sample in samples])
                yield _embedded(grid, name, f"{caption}, as every method releases them.", True)
        if not self.source.show_raw:
            text = "Raw images, those of the reconstruction control and those over the training "
            yield text + "show real people and are left out; reproduce.py --show_raw adds them."

    def _scores(self) -> Blocks:
        found = ((video, self._score_figure(video)) for video in self.source.videos())
        drawn = [(video, figure) for video, figure in found if figure]
        if drawn:
            text = "Anomaly scores of UCF-Crime test videos with the true events, and frames as "
            text += "released. Chosen without looking at scores: by name, the first video of the "
            yield text + "first two categories and the first normal one."
        for number, (video, figure) in enumerate(drawn, 1):
            yield _embedded(figure, f"scores_{number}", f"{video.name} ({video.category}).")

    def _score_figure(self, video: SurveillanceVideo) -> Figure | None:
        samples, at = self.source.video_frames(video)
        curves, strips, events = [], [], []
        for method in self.compared:
            found = self.results.by_method[method.name][0].frame_scores("ucf_crime", video.name)
            if found is None:
                continue
            scores, events = found
            label = method.label_in(self.preset)
            curves.append(shared.Curve(label, scores, figures.look(method)[0]))
            if (released := self.source.released(method, samples)) is not None:
                strips.append(shared.Strip(label, released, at))
        if not curves:
            return None
        seconds = frame_seconds(video.path, max(len(curve.scores) for curve in curves))
        return shared.score_figure(curves, events, seconds, strips, video.name)

    def _training(self) -> Blocks:
        # of real data only with --show_raw: f_A begins as a copier, so early epochs show people
        for method in self.compared if self.source.show_raw else ():
            shown = training_images(training_log(self.prefix, self.seed, method))
            if shown and method.kind == "trained":
                rows = [("raw", shown[0][1]), *((f"epoch {n}", images) for n, _, images in shown)]
                grid = figures.image_grid(rows, [""] * len(shown[0][1]))
                caption = f"{method.label}: training images, and what came out after some epochs."
                yield _embedded(grid, f"training_{method.name}", caption, True)

    def _detection(self) -> Blocks:
        if "detection" in self.details:
            yield self.details["detection"]
        for dataset in (name for name in DATASETS if f"categories_{name}" in self.details):
            figure = figures.category_bars(self.results, dataset, self.compared)
            caption = "Frame AUC of a category's videos with all normal ones. Dashed: chance."
            yield _embedded(figure, f"categories_{dataset}", caption)
            yield self.details[f"categories_{dataset}"]

    def _settings(self) -> Blocks:
        steps, timings = self.options.steps, self.options.timings
        yield tables.settings_table(self.results, len(steps), timings)
        yield tables.timing_table(steps, timings)


def _until_data_lacks(blocks: Blocks) -> Blocks:
    """The blocks; where data is missing that is said in place of the rest."""
    try:
        yield from blocks
    except UserError as error:
        log.warning("the report has no images: %s", error)
        yield f"No images: {error}"


def _embedded(figure: Figure, name: str, caption: str, narrow: bool = False) -> Embedded:
    path = shared.save_figure(figure, config.RESULTS_ROOT / "figures" / f"{name}.png")
    return Embedded(base64.b64encode(path.read_bytes()).decode(), caption, narrow)
