"""f_B: published layouts and golden values; the small sibling."""

import numpy as np
import pytest
import torch

from aux_code.model_loaders import load_fb_model
from tests.fill import GOLDEN, fill, layout, picture, relative_error, shapes


@torch.no_grad()
def test_published_layout_and_golden_values():
    images, golden = picture("images", 3, 3, 64, 64), np.load(GOLDEN / "networks.npz")
    for ssl, name, entry in ((True, "fb_r50_ssl", "fb_ssl_out"), (False, "fb_r50_7", "fb_logits")):
        network = fill(load_fb_model(ssl=ssl))
        assert shapes(network) == layout(name)
        assert relative_error(network(images), golden[entry]) < 1e-4
        assert network.extract_features(images).shape == (3, 2048)


@pytest.mark.parametrize("size", [(48, 48), (33, 20)])
def test_small_sibling(size):
    images = torch.rand(4, 3, *size)
    assert load_fb_model("small", num_pa=5).eval()(images).shape == (4, 5)
    network = load_fb_model("small", ssl=True).eval()
    assert network(images).shape == (4, 64)
    torch.testing.assert_close(network(images).norm(dim=1), torch.ones(4))
    assert network.extract_features(images).shape == (4, network.feature_dim) == (4, 64)
