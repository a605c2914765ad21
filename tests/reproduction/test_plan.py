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
from reproduction import dry_run
from reproduction import methods as rows
from reproduction.dry_run import Reckoning, check_inputs, sbatch_script, shell_script
from reproduction.methods import ABLATION_TABLES, CONTROLS, METHODS, TABLE_1, TABLE_8
from reproduction.plan import STAGES, PlanSettings, Step, build_plan, plan_settings, progress_of
from reproduction.runner import run_steps


def plan(methods, seeds=(0,), preset="miniature", **settings) -> list[Step]:
    return build_plan(methods, seeds, PlanSettings(preset, **settings))


def named(*methods: str, **settings) -> dict[str, Step]:
    """The steps of a plan by their names without preset and seed."""
    steps = plan(methods, **settings)
    return {re.sub("(miniature|paper)_s0_", "", step.name): step for step in steps}


def plan_of(*options: str) -> list[Step]:
    """The steps of a command line of reproduce.py."""
    params = parse(reproduce.PRESETS, list(options))
    tables = rows.chosen_tables(params.table)
    chosen = rows.chosen_methods(params.methods, tables, params.controls)
    return build_plan(chosen, params.seeds, plan_settings(params, 2, tables))


def option(step: Step, name: str) -> str:
    return step.arguments[step.arguments.index(name) + 1]


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
    states = [step.state for step in steps if step.stage not in ("miniature", "dali_extraction")]
    runs = [option(s, "--run_id") for s in steps if s.stage.startswith(("init_", "train_"))]
    for unique in (states, runs, [step.name for step in steps]):
        assert len(set(unique)) == len(unique), "they would overwrite each other's files"


def test_shared_steps_occur_once_a_seed_and_the_trained_methods_start_alike(artifacts):
    names = ("spact", "ted_spad", "ted_spad_plus")
    stages = [step.stage for step in plan(["raw", *names[:2], "blur"], seeds=(0, 1))]
    once = ("init_privacy", "init_anonymizer", "miniature")
    assert [stages.count(name) for name in once] == [2, 2, 2]
    assert stages.count("init_utility") == 6, "one start for all; raw and blur go on from it"
    assert stages.count("train_anonymizer") == 4 and stages.count("main") == 2 * 4 * 3
    steps = named(*names)
    spact, ted, plus = (steps[f"anonymizer_{name}"] for name in names)
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
        assert step.params.held_out == start.params.held_out == ("a59_sports",)
    noisy = [step for step in others if step.method == "ted_spad_plus"]
    assert [("--average_frames" in step.arguments) for step in noisy] == [False, True]


def test_attackers_of_the_paper_start_afresh_and_from_raw_images(artifacts):
    steps = [s for s in plan(["spact"], preset="paper") if s.stage == "train_privacy"]
    fresh, start, started = steps
    assert option(start, "--anonymizer") == "raw" and option(start, "--preset") == "paper"
    assert option(started, "--attacker_weights") == str(start.outputs[0])
    assert "--attacker_weights" not in fresh.arguments and start.name in started.needs
    names = [attacker.suffix for attacker in METHODS["spact"].attackers_in("paper")]
    assert [path.stem for path in (fresh.outputs[0], started.outputs[0])] == [
        f"privacy_paper_s0_spact{suffix}" for suffix in names
    ]


def test_every_option_and_preset_exists(artifacts):
    machine = ("--device", "cpu", "--n_threads", "1")
    for step in plan(METHODS, feature_level=TABLE_1, machine_arguments=machine):
        if step.stage != "miniature":
            flags = step.flags("resumes", overwrite=True)
            assert parse(STAGES[step.stage].presets, [*step.arguments, *flags]).resume
            assert (config.REPOSITORY_ROOT / STAGES[step.stage].script).is_file()
    small, paper = (plan(["raw", "ted_spad"], preset=name) for name in ("miniature", "paper"))
    assert {step.stage for step in paper} == {step.stage for step in small} - {"miniature"}


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


def test_seeds_of_one_rendering_share_it_and_their_runs_say_so(artifacts):
    render, *steps = plan_of("--preset", "miniature", "--seeds", "0", "1", "--render_seed", "100")
    own = plan_of("--preset", "miniature", "--seeds", "0", "1")
    assert option(render, "--seed") == "100" and render.stage == "miniature"
    assert not any(step.stage == "miniature" for step in steps)
    assert {(step.data_root, step.needs[0]) for step in steps} == {(render.data_root, render.name)}
    assert {option(step, "--seed") for step in steps} == {"0", "1"}
    assert all("miniature_r100_s" in step.name for step in steps)
    files = {path for step in own for path in step.outputs}
    assert files.isdisjoint(path for step in steps for path in step.outputs)


