"""The plan: which commands, in which order, with which files handed over."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import reproduce
from aux_code import config
from aux_code.errors import UserError
from aux_code.parameters import parse
from aux_code.reporting import published
from reproduction.costs import gflop
from reproduction.estimates import Estimates
from reproduction.methods import ABLATION_TABLES, CONTROLS, METHODS, TABLE_1, TABLE_8
from reproduction.outside_weights import weight_notes
from reproduction.plan import PlanSettings, build_plan
from reproduction.preparation import (
    describe_plan,
    incomplete_data,
    missing_inputs,
    sustained_gflops,
)
from reproduction.status import clock


def plan(methods, seeds=(0,), preset="miniature", **settings):
    return build_plan(methods, seeds, PlanSettings(preset, **settings), reproduce.preset_parameters)


def option(task, name: str) -> str:
    return task.arguments[task.arguments.index(name) + 1]


def by_name(tasks):
    return {task.name: task for task in tasks}


def test_every_step_comes_after_those_it_needs_and_reads_what_they_write(artifacts):
    tasks = plan([*TABLE_8, *CONTROLS], seeds=(0, 1))
    seen, written = set(), set()
    for task in tasks:
        assert seen.issuperset(task.needs), task.name
        assert written.issuperset(task.inputs), task.name
        assert task.name not in seen and not written.intersection(task.outputs), (
            "nobody writes another's file"
        )
        seen.add(task.name)
        written.update(task.outputs)


def test_shared_steps_occur_once_a_seed(artifacts):
    names = [task.stage for task in plan(["raw", "spact", "ted_spad", "blur"], seeds=(0, 1))]
    assert (
        names.count("init_privacy")
        == names.count("init_anonymizer")
        == names.count("miniature")
        == 2
    )
    assert names.count("init_utility") == 4, (
        "raw's is shared by the trained methods; blur has its own"
    )
    assert names.count("train_anonymizer") == 4 and names.count("main") == 2 * 4 * 3


def test_the_trained_methods_differ_in_preset_and_start_alike(artifacts):
    tasks = by_name(plan(["spact", "ted_spad", "ted_spad_plus"]))
    spact, ted, plus = (
        tasks[f"miniature_s0_anonymizer_{m}"] for m in ("spact", "ted_spad", "ted_spad_plus")
    )
    assert [option(t, "--preset") for t in (spact, ted, plus)] == [
        "miniature_spact", "miniature", "miniature_ted_spad_plus",
    ]  # fmt: skip
    assert option(spact, "--init_fa") == option(ted, "--init_fa") != option(plus, "--init_fa")
    assert option(spact, "--init_ft") == option(ted, "--init_ft") == option(plus, "--init_ft")
    assert spact.parameters["omega"] == 0 and ted.parameters["omega"] > 0


def test_the_noisy_anonymizer_meets_an_attacker_that_averages(artifacts):
    attacks = [
        t
        for t in plan(["ted_spad_plus"])
        if t.stage == "train_privacy" and t.method == "ted_spad_plus"
    ]
    assert [("--average_frames" in t.arguments) for t in attacks] == [False, True]
    assert len({t.outputs for t in attacks}) == len({option(t, "--run_id") for t in attacks}) == 2


def test_all_attackers_of_the_miniature_start_from_one_that_knows_raw_pictures(artifacts):
    tasks = [t for t in plan(["raw", "blur", "ted_spad_plus"]) if t.stage == "train_privacy"]
    start, *others = sorted(tasks, key=lambda t: t.method != "shared")
    assert option(start, "--anonymizer") == "raw" and "--attacker_weights" not in start.arguments
    assert len(others) == 4
    for task in others:
        assert (
            option(task, "--attacker_weights") == str(start.outputs[0]) and start.name in task.needs
        )
        assert option(task, "--preset") == "miniature_from_raw"
    assert len({json.dumps(task.parameters, default=str) for task in others}) == 1, (
        "equal for all methods"
    )
    assert all(
        "--attacker_weights" not in t.arguments for t in plan(["raw", "spact"], preset="paper")
    )


def test_each_run_has_a_folder_of_its_own_within_a_stage(artifacts):
    """Two scripts that save to one folder would overwrite each other's checkpoints."""
    runs = [
        (option(t, "--run_id"), t.stage)
        for t in plan([*TABLE_8, *CONTROLS])
        if t.stage != "miniature"
    ]
    writers = {}
    for run, stage in runs:
        if stage in (
            "init_anonymizer",
            "init_utility",
            "init_privacy",
            "train_anonymizer",
            "train_privacy",
        ):
            assert run not in writers, f"{stage} and {writers[run]} write to {run}"
            writers[run] = stage


