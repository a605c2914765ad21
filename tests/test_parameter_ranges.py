"""Values that a stage cannot work with are refused before anything is read, by the option's
name."""

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


@pytest.mark.parametrize(
    "script, options",
    [
        ("init_anonymizer", "--frames_per_video 0"),
        ("init_anonymizer", "--n_workers -1"),
        ("train_anonymizer", "--validate_every 0"),
        ("train_anonymizer", "--omega nan"),
        ("train_privacy", "--n_workers 0"),
        ("train_privacy", "--average_frames 0"),
        ("train_privacy", "--image_learning_rate -1"),
        ("train_privacy", "--mlp_widths 0"),
        ("dali_extraction", "--batch_size 0"),
        ("dali_extraction", "--size -8"),
        ("dali_extraction", "--min_decoded_share 1.5"),
        ("main", "--epochs 0"),
        ("main", "--dims 0 0 0"),
        ("main", "--top_k 100"),
        ("main", "--lr 0"),
        ("main", "--candidate_dropout 1"),
        ("main", "--score x --threshold nan"),
        ("reproduce", "--jobs -1"),
        ("reproduce", "--seeds -1"),
        ("anonymize_video", "--fps 0 in.avi out.mp4"),
        ("plot_scores", "--fps 0 Fight results.json"),
    ],
)
def test_impossible_values_are_refused(script: str, options: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [script])
    words = options.split()
    option = [word for word in words if word.startswith("--")][-1]
    with pytest.raises(UserError, match=option):
        parse(PRESETS[script], words)
