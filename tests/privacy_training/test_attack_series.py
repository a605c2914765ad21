"""Several attackers and seeds in one command, the strongest, the table beside the paper's."""

import numpy as np
import pytest

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets.vispr import VISPR1, VISPR2
from aux_code.errors import UserError
from privacy_training import released_splits, train_privacy
from privacy_training.attack_series import PROTOCOLS, attacks_of_series, summarise
from privacy_training.leakage_tables import attacker_table, paper_table
from privacy_training.params_privacy import PRESETS, PrivacyParams

EVERY = dict.fromkeys(VISPR1, 0.25)
CHANCE = {"cmap": 0.25, "f1": 0.25, "f1_always_yes": 0.4, "per_attribute": EVERY}
SMALL = ("--attackers", "small", "--epochs", 1)


def report_of(attacker: str, seed: int, cmap: float, **changes) -> dict:
    """A results file's content; the last epoch is 0.1 worse, the best on test 0.1 better."""
    scores = {"validation": cmap, "last": cmap - 0.1, "best_on_test": cmap + 0.1}
    named = {"per_attribute": dict.fromkeys(VISPR1, cmap) | {VISPR1[4]: None}, "held_out": {}}
    report = {
        "run_id": f"x_{attacker}_s{seed}", "level": "image", "attacker": attacker,
        "anonymizer": "blur", "average_frames": 1, "chance": CHANCE,
        "protocols": {key: {"cmap": v, "f1": v / 2, **named} for key, v in scores.items()},
        "confidence_interval": [cmap - 0.02, cmap + 0.02],
        "plateau": {"gain": 0.0, "reached": True}, "parameters": {"seed": seed},
        "absent_attributes": {"validation": [], "test": [VISPR1[4]]},
        "n_pictures": {"train": 10_000, "validation": 4_000, "test": 8_000},
        "unreadable": {"train": [], "validation": [], "test": []},
    }  # fmt: skip
    return report | changes


def test_mean_deviation_and_strongest():
    cmaps = {"r50": (0.5, 0.6, 0.4), "vit": (0.55, 0.56, 0.57)}
    reports = [report_of(name, i, v) for name, own in cmaps.items() for i, v in enumerate(own)]
    summary = summarise("x", reports, failed={})
    r50 = summary["attackers"]["r50"]
    assert r50["protocols"]["validation"]["cmap"] == pytest.approx({"mean": 0.5, "deviation": 0.1})
    assert r50["protocols"]["last"]["f1"]["mean"] == pytest.approx(0.2)
    assert r50["protocols"]["last"]["per_attribute"][VISPR1[4]] == {"mean": None, "deviation": None}
    assert r50["seeds"] == [0, 1, 2] and len(r50["confidence_intervals"]) == 3
    assert summary["strongest"] == dict.fromkeys(PROTOCOLS, "vit")
    text = attacker_table(summary).markdown()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| vit", "| r50", "| chance"]
    assert "50.00 ± 10.00" in text and "is **vit**" in text and "over 3 seeds" in text
    assert lines[-1].split(" | ")[1] == "25.00" and "| 25.00 (always yes: 40.00) |" in lines[-1]
    assert "Still learning" not in text


def test_one_seed_has_no_deviation_and_an_attacker_short_of_its_plateau_is_named():
    learning = report_of("r50", 0, 0.5, plateau={"gain": 0.04, "reached": False})
    summary = summarise("x", [learning, report_of("small", 0, 0.6)], {"x_vit_s0": "no weights"})
    assert summary["attackers"]["r50"]["protocols"]["last"]["cmap"]["deviation"] is None
    text = attacker_table(summary).markdown()
    assert "±" not in text and "x_vit_s0 failed and is missing here: no weights" in text
    assert "Still learning at the end, so that more epochs may read more: r50 (" in text


def test_table_beside_the_papers_numbers():
    results = [report_of("r50", 0, 0.6), report_of("r50", 0, 0.7, anonymizer="fa.pth")]
    lines = paper_table(results).markdown().splitlines()
    assert "| blur | r50 | 60.00 | 50.00 | 70.00 | 25.00 | 58.68 (-5.8 %) |" in lines
    ends = {"| fa.pth": "| – |", "| TeD-SPAD |": "42.21 (-32.2 %) |"}
    for start, end in ends.items():
        assert next(line for line in lines if line.startswith(start)).endswith(end)
    assert not [line for line in lines if "Not VISPR" in line or "Other attributes" in line]
    two_seeds = paper_table([*results, report_of("r50", 1, 0.5)]).markdown()
    assert "| blur | r50, seed 1 | 50.00 |" in two_seeds
    text = paper_table([report_of("small", 0, 0.6, level="feature", anonymizer="raw")]).markdown()
    assert "Table 1" in text and "| raw | MLP on features |" in text
    assert "63.15" in text and "62.30" not in text


