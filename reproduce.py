"""The main job: runs the stages for every method of a table, then writes
results/{summary.json,tables.md,report.html}.

python reproduce.py --preset miniature                 Table 8 on the embedded benchmark, no data needed
python reproduce.py --preset paper                     Table 8 on the real data sets named in aux_code/config.py
python reproduce.py --methods raw ted_spad --seeds 0 1 2
python reproduce.py --dry_run                          prints the commands instead of running them
python reproduce.py --slurm                            prints a script that submits the rows as a Slurm array

What is finished is not done again; what was interrupted goes on.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from anomaly_detection_mgfn import params_mgfn
from anonymization_training import params_anonymization
from aux_code import config
from aux_code.devices import choose_device
from aux_code.errors import UserError
from aux_code.parameters import check_ranges, parse
from aux_code.runs import run_script
from feature_extraction import params_feature_extraction
from privacy_training import params_privacy
from reproduction.executor import Outcome, run_tasks
from reproduction.methods import ABLATION_TABLES, CONTROLS, DATASETS, METHODS, TABLE_1, TABLE_8
from reproduction.plan import PlanSettings, build_plan
from reproduction.preparation import (
    describe_plan,
    incomplete_data,
    missing_inputs,
    sustained_gflops,
    timings_of,
)
from reproduction.report import ReportOptions, write_all
from reproduction.results import collect_results
from reproduction.slurm import part_of, plan_parts, sbatch_script, without_foreign_needs
from reproduction.status import StatusDisplay
from reproduction.tables import worked_seconds
from reproduction.tasks import Task

TABLES = ("8", "1", *ABLATION_TABLES)

PRESETS_OF_SCRIPT = {
    "anonymization_training/init_anonymizer.py": params_anonymization.INIT_ANONYMIZER,
    "anonymization_training/init_utility.py": params_anonymization.INIT_UTILITY,
    "anonymization_training/init_privacy.py": params_anonymization.INIT_PRIVACY,
    "anonymization_training/train_anonymizer.py": params_anonymization.TRAIN_ANONYMIZER,
    "privacy_training/train_privacy.py": params_privacy.PRESETS,
    "feature_extraction/dali_extraction.py": params_feature_extraction.PRESETS,
    "anomaly_detection_mgfn/main.py": params_mgfn.PRESETS,
}
"""A changed preset makes the steps that ran with it unfinished."""


@dataclass(frozen=True, kw_only=True)
class ReproduceParams:
    """What reproduce.py takes."""

    preset: str = "paper"
    """paper: real data and networks; miniature: the embedded benchmark, minutes on a laptop."""
    table: str = "8"
    """Which of the paper's tables to fill: 8 (the main result), 1, 2, 3, 4, 5, 6, 9, 10 or all."""
    methods: tuple[str, ...] = ()
    """Rows to run, by name; empty: all of the table, and the controls if --controls."""
    seeds: tuple[int, ...] = (0,)
    """Every row is run once with each seed; several give mean and deviation."""
    controls: bool = True
    """Also run SPAct with as much compute as TeD-SPAD, and reconstruction only."""
    protocol: Literal["validation", "last", "best_on_test"] = "validation"
    """Which epoch the tables show; best_on_test is the paper's protocol. The miniature shows the
    last one: the 25 videos of its validation part say little."""
    init_weights: str = ""
    """File of Kinetics-400 weights for f_T's start (paper preset); empty: random start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""
    jobs: int = 0
    """Steps that run at once; 0: one with a GPU or in the paper preset, else one for each of at
    most two cores."""
    tflops: float = 0.0
    """TFLOP per second that the machine sustains: what --dry_run reckons with where nothing is
    measured, e.g. for a GPU that this machine lacks. 0: 30 % of a matrix product timed here and
    now."""
    dry_run: bool = False
    """Print the plan as shell commands, what is missing and how long it may take; run nothing."""
    slurm: bool = False
    """Print a bash script that submits the plan to Slurm, one array element per row and seed; run
    nothing."""
    part: str = ""
    """Run the steps of one part alone, `shared:SEED` or METHOD:SEED, without a report: what --slurm
    submits. Parts may run at the same time on machines that share a file system."""
    show_raw: bool = False
    """Let the report show real images and frames as they were before anonymization, too."""
    force: tuple[str, ...] = ()
    """Names of steps (as --dry_run lists them) to run again although they are done; `all` for
    all."""

    def __post_init__(self) -> None:
        check_ranges(self, at_least={"jobs": 0, "seeds": 0, "tflops": 0})
        if not self.seeds:
            raise UserError("--seeds needs at least one number, such as 0")


PRESETS = {
    "paper": ReproduceParams(),
    "miniature": ReproduceParams(preset="miniature", protocol="last"),
}


def main() -> int:
    """Plans, runs, reports. Status 3: some steps failed, the report shows the rest."""
    params = parse(PRESETS, description=__doc__)
    tables = chosen_tables(params.table)
    methods = chosen_methods(params, tables)
    n_jobs = params.jobs or default_jobs(params)
    settings = plan_settings(params, n_jobs, tables)
    tasks = build_plan(methods, params.seeds, settings, preset_parameters)
    names = {task.name for task in tasks}
    unknown = [name for name in params.force if name not in names and name != "all"]
    if unknown:
        raise UserError(f"--force {' '.join(unknown)}: no such step; --dry_run lists them")
    useless, lacking = incomplete_data(params.preset, settings)
    missing = missing_inputs(params.preset, settings) + useless
    if params.dry_run or params.slurm:
        sys.stdout.write(printed_plan(params, tasks, n_jobs, missing, lacking))
        return 0
    if missing:
        raise UserError("before anything can start:\n  " + "\n  ".join(missing))

    forced = frozenset(names if "all" in params.force else params.force)
    if params.part:
        steps = without_foreign_needs(part_of(tasks, params.part))
        return status_of(run_tasks(steps, n_jobs, StatusDisplay(), forced, params.part))
    outcome = run_tasks(tasks, n_jobs, StatusDisplay(), forced)
    shown = dict.fromkeys([*methods, *settings.feature_level])
    timings = timings_of(tasks)
    results = collect_results(
        params.preset, params.seeds, shown, params.protocol, worked_seconds(timings)
    )
    size = PRESETS_OF_SCRIPT["feature_extraction/dali_extraction.py"][params.preset].size
    options = ReportOptions(tuple(tasks), size, tables, timings, params.show_raw)
    for path in write_all(results, options):
        sys.stdout.write(f"{path}\n")
    return status_of(outcome)


def status_of(outcome: Outcome) -> int:
    """Exit status; names what failed."""
    if outcome.failed:
        left_out = f"; not run: {', '.join(outcome.not_run)}" if outcome.not_run else ""
        sys.stderr.write(f"failed: {', '.join(outcome.failed)}{left_out}\n")
    return 3 if outcome.failed else 0


def printed_plan(
    params: ReproduceParams, tasks: list[Task], n_jobs: int, missing: list[str], lacking: list[str]
) -> str:
    """The plan as shell commands, or as a script for Slurm."""
    if params.slurm:
        words = [word for word in sys.argv[1:] if word not in ("--slurm", "--dry_run")]
        command = [sys.executable, str(config.REPOSITORY_ROOT / "reproduce.py"), *words]
        roots = ("TED_SPAD_DATA_ROOT", "TED_SPAD_ARTIFACT_ROOT")
        environment = {
            name: str(Path(os.environ[name]).absolute()) for name in roots if os.environ.get(name)
        }
        return sbatch_script(
            plan_parts(tasks), command, environment, str(config.LOGS_ROOT / "slurm")
        )
    gflops = 1000 * params.tflops
    if params.preset == "paper" and not gflops:
        gflops = sustained_gflops(choose_device(params.device))
    return describe_plan(tasks, n_jobs, missing, gflops, lacking)


def chosen_tables(table: str) -> tuple[str, ...]:
    """`8`, another number or `all` -> the tables to fill."""
    if table == "all":
        return TABLES
    if table not in TABLES:
        raise UserError(f"--table {table}: the tables are: {', '.join(TABLES)} and all")
    return (table,)


def chosen_methods(params: ReproduceParams, tables: tuple[str, ...]) -> list[str]:
    """The rows to run; raw is always among them, since every other row is compared with it."""
    if params.methods:
        return list(dict.fromkeys(["raw", *params.methods]))
    names = ["raw"]
    for table in tables:
        names += (
            TABLE_8 if table == "8" else ABLATION_TABLES.get(table, ())
        )  # Table 1 has attacks of its own only
    if params.controls and "8" in tables:
        names += CONTROLS
    return [
        name
        for name in dict.fromkeys(names)
        if not METHODS[name].control or _has_preset(name, params.preset)
    ]


def _has_preset(method: str, preset: str) -> bool:
    """Some controls exist in miniature only."""
    return preset + METHODS[method].preset_suffix in params_anonymization.TRAIN_ANONYMIZER


def preset_parameters(script: str, preset: str) -> dict[str, Any]:
    """The values that a script resolves a preset's name to.

    Raises:
        UserError: the script has no such preset.
    """
    presets = PRESETS_OF_SCRIPT[script]
    if preset not in presets:
        raise UserError(f"{script} has no preset '{preset}'; it has: {', '.join(presets)}")
    return asdict(presets[preset])


def default_jobs(params: ReproduceParams) -> int:
    """One where a GPU or real data is shared by the steps; else one for each of at most two
    cores."""
    if params.preset == "paper" or (params.device != "cpu" and torch.cuda.is_available()):
        return 1
    return min(2, os.cpu_count() or 1)


def plan_settings(params: ReproduceParams, n_jobs: int, tables: tuple[str, ...]) -> PlanSettings:
    """What the tables need beside their rows, and where and with how many threads the steps run."""
    machine = ("--device", params.device)
    environment = {}
    if n_jobs > 1 and choose_device(params.device).type == "cpu":
        n_threads = max(1, (os.cpu_count() or 1) // n_jobs)
        machine += ("--n_threads", str(n_threads))
        environment["OMP_NUM_THREADS"] = str(n_threads)
    for variable in ("TED_SPAD_DATA_ROOT", "TED_SPAD_ARTIFACT_ROOT"):
        if os.environ.get(variable):
            environment[variable] = str(Path(os.environ[variable]).absolute())
    ablations = {name for table in tables for name in ABLATION_TABLES.get(table, ())}
    main_rows = {*TABLE_8, *CONTROLS, *params.methods} if "8" in tables else set()
    partial = {"raw", *ablations} - main_rows
    if params.preset == "miniature":
        partial |= {*CONTROLS} - {*params.methods}
    return PlanSettings(
        params.preset,
        DATASETS if main_rows else ("ucf_crime",),
        ucf_crime_only=frozenset(partial),
        feature_level=TABLE_1 if "1" in tables else (),
        machine_arguments=machine,
        environment=environment,
        utility_weights=str(Path(params.init_weights).absolute()) if params.init_weights else "",
    )


if __name__ == "__main__":
    run_script(main)
