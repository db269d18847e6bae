"""Confusion matrices of many classes, and boxes with names on pictures."""

import pytest
import torch
from PIL import Image, ImageChops

from lit_models.training.figures import draw_boxes, plot_confusion_matrix

SIDE = 20.0  # inches
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
    edge = (180, 10, 20, 20)  # to its left, where there is no room
    right = ImageChops.difference(drawn("Ann Lee", edge), drawn("Ann Lex", edge)).getbbox()
    assert right[2] < 200


@pytest.mark.parametrize(("classes", "labeled"), [(10, True), (50, True), (51, False), (300, False)])
def test_a_confusion_matrix_has_limits(classes, labeled):
    counts = torch.ones(classes, classes, dtype=torch.int64)
    figure = plot_confusion_matrix(counts, [f"class {label}" for label in range(classes)])
    (axes,) = figure.axes
    assert max(figure.get_size_inches()) <= SIDE
    assert len(axes.texts) == (classes**2 if labeled else 0)
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == (classes if labeled else 0)
    assert axes.images[0].get_array().shape == (classes, classes)
    assert axes.get_title() == f"{classes} of {classes**2} right"
    figure.canvas.draw()
