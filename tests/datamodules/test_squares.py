"""Picture files of any kind as square images."""

import pytest
import torch
from PIL import Image

from datamodules.common.pictures import read_square


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
    image = read_square(path, 8, channels)
    assert (image.shape, image.dtype) == ((channels, 8, 8), torch.uint8)
    assert (image.int() - expected).abs().max() <= 1


def test_animations_show_their_first_frame_and_palettes_their_colours(tmp_path):
    frames = [Image.new("P", (9, 9), colour) for colour in (0, 1)]
    for frame in frames:
        frame.putpalette([250, 10, 20, 0, 0, 0])
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    assert read_square(tmp_path / "animation.gif", 4, 3)[:, 2, 2].tolist() == [250, 10, 20]


def test_pictures_are_turned_upright_and_cut_to_a_square_from_the_middle(tmp_path):
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 0, 0), (100, 0, 200, 100))  # the square in the middle
    picture.paste((255, 255, 255), (100, 0, 200, 20))  # its upper edge
    picture.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    plain, turned = (read_square(tmp_path / name, 10, 3) for name in ("plain.png", "turned.png"))
    assert torch.equal(plain, turned)
    assert plain[:, 0, 5].tolist() == [255, 255, 255]
    assert plain[:, 9, 5].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_scaled_like_a_small_one(tmp_path):
    gradient = Image.linear_gradient("L").resize((1000, 1000))
    gradient.save(tmp_path / "large.jpg", quality=95)
    gradient.save(tmp_path / "large.png")
    small, exact = (read_square(tmp_path / name, 16, 1).int() for name in ("large.jpg", "large.png"))
    assert (small - exact).abs().max() <= 3
