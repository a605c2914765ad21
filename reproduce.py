"""The main job: runs the stages for every method of a table, then writes
results/{summary.json,tables.md,report.html}.

python reproduce.py --preset miniature           Table 8, the embedded benchmark, no data needed
python reproduce.py --preset paper               Table 8, the real data sets of aux_code/config.py
python reproduce.py --methods raw ted_spad --seeds 0 1 2
python reproduce.py --dry_run                    prints the commands instead of running them
python reproduce.py --slurm                      prints a script of one Slurm job per step

What is finished is not done again; what was interrupted or failed goes on.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from aux_code.errors import UserError
from aux_code.parameters import check_ranges, parse
from aux_code.runs import run_script
from reproduction.dry_run import Reckoning, check_inputs, sbatch_script, shell_script
from reproduction.methods import chosen_methods, chosen_tables
from reproduction.plan import STAGES, build_plan, plan_settings
from reproduction.report import ReportOptions, write_all
from reproduction.results import collect_results
from reproduction.runner import read_timings, run_steps
from reproduction.tables import worked_seconds


@dataclass(frozen=True, kw_only=True)
class ReproduceParams:
    """What reproduce.py takes."""

    preset: str = "paper"
    """paper: real data and networks; miniature: the embedded benchmark, minutes on a laptop."""
    table: str = "8"
    """Which of the paper's tables to fill: 8 (the main result), 1, 2, 3, 4, 5, 6, 9, 10 or all; or
    controls: what learns nothing, what lacks a part of a method, further attackers."""
    methods: tuple[str, ...] = ()
    """Rows to run, by name; empty: all of the table, and the controls if --controls."""
    seeds: tuple[int, ...] = (0,)
    """Every row is run once with each seed; several give mean and deviation."""
    render_seed: int | None = None
    """Of the miniature's data, for all seeds: deviations are then those of training alone. None:
    each seed renders its own."""
    controls: bool = True
    """Also run the short controls: reconstruction only, and a mosaic as narrow as TeD-SPAD+."""
    protocol: Literal["validation", "last", "best_on_test"] = "validation"
    """Which epoch the tables show; best_on_test is the paper's protocol. last: of the detectors,
    whose validation part in the miniature has 25 videos; attackers keep what validation chose."""
    init_weights: str = ""
    """Kinetics-400 weights that f_T starts from in the paper preset: a file; none: random. Rows of
    other f_T take torchvision's."""
    init_weights_fa: str = ""
    """Weights that f_A's reconstruction starts from in the paper preset; empty: random (paper)."""
    init_weights_fb: str = ""
    """SimCLR weights that f_B starts from in the paper preset: a file or resnet50; none: random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""
    jobs: int = 0
    """Steps at once; 0: one with a GPU or in the paper preset, else one for each of two cores."""
    tflops: float = 0.0
    """TFLOP per second with which --dry_run reckons for steps of the paper that were not measured;
    0: it says only what was measured."""
    dry_run: bool = False
    """Print the plan as shell commands, what is missing and how long it may take; run nothing."""
    slurm: bool = False
    """Print a bash script that submits the plan to Slurm, a job for each step; run nothing."""
    force: tuple[str, ...] = ()
    """Names of steps (see --dry_run) to run again although they are done; `all` for all."""
    overwrite: bool = False
    """Let the steps replace results of other parameters or inputs that took over ten minutes."""
    allow_missing: bool = False
    """Let stage 4 go on although more than 1 % of a row's test videos failed in the extraction; all
    rows are then scored on the videos that all of them have."""
    show_raw: bool = False
    """Let the report show real images and frames as they were before anonymization, too."""

    def __post_init__(self) -> None:
        check_ranges(self, at_least={"jobs": 0, "seeds": 0, "tflops": 0})
        if not self.seeds:
            raise UserError("--seeds needs at least one number, such as 0")
        if self.render_seed is not None:
            check_ranges(self, at_least={"render_seed": 0})
            if self.preset != "miniature":
                raise UserError("--render_seed is for drawn data: --preset miniature")


PRESETS = {
    "paper": ReproduceParams(),
    "miniature": ReproduceParams(preset="miniature", protocol="last"),
}


def main() -> int:
    """Plans, runs, reports. Status 3: some steps failed, the report shows the rest."""
    params = parse(PRESETS, description=__doc__)
    tables = chosen_tables(params.table)
    methods = chosen_methods(params.methods, tables, params.controls)
    n_jobs = params.jobs or default_jobs(params)
    settings = plan_settings(params, n_jobs, tables)
    steps = build_plan(methods, params.seeds, settings)
    names = {step.name for step in steps}
    if unknown := [name for name in params.force if name not in names and name != "all"]:
        raise UserError(f"--force {' '.join(unknown)}: no such step; --dry_run lists them")
    missing, lacking = check_inputs(settings)
    forced = frozenset(names if "all" in params.force else params.force)
    if params.slurm or params.dry_run:
        again = params.overwrite, forced
        if params.slurm:
            text = sbatch_script(steps, sys.argv[1:], *again)
        else:
            time_left, problems = Reckoning(n_jobs, params.tflops), (missing, lacking)
            text = shell_script(steps, time_left, problems, *again)
        sys.stdout.write(text)
        return 0
    if missing:
        raise UserError("before anything can start:\n  " + "\n  ".join(missing))
    sys.stderr.writelines(f"note: {line}\n" for line in lacking)
    outcome = run_steps(steps, n_jobs, forced, params.overwrite)
    timings = {name: took for name, took in read_timings().items() if name in names}
    shown = dict.fromkeys([*methods, *settings.feature_level])
    seconds = worked_seconds(timings)
    results = collect_results(
        params.preset, params.seeds, shown, params.protocol, seconds, params.render_seed
    )
    size = STAGES["dali_extraction"].presets[params.preset].size
    options = ReportOptions(tuple(steps), size, tables, timings, params.show_raw)
    for path in write_all(results, options):
        sys.stdout.write(f"{path}\n")
    if outcome.failed:
        left_out = f"; not run: {', '.join(outcome.not_run)}" if outcome.not_run else ""
        sys.stderr.write(f"failed: {', '.join(outcome.failed)}{left_out}\n")
    return 3 if outcome.failed else 0


def default_jobs(params: ReproduceParams) -> int:
    """One where steps share a GPU or real data; else one for each of at most two cores."""
    shared = params.preset == "paper" or (params.device != "cpu" and torch.cuda.is_available())
    return 1 if shared else min(2, os.cpu_count() or 1)


if __name__ == "__main__":
    run_script(main, "the same command goes on: " + shlex.join(["python", *sys.argv]))
