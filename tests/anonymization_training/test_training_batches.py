"""Batches depend on (seed, epoch, position) alone, hold every sample once per epoch, and lose no
file silently."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anonymization_training.training_batches import (
    AUGMENTATIONS,
    BatchSource,
    ClipSamples,
    Sampling,
    clip_indices,
    clip_source,
    image_source,
    person_masks,
)
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.errors import UserError
from aux_code.models.person_boxes import open_person_boxes
from aux_code.runs import seeded_generator

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
    root = tmp_path_factory.mktemp("videos")
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    items = []
    for v in range(7):
        red = np.full_like(ramp, 30 * v)
        frames = [np.dstack([red, np.full_like(ramp, 10 * t), ramp]) for t in range(N_FRAMES)]
        items.append(Ucf101Item(write_folder(root / f"v{v}", frames), v + 1, v))
    return items


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Five images of one colour each."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Image.fromarray(np.full((20 + i, 26, 3), 50 * i, np.uint8)).save(root / f"{i}.png")
    return sorted(root.iterdir())


def sampling(views: str = "triplet", negative_distance: int = 0) -> Sampling:
    """Small clips."""
    return Sampling(views, 4, 2, 0, negative_distance)


def params(**changed) -> SimpleNamespace:
    """What the sources read of a stage's parameters."""
    fields = {"batch_videos": 3, "batch_images": 2, "n_workers": 0, "max_unreadable_share": 0.5}
    fields |= {"clip_length": 4, "stride": 2, "seed": 0, "size": 16, "augmentation": "strong"}
    return SimpleNamespace(**fields | changed)


def clips_of(videos, folder: Path, views: str = "triplet", people=None, **changed) -> BatchSource:
    """A source of clips."""
    return clip_source(videos, views, params(**changed), DecodedCache(2**24), folder, people)


def images_of(paths, folder: Path, **changed) -> BatchSource:
    """A source of images."""
    return image_source(paths, params(**changed), DecodedCache(0), folder)


def broken_video(folder: Path, name: str = "broken.avi") -> Ucf101Item:
    """A file that does not decode."""
    (folder / name).write_bytes(b"no video")
    return Ucf101Item(folder / name, 1, 99)


def equal(first, second) -> bool:
    """Batches of clips, pixel by pixel."""
    return first.names == second.names and torch.equal(first.clips, second.clips)


