"""The plan: which commands, in which order, with which files; and what stands there of it."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import reproduce
from aux_code import config
from aux_code.errors import UserError
from aux_code.miniature.render import DATA_SETS, FORMAT_VERSION, render_benchmark
from aux_code.parameters import parse
from aux_code.reporting import published
from reproduction.dry_run import (
    Reckoning,
    check_inputs,
    progress_of_all,
    sbatch_script,
    shell_script,
)
from reproduction.methods import (
    ABLATION_TABLES,
    CONTROLS,
    METHODS,
    TABLE_1,
    TABLE_8,
    chosen_methods,
    chosen_tables,
)
from reproduction.plan import STAGES, PlanSettings, Step, build_plan, plan_settings, progress_of
from reproduction.runner import run_steps
from tests.reproduction.conftest import ROOTS


def plan(methods, seeds=(0,), preset="miniature", **settings) -> list[Step]:
    return build_plan(methods, seeds, PlanSettings(preset, **settings))


def plan_of(*options: str) -> list[Step]:
    """The steps of a command line of reproduce.py."""
    params = parse(reproduce.PRESETS, list(options))
    tables, trained = chosen_tables(params.table), STAGES["train_anonymizer"].presets
    methods = chosen_methods(params.methods, tables, params.controls, trained, params.preset)
    return build_plan(methods, params.seeds, plan_settings(params, 2, tables))


def option(step: Step, name: str) -> str:
    return step.arguments[step.arguments.index(name) + 1]


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def datasets_of(steps: list[Step], method: str) -> set[str]:
    own = [step for step in steps if step.method == method and "--dataset" in step.arguments]
    return {option(step, "--dataset") for step in own}


def test_every_step_comes_after_those_it_needs_and_reads_what_they_write(artifacts):
    steps = plan([*TABLE_8, *CONTROLS], seeds=(0, 1), feature_level=TABLE_1)
    writers: dict[Path, str] = {}
    for step in steps:
        assert set(writers.values()).issuperset(step.needs), step.name
        for word in map(Path, step.arguments):
            path = word / "manifest.json" if word.parent.parent == config.FEATURES_ROOT else word
            if path.is_relative_to(config.ARTIFACT_ROOT) and path not in step.outputs:
                rendering = path == step.data_root
                assert rendering or writers[path] in step.needs, f"{step.name} reads {path}"
        assert writers.keys().isdisjoint(step.outputs), "nobody writes another's file"
        writers |= dict.fromkeys(step.outputs, step.name)
    assert len(by_name(steps)) == len(steps)


def test_shared_steps_occur_once_a_seed(artifacts):
    stages = [step.stage for step in plan(["raw", "spact", "ted_spad", "blur"], seeds=(0, 1))]
    once = ("init_privacy", "init_anonymizer", "miniature")
    assert [stages.count(name) for name in once] == [2, 2, 2]
    assert stages.count("init_utility") == 4, "raw's is shared by the trained; blur has its own"
    assert stages.count("train_anonymizer") == 4 and stages.count("main") == 2 * 4 * 3


def test_the_trained_methods_differ_in_preset_and_start_alike(artifacts):
    rows = ("spact", "ted_spad", "ted_spad_plus")
    steps = by_name(plan(rows))
    spact, ted, plus = (steps[f"miniature_s0_anonymizer_{row}"] for row in rows)
    presets = ["miniature_spact", "miniature", "miniature_ted_spad_plus"]
    assert [option(step, "--preset") for step in (spact, ted, plus)] == presets
    assert option(spact, "--init_fa") == option(ted, "--init_fa") != option(plus, "--init_fa")
    assert option(spact, "--init_ft") == option(ted, "--init_ft") == option(plus, "--init_ft")
    assert spact.params.omega == 0 and ted.params.omega > 0


def test_attackers_of_the_miniature_start_from_one_that_knows_raw_images(artifacts):
    steps = [s for s in plan(["raw", "blur", "ted_spad_plus"]) if s.stage == "train_privacy"]
    start, *others = sorted(steps, key=lambda step: step.method != "shared")
    assert option(start, "--anonymizer") == "raw" and "--attacker_weights" not in start.arguments
    assert len(others) == 4
    for step in others:
        assert option(step, "--attacker_weights") == str(start.outputs[0])
        assert start.name in step.needs and option(step, "--preset") == "miniature_from_raw"
    paper = plan(["raw", "spact"], preset="paper")
    assert not any("--attacker_weights" in step.arguments for step in paper)
    noisy = [step for step in others if step.method == "ted_spad_plus"]
    assert [("--average_frames" in step.arguments) for step in noisy] == [False, True]


def test_each_training_has_a_folder_and_a_state_of_its_own(artifacts):
    steps = plan([*TABLE_8, *CONTROLS], feature_level=TABLE_1)
    states = [step.state for step in steps if step.stage not in ("miniature", "dali_extraction")]
    assert len(set(states)) == len(states)
    stages = (
        "init_anonymizer",
        "init_utility",
        "init_privacy",
        "train_anonymizer",
        "train_privacy",
    )
    runs = [option(step, "--run_id") for step in steps if step.stage in stages]
    assert len(set(runs)) == len(runs), "they would overwrite each other's checkpoints"


def test_every_option_and_preset_exists(artifacts):
    """The command lines are parsed with the scripts' own parameter classes."""
    machine = ("--device", "cpu", "--n_threads", "1")
    for step in plan(METHODS, feature_level=TABLE_1, machine_arguments=machine):
        if step.stage != "miniature":
            flags = step.flags("resumes", overwrite=True)
            assert parse(STAGES[step.stage].presets, [*step.arguments, *flags]).resume
            assert (config.REPOSITORY_ROOT / STAGES[step.stage].script).is_file()
    with pytest.raises(UserError, match="no preset 'paper_spact_equal_compute'; it has: paper, "):
        plan(["spact_equal_compute"], preset="paper")


