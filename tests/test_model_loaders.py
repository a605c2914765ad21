"""Weight files of every origin: what loads, what is refused, and what the messages say."""

import logging
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import (
    apply_anonymizer,
    load_anonymizer,
    load_budget,
    load_fa_model,
    load_fb_model,
    load_ft_model,
    load_utility,
)
from aux_code.models.i3d import I3DResNet50


def ours(path, **networks):
    """A checkpoint of ours with these networks (fa=..., ft=..., fb=...)."""
    content = {f"{role}_model_state_dict": net.state_dict() for role, net in networks.items()}
    architectures = {role: network.architecture for role, network in networks.items()}
    meta = {"format_version": 1, "architectures": architectures}
    save_checkpoint(path, {**content, "epoch": 3, "meta": meta})
    return path


def equal(network, state):
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def random_state(network):
    """Weights that no other instance of the network starts with, batch-norm statistics included."""
    return {
        name: t + 0.5 if t.is_floating_point() else t for name, t in network.state_dict().items()
    }


def test_our_checkpoint_rebuilds_its_networks(tmp_path):
    fa = load_fa_model("small", output_channels=1, output_scale=0.5, output_noise=0.1)
    ft = load_ft_model("small", num_classes=9, embedding_dim=16)
    fb = load_fb_model("small", ssl=True)
    path = ours(tmp_path / "last.pth", fa=fa, ft=ft, fb=fb)
    for network, load in ((fa, load_anonymizer), (ft, load_utility), (fb, load_budget)):
        loaded = load(path)
        assert equal(loaded, network.state_dict())
        assert loaded.architecture == network.architecture
        assert not loaded.training
    assert load_anonymizer(path).output_noise == 0.1
    # the file's arguments are the defaults of the loader, what is asked for stays
    assert load_fa_model("small", path).output_scale == 0.5
    assert load_fa_model("small", path, output_noise=0.0).output_noise == 0.0


def test_published_checkpoint(tmp_path):
    networks = {"fa": load_fa_model(), "fb": load_fb_model(ssl=True)}
    states = {role: random_state(network) for role, network in networks.items()}
    content = {
        f"{r}_model_state_dict": {f"module.{k}": v for k, v in state.items()}
        for r, state in states.items()
    }
    optimizer = torch.optim.Adam(networks["fa"].parameters()).state_dict()
    path = tmp_path / "model_20.pth"
    torch.save({"epoch": 20, "fa_optimizer": optimizer, **content}, path)
    assert equal(load_fa_model("unet++", path), states["fa"])
    assert equal(load_fb_model("r50", path, ssl=True), states["fb"])
    rebuilt = load_anonymizer(path)
    assert equal(rebuilt, states["fa"]) and not rebuilt.requires_boxes
    assert rebuilt.architecture["arch"] == "unet++"
    assert load_budget(path).architecture["arguments"]["ssl"]
    match = "no 'ft_model_state_dict'; it holds fa_model_state_dict, fb_model_state_dict"
    with pytest.raises(UserError, match=match):
        load_ft_model("largei3d", path)


def test_published_utility_with_frozen_batch_norms(tmp_path):
    state = random_state(load_ft_model(num_classes=7))
    old = {}
    for name, tensor in state.items():
        frozen = ".bn" in name and name.startswith("i3d.layer")
        if not (frozen and name.endswith("num_batches_tracked")):
            old[
                name[: -len("weight")] + "scale" if frozen and name.endswith("weight") else name
            ] = tensor
    assert any(name.endswith(".scale") for name in old) and len(old) < len(state)
    path = tmp_path / "ft.pth"
    torch.save({"ft_model_state_dict": old}, path)
    assert equal(load_ft_model("largei3d", path, num_classes=7), state)
    assert load_utility(path).architecture == {"arch": "largei3d", "arguments": {"num_classes": 7}}


