"""The result files of stages 2 and 4 by method, seed and data set, and results/summary.json."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from aux_code.artefacts import record_of, sha256
from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from aux_code.intervals import ScoredVideo, areas_of, bootstrap, cmap_of, pooled_difference
from aux_code.metrics import leakage_removed
from aux_code.series import mean_and_deviation
from reproduction import methods
from reproduction.methods import DATASETS, FEATURE_ATTACKER, METHODS, Attacker, Method
from reproduction.plan import (
    anomaly_result,
    anomaly_scores,
    privacy_result,
    run_prefix,
    utility_file,
)

N_DRAWS = 1000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class Attack:
    """One attacker's success on one method and seed."""

    attacker: Attacker
    content: dict[str, Any]  # the whole file of stage 2
    scores: dict[str, Any]  # of the protocol: cmap, f1, per_attribute, each in [0, 1], and epoch

    @property
    def start(self) -> str:
        """What the attacker's network began with, from what the run recorded."""
        if "inputs" not in self.content:
            return "weights that were not recorded"
        given = self.content["inputs"].get("attacker")
        if given is None:
            names = (self.content["attacker"], self.content["parameters"].get("network"))
            return "ImageNet weights" if "r50_imagenet" in names else "random weights"
        path = Path(given["path"])
        if path.is_file() and sha256(path) == given["sha256"]:
            if learned_on := record_of(path).get("parameters", {}).get("anonymizer"):
                return f"weights of an attacker trained on {Path(learned_on).name} images"
        return f"weights of {path.parent.name}/{path.name}"


@dataclass
class MethodResult:
    """What was measured of one method with one seed."""

    preset: str
    seed: int
    method: Method
    protocol: str
    render_seed: int | None = None
    training: dict[str, float] = field(default_factory=dict)  # metrics of f_T's checkpoint
    attacks: list[Attack] = field(default_factory=list)  # on images; the strongest first
    detection: dict[str, Any] = field(default_factory=dict)  # data set -> the file of stage 4
    values: dict[str, float] = field(default_factory=dict)
    """Metric -> value: cmap, f1, leakage_removed and `attribute:NAME` (held-out ones, too) of the
    strongest attacker, feature_cmap (Table 1), `DATASET:auc`, `DATASET:ap`,
    `DATASET:false_alarm_rate` and `DATASET:auc:CATEGORY`."""

    _draws: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def prefix(self) -> str:
        """Of the names of its runs."""
        return run_prefix(self.preset, self.render_seed)

    @property
    def attack_protocol(self) -> str:
        """An attacker's last epoch may be a bad one, and the row would look safer than it is: where
        the last epoch counts, it is the detector's alone."""
        return "validation" if self.protocol == "last" else self.protocol

    @property
    def draw_seed(self) -> int:
        """The same for results of the same test items."""
        rendering = self.seed if self.render_seed is None else self.render_seed
        return rendering if self.preset == "miniature" else 0

    def frame_scores(self, dataset: str, video: str) -> tuple[np.ndarray, list[list[int]]] | None:
        """(scores (n_frames,), each of a clip, and true events) of a test video, or None."""
        content = self.detection.get(dataset, {})
        entry = next((v for v in content.get("videos", ()) if v["name"] == video), None)
        scores = self._clip_scores(dataset).get(video)
        if entry is None or scores is None:
            return None
        scores = np.repeat(scores, content["frames_per_feature"])
        return scores[: entry["n_frames"]], entry["events"]

    def draws(self, metric: str) -> tuple[list[str], np.ndarray] | None:
        """Names of the test items of cmap, DATASET:auc or DATASET:ap, and the metric (N_DRAWS,) of
        as many random draws of them, the same for all methods; None without such a file."""
        if metric not in self._draws:
            self._draws[metric] = self._drawn(metric)
        return self._draws[metric]

    def _drawn(self, metric: str) -> tuple[list[str], np.ndarray] | None:
        if metric == "cmap":
            found = self._predictions()
            drawn = found and (len(found[0]), N_DRAWS, self.draw_seed)
            return found and (found[0], bootstrap(*drawn, cmap_of(*found[1:])))
        dataset, _, area = metric.partition(":")
        scored = self.scored_videos(dataset)
        if not scored:
            return None
        areas = bootstrap(len(scored), N_DRAWS, self.draw_seed, areas_of(scored))
        names = [video["name"] for video in self.detection[dataset]["videos"]]
        return names, areas[("auc", "ap").index(area)]

    def scored_videos(self, dataset: str) -> list[ScoredVideo]:
        """The test videos of `detection`, in its order; none without the file of their scores."""
        content, scores = self.detection.get(dataset, {}), self._clip_scores(dataset, self.protocol)
        videos = content.get("videos", [])
        if {video["name"] for video in videos} - scores.keys():
            return []
        per_clip = content.get("frames_per_feature")
        return [_scored(video, scores[video["name"]], per_clip) for video in videos]

    def _clip_scores(self, dataset: str, protocol: str = "validation") -> dict[str, np.ndarray]:
        """Test video -> (n_clips,) of a protocol; empty without the file."""
        path = anomaly_scores(self.prefix, self.seed, self.method.name, dataset)
        start = "" if protocol == "validation" else f"{protocol}/"
        arrays = _arrays(path).items()
        return {name.removeprefix(start): own for name, own in arrays if name.startswith(start)}

    def _predictions(self) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """Test images, probabilities and labels (n, n_attributes) of the strongest attacker."""
        if not self.attacks:
            return None
        attacker = self.attacks[0].attacker
        path = privacy_result(self.prefix, self.seed, self.method.name, attacker)
        arrays = _arrays(path.with_suffix(".npz"))
        protocol = self.attack_protocol
        key = "probabilities" if protocol == "validation" else protocol
        if not {"names", "labels", key} <= arrays.keys():
            return None
        counted = slice(len(self.attacks[0].scores["per_attribute"]))  # the held-out ones are last
        return arrays["names"].tolist(), arrays[key][:, counted], arrays["labels"][:, counted]