def test_what_keeps_a_number_from_being_compared_is_said():
    notes = {
        "Not VISPR": {"n_pictures": {"train": 600, "validation": 200, "test": 500}},
        "not the paper's r50": {"attacker": "vit"},
        "Other attributes": {"chance": {**CHANCE, "per_attribute": {"a1_age_approx": 0.1}}},
        "1 images do not decode": {"unreadable": {"train": ["a.jpg"], "test": []}},
    }
    for note, change in notes.items():
        assert note in paper_table([report_of("r50", 0, 0.6) | change]).markdown()


@pytest.fixture
def series(run_main):
    """series(option, ...) -> (exit status, summary, Markdown)."""

    def run(*options):
        status = run_main(*options, run_id="series")
        base = config.RESULTS_ROOT / "privacy_series_attackers"
        return status, read_json(base.with_suffix(".json")), base.with_suffix(".md").read_text()

    return run


def test_one_command_runs_every_attacker_with_every_seed(series):
    (default,) = attacks_of_series(PRESETS["paper"], "x")
    assert (default.attacker, default.seed, default.run_id) == ("r50", 0, "x_r50_s0")
    options = ("--attackers", "small", "raw_trained", "--seeds", 0, 1, "--epochs", 1)
    status, summary, text = series(*options)
    assert status == 0 and list(summary["attackers"]) == ["small", "raw_trained"]
    small = summary["attackers"]["small"]
    assert small["runs"] == ["series_small_s0", "series_small_s1"]
    files = [config.RESULTS_ROOT / f"privacy_{name}.json" for name in small["runs"]]
    values = [read_json(file)["protocols"]["last"]["cmap"] for file in files]
    assert values[0] != values[1]
    expected = {"mean": np.mean(values), "deviation": np.std(values, ddof=1)}
    assert small["protocols"]["last"]["cmap"] == pytest.approx(expected)
    assert "Not VISPR" in text and "48 training and 32 test images" in text


def test_an_attacker_that_cannot_run_is_named_and_the_others_count(series):
    status, summary, text = series("--attackers", "small", "linear_probe", "--epochs", 1)
    assert status == 3 and summary["strongest"]["validation"] == "small"
    assert "--probe_weights" in summary["failed"]["series_linear_probe_s0"]
    assert "linear_probe" in text


def test_resume_keeps_what_is_finished(series, refused, monkeypatch):
    _, first, _ = series(*SMALL, "--seeds", 0, 1)
    attacked = []
    run_attack = train_privacy.run_attack

    def noting(attack, *rest):
        attacked.append(attack.params.seed)
        run_attack(attack, *rest)

    monkeypatch.setattr(train_privacy, "run_attack", noting)
    _, again, _ = series(*SMALL, "--seeds", 0, 1, "--resume")
    assert not attacked and again == first
    series(*SMALL, "--seeds", 0, 1, 2, "--resume")
    assert attacked == [2]
    other = (*SMALL, "--seeds", 0, "--epochs", 2, "--resume")
    refused("series_small_s0.*epochs: 1, now 2", *other, run_id="series")
    assert attacked == [2], "another number of epochs is another attack"


def test_attribute_sets_by_name(monkeypatch):
    def names(*attributes):
        return released_splits.attribute_names(PrivacyParams(attributes=attributes))

    assert names() == names("vispr1") == VISPR1
    assert names("a73_landmark", "vispr1") == ("a73_landmark", *VISPR1)
    assert names("vispr2") == VISPR2 and not set(VISPR1) & set(VISPR2)
    # papers abbreviate this one
    assert names("a65_rel_soci", "vispr1") == ("a65_rel_social", *VISPR1[:-1])
    with pytest.raises(UserError, match="vispr3.*vispr1, vispr2 and all"):
        names("a4_gender", "vispr3")
    found = {"a10_face_partial", "a9_face_complete", "a73_landmark"}
    monkeypatch.setattr(released_splits, "annotated_attributes", lambda root, splits: found)
    assert names("all") == ("a9_face_complete", "a10_face_partial", "a73_landmark")
