"""Digits on paper, boards and canvases, in MNIST's form."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from benchmarks import drawing
from datamodules import MNISTDataModule
from datamodules.common.digits import read_digits
from datamodules.common.shapes import bounds, find_shapes
from lit_models.cli import main as cli


@pytest.fixture(scope="module")
def digits():
    data = MNISTDataModule()
    data.setup("test")
    return data.test_set.images[:12]


@pytest.fixture(scope="module")
def glyphs(digits):
    return [Image.fromarray(digit[0].numpy()) for digit in digits]


def read(picture):
    content = io.BytesIO()
    picture.save(content, "PNG", exif=picture.info.get("exif", b""))
    content.seek(0)
    return read_digits(content)


def likeness(image, digit):
    return float(torch.corrcoef(torch.stack([image.flatten().float(), digit.flatten().float()]))[0, 1])


@pytest.mark.parametrize("way", sorted(drawing.WAYS.keys() - {"tilted"}))
def test_however_it_is_drawn_a_digit_ends_like_mnists(way, digits, glyphs):
    least = 0.65 if way in ("thin", "hair", "thick") else 0.8  # whose strokes are not MNIST's
    random = np.random.default_rng(0)
    for digit, glyph in zip(digits[:1], glyphs, strict=False):
        images, notes = read(drawing.WAYS[way](glyph, random))
        assert notes == (["touches the border"] if way == "no margin" else [""])
        assert likeness(images[0], digit) > least


@pytest.mark.parametrize(("paper", "pen"), [(255, 0), (40, 230)], ids=["felt pen", "chalk"])
def test_a_digit_of_a_thick_pen_is_no_sheet_of_paper(paper, pen):
    picture = Image.new("L", (280, 280), paper)
    pencil = ImageDraw.Draw(picture)
    pencil.ellipse((90, 40, 190, 150), outline=pen, width=36)
    pencil.ellipse((80, 125, 200, 245), outline=pen, width=40)
    images, notes = read(picture)
    assert notes == [""]
    drawn = torch.from_numpy(np.asarray(picture if pen else ImageOps.invert(picture)).copy()) > 128
    rows, columns = bounds(drawn)
    found = images[0, 0][bounds(images[0, 0] > 99)]
    cut = Image.fromarray(255 * drawn[rows, columns].numpy().astype(np.uint8)).resize(found.shape[::-1])
    assert likeness(found, torch.from_numpy(np.array(cut))) > 0.8


def test_a_thin_pen_is_as_wide_as_mnists(digits, glyphs):
    random = np.random.default_rng(0)
    thin = sum(float(read(drawing.WAYS["hair"](glyph, random))[0].float().mean()) for glyph in glyphs[:4])
    assert thin > 0.6 * float(digits[:4].float().mean((1, 2, 3)).sum())


def test_a_tilted_digit_is_turned_back(digits, glyphs):
    image = read(drawing.picture(drawing.enlarged(glyphs[2], 200)).rotate(-35, fillcolor=255, expand=True))[0]
    as_it_is = torch.from_numpy(np.asarray(glyphs[2].rotate(-35)).copy())
    assert likeness(image, digits[2]) > likeness(as_it_is, digits[2]) + 0.1


def test_mnists_pictures_are_kept_and_inverted_ones_restored(digits, glyphs):
    for digit, glyph in zip(digits, glyphs, strict=True):
        assert torch.equal(read(glyph)[0][0], digit)
        assert torch.equal(read(ImageOps.invert(glyph))[0][0], digit)


@pytest.mark.parametrize("seed", range(3))
def test_several_digits_are_read_from_left_to_right(seed, digits, glyphs):
    images, notes = read(drawing.row(glyphs[seed : seed + 4], np.random.default_rng(seed)))
    assert notes == [f"{number} of 4 in this picture" for number in (1, 2, 3, 4)]
    assert all(likeness(image, digit) > 0.8 for image, digit in zip(images, digits[seed : seed + 4], strict=True))


def test_strokes_of_one_digit_stay_together():
    ink = torch.zeros(160, 160)
    ink[60:130, 50:58] = ink[122:130, 50:90] = 1  # a 5 without its bar
    ink[40:48, 60:100] = 1  # its bar
    ink[5:7, 150:152] = 1  # dirt
    (shape,) = find_shapes(ink)
    assert shape[44, 80]
    assert shape[100, 54]
    assert not shape[6, 151]


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_a_blank_page_is_noted(tone):
    for size in ((1, 1), (28, 28), (300, 200)):
        images, notes = read(Image.new("L", size, tone))
        assert (images.shape, int(images.max()), notes) == ((1, 1, 28, 28), 0, ["no strokes found"])


@pytest.mark.parametrize("angle", [0, 4, 10])
@pytest.mark.parametrize(("sheet", "table"), [(235, 90), (50, 200)])
def test_an_empty_sheet_is_noted(sheet, table, angle):
    page = np.full((600, 600), table, dtype=np.float32)
    page[100:500, 90:510] = sheet
    page *= 1 - 0.3 * drawing.ramp(600, 600, 1)
    picture = drawing.noise(Image.fromarray(page).rotate(angle, fillcolor=0.9 * table), np.random.default_rng(0), 4)
    assert all(read(picture.convert("L"))[1])


def test_a_lamp_on_an_empty_page_is_no_stroke():
    rows, columns = np.mgrid[-1:1:300j, -1:1:300j]
    page = 240 * (1 - 0.3 * (rows**2 + columns**2))
    picture = drawing.noise(Image.fromarray(page.astype(np.uint8)), np.random.default_rng(0), 3)
    assert read(picture)[1] == ["no strokes found"]


def test_a_digit_on_a_sheet_that_ends_in_the_picture_has_no_note(digits, glyphs):
    page = np.full((600, 600), 90, dtype=np.float32)
    page[100:500, 90:510] = 235 - 195 * drawing.pasted(drawing.enlarged(glyphs[0], 200), 400, 420, 100, 110)
    images, notes = read(Image.fromarray(page.astype(np.uint8)).rotate(4, fillcolor=90))
    assert notes == [""]
    assert likeness(images[0], digits[0]) > 0.8


def test_emnists_pictures_are_kept_and_others_read_into_its_form(glyphs, tmp_path):
    ink = Image.fromarray((255 * drawing.trimmed(drawing.enlarged(glyphs[0], 280))).astype(np.uint8))
    own = Image.new("L", (28, 28))
    own.paste(ink.resize((18, 24)), (5, 2))
    own.save(tmp_path / "a.png")
    own.resize((280, 280), Image.Resampling.BICUBIC).save(tmp_path / "b.png")
    (images, rows) = next(iter(MNISTDataModule("EMNIST-letters").image_dataloader(tmp_path)))
    assert [row["note"] for row in rows] == ["", ""]
    assert torch.equal(images[0, 0], torch.from_numpy(np.array(own)))
    assert likeness(images[1], images[0]) > 0.8
    images, _ = next(iter(MNISTDataModule().image_dataloader(tmp_path)))
    assert max(int((image > 99).any(2).sum()) for image in images) <= 20


def test_a_cut_digit_is_noted(glyphs):
    assert read(drawing.cut(glyphs[0], np.random.default_rng(0)))[1] == ["touches the border"]


def test_notes_end_the_rows_and_are_counted(glyphs, last, tmp_path, capsys, caplog):
    random = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    Image.new("L", (90, 90), 255).save(tmp_path / "own" / "blank.png")
    drawing.row(glyphs[:3], random).save(tmp_path / "own" / "number.png")
    glyphs[0].save(tmp_path / "own" / "seven.png")
    output = tmp_path / "F.csv"
    with caplog.at_level("INFO", logger="lit_models"):
        assert cli.main(["predict", f"--ckpt_path={last}", f"--images={tmp_path / 'own'}", f"--output={output}"]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", *map(str, range(10)), "note"]
    names = [(row["file"].split("/")[-1], row["note"]) for row in rows]
    several = [("number.png", f"{number} of 3 in this picture") for number in (1, 2, 3)]
    assert names == [("blank.png", "no strokes found"), *several, ("seven.png", "")]
    said = caplog.text + capsys.readouterr().err
    assert "2 of 3 pictures have a note: no strokes found (1), several digits (1); see the column note" in said
