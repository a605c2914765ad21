"""The three networks by name, with weights of every origin; the anonymizers as stages take them.

f_A: anonymizer, f_T: utility network, f_B: privacy (budget) network. Each has the attribute
`architecture` = {"arch": name, "arguments": keyword arguments}, as a checkpoint's `meta` has it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.models import weight_files as wf
from aux_code.models.anonymizers import ANONYMIZERS, NarrowOutput, build_anonymizer
from aux_code.models.obfuscation import NAMES, build_obfuscation, is_named
from aux_code.models.privacy import PRIVACY_NETWORKS, build_privacy
from aux_code.models.utility import UTILITY_NETWORKS, UtilityNetwork, build_utility

_NARROW_PREFIX = "network."
_BUILDERS = {"fa": build_anonymizer, "ft": build_utility, "fb": build_privacy}
_VIDEO_BACKBONES = ("largei3d", "r3d_18", "mvitv2")
"""f_T that start from Kinetics weights, see `_adapt_backbone`."""
_LIBRARY_WEIGHTS = {
    ("fa", "unet++", "imagenet"): "ResNet18_Weights.IMAGENET1K_V1",
    ("fb", "r50", "imagenet"): "ResNet50_Weights.IMAGENET1K_V2",
    ("ft", "r3d_18", "kinetics400"): "R3D_18_Weights.KINETICS400_V1",
    ("ft", "mvitv2", "kinetics400"): "MViT_V2_S_Weights.KINETICS400_V1",
}
"""(network, architecture, name given for the file) -> torchvision's name of the weights."""


def load_fa_model(
    arch: str = "unet++", saved_model_file: Path | str | None = None, **arguments
) -> nn.Module:
    """The anonymizer f_A: frames (N, 3, H, W) in [0, 1] -> (N, 3, H, W).

    The published `unet++` has no sigmoid, so its outputs may leave [0, 1].

    Args:
        arch: "unet++", "unet" or "small".
        saved_model_file: weights (checkpoint, published file, safetensors file or folder, a
            torchvision ResNet-18 or "imagenet" for the encoder of unet++); None is random.
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
        saved_model_file: weights; a Kinetics file, or "kinetics400" (torchvision's, of r3d_18 and
            mvitv2), leaves the heads random (logged by name); None is random.
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
        saved_model_file: weights; "imagenet" or torchvision's ResNet-50: backbone; None: random.
        num_pa: number of private attributes.
        ssl: self-supervised, with projection head.
        arguments: of `build_privacy`.

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


def apply_anonymizer(
    anonymizer: nn.Module, frames: Tensor, boxes: Sequence[Tensor] | None = None
) -> Tensor:
    """Anonymizes frames (N, 3, H, W); `boxes`, a (K, 4) tensor per frame, where it needs them."""
    needs_boxes = getattr(anonymizer, "requires_boxes", False)
    return anonymizer(frames, boxes) if needs_boxes else anonymizer(frames)


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
    network = _build(role, arch, arguments)
    _load_weights(network, role, file)
    return network


def _read(role: str, arch: str, saved_model_file: Path | str) -> wf.WeightFile:
    """The weights of a file, or those that torchvision has under a name."""
    name = str(saved_model_file)
    if (role, arch, name) in _LIBRARY_WEIGHTS:
        from torchvision.models import get_weight

        weights = get_weight(_LIBRARY_WEIGHTS[role, arch, name])
        remedy = f"put it at {{cached}}, or give its path for '{name}'"
        return wf.download(weights, f"{name} weights of '{arch}'", remedy)
    if any(name == known for *_, known in _LIBRARY_WEIGHTS) and not Path(name).exists():
        others = ", ".join(f"{a} ({known})" for r, a, known in _LIBRARY_WEIGHTS if r == role)
        problem = f"torchvision has no {name} weights of '{arch}', only those of {others}"
        raise UserError(f"{problem}; give a file")
    return wf.read_weight_file(saved_model_file, role)


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
    """Kinetics and ImageNet weights for a network's backbone; None: the file is of another kind."""
    arch, ssl = architecture["arch"], architecture["arguments"].get("ssl", False)
    classes = len(state.get("fc.bias", state.get("head.1.bias", ())))
    body = {n: tensor for n, tensor in state.items() if not n.startswith(("fc.", "head.1."))}
    head = {n.replace("head.1.", "fc."): state[n] for n in state if n not in body}
    if role == "ft" and arch in _VIDEO_BACKBONES and classes == 400:
        place, head_place = ("i3d.", "i3d.") if arch == "largei3d" else ("backbone.", "")
        return wf.Adapted(
            _below(place, body) | _below(head_place, head), (f"{head_place}fc.", "mlp.")
        )
    if role == "fb" and arch == "r50" and classes == 1000:
        return wf.Adapted(_below("0.", body), ("1.",)) if ssl else wf.Adapted(body | head, ("fc.",))
    if role == "fa" and arch == "unet++" and classes == 1000:
        return wf.Adapted(_below("encoder.", body), ("decoder.", "segmentation_head."))
    return None


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