@pytest.mark.parametrize("preset", ["paper", "miniature"])
def test_rows_of_other_tables_are_trained_as_their_names_say(artifacts, preset):
    names, is_small = ("omega_10", "margin_0.5", "invariance_2", "lltc"), preset == "miniature"
    settings = {"utility_weights": "k400.pth", "feature_level": TABLE_1}
    steps = named(*names, "distance_32", "mvitv2", "ted_spad", preset=preset, **settings)
    for name in (*names, "distance_32"):
        assert option(steps[f"anonymizer_{name}"], "--preset") == f"{preset}_{name}"
    assert steps["anonymizer_omega_10"].params.omega == 10
    distance = steps["anonymizer_distance_32"].params.negative_distance
    label = METHODS["distance_32"].label_in(preset)
    assert distance == 4 if is_small else (distance, label) == (32, "clip distance 32")
    assert not is_small or re.fullmatch(r"clip distance 4, .*\(paper: 32\)", label)

    arch = "small_wide" if is_small else "mvitv2"
    usual, start = steps["init_utility_start"], steps[f"init_utility_start_{arch}"]
    assert option(start, "--ft_arch") == arch and "--ft_arch" not in usual.arguments
    assert option(steps["anonymizer_mvitv2"], "--init_ft") == str(start.outputs[0])
    weights = [s.params.init_weights for s in (start, usual)]
    assert weights == (["", ""] if is_small else ["mvitv2", "k400.pth"])

    for row in TABLE_1:
        attack = steps[f"privacy_{row}_features"]
        assert option(attack, "--level") == "feature"
        assert "--attacker_weights" not in attack.arguments
        source = f"{preset}_s0_" + ("init_utility_raw" if row == "raw" else f"anonymizer_{row}")
        source += "_small_still" if is_small else ""
        assert Path(option(attack, "--utility")).parent.name == source in attack.needs


def test_the_paper_needs_weights_and_trains_every_f_t_alike(artifacts):
    missing = check_inputs(PlanSettings("paper"))[0]
    assert [line.split(":")[0] for line in missing[-2:]] == ["--init_weights", "--init_weights_fb"]
    (file := artifacts / "fa.pth").touch()
    given = f"--init_weights none --init_weights_fb resnet50 --init_weights_fa {file}".split()
    settings = plan_settings(parse(reproduce.PRESETS, given), 1, ("8",))
    assert not any("--init_weights" in line for line in check_inputs(settings)[0])
    steps = {s.name: s for s in plan_of("--methods", "blur", "ted_spad_plus", "ted_spad", *given)}
    words = {"anonymizer": str(file), "utility_start": "none", "privacy": "resnet50"}
    for run, expected in (words | {"anonymizer_ted_spad_plus": ""}).items():
        assert steps[f"paper_s0_init_{run}"].params.init_weights == expected
    assert steps["paper_s0_init_utility_start"].params.epochs == 0
    assert "NOTE: f_T or f_B starts at random" in shell_script([*steps.values()], Reckoning())


def test_ablations_and_the_miniatures_controls_need_ucf_crime_only(artifacts):
    small, control = ("--preset", "miniature"), "reconstruction"
    steps = plan_of(*small, "--table", "4")
    assert {option(s, "--dataset") for s in steps if "--dataset" in s.arguments} == {"ucf_crime"}
    steps = plan_of(*small, "--table", "all")
    assert len(datasets_of(steps, "ted_spad")) == len(datasets_of(steps, "raw")) == 3
    for row in ("omega_1", "mvitv2", control, "mosaic4_grey_noise0.05"):
        assert datasets_of(steps, row) == {"ucf_crime"}
    assert len(datasets_of(plan_of(*small, "--methods", control), control)) == 3
    assert len(datasets_of(plan_of("--preset", "paper"), control)) == 3