def _scored(video: dict[str, Any], scores: np.ndarray, frames_per_clip: int) -> ScoredVideo:
    labels = np.zeros(video["n_frames"], np.int64)
    for start, end in video["events"]:
        labels[start:end] = 1
    starts = np.arange(0, len(labels), frames_per_clip)
    scores = np.append(scores, scores[-1])[: len(starts)]  # a container may lack a last frame
    positives = np.add.reduceat(labels, starts)
    return ScoredVideo(scores, positives, np.diff(np.append(starts, len(labels))) - positives)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@dataclass
class Results:
    """Everything that a reproduction measured."""

    preset: str
    seeds: list[int]
    protocol: str  # validation, last or best_on_test
    seconds: float  # wall-clock time in which its steps ran
    by_method: dict[str, list[MethodResult]]  # an entry per seed; what has no result is left out
    render_seed: int | None = None  # of the miniature's data; None: each seed has its own

    def __iter__(self) -> Iterator[MethodResult]:
        return (result for entries in self.by_method.values() for result in entries)

    def methods(self, control: bool | None = None) -> list[Method]:
        """Those with results, rows before controls, or one of the two kinds alone."""
        kinds = (False, True) if control is None else (control,)
        measured = [method for name, method in METHODS.items() if name in self.by_method]
        return [method for kind in kinds for method in measured if method.control == kind]

    def main_methods(self) -> list[Method]:
        """Those that Table 8 shows: all but the rows of the ablation tables alone."""
        shown = (*methods.TABLE_8, *methods.CONTROLS)
        return [method for method in self.methods() if method.name in shown]

    def by_seed(self, method: str, metric: str) -> dict[int, float]:
        """Seed -> value of a metric of `MethodResult.values`, for the seeds that have it."""
        entries = self.by_method.get(method, ())
        return {r.seed: r.values[metric] for r in entries if r.values.get(metric) is not None}

    def spread(self, method: str, metric: str) -> tuple[float | None, float | None]:
        """Mean over the seeds (None without a value) and deviation (None below two values)."""
        values = mean_and_deviation(self.by_seed(method, metric).values())
        return values["mean"], values["deviation"]

    def mean(self, method: str, metric: str) -> float | None:
        """Mean over the seeds, None without a value."""
        return self.spread(method, metric)[0]

    def difference(self, method: str, metric: str) -> list[float]:
        """95 % interval of method - raw in cmap, DATASET:auc or DATASET:ap: test items drawn anew,
        the same for both and for seeds of one rendering; mean over the seeds. []: not known."""
        raw = {result.seed: result.draws(metric) for result in self.by_method.get("raw", ())}
        pairs = []
        for result in self.by_method.get(method, ()):
            ours, theirs = result.draws(metric), raw.get(result.seed)
            if ours and theirs and ours[0] == theirs[0]:
                pairs.append((ours[1], theirs[1]))
        return pooled_difference(pairs)

    def chance_cmap(self) -> float | None:
        """Mean over the seeds of the cMAP of a guess without information."""
        chances = {r.seed: r.attacks[0].content["chance"]["cmap"] for r in self if r.attacks}
        return mean_and_deviation(chances.values())["mean"]

    def chance_per_attribute(self, kind: str = "per_attribute") -> dict[str, float]:
        """Attribute, in the files' order -> share of the test images that have it; or those of the
        `held_out` ones."""
        contents = (result.attacks[0].content for result in self if result.attacks)
        return next((content["chance"].get(kind, {}) for content in contents), {})

    def categories(self, dataset: str) -> list[str]:
        """The categories of anomaly of a data set, in the order of the result files."""
        files = [result.detection[dataset] for result in self if dataset in result.detection]
        return list(dict.fromkeys(name for file in files for name in file.get("per_category", ())))


