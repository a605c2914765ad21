"""From result files to summary, tables and report: values, not only that something is written."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from aux_code.artefacts import describe_inputs
from aux_code.checkpoints import save_checkpoint, write_json
from aux_code.datasets.vispr import VISPR1
from aux_code.errors import UserError
from aux_code.reporting.table import MISSING, Table
from reproduction import report, tables
from reproduction.figures import ablation_changes, category_bars, trade_off
from reproduction.images import Sample, SampleSource, training_images
from reproduction.methods import DATASETS, FEATURE_ATTACKER, METHODS
from reproduction.plan import anomaly_result, anomaly_scores, privacy_result, training_log
from reproduction.results import build_summary, collect_results
from reproduction.tables import Column

pytestmark = pytest.mark.usefixtures("artifacts")

VALUES = {"raw": (0.80, 0.95), "ted_spad": (0.60, 0.93), "ted_spad_plus": (0.45, 0.92)}
VALUES["reconstruction"] = (0.7, 0.9)
CHANCE = {name: 0.2 + 0.05 * i for i, name in enumerate(VISPR1)}
CHANCE_CMAP = float(np.mean(list(CHANCE.values())))


def write_attack(method: str, seed: int, cmap: float, number: int = 0, **others) -> Path:
    """A result of stage 2 with the attacker of this number; each attribute as far above chance."""
    per_attribute = {name: chance + cmap - CHANCE_CMAP for name, chance in CHANCE.items()}
    scores = {"cmap": cmap, "f1": cmap / 2, "per_attribute": per_attribute, "epoch": 30}
    content = {
        "protocols": {"validation": scores, "last": {**scores, "cmap": cmap + 0.01}},
        "chance": {"cmap": CHANCE_CMAP, "per_attribute": CHANCE},
        "confidence_interval": [cmap, cmap], "plateau": {"best_epoch": 30, "last_epoch": 40},
    }  # fmt: skip
    path = privacy_result("miniature", seed, method, METHODS[method].attackers[number])
    write_json(path, content | others)
    return path


def write_anomaly(method: str, seed: int, dataset: str, auc: float, ap: float, **others) -> None:
    """One result of stage 4 with its scores."""
    lengths = {"Abuse001_x264": 150, "Normal_Videos_001_x264": 97}
    facts, row = {"category": "Abuse", "events": [[40, 90]]}, ("miniature", seed, method, dataset)
    content = {
        "frames_per_feature": 32, "false_alarm_rate": 0.125,
        "protocols": {"validation": {"auc": auc, "ap": ap, "epoch": 3}},
        "per_category": {"Abuse": {"auc": auc}, "Arson": {"auc": auc - 0.05}},
        "videos": [{"name": name, "n_frames": n, **facts} for name, n in lengths.items()],
    }  # fmt: skip
    write_json(anomaly_result(*row), content | others)
    scores = {name: np.arange(-(-n // 32), dtype=np.float32) / 10 for name, n in lengths.items()}
    np.savez(anomaly_scores(*row), **scores)


def write_all(methods: dict[str, tuple[float, float]], seed: int) -> None:
    """Both stages for methods given as name -> (cmap, auc); the AP is 0.1 below the AUC."""
    for name, (cmap, auc) in methods.items():
        for attacker in range(len(METHODS[name].attackers)):
            write_attack(name, seed, cmap + 0.03 * attacker, attacker)
        for dataset in DATASETS:
            write_anomaly(name, seed, dataset, auc, auc - 0.1)


def collected(seeds=(0,), methods=tuple(VALUES), **options):
    return collect_results("miniature", seeds, methods, **options)


def measured(**values):
    """The results of these methods with one seed: (cmap, auc) each."""
    write_all(values, 0)
    return collected(methods=tuple(values))


def row_of(table: Table, label: str) -> tuple[str, ...]:
    return next(row for row in table.rows if row[0] == label)


def written(numbers=("8",), **options) -> str:
    """The report without the bytes of its images, in which chance may spell anything."""
    paths = report.write_all(collected(**options), report.ReportOptions((), 48, numbers))
    assert [path.name for path in paths] == ["summary.json", "tables.md", "report.html"]
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:PNG", paths[-1].read_text())


def test_summary_has_the_agreed_form_and_the_values():
    write_all(VALUES, 0)
    summary = build_summary(collected(seconds=12.5))
    assert json.loads(json.dumps(summary)) == summary
    keys = "preset seeds render_seed seconds protocol chance_cmap methods controls"
    assert " ".join(summary) == keys and summary["render_seed"] is None
    assert (summary["preset"], summary["seeds"], summary["seconds"]) == ("miniature", [0], 12.5)
    assert summary["chance_cmap"] == pytest.approx(CHANCE_CMAP)
    methods, controls = summary["methods"], summary["controls"]
    assert set(methods) == {"raw", "ted_spad", "ted_spad_plus"}
    assert set(controls) == {"reconstruction"}
    privacy = methods["ted_spad"]["privacy"]
    removed, ap = pytest.approx(0.20 / (0.80 - CHANCE_CMAP)), pytest.approx(0.83)
    expected = {"cmap": 0.60, "f1": 0.30, "leakage_removed": removed}
    assert {name: privacy[name] for name in expected} == expected
    assert [*privacy] == [*expected, "per_attribute", "held_out"]
    assert list(privacy["per_attribute"]) == list(VISPR1)
    assert methods["ted_spad"]["anomaly"] == dict.fromkeys(DATASETS, {"auc": 0.93, "ap": ap})
    assert methods["raw"]["privacy"]["leakage_removed"] == 0


def test_the_strongest_attacker_counts_and_figures_show_what_was_measured():
    results = measured(**VALUES)
    assert len(results.by_method["ted_spad_plus"][0].attacks) == 2
    assert results.mean("ted_spad_plus", "cmap") == pytest.approx(0.48), "averaging, not 0.45"
    rows = [r for r in tables.attacker_table(results).rows if r[0].startswith("TeD-SPAD+")]
    assert [row[-1] for row in rows] == ["yes", "no"]
    (result,) = results.by_method["raw"]
    scores, events = result.frame_scores("ucf_crime", "Abuse001_x264")
    assert scores[[31, 32, 149]] == pytest.approx([0, 0.1, 0.4]) and len(scores) == 150
    assert events == [[40, 90]] and result.frame_scores("ucf_crime", "other") is None
    methods = [METHODS[name] for name in ("raw", "ted_spad", "blur")]
    bars = category_bars(results, "ucf_crime", methods).axes[0].containers
    heights = {bar.get_label(): [part.get_height() for part in bar] for bar in bars}
    assert set(heights) == {"Raw", "TeD-SPAD"}, "what was not measured has no bar"
    assert heights["Raw"] == pytest.approx([95, 90]) and heights["TeD-SPAD"][0] == pytest.approx(93)


def test_held_out_attributes_are_shown_but_do_not_count():
    path = write_attack("raw", 0, 0.8)
    content, extra = json.loads(path.read_text()), {"held_out": {"a59_sports": 0.7}}
    content["protocols"]["validation"] |= extra
    content["chance"]["held_out"] = {"a59_sports": 0.25}
    write_json(path, content)
    generator = np.random.default_rng(0)
    labels, p = generator.random((90, 8)) < 0.4, generator.random((90, 8))
    saved = {"names": np.arange(90).astype(str), "labels": labels, "probabilities": p}
    np.savez(path.with_suffix(".npz"), **saved)
    (result,) = (results := collected()).by_method["raw"]
    changed = {**saved, "probabilities": np.c_[p[:, :7], 1 - p[:, 7]]}
    np.savez(path.with_suffix(".npz"), **changed)
    np.testing.assert_array_equal(
        result.draws("cmap")[1], collected().by_method["raw"][0].draws("cmap")[1]
    )
    table = tables.detail_tables(results)["attributes"]
    assert table.header[-1].startswith("a59_sports (held out") and table.rows[0][-1] == "70.00"
    assert table.rows[1] == ("Chance", *(f"{100 * c:.2f}" for c in [*CHANCE.values(), 0.25]))
    assert build_summary(results)["methods"]["raw"]["privacy"]["held_out"] == extra["held_out"]


def test_one_rendering_has_its_own_results_and_pairs_its_seeds():
    videos = [{"name": f"v{k}", "n_frames": 64, "events": [[0, 32]] * (k < 6)} for k in range(12)]
    for prefix, method, seed in product(("miniature", "miniature_r7"), ("raw", "blur"), (0, 1)):
        row, sign = (prefix, seed, method, "ucf_crime"), 1 - 2 * seed
        scores = {"auc": 0.9 - 0.1 * (prefix == "miniature"), "ap": 0.5}
        content = {"frames_per_feature": 32, "protocols": {"validation": scores}, "videos": videos}
        write_json(anomaly_result(*row), content)
        level = np.random.default_rng(3).random(12) if method == "raw" else np.zeros(12)
        np.savez(anomaly_scores(*row), **{v["name"]: [sign * x, 0] for v, x in zip(videos, level)})
    own = collected(seeds=(0, 1), methods=("raw", "blur"))
    one = collected(seeds=(0, 1), methods=("raw", "blur"), render_seed=7)
    assert (own.mean("raw", "ucf_crime:auc"), one.mean("raw", "ucf_crime:auc")) == (0.8, 0.9)
    assert "own rendering" in tables.measurement_note(own)
    assert "One rendering (7)" in tables.measurement_note(one)
    first, second = ([r.draws("ucf_crime:auc")[1] for r in x.by_method["raw"]] for x in (own, one))
    assert not np.allclose(first[0], 1 - first[1]), "drawn independently: other videos"
    np.testing.assert_allclose(second[0], 1 - second[1])


def test_several_seeds_give_mean_and_deviation_per_seed_leakage():
    expected = np.array([0.60, 0.58, 0.53])
    for seed, cmap in enumerate(expected):
        write_all(VALUES | {"ted_spad": (cmap, 0.93)}, seed)
    results = collected(seeds=(0, 1, 2))
    entry = build_summary(results)["methods"]["ted_spad"]
    removed = (0.80 - expected) / (0.80 - CHANCE_CMAP)
    privacy, deviation = entry["privacy"], pytest.approx(expected.std(ddof=1))
    assert privacy["cmap"] == pytest.approx(expected.mean())
    assert privacy["leakage_removed"] == pytest.approx(removed.mean())
    assert privacy["cmap_std"] == privacy["per_attribute"]["a4_gender_std"] == deviation
    assert entry["anomaly"]["ucf_crime"]["auc_std"] == pytest.approx(0)
    text = f"{100 * removed.mean():.1f} ± {100 * removed.std(ddof=1):.1f} %"
    assert text in tables.headline(results)


def test_a_missing_result_is_a_gap_not_a_number():
    write_all({"raw": (0.8, 0.95)}, 0)
    write_attack("ted_spad", 0, 0.6)
    write_anomaly("ted_spad", 0, "xd_violence", 0.9, 0.7)
    results = collected()
    summary = build_summary(results)["methods"]
    assert set(summary["ted_spad"]["anomaly"]) == {"xd_violence"} and "blur" not in summary
    row = row_of(tables.paper_table(results, "8"), "TeD-SPAD")
    assert row[5] == MISSING and row[7].startswith("70.00")
    details, kinds = tables.detail_tables(results), [f"categories_{name}" for name in DATASETS]
    assert list(details) == ["attributes", "detection", *kinds, "attackers"]
    cells = row_of(details["detection"], "TeD-SPAD")[1:7]
    assert cells == (*[MISSING] * 3, "90.00", "70.00", "12.50")
    assert tables.detail_tables(collected(methods=("blur",))) == {}


def test_the_main_table_shows_changes_against_raw_and_sets_controls_apart():
    table = tables.paper_table(measured(**VALUES), "8")
    ted = row_of(table, "TeD-SPAD")
    assert ted[1:3] == ("60.00\n-25.00 %", "42.21\n-32.25 %")
    assert ted[4:7] == ("53.54", "93.00\n-2.11 %\n[+0.0, +0.0]", "74.81\n-3.69 %")
    assert set(row_of(table, "TeD-SPAD+ (ours)")[2::2]) == {MISSING}, "not the paper's"
    assert any("Not measured: Downsample-2x" in note for note in table.notes)
    assert [table.rows[i][0] for i in table.emphasised] == ["Control: Reconstruction only"]
    assert set(table.header[2::2]) == {"paper, real data"}
    text = tables.write_markdown(collected())
    assert "42.21<br>-32.25 %" in text and "drawn scenes" in text
    lines = [line for line in text.split("### ")[1].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(table.rows)


def test_differences_have_paired_intervals_and_are_bold_where_these_exclude_zero():
    """24 videos, half of them anomalous; images that an attacker reads, or reads in part."""
    names = [f"v{k:02d}" for k in range(24)]
    videos = [{"name": name, "n_frames": 250, "category": ""} for name in names]
    for k, video in enumerate(videos):
        video["events"] = [[64, 128]] if k < 12 else []
    seen, shown = np.random.default_rng(0).random((24, 2, 8))[:, 1], np.arange(8) // 2 == 1
    images, labels = np.arange(200).astype(str), np.arange(200)[:, None] % 2 == np.arange(7) % 2
    noise = np.random.default_rng(1).random(labels.shape)
    for method, hidden, cmap in (("raw", 0.5, 0.9), ("ted_spad", 0.55, 0.85), ("spact", 2, 0.5)):
        write_anomaly(method, 0, "ucf_crime", 0.9, 0.8, videos=videos)
        scores = {name: hidden * seen[k] + shown * (k < 12) for k, name in enumerate(names)}
        np.savez(anomaly_scores("miniature", 0, method, "ucf_crime"), **scores)
        path = write_attack(method, 0, cmap).with_suffix(".npz")
        np.savez(path, names=images, labels=labels, probabilities=labels + hidden * noise)
    table = tables.paper_table(collected(methods=("raw", "ted_spad", "spact")), "8")
    assert row_of(table, "Raw")[1] == "90.00"
    same, lower = row_of(table, "TeD-SPAD"), row_of(table, "SPAct (ω = 0)")
    assert same[5].startswith("90.00") and "**" not in same[5] + same[1]
    for cell, change in ((lower[1], "-44.44 %"), (lower[5], "")):
        value, *_, interval = cell.split("\n")
        low, high = map(float, interval.strip("[]").split(", "))
        assert value.startswith("**") and low < high < 0 and change in cell
    assert "| **50.00**<br>-44.44 %<br>[-" in table.markdown()


def test_the_table_says_how_much_was_measured_and_by_which_protocol():
    counts = {"n_pictures": {"train": 9, "test": 7990}, "unreadable": {"test": ["a"] * 10}}
    write_attack("raw", 0, 0.8, **counts)
    assert collected(protocol="last").mean("raw", "cmap") == 0.8, "of the epoch validation chose"
    with pytest.raises(UserError, match="_s0_raw.json has no protocol 'best_on_test'"):
        collected(protocol="best_on_test")
    write_anomaly("raw", 0, "ucf_crime", 0.9, 0.8, n_test_videos=3)
    write_anomaly("raw", 0, "xd_violence", 0.9, 0.8)  # of an earlier version
    expected = "Measured on 7990 of 8000 test images of VISPR, 2 of 3 test videos of UCF-Crime, "
    expected += "2 test videos of XD-Violence."
    assert expected in tables.paper_table(collected(), "8").notes


def test_rows_that_lack_test_videos_are_compared_on_those_that_all_have():
    """raw finds the event of a video that blur lacks, and misses half of the other one."""
    events = {"a": [[0, 64]], "b": [[32, 96]], "normal": []}
    scores = {"a": [0.9, 0.9, 0.1, 0.1], "b": [0.4, 0.5, 0.1, 0.6], "normal": [0.2] * 4}
    labels, found = [0] * 32 + [1] * 64 + [0] * 160, scores["b"] + scores["normal"]
    expected = roc_auc_score(labels, np.repeat(found, 32))
    for seed, method, names in ((0, "raw", "a b normal"), (0, "blur", "b normal"), (1, "raw", "b")):
        facts = {"n_frames": 128, "category": ""}
        videos = [{"name": name, **facts, "events": events[name]} for name in names.split()]
        auc = expected if method == "blur" else 0.99
        write_anomaly(method, seed, "ucf_crime", auc, 0.5, videos=videos, n_test_videos=3)
        own = {name: np.array(scores[name], np.float32) for name in names.split()}
        np.savez(anomaly_scores("miniature", seed, method, "ucf_crime"), **own)
    results = collected(seeds=(0, 1), methods=("raw", "blur"))
    assert results.by_seed("raw", "ucf_crime:auc") == pytest.approx({0: expected, 1: 0.99})
    assert results.by_seed("blur", "ucf_crime:auc")[0] == expected < 0.99
    assert results.difference("blur", "ucf_crime:auc") == [0, 0]
    shown = collected(methods=("raw", "blur"))
    assert "2 of 3 test videos of UCF-Crime" in " ".join(tables.paper_table(shown, "8").notes)


def test_tables_say_whether_the_order_agrees():
    values = {"raw": (0.8, 0.9), "spact": (0.6, 0.9), "invariance_1": (0.55, 0.8)}
    table = tables.paper_table(measured(**values, ted_spad=(0.5, 0.91)), "2")
    in_order = tuple(f"{x}: rows in the paper's order." for x in ("VISPR cMAP", "UCF-Crime AUC"))
    assert table.notes[:2] == in_order and not table.warnings
    assert "One seed (0)" in table.notes[-1] and "chosen on validation data" in table.notes[-1]
    assert row_of(table, "TeD-SPAD")[1:] == (
        "50.00\n-37.50 %", "42.21\n-32.25 %", "91.00\n+1.11 %\n[+0.0, +0.0]", "74.81\n-3.69 %",
    )  # fmt: skip
    text = "{}: 2 of 3 pairs of rows are in the paper's order; not so: {} < {}."
    assert tables.paper_table(measured(**values, ted_spad=(0.58, 0.85)), "2").warnings == (
        text.format("VISPR cMAP", "TeD-SPAD", "CE + L_I, weight 1"),
        text.format("UCF-Crime AUC", "SPAct (ω = 0)", "TeD-SPAD"),
    )
    for blur, paper, expected in (
        (0.1, {"raw": 1, "blur": 2}, "0 of 1"),  # equal is not in order
        (0.2, {"raw": 2, "blur": 2}, ""),  # nothing to compare
        (0.2, {"raw": 1, "blur": 2, "spact": 3}, "in the paper's order"),
    ):
        results = measured(raw=(0.1, 0.9), blur=(blur, 0.9))
        note, agrees = tables.order_note(results, Column("cMAP ↓", "cmap", paper))
        assert expected in note and bool(note) == bool(expected) and agrees == (" of " not in note)


def test_the_table_of_controls_says_which_rows_lie_outside_the_unlearned_curve():
    """A row lies inside if one that learned nothing detects as much and leaks no more."""
    cells = {"raw": (0.8, 0.95), "spact": (0.7, 0.9), "ted_spad": (0.6, 0.9)}
    unlearned = {"mosaic2": (0.75, 0.93), "mosaic3": (0.65, 0.9), "mosaic12": (0.4, 0.7)}
    table = tables.paper_table(measured(**cells, **unlearned), "controls")
    same = "of 3 unlearned rows: 2 detect as much, {} of these leak no more{}."
    assert table.notes == (
        f"SPAct (ω = 0), {same.format(1, ': Unlearned: colour, 1/3')}",
        f"TeD-SPAD, {same.format(0, '')}",
    )


def test_a_difference_smaller_than_the_seeds_is_called_so_and_a_row_with_fewer_seeds_is_named():
    cells = {"raw": (0.8, 0.9), "spact": (0.6, 0.9), "ted_spad": (0.5, 0.91)}
    for seed, shift in ((0, 0.04), (1, -0.03)):
        write_all({**cells, "invariance_1": (0.495 + shift, 0.8)}, seed)
    write_all({"blur": (0.7, 0.9)}, 0)
    results = collected(seeds=(0, 1), methods=(*cells, "invariance_1", "blur"))
    table = tables.paper_table(results, "2")
    assert table.warnings[0].endswith("; 1 of these 1 differ by less than the seeds do.")
    note = "Mean ± standard deviation over the seeds 0, 1. Fewer seeds: Obfuscation: blurring."
    assert note in table.notes[-1]


def test_table_1_compares_features_not_images():
    write_all({"raw": (0.8, 0.9)}, 0)
    for method, cmap in (("raw", 0.7), ("spact", 0.5), ("ted_spad", 0.6)):
        path = privacy_result("miniature", 0, method, FEATURE_ATTACKER)
        write_attack(method, 9, cmap).replace(path)
    results = collected(methods=("raw", "spact", "ted_spad"))
    assert results.mean("raw", "cmap") == 0.8, "an attack on features is not one on images"
    table = tables.paper_table(results, "1")
    assert [r[1] for r in table.rows[:3]] == ["70.00", "50.00\n-28.57 %", "60.00\n-14.29 %"]
    assert table.rows[2][2] == "52.30\n-17.18 %"
    assert table.warnings[0].endswith("not so: TeD-SPAD < SPAct (ω = 0).")
    assert "70.00" in tables.write_markdown(results, ("1",)).split("Table 1:")[1]


def test_the_miniatures_other_networks_are_not_compared_with_the_papers():
    values = {"raw": (0.8, 0.9), "ted_spad": (0.5, 0.91), "mvitv2": (0.55, 0.8)}
    results = measured(**values, r3d_18=(0.6, 0.8))
    table = tables.paper_table(results, "10")
    assert "small_wide" in table.rows[1][0] and not table.warnings
    assert table.rows[1][1:3] == ("55.00\n-31.25 %", MISSING)
    here, paper, _ = ablation_changes(results, ("10",)).axes[0].lines
    assert [np.isfinite(line.get_xdata()).sum() for line in (here, paper)] == [3, 1]


def test_rows_of_ablations_stay_out_of_table_8(artifacts: Path):
    root = artifacts / "results"
    ablations = {"spact": (0.6, 0.9), "omega_1": (0.61, 0.8), "omega_10": (0.62, 0.7)}
    results = measured(**VALUES, **ablations)
    assert set(build_summary(results)["methods"]) >= {"omega_1", "omega_10"}
    assert not any("ω = 1" in row[0] for row in tables.paper_table(results, "8").rows)
    assert len(trade_off(results).axes[0].get_legend_handles_labels()[1]) == 5
    text = tables.write_markdown(results, ("8", "4"))
    assert "Table 4: Weight ω" in text and "Table 8:" in text
    html = written(("4",), methods=(*VALUES, *ablations))
    assert "Table 4: Weight ω" in html and "Table 8" not in html
    assert "Table 8" not in (root / "tables.md").read_text()
    figures = root / "figures"
    assert (figures / "ablations.png").exists() and not (figures / "trade_off.png").exists()


def test_the_report_is_one_file_with_its_images_inside(artifacts: Path, monkeypatch):
    write_all(VALUES, 0)
    monkeypatch.setattr(tables, "headline", lambda results: "<script>a & b")
    html = written()
    assert "&lt;script&gt;a &amp; b" in html
    assert html.count("data:PNG") == 5, "without data and logs the report still comes out"
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "<script" not in html
    assert "//" not in html and "@import" not in html and "url(" not in html
    assert "<td>60.00<span>-25.00 %</span></td>" in html and "No images:" in html
    figures = {path.stem for path in (artifacts / "results" / "figures").iterdir()}
    assert figures == {"trade_off", "attributes", *(f"categories_{name}" for name in DATASETS)}


def test_attackers_are_said_to_begin_as_they_did(tmp_path: Path):
    """The miniature's attackers begin with one that was trained on raw images."""
    start = tmp_path / "run" / "attacker.pth"
    save_checkpoint(start, {"meta": {"parameters": {"anonymizer": "raw"}}})
    for inputs, expected in (
        ({}, "random weights"),
        (describe_inputs({"attacker": start}), "weights of an attacker trained on raw images"),
        ({"attacker": {"path": f"{start}", "sha256": "0"}}, "weights of run/attacker.pth"),
    ):
        facts = {"attacker": "small", "parameters": {"network": "r50"}, "inputs": inputs}
        write_attack("raw", 0, 0.8, **facts)
        assert collected().by_method["raw"][0].attacks[0].start == expected
    html = written()
    assert "The attackers begin with weights of run/attacker.pth." in html
    assert "fresh network" not in html


