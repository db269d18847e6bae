"""Image files of any kind, as digits in MNIST's form and as squares."""

import csv

import pytest
import torch
from PIL import Image

from datamodules import MNISTDataModule
from datamodules.common.digits import DigitFileDataset, read_digits
from datamodules.common.image_io import find_images, read_image
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
    return read_digits(path)[0][0].float()


def write(kind, glyph, path):
    large = glyph.resize((160, 160), Image.Resampling.BICUBIC)
    if kind == "blue on yellow, off center":
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
    ["L", "P", "RGB", "CMYK", "16 bits", "blue on yellow, off center", "black on see-through", "white on see-through"],
)
def test_any_size_mode_and_color_ends_like_mnist(kind, digit, glyph, tmp_path):
    path = tmp_path / ("picture.tiff" if kind == "CMYK" else "picture.png")
    write(kind, glyph, path)
    found = read(path)
    both = torch.stack([found.flatten(), digit.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.85


def test_unreadable_files_are_named_and_skipped(glyph, tmp_path):
    (tmp_path / "below").mkdir()
    glyph.resize((99, 50)).save(tmp_path / "below" / "B.PNG")
    glyph.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").touch()
    data = DigitFileDataset(find_images(tmp_path), read_digits, (1, 28, 28))
    with pytest.warns(UserWarning, match="cannot read") as warned:
        images, rows = data.__getitems__(list(range(len(data))))
    assert [row["file"].removeprefix(f"{tmp_path}/") for row in rows] == ["a.png", "below/B.PNG"]
    assert images.shape == (2, 1, 28, 28)
    assert sorted(str(warning.message).split(":")[0].split("/")[-1] for warning in warned) == ["cut.png", "notes.txt"]


def test_predict_of_several_pictures(glyph, last, tmp_path, capsys):
    glyph.save(tmp_path / "seven.png")
    (tmp_path / "more").mkdir()
    glyph.save(tmp_path / "more" / "again.png")
    images = [str(tmp_path / "seven.png"), str(tmp_path / "more")]
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={tmp_path / 'p.csv'}", "--images", *images]) == 0
    assert f"{', '.join(images)}: 2 file(s) to label" in capsys.readouterr().err
    with (tmp_path / "p.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == [images[0], f"{images[1]}/again.png"]


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
        (tmp_path / "nowhere", "no file or folder"),
        (tmp_path / "empty", "no images"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert cli.main([*predict, f"--images={images}"]) == 1
        assert message in capsys.readouterr().err


def test_confusion_and_misclassified_figures():
    counts = torch.tensor([[5, 1], [0, 7]])
    figure = figures.plot_confusion_matrix(counts, ["cat", "dog"])
    assert figure.axes[0].get_title() == "12 of 13 right"
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "1", "7"]
    wrong = (torch.tensor([0.9, -1.0]), torch.tensor([1, 0]), torch.tensor([0, 0]), torch.rand(2, 3, 8, 8))
    assert [text.get_text() for text in figures.plot_misclassified(*wrong, ["cat", "dog"]).axes[0].texts] == [
        "dog 90% (cat)"
    ]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, 100),
        ("1", 1, 255),
        ("I;16", 100 * 257, 100),
        ("I", 65535, 255),
        ("I", 100, 100),
        ("F", 0.5, 128),
        ("F", 100.0, 100),
        ("CMYK", (0, 0, 0, 155), 100),
        ("LA", (0, 0), 255),
        ("RGBA", (100, 100, 100, 255), 100),
        ("RGBA", (0, 0, 0, 0), 255),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_bytes(mode, value, expected, channels, tmp_path):
    path = tmp_path / "picture.tiff"
    Image.new(mode, (20, 30), value).save(path)
    image = read_image(path, 8, channels)
    assert (image.shape, image.dtype) == ((channels, 8, 8), torch.uint8)
    assert (image.int() - expected).abs().max() <= 1


def test_first_frame_and_palette_colors(tmp_path):
    frames = [Image.new("P", (9, 9), color) for color in (0, 1)]
    for frame in frames:
        frame.putpalette([250, 10, 20, 0, 0, 0])
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "animation.gif", 4, 3)[:, 2, 2].tolist() == [250, 10, 20]


def test_exif_rotation_and_central_square(tmp_path):
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 0, 0), (100, 0, 200, 100))  # the square in the middle
    picture.paste((255, 255, 255), (100, 0, 200, 20))  # its upper edge
    picture.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    plain, turned = (read_image(tmp_path / name, 10, 3) for name in ("plain.png", "turned.png"))
    assert torch.equal(plain, turned)
    assert plain[:, 0, 5].tolist() == [255, 255, 255]
    assert plain[:, 9, 5].tolist() == [255, 0, 0]


def test_large_jpeg_is_scaled_like_a_png(tmp_path):
    gradient = Image.linear_gradient("L").resize((1000, 1000))
    gradient.save(tmp_path / "large.jpg", quality=95)
    gradient.save(tmp_path / "large.png")
    small, exact = (read_image(tmp_path / name, 16, 1).int() for name in ("large.jpg", "large.png"))
    assert (small - exact).abs().max() <= 3
