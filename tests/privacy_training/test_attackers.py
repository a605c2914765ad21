"""Attackers that the paper did not try, and the networks behind all of them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_fb_model
from aux_code.runs import Run
from privacy_training import inversion, train_privacy
from privacy_training.attackers import FeatureMlp, LinearProbe, build_attacker, build_network
from privacy_training.inversion import psnr, ssim, train_inverter
from privacy_training.params_privacy import PRESETS
from privacy_training.released_images import ReleasedImages

INVERSION = "--attacker inversion --anonymizer downsample2x".split()


def test_raw_trained_attacker_meets_released_images_only_in_the_test(run_stage):
    """Validation is raw, so its curve equals the raw attacker's."""
    raw = run_stage("--epochs", 6, run_id="raw")
    options = "--attacker raw_trained --anonymizer downsample4x".split()
    unadapted = run_stage("--epochs", 6, *options, run_id="unadapted")
    for a, b in zip(raw["curve"], unadapted["curve"]):
        assert a["validation_cmap"] == b["validation_cmap"]
    assert raw["curve"][-1]["test_cmap"] != unadapted["curve"][-1]["test_cmap"]


def test_inverter_undoes_a_colour_swap(tmp_path):
    """Released: channels swapped and inverted; what is recovered is far closer to raw ones."""
    raw = F.interpolate(torch.rand(32, 3, 4, 4), size=16, mode="bilinear")
    released = ReleasedImages([1 - raw.flip(1)], torch.zeros(32, 1))
    params = replace(PRESETS["miniature"], inversion_epochs=40, batch_size=8, precision="fp32")
    run = Run("inverter", "train_privacy", tmp_path, torch.device("cpu"))
    run.writer = SimpleNamespace(add_scalar=lambda *_: None)
    net = load_fa_model("small")
    train_inverter(net, released, raw, params, run)
    recovered = net.eval()(released.releases[0])
    assert psnr(recovered, raw).mean() > psnr(released.releases[0], raw).mean() + 6


def test_inversion_attack_reports_quality_and_attributes(run_stage):
    result = run_stage("--epochs", 8, *INVERSION, "--inversion_epochs", 15)
    quality = result["inversion"]
    assert quality["recovered"].keys() == quality["released"].keys() == {"psnr", "ssim"}
    assert result["protocols"]["validation"]["per_attribute"]["a17_color"] > 0.8


def test_inverter_of_an_interrupted_run_is_kept_and_that_of_another_is_not(run_stage, monkeypatch):
    trained = []
    train = inversion.train_inverter

    def noting(*args):
        trained.append(args[3])
        train(*args)

    monkeypatch.setattr(inversion, "train_inverter", noting)
    options = (*INVERSION, "--epochs", 1, "--inversion_epochs", 1)
    whole = run_stage(*options, run_id="whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_privacy, "run_attack", stop)
        for run_id in ("tiny", "other"):
            with pytest.raises(KeyboardInterrupt):
                run_stage(*options, run_id=run_id)
    resumed = run_stage(*options, "--resume")
    assert len(trained) == 3 and resumed["curve"] == whole["curve"]
    assert resumed["inversion"] == whole["inversion"]
    run_stage(*options, "--anonymizer", "downsample4x", "--resume", run_id="other")
    assert len(trained) == 4 and trained[-1].anonymizer == "downsample4x"


def test_linear_probe_trains_one_layer(run_stage, checkpoint_of):
    net = load_fb_model("small", ssl=True)
    path = checkpoint_of("fb", net)
    params = replace(PRESETS["miniature"], attacker="linear_probe", attacker_weights=path)
    probe = build_attacker(params, 7)
    assert isinstance(probe, LinearProbe)
    trained = {name for name, weight in probe.named_parameters() if weight.requires_grad}
    assert trained == {"norm.weight", "norm.bias", "fc.weight", "fc.bias"}
    own = probe.backbone.state_dict()
    same = [torch.equal(own[n], v) for n, v in net[0].state_dict().items() if n[:3] != "fc."]
    assert all(same) and len(same) > 5
    probe.train()
    assert not probe.backbone.training
    options = ("--attacker", "linear_probe", "--attacker_weights", path, "--epochs", 2)
    assert run_stage(*options)["attacker"] == "linear_probe"


def test_imagenet_weights_of_a_local_file(tmp_path, monkeypatch):
    """torchvision's file: a bare state dict with 1000 classes; without it, what to do."""
    source = load_fb_model("r50", num_pa=1000).state_dict()
    torch.save(source, tmp_path / "resnet50.pth")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    weights = tmp_path / "resnet50.pth"
    params = replace(PRESETS["paper"], attacker="r50_imagenet", imagenet_weights=weights)
    own = build_attacker(params, 7).state_dict()
    assert own["fc.weight"].shape == (7, 2048)
    assert all(torch.equal(own[n], value) for n, value in source.items() if n[:3] != "fc.")
    probe = build_attacker(replace(params, attacker="linear_probe", network="r50_imagenet"), 7)
    assert torch.equal(probe.backbone.state_dict()["conv1.weight"], source["conv1.weight"])
    message = "fetch https://.*resnet50.*put it at.*--imagenet_weights FILE"
    with pytest.raises(UserError, match=message):
        build_attacker(replace(params, imagenet_weights=None), 7)


SIZES = {"small": 48, "small_vit": 50, "r50": 64, "vit": 64}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_attacker_networks(name, size):
    net = build_network(name, 5, size).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, size, size)).shape == (2, 5)


def test_feature_mlp_has_the_widths_of_the_paper_and_standardises():
    features = 100 + 5 * torch.randn(64, 2048)
    net = FeatureMlp(features, PRESETS["paper"].mlp_widths, 7)
    layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    assert widths == [(2048, 2048), (2048, 1028), (1028, 1028), (1028, 512), (512, 7)]
    expected = net.layers((features - features.mean(0)) / features.std(0))
    torch.testing.assert_close(net(features), expected)


def test_psnr_of_a_known_error_and_ssim_of_equal_independent_and_constant_images():
    truth = torch.full((1, 3, 16, 16), 0.5)
    assert psnr(truth + 0.1, truth).item() == pytest.approx(20.0, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 3, 32, 32, generator=generator)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-5)
    assert ssim(a, b).abs().max() < 0.15
    # constant images: no structure, only the luminance term
    constant = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(*constant).item() == pytest.approx((0.48 + 1e-4) / (0.52 + 1e-4), abs=1e-3)
