"""Pictures of people, drawn: shaded faces that a detector of real ones finds, in portraits and in scenes."""

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CANVAS = 240  # the side that everything is drawn at
# A Haar cascade's box around the face of a portrait, as shares of its side: left, top, width, height.
FACE = (0.165, 0.175, 0.675, 0.675)
SKINS = [(236, 200, 176), (224, 178, 148), (205, 156, 122), (240, 212, 192), (214, 168, 138)]
HAIRS = [(40, 30, 26), (96, 62, 36), (196, 158, 92), (150, 150, 152), (140, 62, 34)]
CLOTHES = [(60, 80, 140), (150, 50, 50), (50, 120, 80), (120, 120, 120), (200, 180, 60)]


def person(number, variation=0, size=120):
    """A portrait `(size, size)` of a person, in colour: who it is depends on the number, the rest on the variation."""
    own = random.Random(1000 + number)
    skin, hair = SKINS[number % 5], HAIRS[(number // 2 + number) % 5]
    wide, long = own.uniform(0.23, 0.29), own.uniform(0.33, 0.38)
    apart, eye = own.uniform(0.122, 0.138), own.uniform(0.036, 0.046)
    brow, mouth, nose = own.uniform(0.010, 0.022), own.uniform(0.07, 0.12), own.uniform(0.12, 0.16)
    fringe, falls = own.uniform(0.06, 0.15), number % 3 == 0
    beard, glasses, mole = number % 4 == 1, number % 4 == 2, own.uniform(-0.15, 0.15)
    now = random.Random(f"{number}/{variation}")
    light, smile, gaze = now.uniform(-0.12, 0.12), now.uniform(0.0, 0.03), now.uniform(-0.008, 0.008)
    turn, shift = now.uniform(-4, 4), [now.uniform(-0.015, 0.015) for _ in range(2)]

    def shade(colour, share):
        return tuple(min(255, round(value * share)) for value in colour)

    def layer(shapes, blur):
        """Draws `(kind, colour, (x, y, half width, half height))`, in shares of the canvas, softened."""
        mask, colours = Image.new("L", (CANVAS, CANVAS)), picture.copy()
        for kind, colour, (x, y, w, h) in shapes:
            box = [CANVAS * value for value in (x - w, y - h, x + w, y + h)]
            for image, fill in ((mask, 255), (colours, colour)):
                getattr(ImageDraw.Draw(image), kind)(box, fill=fill)
        picture.paste(colours, mask=mask.filter(ImageFilter.GaussianBlur(CANVAS * blur)))

    picture = Image.new("RGB", (CANVAS, CANVAS), (168, 172, 176))
    dark, line = shade(skin, 0.5), 0.43  # the height of the eyes
    if falls:
        layer([("rectangle", hair, (0.5, 0.6, wide + 0.05, 0.25))], 0.01)
    layer([("ellipse", CLOTHES[number % 5], (0.5, 1.05, 0.42, 0.2))], 0.004)
    layer([("rectangle", shade(skin, 0.75), (0.5, 0.85, 0.1, 0.1))], 0.008)
    layer([("ellipse", hair, (0.5, 0.42, wide + 0.04, long + 0.01))], 0.006)
    layer([("ellipse", shade(skin, 0.8), (0.5, 0.5, wide, long))], 0.004)
    layer([("ellipse", skin, (0.5, 0.5, wide * 0.75, long * 0.85))], 0.03)
    if beard:
        layer([("ellipse", shade(hair, 1.1), (0.5, 0.75, wide * 0.75, 0.11))], 0.015)
    layer([("ellipse", hair, (0.5, 0.15, wide * 0.9, fringe))], 0.01)
    sides = (0.5 - apart, 0.5 + apart)
    layer([("ellipse", shade(skin, 0.55), (x, line - 0.005, 0.075, 0.042)) for x in sides], 0.016)
    layer([("ellipse", shade(skin, 1.12), (x, line + 0.14, 0.06, 0.05)) for x in sides], 0.025)
    layer([("rectangle", shade(skin, 1.15), (0.5, line + nose / 2, 0.018, nose / 2))], 0.012)
    layer([("rectangle", shade(hair, 0.6), (x, line - 0.06, 0.06, brow)) for x in sides], 0.006)
    layer([("ellipse", (235, 235, 230), (x, line, eye, eye * 0.55)) for x in sides], 0.003)
    layer([("ellipse", (30, 22, 20), (x + gaze, line, eye * 0.55, eye * 0.55)) for x in sides], 0.003)
    layer([("ellipse", dark, (x, line + nose, 0.014, 0.009)) for x in (0.478, 0.522)], 0.005)
    layer([("ellipse", (130, 60, 60), (0.5, 0.7, mouth, 0.016 + smile))], 0.006)
    layer([("ellipse", (60, 30, 30), (0.5 + mole, 0.62, 0.012, 0.012))], 0.002)
    if glasses:
        draw = ImageDraw.Draw(picture)
        for x in sides:
            ring = [CANVAS * value for value in (x - 0.08, line - 0.06, x + 0.08, line + 0.06)]
            draw.ellipse(ring, outline=(50, 45, 45), width=2)
    falloff = 1 + light * np.linspace(-1, 1, CANVAS)[None, :, None]  # from one side to the other
    picture = Image.fromarray((np.asarray(picture) * falloff).clip(0, 255).astype(np.uint8))
    moved = [CANVAS * value for value in shift]
    picture = picture.rotate(turn, Image.Resampling.BICUBIC, translate=moved, fillcolor=(168, 172, 176))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def scene(people, size=(640, 480)):
    """A photograph `size` with people, `(number, (left, top, side))` each, before a wall with light from above."""
    wall = Image.linear_gradient("L").resize(size).point(lambda value: 190 - value // 4)
    picture = Image.merge("RGB", [wall, wall.point(lambda value: value - 8), wall.point(lambda value: value - 20)])
    for number, (left, top, side) in people:
        picture.paste(person(number, variation=0, size=side), (left, top))
    return picture


def noise_people(folder, people=6, pictures=6, side=16):
    """A folder of people who are noise, each of a pattern that shows in all their pictures."""
    for number in range(people):
        own = np.random.default_rng(number).normal(128, 50, (side, side))
        (folder / f"person {number}").mkdir(parents=True)
        for picture in range(pictures):
            noise = np.random.default_rng([number, picture]).normal(0, 15, (side, side))
            pixels = (own + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"person {number}" / f"person {number}_{picture + 1:04}.png")
    return folder
