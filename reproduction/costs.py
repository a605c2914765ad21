"""How much a step computes, from its parameters: what its duration is estimated from until the like
of it has run."""

from reproduction.tasks import Task

FRAME_GFLOP = 24.6
"""f_A (UNet++ with ResNet-18) on one frame of 224 x 224; one multiplication and one addition are
two FLOP, here and below (benchmarks/model_costs.py counts them)."""
CLIP_GFLOP = {"largei3d": 32.8, "mvitv2": 128.4, "r3d_18": 325.6}
"""f_T on a clip of 16 frames of 224 x 224; the last two from torchvision's 64.2 and 4 x 40.7
GMAC."""
IMAGE_GFLOP = 8.2
"""f_B (ResNet-50) on an image of 224 x 224."""
BAG_GFLOP = 175.5 / 32 / 3
"""MGFN on a bag of 32 segments, forward; a training step of 32 bags takes 175.5."""
TRAINING = 3
"""A forward and backward pass in forward passes."""
MINIMAX_PASSES = {"fa": 5, "ft": 5, "fb": 5}
"""Forward passes that both steps of the minimax take of each network: 3 in the step that trains it.
In the other, f_A takes one, and one is computed again in the backward pass; f_T and f_B take two,
up to their input."""
CLIPS_OF_LOSS = {"ce": 1, "triplet": 3, "invariance": 2, "lltc": 8}
"""Clips of a video in a minimax step."""

UCF101_CLIPS, VISPR_TRAIN, VISPR_TEST = 9537, 10_000, 8_000
FRAMES = {"ucf_crime": 1900 * 7247, "xd_violence": 217 * 3600 * 24, "shanghaitech": 317_398}
"""Frames of a surveillance set (paper: mean length, hours at 24 fps; ShanghaiTech: its authors)."""
TRAIN_BAGS = {"ucf_crime": 2 * 810, "xd_violence": 2 * 2049, "shanghaitech": 2 * 175}
"""Videos of an epoch of MGFN: pairs of a normal and an anomalous one."""
TEST_SHARE = {"ucf_crime": 0.08, "xd_violence": 0.17, "shanghaitech": 0.46}
"""Share of a set's frames in test videos (UCF-Crime: from frame counts, others: of videos)."""


def gflop(task: Task) -> float | None:
    """GFLOP of a step with the paper's networks and data sets; None for steps that are no network's
    work.

    For the miniature, whose networks and data are small, only the ratio of two steps of a stage
    means something.
    """
    count = _COUNTS.get(task.stage)
    if count is None or not task.parameters:
        return None
    options = dict(zip(task.arguments, task.arguments[1:], strict=False))
    return count(task.parameters, options)


def _init_anonymizer(params: dict, _: dict) -> float:
    frames = params["batch_videos"] * params["frames_per_video"] + params["batch_images"]
    return _steps(params) * frames * FRAME_GFLOP * TRAINING


def _init_utility(params: dict, options: dict) -> float:
    clip = CLIP_GFLOP.get(options.get("--ft_arch", params["ft_arch"]), CLIP_GFLOP["largei3d"])
    anonymizer = _frames_gflop(options, 16)
    return _steps(params) * params["batch_videos"] * (clip * TRAINING + anonymizer)


def _init_privacy(params: dict, _: dict) -> float:
    return params["epochs"] * VISPR_TRAIN * 2 * IMAGE_GFLOP * TRAINING


def _train_anonymizer(params: dict, options: dict) -> float:
    clips = params["batch_videos"] * CLIPS_OF_LOSS[params["utility_loss"]]
    views = 2 * params["batch_images"]
    anonymizer = (16 * clips + views) * FRAME_GFLOP * MINIMAX_PASSES["fa"]
    utility = clips * _clip_gflop(options.get("--init_ft", "")) * MINIMAX_PASSES["ft"]
    return _steps(params) * (anonymizer + utility + views * IMAGE_GFLOP * MINIMAX_PASSES["fb"])


def _train_privacy(params: dict, options: dict) -> float:
    pictures = VISPR_TRAIN + VISPR_TEST
    if options.get("--level", params["level"]) == "feature":  # the MLP costs next to nothing
        return pictures * (_frames_gflop(options, 16) + CLIP_GFLOP["largei3d"])
    releases = pictures * _frames_gflop(options, int(options.get("--average_frames", 1)))
    epochs = params["epochs"] or params["image_epochs"]
    scored = VISPR_TEST / params["evaluate_every"]
    return releases + epochs * (VISPR_TRAIN * TRAINING + scored) * IMAGE_GFLOP


def _extraction(params: dict, options: dict) -> float:
    clips = FRAMES.get(options["--dataset"], 0) / params["frames_per_feature"]
    return clips * (
        _frames_gflop(options, params["frames_per_clip"])
        + _clip_gflop(options.get("--utility", ""))
    )


def _detection(params: dict, options: dict) -> float:
    dataset = options["--dataset"]
    bags = TRAIN_BAGS.get(dataset, 0) * TRAINING
    tested = (
        FRAMES.get(dataset, 0) * TEST_SHARE.get(dataset, 0) / 32 / 32 / params["evaluate_every"]
    )
    return params["epochs"] * (bags + tested) * BAG_GFLOP


def _clip_gflop(path: str) -> float:
    """f_T of a checkpoint, in whose folder's name the plan writes an architecture that is not the
    usual one."""
    return next(
        (cost for name, cost in CLIP_GFLOP.items() if f"_{name}/" in path), CLIP_GFLOP["largei3d"]
    )


def _frames_gflop(options: dict, n_frames: int) -> float:
    """f_A on some frames; the fixed obfuscations cost next to nothing."""
    return n_frames * FRAME_GFLOP if options.get("--anonymizer", "raw").endswith(".pth") else 0.0


def _steps(params: dict) -> float:
    videos = UCF101_CLIPS * (1 - params["validation_fraction"])
    return params["epochs"] * videos / params["batch_videos"]


_COUNTS = {
    "init_anonymizer": _init_anonymizer,
    "init_utility": _init_utility,
    "init_privacy": _init_privacy,
    "train_anonymizer": _train_anonymizer,
    "train_privacy": _train_privacy,
    "dali_extraction": _extraction,
    "main": _detection,
}
