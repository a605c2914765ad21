"""Methods and seeds -> steps: scripts with their options, what each waits for, what is done."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from anomaly_detection_mgfn import params_mgfn as stage_4
from anonymization_training import params_anonymization as stage_1
from aux_code import config
from aux_code.artefacts import Recipe, differences, is_current, record_of
from aux_code.checkpoints import read_json
from aux_code.devices import choose_device
from aux_code.errors import UserError
from aux_code.miniature.plan import HELD_OUT
from aux_code.miniature.render import DATA_SETS, FORMAT_VERSION
from aux_code.parameters import CommonParams, parse
from feature_extraction import manifest
from feature_extraction import params_feature_extraction as stage_3
from privacy_training import params_privacy as stage_2
from reproduction import methods as rows
from reproduction.methods import DATASETS, METHODS, Attacker, Method

Progress = Literal["done", "resumes", "to do"]
Words = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A script, and how it says what its results are made of."""

    script: str  # relative to the repository's root, or `-m MODULE`
    title: str  # for displays
    presets: Mapping[str, CommonParams] = field(default_factory=dict)
    made_of: Callable[[Any], Recipe] | None = None  # parameters -> what a result would record now
    files: tuple[str, str] = ("", "")  # checkpoint and unfinished state, in the run's folder


STAGES = {
    "miniature": Stage("-m aux_code.miniature", "render the data"),
    **{
        name: Stage(f"anonymization_training/{name}.py", title, vars(stage_1)[name.upper()],
                    stage_1.made_of, (f"{output}.pth", f"{state}_state.pth"))
        for name, title, output, state in (
            ("init_anonymizer", "1 initialise f_A", "fa_recon", "fa_recon"),
            ("init_utility", "1 train f_T", "ft_action", "ft_action"),
            ("init_privacy", "1 initialise f_B", "fb_ssl", "fb_ssl"),
            ("train_anonymizer", "1 train the anonymizer", "last", "train_anonymizer"),
        )
    },
    "train_privacy": Stage("privacy_training/train_privacy.py", "2 privacy attacker",
                           stage_2.PRESETS, stage_2.made_of, ("attacker.pth", "privacy_state.pth")),
    "dali_extraction": Stage("feature_extraction/dali_extraction.py", "3 extract features",
                             stage_3.PRESETS),
    "main": Stage("anomaly_detection_mgfn/main.py", "4 anomaly detection",
                  stage_4.PRESETS, stage_4.made_of),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One process to run."""

    name: str  # unique; names the log
    stage: str  # key of STAGES
    scale: str  # paper or miniature
    seed: int
    arguments: tuple[str, ...]  # what follows the script on the command line
    outputs: tuple[Path, ...]  # exist once it is done; the first one says what it was made of
    method: str = "shared"  # the table's row that it is for
    needs: tuple[str, ...] = ()  # names of the steps that must be done first
    environment: dict[str, str] = field(default_factory=dict)  # beside this process's variables
    data_root: Path | None = None  # where its data sets lie; None: where config.py says
    state: Path | None = None  # file of an unfinished training
    features: Path | None = None  # folder of an extraction

    @property
    def params(self) -> Any:
        """The parameters to which its script resolves the arguments."""
        return _parsed(self.stage, self.arguments)

    def words(self, *more: str) -> list[str]:
        """Script and arguments, relative to the repository's root."""
        return [*STAGES[self.stage].script.split(" "), *self.arguments, *more]

    def shell_line(self, *more: str) -> str:
        """The command as a line that can be pasted into a shell, from the repository's root."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join([sys.executable, *self.words(*more)])])

    def flags(self, progress: Progress, overwrite: bool = False) -> tuple[str, ...]:
        """What its command line needs beside the arguments, for what stands there."""
        if self.stage == "miniature":  # goes on by itself
            return ("--force",) if overwrite else ()
        resume = ("--resume",) if progress == "resumes" else ()
        return (*resume, "--overwrite") if overwrite else resume


@lru_cache(maxsize=4096)
def _parsed(stage: str, arguments: tuple[str, ...]) -> Any:
    return parse(STAGES[stage].presets, list(arguments))


def progress_of(step: Step) -> Progress:
    """What stands there of a step: all of it, a part that --resume continues, or nothing of use.

    A result, unfinished state or feature folder counts if it was made of the very parameters,
    inputs and data that the step's command would use now. Inputs that are not there: to do.
    """
    if step.stage == "miniature":
        return "done" if _is_rendering(step.data_root, step.seed) else "to do"
    stage = STAGES[step.stage]
    try:
        with _data_below(step.data_root):
            if step.features is not None:
                return manifest.progress(step.params, choose_device(step.params.device))
            made_of = stage.made_of(step.params)
        if step.state.is_file() and not differences(record_of(step.state), made_of):
            return "resumes"  # a state of something else does not undo what is current
        stands = all(path.is_file() for path in step.outputs)
        return "done" if stands and is_current(step.outputs[0], made_of) else "to do"
    except UserError:
        return "to do"


@contextmanager
def _data_below(root: Path | None) -> Iterator[None]:
    """As long as it lasts, config.py has the data sets that it has with this TED_SPAD_DATA_ROOT."""
    names = [f"{name.upper()}_ROOT" for name in ("ucf101", "vispr", *DATASETS)] if root else []
    usual = {name: getattr(config, name) for name in names}
    try:
        for name, path in usual.items():
            setattr(config, name, root / path.name)
        yield
    finally:
        for name, path in usual.items():
            setattr(config, name, path)


Makers = Iterable[Step | None]


@dataclass(frozen=True)
class PlanSettings:
    """What decides the plan besides methods and seeds."""

    preset: str  # paper or miniature
    datasets: tuple[str, ...] = DATASETS  # surveillance sets of the table
    machine_arguments: tuple[str, ...] = ()  # of every script: device and threads
    environment: dict[str, str] = field(default_factory=dict)  # of every script
    anonymizer_weights: str = ""  # --init_weights of the paper's init_anonymizer: a file or a name
    utility_weights: str = ""  # of init_utility (Kinetics-400)
    budget_weights: str = ""  # of init_privacy (SimCLR)
    ucf_crime_only: frozenset[str] = frozenset()  # ablations, the miniature's controls
    feature_level: tuple[str, ...] = ()  # methods whose f_T features are attacked too (Table 1)
    controls: bool = False  # whether the attackers of `--table controls` attack, too
    render_seed: int | None = None  # of the miniature's data; None: each seed has its own
    allow_missing: bool = False  # of main.py


def plan_settings(params: Any, n_jobs: int, tables: tuple[str, ...]) -> PlanSettings:
    """What the tables need beside their rows, and how `n_jobs` steps at once share the machine."""
    machine, environment = ("--device", params.device), {}
    if n_jobs > 1 and choose_device(params.device).type == "cpu":
        n_threads = str(max(1, (os.cpu_count() or 1) // n_jobs))
        machine += ("--n_threads", n_threads)
        environment["OMP_NUM_THREADS"] = n_threads
    for variable in ("TED_SPAD_DATA_ROOT", "TED_SPAD_ARTIFACT_ROOT"):
        if os.environ.get(variable):
            environment[variable] = str(Path(os.environ[variable]).absolute())
    ablations = {name for table in tables for name in rows.ABLATION_TABLES.get(table, ())}
    ablations |= set(rows.CONTROL_TABLE if "controls" in tables else ())
    main_rows = {*rows.TABLE_8, *rows.CONTROLS, *params.methods} if "8" in tables else set()
    partial = {"raw", *ablations} - main_rows
    if params.preset == "miniature":
        partial |= {*rows.CONTROLS} - {*params.methods}
    datasets = DATASETS if main_rows else ("ucf_crime",)
    given = (params.init_weights_fa, params.init_weights, params.init_weights_fb)
    weights = [str(Path(w).absolute()) if Path(w).is_file() else w for w in given]
    attacked = rows.TABLE_1 if "1" in tables else ()
    common = (params.preset, datasets, machine, environment, *weights)
    asked = ("controls" in tables, params.render_seed, params.allow_missing)
    return PlanSettings(*common, frozenset(partial), attacked, *asked)


def build_plan(methods: Iterable[str], seeds: Iterable[int], settings: PlanSettings) -> list[Step]:
    """Every step, each after those it needs; UserError for a preset that a script lacks."""
    steps: dict[str, Step] = {}
    for seed in dict.fromkeys(seeds):
        plan = _SeedPlan(settings, seed)
        for name in methods:
            plan.add_method(METHODS[name])
        for name in settings.feature_level:
            plan.add_feature_attack(METHODS[name])
        steps |= plan.steps  # a rendering may be that of several seeds
    return list(steps.values())


def run_prefix(preset: str, render_seed: int | None) -> str:
    """The `preset` of the functions below: it tells the rendering where that is not the seed's."""
    return preset if render_seed is None else f"{preset}_r{render_seed}"


def run_id(preset: str, seed: int, name: str) -> str:
    """Name of the run of a method (or of a shared initialisation)."""
    return f"{preset}_s{seed}_{name}"


def privacy_result(preset: str, seed: int, method: str, attacker: Attacker) -> Path:
    """Where stage 2 writes the result of one attacker."""
    return config.RESULTS_ROOT / f"privacy_{run_id(preset, seed, method)}{attacker.suffix}.json"


def anomaly_result(preset: str, seed: int, method: str, dataset: str) -> Path:
    """Where stage 4 writes the result of one data set."""
    return config.RESULTS_ROOT / f"anomaly_{dataset}_{run_id(preset, seed, method)}.json"


def anomaly_scores(preset: str, seed: int, method: str, dataset: str) -> Path:
    """Where stage 4 writes the clip scores of the test videos."""
    return config.RESULTS_ROOT / f"anomaly_{dataset}_{run_id(preset, seed, method)}_scores.npz"


def anonymizer_argument(preset: str, seed: int, method: Method) -> str:
    """What the later stages take as --anonymizer."""
    if method.kind == "given":
        return method.name
    run, file = f"init_anonymizer{method.initialisation}", "fa_recon.pth"
    if method.kind == "trained":
        run, file = f"anonymizer_{method.name}", "last.pth"
    return str(config.SAVED_MODELS_ROOT / run_id(preset, seed, run) / file)


def utility_file(preset: str, seed: int, method: Method) -> Path:
    """Checkpoint of a row's f_T."""
    run, file = f"init_utility_{method.name}", "ft_action.pth"
    if method.kind == "trained":
        run, file = f"anonymizer_{method.name}", "last.pth"
    return config.SAVED_MODELS_ROOT / run_id(preset, seed, run) / file


def training_log(preset: str, seed: int, method: Method) -> Path:
    """Where the minimax training of a row writes for TensorBoard."""
    return config.LOGS_ROOT / run_id(preset, seed, f"anonymizer_{method.name}")


def miniature_root(seed: int) -> Path:
    """The benchmark of a render seed: DATA_ROOT if that holds one, else below ARTIFACT_ROOT."""
    marker = config.DATA_ROOT / "miniature.json"
    if marker.is_file() and read_json(marker).get("seed") == seed:
        return config.DATA_ROOT
    return config.ARTIFACT_ROOT / "miniature_data" / f"seed_{seed}"


def _is_rendering(root: Path, seed: int) -> bool:
    """Whether a whole rendering of this version's scenes lies there."""
    marker = root / "miniature.json"
    record = read_json(marker) if marker.is_file() else {}
    expected = {"format_version": FORMAT_VERSION, "seed": seed, "scale": 1.0}
    return {**record, **expected} == record and record["sets"].keys() == DATA_SETS.keys()


class _SeedPlan:
    """Collects the steps of one seed; what several methods share is added once."""

    def __init__(self, settings: PlanSettings, seed: int):
        self.settings, self.seed, self.scale = settings, seed, settings.preset
        self.prefix = run_prefix(self.scale, settings.render_seed)
        self.is_small = self.scale == "miniature"
        self.steps: dict[str, Step] = {}
        self.held_out = ("--held_out", HELD_OUT) if self.is_small else ()
        rendering = seed if settings.render_seed is None else settings.render_seed
        self.data_root = miniature_root(rendering) if self.is_small else None
        if self.is_small and self.data_root != config.DATA_ROOT:
            name = run_id(self.scale, rendering, "render")
            arguments = (str(self.data_root), "--seed", str(rendering))
            self.steps[name] = Step(
                name, "miniature", self.scale, rendering, arguments,
                (self.data_root / "miniature.json",), data_root=self.data_root,
            )  # fmt: skip
        self.rendering = tuple(self.steps)

    def add_method(self, method: Method) -> None:
        """All stages of one row."""
        anonymizer = anonymizer_argument(self.prefix, self.seed, method)
        if method.kind == "trained":
            maker = utility = self._train(method, self._usual_arch(method))
        else:
            maker = None
            if method.kind == "reconstruction":
                maker = self._init_anonymizer(method.initialisation)
            utility = self._row_utility(method, anonymizer, maker)
        for attacker in method.attackers_in(self.scale, self.settings.controls):
            words, needs, suffix = ("--anonymizer", anonymizer), [maker], ""
            if attacker.from_raw:  # these may differ from the paper's; the strongest counts
                stretched = () if self.is_small else ("--standardise",)
                of_start = ("--anonymizer", "raw", *self.held_out, *stretched)
                start = self._add("train_privacy", "attacker_start", of_start)
                words += ("--attacker_weights", str(start.outputs[0]), *stretched)
                needs, suffix = [maker, start], "_from_raw" if self.is_small else ""
            self._attack(method, attacker, words, needs, suffix)
        only = method.name in self.settings.ucf_crime_only
        for dataset in self.settings.datasets:
            if dataset == "ucf_crime" or not only:
                self._detect(method, dataset, anonymizer, [maker, utility])

    def add_feature_attack(self, method: Method) -> None:
        """A row of Table 1: what f_T's features of the released images tell of them."""
        arch = rows.FEATURE_UTILITY_IN_MINIATURE if self.is_small else ""
        if method.kind == "trained":
            utility = self._train(method, arch)
            anonymizer = str(utility.outputs[0])
        else:
            anonymizer = method.name
            utility = self._row_utility(method, anonymizer, None, arch)
        words = ("--anonymizer", anonymizer, "--utility", str(utility.outputs[0]))
        self._attack(method, rows.FEATURE_ATTACKER, words, [utility], "")

    def _init_anonymizer(self, suffix: str) -> Step:
        # f_A of a row of its own is another network than the one whose file is given
        words = () if suffix else self._weights(self.settings.anonymizer_weights)
        return self._add("init_anonymizer", f"init_anonymizer{suffix}", words, suffix=suffix)

    def _start_utility(self, arch: str) -> Step:
        """f_T that all rows start from; `arch` if it is not that of the preset."""
        given = self.settings.utility_weights
        # the file is I3D's; torchvision has the weights of the others
        words = self._weights(arch if arch and given not in ("", "none") else given)
        words += ("--ft_arch", arch) if arch else ()
        return self._add("init_utility", f"init_utility_start{arch and '_' + arch}", words)

    def _row_utility(
        self, method: Method, anonymizer: str, maker: Step | None, arch: str = ""
    ) -> Step:
        """f_T of a row that trains no f_A: as many steps and clips as the others' learns."""
        start = self._start_utility(arch)
        words = ("--anonymizer", anonymizer, "--init_weights", str(start.outputs[0]))
        words += ("--ft_arch", arch) if arch else ()
        run = f"init_utility_{method.name}{arch and '_' + arch}"
        return self._add("init_utility", run, words, [maker, start], "_row", method=method.name)

    def _weights(self, given: str) -> Words:
        return ("--init_weights", given) if given and not self.is_small else ()

    def _train(self, method: Method, arch: str) -> Step:
        """The minimax training, with an f_T of another architecture than the preset's if named."""
        suffix = method.preset_suffix
        words = self._weights(self.settings.budget_weights)
        starts = {
            "--init_fa": self._init_anonymizer(method.initialisation),
            "--init_ft": self._start_utility(arch),
            "--init_fb": self._add("init_privacy", "init_privacy", words),
        }
        words = tuple(w for option, s in starts.items() for w in (option, str(s.outputs[0])))
        words += method.miniature_options if self.is_small else ()
        name, needs = method.name, starts.values()
        run = f"anonymizer_{name}" + (f"_{arch}" if arch != self._usual_arch(method) else "")
        return self._add("train_anonymizer", run, words, needs, suffix, method=name)

    def _usual_arch(self, method: Method) -> str:
        """The f_T that a row is defined with; empty: that of init_utility's preset."""
        return method.miniature_utility_arch if self.is_small else method.utility_arch

    def _attack(
        self, method: Method, attacker: Attacker, words: Words, needs: Makers, suffix: str
    ) -> None:
        run = method.name + attacker.suffix
        words = (*words, *attacker.options, *self.held_out)
        self._add(
            "train_privacy", run, words, needs, suffix, method=method.name,
            name=f"privacy_{self._run(run)}",
            outputs=(privacy_result(self.prefix, self.seed, method.name, attacker),),
        )  # fmt: skip

    def _detect(self, method: Method, dataset: str, anonymizer: str, makers: Makers) -> None:
        """Features of a data set, then a detector on them."""
        name, run, of_set = method.name, self._run(method.name), ("--dataset", dataset)
        folder = config.FEATURES_ROOT / dataset / run
        networks = ("--anonymizer", anonymizer, "--utility", str(makers[-1].outputs[0]))
        extraction = self._add(
            "dali_extraction", name, (*of_set, *networks, "--output", str(folder)), makers,
            method=name, name=f"extraction_{dataset}_{run}", features=folder,
            outputs=(folder / "manifest.json",),
        )  # fmt: skip
        of_row = (self.prefix, self.seed, name, dataset)
        incomplete = ("--allow_missing",) if self.settings.allow_missing else ()
        self._add(
            "main", name, (*of_set, "--features", str(folder), *incomplete), [extraction],
            method=name, name=f"anomaly_{dataset}_{run}",
            outputs=(anomaly_result(*of_row), anomaly_scores(*of_row)),
            state=config.SAVED_MODELS_ROOT / run / f"mgfn_{dataset}" / "state.pth",
        )  # fmt: skip

    def _add(
        self, stage: str, run: str, words: Words = (), needs: Makers = (), suffix: str = "",
        **own: Any,
    ) -> Step:  # fmt: skip
        """The step of a run, added unless there; `own`: where it differs from a training."""
        run = self._run(run)
        files = [config.SAVED_MODELS_ROOT / run / file for file in STAGES[stage].files]
        own = {"name": run, "outputs": (files[0],), "state": files[1], **own}
        if own["name"] not in self.steps:
            presets, preset = STAGES[stage].presets, self.scale + suffix
            if preset not in presets:
                known = ", ".join(presets)
                raise UserError(f"{stage}.py has no preset '{preset}'; it has: {known}")
            common = ("--preset", preset, "--run_id", run, "--seed", str(self.seed))
            environment = dict(self.settings.environment)
            if self.data_root:
                environment["TED_SPAD_DATA_ROOT"] = str(self.data_root)
            needs = (*self.rendering, *dict.fromkeys(step.name for step in needs if step))
            self.steps[own["name"]] = Step(
                stage=stage, scale=self.scale, seed=self.seed, needs=needs,
                arguments=(*common, *words, *self.settings.machine_arguments),
                environment=environment, data_root=self.data_root, **own,
            )  # fmt: skip
        return self.steps[own["name"]]

    def _run(self, name: str) -> str:
        return run_id(self.prefix, self.seed, name)
