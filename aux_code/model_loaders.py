"""The three networks by name, with weights of every origin; the anonymizers as stages take them.

f_A: anonymizer, f_T: utility network, f_B: privacy (budget) network. Each has the attribute
`architecture` = {"arch": name, "arguments": keyword arguments}, as a checkpoint's `meta` has it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.models import anonymizers, privacy, utility
from aux_code.models import weight_files as wf
from aux_code.models.anonymizers import ANONYMIZERS, NarrowOutput, as_8_bit, build_anonymizer
from aux_code.models.obfuscation import NAMES, build_obfuscation, is_named
from aux_code.models.privacy import PRIVACY_NETWORKS, build_privacy
from aux_code.models.utility import UTILITY_NETWORKS, UtilityNetwork, build_utility
from aux_code.runs import seeded_generator

_NARROW_PREFIX = "network."
_LEAST_SIZES = {
    "fa": anonymizers.LEAST_SIZES, "ft": utility.LEAST_SIZES, "fb": privacy.LEAST_SIZES,
}  # fmt: skip
_BUILDERS = {"fa": build_anonymizer, "ft": build_utility, "fb": build_privacy}
_VIDEO_BACKBONES = ("largei3d", "r3d_18", "mvitv2")
"""f_T that start from Kinetics weights, see `_adapt_backbone`."""
_LIBRARY_WEIGHTS = {
    ("fa", "unet++"): ("resnet18", "imagenet", "ResNet18_Weights.IMAGENET1K_V1"),
    ("fb", "r50"): ("resnet50", "imagenet", "ResNet50_Weights.IMAGENET1K_V2"),
    ("ft", "r3d_18"): ("r3d_18", "kinetics400", "R3D_18_Weights.KINETICS400_V1"),
    ("ft", "mvitv2"): ("mvitv2", "kinetics400", "MViT_V2_S_Weights.KINETICS400_V1"),
}
"""(network, architecture) -> two names given for a file, and torchvision's name of the weights."""
LIBRARY_NAMES = {name for *names, _ in _LIBRARY_WEIGHTS.values() for name in names}
"""What may be given in place of a file."""
_PLACES = ("", "module.", "backbone.", "encoder.", "encoder_q.", "base_encoder.", "i3d.", "0.")
"""Prefixes below which files of many origins have a residual network."""
_BELOW = f"alone or below {', '.join(_PLACES[1:-1])} or {_PLACES[-1]}"
_ACCEPTED = {
    ("fa", "unet++"): f"a ResNet-18 of ImageNet (conv1.weight ... fc.weight; {_BELOW})",
    ("ft", "largei3d"): "an I3D-ResNet50 of Kinetics-400 (conv1.weight, layer1.0.conv1.weight ... "
    f"fc.weight of 400 classes; batch norms called weight or scale; {_BELOW})",
    ("ft", "r3d_18"): "torchvision's R3D-18 of Kinetics-400 (stem.0.weight ... fc.weight)",
    ("ft", "mvitv2"): "torchvision's MViTv2-S of Kinetics-400 (conv_proj.weight ... head.1.weight)",
    ("fb", "r50"): "a ResNet-50 of SimCLR or ImageNet (conv1.weight, layer1.0.conv1.weight ..., "
    f"with or without fc of 1000 classes and projection head; {_BELOW})",
}
"""(network, architecture) -> the pre-trained weights that are taken, and their layout."""


def accepted_weights(role: str, arch: str) -> str:
    """What `load_*_model` takes for an architecture, in words: kinds, layouts, names."""
    names = [f"{name} (torchvision's)" for name in _LIBRARY_WEIGHTS.get((role, arch), ())[:1]]
    taken = [_ACCEPTED[role, arch]] if (role, arch) in _ACCEPTED else []
    return "; ".join([*taken, *names, f"or a checkpoint of '{arch}'"]).removeprefix("or ")


