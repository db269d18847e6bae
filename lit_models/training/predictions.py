"""Prediction files (CSV)."""

import csv
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override


class PredictionWriter(BasePredictionWriter):
    """Writes the rows that a model's `predict_step` returns, dictionaries by column, to a CSV file, batch by batch.

    Numbers are written in positional notation with the fewest digits that tell them apart, None as an empty cell.

    Args:
        output: The file. Its folder is made if needed; an existing file is replaced once all is written.
    """

    def __init__(self, output: str) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)
        self.file: TextIO | None = None
        self.partial = self.output.with_name(f"{self.output.name}.partial")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:  # of which each would see a part of the data
            raise ValueError(f"predictions are written by one process, not {trainer.world_size}: set devices to 1")
        read = {"series": getattr(trainer.datamodule, "hparams", {}).get("path"), "checkpoint": trainer.ckpt_path}
        for name, path in read.items():
            if path is not None and self.output.resolve() == Path(path).resolve():
                raise ValueError(f"{self.output} is the {name} itself: give another file with --output")
        try:
            if self.output.exists() and not self.output.is_file():
                raise OSError(0, "it is a folder" if self.output.is_dir() else "it is not a regular file")
            self.output.parent.mkdir(parents=True, exist_ok=True)
            # Names of files need not be UTF-8.
            self.file = self.partial.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise OSError(f"cannot write {self.output} ({error.strerror}): give another file with --output") from error
        self.writer = csv.writer(self.file)
        self.rows = 0

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(prediction, list) or not all(isinstance(row, dict) for row in prediction):
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returns {type(prediction).__name__}: to be written to a "
                "file, it must be a list of rows, dictionaries by column"
            )
        if prediction and not self.rows:
            self.writer.writerow(prediction[0])
        self.writer.writerows(map(format_cell, row.values()) for row in prediction)
        self.rows += len(prediction)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.file is not None:
            self.file.close()
            self.partial.unlink(missing_ok=True)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.file.close()
        if not self.rows:
            self.partial.unlink()
            raise ValueError(f"none of the files could be read as a picture, so {self.output} is not written")
        self.partial.replace(self.output)
        rank_zero_info(f"Wrote {self.rows} rows to {self.output}")


def format_cell(value: Any) -> Any:
    """A cell of a CSV file."""
    if isinstance(value, float | np.floating):
        return np.format_float_positional(value, trim="-" if isinstance(value, np.float32) else "0")
    return value
