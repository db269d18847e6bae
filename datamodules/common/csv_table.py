"""The cells of CSV files, and the numbers in them."""

import csv
import itertools
import re
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datamodules.common.times import is_time
from lit_models.common.messages import format_list, suggest

MISSING = frozenset({"", "nan", "na", "n/a", "null", "none"})  # in lower case
NOT_TEXT = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a Parquet file",
}
SPACES = " \u00a0\u2009\u202f"
CHARACTERS = {"tab": "\t", "\\t": "\t", "space": " "}  # what a shell makes hard to type


class Table(NamedTuple):
    """The cells of a file, without spaces around them."""

    path: Path
    names: list[str]  # of the columns
    rows: list[list[str]]  # of values, all of the same length
    separator: str
    first: int  # the number of the first of them in the file, counted from 1 as a spreadsheet does

    def find(self, name: str, option: str) -> int:
        """The index of a column by its name, or else by its number, counted from 1; a ValueError if there is none."""
        if self.names.count(name) == 1:
            return self.names.index(name)
        if name in self.names:
            places = [str(place) for place, other in enumerate(self.names, start=1) if other == name]
            raise ValueError(
                f"{self.path} has several columns {name!r}: choose one by its number in {option}, {' or '.join(places)}"
            )
        if name.isdecimal() and 1 <= int(name) <= len(self.names):
            return int(name) - 1
        hint = suggest(name, self.names) or ("; set data.separator" if len(self.names) == 1 else "")
        raise ValueError(f"{self.path} has no column {name!r}; its columns are {format_list(self.names)}{hint}")

    def place(self, row: int, column: int) -> str:
        """File, row and column of a cell, for messages."""
        return f"{self.path}, row {self.first + row}, column {self.names[column]!r}"

    def column(self, index: int) -> list[str]:
        """The cells of a column."""
        return [row[index] for row in self.rows]


class NumberFormat(NamedTuple):
    """How a file writes numbers, and which texts stand for none."""

    decimal: str = "."
    thousands: str | None = None
    missing: frozenset[str] = MISSING

    def read(self, text: str) -> float | None:
        """A number that is finite in float32, NaN where it is missing, or None."""
        if text.lower() in self.missing:
            return np.nan
        if self.thousands == " ":
            text = re.sub(f"[{SPACES}]", " ", text)
        if self.thousands is not None and self.thousands in text:
            mark = re.escape(self.thousands)
            if not re.match(rf"[+-]?\d{{1,3}}({mark}\d{{2,3}})*{mark}\d{{3}}(?!\d|{mark})", text):
                return None
            text = text.replace(self.thousands, "")
        if self.decimal != ".":
            text = "" if "." in text else text.replace(self.decimal, ".")
        try:
            value = float(text)
        except ValueError:
            return None
        return value if abs(value) <= torch.finfo(torch.float32).max and "_" not in text else None

    def read_column(self, texts: list[str]) -> "np.ndarray | int":
        """The numbers of a column, or the index of the first cell that isn't one."""
        if self == NumberFormat():  # fast
            try:
                values = np.array([float(text) for text in texts])
                if (np.abs(values) <= torch.finfo(torch.float32).max).all() and "_" not in "".join(texts):
                    return values
            except ValueError:
                pass
        found = [self.read(text) for text in texts]
        return found.index(None) if None in found else np.array(found, dtype=np.float64)

    def explain(self, text: str, hint: str | None = None) -> str:
        """What is wrong with a cell that is not a number, and how to mend it."""
        grouped = re.fullmatch(rf"[+-]?\d{{1,3}}(?:([{SPACES}.,'])\d{{3}})(?:\1\d{{3}})*(?:([.,])\d+)?", text)
        hint = (
            hint or "choose the columns of numbers with data.columns, or say with data.missing what stands for no value"
        )
        if re.fullmatch(r"[+-]?(inf(inity)?|[\d.]+e\+?\d+)", text, re.IGNORECASE):
            hint = "numbers of float32 are at most 3.4e38"
        elif grouped and grouped[2] not in (None, grouped[1]):
            hint = f"set data.thousands to {as_option(grouped[1])} and data.decimal to {as_option(grouped[2])}"
        elif grouped and grouped[1] in ".," and text.count(grouped[1]) == 1:
            hint = (
                f"set data.thousands to {as_option(grouped[1])} if it separates thousands, or data.decimal if decimals"
            )
        elif grouped:
            hint = f"set data.thousands to {as_option(grouped[1])}"
        elif re.fullmatch(r"[+-]?(\d+[.,]\d*|[.,]\d+)", text):
            hint = f"set data.decimal to {as_option(',' if ',' in text else '.')}"
        elif re.fullmatch(r"[^\w\s]{1,3}", text):
            hint = f"if it stands for no value, set data.missing to '{text}'"
        elif re.fullmatch(r"[+-]?[\d.]+([ ;|\t]+[+-]?[\d.]+)+", text):
            hint = "say with data.separator what separates the cells"
        elif re.fullmatch(r"[+-]?[\d.,]+\s?[^\d\s.,:/-]+|[^\w\s]\s?[\d.,]+", text):
            hint = "write numbers without units and signs"
        elif text.lower() in ("true", "false", "yes", "no"):
            hint = "write 1 for true and 0 for false"
        return f"{text!r} is not a number, or not a finite one; {hint}"