@pytest.mark.parametrize("preset", ["paper", "miniature"])
def test_every_f_t_has_one_start_and_takes_as_many_steps_and_clips(artifacts, preset):
    names = ("raw", "blur", "reconstruction", "narrow_reconstruction", "mosaic6_grey")
    steps = named(*names, "spact", "ted_spad", "ted_spad_plus", preset=preset)
    trained = [steps[f"anonymizer_{name}"] for name in ("spact", "ted_spad", "ted_spad_plus")]
    others, start = [steps[f"init_utility_{name}"] for name in names], steps["init_utility_start"]
    for step in (*trained, *others):
        assert start.name in step.needs and str(start.outputs[0]) in step.arguments
    assert Path(option(others[3], "--anonymizer")).parent.name.endswith("anonymizer_ted_spad_plus")
    assert option(others[4], "--anonymizer") == "mosaic6_grey"
    all_params = [step.params for step in (*trained, *others)]
    lengths = {(p.epochs + getattr(p, "settle_epochs", 0), p.batch_videos) for p in all_params}
    assert len(lengths) == 1
    if preset == "miniature":  # three clips of each video; in the paper SPAct has one
        assert trained[0].params.ce_on_all_clips and trained[1].params.utility_loss == "triplet"
        assert {step.params.clips_per_video for step in others} == {3}


def test_the_table_of_controls_adds_rows_and_attackers(artifacts):
    steps = {s.name: s for s in plan_of("--preset", "miniature", "--table", "controls")}
    for run in ("ted_spad_plus_noise_free", "ted_spad_plus_inversion", "ted_spad_inversion",
                "narrow_spact", "full_width", "mosaic2", "mosaic12_grey"):  # fmt: skip
        assert f"privacy_miniature_s0_{run}" in steps
    free = steps["privacy_miniature_s0_ted_spad_plus_noise_free"]
    assert free.params.average_frames == 0
    narrow = steps["miniature_s0_anonymizer_narrow_spact"].params
    assert Path(narrow.init_fa).parent.name.endswith("init_anonymizer_ted_spad_plus")
    assert narrow.distillation_weight == 0 and narrow.omega == 0
    assert not any("noise_free" in s.name for s in plan_of("--preset", "miniature"))


def test_wrong_names_are_user_errors_that_list_the_known(artifacts, monkeypatch):
    for options, expected in (
        ("--render_seed 1", "--preset miniature"),
        ("--table 7", "the tables are: 8, 1, 2, 3"),
        ("--methods rwa", "rwa: unknown; the methods are: raw, downsample2x"),
        ("--preset miniature --force nonsense --dry_run", "--force nonsense"),
    ):
        monkeypatch.setattr("sys.argv", ["reproduce.py", *options.split()])
        with pytest.raises(UserError, match=expected):
            reproduce.main()


def test_the_dry_run_can_be_pasted_and_reckons_hours_with_a_stated_rate(artifacts):
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
    steps = plan(["raw", "ted_spad"], preset="paper")
    text = shell_script(steps, Reckoning())
    assert "takes unknown time" in text and "docs/scaling.md" in text and "NOTE" not in text
    text = shell_script(steps, Reckoning(1, tflops=1.0))
    assert "1 train the anonymizer: 1 steps, about 1,814 hours" in text, "6530 PFLOP"


def test_the_dry_run_says_what_stands_there(make_step):
    done, part, todo = make_step("done"), make_step("part", steps=2, status=2), make_step("todo")
    after = make_step("after", needs=(part,))
    run_steps([done, part], 1)
    steps = [done, part, todo, after]
    assert [*dry_run.progress_of_all(steps).values()] == ["done", "resumes", "to do", "to do"]
    text = shell_script(steps, Reckoning(2), overwrite=True)
    assert text.startswith("# 4 steps, 1 of them done; the rest takes about 0:0")
    lines = {m[1]: m[2] for m in re.finditer(r"# (\w+) \([a-z ]+\)\n(.*)", text)}
    assert lines["done"].startswith("# "), "pasted, it would be made again"
    again = shell_script(steps, Reckoning(2), forced=("done",))
    assert re.search(r"# done \(to do\)\n(?!#).*--overwrite\n", again)
    assert lines["part"].endswith("--resume --overwrite") and "--resume" not in lines["todo"]
    for broken in (done.outputs[0], part.state):
        broken.write_bytes(b"no longer what it was")
    assert [progress_of(step) for step in (done, part)] == ["to do", "to do"]


