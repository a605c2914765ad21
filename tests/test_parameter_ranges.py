"""Values that a stage cannot work with are refused by the option's name, before any reading."""

import sys

import pytest

import reproduce
from anomaly_detection_mgfn import params_mgfn
from anonymization_training import params_anonymization
from aux_code.errors import UserError
from aux_code.parameters import parse
from feature_extraction import params_feature_extraction
from privacy_training import params_privacy
from visualization import anonymize_video, plot_scores

PRESETS = {
    "init_anonymizer": params_anonymization.INIT_ANONYMIZER,
    "train_anonymizer": params_anonymization.TRAIN_ANONYMIZER,
    "train_privacy": params_privacy.PRESETS,
    "dali_extraction": params_feature_extraction.PRESETS,
    "main": params_mgfn.PRESETS,
    "reproduce": reproduce.PRESETS,
    "anonymize_video": anonymize_video.PRESETS,
    "plot_scores": plot_scores.PRESETS,
}


CASES = {
    "init_anonymizer": ("--frames_per_video 0", "--n_workers -1"),
    "train_anonymizer": ("--validate_every 0", "--omega nan"),
    "train_privacy": (
        "--n_workers 0", "--average_frames 0", "--image_learning_rate -1", "--mlp_widths 0",
    ),
    "dali_extraction": ("--batch_size 0", "--size -8", "--min_decoded_share 1.5"),
    "main": (
        "--epochs 0", "--dims 0 0 0", "--top_k 100", "--lr 0", "--candidate_dropout 1",
        "--score x --threshold nan",
    ),
    "reproduce": ("--jobs -1", "--seeds -1"),
    "anonymize_video": ("--fps 0 in.avi out.mp4",),
    "plot_scores": ("--fps 0 Fight results.json",),
}  # fmt: skip


@pytest.mark.parametrize("script, options", [(s, o) for s, own in CASES.items() for o in own])
def test_impossible_values_are_refused(script: str, options: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [script])
    words = options.split()
    option = [word for word in words if word.startswith("--")][-1]
    with pytest.raises(UserError, match=option):
        parse(PRESETS[script], words)
