"""Predictions as rows, dictionaries by column, and files of them (CSV)."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_models.common.messages import format_list, inform, unique_names


def class_rows(key: str, values: Sequence[Any], names: Sequence[str], probabilities: Tensor) -> list[dict[str, Any]]:
    """One row per image: its value of `key`, if there are any, its label, and the probability of each class.

    A value may be a dictionary of several columns: `key`, and others that end the row.
    """
    columns = unique_names(["file", "index", "note", "label", *names])[4:]
    known = [value if isinstance(value, dict) else {key: value} for value in values] or [{}] * len(probabilities)
    labels = probabilities.argmax(dim=1).tolist()
    return [
        ({key: own[key]} if own else {})
        | {"label": names[label]}
        | {name: round(value, 6) for name, value in zip(columns, row, strict=True)}
        | {name: value for name, value in own.items() if name != key}
        for own, label, row in zip(known, labels, probabilities.tolist(), strict=True)
    ]


def time_rows(
    labels: Sequence[dict[str, Any]],
    columns: Sequence[str],
    truth: Tensor,
    forecast: Tensor,
    bands: Tensor | None = None,
    levels: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """One row per time: its labels, and of each column of `(rows, columns)` its value, None for NaN, and forecast.

    Quantiles `(rows, levels, columns)` of these levels follow the forecast of their column, if they are given.
    """
    ends = ["", "_forecast", *(f"_q{level:g}" for level in levels)]
    header = unique_names([*labels[0], *(f"{column}{end}" for column in columns for end in ends)])
    parts = torch.stack([truth, forecast], dim=1)  # (rows, 2 + levels, columns)
    parts = parts if bands is None else torch.cat([parts, bands], dim=1)
    cells = [[None if np.isnan(x) else x for x in row] for row in parts.transpose(1, 2).flatten(1).cpu().numpy()]
    return [dict(zip(header, [*label.values(), *row], strict=True)) for label, row in zip(labels, cells, strict=True)]


def prediction_rows(prediction: Any, indices: Sequence[int] | None) -> list[dict[str, Any]]:
    """The rows of what a `predict_step` returns: rows, a tensor `(batch, ...)`, or several of them, perhaps by name."""
    if isinstance(prediction, list) and all(isinstance(row, dict) for row in prediction):
        return prediction
    if isinstance(prediction, tuple):
        prediction = {f"prediction_{number}": part for number, part in enumerate(prediction, start=1)}
    named = prediction if isinstance(prediction, dict) else {"prediction": prediction}
    columns: dict[str, Sequence[Any]] = {}
    for name, value in named.items():
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            columns[name] = value
            continue
        stack = isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value)
        numbers = (torch.stack(value) if stack else torch.as_tensor(value)).detach().cpu()
        numbers = numbers.float() if numbers.dtype == torch.bfloat16 else numbers  # NumPy has none
        flat = numbers.reshape(len(numbers), -1) if numbers.dim() else numbers.reshape(1, 1)
        names = [name] if flat.shape[1] == 1 else [f"{name}_{column}" for column in range(flat.shape[1])]
        columns |= dict(zip(names, flat.T.numpy(), strict=True))
    if indices and columns and len(next(iter(columns.values()))) == len(indices):
        columns = {"index": list(indices)} | columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
        self.files: set[Any] = set()
        self.noted: dict[str, set[Any]] = {}  # the files by note

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
        try:
            rows = prediction_rows(prediction, batch_indices)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returns {type(prediction).__name__}: to be written to a "
                "file, it must be a list of rows, dictionaries by column, or a tensor with a row per item, or several "
                f"by name ({error})"
            ) from error
        if rows and not self.rows:
            self.columns = list(rows[0])
            self.writer.writerow(self.columns)
        if rows and list(rows[0]) != self.columns:
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returns the columns {format_list(list(rows[0]))} after "
                f"{format_list(self.columns)}: they must be the same for all batches"
            )
        self.writer.writerows(map(format_cell, row.values()) for row in rows)
        self.rows += len(rows)
        self.files |= {row.get("file") for row in rows}
        for row in rows:
            for note in filter(None, row.get("note", "").split("; ")):
                kind = "several digits" if " of " in note else note
                self.noted.setdefault(kind, set()).add(row["file"])

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
        if self.noted:
            count = len(set.union(*self.noted.values()))
            said = ", ".join(f"{note} ({len(files)})" for note, files in self.noted.items())
            inform(f"{count} of {len(self.files)} pictures have a note: {said}; see the column note")
        rank_zero_info(f"Wrote {self.rows} rows to {self.output}")


def format_cell(value: Any) -> Any:
    """A cell of a CSV file."""
    if isinstance(value, float | np.floating):
        return np.format_float_positional(value, trim="-" if isinstance(value, np.float32) else "0")
    return value
