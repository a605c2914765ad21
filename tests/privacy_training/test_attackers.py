"""Attackers that the paper did not try, and the networks behind all of them."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aux_code import config
from aux_code.checkpoints import load_checkpoint
from aux_code.datasets.transforms import Policy
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_fb_model
from aux_code.runs import Run
from privacy_training import attackers, inversion, train_privacy
from privacy_training.attackers import build_attacker
from privacy_training.attribute_prediction import pixel_scale
from privacy_training.inversion import psnr, ssim
from privacy_training.params_privacy import PRESETS
from privacy_training.released_images import Releaser, TrainingImages

INVERSION = "--attacker inversion --anonymizer downsample2x".split()


def test_raw_trained_attacker_meets_released_images_only_in_the_test(run_stage):
    """Validation is raw, so its curve equals the raw attacker's."""
    options = "--attacker raw_trained --anonymizer downsample4x".split()
    raw = run_stage("--epochs", 6, run_id="raw")["curve"]
    unadapted = run_stage("--epochs", 6, *options)["curve"]
    assert [e["validation_cmap"] for e in raw] == [e["validation_cmap"] for e in unadapted]
    assert raw[-1]["test_cmap"] != unadapted[-1]["test_cmap"]


class Swapped(nn.Module):
    def forward(self, frames):
        return 1 - frames.flip(1)


def test_inverter_undoes_a_colour_swap(tmp_path):
    """Released: channels swapped and inverted; what is recovered is far closer to raw crops."""
    raw = F.interpolate(torch.rand(32, 3, 4, 4), size=16, mode="bilinear")
    cpu = torch.device("cpu")
    sources, files = list((255 * raw).byte().permute(0, 2, 3, 1)), [Path(f"{i}") for i in range(32)]
    of_files = sources, [], torch.zeros(32, 1), files, []
    images = TrainingImages(*of_files, Releaser(Swapped(), cpu), Policy(), 16)
    params = replace(PRESETS["miniature"], inversion_epochs=40, batch_size=8, precision="fp32")
    run, net = Run("x", "train_privacy", tmp_path, cpu), load_fa_model("small")
    run.writer = Mock()
    inversion.train_inverter(net, images, params, run)
    crops, released = images.pairs(range(32), 0)
    assert psnr(net.eval()(released), crops).mean() > psnr(released, crops).mean() + 6


class Hides(nn.Module):
    """Two grey levels of the picture beneath a strong fixed pattern."""

    def forward(self, frames):
        pattern = torch.arange(frames.shape[-1]) % 2 * 0.9
        return (pattern + frames * 2 / 255).expand_as(frames)


def test_an_attacker_takes_a_fixed_pattern_off_and_stretches_what_is_left(tmp_path):
    """Such an f_A came out of the minimax, and looked private to attackers on plain pixels."""
    raw, cpu = torch.rand(300, 3, 12, 12), torch.device("cpu")
    sources, files = (
        list((255 * raw).byte().permute(0, 2, 3, 1)),
        [Path(f"{i}") for i in range(300)],
    )
    releaser = Releaser(Hides(), cpu)
    images = TrainingImages(sources, [], torch.zeros(300, 1), files, [], releaser, Policy(), 12)
    scale, (crops, released) = pixel_scale(images, 64), images.pairs(range(300), 0)
    seen = scale(released)
    assert seen.mean(0).abs().max() < 1e-3 and (seen.std(0) - 1).abs().max() < 0.01
    together = torch.corrcoef(torch.stack([seen.flatten(), crops.flatten()]))[0, 1]
    plain = torch.corrcoef(torch.stack([released.flatten(), crops.flatten()]))[0, 1]
    assert together > 0.85 and plain < 0.05
    constant = replace(images, releaser=Releaser(Constant(), cpu))
    seen = pixel_scale(constant, 64)(constant.release(range(300), 0))
    assert torch.isfinite(seen).all() and seen.abs().max() < 1e-2


class Constant(nn.Module):
    def forward(self, frames):
        return torch.full_like(frames, 0.5)


def test_what_is_standardised(run_stage):
    """Images of networks that learn them; a probe's features were learned on plain ones."""
    params = PRESETS["miniature"]
    assert (
        params.standardises and PRESETS["ours"].standardises and not PRESETS["paper"].standardises
    )
    assert not replace(params, attacker="linear_probe").standardises
    assert not replace(params, level="feature").standardises
    plain, scaled = (run_stage("--epochs", 1, *own) for own in (("--no-standardise",), ()))
    assert plain["curve"] != scaled["curve"] and scaled["parameters"]["standardise"]
    saved = load_checkpoint(config.SAVED_MODELS_ROOT / "tiny" / "attacker.pth")["pixel_scale"]
    assert {name: values.shape[0] for name, values in saved.items()} == {"mean": 3, "deviation": 3}


