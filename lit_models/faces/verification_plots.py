"""Figures of face embeddings in TensorBoard: ROC, similarities, hardest pairs, projector."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import PositiveInt, check_arguments
from lit_models.faces import verification
from lit_models.training.internals import logged_step
from lit_models.training.plots import EvaluationPlots, tensorboard_writers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class VerificationPlots(EvaluationPlots):
    """Draws the verification of a FaceEmbedder at the end of validation and test.

    In the IMAGES tab, `val/roc` or `test/roc` is the receiver operating characteristic, `val/similarities` has the
    histograms of genuine and impostor pairs, `val/confused_different` shows the most similar images of two people,
    `val/confused_same` the least similar images of one. After the last epoch, and after a test, the PROJECTOR tab has
    the embeddings with their images; those of the test take the place of the others.

    Args:
        confused: Number of pairs of either kind to show.
    """

    task = "face recognition"

    def __init__(self, confused: PositiveInt = 8) -> None:
        check_arguments(VerificationPlots, locals())
        self.confused = confused

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        last = trainer.state.fn != "fit" or trainer.current_epoch + 1 == trainer.max_epochs
        if last and not trainer.sanity_checking:
            self._project(trainer, pl_module, "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        self._project(trainer, pl_module, "test")

    @override
    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        result = pl_module.result
        if not trainer.is_global_zero or not (len(result.genuine) and len(result.impostor)):
            return {}
        from lit_models.training import figures  # matplotlib takes half a second to import

        curve = verification.roc(result.genuine, result.impostor)
        threshold = verification.threshold_at(result.impostor, 1e-2)
        found = {
            "roc": figures.plot_roc(curve.far, curve.tar, curve.equal_error_rate()),
            "similarities": figures.plot_similarities(result.genuine, result.impostor, threshold),
        }
        if (images := evaluated_images(trainer, stage)) is not None:
            for same, title in ((False, "taken for one another"), (True, "not recognized as the same person")):
                first, second, values = verification.most_confused(result, same, self.confused)
                captions = [f"{value:.2f}" for value in values.tolist()]
                sides = (images[result.indices[part]] for part in (first, second))
                found[f"confused_{'same' if same else 'different'}"] = figures.plot_pairs(*sides, captions, title)
        return found

    def _project(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(pl_module, "task", None) != self.task:
            return
        result, images = pl_module.result, evaluated_images(trainer, stage)
        for writer in tensorboard_writers(trainer) if images is not None else []:
            shown = slice(1_000)  # the projector's sprite of all thumbnails may have 8,192 pixels along a side
            labels, people = result.labels[shown].tolist(), getattr(trainer.datamodule, "identities", None)
            names = [(people[label] if people else str(label)).replace("\n", " ") for label in labels]
            thumbnails = F.interpolate(images[result.indices[shown]].float() / 255, (32, 32), mode="area")
            thumbnails = thumbnails.expand(-1, 3, -1, -1)
            writer.add_embedding(result.embeddings[shown], names, thumbnails, logged_step(trainer), f"{stage}_faces")


def evaluated_images(trainer: Trainer, stage: str) -> Tensor | None:
    """The images that a stage has evaluated, by index, if the data module keeps them."""
    images = getattr(getattr(trainer.datamodule, f"{stage}_set", None), "images", None)
    return None if images is None else images.cpu()