def load_fa_model(
    arch: str = "unet++", saved_model_file: Path | str | None = None, **arguments
) -> nn.Module:
    """The anonymizer f_A: frames (N, 3, H, W) in [0, 1] -> (N, 3, H, W).

    The published `unet++` has no sigmoid, so its outputs may leave [0, 1].

    Args:
        arch: "unet++", "unet" or "small".
        saved_model_file: weights (checkpoint, published file, safetensors file or folder, a
            torchvision ResNet-18 or "resnet18" for the encoder of unet++); None is random.
        arguments: of `build_anonymizer`: output_channels, output_scale, output_noise, sigmoid, ...
            By default those of the file, where it describes the same architecture.

    Raises:
        UserError: unknown architecture or argument, or weights that do not fit.
    """
    return _load("fa", arch, saved_model_file, arguments)


def load_ft_model(
    arch: str = "largei3d",
    saved_model_file: Path | str | None = None,
    num_classes: int = 102,
    **arguments,
) -> UtilityNetwork:
    """Utility network f_T: clips (B, 3, T, H, W) -> (B, num_classes) logits, (B, 128) embedding.

    `extract_features(clips)` -> (B, feature_dim). Embeddings have length 1; 32 values for "small".

    Args:
        arch: "largei3d", "r3d_18", "mvitv2" or "small".
        saved_model_file: weights; a Kinetics file, or "r3d_18" or "mvitv2" (torchvision's), leaves
            the heads random (logged by name); None is random.
        num_classes: actions.
        arguments: of `build_utility`, such as freeze_bn.

    Raises:
        UserError: unknown architecture or argument, or weights that do not fit.
    """
    return _load("ft", arch, saved_model_file, {"num_classes": num_classes, **arguments})


def load_fb_model(
    arch: str = "r50",
    saved_model_file: Path | str | None = None,
    num_pa: int = 7,
    ssl: bool = False,
    **arguments,
) -> nn.Module:
    """The privacy network f_B: images (N, 3, H, W) -> logits (N, num_pa), or with `ssl` (N, 128).

    These embeddings have length 1; 64 values for "small". `extract_features(images)`: pooled.

    Args:
        arch: "r50" or "small".
        saved_model_file: weights; "resnet50" (torchvision's) or a file of a ResNet-50 of ImageNet
            or SimCLR: backbone; None: random.
        num_pa: number of private attributes.
        ssl: self-supervised, with projection head.
        arguments: of `build_privacy`; `normalised` is set where the weights are of a classifier of
            ImageNet.

    Raises:
        UserError: unknown architecture or argument, or weights that do not fit.
    """
    return _load("fb", arch, saved_model_file, {"num_pa": num_pa, "ssl": ssl, **arguments})


def load_anonymizer(name_or_path: Path | str) -> nn.Module:
    """What `--anonymizer` names: raw, blur, mosaic4, ... (`build_obfuscation`), or a file's f_A.

    Rebuilt from the file's `meta`, else from the published layouts, in eval mode. Its attribute
    `requires_boxes` says whether `apply_anonymizer` needs person boxes.

    Raises:
        UserError: neither a known name nor a file, or a file without a known f_A.
    """
    if is_named(str(name_or_path)):
        return build_obfuscation(str(name_or_path))
    if not Path(name_or_path).exists():
        remedy = "give a name, or the checkpoint of train_anonymizer.py or init_anonymizer.py"
        known = f"neither a file nor one of {NAMES}"
        raise UserError(f"anonymizer '{name_or_path}' is {known}; {remedy}")
    network = _rebuild("fa", name_or_path)
    network.requires_boxes = False
    return network.eval()


def require_size(size: int, role: str, arch: str) -> None:
    """Refuses frames of `size` pixels, height and width, from which a network cannot learn: none of
    its convolutions may see a map of a single pixel, whose gradient in bf16 is wrong.

    Raises:
        UserError: it says what would do.
    """
    least = _LEAST_SIZES[role].get(arch, 1)
    if size < least:
        needed = f"'{arch}' learns from frames of at least {least} x {least} pixels"
        raise UserError(f"--size must be at least {least}, not {size}: {needed}")