def test_the_paper_has_the_same_stages_without_rendering(artifacts):
    stages = {step.stage for step in plan(["raw", "ted_spad"], preset="paper")}
    assert stages == {step.stage for step in plan(["raw", "ted_spad"])} - {"miniature"}


def test_a_rendering_that_the_user_named_is_used(artifacts, monkeypatch):
    monkeypatch.setattr(config, "DATA_ROOT", artifacts)
    (artifacts / "miniature.json").write_text(json.dumps({"seed": 5, "seconds": 1}))
    ours, other = plan(["raw"], seeds=(5,)), plan(["raw"], seeds=(6,))
    assert not any(step.stage == "miniature" for step in ours)
    assert {step.environment["TED_SPAD_DATA_ROOT"] for step in ours} == {str(artifacts)}
    rendering = other[0]
    assert rendering.stage == "miniature" and rendering.outputs[0].parent == rendering.data_root
    assert progress_of(rendering) == "to do"
    rendering.data_root.mkdir(parents=True)
    record = {"format_version": FORMAT_VERSION, "seed": 6, "scale": 1.0}
    record["sets"] = dict.fromkeys(DATA_SETS, {})
    for changed in ({}, {"format_version": 1}, {"scale": 0.5}, {"sets": {"vispr": {}}}):
        rendering.outputs[0].write_text(json.dumps(record | changed))
        assert progress_of(rendering) == ("to do" if changed else "done")


@pytest.mark.parametrize("preset", ["paper", "miniature"])
def test_ablation_rows_are_trained_with_the_preset_of_their_name(artifacts, preset):
    rows = ("omega_10", "margin_0.5", "invariance_2", "lltc", "distance_32")
    steps = by_name(plan(rows, preset=preset))
    for row in rows:
        assert option(steps[f"{preset}_s0_anonymizer_{row}"], "--preset") == f"{preset}_{row}"
    assert steps[f"{preset}_s0_anonymizer_omega_10"].params.omega == 10
    far, label = (
        steps[f"{preset}_s0_anonymizer_distance_32"],
        METHODS["distance_32"].label_in(preset),
    )
    small = preset == "miniature"
    assert far.params.negative_distance == (4 if small else 32)
    assert label.startswith("clip distance 4") if small else label == "clip distance 32"
    assert ("paper: 32" in label) == small


def test_other_utility_networks_are_trained_from_their_own_start(artifacts):
    for preset, arch in (("paper", "mvitv2"), ("miniature", "small_wide")):
        steps = by_name(plan(["mvitv2", "ted_spad"], preset=preset, utility_weights="k400.pth"))
        start = steps[f"{preset}_s0_init_utility_raw_{arch}"]
        assert option(start, "--ft_arch") == arch
        assert option(start, "--init_weights") == "kinetics400"
        training = steps[f"{preset}_s0_anonymizer_mvitv2"]
        assert option(training, "--init_ft") == str(start.outputs[0])
        usual = steps[f"{preset}_s0_init_utility_raw"]
        assert option(usual, "--init_weights") == "k400.pth" and "--ft_arch" not in usual.arguments


