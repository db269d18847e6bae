"""What TensorBoard shows of a face embedder."""

import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_models.faces import verification
from lit_models.training.callbacks import boards, evaluation_step

THUMBNAILS = 1_000  # in the projector, whose picture of all of them may have 8,192 pixels a side
SIDE = 32  # of a thumbnail, in pixels


class Faces(Callback):
    """Draws, at the end of validation and test, how well a FaceEmbedder tells people apart.

    In the IMAGES tab, `val/roc` or `test/roc` is the receiver operating characteristic, `val/similarities` has the
    histograms of genuine and impostor pairs, `val/confused_different` shows the pictures of two people that are the
    most alike, `val/confused_same` those of one that are the least. After the last epoch, and after a test, the
    PROJECTOR tab has the embeddings with their pictures; those of the test take the place of the others.

    Args:
        confused: How many pairs of either kind to show, at least 1.
    """

    def __init__(self, confused: int = 8) -> None:
        if confused < 1:
            raise ValueError(f"confused is {confused}: it must be at least 1")
        self.confused = confused

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw(trainer, pl_module, "val")
        if trainer.state.fn != "fit" or trainer.current_epoch + 1 == trainer.max_epochs:
            self._project(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw(trainer, pl_module, "test")
        self._project(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        result, writers = pl_module.evaluation, boards(trainer)
        if trainer.sanity_checking or not writers or not (len(result.genuine) and len(result.impostor)):
            return
        from lit_models.training import pictures  # matplotlib takes half a second to import

        curve = verification.roc(result.genuine, result.impostor)
        threshold = verification.threshold_at(result.impostor, 1e-2)
        figures = {
            "roc": pictures.receiver_operating_characteristic(curve.far, curve.tar, curve.equal_error_rate()),
            "similarities": pictures.similarities(result.genuine, result.impostor, threshold),
        }
        if (images := images_of(trainer, stage)) is not None:
            titles = {False: "taken for one another", True: "not recognised as the same person"}
            for same, title in titles.items():
                first, second, values = verification.most_confused(result, same, self.confused)
                words = [f"{value:.2f}" for value in values.tolist()]
                sides = (images[result.places[part]] for part in (first, second))
                figures[f"confused_{'same' if same else 'different'}"] = pictures.pairs(*sides, words, title)
        for board in writers:
            for tag, figure in figures.items():
                board.add_figure(f"{stage}/{tag}", figure, evaluation_step(trainer))

    def _project(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        result, images = pl_module.evaluation, images_of(trainer, stage)
        for board in boards(trainer) if images is not None and not trainer.sanity_checking else []:
            shown = slice(THUMBNAILS)
            labels, people = result.labels[shown].tolist(), getattr(trainer.datamodule, "people", None)
            names = [people[label] if people else str(label) for label in labels]
            thumbnails = F.interpolate(images[result.places[shown]].float() / 255, (SIDE, SIDE), mode="area")
            board.add_embedding(
                result.embeddings[shown],
                [name.replace("\n", " ") for name in names],
                thumbnails.expand(-1, 3, -1, -1),
                evaluation_step(trainer),
                f"{stage}_faces",
            )


def images_of(trainer: Trainer, stage: str) -> Tensor | None:
    """The images that a stage has evaluated, by their places, if the data module keeps them."""
    images = getattr(getattr(trainer.datamodule, f"{stage}_set", None), "images", None)
    return None if images is None else images.cpu()