def test_kinetics_backbone_leaves_the_heads_random_and_says_so(tmp_path, caplog):
    state = random_state(I3DResNet50(400))
    path = tmp_path / "i3d_kinetics.pth"
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        network = load_ft_model("largei3d", path, num_classes=102)
    assert torch.equal(network.i3d.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    assert "i3d.fc.weight, i3d.fc.bias, mlp.fc1.weight" in caplog.text
    assert "i3d.layer" not in caplog.text
    same_size = load_ft_model("largei3d", path, num_classes=400)
    assert torch.equal(same_size.i3d.fc.weight, state["fc.weight"])
    del state["layer3.1.conv2.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match="missing: i3d.layer3.1.conv2.weight"):
        load_ft_model("largei3d", path)


def test_a_kinetics_file_is_a_utility_network_by_itself(tmp_path, caplog):
    state, path = random_state(I3DResNet50(400)), tmp_path / "i3d_kinetics.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    with caplog.at_level(logging.WARNING):
        network = load_utility(path)
    assert equal(network.i3d, state) and network.architecture["arguments"] == {"num_classes": 400}
    assert "re-initialised" in caplog.text and "mlp.fc1.weight" in caplog.text
    assert "i3d.fc" not in caplog.text
    for load, arch in ((load_ft_model, "r3d_18"), (load_fb_model, "r50")):
        with pytest.raises(UserError, match="architecture: the one that it was saved from"):
            load(arch, path)


@pytest.mark.parametrize(("arch", "head"), [("r3d_18", "fc."), ("mvitv2", "head.1.")])
def test_torchvision_video_file(tmp_path, arch, head):
    network = load_ft_model(arch)
    found = random_state(network)
    state = {k.removeprefix("backbone."): found[k] for k in found if k.startswith("backbone.")}
    path, classes = tmp_path / "video.pth", torch.ones(400, network.feature_dim)
    torch.save({**state, f"{head}weight": classes, f"{head}bias": torch.ones(400)}, path)
    loaded = load_ft_model(arch, path)
    assert equal(loaded.backbone, state)
    assert load_ft_model(arch, path, num_classes=400).fc.weight.eq(1).all()


@pytest.mark.parametrize("ssl", [False, True])
def test_imagenet_file_for_the_privacy_network(tmp_path, caplog, ssl):
    state = random_state(load_fb_model(num_pa=1000))
    path = tmp_path / "resnet50.pth"
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        network = load_fb_model("r50", path, ssl=ssl)
    backbone = network[0] if ssl else network
    assert torch.equal(backbone.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert ("1.fc1.weight" if ssl else "fc.weight") in caplog.text


def test_imagenet_file_for_the_encoder(tmp_path, caplog):
    from torchvision.models import resnet18

    state = random_state(resnet18())
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    wanted = load_fa_model("unet++").state_dict()
    for arguments in ({}, {"output_channels": 1}):
        with caplog.at_level(logging.WARNING):
            network = load_fa_model("unet++", path, **arguments)
        encoder = network.network.encoder if arguments else network.encoder
        assert torch.equal(encoder.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert "segmentation_head.0.weight" in caplog.text
    assert "encoder" not in caplog.text.replace("decoder", "")
    assert "encoder.layer4.0.conv1.weight" in wanted


def test_plain_weights_go_into_a_narrow_output_and_back(tmp_path):
    plain = load_fa_model("small")
    path = ours(tmp_path / "plain.pth", fa=plain)
    narrow = load_fa_model("small", path, output_scale=0.5, output_noise=0.1)
    assert equal(narrow.network, plain.state_dict())
    path = ours(tmp_path / "narrow.pth", fa=narrow)
    assert equal(load_anonymizer(path), narrow.state_dict())
    wide = load_fa_model("small", path, output_scale=1.0, output_noise=0.0)
    assert equal(wide, plain.state_dict())
    with pytest.raises(UserError, match=r"mend.weight \(3, 6, 3, 3\) instead of \(1, 6, 3, 3\)"):
        load_fa_model("small", path, output_channels=1)


@pytest.mark.parametrize("as_folder", [True, False])
def test_model_hub_safetensors(tmp_path, as_folder):
    state = random_state(load_fa_model())
    save_file(state, tmp_path / "model.safetensors")
    path = tmp_path if as_folder else tmp_path / "model.safetensors"
    assert equal(load_fa_model("unet++", path), state)
    assert equal(load_anonymizer(path), state)


def test_strictness_names_entries_shapes_and_what_to_give(tmp_path):
    path = ours(tmp_path / "a.pth", ft=load_ft_model("small", num_classes=10))
    with pytest.raises(UserError) as error:
        load_ft_model("small", path, num_classes=12)
    assert "a.pth" in str(error.value)
    for part in (
        "misshaped: fc.weight (10, 64) instead of (12, 64), fc.bias (10,) instead of (12,)",
        "give the file's architecture: small with {'num_classes': 10}",
    ):
        assert part in str(error.value)
    state = load_fa_model("unet").state_dict()
    torch.save({"fa_model_state_dict": state}, path)
    with pytest.raises(UserError, match=r"(?s)missing: encoder.*unexpected: inc\."):
        load_fa_model("unet++", path)
    state["surplus.weight"] = state.pop("outc.conv.bias")
    torch.save({"fa_model_state_dict": state}, path)
    with pytest.raises(UserError, match=r"(?s)missing: outc.conv.bias.*unexpected: surplus.weight"):
        load_fa_model("unet", path)
    with pytest.raises(UserError, match="fit no known architecture"):
        load_anonymizer(path)


class Payload:
    """Leaves a trace when it is unpickled by something that runs code."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("load", [load_fa_model, load_ft_model, load_fb_model])
def test_code_in_a_file_is_not_run(tmp_path, writer, load):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"fa_model_state_dict": {"x": torch.zeros(1)}, "epoch": Payload(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="evil.pth"):
        load(saved_model_file=path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "the payload must be able to leave its trace"


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_empty_and_truncated_files_are_named(tmp_path, name, share):
    state, path = load_fa_model("small").state_dict(), tmp_path / name
    if name == "w.pth":
        torch.save({"fa_model_state_dict": state}, path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=name):
        load_fa_model("small", path)


@pytest.mark.parametrize("zipped", [True, False])
def test_any_first_part_of_a_file_is_an_error_with_its_name(tmp_path, zipped):
    path = tmp_path / "part.pth"
    content = {"fa_model_state_dict": {"w": torch.rand(40)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for n in (*range(1, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(UserError, match="part.pth"):
            load_fa_model("small", path)


def test_numpy_values_beside_the_weights_are_data(tmp_path):
    """The release's checkpoints hold some, older ones under numpy 1's names."""
    network, path = load_fa_model("small"), tmp_path / "old.pth"
    beside = {"best": np.float64(0.75), "losses": np.arange(3.0)}
    beside |= {"ids": np.array(["a", "b"]), "flag": np.bool_(True)}
    content = {"fa_model_state_dict": network.state_dict(), "epoch": 20, **beside}
    torch.save(content, path)
    assert equal(load_fa_model("small", path), network.state_dict())
    assert load_checkpoint(path)["losses"].tolist() == [0, 1, 2]
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_checkpoint(path)["best"] == 0.75
    trace = tmp_path / "trace"
    torch.save({**content, "objects": np.array([Payload(trace)])}, path)
    with pytest.raises(UserError, match="refused"):
        load_fa_model("small", path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"fa_model_state_dict": {}}, {"a": 1, "b": torch.zeros(1)}]
)
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="other.pth"):
        load_fa_model("small", path)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="gone.pth"):
        load_fa_model("small", tmp_path / "gone.pth")
    with pytest.raises(UserError, match="model.safetensors"):
        load_fa_model("small", tmp_path)


def test_anonymizer_names():
    frames = torch.rand(1, 3, 16, 16)
    assert torch.equal(apply_anonymizer(load_anonymizer("raw"), frames), frames)
    boxes = [torch.tensor([[0.0, 0.0, 16.0, 16.0]])]
    assert apply_anonymizer(load_anonymizer("blacken"), frames, boxes).abs().max() == 0
    with pytest.raises(UserError, match="'blackn' is neither a file nor one of raw, downsample2x"):
        load_anonymizer("blackn")


def test_an_anonymizer_without_weights_is_an_error():
    for name in ("unet++", "small", ""):
        with pytest.raises(UserError):
            load_anonymizer(name)


def test_unknown_names_and_arguments():
    with pytest.raises(UserError, match="'unet3'; known: unet\\+\\+, unet, small"):
        load_fa_model("unet3")
    with pytest.raises(UserError, match="small.*does not take.*colour"):
        load_fa_model("small", colour=3)


def test_damaged_meta_is_a_clear_error(tmp_path):
    network = load_fa_model("small")
    network.architecture = {"arch": "small", "arguments": {"nonsense": 1}}
    with pytest.raises(UserError, match="nonsense"):
        load_anonymizer(ours(tmp_path / "a.pth", fa=network))


@pytest.mark.parametrize(
    ("load", "arch", "name", "file"),
    [
        (load_fb_model, "r50", "imagenet", "resnet50-.*pth"),
        (load_fa_model, "unet++", "imagenet", "resnet18-.*pth"),
        (load_ft_model, "r3d_18", "kinetics400", "r3d_18-.*pth"),
        (load_ft_model, "mvitv2", "kinetics400", "mvit_v2_s-.*pth"),
    ],
)
def test_without_a_network_the_message_names_the_file_and_its_place(
    tmp_path, monkeypatch, load, arch, name, file
):
    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    match = f"could not be downloaded.*put it at {tmp_path}/checkpoints/{file}"
    with pytest.raises(UserError, match=match):
        load(arch, name)


def test_weights_that_torchvision_does_not_have():
    match = r"no kinetics400 weights of 'largei3d', only those of r3d_18 \(kinetics400\)"
    with pytest.raises(UserError, match=match):
        load_ft_model("largei3d", "kinetics400")


def test_downloaded_weights_go_the_same_way(monkeypatch):
    state = random_state(load_fb_model(num_pa=1000))
    download = "torchvision.models._api.load_state_dict_from_url"
    monkeypatch.setattr(download, lambda *a, **o: dict(state))
    network = load_fb_model("r50", "imagenet")
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    assert network.fc.weight.shape == (7, 2048)
