"""Boxes with names on pictures."""

import pytest
from PIL import Image, ImageChops

from lit_models.training.figures import draw_boxes

BOX = (20, 10, 60, 50)


def drawn(caption, box=BOX):
    return draw_boxes(Image.new("RGB", (200, 100)), [box], [caption])


@pytest.mark.parametrize(("name", "shown"), [("\U000f1234", "face 1"), ("a\udcff", "a?"), ("two\nlines", "two lines")])
def test_names_are_drawn_in_letters_that_a_font_has(name, shown):
    assert drawn(name).tobytes() == drawn(shown).tobytes()


def test_names_of_any_alphabet_differ():
    names = ["Ann", "Çelik", "Жанна", "Γιώργος", "face 1"]
    assert len({drawn(name).tobytes() for name in names}) == len(names)


def test_a_caption_is_below_its_box_and_inside_the_picture():
    left, top, _, height = BOX
    below = drawn("Ann").crop((left, top + height + 3, 200, 100))
    assert below.getbbox()
    bottom = ImageChops.difference(drawn("Ann", (20, 50, 60, 49)), drawn("Bob", (20, 50, 60, 49))).getbbox()
    assert bottom[1] > 50
    assert bottom[3] < 100
