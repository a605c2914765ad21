"""Batches depend on (seed, epoch, position) alone, hold every sample once per epoch, and lose no
file silently."""

import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from anonymization_training import training_batches
from anonymization_training.training_batches import BatchSource, Sampling
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.errors import UserError
from aux_code.models.person_boxes import open_person_boxes
from aux_code.runs import seeded_generator
from tests.anonymization_training.conftest import N_VIEWS

N_FRAMES = 24


def write_folder(path: Path, frames: list[np.ndarray]) -> Path:
    """A video as a folder of pictures, which the decoder takes too."""
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i:04d}.png")
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Ucf101Item]:
    """Seven videos; red is the video, green the frame, blue a ramp from left to right."""
    root, items = tmp_path_factory.mktemp("videos"), []
    frames = np.zeros((7, N_FRAMES, 30, 40, 3), np.uint8)
    frames[..., 0] = 30 * np.arange(7).reshape(-1, 1, 1, 1)
    frames[..., 1] = 10 * np.arange(N_FRAMES).reshape(-1, 1, 1)
    frames[..., 2] = np.linspace(0, 255, 40)
    for v, video in enumerate(frames):
        items.append(Ucf101Item(write_folder(root / f"v{v}", list(video)), v + 1, v))
    return items


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Five images of one colour each."""
    images = [np.full((20 + i, 26, 3), 50 * i, np.uint8) for i in range(5)]
    return sorted(write_folder(tmp_path_factory.mktemp("pictures") / "five", images).iterdir())


def params(**changed) -> SimpleNamespace:
    """What the sources read of a stage's parameters."""
    fields = {"batch_videos": 3, "batch_images": 2, "n_workers": 0, "max_unreadable_share": 0.5}
    fields |= {"clip_length": 4, "stride": 2, "seed": 0, "size": 16, "augmentation": "strong"}
    return SimpleNamespace(**fields | changed)


@pytest.fixture
def clips_of(tmp_path):
    """clips_of(videos, views, people, **changed): a source of clips."""

    def build(videos, views: str = "triplet", people=None, **changed) -> BatchSource:
        cache, goal = DecodedCache(2**24), params(**changed)
        return training_batches.clip_source(videos, views, goal, cache, tmp_path, people)

    return build


@pytest.fixture
def images_of(tmp_path):
    """images_of(paths, **changed): a source of images."""
    source, cache = training_batches.image_source, DecodedCache(0)
    return lambda paths, **changed: source(paths, params(**changed), cache, tmp_path)


def broken_video(folder: Path, name: str = "broken.avi") -> Ucf101Item:
    """A file that does not decode."""
    (folder / name).write_bytes(b"no video")
    return Ucf101Item(folder / name, 1, 99)


def equal(first, second) -> bool:
    """Batches of clips, pixel by pixel."""
    return first.names == second.names and torch.equal(first.clips, second.clips)


