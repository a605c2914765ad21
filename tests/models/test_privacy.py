"""f_B: published layouts and golden values; the small sibling."""

import numpy as np
import pytest
import torch

from aux_code.errors import UserError
from aux_code.model_loaders import load_fb_model
from tests.fill import GOLDEN, fill, layout, picture, relative_error, shapes


@torch.no_grad()
@pytest.mark.parametrize(
    ("ssl", "name", "entry"), [(True, "fb_r50_ssl", "fb_ssl_out"), (False, "fb_r50_7", "fb_logits")]
)
def test_published_layout_and_golden_values(ssl, name, entry):
    network = fill(load_fb_model(ssl=ssl))
    assert shapes(network) == layout(name)
    output = network(picture("images", 3, 3, 64, 64))
    assert relative_error(output, np.load(GOLDEN / "networks.npz")[entry]) < 1e-4
    assert network.extract_features(picture("images", 1, 3, 64, 64)).shape == (1, 2048)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (33, 20)])
def test_small_sibling(size):
    images = torch.rand(4, 3, *size)
    assert load_fb_model("small", num_pa=5).eval()(images).shape == (4, 5)
    network = load_fb_model("small", ssl=True).eval()
    embedding = network(images)
    assert embedding.shape == (4, 64)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    assert network.extract_features(images).shape == (4, network.feature_dim) == (4, 64)


def test_small_network_learns_an_attribute():
    torch.manual_seed(0)
    network, labels = load_fb_model("small", num_pa=1), (torch.arange(32) % 2).float()
    images = torch.rand(32, 3, 16, 16)
    images[labels == 1, :, 4:8, 4:8] = 1
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(images)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_unknown_architecture_lists_the_known():
    with pytest.raises(UserError, match="'resnet'.*r50, small"):
        load_fb_model("resnet")
