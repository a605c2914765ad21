"""Methods and seeds -> the list of tasks: which scripts run with which options, and what each waits
for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from reproduction.methods import (
    DATASETS,
    FEATURE_ATTACKER,
    FEATURE_UTILITY_IN_MINIATURE,
    METHODS,
    Attacker,
    Method,
)
from reproduction.tasks import Task

ParametersOf = Callable[[str, str], dict[str, Any]]
"""(script, preset) -> the preset's resolved parameters; raises UserError for a preset that the
script does not have."""

STAGE_1 = "anonymization_training/"
STAGE_2 = "privacy_training/train_privacy.py"
RENDER = "-m aux_code.miniature"

_DATA_OF_STAGE = {
    "init_anonymizer": ("ucf101", "vispr"),
    "init_utility": ("ucf101",),
    "init_privacy": ("vispr",),
    "train_anonymizer": ("ucf101", "vispr"),
    "train_privacy": ("vispr",),
}
"""The data sets that a stage reads; the others read the one that --dataset names."""


@dataclass(frozen=True)
class PlanSettings:
    """What decides the plan besides methods and seeds."""

    preset: str
    """paper or miniature."""
    datasets: tuple[str, ...] = DATASETS
    """Surveillance sets of the table."""
    machine_arguments: tuple[str, ...] = ()
    """Passed to every script: device and threads."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every task."""
    utility_weights: str = ""
    """File of weights from which init_utility starts (the paper: Kinetics-400); empty: random."""
    ucf_crime_only: frozenset[str] = frozenset()
    """Methods that only ablation tables show, and the miniature's controls: these report UCF-Crime
    alone."""
    feature_level: tuple[str, ...] = ()
    """Methods whose f_T features are attacked too (Table 1)."""