def test_every_sample_comes_once_per_epoch_in_an_order_of_its_own(videos, clips_of):
    source = clips_of(videos, "ce", batch_videos=3)
    assert source.steps_per_epoch == 3
    names = [name for batch in source.batches(0, 7) for name in batch.names]  # 3 epochs of 7
    epochs = [tuple(names[k : k + 7]) for k in (0, 7, 14)]
    assert all(sorted(epoch) == sorted(str(v.path) for v in videos) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_a_batch_is_the_same_wherever_the_reading_began_and_whoever_decodes(
    videos, pictures, clips_of, images_of
):
    """The global generator, which is elsewhere by then, plays no part."""
    whole = list(clips_of(videos).batches(0, 6))
    assert len(whole) == 6 and not equal(whole[0], whole[3])
    for n_workers in (0, 2):
        middle = clips_of(videos, n_workers=n_workers).batches(4, 2)
        assert all(equal(a, b) for a, b in zip(whole[4:], middle, strict=True))
    alone, helped = (images_of(pictures, n_workers=n).batches(1, 3) for n in (0, 2))
    assert all(torch.equal(a.views, b.views) for a, b in zip(alone, helped, strict=True))


def test_only_the_batches_ahead_are_drawn(videos, clips_of):
    """The keys of all steps of a long training were a million tuples."""
    source = clips_of(videos)
    next(source.batches(0, 20_000))
    assert source._ordered[0] == 0, "the epoch whose order was drawn last"


def test_beside_a_gpu_nothing_is_pinned_for_a_training_on_the_cpu(videos, clips_of, monkeypatch):
    """It would open a context there, which a GPU in exclusive mode refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DataLoader's, that there is no GPU to pin for
        assert next(clips_of(videos).batches(0, 1, "cpu")).names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_process_group_leave_the_workers_at_work(videos, clips_of, number):
    """So that the training can finish its step and save; the workers end when the reading does."""
    before = set(multiprocessing.active_children())
    batches = clips_of(videos, n_workers=2).batches(0, 12)
    first = next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, number)
    assert len([first, *batches]) == 12
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()


def test_epoch_and_seed_change_times_and_augmentation(videos, clips_of):
    drawn = [
        next(clips_of(videos[:1], batch_videos=1, seed=seed).batches(epoch, 1)).clips
        for epoch, seed in ((0, 0), (1, 0), (2, 0), (0, 1))
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("views, n_views", N_VIEWS.items())
def test_shapes_ranges_and_labels(videos, clips_of, views, n_views):
    batch = next(clips_of(videos, views).batches(0, 1))
    assert batch.clips.shape == (n_views, 3, 3, 4, 16, 16) and batch.clips.dtype == torch.float32
    assert 0 <= batch.clips.min() and batch.clips.max() <= 1 and batch.person_masks is None
    assert [f"v{label - 1}" for label in batch.labels] == [Path(name).name for name in batch.names]


def indices(views: str, *key, distance: int = 0, n_frames: int = N_FRAMES) -> list[np.ndarray]:
    """Of the clips of a video."""
    sampling, generator = Sampling(views, 4, 2, 0, distance), seeded_generator(0, *key)
    return training_batches.clip_indices(n_frames, sampling, generator)


def test_triplets_share_the_anchor_and_negatives_are_disjoint_from_it():
    """The release lets the negative overlap the anchor in a third of the draws."""
    for index in range(40):
        anchor, positive, negative = indices("triplet", "clip", 0, index)
        assert np.array_equal(anchor, positive)
        assert anchor[-1] < negative[0] or negative[-1] < anchor[0]
    anchor, _, negative = indices("triplet", distance=5)
    assert negative[0] - anchor[-1] == 5
    a, b = indices("invariance")
    assert a[-1] < b[0] or b[-1] < a[0]


def test_lltc_takes_four_disjoint_times_anew_in_every_epoch_and_any_of_them_as_anchor():
    """Always the same ones, which overlap, and the first as anchor taught the least of a video."""
    epochs = [indices("lltc", epoch, n_frames=40) for epoch in range(20)]
    for clips in epochs:
        assert len(clips) == 8 and all(np.array_equal(clips[k], clips[k + 4]) for k in range(4))
        frames = np.concatenate([np.arange(clip[0], clip[-1] + 1) for clip in clips[:4]])
        assert len(set(frames.tolist())) == len(frames) == 28
    starts = [[int(clip[0]) for clip in clips[:4]] for clips in epochs]
    assert len(set(map(tuple, starts))) > 15
    assert {sorted(of_epoch).index(of_epoch[0]) for of_epoch in starts} == {0, 1, 2, 3}


def test_views_of_one_time_are_augmented_differently(videos, pictures, clips_of, images_of):
    """The release crops the second view at the first one's corner: every view makes its own
    draws."""
    batch = next(clips_of(videos).batches(0, 1))
    assert not torch.equal(batch.clips[0], batch.clips[1])
    images = next(images_of(pictures).batches(0, 1))
    assert images.views.shape == (2, 2, 3, 16, 16) and len(images.names) == 2
    assert 0 <= images.views.min() and images.views.max() <= 1
    ramps = [video.path / "0003.png" for video in videos]
    views = next(images_of(ramps, batch_images=7).batches(0, 1)).views
    assert all((a - b).abs().mean() > 0.01 for a, b in zip(*views, strict=True))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_unreadable_files_are_counted_named_and_passed_over(
    videos, pictures, tmp_path, clips_of, images_of, n_workers
):
    broken = broken_video(tmp_path)
    source = clips_of([*videos, broken], "ce", batch_videos=4, n_workers=n_workers)
    batches = list(source.batches(0, 4))  # two epochs of eight
    assert sorted(len(batch.names) for batch in batches) == [3, 3, 4, 4]
    assert all(batch.clips.shape[1] == len(batch.labels) == len(batch.names) for batch in batches)
    assert source.unreadable.names == [str(broken.path)]
    assert str(broken.path) in (tmp_path / "unreadable.txt").read_text()
    source = images_of([*pictures, broken.path], batch_images=6)
    batch = next(source.batches(0, 1))
    assert batch.views.shape[1] == 5 and source.unreadable.names == [str(broken.path)]


def test_what_no_run_can_go_on_with_is_refused(videos, tmp_path, clips_of, monkeypatch):
    broken = [broken_video(tmp_path, f"broken{i}.avi") for i in range(2)]
    too_many = clips_of([*videos, broken[0]], "ce", batch_videos=8, max_unreadable_share=0.1)
    with pytest.raises(UserError, match="1 of 8 files are unreadable"):
        list(too_many.batches(0, 1))
    with pytest.raises(UserError, match="not one file of a batch is readable: .*broken"):
        list(clips_of([*videos, *broken], "ce", batch_videos=1).batches(0, 9))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes cannot share batches of 7 equally"):
        clips_of(videos, batch_videos=7)


@pytest.mark.parametrize("augmentation, size", [("strong", 32), ("moderate", 24)])
def test_person_masks_follow_crop_and_flip_of_their_clip(tmp_path, clips_of, augmentation, size):
    """The box is white in a black video: where the augmented clip is bright, the mask is one. At
    24 pixels the frames are resized before they are handed over."""
    frames = np.zeros((N_FRAMES, 40, 60, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[10:26, t : t + 18] = 255
    video = write_folder(tmp_path / "Videos" / "walk", list(frames))
    rows = "".join(f"Videos/walk,{t},{t},10,{t + 18},26\n" for t in range(N_FRAMES))
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\n" + rows)
    people = open_person_boxes(None, None, tmp_path)
    policy = training_batches.AUGMENTATIONS[augmentation]
    assert not policy.centred and not policy.grey_probability
    options = {"size": size, "augmentation": augmentation, "batch_videos": 1}
    source = clips_of([Ucf101Item(video, 1, 1)], "triplet", people, **options)
    agreement, flips = [], set()
    for batch in source.batches(0, 12):
        assert batch.person_masks.shape == (3, 1, 1, 4, size, size)
        assert set(batch.person_masks.unique().tolist()) <= {0.0, 1.0}
        bright = batch.clips.mean(2, keepdim=True)
        erased = (batch.clips == 0.5).all(2, keepdim=True)
        lit = bright > bright.amax((2, 3, 4, 5), keepdim=True) / 2
        agreement.append(((lit == (batch.person_masks > 0)) | erased).float().mean().item())
        first, *_, last = (mask.nonzero()[:, 1].float() for mask in batch.person_masks[0, 0, 0])
        flips.add((last.mean() < first.mean()).item())  # the person walks to the right
    assert min(agreement) > 0.95 and flips == {True, False}


def test_masks_are_painted_frame_by_frame_and_cut_at_the_border(tmp_path):
    rows = "v/a.avi,2,-3,1.5,4,99\nv/a.avi,2,6,0,7,1\n"
    (tmp_path / "b.csv").write_text("file,frame,x0,y0,x1,y1\n" + rows)
    people, video = open_person_boxes(tmp_path / "b.csv", None, tmp_path), tmp_path / "v" / "a.avi"
    masks = training_batches.person_masks(people, video, np.array([0, 2]), (5, 8))
    expected = np.zeros((2, 5, 8, 3), np.uint8)
    expected[1, 1:, :4] = expected[1, 0, 6] = 255
    assert masks.dtype == np.uint8 and np.array_equal(masks, expected)


def test_a_sample_decodes_each_frame_once(videos):
    cache = Mock(wraps=DecodedCache(0))
    training_batches.ClipSamples(videos, Sampling("triplet", 4, 2, 0), cache)[0, 0]
    (asked,) = cache.read_frames.call_args_list
    # anchor and negative, not the positive again
    assert len(set(asked.args[1])) == len(asked.args[1]) == 8
    training_batches.ClipSamples(videos, Sampling("ce", 4, 2, 0, n_used=2), cache)[0, 0]
    first, second = cache.read_frames.call_args.args[1]
    assert second - first == 4


@pytest.mark.parametrize(
    "of_view, height, width",
    [((0, 0, 1), 240, 320), ((0, 1, 2, 3) * 2, 240, 320), ((0, 0), 900, 1200)],
)
def test_what_is_handed_over_is_at_most_a_quarter_of_the_views(of_view, height, width):
    """Triplets, LLTC and images at the paper's sizes; the views are float32."""
    frames = np.zeros((max(of_view) + 1, 1, height, width, 3), np.uint8)
    samples = [training_batches._Sample(frames, of_view, (0, i), "a") for i in range(8)]
    crops, _ = training_batches.collate(samples, 224, training_batches.AUGMENTATIONS["strong"])
    assert crops.pixels.nbytes <= len(of_view) * 8 * 3 * 224 * 224
