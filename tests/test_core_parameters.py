"""Command lines from dataclasses, and the ranges of every stage's values."""

import re
import sys
from dataclasses import FrozenInstanceError, dataclass

import pytest

from aux_code.errors import UserError
from aux_code.parameters import CommonParams, check_ranges, parse
from tests.frozen import write as frozen


@dataclass(frozen=True, kw_only=True)
class Params(CommonParams):
    epochs: int = 10
    learning_rate: float = 0.1
    widths: tuple[int, ...] = (4, 4)

    def __post_init__(self) -> None:
        limits = {"at_most": {"epochs": 10}, "above": {"learning_rate": 0}}
        check_ranges(
            self, at_least={"epochs": 1, "widths": 1}, below={"learning_rate": 1}, **limits
        )


PRESETS = {"paper": Params(), "miniature": Params(epochs=2, learning_rate=0.5)}
SHORT = Params(preset="miniature", epochs=3, learning_rate=0.5)


@pytest.mark.parametrize("words, expected", [
    ("", Params(preset="paper")), ("--preset miniature --epochs 3", SHORT),
    ("--epochs=3 --preset=miniature", SHORT),
    ("--resume --device cpu --seed 4 --run_id x --n_threads 1",
     Params(preset="paper", resume=True, device="cpu", seed=4, run_id="x", n_threads=1)),
])  # fmt: skip
def test_options_replace_values_of_the_first_or_the_named_preset(words: str, expected: Params):
    params = parse(PRESETS, words.split())
    assert params == expected
    with pytest.raises(FrozenInstanceError):
        params.seed = 5


@pytest.mark.parametrize("words, named", [
    ("--preset huge", "huge paper miniature"), ("--epoch 3", "--epoch --epochs"),
    ("--epochs many", "--epochs many"), ("--device tpu", "cpu cuda"),
    ("stray", "stray"), ("--preset", "--preset"),
])  # fmt: skip
def test_mistakes_end_with_status_2_and_say_what_exists(words: str, named: str, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, words.split())
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert all(word in captured.out + captured.err for word in named.split()), captured


def test_help_shows_presets_and_the_values_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, ["--preset", "miniature", "--help"], "Trains something.")
    text = capsys.readouterr().out
    assert not caught.value.code
    expected = ("Trains something.", "paper, miniature", "--learning_rate", "0.5")
    assert all(words in text for words in expected)


def test_a_value_out_of_its_range_is_refused_by_name_with_the_bound():
    assert parse(PRESETS, ["--epochs", "10", "--learning_rate", "0.99"]).epochs == 10
    for words, allowed in [
        ("--epochs 0", "at least 1"), ("--epochs 11", "at most 10"), ("--widths 4 0", "at least 1"),
        ("--learning_rate 0", "above 0"), ("--learning_rate 1", "below 1"),
        ("--learning_rate nan", "above 0"),
    ]:  # fmt: skip
        option, value = words.split(maxsplit=1)
        with pytest.raises(UserError, match=f"{option} must be {allowed}, not {value}"):
            parse(PRESETS, words.split())
    for option, *values in (
        ("--learning_rate", "nan", "inf"), ("--n_threads", "-1"),
        ("--run_id", "../elsewhere", "..", "a/b"),
    ):  # fmt: skip
        for value in values:
            with pytest.raises(UserError, match=option):
                parse(PRESETS, [option, value])


IMPOSSIBLE = {
    "anonymization_training/init_anonymizer.py": "--frames_per_video 0, --n_workers -1",
    "anonymization_training/train_anonymizer.py": "--validate_every 0, --omega nan",
    "privacy_training/train_privacy.py":
        "--n_workers 0, --average_frames -1, --image_learning_rate -1, --mlp_widths 0",
    "feature_extraction/dali_extraction.py": "--batch_size 0, --size -8, --min_decoded_share 1.5",
    "anomaly_detection_mgfn/main.py":
        "--epochs 0, --dims 0 0 0, --top_k 100, --lr 0, --candidate_dropout 1, "
        "--threshold nan --score x",
    "reproduce.py": "--jobs -1, --seeds -1",
    "visualization/anonymize_video.py": "in.avi out.mp4 --fps 0",
    "visualization/plot_scores.py": "Fight results.json --fps 0",
}  # fmt: skip


@pytest.mark.parametrize("script", IMPOSSIBLE)
def test_impossible_values_are_refused_by_name_before_any_reading(script: str, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    presets = vars(frozen.module_of(script))[frozen.PRESETS[script]]
    for words in IMPOSSIBLE[script].split(", "):
        with pytest.raises(UserError, match=re.search(r"--\w+", words)[0]):
            parse(presets, words.split())
