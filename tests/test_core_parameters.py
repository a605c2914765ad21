"""Command lines from dataclasses."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from aux_code.errors import UserError
from aux_code.parameters import CommonParams, check_ranges, parse


@dataclass(frozen=True, kw_only=True)
class Params(CommonParams):
    epochs: int = 10
    learning_rate: float = 0.1


PRESETS = {"paper": Params(), "miniature": Params(epochs=2, learning_rate=0.5)}


SHORT = Params(preset="miniature", epochs=3, learning_rate=0.5)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", Params(preset="paper")), ("--preset miniature --epochs 3", SHORT),
        ("--epochs=3 --preset=miniature", SHORT),
        (
            "--resume --device cpu --seed 4 --run_id x --n_threads 1",
            Params(preset="paper", resume=True, device="cpu", seed=4, run_id="x", n_threads=1),
        ),
    ],
)  # fmt: skip
def test_options_replace_values_of_the_first_or_the_named_preset(words: str, expected: Params):
    params = parse(PRESETS, words.split())
    assert params == expected
    with pytest.raises(FrozenInstanceError):
        params.seed = 5


@pytest.mark.parametrize(
    "words, named",
    [
        ("--preset huge", "huge paper miniature"), ("--epoch 3", "--epoch --epochs"),
        ("--epochs many", "--epochs many"), ("--device tpu", "cpu cuda"),
        ("stray", "stray"), ("--preset", "--preset"),
    ],
)  # fmt: skip
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


@dataclass(frozen=True, kw_only=True)
class BoundedParams(CommonParams):
    epochs: int = 1
    rate: float = 0.1
    widths: tuple[int, ...] = (4, 4)

    def __post_init__(self) -> None:
        bounds = {"at_most": {"epochs": 9}, "below": {"rate": 1}}
        check_ranges(self, at_least={"epochs": 1, "widths": 1}, above={"rate": 0}, **bounds)


def test_a_value_out_of_its_range_is_refused_by_name_with_the_bound():
    presets = {"paper": BoundedParams()}
    assert parse(presets, ["--epochs", "9", "--rate", "0.99"]).epochs == 9
    for words, allowed in [
        ("--epochs 0", "at least 1"), ("--epochs 10", "at most 9"), ("--rate 0", "above 0"),
        ("--rate 1", "below 1"), ("--rate nan", "above 0"), ("--widths 4 0", "at least 1"),
    ]:  # fmt: skip
        option, value = words.split(maxsplit=1)
        with pytest.raises(UserError, match=f"{option} must be {allowed}, not {value}"):
            parse(presets, words.split())
    for words in (
        "--rate nan", "--rate inf", "--n_threads -1", "--run_id ../elsewhere", "--run_id ..",
        "--run_id a/b",
    ):  # fmt: skip
        with pytest.raises(UserError, match=words.split()[0]):
            parse(presets, words.split())
