"""Parts of a plan for Slurm: what is shared comes first, rows do not meet, and the script is one
that bash takes."""

import re
import shlex
import subprocess

import pytest

import reproduce
from aux_code.errors import UserError
from aux_code.parameters import parse
from reproduction.executor import _only_one_here, run_tasks
from reproduction.methods import METHODS, TABLE_1
from reproduction.plan import PlanSettings, build_plan
from reproduction.slurm import part_of, plan_parts, sbatch_script, without_foreign_needs
from reproduction.status import StatusDisplay


def test_parts_share_no_step_and_wait_for_the_shared_part_only(artifacts):
    settings = PlanSettings("miniature", feature_level=TABLE_1)
    tasks = build_plan(METHODS, (0, 1), settings, reproduce.preset_parameters)
    parts = plan_parts(tasks)
    assert sorted(task.name for steps in parts.values() for task in steps) == sorted(
        task.name for task in tasks
    )
    assert set(parts) == {f"{name}:{seed}" for name in ("shared", *METHODS) for seed in (0, 1)}
    for part, steps in parts.items():
        available = {task.name for task in (*parts[f"shared:{steps[0].seed}"], *steps)}
        assert all(
            available.issuperset(task.needs) and task.seed == steps[0].seed for task in steps
        ), part
    shared = {task.name for task in parts["shared:0"]}
    assert "miniature_s0_init_utility_raw" in shared, "raw's f_T starts the others"
    assert not any("anonymizer_ted_spad" in name and "init" not in name for name in shared)


def test_the_script_is_bash_and_its_commands_parse(tmp_path):
    command = [
        "python",
        "/a folder/reproduce.py",
        "--preset",
        "paper",
        "--table",
        "all",
        "--seeds",
        "0",
        "1",
    ]
    parts = ["shared:0", "shared:1", "raw:0", "ted_spad:0", "raw:1", "ted_spad:1"]
    script = sbatch_script(
        parts, command, {"TED_SPAD_DATA_ROOT": "/data of mine"}, "/a folder/logs"
    )
    path = tmp_path / "submit.sh"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
    jobs = re.findall(r"<<'END'\n(.*?)\nEND", script, re.DOTALL)
    assert len(jobs) == 3 and re.findall(r"--array=(\S+)", script) == ["0-1", "0-3"]
    assert re.findall(r"--dependency=(\S+)", script) == ['afterok:"$shared"', 'afterany:"$rows"']
    seen = []
    for job, n_elements in zip(jobs, (2, 4, 1), strict=True):
        for element in range(n_elements):
            # bash itself takes the line apart; the program's place is taken by one that shows its
            # arguments
            text = job.replace(shlex.join(command[:2]), "printf '%s\\n'")
            environment = {"SLURM_ARRAY_TASK_ID": str(element)}
            run = subprocess.run(
                ["/bin/bash"],
                input=text,
                capture_output=True,
                text=True,
                env=environment,
                check=True,
            )
            params = parse(reproduce.PRESETS, run.stdout.splitlines())
            assert (params.preset, params.table, params.seeds) == ("paper", "all", (0, 1))
            seen.append(params.part)
    assert seen == [*parts, ""]


def test_a_part_runs_after_the_shared_one_and_beside_another(make_task, calls):
    shared = make_task("shared_step", method="shared")
    tasks = [shared, *(make_task(name, needs=(shared,), method=name) for name in ("raw", "blur"))]
    with pytest.raises(
        UserError, match="--part raw:0 waits for shared_step; run --part shared:0 first"
    ):
        part_of(tasks, "raw:0")
    with pytest.raises(UserError, match="no such part; the parts are: shared:0, raw:0, blur:0"):
        part_of(tasks, "blacken:0")
    for part in ("shared:0", "raw:0", "blur:0"):
        outcome = run_tasks(
            without_foreign_needs(part_of(tasks, part)), 1, StatusDisplay(), part=part
        )
        assert len(outcome.done) == 1
    assert calls() == ["shared_step", "raw", "blur"]
    assert len(run_tasks(tasks, 1, StatusDisplay()).kept) == 3, (
        "the report's job finds everything done"
    )


def test_parts_exclude_a_whole_run_and_themselves_but_not_each_other(artifacts):
    with _only_one_here("raw:0"):
        with _only_one_here("blur:0"):
            pass
        for other in ("raw:0", ""):
            with pytest.raises(UserError, match="still works"), _only_one_here(other):
                pass
    with _only_one_here(""), pytest.raises(UserError, match="still works"), _only_one_here("raw:0"):
        pass


def test_slurm_prints_the_command_that_was_given(artifacts, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["reproduce.py", "--preset", "miniature", "--table", "1", "--slurm"]
    )
    assert reproduce.main() == 0
    text = capsys.readouterr().out
    assert (
        "parts=(raw:0 spact:0 ted_spad:0)" in text and "--preset miniature --table 1 --part" in text
    )
    assert "--slurm" not in text
