"""What a run gets beside its curves: a last checkpoint whatever happens, speed, pictures, and predictions as CSV."""

import csv
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lit_models.classifier import Batch, Classifier


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, with two additions, and without the file that it writes in a `fast_dev_run`.

    `last.ckpt` is also written when training is interrupted or fails (`save_on_exception` would write a second file
    under the name of a best one as well); and a run whose folder has moved, or is given by another path, knows its
    checkpoints again.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best and last checkpoints, under the folder's present path if they lie there."""

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        if os.path.exists(here(state_dict["last_model_path"])):
            paths = ("best_model_path", "last_model_path", "kth_best_model_path")
            state_dict = state_dict | {key: here(state_dict[key]) for key in paths} | {"dirpath": self.dirpath}
            state_dict["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where training starts."""
        super().on_train_start(trainer, pl_module)
        self.first_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes `last.ckpt` if nothing has written it yet."""
        if not trainer.fast_dev_run:
            super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes `last.ckpt` as it is now, if anything was trained."""
        trained = trainer.global_step > getattr(self, "first_step", trainer.global_step)
        if not (trained and self.save_last) or trainer.fast_dev_run:
            return
        self.last_model_path = self.last_model_path or str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}.ckpt")
        trainer.save_checkpoint(self.last_model_path, self.save_weights_only)
        rank_zero_info(f"Stopped after step {trainer.global_step}. To go on from there:")
        rank_zero_info(f"  python -m lit_models fit --ckpt_path {shlex.quote(self.last_model_path)}")


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, which gathers and draws its numbers by the clock and not in every training step.

    Args:
        interval: Seconds from one drawing to the next.
    """

    def __init__(self, interval: float = 0.5) -> None:
        super().__init__()
        self.interval = interval
        self.drawn = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws, if it is time to."""
        now = time.monotonic()
        if now - self.drawn >= self.interval or batch_idx + 1 == self.total_train_batches:
            self.drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Throughput(Callback):
    """Logs `throughput/samples_per_second` of every training epoch, over all processes, validation left out."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock also where a run is resumed in the middle of an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.samples, self.seconds, self.started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        self.samples += extract_batch_size(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, if training is under way."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self.started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's speed."""
        self.seconds += time.perf_counter() - self.started
        pl_module.log("throughput/samples_per_second", self.samples * trainer.world_size / self.seconds)


class Pictures(Callback):
    """Draws, at the end of validation and test, what a Classifier confuses, for TensorBoard's IMAGES tab.

    `val/confusion` or `test/confusion` counts the images by true and predicted class; `val/mistakes` or
    `test/mistakes` shows the images that the model gets most confidently wrong.

    Args:
        mistakes: How many wrongly classified images to show, at least 1.
    """

    def __init__(self, mistakes: int = 20) -> None:
        if mistakes < 1:
            raise ValueError(f"mistakes is {mistakes}: it must be at least 1; trainer.logger=false draws no pictures")
        self.mistakes = mistakes

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empties what was counted."""
        if isinstance(pl_module, Classifier):
            self.confusion = MulticlassConfusionMatrix(pl_module.num_classes, validate_args=False).to(pl_module.device)
            self.worst: tuple[Tensor, ...] | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch, and keeps the worst mistakes so far."""
        if not isinstance(pl_module, Classifier):
            return
        images, labels = batch
        confidence, predicted = outputs.softmax(dim=1).max(dim=1)
        self.confusion.update(predicted, labels)
        wrongness = torch.where(predicted == labels, -1.0, confidence)  # below any mistake's; no wait for the device
        found = (wrongness, predicted, labels, images)
        pool = found if self.worst is None else tuple(map(torch.cat, zip(self.worst, found, strict=True)))
        kept = pool[0].topk(min(self.mistakes, len(pool[0]))).indices
        self.worst = tuple(part[kept] for part in pool)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw(trainer, pl_module, "val")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Classifier) or trainer.sanity_checking or self.worst is None:
            return
        counts = self.confusion.compute().cpu()  # on every process: it is summed over them
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero:
            return
        from lit_models import pictures  # matplotlib takes half a second to import

        names = pl_module.class_names or [str(label) for label in range(pl_module.num_classes)]
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # where Lightning puts the metrics of this stage
        for board in boards:
            add = board.experiment.add_figure
            add(f"{stage}/confusion", pictures.confusion(counts, names), step)
            add(f"{stage}/mistakes", pictures.mistakes(*(part.cpu() for part in self.worst), names), step)


class PredictionWriter(BasePredictionWriter):
    """Writes a Classifier's predictions to a CSV file: a row an image, as the batches come.

    Columns: `file` (or `index`, where the batches carry no file names), `label` (the predicted class), then a
    column a class with its probability.

    Args:
        output: The file. Its folder is made if needed; a file of that name is replaced.
    """

    def __init__(self, output: str) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the file.

        Raises:
            ValueError: There is more than one process, of which each would see a part of the images.
        """
        if trainer.world_size > 1:
            raise ValueError(f"predictions are written by one process, not {trainer.world_size}: set devices to 1")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.output.open("w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file)
        self.rows = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Classifier,
        prediction: Tensor,
        batch_indices: list[int] | None,
        batch: tuple[Tensor, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the rows of a batch."""
        classes = pl_module.class_names or [str(label) for label in range(pl_module.num_classes)]
        named = not isinstance(batch[1], Tensor)
        if batch_idx == 0:
            self.writer.writerow(["file" if named else "index", "label", *classes])
        keys = batch[1] if named else batch_indices
        for key, probabilities in zip(keys, prediction.tolist(), strict=True):
            best = max(range(len(classes)), key=probabilities.__getitem__)
            self.writer.writerow([key, classes[best], *(f"{value:.6f}" for value in probabilities)])
        self.rows += len(prediction)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the file and says where it is.

        Raises:
            ValueError: No picture could be read.
        """
        self.file.close()
        if not self.rows:
            raise ValueError(f"none of the files could be read as a picture, so {self.output} is empty")
        rank_zero_info(f"Wrote {self.rows} predictions to {self.output}")
