"""Several attackers and seeds in one command, the strongest of them, and the table beside the
paper's numbers."""

import json

import numpy as np
import pytest

from aux_code import config
from aux_code.datasets.vispr import VISPR1, VISPR2
from aux_code.errors import UserError
from privacy_training import train_privacy
from privacy_training.attack_series import attacks_of_series, summarise
from privacy_training.leakage_tables import attacker_table, paper_table
from privacy_training.params_privacy import PRESETS
from privacy_training.released_splits import attribute_names

CHANCE = {
    "cmap": 0.25,
    "f1": 0.25,
    "f1_always_yes": 0.4,
    "per_attribute": dict.fromkeys(VISPR1, 0.25),
}


def report_of(attacker: str, seed: int, cmap: float, **changes) -> dict:
    """A results file's content; the last epoch is 0.1 worse and the best on test 0.1 better than by
    validation."""
    scores = {"validation": cmap, "last": cmap - 0.1, "best_on_test": cmap + 0.1}
    attributes = dict.fromkeys(VISPR1, cmap) | {VISPR1[4]: None}
    return {
        "run_id": f"x_{attacker}_s{seed}",
        "level": "image",
        "attacker": attacker,
        "anonymizer": "blur",
        "average_frames": 1,
        "protocols": {
            k: {"cmap": v, "f1": v / 2, "per_attribute": attributes} for k, v in scores.items()
        },
        "chance": CHANCE,
        "confidence_interval": [cmap - 0.02, cmap + 0.02],
        "plateau": {"gain": 0.0, "reached": True},
        "absent_attributes": {"validation": [], "test": [VISPR1[4]]},
        "n_pictures": {"train": 10_000, "validation": 4_000, "test": 8_000},
        "unreadable": {"train": [], "validation": [], "test": []},
        "parameters": {"seed": seed},
        **changes,
    }


def test_mean_deviation_and_strongest():
    reports = [report_of("r50", seed, cmap) for seed, cmap in enumerate((0.5, 0.6, 0.4))]
    reports += [report_of("vit", seed, cmap) for seed, cmap in enumerate((0.55, 0.56, 0.57))]
    summary = summarise("x", reports, failed={})
    r50 = summary["attackers"]["r50"]
    assert r50["protocols"]["validation"]["cmap"] == pytest.approx({"mean": 0.5, "deviation": 0.1})
    assert r50["protocols"]["last"]["f1"]["mean"] == pytest.approx(0.2)
    assert r50["protocols"]["last"]["per_attribute"][VISPR1[4]] == {"mean": None, "deviation": None}
    assert r50["seeds"] == [0, 1, 2] and len(r50["confidence_intervals"]) == 3
    assert summary["strongest"] == dict.fromkeys(("validation", "last", "best_on_test"), "vit")
    text = attacker_table(summary).markdown()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| vit", "| r50", "| chance"]
    assert "50.00 ± 10.00" in text and "is **vit**" in text and "over 3 seeds" in text
    assert lines[-1].split(" | ")[1] == "25.00" and "| 25.00 (always yes: 40.00) |" in lines[-1], (
        "beside every number"
    )
    assert "Still learning" not in text


def test_an_attacker_short_of_its_plateau_is_named():
    learning = report_of("vit", 1, 0.5, plateau={"gain": 0.04, "reached": False})
    summary = summarise(
        "x", [report_of("r50", 0, 0.6), report_of("vit", 0, 0.5), learning], failed={}
    )
    assert [plateau["reached"] for plateau in summary["attackers"]["vit"]["plateau"]] == [
        True,
        False,
    ]
    assert (
        "Still learning at the end, so that more epochs may read more: vit ("
        in attacker_table(summary).markdown()
    )


def test_one_seed_has_no_deviation():
    summary = summarise("x", [report_of("r50", 0, 0.5)], failed={"x_vit_s0": "no weights"})
    assert summary["attackers"]["r50"]["protocols"]["last"]["cmap"]["deviation"] is None
    text = attacker_table(summary).markdown()
    assert "±" not in text and "x_vit_s0 failed and is missing here: no weights" in text


def test_table_beside_the_papers_numbers():
    results = [report_of("r50", 0, 0.6), report_of("r50", 0, 0.7, anonymizer="fa.pth")]
    text = paper_table(results).markdown()
    assert (
        "| blur | r50, seed 1 | 50.00 |"
        in paper_table([*results, report_of("r50", 1, 0.5)]).markdown()
    )
    blur = next(line for line in text.splitlines() if line.startswith("| blur"))
    assert blur == "| blur | r50 | 60.00 | 50.00 | 70.00 | 25.00 | 58.68 (-5.8 %) |"
    assert next(line for line in text.splitlines() if line.startswith("| fa.pth")).endswith("| – |")
    assert any(
        line.startswith("| TeD-SPAD |") and line.endswith("42.21 (-32.2 %) |")
        for line in text.splitlines()
    )
    assert "Not VISPR" not in text and "Other attributes" not in text


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"n_pictures": {"train": 600, "validation": 200, "test": 500}}, "Not VISPR"),
        ({"attacker": "vit"}, "not the paper's r50"),
        (
            {"chance": {"cmap": 0.1, "f1": 0.2, "per_attribute": {"a1_age_approx": 0.1}}},
            "Other attributes",
        ),
        (
            {"unreadable": {"train": ["a.jpg"], "validation": [], "test": []}},
            "1 pictures do not decode",
        ),
    ],
)
def test_what_keeps_a_number_from_being_compared_is_said(changes, note):
    assert note in paper_table([{**report_of("r50", 0, 0.6), **changes}]).markdown()


