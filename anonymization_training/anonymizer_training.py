"""The course of the anonymizer training: minimax epochs, settling of f_T, validation, and the
choice of `best`."""

import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from anonymization_training.initialisation import Obfuscator, nt_xent_accuracy, recognition_accuracy
from anonymization_training.minimax import (
    Networks,
    Objective,
    Updater,
    step_adversaries,
    step_anonymizer,
    step_utility,
)
from anonymization_training.params_anonymization import TrainAnonymizerParams
from anonymization_training.privacy_probe import PrivacyProbe
from anonymization_training.step_loop import StepLoop, planned_steps
from anonymization_training.training_batches import (
    VIEW_AUGMENTATIONS,
    BatchSource,
    ClipBatch,
    ImageBatch,
    TrainingData,
    readable_images,
)
from aux_code.datasets.decode import UnreadableMedia
from aux_code.datasets.transforms import augment_images, evaluation_images
from aux_code.distributed import is_main
from aux_code.runs import Run, seeded_generator
from aux_code.training_state import TrainingState

N_PROBED_IMAGES = 128
"""Training images on whose views the quick label-free privacy probe measures f_B's NT-Xent
accuracy."""
N_SHOWN = 8
"""Images and video frames in TensorBoard's raw and anonymized grids."""


class Updaters(NamedTuple):
    """One optimizer per network, and a fresh one for f_T in the settling phase."""

    fa: Updater
    ft: Updater
    fb: Updater
    settle: Updater