def build_plan(
    methods: Iterable[str],
    seeds: Iterable[int],
    settings: PlanSettings,
    parameters_of: ParametersOf,
) -> list[Task]:
    """Every task of the methods and seeds, each after those it needs.

    Raises:
        UserError: unknown method, or a preset that a script does not have.
    """
    names = list(dict.fromkeys(methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UserError(
            f"--methods {' '.join(unknown)}: unknown; the methods are: {', '.join(METHODS)}"
        )
    tasks: list[Task] = []
    for seed in dict.fromkeys(seeds):
        builder = _SeedPlan(settings, seed, parameters_of)
        for name in names:
            builder.add_method(METHODS[name])
        for name in settings.feature_level:
            builder.add_feature_attack(METHODS[name])
        tasks += builder.tasks.values()
    return tasks


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
    if method.kind == "reconstruction":
        return str(
            config.SAVED_MODELS_ROOT / run_id(preset, seed, "init_anonymizer") / "fa_recon.pth"
        )
    return str(
        config.SAVED_MODELS_ROOT / run_id(preset, seed, f"anonymizer_{method.name}") / "last.pth"
    )


def data_roots(script: str, arguments: tuple[str, ...]) -> tuple[Path, ...]:
    """Folders of the data sets that a command line reads, as config.py has them."""
    names = _DATA_OF_STAGE.get(Path(script).stem) or (arguments[arguments.index("--dataset") + 1],)
    return tuple(getattr(config, f"{name.upper()}_ROOT") for name in names)


def _training_run(method: Method, arch: str) -> str:
    """Name of the minimax training of a row; `arch` if its f_T is not the one that the row is
    defined with."""
    return f"anonymizer_{method.name}" + (f"_{arch}" if arch else "")


def training_log(preset: str, seed: int, method: Method) -> Path:
    """Where the minimax training of a row writes for TensorBoard."""
    return config.LOGS_ROOT / run_id(preset, seed, f"anonymizer_{method.name}")


def miniature_root(seed: int) -> Path:
    """Where the embedded benchmark of a seed lies: the user's data folder if it holds one, else
    below ARTIFACT_ROOT."""
    return (
        config.DATA_ROOT
        if _holds_rendering(seed)
        else config.ARTIFACT_ROOT / "miniature_data" / f"seed_{seed}"
    )


def _holds_rendering(seed: int) -> bool:
    manifest = config.DATA_ROOT / "miniature.json"
    return manifest.is_file() and read_json(manifest).get("seed") == seed


@dataclass(frozen=True)
class _Step:
    """What a task needs to be told beyond what all tasks of a seed share."""

    script: str
    run: str
    """Name of the run within preset and seed."""
    method: str
    outputs: tuple[Path, ...]
    arguments: tuple[str, ...] = ()
    reads: tuple[tuple[Path | str, str], ...] = ()
    """(file, task that makes it) pairs. What no task makes has an empty one: a user's file as a
    path, whose content counts, or a name such as raw as text."""
    preset_suffix: str = ""
    task_prefix: str = ""
    """Tells tasks of the same run apart."""
    own_folder: Path | None = None
    """As in Task."""


class _SeedPlan:
    """Collects the tasks of one seed; what several methods share is added once."""

    def __init__(self, settings: PlanSettings, seed: int, parameters_of: ParametersOf):
        self.settings, self.seed, self.parameters_of = settings, seed, parameters_of
        self.tasks: dict[str, Task] = {}
        self.data: tuple[Path, str] | None = None
        if settings.preset == "miniature":
            self._add_rendering()

    def add_method(self, method: Method) -> None:
        """All stages of one row."""
        anonymizer = anonymizer_argument(self.settings.preset, self.seed, method)
        if method.kind == "trained":
            maker = self._train(method, method.utility_arch_in(self.settings.preset))
            utility = (anonymizer, maker)
        else:
            maker = self._init_anonymizer("") if method.kind == "reconstruction" else ""
            utility = self._init_utility(method.name, (anonymizer, maker))
        for attacker in method.attackers:
            self._privacy(method, (anonymizer, maker), attacker)
        only = method.name in self.settings.ucf_crime_only
        for dataset in self.settings.datasets:
            if dataset == "ucf_crime" or not only:
                self._anomaly(method, dataset, (anonymizer, maker), utility)

    def add_feature_attack(self, method: Method) -> None:
        """A row of Table 1: what f_T's features of the released pictures tell of them."""
        preset = self.settings.preset
        arch = FEATURE_UTILITY_IN_MINIATURE if preset == "miniature" else ""
        if method.kind == "trained":
            maker = self._train(method, arch)
            anonymizer = utility = (
                str(self._folder(_training_run(method, arch)) / "last.pth"),
                maker,
            )
        else:
            anonymizer = (method.name, "")
            utility = self._init_utility(method.name, anonymizer, arch)
        result = privacy_result(preset, self.seed, method.name, FEATURE_ATTACKER)
        arguments = (
            "--anonymizer",
            anonymizer[0],
            "--utility",
            str(utility[0]),
            *FEATURE_ATTACKER.options,
        )
        run = method.name + FEATURE_ATTACKER.suffix
        self._add(
            _Step(
                STAGE_2,
                run,
                method.name,
                (result,),
                arguments,
                (anonymizer, utility),
                task_prefix="privacy_",
            )
        )

    def _add_rendering(self) -> None:
        root = miniature_root(self.seed)
        name = self._run("render")
        if _holds_rendering(self.seed):
            self.data = (root / "miniature.json", "")
            return
        self.data = (root / "miniature.json", name)
        arguments = (str(root), "--seed", str(self.seed))
        self.tasks[name] = Task(
            name, RENDER, "shared", self.seed, arguments, outputs=(self.data[0],)
        )

    def _init_anonymizer(self, suffix: str) -> str:
        run = f"init_anonymizer{suffix}"
        output = self._folder(run) / "fa_recon.pth"
        return self._add(
            _Step(STAGE_1 + "init_anonymizer.py", run, "shared", (output,), preset_suffix=suffix)
        )

    def _init_utility(
        self, method_name: str, anonymizer: tuple[str, str], arch: str = ""
    ) -> tuple[Path, str]:
        run = f"init_utility_{method_name}" + (f"_{arch}" if arch else "")
        output = self._folder(run) / "ft_action.pth"
        weights = self.settings.utility_weights
        arguments = ("--anonymizer", anonymizer[0], *(("--ft_arch", arch) if arch else ()))
        if weights:  # the file is I3D's; torchvision has the weights of the others
            arguments += ("--init_weights", "kinetics400" if arch else weights)
        given = ((Path(weights), ""),) if weights and not arch else ()
        step = _Step(
            STAGE_1 + "init_utility.py",
            run,
            method_name,
            (output,),
            arguments,
            (anonymizer, *given),
        )
        return output, self._add(step)

    def _init_privacy(self) -> tuple[Path, str]:
        output = self._folder("init_privacy") / "fb_ssl.pth"
        return output, self._add(
            _Step(STAGE_1 + "init_privacy.py", "init_privacy", "shared", (output,))
        )

    def _train(self, method: Method, arch: str = "") -> str:
        """The minimax training, with an f_T of another architecture than init_utility's preset has
        if one is named."""
        suffix = method.preset_suffix if method.own_initialisation else ""
        fa = (
            self._folder(f"init_anonymizer{suffix}") / "fa_recon.pth",
            self._init_anonymizer(suffix),
        )
        ft, fb = self._init_utility("raw", ("raw", ""), arch), self._init_privacy()
        parts = {"--init_fa": fa, "--init_ft": ft, "--init_fb": fb}
        files = tuple(word for option, (path, _) in parts.items() for word in (option, str(path)))
        run = _training_run(
            method, "" if arch == method.utility_arch_in(self.settings.preset) else arch
        )
        output = self._folder(run) / "last.pth"
        step = _Step(
            STAGE_1 + "train_anonymizer.py", run, method.name, (output,),
            files + method.options_in(self.settings.preset), tuple(parts.values()), method.preset_suffix,
        )  # fmt: skip
        return self._add(step)

    def _privacy(self, method: Method, anonymizer: tuple[str, str], attacker: Attacker) -> None:
        result = privacy_result(self.settings.preset, self.seed, method.name, attacker)
        arguments = ("--anonymizer", anonymizer[0], *attacker.options)
        reads, suffix = (anonymizer,), ""
        if self.settings.preset == "miniature":
            start = self._attacker_start()
            arguments += ("--attacker_weights", str(start[0]))
            reads, suffix = (*reads, start), "_from_raw"
        run = method.name + attacker.suffix
        self._add(
            _Step(
                STAGE_2, run, method.name, (result,), arguments, reads, preset_suffix=suffix, task_prefix="privacy_"
            )
        )  # fmt: skip

    def _attacker_start(self) -> tuple[Path, str]:
        """An attacker that knows raw pictures; the miniature's attackers of all methods start from
        it."""
        run = "attacker_start"
        output = self._folder(run) / "attacker.pth"
        return output, self._add(_Step(STAGE_2, run, "shared", (output,), ("--anonymizer", "raw")))

    def _anomaly(
        self,
        method: Method,
        dataset: str,
        anonymizer: tuple[str, str],
        utility: tuple[Path | str, str],
    ) -> None:
        preset, seed, name = self.settings.preset, self.seed, method.name
        features = config.FEATURES_ROOT / dataset / self._run(name)
        manifest = features / "manifest.json"
        arguments = (
            "--dataset",
            dataset,
            "--anonymizer",
            anonymizer[0],
            "--utility",
            str(utility[0]),
        )
        extraction = self._add(
            _Step(
                "feature_extraction/dali_extraction.py", name, name, (manifest,),
                (*arguments, "--output", str(features)), (anonymizer, utility), task_prefix=f"extraction_{dataset}_",
                own_folder=features,
            )
        )  # fmt: skip
        results = (
            anomaly_result(preset, seed, name, dataset),
            anomaly_scores(preset, seed, name, dataset),
        )
        self._add(
            _Step(
                "anomaly_detection_mgfn/main.py", name, name, results,
                ("--dataset", dataset, "--features", str(features)), ((manifest, extraction),),
                task_prefix=f"anomaly_{dataset}_",
            )
        )  # fmt: skip

    def _add(self, step: _Step) -> str:
        """Adds the task of a step unless it is there; returns its name."""
        name = step.task_prefix + self._run(step.run)
        if name in self.tasks:
            return name
        preset = self.settings.preset + step.preset_suffix
        reads = [
            (Path(path), maker) for path, maker in step.reads if maker or isinstance(path, Path)
        ]
        environment = dict(self.settings.environment)
        if self.data:
            reads.insert(0, self.data)
            environment["TED_SPAD_DATA_ROOT"] = str(self.data[0].parent)
        self.tasks[name] = Task(
            name, step.script, step.method, self.seed,
            ("--preset", preset, "--run_id", self._run(step.run), "--seed", str(self.seed), *step.arguments),
            outputs=step.outputs,
            inputs=tuple(dict.fromkeys(path for path, _ in reads)),
            data=() if self.data else data_roots(step.script, step.arguments),  # a rendering's record is an input
            needs=tuple(dict.fromkeys(maker for _, maker in reads if maker)),
            machine_arguments=self.settings.machine_arguments,
            environment=environment,
            own_folder=step.own_folder,
            parameters=self.parameters_of(step.script, preset),
        )  # fmt: skip
        return name

    def _run(self, name: str) -> str:
        return run_id(self.settings.preset, self.seed, name)

    def _folder(self, name: str) -> Path:
        return config.SAVED_MODELS_ROOT / self._run(name)