def test_table_1_attacks_the_features_of_its_rows(artifacts):
    for preset, arch in (("paper", ""), ("miniature", "_small_still")):
        steps = by_name(plan(["raw"], preset=preset, feature_level=TABLE_1))
        for row in TABLE_1:
            attack = steps[f"privacy_{preset}_s0_{row}_features"]
            assert option(attack, "--level") == "feature"
            assert "--attacker_weights" not in attack.arguments
            maker = f"init_utility_raw{arch}" if row == "raw" else f"anonymizer_{row}{arch}"
            source = f"{preset}_s0_{maker}"
            assert Path(option(attack, "--utility")).parent.name == source in attack.needs


def test_ablations_and_the_miniatures_controls_need_ucf_crime_only(artifacts):
    small, control = ("--preset", "miniature"), "reconstruction"
    steps = plan_of(*small, "--table", "4")
    assert {option(s, "--dataset") for s in steps if "--dataset" in s.arguments} == {"ucf_crime"}
    steps = plan_of(*small, "--table", "all")
    assert len(datasets_of(steps, "ted_spad")) == len(datasets_of(steps, "raw")) == 3
    for row in ("omega_1", "mvitv2", control, "spact_equal_compute"):
        assert datasets_of(steps, row) == {"ucf_crime"}
    assert len(datasets_of(plan_of(*small, "--methods", control), control)) == 3
    assert len(datasets_of(plan_of("--preset", "paper"), control)) == 3
    assert not datasets_of(plan_of("--preset", "paper"), "spact_equal_compute")


def test_wrong_names_are_user_errors_that_list_the_known(monkeypatch):
    with pytest.raises(UserError, match="the tables are: 8, 1, 2, 3"):
        chosen_tables("7")
    with pytest.raises(UserError, match="rwa: unknown; the methods are: raw, downsample2x"):
        chosen_methods(["rwa"], ["8"], True, [], "paper")
    words = ["reproduce.py", "--preset", "miniature", "--force", "nonsense", "--dry_run"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UserError, match="--force nonsense"):
        reproduce.main()


def test_the_dry_run_can_be_pasted(artifacts):
    steps = plan(["raw"], environment={"TED_SPAD_ARTIFACT_ROOT": "/a folder"})
    text = shell_script(steps, Reckoning(), (["some data"], ["a list:\nof two"]))
    assert "# MISSING: some data" in text and "# INCOMPLETE: a list:\n#   of two" in text
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert lines[0].startswith("cd ") and len(lines) == len(steps) + 1
    for step, line in zip(steps, lines[1:], strict=True):
        words = shlex.split(line)
        assert [*step.arguments] == words[-len(step.arguments) :]
        assert step.stage == "miniature" or "TED_SPAD_ARTIFACT_ROOT=/a folder" in words
    assert not list(artifacts.iterdir())


def test_the_dry_run_says_what_stands_there(make_step):
    done, part, todo = make_step("done"), make_step("part", steps=2, status=2), make_step("todo")
    after = make_step("after", needs=(part,))
    run_steps([done, part], 1)
    steps = [done, part, todo, after]
    assert [*progress_of_all(steps).values()] == ["done", "resumes", "to do", "to do"]
    text = shell_script(steps, Reckoning(2), overwrite=True)
    assert text.startswith("# 4 steps, 1 of them done; the rest takes about 0:0")
    lines = {m[1]: m[2] for m in re.finditer(r"# (\w+) \([a-z ]+\)\n(.*)", text)}
    assert lines["part"].endswith("--resume --overwrite") and "--resume" not in lines["todo"]
    for broken in (done.outputs[0], part.state):
        broken.write_bytes(b"no longer what it was")
    assert [progress_of(step) for step in (done, part)] == ["to do", "to do"]


def test_hours_of_the_papers_plan_are_reckoned_with_a_stated_rate(artifacts):
    steps = plan(["raw", "ted_spad"], preset="paper")
    text = shell_script(steps, Reckoning())
    assert "takes unknown time" in text and "docs/scaling.md" in text and "--init_weights" in text
    text = shell_script(steps, Reckoning(1, tflops=1.0))
    assert "1 train the anonymizer: 1 steps, about 1,042 hours" in text, "3750 PFLOP"


def test_missing_data_is_named_with_what_to_do(artifacts, monkeypatch):
    for name in ROOTS:
        monkeypatch.setattr(config, f"{name}_ROOT", artifacts / name)
    missing, _ = check_inputs(PlanSettings("paper", utility_weights="/nowhere/k400.pth"))
    assert len(missing) == 6
    assert any("UCF101_ROOT" in line and "TED_SPAD_DATA_ROOT" in line for line in missing)
    assert "no such file" in missing[-1]
    assert check_inputs(PlanSettings("miniature")) == ([], [])