def test_missing_and_incomplete_data_are_named_with_what_to_do(artifacts):
    weights = {"utility_weights": "/nowhere/k400.pth", "budget_weights": "none"}
    missing, _ = check_inputs(PlanSettings("paper", **weights))
    assert len(missing) == 6 and "no such file" in missing[-1]
    assert any("UCF101_ROOT" in line and "TED_SPAD_DATA_ROOT" in line for line in missing)
    assert check_inputs(PlanSettings("miniature")) == ([], [])

    render_benchmark(config.DATA_ROOT, seed=0, scale=0.005, only=["ucf101"], workers=1)
    assert "at scale 0.005: results are not" in check_inputs(PlanSettings("miniature"))[1][0]
    settings = PlanSettings("paper", (), utility_weights="none", budget_weights="none")
    missing, lacking = check_inputs(settings)
    assert len(missing) == 1 and "VISPR does not exist" in missing[0]
    assert len(lacking) == 1 and "drawn scenes" in lacking[0], "nobody takes them for real data"
    lost = next(config.UCF101_ROOT.rglob("*.avi"))
    lost.unlink()
    config.VISPR_ROOT.mkdir()
    missing, lacking = check_inputs(settings)
    assert missing and all(line.startswith("vispr: ") for line in missing)
    assert re.search("1 (train|test) files are missing", lacking[1]) and lost.name in lacking[1]


SBATCH = """#!/bin/bash
folder=$(dirname "$0")
cat > "$folder/job.$$"
bash "$folder/job.$$" >&2; echo "$? $@" >> "$folder/jobs"
echo $$
"""
PYTHON = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/commands"
while [ $# -gt 0 ]; do [ "$1" = --status ] && exit "$2"; shift; done
"""


def test_slurm_submits_a_job_for_each_step_after_those_it_needs(make_step, artifacts, monkeypatch):
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
    again = ["--preset", "paper", "--force", "done", "head", "--slurm"]
    forced = sbatch_script([done, head, broken, tail], again, forced=("done", "head"))
    assert forced.count("--overwrite") == 2 and "--job-name=done" in forced
    assert forced.rstrip().splitlines()[-2].endswith("reproduce.py --preset paper"), "forced once"
    script = sbatch_script([done, head, broken, tail], ["--preset", "paper", "--slurm"])
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    subprocess.run(["bash"], input=script, text=True, check=True)
    jobs = (folder / "jobs").read_text().splitlines()
    names = [re.search(r"--job-name=(\S+)", line)[1] for line in jobs]
    assert names == ["head", "broken", "tail", "ted_spad_report"], "what is done is left out"
    assert [line[0] for line in jobs] == ["0", "1", "0", "0"], "3 leaves a result"
    after = [re.findall(r"--dependency=(\S+)", line) for line in jobs]
    head_id = after[2][0].removeprefix("afterok:")
    assert after[:2] == [[], []] and "--run_id head" in (folder / f"job.{head_id}").read_text()
    assert re.fullmatch(r"afterany(:\d+){3}", after[3][0])
    commands = (folder / "commands").read_text().splitlines()
    assert commands[:3] == [" ".join(step.words()) for step in (head, broken, tail)]
    assert commands[3] == f"{reproduce.__file__} --preset paper"


def test_slurm_takes_the_command_that_was_given(artifacts, monkeypatch, capsys):
    options = "--preset miniature --table 1"
    monkeypatch.setattr("sys.argv", ["reproduce.py", *options.split(), "--slurm"])
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert f"{shlex.quote(sys.executable)} {reproduce.__file__} {options}\n" in text
    assert "--slurm" not in text and text.count("$(sbatch --parsable") == text.count("\nEND\n)")


def test_the_published_tables_have_the_methods_rows_and_percentages_that_follow():
    """The brackets of Table 8 are a check on the transcription."""
    assert {n: tuple(own) for n, own in published.ABLATIONS.items()} == ABLATION_TABLES
    assert {*METHODS}.issuperset(name for own in ABLATION_TABLES.values() for name in own)
    labels = published.TABLE_8_LABELS
    assert labels == {name: METHODS[name].label for name in labels}
    names = ("downsample2x", "downsample4x", "blur", "blacken", "spact", "ted_spad")
    for metric, changes, tolerance in (
        ("vispr_cmap", (-10.69, -15.18, -5.81, -9.53, -15.39, -32.25), 0.01),
        ("xd_violence_ap", (None, None, -23.81, -26.74, -27.62, -18.18), 0.02),
    ):
        raw, *values = (getattr(published.TABLE_8[name], metric) for name in ("raw", *names))
        for value, change in zip(values, changes, strict=True):
            ours = change and published.relative_change(value, raw)
            assert ours == pytest.approx(change, abs=tolerance)


def test_the_threads_of_steps_side_by_side_share_the_cores(artifacts, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    params = replace(reproduce.PRESETS["miniature"], device="cpu")
    settings = plan_settings(params, 2, ("8",))
    assert settings.machine_arguments == ("--device", "cpu", "--n_threads", "4")
    assert settings.environment["OMP_NUM_THREADS"] == "4"
    assert plan_settings(params, 1, ("8",)).machine_arguments == ("--device", "cpu")