def test_raw_images_of_real_data_are_shown_only_when_asked_for():
    images = [Sample(torch.full((3, 8, 8), 0.8), None, "")]
    names = ("raw", "downsample2x", "reconstruction")
    for preset, show_raw in (("paper", False), ("paper", True), ("miniature", False)):
        source, hides = SampleSource(preset, 0, 8, show_raw), preset == "paper" and not show_raw
        shown = [name for name in names if source.released(METHODS[name], images) is not None]
        assert shown == ["downsample2x"] if hides else ["raw", "downsample2x"]


def test_training_images_are_those_of_the_log():
    folder = training_log("miniature", 0, METHODS["ted_spad"])
    assert training_images(folder) == []
    raw = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1).expand(5, 3, 12, 12)
    with SummaryWriter(str(folder)) as writer:
        for epoch in range(1, 9):
            grid = make_grid(torch.cat([raw, torch.full_like(raw, epoch / 10)]), nrow=5)
            writer.add_image("raw above anonymized", grid, epoch)
    shown = training_images(folder)
    assert [epoch for epoch, _, _ in shown] == [1, 2, 4, 5, 7, 8]
    for epoch, before, after in shown:
        assert before.shape == after.shape == (5, 12, 12, 3)
        assert np.abs(before[:, 0, 0, 0] / 255 - np.linspace(0.1, 0.9, 5)).max() < 0.005
        assert np.abs(after / 255 - epoch / 10).max() < 0.005