def test_every_option_and_preset_exists(artifacts):
    """The command lines are parsed with the scripts' own parameter classes."""
    for task in plan(
        METHODS, feature_level=TABLE_1, machine_arguments=("--device", "cpu", "--n_threads", "1")
    ):
        if task.script in reproduce.PRESETS_OF_SCRIPT:
            parse(
                reproduce.PRESETS_OF_SCRIPT[task.script],
                [*task.arguments, *task.machine_arguments, "--resume"],
            )


def test_paper_plan_has_the_same_stages_without_rendering(artifacts):
    stages = {t.stage for t in plan(["raw", "ted_spad"], preset="paper")}
    assert stages == {t.stage for t in plan(["raw", "ted_spad"])} - {"miniature"}


def test_unknown_method_lists_the_known():
    with pytest.raises(UserError, match="unknown; the methods are: raw, downsample2x"):
        plan(["rwa"])


def test_a_rendering_that_the_user_named_is_used(artifacts, monkeypatch):
    monkeypatch.setattr(config, "DATA_ROOT", artifacts)
    (artifacts / "miniature.json").write_text(json.dumps({"seed": 5, "seconds": 1}))
    ours, other = plan(["raw"], seeds=(5,)), plan(["raw"], seeds=(6,))
    assert not any(t.stage == "miniature" for t in ours)
    assert {t.environment["TED_SPAD_DATA_ROOT"] for t in ours} == {str(artifacts)}
    assert (
        other[0].stage == "miniature" and str(artifacts / "miniature_data") in other[0].arguments[0]
    )


def test_the_dry_run_can_be_pasted(artifacts):
    tasks = plan(["raw"], environment={"TED_SPAD_ARTIFACT_ROOT": "/a folder"})
    lines = [
        line
        for line in describe_plan(tasks, 1, ["some data"]).splitlines()
        if line and line[0] != "#"
    ]
    assert lines[0].startswith("cd ") and len(lines) == len(tasks) + 1
    for task, line in zip(tasks, lines[1:], strict=True):
        words = shlex.split(line)
        assert [*task.arguments] == words[-len(task.arguments) :]
        if task.stage != "miniature":
            assert "TED_SPAD_ARTIFACT_ROOT=/a folder" in words


