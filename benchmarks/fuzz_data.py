"""CSV files and folders of pictures with faults, and whether they are read right; see `benchmarks.fuzz`."""

import calendar
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from PIL import Image

from datamodules import ImageFolderDataModule, TimeSeriesDataModule

# How times are written; `{q}` is the quarter.
FORMATS = [
    "%Y-%m-%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%Y/%m/%d",
    "%Y%m%d",
    "%d-%b-%Y",
    "%b %d, %Y",
    "%Y-%m-%d 12:00:00",
    "%d/%m/%y",
]
STEPS = ["day", "week", "weekday", "month start", "month end", "month", "quarter", "year", "uneven"]
# What may be wrong with a file of series, beside how it is written.
SERIES_FAULTS = [*([None] * 12), "gap in a cell", "a word in a cell", "missing times", "a repeated time", "two series"]
SERIES_FAULTS += ["short row", "infinite", "empty", "header alone", "comment", "another encoding", "quote"]
PARTS = {"train": ["train", "Train", "training", "training_set", "seg_train"], "val": ["val", "valid", "Validation"]}
PARTS |= {"test": ["test", "Test", "testing", "test_set"]}
FOLDER_FAULTS = [*([None] * 10), "no pictures", "one class", "damaged", "most damaged", "unknown part", "another class"]
FOLDER_FAULTS += ["link", "cycle", "hidden", "notes", "loose picture", "heic", "deep grey", "wrapped", "flat test"]
COLOURS = {"ant": (250, 10, 10), "bee": (10, 250, 10), "cat": (10, 10, 250), "Labrador_Retriever": (240, 240, 240)}