def test_every_sample_comes_once_per_epoch_in_an_order_of_its_own(videos, tmp_path):
    source = clips_of(videos, tmp_path, "ce", batch_videos=3)
    assert source.steps_per_epoch == 3
    names = [name for batch in source.batches(0, 7) for name in batch.names]  # 3 epochs of 7
    epochs = [tuple(names[k : k + 7]) for k in (0, 7, 14)]
    assert all(sorted(epoch) == sorted(str(v.path) for v in videos) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_a_batch_is_the_same_wherever_the_reading_began(videos, tmp_path):
    whole = list(clips_of(videos, tmp_path).batches(0, 6))
    middle = list(clips_of(videos, tmp_path).batches(4, 2))
    assert len(whole) == 6 and all(equal(a, b) for a, b in zip(whole[4:], middle, strict=True))
    assert not equal(whole[0], whole[3])


def test_worker_processes_change_nothing(videos, pictures, tmp_path):
    alone, helped = (list(clips_of(videos, tmp_path, n_workers=n).batches(1, 3)) for n in (0, 2))
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    sources = [images_of(pictures, tmp_path, n_workers=n) for n in (0, 2)]
    first, second = (list(source.batches(1, 3)) for source in sources)
    assert all(torch.equal(a.views, b.views) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_process_group_leave_the_workers_at_work(videos, tmp_path, number):
    """So that the training can finish its step and save; the workers end when the reading does."""
    before = set(multiprocessing.active_children())
    batches = clips_of(videos, tmp_path, n_workers=2).batches(0, 12)
    first = next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, number)
    assert len([first, *batches]) == 12
    for worker in workers:
        worker.join(timeout=20)
        assert not worker.is_alive()


def test_epoch_and_seed_change_times_and_augmentation(videos, tmp_path):
    one = videos[:1]
    draws = [(0, 0), (1, 0), (2, 0), (0, 1)]  # (epoch, seed)
    drawn = [
        next(clips_of(one, tmp_path, batch_videos=1, seed=seed).batches(epoch, 1)).clips
        for epoch, seed in draws
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_the_global_generator_plays_no_part(videos, tmp_path):
    torch.manual_seed(1)
    first = next(clips_of(videos, tmp_path).batches(0, 1))
    torch.manual_seed(2)
    assert equal(first, next(clips_of(videos, tmp_path).batches(0, 1)))


@pytest.mark.parametrize(
    "views, n_views", [("ce", 1), ("triplet", 3), ("invariance", 2), ("lltc", 8)]
)
def test_shapes_ranges_and_labels(videos, tmp_path, views, n_views):
    batch = next(clips_of(videos, tmp_path, views).batches(0, 1))
    assert batch.clips.shape == (n_views, 3, 3, 4, 16, 16) and batch.clips.dtype == torch.float32
    assert 0 <= batch.clips.min() and batch.clips.max() <= 1 and batch.person_masks is None
    assert [f"v{label - 1}" for label in batch.labels] == [Path(name).name for name in batch.names]


def test_triplets_share_the_anchor_and_negatives_are_disjoint_from_it():
    """The release lets the negative overlap the anchor in a third of the draws."""
    for index in range(40):
        generator = seeded_generator(0, "clip", 0, index)
        anchor, positive, negative = clip_indices(N_FRAMES, sampling("triplet"), generator)
        assert np.array_equal(anchor, positive)
        assert anchor[-1] < negative[0] or negative[-1] < anchor[0]
    near = clip_indices(N_FRAMES, sampling("triplet", negative_distance=5), seeded_generator(0))
    assert near[2][0] - near[0][-1] == 5
    a, b = clip_indices(N_FRAMES, sampling("invariance"), seeded_generator(0))
    assert a[-1] < b[0] or b[-1] < a[0]


def test_lltc_takes_four_disjoint_times_anew_in_every_epoch_and_any_of_them_as_anchor():
    """Always the same ones, which overlap, and the first as anchor taught the least of a video."""
    epochs = [clip_indices(40, sampling("lltc"), seeded_generator(0, epoch)) for epoch in range(20)]
    for clips in epochs:
        assert len(clips) == 8 and all(np.array_equal(clips[k], clips[k + 4]) for k in range(4))
        frames = np.concatenate([np.arange(clip[0], clip[-1] + 1) for clip in clips[:4]])
        assert len(set(frames.tolist())) == len(frames) == 28
    assert len({tuple(int(clip[0]) for clip in clips[:4]) for clips in epochs}) > 15
    places = {sorted(clip[0] for clip in clips[:4]).index(clips[0][0]) for clips in epochs}
    assert places == {0, 1, 2, 3}


def test_views_of_one_time_are_augmented_differently(videos, pictures, tmp_path):
    """The release crops the second view at the first one's corner: every view makes its own
    draws."""
    batch = next(clips_of(videos, tmp_path).batches(0, 1))
    assert not torch.equal(batch.clips[0], batch.clips[1])
    images = next(images_of(pictures, tmp_path).batches(0, 1))
    assert images.views.shape == (2, 2, 3, 16, 16) and len(images.names) == 2
    assert 0 <= images.views.min() and images.views.max() <= 1
    ramps = [video.path / "0003.png" for video in videos]
    views = next(images_of(ramps, tmp_path, batch_images=7).batches(0, 1)).views
    assert all((a - b).abs().mean() > 0.01 for a, b in zip(views[0], views[1], strict=True))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_unreadable_files_are_counted_named_and_passed_over(videos, pictures, tmp_path, n_workers):
    broken = broken_video(tmp_path)
    options = {"batch_videos": 4, "n_workers": n_workers}
    source = clips_of([*videos, broken], tmp_path, "ce", **options)
    batches = list(source.batches(0, 4))  # two epochs of eight
    assert sorted(len(batch.names) for batch in batches) == [3, 3, 4, 4]
    assert all(batch.clips.shape[1] == len(batch.labels) == len(batch.names) for batch in batches)
    assert source.unreadable.names == [str(broken.path)]
    assert str(broken.path) in (tmp_path / "unreadable.txt").read_text()
    source = images_of([*pictures, broken.path], tmp_path, batch_images=6)
    batch = next(source.batches(0, 1))
    assert batch.views.shape[1] == 5 and source.unreadable.names == [str(broken.path)]


def test_too_many_unreadable_files_stop_the_run(videos, tmp_path):
    options = {"batch_videos": 8, "max_unreadable_share": 0.1}
    source = clips_of([*videos, broken_video(tmp_path)], tmp_path, "ce", **options)
    with pytest.raises(UserError, match="1 of 8 files are unreadable"):
        list(source.batches(0, 1))


def test_a_batch_without_a_readable_file_stops_the_run(videos, tmp_path):
    broken = [broken_video(tmp_path, f"broken{i}.avi") for i in range(2)]
    source = clips_of([*videos, *broken], tmp_path, "ce", batch_videos=1)
    with pytest.raises(UserError, match="not one file of a batch is readable: .*broken"):
        list(source.batches(0, 9))


@pytest.mark.parametrize("augmentation", ["strong", "moderate"])
def test_person_masks_follow_crop_and_flip_of_their_clip(tmp_path, augmentation):
    """The box is white in a black video: where the augmented clip is bright, the mask is one."""
    frames = []
    for t in range(N_FRAMES):
        frame = np.zeros((40, 60, 3), np.uint8)
        frame[10:26, t : t + 18] = 255
        frames.append(frame)
    video = write_folder(tmp_path / "Videos" / "walk", frames)
    rows = "".join(f"Videos/walk,{t},{t},10,{t + 18},26\n" for t in range(N_FRAMES))
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\n" + rows)
    people, policy = open_person_boxes(None, None, tmp_path), AUGMENTATIONS[augmentation]
    assert not policy.centred and not policy.grey_probability
    options = {"size": 32, "augmentation": augmentation, "batch_videos": 1}
    source = clips_of([Ucf101Item(video, 1, 1)], tmp_path, "triplet", people, **options)
    agreement, flips = [], set()
    for batch in source.batches(0, 12):
        assert batch.person_masks.shape == (3, 1, 1, 4, 32, 32)
        assert set(batch.person_masks.unique().tolist()) <= {0.0, 1.0}
        bright = batch.clips.mean(2, keepdim=True)
        erased = (batch.clips == 0.5).all(2, keepdim=True)
        lit = bright > bright.amax((2, 3, 4, 5), keepdim=True) / 2
        agreement.append(((lit == (batch.person_masks > 0)) | erased).float().mean().item())
        columns = [mask.nonzero()[:, 1].float() for mask in batch.person_masks[0, 0, 0]]
        centres = [of_frame.mean().item() for of_frame in columns]
        flips.add(centres[-1] < centres[0])  # the person walks to the right
    assert min(agreement) > 0.95 and flips == {True, False}


def test_masks_are_painted_frame_by_frame_and_cut_at_the_border(tmp_path):
    rows = "v/a.avi,2,-3,1.5,4,99\nv/a.avi,2,6,0,7,1\n"
    (tmp_path / "b.csv").write_text("file,frame,x0,y0,x1,y1\n" + rows)
    people = open_person_boxes(tmp_path / "b.csv", None, tmp_path)
    masks = person_masks(people, tmp_path / "v" / "a.avi", np.array([0, 2]), (5, 8))
    expected = np.zeros((5, 8), np.uint8)
    expected[1:, :4] = 255
    expected[0, 6] = 255
    assert masks.dtype == np.uint8 and masks.shape == (2, 5, 8, 3)
    assert not masks[0].any() and all(np.array_equal(masks[1, :, :, c], expected) for c in range(3))


def test_a_sample_decodes_each_frame_once(videos, tmp_path, monkeypatch):
    cache, asked = DecodedCache(0), []
    read = cache.read_frames

    def noting(path, indices):
        asked.append(list(indices))
        return read(path, indices)

    monkeypatch.setattr(cache, "read_frames", noting)
    ClipSamples(videos, sampling("triplet"), cache)[0, 0]
    # anchor and negative, not the positive again
    assert len(asked) == 1 and len(set(asked[0])) == len(asked[0]) == 8


def test_batches_move_to_a_device(videos, tmp_path):
    batch = next(clips_of(videos, tmp_path).batches(0, 1))
    moved = batch.to(torch.device("meta"))
    assert moved.clips.device.type == moved.labels.device.type == "meta"
    assert moved.names == batch.names and moved.person_masks is None