class AnonymizerTraining:
    """Trains; see the module.

    Args:
        networks: initialised, on the run's device.
        params: the stage's parameters.
        run: folder, device, writer.
        data: validation videos, images, cache.
        save: (file name, metrics, epoch) -> writes a checkpoint of the networks as they are.
    """

    def __init__(
        self, networks: Networks, params: TrainAnonymizerParams, run: Run, data: TrainingData,
        save: Callable[[str, dict[str, float], int], None],
    ):  # fmt: skip
        self.networks, self.params, self.run, self.data, self.save = (
            networks,
            params,
            run,
            data,
            save,
        )
        self.objective = Objective(
            **{name: getattr(params, name) for name in Objective.__dataclass_fields__}
        )
        self.updaters = build_updaters(networks, params, run.device)
        self.probe = PrivacyProbe(data.cache, params.size, run.device)
        trained = {"fa": networks.fa, "ft": networks.ft, "fb": networks.fb}
        stateful = trained | {
            f"updater_{name}": updater for name, updater in self.updaters._asdict().items()
        }
        path = run.folder / "train_anonymizer_state.pth"
        self.state = TrainingState(path, vars(params), stateful, params.minutes_between_saves)

    def run_all(self, clips: BatchSource, images: BatchSource) -> dict[str, float]:
        """Minimax, settling, last validation; writes last.pth and best.pth.

        Returns:
            The metrics of last.pth.
        """
        params = self.params
        n_minimax = planned_steps(params, clips.steps_per_epoch)
        n_settle = planned_steps(params, clips.steps_per_epoch, params.settle_epochs)
        position = self.state.restore(params.resume) or {"step": 0, "best": None}
        if position["step"] < n_minimax:
            self._loop(
                "minimax", 0, n_minimax, clips.steps_per_epoch, list(self.updaters[:3])
            ).train(
                position, batch_pairs(clips, images, position["step"], n_minimax), self.minimax_step
            )
        if position["step"] < n_minimax + n_settle:
            loop = self._loop("settle f_T", n_minimax, n_minimax + n_settle, clips.steps_per_epoch,
                              [self.updaters.settle])  # fmt: skip
            remaining = clips.batches(position["step"], n_minimax + n_settle - position["step"])
            loop.train(position, zip(remaining), self.settling_step)
        metrics = self.validate()
        self.save("last.pth", metrics, params.epochs)
        if position["best"] is None or trade_off(metrics) > position["best"]:
            self.save("best.pth", metrics, params.epochs)
        self.state.finish()
        return metrics

    def minimax_step(self, clips: ClipBatch, images: ImageBatch) -> dict[str, float]:
        """Both steps on one batch (Algorithm 1), or one of them in turn (release)."""
        networks, objective, updaters = self.networks, self.objective, self.updaters
        networks.fa.train(self.params.fa_batch_norm == "batch")
        losses = {}
        both = self.params.alternate == "steps"
        fa_turn = updaters.ft.n_updates >= updaters.fa.n_updates * self.params.adversary_steps
        if both or fa_turn:
            losses |= step_anonymizer(networks, clips, images, objective, updaters.fa)
        if both or not fa_turn:
            for _ in range(self.params.adversary_steps):
                losses |= step_adversaries(
                    networks, clips, images, objective, updaters.ft, updaters.fb
                )
        return losses

    def settling_step(self, clips: ClipBatch) -> dict[str, float]:
        """f_A in the form in which it is released; f_T goes on learning."""
        self.networks.fa.eval()
        return step_utility(self.networks, clips, self.objective, self.updaters.settle)

    def _loop(
        self, description: str, first: int, last: int, steps_per_epoch: int, updaters: list[Updater]
    ) -> StepLoop:
        return StepLoop(
            self.run,
            self.params,
            self.state,
            updaters,
            steps_per_epoch,
            description,
            first,
            last,
            self._end_of_epoch,
        )

    def _end_of_epoch(self, position: dict, means: dict[str, float]) -> None:
        epoch = position["epoch"] = position.get("epoch", 0) + 1
        if is_main():
            self._show(epoch)
            if self.params.probe_every and epoch % self.params.probe_every == 0:
                self._probe_privacy(epoch)
        if epoch % self.params.validate_every:
            return
        metrics = self.validate()
        for name, value in metrics.items():
            self.run.writer.add_scalar(f"validation/{name}", value, epoch)
        if position["best"] is None or trade_off(metrics) > position["best"]:
            position["best"] = trade_off(metrics)
            self.save("best.pth", metrics, epoch)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Accuracy on anonymized clips of the validation part, and what f_B still tells of
        anonymized images.

        No private label is used: the probe is f_B's NT-Xent accuracy on two views of training
        images.
        """
        networks, data, device = self.networks, self.data, self.run.device
        fa_mode = networks.fa.training
        anonymize = Obfuscator(networks.fa, device)
        accuracy = recognition_accuracy(networks.ft, anonymize, data.validation, data.cache, self.params, n_modes=1,
                                        device=device)  # fmt: skip
        images = readable_images(data.images.paths[:N_PROBED_IMAGES], data.cache)
        generators = [
            seeded_generator("probe", view, k) for view in range(2) for k in range(len(images))
        ]
        policy = VIEW_AUGMENTATIONS[self.params.augmentation]
        pair = augment_images(images * 2, policy, self.params.size, generators).to(device)
        embedding = torch.cat([networks.fb.eval()(networks.fa(part)) for part in pair.split(64)])
        networks.fa.train(fa_mode)
        return {"top1": accuracy, "nt_xent_accuracy": nt_xent_accuracy(*embedding.chunk(2)).item()}

    def _probe_privacy(self, epoch: int) -> None:
        cmap = self.probe.cmap(self.networks.fa, self.networks.fb)
        if cmap is not None:
            self.run.writer.add_scalar("privacy/probe_cmap", cmap, epoch)

    @torch.no_grad()
    def _show(self, epoch: int) -> None:
        from torchvision.utils import make_grid

        raw = evaluation_images(self._shown_pictures(), self.params.size).to(self.run.device)
        fa_mode = self.networks.fa.training
        anonymized = self.networks.fa.eval()(raw).clamp(0, 1)
        self.networks.fa.train(fa_mode)
        grid = make_grid(torch.cat([raw, anonymized]), nrow=len(raw))
        self.run.writer.add_image("raw above anonymized", grid, epoch)

    def _shown_pictures(self) -> list[np.ndarray]:
        """Images, then the middle frames of validation videos, in equal number where there are as
        many."""
        cache, half = self.data.cache, N_SHOWN // 2
        pictures = readable_images(self.data.images.paths[:half], cache)
        for video in list(self.data.validation)[:half]:
            with contextlib.suppress(UnreadableMedia):  # which the validation names
                middle = cache.count_frames(video.path) // 2
                pictures.append(cache.read_frames(video.path, np.array([middle]))[0])
        return pictures


def build_updaters(
    networks: Networks, params: TrainAnonymizerParams, device: torch.device
) -> Updaters:
    """Adam for each network; only f_A's gradient is clipped."""

    def updater(net: torch.nn.Module, factor: float, gradient_clip: float = 0.0) -> Updater:
        return Updater(net, params.learning_rate * factor, params.precision, device, gradient_clip)

    return Updaters(
        updater(networks.fa, params.fa_learning_rate_factor, params.gradient_clip),
        updater(networks.ft, params.ft_learning_rate_factor),
        updater(networks.fb, params.fb_learning_rate_factor),
        updater(networks.ft, params.ft_learning_rate_factor),
    )


def batch_pairs(
    clips: BatchSource, images: BatchSource, first: int, last: int
) -> Iterable[tuple[ClipBatch, ImageBatch]]:
    """Batches [first, last) of clips and of images side by side."""
    return zip(clips.batches(first, last - first), images.batches(first, last - first), strict=True)


def trade_off(metrics: dict[str, float]) -> float:
    """What `best` maximises: accuracy of the utility network minus accuracy of the privacy network.

    top1 in [0, 1] is that of actions on anonymized clips of the validation part, nt_xent_accuracy
    in [0, 1] the share of anonymized training images whose other view f_B recognises. No private
    label enters.
    """
    return metrics["top1"] - metrics["nt_xent_accuracy"]
