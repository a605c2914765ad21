"""What decides the outcome of an attack: the files that it reads, and its fingerprint, which
--resume compares."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aux_code import config
from aux_code.artefacts import describe_inputs
from aux_code.models.person_boxes import find_boxes_file
from privacy_training.attackers import network_name, starting_weights
from privacy_training.params_privacy import PrivacyParams

_WITHOUT_EFFECT = {"resume", "device", "n_threads", "n_workers", "run_id", "minutes_between_saves"}
_WITHOUT_EFFECT |= {"attackers", "seeds", "probe_weights", "imagenet_weights", "compare", "plots"}
"""Parameters that change nothing about one attack, or stand among its inputs."""


def input_files(params: PrivacyParams) -> dict[str, Path | str]:
    """Role -> file (or the name of an anonymizer) of what this attack reads besides VISPR
    itself."""
    files = {"fa": params.anonymizer, "ft": params.utility, "attacker": starting_weights(params)}
    if network_name(params) == "r50_imagenet":
        files["imagenet"] = params.imagenet_weights
    if params.anonymizer in ("blur", "blacken"):
        files["boxes"] = find_boxes_file(params.boxes, params.detector_weights, config.VISPR_ROOT)
        files["detector"] = params.detector_weights
    return {role: path for role, path in files.items() if path is not None}


def fingerprint(params: PrivacyParams) -> dict[str, Any]:
    """What must not change between an interrupted and a resumed run: parameters and the content of
    the inputs.

    Returns:
        plain values, as a JSON file gives them back.
    """
    deciding = {
        name: value for name, value in asdict(params).items() if name not in _WITHOUT_EFFECT
    }
    return json.loads(
        json.dumps({**deciding, "inputs": describe_inputs(input_files(params))}, default=str)
    )
