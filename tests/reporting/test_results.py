"""From result files to summary, tables and report: values, not only that something is written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aux_code import config
from aux_code.datasets.vispr import VISPR1
from aux_code.errors import UserError
from aux_code.reporting import report, tables, texts
from aux_code.reporting.detail_tables import attacker_table
from aux_code.reporting.orders import compare_orders
from aux_code.reporting.results import collect_results
from aux_code.reporting.summary import build_summary
from reproduction.methods import METHODS
from tests.reporting import synthetic_results
from tests.reporting.synthetic_results import CHANCE_CMAP, write_all, write_anomaly, write_privacy

VALUES = {
    "raw": (0.80, 0.95),
    "ted_spad": (0.60, 0.93),
    "ted_spad_plus": (0.45, 0.92),
    "reconstruction": (0.7, 0.9),
}


@pytest.fixture(autouse=True)
def results_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "SAVED_MODELS_ROOT",
        "RESULTS_ROOT",
        "LOGS_ROOT",
        "DATA_ROOT",
        "VISPR_ROOT",
        "UCF_CRIME_ROOT",
    ):
        monkeypatch.setattr(config, name, tmp_path / name.lower())
    monkeypatch.setattr(config, "ARTIFACT_ROOT", tmp_path)
    return tmp_path / "results_root"


def collected(seeds=(0,), methods=tuple(VALUES), **options):
    return collect_results("miniature", seeds, methods, **options)


def test_summary_has_the_agreed_form_and_the_values():
    write_all(VALUES, 0)
    summary = build_summary(collected(seconds=12.5))
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["preset"], summary["seeds"], summary["seconds"]) == ("miniature", [0], 12.5)
    assert summary["chance_cmap"] == pytest.approx(CHANCE_CMAP)
    assert set(summary["methods"]) == {"raw", "ted_spad", "ted_spad_plus"} and set(
        summary["controls"]
    ) == {"reconstruction"}
    ted = summary["methods"]["ted_spad"]
    assert ted["privacy"]["cmap"] == 0.60 and ted["privacy"]["f1"] == 0.30
    assert ted["privacy"]["leakage_removed"] == pytest.approx(0.20 / (0.80 - CHANCE_CMAP))
    assert list(ted["privacy"]["per_attribute"]) == list(VISPR1)
    assert ted["anomaly"] == {
        d: {"auc": 0.93, "ap": pytest.approx(0.83)}
        for d in ("ucf_crime", "xd_violence", "shanghaitech")
    }
    assert summary["methods"]["raw"]["privacy"]["leakage_removed"] == 0


def test_the_strongest_attacker_counts():
    write_all(VALUES, 0)
    results = collected()
    assert len(results.by_method["ted_spad_plus"][0].attackers) == 2
    assert results.mean("ted_spad_plus", "cmap") == pytest.approx(0.48), (
        "the averaging attacker's, not 0.45"
    )
    cells = [row for row in attacker_table(results).rows if row[0].startswith("TeD-SPAD+")]
    assert [row[-1] for row in cells] == ["no", "yes"]


def test_several_seeds_give_mean_and_deviation_per_seed_leakage():
    for seed, shift in ((0, 0.0), (1, 0.02), (2, 0.07)):
        write_all(
            {name: (cmap - shift * (name != "raw"), auc) for name, (cmap, auc) in VALUES.items()},
            seed,
        )
    summary = build_summary(collected(seeds=(0, 1, 2)))
    privacy = summary["methods"]["ted_spad"]["privacy"]
    expected = np.array([0.60, 0.58, 0.53])
    assert privacy["cmap"] == pytest.approx(expected.mean())
    assert privacy["cmap_std"] == pytest.approx(expected.std(ddof=1))
    assert privacy["leakage_removed"] == pytest.approx(
        ((0.80 - expected) / (0.80 - CHANCE_CMAP)).mean()
    )
    assert privacy["per_attribute"]["a4_gender_std"] == pytest.approx(expected.std(ddof=1))
    assert summary["methods"]["ted_spad"]["anomaly"]["ucf_crime"]["auc_std"] == pytest.approx(0)


def test_a_missing_result_is_a_gap_not_a_number():
    write_all({"raw": (0.8, 0.95)}, 0)
    write_privacy("ted_spad", 0, 0.6)
    write_anomaly("ted_spad", 0, "xd_violence", 0.9, 0.7)
    results = collected()
    entry = build_summary(results)["methods"]["ted_spad"]
    assert set(entry["anomaly"]) == {"xd_violence"}
    row = next(row for row in tables.main_table(results).rows if row[0] == "TeD-SPAD")
    assert row[3].split("\n")[0] == tables.MISSING and row[4].startswith("70.00")
    assert "blur" not in build_summary(results)["methods"]


def test_the_main_table_shows_changes_against_raw_and_sets_controls_apart():
    write_all(VALUES, 0)
    table = tables.main_table(collected())
    ted = next(row for row in table.rows if row[0] == "TeD-SPAD")
    assert (
        ted[1] == "60.00 (-25.00 %)\npaper 42.21 (-32.25 %)"
        and ted[3] == "93.00 (-2.11 %)\npaper 74.81 (-3.69 %)"
    )
    assert ted[2].endswith("paper 53.5") and "paper" not in table.rows[2][1], (
        "TeD-SPAD+ is not the paper's"
    )
    assert any("Not measured: Downsample-2x" in note for note in table.notes)
    assert [table.rows[i][0] for i in table.emphasised] == ["Control: Reconstruction only"]
    text = texts.write_markdown(collected())
    assert "42.21 (-32.25 %)" in text and "real data sets" in text, (
        "the paper's value, marked as of other data"
    )
    widths = {
        line.count("|") for line in text.split("### ")[1].splitlines() if line.startswith("|")
    }
    assert len(widths) == 1


def test_another_protocol_is_read_and_a_missing_one_named():
    write_privacy("raw", 0, 0.8)
    assert collected(protocol="last").mean("raw", "cmap") == pytest.approx(0.81)
    with pytest.raises(
        UserError, match=r"privacy_miniature_s0_raw\.json has no protocol 'best_on_test'"
    ):
        collected(protocol="best_on_test")


def test_ablation_notes_say_whether_the_order_agrees():
    write_all(
        {
            "raw": (0.8, 0.9),
            "spact": (0.6, 0.9),
            "ted_spad": (0.5, 0.91),
            "invariance_1": (0.55, 0.8),
        },
        0,
    )
    methods = ("raw", "spact", "ted_spad", "invariance_1")
    table = tables.ablation_table(collected(methods=methods), "2")
    assert table.notes[:2] == tuple(
        f"{m}: the rows come out in the paper's order." for m in ("cMAP", "AUC")
    )
    assert not table.warnings and "One seed (0)" in table.notes[-1]
    assert "Protocol: epoch chosen on validation data" in table.notes[-1]
    assert table.rows[1][1:] == (
        "50.00 (-37.50 %)", "42.21 (-32.25 %)", "91.00 (+1.11 %)", "74.81 (-3.69 %)",
    )  # fmt: skip
    write_all({"ted_spad": (0.58, 0.85)}, 0)
    table = tables.ablation_table(collected(methods=methods), "2")
    assert [warning.split(";")[0] for warning in table.warnings] == [
        f"{m}: the rows come out in another order than in the paper" for m in ("cMAP", "AUC")
    ]
    assert "2 of 3 pairs agree" in table.warnings[0]


def test_the_report_is_one_file_with_its_pictures_inside(results_root: Path):
    write_all(VALUES, 0)
    paths = report.write_all(collected(), report.ReportOptions((), 48))
    html = paths[-1].read_text()
    assert {path.name for path in paths} == {"summary.json", "tables.md", "report.html"}
    assert html.count("data:image/png;base64,") >= 2
    bare = re.sub(
        r"data:image/png;base64,[A-Za-z0-9+/=]*", "data:", html
    )  # chance may spell anything in a picture
    assert (
        not re.search(r'(?:src|href)="(?!data:)', bare)
        and "<script" not in bare
        and "//" not in bare
    )
    assert "@import" not in bare and "url(" not in bare
    assert "60.00 (-25.00 %)" in html and "No pictures:" in html, (
        "without data the report still comes out"
    )
    for figure in (results_root / "figures").glob("*.png"):
        assert figure.stat().st_size > 10_000
    assert "&lt;" not in html.split("<h1>")[0]


def test_names_in_the_report_are_escaped():
    from aux_code.reporting.html import table_block

    block = table_block(tables.Table("a < b", ("x",), (("<script>",),)))
    assert "<script>" not in block and "&lt;script&gt;" in block and "a &lt; b" in block


def test_scores_are_repeated_per_frame_and_cut_to_the_video():
    write_all(VALUES, 0)
    entry = report._test_video(collected(), "raw", "Abuse001_x264")
    scores = np.arange(5, dtype=np.float32)
    frames = report._per_frame(scores, entry)
    assert len(frames) == synthetic_results.N_FRAMES["Abuse001_x264"] == 150
    assert frames[31] == 0 and frames[32] == 1 and frames[149] == 4


def test_bars_show_raw_beside_anonymized_per_category(results_root: Path):
    from aux_code.reporting.plots import category_bars

    write_all(VALUES, 0)
    figure = category_bars(
        collected(), "ucf_crime", [METHODS[name] for name in ("raw", "ted_spad", "blur")]
    )
    heights = {
        bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers
    }
    assert set(heights) == {"Raw", "TeD-SPAD"}, "what was not measured has no bar"
    assert heights["Raw"][0] == pytest.approx(95) and heights["TeD-SPAD"][0] == pytest.approx(93)
    assert heights["Raw"][1] == pytest.approx(90)
    report.write_all(collected(), report.ReportOptions((), 48))
    assert (results_root / "figures" / "categories_ucf_crime.png").stat().st_size > 5_000


def test_training_pictures_are_those_of_the_log(results_root: Path):
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from torchvision.utils import make_grid

    from aux_code.reporting.training_pictures import spread_over, training_pictures
    from reproduction.plan import training_log

    folder = training_log("miniature", 0, METHODS["ted_spad"])
    assert training_pictures(folder) == []
    raw = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1).expand(5, 3, 12, 12)
    with SummaryWriter(str(folder)) as writer:
        for epoch in range(1, 9):
            grid = make_grid(torch.cat([raw, torch.full_like(raw, epoch / 10)]), nrow=5)
            writer.add_image("raw above anonymized", grid, epoch)
    pictures = training_pictures(folder)
    assert [shown.epoch for shown in pictures] == list(range(1, 9))
    for shown in pictures:
        assert shown.raw.shape == shown.anonymized.shape == (5, 12, 12, 3)
        assert np.abs(shown.raw[:, 0, 0, 0] / 255 - np.linspace(0.1, 0.9, 5)).max() < 0.005
        assert np.abs(shown.anonymized / 255 - shown.epoch / 10).max() < 0.005
    assert [shown.epoch for shown in spread_over(pictures, 3)] == [1, 5, 8]

    write_all(VALUES, 0)
    html = report.write_all(collected(), report.ReportOptions((), 48))[-1].read_text()
    assert (
        "Pictures over the training" in html
        and (results_root / "figures" / "training_ted_spad.png").is_file()
    )


def test_table_1_compares_features_and_says_when_the_order_differs():
    from reproduction.methods import FEATURE_ATTACKER
    from reproduction.plan import privacy_result

    write_all({"raw": (0.8, 0.9)}, 0)
    for method, cmap in (("raw", 0.7), ("spact", 0.5), ("ted_spad", 0.6)):
        source = write_privacy(method, 9, cmap)
        source.replace(privacy_result("miniature", 0, method, FEATURE_ATTACKER))
    results = collected(methods=("raw", "spact", "ted_spad"))
    assert results.mean("raw", "cmap") == 0.8, "an attack on features is not one on pictures"
    table = tables.any_table(results, "1")
    assert [row[1] for row in table.rows[:3]] == ["70.00", "50.00 (-28.57 %)", "60.00 (-14.29 %)"]
    assert table.rows[2][2] == "52.30 (-17.18 %)" and "another order" in table.warnings[0]
    assert "here SPAct (ω = 0) < TeD-SPAD < Raw" in table.warnings[0]
    assert "70.00" in texts.write_markdown(results, ("1",)).split("Table 1:")[1]


def test_the_miniatures_other_networks_are_not_compared_with_the_papers():
    write_all(
        {"raw": (0.8, 0.9), "ted_spad": (0.5, 0.91), "mvitv2": (0.55, 0.8), "r3d_18": (0.6, 0.8)}, 0
    )
    table = tables.ablation_table(collected(methods=("raw", "ted_spad", "mvitv2", "r3d_18")), "10")
    assert "small_wide" in table.rows[1][0] and "no order to compare" in table.notes[0]
    assert table.rows[1][1].startswith("55.00 (-31.25 %)") and table.rows[1][2].startswith("24.21")


def test_pairs_of_rows_are_compared():
    agreement = compare_orders(
        {"a": 1.0, "b": 3.0, "c": 2.0, "d": None}, {"a": 10, "b": 20, "c": 30, "d": 40}
    )
    assert agreement.agreeing == [("a", "b"), ("a", "c")] and agreement.differing == [("b", "c")]
    assert compare_orders({"a": 1.0, "b": 1.0}, {"a": 1, "b": 2}).differing == [("a", "b")], (
        "equal is not in order"
    )
    assert compare_orders({"a": 1.0, "b": 2.0}, {"a": 2, "b": 2}) == ([], [])


def test_table_8_says_where_its_order_is_not_the_papers():
    values = {
        "raw": (0.8, 0.95),
        "downsample2x": (0.75, 0.9),
        "downsample4x": (0.7, 0.8),
        "blur": (0.76, 0.89),
    }
    values |= {"blacken": (0.755, 0.85), "spact": (0.69, 0.86), "ted_spad": (0.6, 0.87)}
    write_all(values, 0)
    table = tables.main_table(collected(methods=tuple(values)))
    assert "VISPR cMAP: the rows come out in the paper's order." in table.notes
    assert "UCF-Crime AUC: the rows come out in the paper's order." in table.notes
    write_all({"spact": (0.55, 0.86)}, 0)
    warning = tables.main_table(collected(methods=tuple(values))).warnings[0]
    assert warning == (
        "VISPR cMAP: the rows come out in another order than in the paper; 20 of 21 pairs agree; TeD-SPAD stands on "
        "the other side of: SPAct (ω = 0)."
    )


def test_a_difference_smaller_than_the_seeds_is_called_so():
    methods = ("raw", "spact", "ted_spad", "invariance_1")
    for seed, shift in ((0, 0.04), (1, -0.03)):
        cells = {
            "raw": (0.8, 0.9),
            "spact": (0.6, 0.9),
            "ted_spad": (0.5, 0.91),
            "invariance_1": (0.495 + shift, 0.8),
        }
        write_all(cells, seed)
    table = tables.ablation_table(collected(seeds=(0, 1), methods=methods), "2")
    assert "0 of the 1 others differ" not in table.warnings[0]
    assert "1 of the 1 others differ by less than the seeds do" in table.warnings[0]
    assert "Mean ± standard deviation over the seeds 0, 1" in table.notes[-1]


def test_a_row_with_fewer_seeds_is_named():
    write_all({"raw": (0.8, 0.9), "spact": (0.6, 0.9)}, 0)
    write_all({"raw": (0.8, 0.9)}, 1)
    note = tables.main_table(collected(seeds=(0, 1), methods=("raw", "spact"))).notes[1]
    assert "Fewer seeds: SPAct" in note


def test_rows_of_ablations_stay_out_of_table_8(results_root: Path):
    write_all({**VALUES, "spact": (0.6, 0.9), "omega_1": (0.61, 0.8), "omega_10": (0.62, 0.7)}, 0)
    methods = (*VALUES, "spact", "omega_1", "omega_10")
    results = collected(methods=methods)
    assert not any("ω = 1" in row[0] for row in tables.main_table(results).rows)
    html = report.write_all(results, report.ReportOptions((), 48, ("8", "4")))[-1].read_text()
    assert (
        "Table 4: Weight ω" in html
        and "Table 8:" in html
        and (results_root / "figures" / "ablations.png").is_file()
    )
    assert set(build_summary(results)["methods"]) >= {"omega_1", "omega_10"}
    html = report.write_all(results, report.ReportOptions((), 48, ("4",)))[-1].read_text()
    assert "Table 4: Weight ω" in html and "Table 8" not in html
    assert "Table 8" not in (results_root / "tables.md").read_text()