def apply_anonymizer(
    anonymizer: nn.Module,
    frames: Tensor,
    boxes: Sequence[Tensor] | None = None,
    noise: Iterator[tuple] | None = None,
    n_releases: int = 1,
) -> Tensor:
    """What an anonymizer, raw too, releases of frames (N, 3, H, W) in [0, 1]: the same in 8 bits.

    Nobody else applies one: what is trained, validated, attacked, extracted and shown is this.

    Args:
        anonymizer: f_A in any form, or an obfuscation.
        frames: on its device.
        boxes: a (K, 4) tensor per frame, where it needs them.
        noise: `noise_keys`, of which every pass takes as many as it has frames; None: the global
            generator, as a training does, whose steps seed it.
        n_releases: of one that `is_noisy`, the independent releases of each frame, one after the
            other (N*n_releases, 3, H, W), for one pass of its network.
    """
    narrow = [module for module in anonymizer.modules() if isinstance(module, NarrowOutput)]
    for module in narrow:
        module.generators = noise and (seeded_generator(*key) for key in noise)
        module.n_releases = n_releases
    needs_boxes = getattr(anonymizer, "requires_boxes", False)
    output = anonymizer(frames, boxes) if needs_boxes else anonymizer(frames)
    for module in narrow:
        module.generators, module.n_releases = None, 1
    return as_8_bit(output)


def noise_keys(
    seed: int, medium: Path | str, frames: Iterable[int] = (0,), release: int = 0
) -> Iterator[tuple]:
    """What seeds the noise on frames of a video (or on an image), wherever they are released.

    Args:
        seed: of the run; whoever knows it and the name can take the noise off.
        medium: its file or folder, of which the name without ending counts.
        frames: their numbers in the video.
        release: number of the crop or of the independent release, where there are several.
    """
    stem = Path(medium).stem
    return (("noise", seed, stem, int(frame), release) for frame in frames)


def is_noisy(anonymizer: nn.Module) -> bool:
    """Whether two releases of one frame differ."""
    return any(isinstance(m, NarrowOutput) and m.output_noise > 0 for m in anonymizer.modules())


def load_utility(path: Path | str) -> UtilityNetwork:
    """f_T rebuilt from a checkpoint's `meta`, or from the published layout; in eval mode.

    A Kinetics file of a backbone is taken too, with its 400 classes and random embeddings (logged).
    A UserError if there is no file or no known f_T in it.
    """
    return _rebuild("ft", path).eval()


def load_budget(path: Path | str) -> nn.Module:
    """f_B of a checkpoint or published file, in eval mode; a UserError where it holds none."""
    return _rebuild("fb", path).eval()


