"""The fixed anonymizers and the person boxes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer
from aux_code.models.obfuscation import OBFUSCATIONS, Blur, box_mask
from aux_code.models.person_boxes import detect_person_boxes, load_person_detector

NO_BOXES = torch.zeros(0, 4)


@pytest.fixture
def frames():
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "factor"), [("downsample2x", 2), ("downsample4x", 4)])
def test_downsampling_removes_fine_detail_and_keeps_coarse(name, factor, frames):
    assert torch.equal(OBFUSCATIONS["raw"]()(frames), frames)
    network = OBFUSCATIONS[name]()
    assert network(frames).shape == frames.shape and not network.requires_boxes
    stripes = (torch.arange(48) % 2).float().expand(1, 3, 48, 48)
    assert (network(stripes)[..., 8:40, 8:40] - 0.5).abs().max() < 0.06
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 48, 48)
    assert (network(ramp) - ramp)[..., 8:40].abs().max() < 1e-3
    assert network(frames).std() < frames.std() / factor**0.5


def test_blacken_sets_the_boxes_to_zero_and_nothing_else(frames):
    boxes = [torch.tensor([[3.0, 5.0, 10.0, 20.0], [30.5, -4.0, 99.0, 2.5]]), NO_BOXES]
    expected = frames.clone()
    expected[0, :, 5:20, 3:10] = expected[0, :, 0:3, 30:40] = 0
    assert torch.equal(OBFUSCATIONS["blacken"]()(frames, boxes), expected)


def test_blur_is_the_papers_gaussian_inside_the_boxes(frames):
    boxes = [torch.tensor([[10.0, 10.0, 30.0, 30.0]]), NO_BOXES]
    output = OBFUSCATIONS["blur"]()(frames, boxes)
    expected = gaussian_blur(frames, [13, 13], [10.0, 10.0])
    torch.testing.assert_close(output[0, :, 10:30, 10:30], expected[0, :, 10:30, 10:30])
    outside = ~box_mask(boxes, frames)[0, 0]
    assert torch.equal(output[0][:, outside], frames[0][:, outside])
    assert torch.equal(output[1], frames[1])
    # frames may be smaller than the kernel
    flat = torch.full((1, 3, 5, 5), 0.3)
    torch.testing.assert_close(Blur()(flat, [torch.tensor([[0.0, 0.0, 5.0, 5.0]])]), flat)


@pytest.mark.parametrize("name", ["blur", "blacken"])
def test_boxes_are_required(name, frames):
    network = OBFUSCATIONS[name]()
    assert network.requires_boxes
    with pytest.raises(UserError, match="person_boxes.csv"):
        network(frames)
    with pytest.raises(ValueError, match="2 frames but boxes for 1"):
        network(frames, [NO_BOXES])


class BrightSquareDetector(nn.Module):
    """Reports the bounding box of bright pixels, a cat in the corner, and an unsure person."""

    def forward(self, images):
        found = []
        labels, scores = torch.tensor([1, 17, 1]), torch.tensor([0.9, 0.9, 0.3])
        for image in images:
            rows, columns = torch.nonzero(image.mean(0) > 0.9, as_tuple=True)
            person = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes = torch.tensor([person, [0, 0, 1, 1], [1, 1, 2, 2]]).float()
            found.append({"boxes": boxes, "labels": labels, "scores": scores})
        return found


def test_detected_boxes_are_confident_people():
    frames = torch.zeros(5, 3, 20, 20)
    for i, frame in enumerate(frames):
        frame[:, 4 : 9 + i, 6:12] = 1
    boxes = detect_person_boxes(frames, BrightSquareDetector())
    assert [b.tolist() for b in boxes] == [[[6.0, 4.0, 12.0, 9.0 + i]] for i in range(5)]


def test_detector_without_weights_names_the_file(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no network")

    for module in ("torch.hub", "torchvision.models._api"):
        monkeypatch.setattr(f"{module}.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="fasterrcnn_resnet50_fpn_coco.*put it at"):
        load_person_detector()


def test_a_mosaic_is_the_mean_of_its_pixels_in_grey_and_with_noise_if_named():
    frames = torch.rand(4, 3, 48, 48)
    coarse = F.avg_pool2d(frames, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(load_anonymizer("mosaic4")(frames), coarse)
    grey = load_anonymizer("mosaic4_grey")(frames)
    luma = (coarse * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(grey, luma.expand_as(frames))
    noise = load_anonymizer("mosaic4_grey_noise0.05")(frames) - grey
    assert noise.std() == pytest.approx(0.05, rel=0.1) and torch.equal(noise[:, 0], noise[:, 1])
    assert torch.equal(noise[..., ::4, ::4], noise[..., 3::4, 3::4])  # one draw per released value
    for name in ("mosaic0", "mosaic4_gray", "mosaic4_noise", "mosaic4_noise0.05_grey"):
        with pytest.raises(UserError, match=r"neither a file nor one of raw, .*mosaicK\[_grey\]"):
            load_anonymizer(name)
