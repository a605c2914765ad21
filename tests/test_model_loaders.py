"""Weight files of every origin: what loads, what is refused, and what the messages say."""

import re
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

from aux_code import model_loaders as ml
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.models.i3d import I3DResNet50

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


def ours(path, **networks):
    """A checkpoint of ours with these networks (fa=..., ft=..., fb=...)."""
    content = {f"{role}_model_state_dict": net.state_dict() for role, net in networks.items()}
    meta = {"format_version": 1, "architectures": {r: n.architecture for r, n in networks.items()}}
    save_checkpoint(path, {**content, "epoch": 3, "meta": meta})
    return path


def equal(network, state):
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def random_state(network):
    """Weights that no other instance of the network starts with, batch-norm statistics included."""
    state = network.state_dict()
    return {name: t + 0.5 if t.is_floating_point() else t for name, t in state.items()}


def saved(folder, content, name="weights.pth"):
    torch.save(content, folder / name)
    return folder / name


def test_our_checkpoint_rebuilds_its_networks(tmp_path):
    fa = ml.load_fa_model("small", output_channels=1, output_scale=0.5, output_noise=0.1)
    ft = ml.load_ft_model("small", num_classes=9, embedding_dim=16)
    fb = ml.load_fb_model("small", ssl=True)
    path = ours(tmp_path / "last.pth", fa=fa, ft=ft, fb=fb)
    for network, load in ((fa, ml.load_anonymizer), (ft, ml.load_utility), (fb, ml.load_budget)):
        loaded = load(path)
        assert equal(loaded, network.state_dict()) and not loaded.training
        assert loaded.architecture == network.architecture
    assert ml.load_anonymizer(path).output_noise == 0.1
    # the file's arguments are the defaults of the loader, what is asked for stays
    assert ml.load_fa_model("small", path).output_scale == 0.5
    assert ml.load_fa_model("small", path, output_noise=0.0).output_noise == 0.0


def test_published_checkpoint(tmp_path):
    networks = {"fa": ml.load_fa_model(), "fb": ml.load_fb_model(ssl=True)}
    states = {role: random_state(network) for role, network in networks.items()}
    optimizer = torch.optim.Adam(networks["fa"].parameters()).state_dict()
    content = {"epoch": 20, "fa_optimizer": optimizer}
    for role, state in states.items():
        content[f"{role}_model_state_dict"] = {f"module.{k}": v for k, v in state.items()}
    path = saved(tmp_path, content)
    assert equal(ml.load_fa_model("unet++", path), states["fa"])
    assert equal(ml.load_fb_model("r50", path, ssl=True), states["fb"])
    rebuilt = ml.load_anonymizer(path)
    assert equal(rebuilt, states["fa"]) and not rebuilt.requires_boxes
    assert rebuilt.architecture["arch"] == "unet++"
    assert ml.load_budget(path).architecture["arguments"]["ssl"]
    with pytest.raises(UserError, match="no 'ft_model_state_dict'; it holds fa_model.*, fb_model"):
        ml.load_ft_model("largei3d", path)


def test_published_utility_with_frozen_batch_norms(tmp_path):
    state, old = random_state(ml.load_ft_model(num_classes=7)), {}
    for name, tensor in state.items():
        is_frozen = ".bn" in name and name.startswith("i3d.layer")
        if not (is_frozen and name.endswith("num_batches_tracked")):
            old[re.sub("weight$", "scale", name) if is_frozen else name] = tensor
    assert any(name.endswith(".scale") for name in old) and len(old) < len(state)
    path = saved(tmp_path, {"ft_model_state_dict": old})
    assert equal(ml.load_ft_model("largei3d", path, num_classes=7), state)
    found = ml.load_utility(path).architecture
    assert found == {"arch": "largei3d", "arguments": {"num_classes": 7}}