def test_data_sets_that_are_there_are_looked_into(monkeypatch, tmp_path):
    render_benchmark(tmp_path, seed=0, scale=0.02, only=["ucf101"], workers=1)
    for name in ROOTS:
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / name)
    monkeypatch.setattr(config, "DATA_ROOT", tmp_path)
    settings = PlanSettings("paper", datasets=())
    missing, lacking = check_inputs(settings)
    assert len(missing) == 1 and "VISPR does not exist" in missing[0]
    assert len(lacking) == 1 and "drawn scenes" in lacking[0], "nobody takes them for real data"
    lost = next((tmp_path / "UCF101").rglob("*.avi"))
    lost.unlink()
    (tmp_path / "VISPR").mkdir()
    missing, lacking = check_inputs(settings)
    assert missing and all(line.startswith("vispr: ") for line in missing)
    assert re.search("1 (train|test) files are missing", lacking[1]) and lost.name in lacking[1]


SBATCH = """#!/bin/bash
folder=$(dirname "$0")
echo "$@" >> "$folder/jobs"
cat > "$folder/job.$$"
bash "$folder/job.$$" >&2; echo "status $?" >> "$folder/jobs"
echo $$
"""
PYTHON = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/commands"
while [ $# -gt 0 ]; do [ "$1" = --status ] && exit "$2"; shift; done
"""


def test_slurm_submits_one_job_for_each_step_after_those_it_needs(
    make_step, artifacts, monkeypatch
):
    """Bash takes the script apart; sbatch and python are ones that tell what they are given."""
    done, head = make_step("done"), make_step("head", status=3)
    broken, tail = make_step("broken", status=1), make_step("tail", needs=(head, done))
    run_steps([done], 1)
    folder = artifacts / "a folder"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("python", PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    script = sbatch_script([done, head, broken, tail], ["--preset", "paper", "--slurm"])
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    run = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    jobs = (folder / "jobs").read_text().splitlines()
    submitted, statuses = jobs[::2], jobs[1::2]
    names = [re.search(r"--job-name=(\S+)", line)[1] for line in submitted]
    assert names == ["head", "broken", "tail", "ted_spad_report"], "what is done is left out"
    assert statuses == ["status 0", "status 1", "status 0", "status 0"], "3 leaves a result"
    after = [re.findall(r"--dependency=(\S+)", line) for line in submitted]
    head_id = after[2][0].removeprefix("afterok:")
    assert after[:2] == [[], []] and "--run_id head" in (folder / f"job.{head_id}").read_text()
    assert re.fullmatch(r"afterany(:\d+){3}", after[3][0])
    commands = (folder / "commands").read_text().splitlines()
    assert commands[:3] == [" ".join(step.words()) for step in (head, broken, tail)]
    assert commands[3] == f"{reproduce.__file__} --preset paper"


def test_slurm_takes_the_command_that_was_given(artifacts, monkeypatch, capsys):
    words = ["reproduce.py", "--preset", "miniature", "--table", "1", "--slurm"]
    monkeypatch.setattr("sys.argv", words)
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert (
        f"{shlex.quote(sys.executable)} {reproduce.__file__} --preset miniature --table 1\n" in text
    )
    assert "--slurm" not in text and text.count("$(sbatch --parsable") == text.count("\nEND\n)")


def test_ablation_tables_have_the_papers_rows():
    for number, rows in ABLATION_TABLES.items():
        assert tuple(published.ABLATIONS[number]) == rows and set(rows) <= set(METHODS)


def test_the_published_percentages_follow_from_the_published_values():
    """The brackets of Table 8 are a check on the transcription."""
    changes = {"downsample2x": -10.69, "downsample4x": -15.18, "blur": -5.81, "blacken": -9.53}
    xd = {"blur": -23.81, "blacken": -26.74, "spact": -27.62, "ted_spad": -18.18}
    for metric, expected, tolerance in (
        ("vispr_cmap", {**changes, "spact": -15.39, "ted_spad": -32.25}, 0.01),
        ("xd_violence_ap", xd, 0.02),
    ):
        raw = getattr(published.TABLE_8["raw"], metric)
        for name, change in expected.items():
            value = getattr(published.TABLE_8[name], metric)
            assert published.relative_change(value, raw) == pytest.approx(change, abs=tolerance)


def test_the_threads_of_steps_side_by_side_share_the_cores(artifacts, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    params = replace(reproduce.PRESETS["miniature"], device="cpu")
    settings = plan_settings(params, 2, ("8",))
    assert settings.machine_arguments == ("--device", "cpu", "--n_threads", "4")
    assert settings.environment["OMP_NUM_THREADS"] == "4"
    assert plan_settings(params, 1, ("8",)).machine_arguments == ("--device", "cpu")
