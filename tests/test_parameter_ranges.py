"""Values that a stage cannot work with are refused by the option's name, before any reading."""

import sys

import pytest

from aux_code.errors import UserError
from aux_code.parameters import parse
from tests.frozen import write as frozen

CASES = {
    "anonymization_training/init_anonymizer.py": ("--frames_per_video 0", "--n_workers -1"),
    "anonymization_training/train_anonymizer.py": ("--validate_every 0", "--omega nan"),
    "privacy_training/train_privacy.py": (
        "--n_workers 0", "--average_frames 0", "--image_learning_rate -1", "--mlp_widths 0",
    ),
    "feature_extraction/dali_extraction.py": (
        "--batch_size 0", "--size -8", "--min_decoded_share 1.5",
    ),
    "anomaly_detection_mgfn/main.py": (
        "--epochs 0", "--dims 0 0 0", "--top_k 100", "--lr 0", "--candidate_dropout 1",
        "--score x --threshold nan",
    ),
    "reproduce.py": ("--jobs -1", "--seeds -1"),
    "visualization/anonymize_video.py": ("--fps 0 in.avi out.mp4",),
    "visualization/plot_scores.py": ("--fps 0 Fight results.json",),
}  # fmt: skip


@pytest.mark.parametrize("script", CASES)
def test_impossible_values_are_refused(script: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [script])
    presets = vars(frozen.module_of(script))[frozen.PRESETS[script]]
    for options in CASES[script]:
        words = options.split()
        option = [word for word in words if word.startswith("--")][-1]
        with pytest.raises(UserError, match=option):
            parse(presets, words)