def collect_results(
    preset: str, seeds: Iterable[int], methods: Iterable[str],
    protocol: str = "validation", seconds: float = 0.0, render_seed: int | None = None,
) -> Results:  # fmt: skip
    """Reads what there is; UserError for a file that is unreadable or lacks the protocol."""
    seeds = list(seeds)
    by_method: dict[str, list[MethodResult]] = {}
    for name, seed in product(methods, seeds):
        result = MethodResult(preset, seed, METHODS[name], protocol, render_seed)
        if _read_into(result):
            by_method.setdefault(name, []).append(result)
    results = Results(preset, seeds, protocol, seconds, by_method, render_seed)
    for dataset in DATASETS:
        _score_common_videos([result for result in results if dataset in result.detection], dataset)
    raw = results.by_seed("raw", "cmap")
    for result in (result for result in results if result.attacks):
        chance = result.attacks[0].content["chance"]["cmap"]
        if raw.get(result.seed, 0.0) > chance:
            removed = leakage_removed(raw[result.seed], result.values["cmap"], chance)
            result.values["leakage_removed"] = removed
    return results


def _read_into(result: MethodResult) -> bool:
    """Adds what the files hold; whether that is anything."""
    prefix, seed, method = result.prefix, result.seed, result.method
    protocol, attacks = result.protocol, result.attack_protocol
    if (path := utility_file(prefix, seed, method)).is_file():
        result.training = record_of(path, "metrics").get("metrics", {})
    for attacker in (*method.attackers_in(result.preset, controls=True), FEATURE_ATTACKER):
        content = _content(privacy_result(prefix, seed, method.name, attacker), attacks)
        if content and attacker == FEATURE_ATTACKER:
            result.values["feature_cmap"] = content["protocols"][attacks]["cmap"]
        elif content:
            result.attacks.append(Attack(attacker, content, content["protocols"][attacks]))
    result.attacks.sort(key=lambda attack: -attack.scores["cmap"])
    if result.attacks:
        scores = result.attacks[0].scores
        result.values |= {"cmap": scores["cmap"], "f1": scores["f1"]}
        for kind in ("per_attribute", "held_out"):
            result.values |= {f"attribute:{n}": v for n, v in scores.get(kind, {}).items()}
    for dataset in DATASETS:
        content = _content(anomaly_result(prefix, seed, method.name, dataset), protocol)
        if content:
            scores, categories = content["protocols"][protocol], content.get("per_category", {})
            result.detection[dataset] = content
            result.values |= {f"{dataset}:{name}": scores[name] for name in ("auc", "ap")}
            result.values[f"{dataset}:false_alarm_rate"] = content.get("false_alarm_rate")
            result.values |= {f"{dataset}:auc:{n}": own.get("auc") for n, own in categories.items()}
    return bool(result.values)


def _score_common_videos(found: Iterable[MethodResult], dataset: str) -> None:
    """Where rows lack different test videos: AUC and AP of all rows on those that all have."""
    by_items: dict[int, list[MethodResult]] = {}
    for result in found:
        by_items.setdefault(result.draw_seed, []).append(result)
    for rows in by_items.values():
        of_rows = [{video["name"] for video in row.detection[dataset]["videos"]} for row in rows]
        common = set.intersection(*of_rows)
        for row, names in zip(rows, of_rows, strict=True):
            if names == common:
                continue
            content = row.detection[dataset]
            kept = [video for video in content["videos"] if video["name"] in common]
            row.detection[dataset] = {**content, "videos": kept}
            scored = row.scored_videos(dataset)
            areas = areas_of(scored)(np.ones((1, len(scored)))) if scored else [[None], [None]]
            row.values |= {f"{dataset}:{name}": own[0] for name, own in zip(("auc", "ap"), areas)}


def _content(path: Path, protocol: str) -> dict[str, Any] | None:
    content = read_json(path) if path.is_file() else None
    if content and protocol not in content.get("protocols", {}):
        raise UserError(f"{path} has no protocol '{protocol}'; remove it, run reproduce.py again")
    return content


def build_summary(results: Results) -> dict[str, Any]:
    """Means over the seeds, for programs; of several seeds their deviations as NAME_std."""
    names = ("preset", "seeds", "render_seed", "seconds", "protocol")
    head = {name: getattr(results, name) for name in names}
    head["chance_cmap"] = results.chance_cmap()
    for key, control in (("methods", False), ("controls", True)):
        names = [method.name for method in results.methods(control)]
        head[key] = {name: _summary_of(results, name) for name in names}
    return head


def _summary_of(results: Results, method: str) -> dict[str, Any]:
    def named(prefix: str, names: Iterable[str]) -> dict[str, float]:
        spreads = {name: results.spread(method, prefix + name) for name in names}
        pairs = (pair for n, (m, d) in spreads.items() for pair in ((n, m), (f"{n}_std", d)))
        return {key: value for key, value in pairs if value is not None}

    privacy = named("", ("cmap", "f1", "leakage_removed", "feature_cmap"))
    for kind in ("per_attribute", "held_out"):
        privacy[kind] = named("attribute:", results.chance_per_attribute(kind))
    anomaly = {dataset: named(f"{dataset}:", ("auc", "ap")) for dataset in DATASETS}
    return {"privacy": privacy, "anomaly": {d: scores for d, scores in anomaly.items() if scores}}
