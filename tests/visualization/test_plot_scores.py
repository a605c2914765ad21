"""Score curves: what is drawn is what the results say."""

import sys

import numpy as np
import pytest
from PIL import Image

from aux_code.checkpoints import read_json, write_json
from aux_code.errors import UserError
from tests.datasets.media import write_video
from visualization import plot_scores


def _results(folder, run_id="raw"):
    path = folder / f"anomaly_ucf_crime_{run_id}.json"
    videos = [{"name": "Fight 1", "category": "Fighting", "n_frames": 70, "events": [[10, 40]]}]
    write_json(path, {"run_id": run_id, "frames_per_feature": 32, "videos": videos})
    scores = {"Fight 1": np.float32([0.1, 0.9, 0.5])}
    np.savez(path.with_name(f"{path.stem}_scores.npz"), **scores)
    return path


def test_clip_scores_become_frame_scores(tmp_path):
    curve = plot_scores.read_scores(_results(tmp_path), "Fight 1")
    assert curve.label == "raw" and curve.events == [(10, 40)] and len(curve.scores) == 70
    assert np.allclose(curve.scores[[0, 31, 32, 63, 64, 69]], [0.1, 0.1, 0.9, 0.9, 0.5, 0.5])
    with pytest.raises(UserError, match="Fight 1"):
        plot_scores.read_scores(_results(tmp_path), "fight")


def test_figure_shades_the_truth(tmp_path, monkeypatch):
    paths = [_results(tmp_path, run_id) for run_id in ("raw", "ted_spad")]
    options = ["plot_scores.py", "Fight 1", *map(str, paths), "--output", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", options)
    plot_scores.main()
    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("RGB")).reshape(-1, 3).astype(int)
    blue = (pixels[:, 2] - pixels[:, 0] > 30) & (pixels.min(axis=1) > 150)
    green = (pixels[:, 1] - pixels[:, 0] > 60) & (pixels[:, 1] - pixels[:, 2] > 40)
    assert blue.sum() > 2000 and green.sum() > 100


def test_the_axis_has_the_times_of_the_videos_own_frames(tmp_path):
    results, manifest = _results(tmp_path), tmp_path / "manifest.json"
    times = np.cumsum([0, *[40] * 34, *[200] * 35])
    video = write_video(tmp_path / "v.mp4", 70, times=times.tolist())
    entry = {"fps": 10.0, "source": {"path": str(video)}}
    write_json(manifest, {"videos": {"Fight 1": entry}})
    write_json(results, read_json(results) | {"inputs": {"manifest": {"path": str(manifest)}}})
    found = plot_scores.seconds_of(results, "Fight 1", 70, 30.0)
    np.testing.assert_allclose(found[:-1], times / 1000)
    video.unlink()
    assert plot_scores.seconds_of(results, "Fight 1", 70, 30.0)[-1] == 7.0
    manifest.unlink()
    assert plot_scores.seconds_of(results, "Fight 1", 60, 30.0)[-1] == 2.0


@pytest.mark.parametrize("content", [[1], {"videos": [{}]}, {"metrics": 1}, {"videos": []}])
def test_other_files_than_results_are_refused(tmp_path, content):
    path = tmp_path / "privacy_raw.json"
    write_json(path, content)
    with pytest.raises(UserError, match="privacy_raw.json is no result of main.py"):
        plot_scores.read_scores(path, "Fight 1")


def test_damaged_scores_are_named(tmp_path):
    path = _results(tmp_path)
    scores = path.with_name(f"{path.stem}_scores.npz")
    whole = scores.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        scores.write_bytes(damaged)
        with pytest.raises(UserError, match="raw_scores.npz is damaged"):
            plot_scores.read_scores(path, "Fight 1")


def test_all_broken_results_are_named_at_once(tmp_path, monkeypatch):
    paths = [_results(tmp_path, run_id) for run_id in ("raw", "spact", "ted_spad")]
    for path in paths[1:]:
        path.with_name(f"{path.stem}_scores.npz").unlink()
    monkeypatch.setattr(sys, "argv", ["plot_scores.py", "Fight 1", *map(str, paths)])
    with pytest.raises(UserError, match="2 results .*_spact_scores.npz.*_ted_spad_scores.npz"):
        plot_scores.main()