def test_inversion_attack_reports_quality_and_attributes(run_stage):
    result = run_stage("--epochs", 8, *INVERSION, "--inversion_epochs", 15)
    quality = result["inversion"]
    assert quality["recovered"].keys() == quality["released"].keys() == {"psnr", "ssim"}
    assert result["protocols"]["validation"]["per_attribute"]["a17_color"] > 0.8


def test_inverter_of_an_interrupted_run_is_kept_and_that_of_another_is_not(run_stage, monkeypatch):
    trained = Mock(side_effect=inversion.train_inverter)
    monkeypatch.setattr(inversion, "train_inverter", trained)
    options = (*INVERSION, "--epochs", 1, "--inversion_epochs", 1)
    whole = run_stage(*options, run_id="whole")
    with monkeypatch.context() as patch:
        patch.setattr(train_privacy, "run_attack", Mock(side_effect=KeyboardInterrupt))
        for run_id in ("tiny", "other"):
            with pytest.raises(KeyboardInterrupt):
                run_stage(*options, run_id=run_id)
    resumed = run_stage(*options, "--resume")
    assert trained.call_count == 3 and resumed["curve"] == whole["curve"]
    assert resumed["inversion"] == whole["inversion"]
    run_stage(*options, "--anonymizer", "downsample4x", "--resume", run_id="other")
    assert trained.call_count == 4 and trained.call_args.args[2].anonymizer == "downsample4x"


def test_linear_probe_trains_one_layer(run_stage, checkpoint_of):
    net = load_fb_model("small", ssl=True)
    path = checkpoint_of("fb", net)
    params = replace(PRESETS["miniature"], attacker="linear_probe", attacker_weights=path)
    probe = build_attacker(params, 7)
    assert isinstance(probe, attackers.LinearProbe)
    trained = {name for name, weight in probe.named_parameters() if weight.requires_grad}
    assert trained == {"norm.weight", "norm.bias", "fc.weight", "fc.bias"}
    own = probe.backbone.state_dict()
    same = [torch.equal(own[n], v) for n, v in net[0].state_dict().items() if n[:3] != "fc."]
    assert all(same) and len(same) > 5 and not probe.train().backbone.training
    options = ("--attacker", "linear_probe", "--attacker_weights", path, "--epochs", 2)
    assert run_stage(*options)["attacker"] == "linear_probe"


def test_imagenet_weights_of_a_local_file(tmp_path, monkeypatch):
    """torchvision's file: a bare state dict with 1000 classes; without it, what to do."""
    source, weights = load_fb_model("r50", num_pa=1000).state_dict(), tmp_path / "resnet50.pth"
    torch.save(source, weights)
    for loader in ("torch.hub", "torchvision.models._api"):
        offline = Mock(side_effect=OSError("no network"))
        monkeypatch.setattr(f"{loader}.load_state_dict_from_url", offline)
    params = replace(PRESETS["paper"], attacker="r50_imagenet", imagenet_weights=weights)
    own = build_attacker(params, 7).state_dict()
    assert own["fc.weight"].shape == (7, 2048)
    assert all(torch.equal(own[n], value) for n, value in source.items() if n[:3] != "fc.")
    probe = build_attacker(replace(params, attacker="linear_probe", network="r50_imagenet"), 7)
    assert torch.equal(probe.backbone.state_dict()["conv1.weight"], source["conv1.weight"])
    message = "fetch https://.*resnet50.*put it at.*--imagenet_weights FILE"
    with pytest.raises(UserError, match=message):
        build_attacker(replace(params, imagenet_weights=None), 7)


@pytest.mark.parametrize("name, size", [("small", 48), ("small_vit", 50), ("r50", 64), ("vit", 64)])
@torch.no_grad()
def test_attacker_networks(name, size):
    net = attackers.build_network(name, 5, size).eval()
    assert net(torch.rand(2, 3, size, size)).shape == (2, 5)


def test_feature_mlp_has_the_widths_of_the_paper_and_standardises():
    features = 100 + 5 * torch.randn(64, 2048)
    net = attackers.FeatureMlp(features, PRESETS["paper"].mlp_widths, 7)
    layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    assert widths == [(2048, 2048), (2048, 1028), (1028, 1028), (1028, 512), (512, 7)]
    expected = net.layers((features - features.mean(0)) / features.std(0))
    torch.testing.assert_close(net(features), expected)


def test_psnr_of_a_known_error_and_ssim_of_equal_independent_and_constant_images():
    half = torch.full((1, 3, 16, 16), 0.5)
    assert psnr(half + 0.1, half).item() == pytest.approx(20.0, abs=1e-3)
    a, b = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-5) and ssim(a, b).abs().max() < 0.15
    # constant images: no structure, only the luminance term
    luminance = (0.48 + 1e-4) / (0.52 + 1e-4)
    assert ssim(half - 0.1, half + 0.1).item() == pytest.approx(luminance, abs=1e-3)
