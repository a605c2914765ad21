"""What nvidia-smi prints becomes mean shares."""

import time

from benchmarks.gpu_monitor import GpuMonitor, mean_utilisation


def test_means_of_the_columns():
    assert mean_utilisation("75, 50\n25, 0\n") == {
        "utilization.gpu": 0.5,
        "utilization.decoder": 0.25,
    }
    assert mean_utilisation("75, [N/A]\n25, [N/A]\n") == {"utilization.gpu": 0.5}
    assert mean_utilisation("No devices were found\n") == mean_utilisation("") == {}


def test_samples_until_it_is_left(tmp_path):
    sampled = tmp_path / "sampled"
    command = f"echo 50, 10; echo 50, 10; touch {sampled}; exec sleep 60"
    with GpuMonitor(command=["sh", "-c", command]) as monitor:
        while not sampled.exists():
            time.sleep(0.01)
    assert monitor.means == {"utilization.gpu": 0.5, "utilization.decoder": 0.1}