def _build(role: str, arch: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        network = _BUILDERS[role](arch, **arguments)
    except TypeError as error:
        problem = f"does not take these arguments: {arguments} ({error})"
        raise UserError(f"architecture '{arch}' {problem}") from error
    network.architecture = {"arch": arch, "arguments": dict(arguments)}
    return network


def _load(
    role: str, arch: str, saved_model_file: Path | str | None, arguments: dict[str, Any]
) -> nn.Module:
    if saved_model_file is None:
        return _build(role, arch, arguments)
    file = _read(role, arch, saved_model_file)
    if file.architecture and file.architecture["arch"] == arch:
        arguments = {**file.architecture.get("arguments", {}), **arguments}
    if (role, arch) == ("fb", "r50") and _n_classes(_backbone(file.state)) == 1000:
        arguments = {"normalised": True, **arguments}
    network = _build(role, arch, arguments)
    try:
        _load_weights(network, role, file)
    except UserError as error:
        raise UserError(f"{error}\n  taken are {accepted_weights(role, arch)}") from error
    return network


def _read(role: str, arch: str, saved_model_file: Path | str) -> wf.WeightFile:
    """The weights of a file, or those that torchvision has under a name."""
    name = str(saved_model_file)
    *names, weights = _LIBRARY_WEIGHTS.get((role, arch), ("",))
    if name in names:
        from torchvision.models import get_weight

        remedy = f"put it at {{cached}}, or give its path for '{name}'"
        return wf.download(get_weight(weights), f"{name} weights of '{arch}'", remedy)
    if Path(name).exists():
        return wf.read_weight_file(saved_model_file, role)
    taken = f"taken are {accepted_weights(role, arch)}"
    if name in LIBRARY_NAMES:
        raise UserError(f"torchvision has no weights {name} for '{arch}'; {taken}")
    raise UserError(f"weights {name} do not exist; {taken}")


def _load_weights(network: nn.Module, role: str, file: wf.WeightFile) -> None:
    """Strictly, or as those of a backbone where the file is of a known pre-trained kind.

    A narrow output has no weights: files of the plain and the wrapped network serve both.
    """
    wrapped = all(name.startswith(_NARROW_PREFIX) for name in file.state)
    if wrapped and not isinstance(network, NarrowOutput):
        inner = {name.removeprefix(_NARROW_PREFIX): tensor for name, tensor in file.state.items()}
        file = file._replace(state=inner)
    if isinstance(network, NarrowOutput) and not wrapped:
        network.network.architecture = network.architecture
        network = network.network
    if file.bare and wf.compare(network, wf.with_current_names(network, file.state)):
        adapted = _adapt_backbone(role, network.architecture, file.state)
        if adapted:
            wf.load_partly(network, file, adapted)
            return
    wf.load_strictly(network, file)


def _adapt_backbone(role: str, architecture: dict, state: dict[str, Tensor]) -> wf.Adapted | None:
    """Weights of another task for a network's backbone; None: the file is of another kind."""
    arch, ssl = architecture["arch"], architecture["arguments"].get("ssl", False)
    state = _backbone(state)
    classes = _n_classes(state)
    body = {n: tensor for n, tensor in state.items() if not n.startswith(("fc.", "head.1."))}
    head = {n.replace("head.1.", "fc."): state[n] for n in state if n not in body}
    if role == "ft" and arch in _VIDEO_BACKBONES and classes == 400:
        place, head_place = ("i3d.", "i3d.") if arch == "largei3d" else ("backbone.", "")
        return wf.Adapted(
            _below(place, body) | _below(head_place, head), (f"{head_place}fc.", "mlp.")
        )
    if role == "fb" and arch == "r50" and classes in (0, 1000):
        return wf.Adapted(_below("0.", body), ("1.",)) if ssl else wf.Adapted(body | head, ("fc.",))
    if role == "fa" and arch == "unet++" and classes == 1000:
        return wf.Adapted(_below("encoder.", body), ("decoder.", "segmentation_head."))
    return None


def _backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A residual network's entries under their plain names; without one the state as it is."""
    place = next((place for place in _PLACES if f"{place}conv1.weight" in state), "")
    inside = {n.removeprefix(place): t for n, t in state.items() if n.startswith(place)}
    if "layer4.0.conv1.weight" not in inside:
        return state
    return {n: t for n, t in inside.items() if n.startswith(("conv1.", "bn1.", "layer", "fc."))}


def _n_classes(state: dict[str, Tensor]) -> int:
    """Outputs of a classifier's last layer; 0: the file has none."""
    return len(state.get("fc.bias", state.get("head.1.bias", ())))


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _rebuild(role: str, path: Path | str) -> nn.Module:
    file = wf.read_weight_file(path, role)
    described = file.architecture or next(_fitting(role, file), None)
    if described is None:
        raise UserError(f"{path} has no meta, and its weights fit no known architecture of {role}")
    network = _build(role, described["arch"], described.get("arguments", {}))
    _load_weights(network, role, file)
    return network


def _candidates(role: str, state: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Architectures to try on a state dict, with the arguments that its shapes tell."""
    if role == "fa":
        return [{"arch": arch, "arguments": {}} for arch in ANONYMIZERS]
    heads = ("i3d.fc.bias", "fc.bias", "head.1.bias")
    outputs = next((len(state[name]) for name in heads if name in state), 1)
    if role == "ft":
        return [{"arch": arch, "arguments": {"num_classes": outputs}} for arch in UTILITY_NETWORKS]
    forms = [{"num_pa": outputs, "ssl": False}, {"ssl": True}]
    return [{"arch": arch, "arguments": form} for arch in PRIVACY_NETWORKS for form in forms]


def _fitting(role: str, file: wf.WeightFile) -> Iterator[dict[str, Any]]:
    """The descriptions of the networks into which a file's weights go without a difference.

    A Kinetics file of a backbone gives features and Kinetics classes; its embeddings are random.
    """
    for candidate in _candidates(role, file.state):
        # Shapes are all that is compared: the meta device takes no memory and draws nothing.
        with torch.device("meta"):
            network = _build(role, candidate["arch"], candidate["arguments"])
        adapted = _adapt_backbone(role, candidate, file.state) if role == "ft" else None
        if not wf.compare(network, wf.with_current_names(network, file.state)) or (
            file.bare and adapted and not wf.compare(network, adapted.completed(network)[0])
        ):
            yield candidate