def test_missing_data_is_named_with_what_to_do(artifacts, monkeypatch):
    for name in ("UCF101", "VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        monkeypatch.setattr(config, f"{name}_ROOT", artifacts / name)
    (artifacts / "VISPR").mkdir()
    missing = missing_inputs("paper", PlanSettings("paper", utility_weights="/nowhere/k400.pth"))
    assert len(missing) == 5 and not any("VISPR_ROOT" in line for line in missing)
    assert any("UCF101_ROOT" in line and "TED_SPAD_DATA_ROOT" in line for line in missing)
    assert missing_inputs("miniature", PlanSettings("miniature")) == []


def test_data_sets_that_are_there_are_looked_into(artifacts, monkeypatch, tmp_path):
    from aux_code.miniature.render import render_benchmark

    data = tmp_path / "rendered"
    render_benchmark(data, seed=0, scale=0.02, only=["ucf101"], workers=1)
    for name in ("VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        monkeypatch.setattr(config, f"{name}_ROOT", data / name)
    monkeypatch.setattr(config, "UCF101_ROOT", data / "UCF101")
    settings = PlanSettings("paper")
    assert incomplete_data("paper", settings) == ([], []), (
        "whole, and what is absent is missing_inputs' business"
    )
    monkeypatch.setattr(config, "DATA_ROOT", data)
    assert "drawn scenes" in incomplete_data("paper", settings)[1][0], (
        "nobody takes them for the paper's data"
    )
    lost = next((data / "UCF101").rglob("*.avi"))
    lost.unlink()
    (data / "VISPR").mkdir()
    useless, lacking = incomplete_data("paper", settings)
    assert any(
        re.search("1 (train|test) files are missing", line) and lost.name in line
        for line in lacking
    )
    assert useless and all(line.startswith("vispr: ") for line in useless)
    text = describe_plan(plan(["raw"], preset="paper"), 1, useless, lacking=lacking)
    assert "# MISSING: vispr: " in text and re.search(
        "# INCOMPLETE: ucf101: 1 (train|test) files are missing", text
    )
    commands = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith(("cd ", shlex.quote(sys.executable))) for line in commands if line)


def test_weights_from_outside_are_named_with_the_place_where_they_belong(
    artifacts, monkeypatch, tmp_path
):
    for name in ("UCF101", "VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        monkeypatch.setattr(config, f"{name}_ROOT", artifacts / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    notes = weight_notes(
        plan(["raw", "blur", "mvitv2", "r3d_18"], preset="paper", utility_weights="k400.pth")
    )
    assert [note.split(":")[0] for note in notes] == [
        "weights of the person detector of blur and blacken (no person_boxes.csv in SHANGHAITECH, UCF101, UCF_CRIME, "
        "VISPR, XD_VIOLENCE)",
        "weights of f_T mvitv2 (Kinetics-400, torchvision)",
        "weights of f_T r3d_18 (Kinetics-400, torchvision)",
    ]
    assert all(str(tmp_path / "hub") in note and "https://" in note for note in notes)
    cached = Path(notes[2].split("not at ")[1].split(",")[0])
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert len(weight_notes(plan(["r3d_18"], preset="paper", utility_weights="k400.pth"))) == 0
    assert "random weights" in weight_notes(plan(["raw"], preset="paper"))[0]


def test_ablation_tables_have_the_papers_rows():
    for number, rows in ABLATION_TABLES.items():
        assert tuple(published.ABLATIONS[number]) == rows and set(rows) <= set(METHODS)


def test_the_published_percentages_follow_from_the_published_values():
    """The brackets of Table 8 are a check on the transcription."""
    changes = {
        "downsample2x": -10.69,
        "downsample4x": -15.18,
        "blur": -5.81,
        "blacken": -9.53,
        "spact": -15.39,
    }
    raw = published.TABLE_8["raw"].vispr_cmap
    for name, change in {**changes, "ted_spad": -32.25}.items():
        assert published.relative_change(published.TABLE_8[name].vispr_cmap, raw) == pytest.approx(
            change, abs=0.01
        )
    xd = {"blur": -23.81, "blacken": -26.74, "spact": -27.62, "ted_spad": -18.18}
    for name, change in xd.items():
        value = published.relative_change(
            published.TABLE_8[name].xd_violence_ap, published.TABLE_8["raw"].xd_violence_ap
        )
        assert value == pytest.approx(change, abs=0.02)


def test_wrong_table_and_step_names_are_user_errors(monkeypatch, capsys, tmp_path: Path):
    with pytest.raises(UserError, match="the tables are: 8, 1, 2, 3"):
        reproduce.chosen_tables("7")
    monkeypatch.setattr(
        "sys.argv", ["reproduce.py", "--preset", "miniature", "--force", "nonsense", "--dry_run"]
    )
    with pytest.raises(UserError, match="--force nonsense"):
        reproduce.main()


def plan_of(*options: str):
    """The tasks of a command line of reproduce.py."""
    params = parse(reproduce.PRESETS, list(options))
    tables = reproduce.chosen_tables(params.table)
    settings = reproduce.plan_settings(params, 2, tables)
    return build_plan(
        reproduce.chosen_methods(params, tables),
        params.seeds,
        settings,
        reproduce.preset_parameters,
    )


@pytest.mark.parametrize("preset", ["paper", "miniature"])
def test_ablation_rows_are_trained_with_the_preset_of_their_name(artifacts, preset):
    rows = ("omega_10", "margin_0.5", "invariance_2", "lltc", "distance_32")
    tasks = by_name(plan(rows, preset=preset))
    for row in rows:
        assert option(tasks[f"{preset}_s0_anonymizer_{row}"], "--preset") == f"{preset}_{row}"
    assert tasks[f"{preset}_s0_anonymizer_omega_10"].parameters["omega"] == 10
    far, label = (
        tasks[f"{preset}_s0_anonymizer_distance_32"],
        METHODS["distance_32"].label_in(preset),
    )
    assert far.parameters["negative_distance"] == 32
    if preset == "miniature":
        assert (
            option(far, "--negative_distance") == "4"
            and "distance 4" in label
            and "paper: 32" in label
        )
    else:
        assert "--negative_distance" not in far.arguments and label == "clip distance 32"


def test_other_utility_networks_are_trained_from_their_own_start(artifacts):
    for preset, arch in (("paper", "mvitv2"), ("miniature", "small_wide")):
        tasks = by_name(plan(["mvitv2", "ted_spad"], preset=preset, utility_weights="k400.pth"))
        start = tasks[f"{preset}_s0_init_utility_raw_{arch}"]
        assert (
            option(start, "--ft_arch") == arch and option(start, "--init_weights") == "kinetics400"
        )
        training = tasks[f"{preset}_s0_anonymizer_mvitv2"]
        assert (
            option(training, "--init_ft") == str(start.outputs[0]) and start.name in training.needs
        )
        usual = tasks[f"{preset}_s0_init_utility_raw"]
        assert option(usual, "--init_weights") == "k400.pth" and "--ft_arch" not in usual.arguments


def test_table_1_attacks_the_features_of_its_rows(artifacts):
    for preset, arch in (("paper", ""), ("miniature", "_small_still")):
        tasks = by_name(plan(["raw"], preset=preset, feature_level=TABLE_1))
        for row in TABLE_1:
            attack = tasks[f"privacy_{preset}_s0_{row}_features"]
            assert (
                option(attack, "--level") == "feature"
                and "--attacker_weights" not in attack.arguments
            )
            source = f"{preset}_s0_" + (
                f"init_utility_raw{arch}" if row == "raw" else f"anonymizer_{row}{arch}"
            )
            assert (
                Path(option(attack, "--utility")).parent.name == source and source in attack.needs
            )


def test_ablations_alone_need_ucf_crime_only(artifacts):
    tasks = plan_of("--preset", "miniature", "--table", "4")
    assert {option(t, "--dataset") for t in tasks if "--dataset" in t.arguments} == {"ucf_crime"}
    both = plan_of("--preset", "miniature", "--table", "all")
    sets = {
        m: {option(t, "--dataset") for t in both if t.method == m and "--dataset" in t.arguments}
        for m in METHODS
    }
    assert len(sets["ted_spad"]) == len(sets["raw"]) == 3 and sets["omega_1"] == sets["mvitv2"] == {
        "ucf_crime"
    }


def test_controls_report_ucf_crime_only_in_the_miniature_unless_asked_for(artifacts):
    def sets_of(control: str, *options: str) -> set[str]:
        return {
            option(t, "--dataset")
            for t in plan_of(*options)
            if t.method == control and "--dataset" in t.arguments
        }

    for control in ("reconstruction", "spact_equal_compute"):
        assert sets_of(control, "--preset", "miniature") == {"ucf_crime"}
        assert len(sets_of(control, "--preset", "miniature", "--methods", control)) == 3
    assert len(sets_of("reconstruction", "--preset", "paper")) == 3


def test_all_tables_of_the_miniature_fit_into_two_hours_on_two_cores(artifacts):
    tasks = plan_of("--preset", "miniature", "--table", "all")
    seconds = Estimates(tasks).seconds_left(tasks, [], jobs=2)
    assert 1800 < seconds < 7200
    assert f"the rest takes about {clock(seconds)} with 2 at once" in describe_plan(tasks, 2, [])


def test_hours_of_the_papers_plan_come_from_flop_until_something_is_measured(artifacts):
    tasks = plan(["raw", "spact", "ted_spad"], preset="paper")
    named = by_name(tasks)
    spact, ted = (named[f"paper_s0_anonymizer_{row}"] for row in ("spact", "ted_spad"))
    assert 2 < gflop(ted) / gflop(spact) < 3, "three clips instead of one, and the same images"
    raw = named["extraction_ucf_crime_paper_s0_raw"]
    assert gflop(raw) == pytest.approx(1900 * 7247 / 32 * 32.8)
    assert gflop(named["extraction_ucf_crime_paper_s0_spact"]) == pytest.approx(
        gflop(raw) * (1 + 16 * 24.6 / 32.8)
    )
    text = describe_plan(tasks, 1, [], gflops=100_000.0)
    assert "not measured: FLOP" in text and "100 TFLOP/s" in text and "--init_weights" in text
    estimates = Estimates(tasks, gflops=100_000.0)
    assert estimates.seconds(ted) == pytest.approx(gflop(ted) / 100_000)
    estimates.learn(spact, 3600.0)
    assert estimates.seconds(ted) == pytest.approx(
        3600 * gflop(ted) / gflop(spact)
    ) and estimates.is_measured(ted)
    assert Estimates(tasks).seconds_left(tasks, [], 1) is None


def test_a_stated_rate_takes_the_place_of_the_timed_one(artifacts, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["reproduce.py", "--methods", "raw", "--dry_run", "--tflops", "150"]
    )
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert "at 150 TFLOP/s" in text and "MISSING: " in text and ", not measured here" in text
    assert sustained_gflops(torch.device("cpu")) > 0


def test_other_weights_in_the_same_file_are_work_again(artifacts):
    weights = artifacts / "k400.pth"
    weights.write_bytes(b"one")
    task = by_name(plan(["raw"], preset="paper", utility_weights=str(weights)))[
        "paper_s0_init_utility_raw"
    ]
    task.outputs[0].parent.mkdir(parents=True)
    task.outputs[0].write_bytes(b"")
    task.mark_done(0.0, 1.0, 0)
    assert task.is_done()
    weights.write_bytes(b"other")
    assert not task.is_done()
