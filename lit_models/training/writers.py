"""Predictions as CSV files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_models.classifier import Classifier
from lit_models.rnn import RNN, Window


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of a Classifier, an RNN or an agent to a CSV file, as the batches come.

    A Classifier's file has a row an image: `file` (or `index`, where the batches carry no file names), `label` (the
    predicted class), then a column a class with its probability. An RNN's has a row a time step: `time`, then for each
    column of the series its value, empty where it isn't known, and its forecast: one step ahead where the value is
    known, running free after it. Any other model may predict rows itself, as dictionaries of a column's name and its
    value, such as an agent's episodes.

    Args:
        output: The file. Its folder is made if needed; a file of that name is replaced, once all is written.
    """

    def __init__(self, output: str) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)
        self.file: TextIO | None = None
        self.partial = self.output.with_name(f"{self.output.name}.partial")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the file.

        Raises:
            ValueError: There is more than one process, of which each would see a part of the data; or the file is the
                one that the series is read from.
            OSError: The file can't be written.
        """
        if trainer.world_size > 1:
            raise ValueError(f"predictions are written by one process, not {trainer.world_size}: set devices to 1")
        source = getattr(trainer.datamodule, "hparams", {}).get("path")
        if source is not None and self.output.resolve() == Path(source).resolve():
            raise ValueError(f"{self.output} is the series itself: give another file with --output")
        if self.output.exists() and self.output.resolve() == Path(trainer.ckpt_path or "").resolve():
            raise ValueError(f"{self.output} is the checkpoint itself: give another file with --output")
        try:
            if self.output.exists() and not (self.output.is_dir() or self.output.is_file()):
                raise OSError(0, "it is no ordinary file")
            if self.output.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self.output.parent.mkdir(parents=True, exist_ok=True)
            # Beside its place, so that what fails leaves an earlier file as it was; names may be other than UTF-8.
            self.file = self.partial.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise OSError(f"cannot write {self.output} ({error.strerror}): give another file with --output") from error
        self.writer = csv.writer(self.file)
        self.rows = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor | list[dict[str, Any]],
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the rows of a batch."""
        if isinstance(prediction, list):
            header, rows = list(prediction[0]), (list(row.values()) for row in prediction)
        elif isinstance(pl_module, RNN):
            header, rows = forecast_rows(trainer.datamodule, prediction, batch)
        else:
            header, rows = class_rows(pl_module, prediction, batch, batch_indices)
        if batch_idx == 0:
            self.writer.writerow(header)
        for row in rows:
            self.writer.writerow(row)
            self.rows += 1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves no half of a file behind."""
        if self.file is not None:
            self.file.close()
            self.partial.unlink(missing_ok=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the file and says where it is.

        Raises:
            ValueError: No picture could be read.
        """
        self.file.close()
        if not self.rows:
            self.partial.unlink()
            raise ValueError(f"none of the files could be read as a picture, so {self.output} is not written")
        self.partial.replace(self.output)
        rank_zero_info(f"Wrote {self.rows} rows to {self.output}")


def class_rows(
    model: Classifier, prediction: Tensor, batch: tuple[Tensor, Any], indices: list[int] | None
) -> tuple[list[str], Iterator[list[Any]]]:
    """The header, and a row an image, of probabilities `(batch, num_classes)`."""
    classes = model.class_names or [str(label) for label in range(model.num_classes)]
    named = not isinstance(batch[1], Tensor)
    pairs = zip(batch[1] if named else indices, prediction.tolist(), strict=True)
    rows = (
        [key, classes[max(range(len(classes)), key=shares.__getitem__)], *(f"{share:.6f}" for share in shares)]
        for key, shares in pairs
    )
    return ["file" if named else "index", "label", *classes], rows


def forecast_rows(data: Any, prediction: Tensor, batch: Window) -> tuple[list[str], Iterator[list[str]]]:
    """The header, and a row a time step, of a forecast `(1, rows, columns)` that ends with the data module's times."""
    truth, forecast = batch[1][0].cpu(), prediction[0].cpu()  # (rows, columns)
    header = ["time", *(part for name in data.column_names for part in (name, f"{name}_forecast"))]
    times = data.times[-len(forecast) :]
    known = [["" if value.isnan() else shortest(value) for value in row] for row in truth]
    ahead = [[shortest(value) for value in row] for row in forecast]
    rows = zip(times, known, ahead, strict=True)
    return header, ([time, *(cell for pair in zip(*row, strict=True) for cell in pair)] for time, *row in rows)


def shortest(value: Tensor) -> str:
    """The shortest decimal that is this float32 and no other."""
    return np.format_float_positional(np.float32(value.item()), trim="-")
