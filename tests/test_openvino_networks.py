"""Large networks by OpenVINO: the same outputs, a size at a time, and nothing but the outputs."""

import importlib.util
from unittest.mock import Mock, create_autospec

import pytest
import torch
from torch import nn

# Not importorskip, which would report to openvino's maker, see below.
if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

from aux_code import openvino_networks
from aux_code.devices import supports_bf16
from aux_code.inference import InferenceNetwork, prepare_anonymizer, prepare_utility
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.openvino_networks import OpenVinoNetwork
from tests.commands import python
from tests.fill import fill, picture, relative_error

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fa():
    return fill(load_fa_model())


@pytest.fixture(scope="module")
def fast_fa(fa):
    return prepare_anonymizer(fa, CPU)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_frames_of_any_number_and_size(fa, fast_fa, size):
    assert isinstance(fast_fa, InferenceNetwork) and isinstance(fast_fa.network, OpenVinoNetwork)
    frames = picture("frames", 8, 3, *size)
    output = fast_fa(frames)
    assert output.dtype == torch.float32 and output.is_contiguous()
    assert relative_error(output, fa(frames)) < 1e-5
    before = output.clone()
    for n in (1, 3, 5, 7):
        assert relative_error(fast_fa(frames[:n]), before[:n]) < 1e-6
    assert torch.equal(output, before), "an output must not be written again by the next pass"


@torch.no_grad()
def test_a_batch_in_pieces_gives_the_same_frames(fa, fast_fa, monkeypatch):
    for n, longest, lengths in [
        (0, 4, [0]), (1, 4, [1]), (3, 4, [2, 1]), (11, 4, [4, 4, 2, 1]), (11, 49, [8, 2, 1]),
        (16, 5, [4] * 4), (2, 1, [1, 1]),
    ]:  # fmt: skip
        assert openvino_networks._piece_lengths(n, longest) == lengths
    monkeypatch.setattr(openvino_networks, "_PIXELS_PER_PASS", 2 * 64 * 64)
    frames, seen = picture("frames", 5, 3, 64, 64), Mock(wraps=fast_fa.network._pass)
    monkeypatch.setattr(fast_fa.network, "_pass", seen)
    assert relative_error(fast_fa(frames), fa(frames)) < 1e-5
    assert [len(call.args[1]) for call in seen.call_args_list] == [2, 2, 1]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_logits_and_embeddings_of_clips(precision):
    ft = fill(load_ft_model())
    clips = picture("clips", 3, 2, 9, 40, 48).flip(0).transpose(0, 1)  # not contiguous
    fast = prepare_utility(ft, CPU, precision)
    assert fast.feature_dim == 2048
    with torch.inference_mode():
        features, output = fast.extract_features(clips), fast(clips)
    expected = ft(clips)
    limit = 1e-2 if precision == "bf16" and supports_bf16("cpu") else 1e-5
    assert relative_error(features, ft.extract_features(clips)) < limit
    assert relative_error(output.logits, expected.logits) < limit
    assert relative_error(output.embedding, expected.embedding) < 3 * limit
    assert torch.equal(fast.extract_features(clips[1:]), features[1:]), "whatever the batch"


def test_small_networks_and_machines_without_openvino_stay_with_pytorch(fa, monkeypatch):
    assert not isinstance(prepare_anonymizer(load_fa_model("small"), CPU).network, OpenVinoNetwork)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    prepared, frames = prepare_anonymizer(fa, CPU), picture("frames", 1, 3, 32, 32)
    assert not isinstance(prepared.network, OpenVinoNetwork)
    assert relative_error(prepared(frames), fa(frames)) < 1e-5


class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x @ x.mT)


def test_what_openvino_does_not_take_pytorch_computes(caplog):
    network, frames = OpenVinoNetwork(Odd(), "fp32"), torch.rand(2, 3, 4, 4)
    assert torch.equal(network(frames), Odd()(frames))
    assert "OpenVINO does not take Odd" in caplog.text


def test_sizes_are_forgotten_in_turn(monkeypatch):
    monkeypatch.setattr(openvino_networks, "_MAX_SIZES", 2)
    network = OpenVinoNetwork(nn.Conv2d(3, 3, 1), "fp32")
    for size in (4, 5, 6, 4):
        assert network(torch.rand(1, 3, size, size)).shape[-1] == size
    assert [shape for _, shape, _ in network._passes] == [(1, 3, 6, 6), (1, 3, 4, 4)]
    assert len(network._models) == 2


def test_as_many_threads_as_pytorch_has(monkeypatch):
    core = openvino_networks._import_openvino().Core
    spy = create_autospec(core.compile_model, side_effect=core.compile_model)
    monkeypatch.setattr(core, "compile_model", spy)
    network, n_threads = OpenVinoNetwork(nn.Conv2d(3, 3, 1), "fp32"), torch.get_num_threads()
    for n in (1, 2, 1, n_threads):
        torch.set_num_threads(n)
        network(torch.rand(1, 3, 4, 4))
    asked = [call.args[3]["INFERENCE_NUM_THREADS"] for call in spy.call_args_list]
    assert asked[:2] == [1, 2] and 1 not in asked[2:]


def test_nothing_is_sent_and_nothing_is_left_on_the_disk(tmp_path):
    """Imported plainly, openvino writes to the home folder and reports to its maker."""
    code = (
        "import sys, torch; from aux_code.openvino_networks import OpenVinoNetwork\n"
        "OpenVinoNetwork(torch.nn.Conv2d(3, 3, 1), 'fp32')(torch.rand(1, 3, 8, 8))\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')]"
    )
    (tmp_path / "tmp").mkdir()
    python("-c", code, HOME=tmp_path, TMPDIR=tmp_path / "tmp", XDG_CACHE_HOME=tmp_path, CI="")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


SIGNALLED = """
import faulthandler, gc, os, signal, torch
from torch import nn
from aux_code.openvino_networks import OpenVinoNetwork

faulthandler.enable()  # as pytest does: a stack for handlers, which OpenVINO replaces
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
networks = [OpenVinoNetwork(nn.Conv2d(3, 4, 3).eval(), "fp32") for _ in range(2)]
for network in networks:
    network(torch.zeros(1, 3, 16, 16))
del networks[0]
gc.collect()
del networks, network
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print("caught", caught)
"""


def test_signals_are_still_handled_when_the_networks_are_gone():
    """The second core to go would free the stack of a handler, which saves interrupted runs."""
    assert "caught [1]" in python("-c", SIGNALLED).stdout