def test_feature_level_stands_beside_table_1():
    text = paper_table([report_of("small", 0, 0.6, level="feature", anonymizer="raw")]).markdown()
    assert (
        "Table 1" in text
        and "| raw | MLP on features |" in text
        and "63.15" in text
        and "62.30" not in text
    )


def run_series(run_stage, *options) -> tuple[int, dict, str]:
    """Exit status, summary and Markdown of a series on the tiny set."""
    run_stage(*options, run_id="series")  # its own check reads a single result
    base = config.RESULTS_ROOT / "privacy_series_attackers"
    return json.loads(base.with_suffix(".json").read_text()), base.with_suffix(".md").read_text()


@pytest.fixture
def series(vispr_root, run_stage, monkeypatch):
    """series(option, ...) -> (exit status, summary, Markdown); the stage's main returns its
    status."""
    statuses = []
    main = train_privacy.main

    def keep_status():
        statuses.append(main())
        single = config.RESULTS_ROOT / "privacy_series.json"
        single.write_text("{}")  # what run_stage reads; a series writes no result of that name
        return statuses[-1]

    monkeypatch.setattr(train_privacy, "main", keep_status)

    def run(*options):
        summary, text = run_series(run_stage, *options)
        return statuses[-1], summary, text

    return run


def test_one_command_runs_every_attacker_with_every_seed(series):
    status, summary, text = series(
        "--attackers", "small", "raw_trained", "--seeds", 0, 1, "--epochs", 1
    )
    assert status == 0
    assert list(summary["attackers"]) == ["small", "raw_trained"]
    names = ["series_small_s0", "series_small_s1"]
    assert summary["attackers"]["small"]["runs"] == names
    values = [
        json.loads((config.RESULTS_ROOT / f"privacy_{name}.json").read_text())["protocols"]["last"][
            "cmap"
        ]
        for name in names
    ]
    assert values[0] != values[1]
    spread = summary["attackers"]["small"]["protocols"]["last"]["cmap"]
    assert spread == pytest.approx({"mean": np.mean(values), "deviation": np.std(values, ddof=1)})
    assert "Not VISPR" in text and "48 training and 32 test pictures" in text


def test_an_attacker_that_cannot_run_is_named_and_the_others_count(series):
    status, summary, text = series("--attackers", "small", "linear_probe", "--epochs", 1)
    assert status == 3
    assert summary["strongest"]["validation"] == "small"
    assert (
        "--probe_weights" in summary["failed"]["series_linear_probe_s0"] and "linear_probe" in text
    )


def test_a_wrong_input_ends_the_series(series):
    with pytest.raises(UserError, match="neither a file nor one of"):
        series("--attackers", "small", "small_vit", "--anonymizer", "nowhere.pth")


def test_resume_keeps_what_is_finished(series, monkeypatch):
    options = ("--attackers", "small", "--seeds", 0, 1, "--epochs", 1)
    _, first, _ = series(*options)
    attacked = []
    run_attack = train_privacy.run_attack
    monkeypatch.setattr(
        train_privacy,
        "run_attack",
        lambda attack, *rest: attacked.append(attack) or run_attack(attack, *rest),
    )
    _, again, _ = series(*options, "--resume")
    assert not attacked and again == first
    series("--attackers", "small", "--seeds", 0, 1, 2, "--epochs", 1, "--resume")
    assert [attack.params.seed for attack in attacked] == [2]
    series("--attackers", "small", "--seeds", 0, "--epochs", 2, "--resume")
    assert len(attacked) == 2, "another number of epochs is another attack"


def test_names_and_seeds_of_a_series():
    params = attacks_of_series(PRESETS["paper"], "x")
    assert [(p.attacker, p.seed, p.run_id) for p in params] == [("r50", 0, "x_r50_s0")]


def test_attribute_sets_by_name(monkeypatch):
    def names(*attributes):
        return attribute_names(PRESETS["paper"].__class__(attributes=attributes))

    assert names() == names("vispr1") == VISPR1
    assert names("a73_landmark", "vispr1") == ("a73_landmark", *VISPR1)
    assert names("vispr2") == VISPR2 and not set(VISPR1) & set(VISPR2)
    assert names("a65_rel_soci", "vispr1") == ("a65_rel_social", *VISPR1[:-1]), (
        "papers abbreviate it"
    )
    with pytest.raises(UserError, match="vispr3.*vispr1, vispr2 and all"):
        names("a4_gender", "vispr3")
    found = {"a10_face_partial", "a9_face_complete", "a73_landmark"}
    monkeypatch.setattr(
        "privacy_training.released_splits.annotated_attributes", lambda root, splits: found
    )
    assert names("all") == ("a9_face_complete", "a10_face_partial", "a73_landmark")


@pytest.mark.parametrize(
    "options", [("--seeds", 1, 1), ("--attackers", "small", "small"), ("--attributes", "a", "a")]
)
def test_twice_the_same_is_refused(run_stage, options):
    with pytest.raises(UserError, match="once"):
        run_stage(*options)


@pytest.mark.parametrize("attacker", ["vit", "linear_probe"])
def test_attackers_of_pictures_are_refused_at_feature_level(run_stage, tmp_path, attacker):
    with pytest.raises(UserError, match="works on pictures"):
        run_stage("--level", "feature", "--utility", tmp_path / "ft.pth", "--attackers", attacker)


def test_compare_with_a_file_that_is_no_result(run_stage, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="other.json is no result"):
        run_stage("--compare", tmp_path / "other.json")