def next_time(time: date, step: str) -> date:
    """The time one step later."""
    if step in ("day", "uneven"):
        return time + timedelta(1)
    if step == "week":
        return time + timedelta(7)
    if step == "weekday":
        return time + timedelta(3 if time.weekday() == 4 else 1)
    if step == "year":
        return time.replace(year=time.year + 1)
    months = time.year * 12 + time.month - 1 + (3 if step == "quarter" else 1)
    year, month = divmod(months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return date(year, month + 1, last if step in ("month end", "quarter") else time.day)


@st.composite
def series(draw: Callable) -> dict[str, Any]:
    """A file, the options that it is read with, and the numbers and times that are in it."""
    step = draw(st.sampled_from(STEPS))
    time = date(2000, draw(st.integers(1, 12)), 1)
    time = {"month": time.replace(day=15), "weekday": time + timedelta(-time.weekday() % 7)}.get(step, time)
    if step in ("month end", "quarter"):
        time = time.replace(day=calendar.monthrange(2000, time.month)[1])
    rows, horizon = draw(st.integers(40, 90)), 3
    times = [time]
    for _ in range(rows + horizon):
        times.append(next_time(times[-1], step))
    seed = draw(st.integers(0, 999))
    values = (torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) * 9000 + 1000).round(decimals=1)
    form, separator = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(",;\t|"))
    decimal, thousands = draw(st.sampled_from([(".", ""), (",", ""), (".", ","), (",", "."), (".", "'"), (",", " ")]))
    fault, order = draw(st.sampled_from(SERIES_FAULTS)), draw(st.sampled_from(["up", "up", "down", "mixed"]))
    if step == "uneven":
        times = [times[0] + timedelta(int(n)) for n in torch.tensor([n * (n + 1) // 2 for n in range(rows + horizon)])]

    def written(value: float) -> str:
        text = f"{value:,.1f}".translate(str.maketrans({",": thousands, ".": decimal}))
        return f'"{text}"' if separator in text else text

    cells = [[times[row].strftime(form), written(values[row].item())] for row in range(rows)]
    cells = [[f'"{cell}"' if separator in cell and cell[0] != '"' else cell for cell in row] for row in cells]
    expected: list[float] | None = values[:, 0].tolist()
    options: dict[str, Any] = {"columns": "x", "context_length": 6, "horizon": horizon}
    if draw(st.integers(0, 3)):
        options |= {"decimal": decimal} | ({"thousands": thousands} if thousands else {})
    if draw(st.booleans()):
        options |= {"time_column": "when"}
    if draw(st.booleans()):
        options |= {"time_format": form}
    place = draw(st.integers(5, rows - 5))
    if fault in ("gap in a cell", "a word in a cell", "infinite"):
        sign = {"gap in a cell": draw(st.sampled_from(["", "?", "-", "NA"])), "infinite": "1e400"}.get(fault, "warm")
        cells[place][1], expected = sign, None
        if fault == "gap in a cell" and draw(st.booleans()):
            options |= {"missing": sign or "NA", "fill": "previous"}
            expected = [*values[:place, 0].tolist(), values[place - 1].item(), *values[place + 1 :, 0].tolist()]
    elif fault == "missing times":
        del cells[place]
        expected = [*expected[:place], *expected[place + 1 :]]
        if draw(st.booleans()):
            options, expected = options | {"fill": "previous"}, None  # the rows that are added count too
    elif fault in ("a repeated time", "two series"):
        cells, expected = [*cells, *(cells if fault == "two series" else cells[place : place + 1])], None
    order_of = {"up": range(len(cells)), "down": range(len(cells))[::-1]}
    mixed = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed)).tolist()
    lines = [separator.join(cells[row]) for row in order_of.get(order, mixed)]
    if fault == "short row":
        lines[place], expected = lines[place].partition(separator)[0], None
    if fault == "quote":
        lines[place], expected = lines[place].replace(separator, f'{separator}"', 1), None
    lines = [f"when{separator}x", *lines]
    if fault == "comment":
        lines.insert(0, "# made by a machine")
    if fault in ("empty", "header alone"):
        lines, expected = lines[: int(fault == "header alone")], None
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    encoding = "utf-16-be" if fault == "another encoding" else draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    whole = fault is None and step != "uneven"
    later = [time.strftime(form) for time in times[rows : rows + horizon]] if whole else None
    kind = f"{step}, {form}, {separator!r}, {decimal}{thousands}, {order}, {fault}"
    return {"kind": kind, "content": text.encode(encoding), "options": options, "values": expected, "later": later}


def series_is_right(drawn: dict[str, Any]) -> str:
    """Whether a file is refused in one line, or read as what is in it: `success`, `refused`, or the fault."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "series.csv"
        path.write_bytes(drawn["content"])
        data = TimeSeriesDataModule(path=str(path), **drawn["options"])
        end = attempt(lambda: data.setup("predict"))
    if end != "success":
        return end
    fills = "fill" in drawn["options"] and drawn["values"] is None  # with rows whose number this does not know
    if drawn["values"] is None and not fills:
        return f"misread: what has no reading is read as {data.series[:, 0].tolist()}"
    if not fills and data.series[:, 0].tolist() != torch.tensor(drawn["values"]).tolist():
        return f"misread: {data.series[:, 0].tolist()} for {drawn['values']}"
    ahead = data.times[-data.hparams.horizon :]
    return f"misread: goes on with {ahead}, not {drawn['later']}" if drawn["later"] not in (None, ahead) else end


@st.composite
def folders(draw: Callable) -> dict[str, Any]:
    """A folder of pictures, each of the colour of its class, as what is to be made of it."""
    names = draw(st.lists(st.sampled_from(sorted(COLOURS)), min_size=2, max_size=4, unique=True))
    parts: list[str] = ["train", *draw(st.sampled_from([[], [], ["test"], ["val"], ["val", "test"]]))]
    in_parts = len(parts) > 1 or draw(st.booleans())
    return {
        "classes": {name: draw(st.integers(1, 14)) for name in names},
        "parts": {part: draw(st.sampled_from(PARTS[part])) for part in parts} if in_parts else None,
        "ending": draw(st.sampled_from([".png", ".jpg", ".PNG", ".bmp", ".webp", ".tif", ".gif"])),
        "mode": draw(st.sampled_from(["RGB", "RGB", "P", "RGBA", "CMYK"])),
        "fault": draw(st.sampled_from(FOLDER_FAULTS)),
    }


def make(root: Path, drawn: dict[str, Any]) -> None:
    """Writes the pictures, and what is wrong with them."""
    fault, classes = drawn["fault"], dict(drawn["classes"])
    root = root / "archive" if fault == "wrapped" else root
    parts = drawn["parts"] or {"train": "."}
    if fault == "one class":
        classes = dict([classes.popitem()])
    formats = {"CMYK": ".tif", "P": ".png", "RGBA": ".png"}
    ending = formats.get(drawn["mode"], drawn["ending"])
    for part, folder in parts.items():
        for name, count in classes.items():
            place = root / folder / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture = Image.new("RGB", (40 + number, 50), COLOURS[name])
                picture = (
                    picture.convert(drawn["mode"])
                    if ending in (".tif", ".png", formats.get(drawn["mode"]))
                    else picture
                )
                picture.save(place / f"{part}{number}{ending}")
    first = root / parts["train"] / next(iter(classes))
    if fault == "no pictures":
        for path in first.iterdir():
            path.unlink()
    elif fault in ("damaged", "most damaged"):
        files = sorted(first.iterdir())
        for path in files[: len(files) // 4 if fault == "damaged" else len(files)]:
            path.write_bytes(path.read_bytes()[:20])
    elif fault == "unknown part":
        (root / "extra" / first.name).mkdir(parents=True)
        Image.new("RGB", (9, 9), COLOURS[first.name]).save(root / "extra" / first.name / "x.png")
    elif fault == "another class":
        place = root / [*parts.values()][-1] / "zebra"
        place.mkdir()
        Image.new("RGB", (9, 9), (9, 9, 9)).save(place / "x.png")
    elif fault == "link":
        (root / parts["train"] / "elsewhere").mkdir()
        os.rename(first, root.parent / "elsewhere")
        (root / parts["train"] / "elsewhere").rmdir()
        os.symlink(root.parent / "elsewhere", first)
    elif fault == "cycle":
        os.symlink(root, first / "again")
    elif fault == "hidden":
        (first / ".hidden").mkdir()
        Image.new("RGB", (9, 9)).save(first / ".hidden" / "x.png")
        Image.new("RGB", (9, 9)).save(first / ".x.png")
    elif fault == "notes":
        (first / "notes.txt").write_text("not a picture")
        (first / "Thumbs.db").write_bytes(b"\0" * 99)
    elif fault == "loose picture":
        Image.new("RGB", (9, 9)).save(root / parts["train"] / "loose.png")
    elif fault == "heic":
        (first / "phone.HEIC").write_bytes(b"\0" * 99)
    elif fault == "deep grey":
        Image.new("I;16", (9, 9), 4095).save(first / "deep.png")
    elif fault == "flat test":
        (root / "test").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / "test" / "1.png")


def pictures_are_right(drawn: dict[str, Any]) -> str:
    """Whether a folder is refused in one line, or every picture has its class: `success`, `refused`, or the fault."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        make(root, drawn)
        data = ImageFolderDataModule(root=str(root), image_size=8, num_workers=1)
        end = attempt(lambda: (data.setup("fit"), data.setup("test")))
    if end != "success":
        return end
    known = {*drawn["classes"], *(["zebra"] if drawn["fault"] == "another class" else [])}
    if not set(data.class_names) <= known:
        return f"misread: the classes are {data.class_names}"
    plain = drawn["fault"] in (None, "link", "hidden", "notes", "loose picture", "cycle", "wrapped", "flat test")
    total = sum(len(part) for part in (data.train_set, data.val_set, data.test_set))
    expected = sum(drawn["classes"].values()) * (len(drawn["parts"] or ["train"]))
    if plain and total != expected:
        return f"misread: {total} pictures of {expected}"
    for part in (data.train_set, data.val_set, data.test_set):
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            name = data.class_names[label]
            colour = torch.tensor(COLOURS.get(name, (9, 9, 9)))
            shown = image.float().mean(dim=(1, 2))
            if drawn["fault"] != "deep grey" and (shown - colour).abs().max() > 60:
                return f"misread: a picture of {shown.tolist()} is called {name}"
    return end


def attempt(read: Callable[[], Any]) -> str:
    """How reading ended: `success`, `refused` with an error of one line, or the fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except (ValueError, OSError) as error:
            return "refused" if str(error).strip() and "\n" not in str(error) else f"not one line: {error!r}"
        except Exception as error:
            return f"an error of another kind: {error!r}"
    return "success"