def as_option(character: str) -> str:
    """A character as an option takes it."""
    return "space" if character in SPACES else '"\'"' if character == "'" else f"'{character}'"


def read_table(path: Path, separator: str | None, header: bool | None, numbers: NumberFormat) -> Table:
    """The cells of a CSV file, without empty rows at the end, and lines of comment and empty ones at the top.

    Without `separator`, it is the tab, semicolon, vertical bar or comma that all rows have equally often. Without
    `header`, the first row is one if it has a word above a number or time, or nothing but words. Cells without a name
    in which nothing stands, behind a last separator, are left out.
    """
    text = read_text(path)
    start, first = 0, 1
    for line in StringIO(text, newline=""):
        excel = re.fullmatch("sep=(.)", line.rstrip("\r\n"), re.IGNORECASE)  # how its users say what separates
        separator = excel[1] if excel and separator is None else separator
        if line.strip() and not line.startswith("#") and not excel:
            break
        start, first = start + len(line), first + 1
    text = text[start:]
    separator = find_separator(text, numbers.decimal) if separator is None else CHARACTERS.get(separator, separator)
    if separator == " ":
        text = "\n".join(line.strip() for line in text.splitlines())
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if reader.line_num != len(rows):
        broken = (
            row for row, cells in enumerate(rows, start=first) if any(re.search(r"[\r\n]", cell) for cell in cells)
        )
        raise ValueError(f"{path}, row {next(broken, first)}: a line break in a cell; look for a stray quote")
    while rows and not any(rows[-1]):
        rows.pop()
    rows = without_last_separators(rows)
    for row, cells in enumerate(rows, start=first):  # pandas fills short rows up silently
        if len(cells) != len(rows[0]):
            empty = "" if cells else " (remove empty lines)"
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cell(s){empty}, but {len(rows[0])} in the first row; look for a "
                f"missing value, a stray quote, a line above the header, or a {separator!r} that is not meant to "
                "separate: data.separator says what is"
            )
    if header is None:
        header = bool(rows) and is_header(rows[0], rows[1] if len(rows) > 1 else [], numbers)
    names = rows[0] if header else [str(column + 1) for column in range(len(rows[0]) if rows else 0)]
    table = Table(path, names, rows[1:] if header else rows, separator, first + bool(header))
    if not table.rows:
        raise ValueError(f"{path} has no rows of values")
    return table


def without_last_separators(rows: list[list[str]]) -> list[list[str]]:
    """The rows without empty cells behind the last separator of each, which the first row may lack."""
    while len(rows) > 1:
        width = len(rows[1])
        if width < 2 or any(len(row) != width or row[-1] for row in rows[1:]) or rows[0][width - 1 :] not in ([], [""]):
            break
        rows = [row[: width - 1] for row in rows]
    return rows


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or UTF-16 with its mark."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: set data.path to your CSV file")
    content = path.read_bytes()
    kind = next((kind for start, kind in NOT_TEXT.items() if content.startswith(start)), None)
    if kind is not None:
        raise ValueError(f"{path} is {kind}: save its table as a CSV file")
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: save it so ({error})") from error
    if "\0" in text:
        raise ValueError(f"{path} is not text in UTF-8: save it so (it has zero bytes)")
    return text.replace("\r\r\n", "\n")  # what Python's csv writes on Windows, unless opened with newline=""


def find_separator(text: str, decimal: str) -> str:
    """The separator that the first rows have equally often; a comma last, which numbers and words have too."""
    candidates = "\t;|," if decimal != "," or '"' in text else "\t;|"
    for candidate in candidates:
        try:
            rows = itertools.islice(csv.reader(StringIO(text, newline=""), delimiter=candidate, strict=True), 100)
            lengths = {len(row) for row in rows if row}
        except csv.Error:
            continue
        if len(lengths) == 1 and lengths != {1}:
            return candidate
    return max(candidates[::-1], key=text.partition("\n")[0].count)


def is_header(top: list[str], below: list[str], numbers: NumberFormat) -> bool:
    """Whether a row names the columns, judged by the row below it."""

    def is_value(text: str) -> bool:
        return numbers.read(text) is not None or is_time(text)

    def is_word(text: str) -> bool:
        return text[:1].isalpha() and not is_value(text)

    over_values = any(is_word(cell) and is_value(value) for cell, value in zip(top, below, strict=False))
    # As pandas writes its index, and the numbers of columns without names.
    index = len(top) > 1 and top[0] == "" and below[:1] == ["0"]
    counted = len(top) > 1 and top == [str(at) for at in range(len(top))] and all("." in cell for cell in below)
    words = any(map(is_word, top)) and not any(cell and is_value(cell) for cell in top)
    return over_values or index or counted or words
