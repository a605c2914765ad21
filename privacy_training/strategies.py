"""Ways to attack beyond a fresh network on released pictures: they change what it learns from or is
tested on."""

from dataclasses import replace
from typing import Any

from aux_code.runs import Run
from privacy_training.attribute_prediction import Splits
from privacy_training.inversion import invert_splits
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_splits import build_splits


def attack_splits(params: PrivacyParams, run: Run) -> tuple[Splits, dict[str, Any]]:
    """The pictures of the attack that the parameters name, and what else there is to report of it.

    raw_trained learns and chooses its epoch on raw pictures and meets released ones only in the
    test: an opponent who does not adapt. inversion sees what a network recovered from the released
    pictures; it learned that from pairs of raw and released training pictures.
    """
    released = build_splits(params, run)
    if params.attacker not in ("raw_trained", "inversion"):
        return released, {}
    raw = build_splits(replace(params, average_frames=1), run, anonymizer="raw")
    if params.attacker == "raw_trained":
        return Splits(raw.train, raw.validation, released.test), {}
    inverted, quality = invert_splits(released, raw, params, run)
    return inverted, {"inversion": quality}
