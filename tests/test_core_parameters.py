"""Command lines from dataclasses."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from aux_code.parameters import CommonParams, parse


@dataclass(frozen=True, kw_only=True)
class Params(CommonParams):
    """A stage's parameters."""

    epochs: int = 10
    """Passes."""
    learning_rate: float = 0.1
    """Adam."""


PRESETS = {"paper": Params(), "miniature": Params(epochs=2, learning_rate=0.5)}


def test_the_first_preset_is_the_default():
    assert parse(PRESETS, []) == Params(preset="paper")


@pytest.mark.parametrize("argv", [["--preset", "miniature", "--epochs", "3"], ["--epochs=3", "--preset=miniature"]])
def test_options_replace_values_of_the_preset_wherever_they_stand(argv: list[str]):
    assert parse(PRESETS, argv) == Params(preset="miniature", epochs=3, learning_rate=0.5)


def test_flags_and_common_options():
    params = parse(PRESETS, ["--resume", "--device", "cpu", "--seed", "4", "--run_id", "x", "--n_threads", "1"])
    assert (params.resume, params.device, params.seed, params.run_id, params.n_threads) == (True, "cpu", 4, "x", 1)
    with pytest.raises(FrozenInstanceError):
        params.seed = 5


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--preset", "huge"], ["huge", "paper", "miniature"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--device", "tpu"], ["cpu", "cuda"]),
        (["stray"], ["stray"]),
        (["--preset"], ["--preset"]),
    ],
)
def test_mistakes_end_with_status_2_and_say_what_exists(argv: list[str], named: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert all(word in captured.out + captured.err for word in named), captured


def test_help_shows_presets_and_the_values_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, ["--preset", "miniature", "--help"], "Trains something.")
    text = capsys.readouterr().out
    assert not caught.value.code
    assert "Trains something." in text and "paper, miniature" in text and "--learning_rate" in text and "0.5" in text