def test_kinetics_backbone_leaves_the_heads_random_and_says_so(tmp_path, caplog):
    state = random_state(I3DResNet50(400))
    path = saved(tmp_path, state)
    network = ml.load_ft_model("largei3d", path, num_classes=102)
    assert torch.equal(network.i3d.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    assert "i3d.fc.weight, i3d.fc.bias, mlp.fc1.weight" in caplog.text
    assert "i3d.layer" not in caplog.text
    same_size = ml.load_ft_model("largei3d", path, num_classes=400)
    assert torch.equal(same_size.i3d.fc.weight, state["fc.weight"])
    caplog.clear()
    by_itself = ml.load_utility(saved(tmp_path, {f"module.{name}": state[name] for name in state}))
    assert equal(by_itself.i3d, state)
    assert by_itself.architecture["arguments"] == {"num_classes": 400}
    assert "re-initialised" in caplog.text and "mlp.fc1.weight" in caplog.text
    assert "i3d.fc" not in caplog.text
    for load, arch in ((ml.load_ft_model, "r3d_18"), (ml.load_fb_model, "r50")):
        with pytest.raises(UserError, match="architecture: the one that it was saved from"):
            load(arch, path)
    del state["layer3.1.conv2.weight"]
    with pytest.raises(UserError, match="missing: i3d.layer3.1.conv2.weight"):
        ml.load_ft_model("largei3d", saved(tmp_path, state))


@pytest.mark.parametrize(("arch", "head"), [("r3d_18", "fc."), ("mvitv2", "head.1.")])
def test_torchvision_video_file(tmp_path, arch, head):
    network = ml.load_ft_model(arch)
    found = random_state(network)
    state = {k.removeprefix("backbone."): found[k] for k in found if k.startswith("backbone.")}
    classes = torch.ones(400, network.feature_dim)
    path = saved(tmp_path, state | {f"{head}weight": classes, f"{head}bias": classes[:, 0]})
    assert equal(ml.load_ft_model(arch, path).backbone, state)
    assert ml.load_ft_model(arch, path, num_classes=400).fc.weight.eq(1).all()


@pytest.mark.parametrize("ssl", [False, True])
def test_imagenet_weights_for_the_privacy_network(tmp_path, caplog, monkeypatch, ssl):
    state = random_state(ml.load_fb_model(num_pa=1000))
    monkeypatch.setattr(DOWNLOAD, lambda *a, **o: dict(state))
    for source in (saved(tmp_path, state), "imagenet"):
        caplog.clear()
        network = ml.load_fb_model("r50", source, ssl=ssl)
        backbone = network[0] if ssl else network
        assert torch.equal(backbone.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
        assert ("1.fc1.weight" if ssl else "fc.weight") in caplog.text


@pytest.mark.parametrize("arguments", [{}, {"output_channels": 1}])
def test_imagenet_file_for_the_encoder(tmp_path, caplog, arguments):
    state = random_state(resnet18())
    network = ml.load_fa_model("unet++", saved(tmp_path, state), **arguments)
    encoder = network.network.encoder if arguments else network.encoder
    assert torch.equal(encoder.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert "segmentation_head.0.weight" in caplog.text
    assert "encoder" not in caplog.text.replace("decoder", "")


def test_plain_weights_go_into_a_narrow_output_and_back(tmp_path):
    plain = ml.load_fa_model("small")
    path = ours(tmp_path / "plain.pth", fa=plain)
    narrow = ml.load_fa_model("small", path, output_scale=0.5, output_noise=0.1)
    assert equal(narrow.network, plain.state_dict())
    path = ours(tmp_path / "narrow.pth", fa=narrow)
    wide = ml.load_fa_model("small", path, output_scale=1.0, output_noise=0.0)
    assert equal(wide, plain.state_dict())
    with pytest.raises(UserError, match=r"mend.weight \(3, 6, 3, 3\) instead of \(1, 6, 3, 3\)"):
        ml.load_fa_model("small", path, output_channels=1)


def test_model_hub_safetensors_whole_empty_and_truncated(tmp_path):
    state, path = random_state(ml.load_fa_model()), tmp_path / "model.safetensors"
    save_file(state, path)
    assert equal(ml.load_fa_model("unet++", path), state)
    assert equal(ml.load_anonymizer(tmp_path), state)
    for content in (b"", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="model.safetensors is empty, truncated or"):
            ml.load_fa_model("small", path)


def test_strictness_names_entries_shapes_and_what_to_give(tmp_path):
    path = ours(tmp_path / "a.pth", ft=ml.load_ft_model("small", num_classes=10))
    shapes = "fc.weight (10, 64) instead of (12, 64), fc.bias (10,) instead of (12,)"
    remedy = "give the file's architecture: small with {'num_classes': 10}"
    words = [re.escape(part) for part in ("a.pth", f"misshaped: {shapes}", remedy)]
    with pytest.raises(UserError, match=f"(?s){'.*'.join(words)}"):
        ml.load_ft_model("small", path, num_classes=12)
    state = ml.load_fa_model("unet").state_dict()
    path = saved(tmp_path, {"fa_model_state_dict": state})
    with pytest.raises(UserError, match=r"(?s)missing: encoder.*unexpected: inc\."):
        ml.load_fa_model("unet++", path)
    state["surplus.weight"] = state.pop("outc.conv.bias")
    path = saved(tmp_path, {"fa_model_state_dict": state})
    with pytest.raises(UserError, match=r"(?s)missing: outc.conv.bias.*unexpected: surplus.weight"):
        ml.load_fa_model("unet", path)
    with pytest.raises(UserError, match="fit no known architecture"):
        ml.load_anonymizer(path)


UNKNOWN = [
    (ml.load_anonymizer, ["blackn"], "'blackn' is neither a file nor one of raw, downsample2x"),
    (ml.load_anonymizer, ["unet++"], "neither a file"), (ml.load_anonymizer, [""], "model"),
    (ml.load_fa_model, ["unet3"], r"'unet3'; known: unet\+\+, unet, small"),
    (ml.load_fa_model, ["small", "gone.pth"], "gone.pth"),
    (ml.load_fa_model, ["small", "."], "model.safetensors"),
    (
        ml.load_ft_model, ["largei3d", "kinetics400"],
        "no weights kinetics400 for 'largei3d'; taken are an I3D-ResNet50 .*i3d. or 0.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("load", "words", "message"), UNKNOWN)
def test_unknown_names_and_missing_files(load, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(*words)


def test_unknown_arguments_and_other_content(tmp_path):
    for content in ([1, 2], {}, {"fa_model_state_dict": {}}, {"a": 1, "b": torch.zeros(1)}):
        with pytest.raises(UserError, match="other.pth"):
            ml.load_fa_model("small", saved(tmp_path, content, "other.pth"))
    with pytest.raises(UserError, match="small.*does not take.*colour"):
        ml.load_fa_model("small", colour=3)
    network = ml.load_fa_model("small")
    network.architecture = {"arch": "small", "arguments": {"nonsense": 1}}
    with pytest.raises(UserError, match="nonsense"):
        ml.load_anonymizer(ours(tmp_path / "damaged.pth", fa=network))


def test_without_a_network_the_message_names_the_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(DOWNLOAD, Mock(side_effect=OSError("no network")))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    fa, ft, fb = ml.load_fa_model, ml.load_ft_model, ml.load_fb_model
    for load, arch, name, file in [
        (fb, "r50", "resnet50", "resnet50"), (fa, "unet++", "imagenet", "resnet18"),
        (ft, "r3d_18", "kinetics400", "r3d_18"), (ft, "mvitv2", "mvitv2", "mvit_v2_s"),
    ]:  # fmt: skip
        place = f"put it at {tmp_path}/checkpoints/{file}-.*pth"
        with pytest.raises(UserError, match=f"could not be downloaded.*{place}"):
            load(arch, name)


def test_simclr_files_of_other_layouts_give_the_backbone(tmp_path, caplog):
    source = random_state(ml.load_fb_model(num_pa=1000))
    content = {f"encoder_q.{k}": v for k, v in source.items() if not k.startswith("fc.")}
    content |= {"encoder_q.fc.0.weight": torch.ones(3, 2048), "projection.weight": torch.ones(2)}
    path = saved(tmp_path, {"state_dict": content})
    network = ml.load_fb_model("r50", path, ssl=True)
    assert torch.equal(network[0].layer4[2].conv3.weight, source["layer4.2.conv3.weight"])
    assert "1.fc1.weight" in caplog.text and not network[0].normalised
    with pytest.raises(UserError, match=r"(?s)do not fit.*taken are an I3D-ResNet50 .*layer1"):
        ml.load_ft_model("largei3d", path)


@torch.no_grad()
def test_a_classifier_of_imagenet_gets_images_as_it_was_trained_with(tmp_path):
    source, images = resnet50().eval(), torch.rand(2, 3, 32, 32)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    expected = source((images - mean) / deviation)
    network = ml.load_fb_model("r50", saved(tmp_path, source.state_dict()), num_pa=1000).eval()
    again = ml.load_budget(ours(tmp_path / "ours.pth", fb=network))
    for own in (network, again):
        torch.testing.assert_close(own(images), expected)
