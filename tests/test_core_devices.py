"""Which device a script takes, what it says of it, and what float32 means there."""

import warnings
from pathlib import Path

import pytest
import torch

from aux_code import devices
from aux_code.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
    "Please update your GPU driver by downloading and installing a new version from the URL"
)


@pytest.fixture(autouse=True)
def asked_anew():
    devices.gpu_problem.cache_clear()
    yield
    devices.gpu_problem.cache_clear()
    devices.set_tf32(False)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """pretend(capability, said): PyTorch sees a GPU, or none and says why."""

    def pretended(capability: tuple[int, int] = (9, 0), said: str = "") -> None:
        def is_available() -> bool:
            if said:
                warnings.warn(said, stacklevel=2)
            return not said

        answers = {"device_count": 1, "get_device_capability": capability, "set_device": None}
        answers |= {"get_arch_list": ["sm_75", "sm_90"], "get_device_name": "Tesla V100"}
        answers |= {"is_bf16_supported": True}
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)

    return pretended


def test_a_gpu_is_taken_where_there_is_one_and_the_cpu_where_it_is_asked_for(pretend):
    pretend()
    kinds = [devices.choose_device(name).type for name in ("auto", "cuda", "cpu")]
    assert kinds == ["cuda", "cuda", "cpu"]


@pytest.mark.parametrize(
    "state, ranks, message",
    [
        ({"said": OLD}, 1, "driver on your system is too old (found version 11040); use"),
        ({"capability": (7, 0)}, 1, "no kernels for Tesla V100 (compute 7.0); use --device cpu"),
        ({}, 2, "2 processes on this machine, but 1 GPU(s)"),
    ],
)
def test_why_there_is_no_gpu_is_one_line(
    pretend, monkeypatch, tmp_path: Path, caplog, state, ranks, message
):
    """By name an error, by default a warning where a driver is installed."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    pretend(**state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as refused:
            devices.choose_device("cuda")
        caplog.set_level("INFO")
        (tmp_path / "nvidia-smi").touch(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert devices.start_device("auto") == CPU
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1
    warned, started = (record.getMessage() for record in caplog.records)
    assert warned.endswith("running on the CPU") and message.split(";")[0] in warned
    assert started.startswith("running on cpu (") and f"fp32, torch {torch.__version__}" in started
    caplog.clear()
    devices.start_device("cpu")
    assert len(caplog.records) == 1, "the CPU was asked for"


def test_without_a_driver_the_cpu_is_no_surprise(pretend, monkeypatch, tmp_path, caplog):
    pretend(said="no driver")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    assert devices.start_device("auto") == CPU and not caplog.records


@pytest.mark.parametrize(
    "capability, architectures, runs",
    [
        ((9, 0), ["sm_80", "sm_90"], True), ((7, 0), ["sm_75", "compute_120"], False),
        ((8, 9), ["sm_80"], True), ((10, 0), ["sm_90"], False), ((12, 1), ["compute_120"], True),
        ((9, 0), ["sm_90a"], True), ((9, 4), ["gfx942"], True), ((9, 0), [], True),
    ],
)  # fmt: skip
def test_kernels_run_on_their_generation_and_ptx_on_later_ones(capability, architectures, runs):
    assert devices.has_kernels(capability, architectures) is runs


def test_precisions_mean_what_they_say(pretend):
    pretend()
    names = ("fp32", "tf32", "bf16", "fp16")
    assert [devices.precision_in_force(name, GPU) for name in (*names, "auto")] == [*names, "bf16"]
    assert devices.precision_in_force("tf32", CPU) == "fp32"
    assert [devices.inference_precision(name, GPU) for name in names] == list(names)
    assert devices.inference_precision("fp16", CPU) == "fp32"
    for name, expected in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        devices.start_device("cuda", name)
        cudnn = torch.backends.cudnn
        parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
        assert {part.fp32_precision for part in parts} == {expected}
        with devices.without_tf32():
            assert cudnn.conv.fp32_precision == "ieee"
        assert cudnn.conv.fp32_precision == expected
