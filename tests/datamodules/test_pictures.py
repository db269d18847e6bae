import csv

import pytest
import torch
from PIL import Image, ImageOps

from datamodules import MNISTDataModule
from datamodules.common.pictures import PictureDataset, find_pictures, read_digit
from lit_models.cli import main as cli
from lit_models.training import figures


@pytest.fixture(scope="module")
def digit():
    data = MNISTDataModule()
    data.setup("test")
    return data.test_set.images[0]


@pytest.fixture(scope="module")
def glyph(digit):
    return Image.fromarray(digit[0].numpy())


def read(path):
    return read_digit(path).float()


def test_mnists_own_images_come_back_as_they_are_and_inverted_ones_upright(digit, glyph, tmp_path):
    glyph.save(tmp_path / "own.png")
    ImageOps.invert(glyph).save(tmp_path / "inverted.png")
    assert torch.equal(read(tmp_path / "own.png"), digit.float())
    assert torch.equal(read(tmp_path / "inverted.png"), digit.float())


def write(kind, glyph, path):
    large = glyph.resize((160, 160), Image.Resampling.BICUBIC)
    if kind == "blue on yellow, off centre":
        sheet = Image.new("RGB", (640, 480), (240, 230, 120))
        sheet.paste((20, 30, 120), (400, 250), large)
    elif kind == "black on see-through":
        sheet = Image.new("RGBA", (300, 300))
        sheet.paste((0, 0, 0, 255), (10, 10), large)
    elif kind == "white on see-through":
        sheet = Image.new("RGBA", (300, 300))
        sheet.paste((255, 255, 255, 255), (10, 10), large)
    elif kind == "16 bits":
        sheet = Image.fromarray(torch.tensor(list(large.tobytes()), dtype=torch.int32).view(160, 160).numpy() * 200)
        sheet = sheet.convert("I;16")
    else:
        sheet = large.convert(kind)
    sheet.save(path)


@pytest.mark.parametrize(
    "kind",
    ["L", "P", "RGB", "CMYK", "16 bits", "blue on yellow, off centre", "black on see-through", "white on see-through"],
)
def test_any_size_mode_and_colour_ends_like_mnist(kind, digit, glyph, tmp_path):
    path = tmp_path / ("picture.tiff" if kind == "CMYK" else "picture.png")
    write(kind, glyph, path)
    found = read(path)
    both = torch.stack([found.flatten(), digit.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.85


def test_blank_paper_is_black(tmp_path):
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    assert not read(tmp_path / "blank.png").any()


def test_folder_names_the_files_it_cannot_read_and_goes_on(glyph, tmp_path):
    (tmp_path / "below").mkdir()
    glyph.resize((99, 50)).save(tmp_path / "below" / "B.PNG")
    glyph.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").touch()
    data = PictureDataset(find_pictures(tmp_path), read_digit, (1, 28, 28))
    with pytest.warns(UserWarning, match="cannot read") as warned:
        images, names = data.__getitems__(list(range(len(data))))
    assert [name.removeprefix(f"{tmp_path}/") for name in names] == ["a.png", "below/B.PNG"]
    assert images.shape == (2, 1, 28, 28)
    assert sorted(str(warning.message).split(":")[0].split("/")[-1] for warning in warned) == ["cut.png", "notes.txt"]


def test_predict_of_a_folder(glyph, last, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    glyph.save(folder / "seven.png")
    (folder / "notes.txt").write_text("hello")
    predict = ["predict", f"--ckpt_path={last}", f"--output={tmp_path / 'F.csv'}"]
    with pytest.warns(UserWarning, match=r"cannot read .*notes\.txt"):
        assert cli.main([*predict, f"--images={folder}"]) == 0
    with (tmp_path / "F.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(folder / "seven.png")]
    assert sum(float(rows[0][str(label)]) for label in range(10)) == pytest.approx(1, abs=1e-4)
    (folder / "seven.png").unlink()
    for images, message in (
        (folder, "none of"),
        (tmp_path / "nowhere", "no folder"),
        (tmp_path / "empty", "no pictures"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert cli.main([*predict, f"--images={images}"]) == 1
        assert message in capsys.readouterr().err


def test_pictures_of_a_board():
    counts = torch.tensor([[5, 1], [0, 7]])
    figure = figures.plot_confusion_matrix(counts, ["cat", "dog"])
    assert figure.axes[0].get_title() == "12 of 13 right"
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "1", "7"]
    wrong = (torch.tensor([0.9, -1.0]), torch.tensor([1, 0]), torch.tensor([0, 0]), torch.rand(2, 3, 8, 8))
    assert [text.get_text() for text in figures.plot_misclassified(*wrong, ["cat", "dog"]).axes[0].texts] == [
        "dog 90% (cat)"
    ]
