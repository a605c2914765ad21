"""Paths, and nothing else. Edit them here, or set the two environment variables.

DATA_ROOT       (environment variable TED_SPAD_DATA_ROOT)      holds the data sets, a folder each
ARTIFACT_ROOT   (environment variable TED_SPAD_ARTIFACT_ROOT)  receives what the stages write

Read the constants as `config.NAME` where they are used, so that an edit or a test that changes one
takes effect.
"""

import os
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent

DATA_ROOT = Path(os.environ.get("TED_SPAD_DATA_ROOT") or REPOSITORY_ROOT / "data").absolute()
UCF101_ROOT = DATA_ROOT / "UCF101"
VISPR_ROOT = DATA_ROOT / "VISPR"
UCF_CRIME_ROOT = DATA_ROOT / "UCF_Crime"
XD_VIOLENCE_ROOT = DATA_ROOT / "XD_Violence"
SHANGHAITECH_ROOT = DATA_ROOT / "ShanghaiTech"

ARTIFACT_ROOT = Path(os.environ.get("TED_SPAD_ARTIFACT_ROOT") or REPOSITORY_ROOT).absolute()
SAVED_MODELS_ROOT = ARTIFACT_ROOT / "saved_models"
FEATURES_ROOT = ARTIFACT_ROOT / "features"
RESULTS_ROOT = ARTIFACT_ROOT / "results"
LOGS_ROOT = ARTIFACT_ROOT / "logs"
FRAME_INDEX_ROOT = ARTIFACT_ROOT / "frame_index"
