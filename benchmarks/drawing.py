"""Digits drawn anew as people photograph, scan and draw them: on paper, boards and canvases, in any light."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Array = np.ndarray
Random = np.random.Generator


def enlarged(digit: Image.Image, side: int, crisp: float = 1) -> Array:
    """How much ink there is in 0..1, `(side, side)`, of a digit of MNIST; `crisp` is the steepness of its edges."""
    ink = np.asarray(digit.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return np.clip((ink - 0.5) * crisp + 0.5, 0, 1)


def pasted(ink: Array, height: int, width: int, top: int, left: int) -> Array:
    """The ink on a larger sheet."""
    sheet = np.zeros((height, width), dtype=np.float32)
    sheet[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return sheet


def trimmed(ink: Array) -> Array:
    """The ink without its margin."""
    rows, columns = np.flatnonzero((ink > 0.3).any(1)), np.flatnonzero((ink > 0.3).any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def picture(ink: Array, paper: Array | float = 255, pen: Array | float = 0) -> Image.Image:
    """Ink of the pen's tone or colour on paper, in 0..255."""
    ink = ink[..., None] if 3 in (np.ndim(paper), np.ndim(pen)) or np.shape(pen) == (3,) else ink
    return Image.fromarray(np.clip(paper * (1 - ink) + pen * ink, 0, 255).astype(np.uint8))


def noise(image: Image.Image, random: Random, sigma: float) -> Image.Image:
    """The picture with a camera's noise."""
    pixels = np.asarray(image, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + random.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8))


def ramp(height: int, width: int, angle: float) -> Array:
    """0 to 1 from one side of a sheet to the other, in a direction."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    return (along - along.min()) / (along.max() - along.min())


def sheet(digit: Image.Image, random: Random, side: int = 200, size: int = 400, crisp: float = 1) -> Array:
    """The ink of a digit somewhere on a sheet."""
    top, left = random.integers(0, size - side + 1, 2)
    return pasted(enlarged(digit, side, crisp), size, size, top, left)


def shadow(digit: Image.Image, random: Random, dark: float) -> Image.Image:
    """Light that falls from 235 to something dark across the sheet."""
    light = 235 + (dark - 235) * ramp(400, 400, random.uniform(0, 2 * np.pi))
    return picture(sheet(digit, random), light, 0.15 * light)


def edge_of_shadow(digit: Image.Image, random: Random) -> Image.Image:
    """The shadow of a hand, with an edge."""
    at = ramp(400, 400, random.uniform(0, 2 * np.pi))
    light = 120 + 110 / (1 + np.exp((at - 0.5) * 40))
    return picture(sheet(digit, random), light, 0.2 * light)


def corner(digit: Image.Image, random: Random) -> Image.Image:
    """A lamp over one corner."""
    rows, columns = np.mgrid[:400, :400] / 400
    distance = np.hypot(rows - random.integers(2), columns - random.integers(2))
    light = 250 / (1 + 1.2 * distance**2)
    return noise(picture(sheet(digit, random), light, 0.2 * light), random, 3)


def squares(digit: Image.Image, random: Random, step: int = 25, tone: float = 215) -> Image.Image:
    """Graph paper."""
    paper = np.full((400, 400), 250, dtype=np.float32)
    paper[random.integers(step) :: step] = tone
    paper[:, random.integers(step) :: step] = tone
    return picture(sheet(digit, random), paper, 30)


def lines(digit: Image.Image, random: Random) -> Image.Image:
    """Ruled paper."""
    paper = np.full((400, 400, 3), 250, dtype=np.float32)
    for row in range(random.integers(60), 400, 60):
        paper[row : row + 2] = (170, 200, 235)
    return picture(sheet(digit, random), paper, np.array((30, 30, 60.0)))


def large(digit: Image.Image, random: Random) -> Image.Image:
    """A small digit in a large photograph."""
    top, left = random.integers(50, 1300), random.integers(50, 1800)
    light = 225 - 40 * ramp(1500, 2000, random.uniform(0, 2 * np.pi))
    return noise(picture(pasted(enlarged(digit, 120), 1500, 2000, top, left), light, 40), random, 5)


def chalk(digit: Image.Image, random: Random) -> Image.Image:
    """Grainy chalk on a smeared blackboard."""
    smear = Image.fromarray(random.integers(0, 255, (12, 12), dtype=np.uint8)).resize((400, 400), 3)
    board = 45 + 25 * np.asarray(smear, dtype=np.float32) / 255
    grain = np.clip(random.normal(0.85, 0.15, (400, 400)), 0, 1)
    return noise(picture(sheet(digit, random, crisp=3) * grain, board, 225), random, 4)


def pencil(digit: Image.Image, random: Random) -> Image.Image:
    """A grainy pencil."""
    grain = np.clip(random.normal(0.5, 0.2, (400, 400)), 0, 1)
    return noise(picture(sheet(digit, random, crisp=3) * grain, 240, 40), random, 3)


def photograph(digit: Image.Image, random: Random) -> Image.Image:
    """A blue pen on yellowish paper, in uneven light."""
    light = (1 - 0.3 * ramp(400, 400, random.uniform(0, 2 * np.pi)))[..., None]
    return noise(picture(sheet(digit, random, crisp=3), light * (235, 225, 195), light * (40, 50, 130)), random, 6)


def table(digit: Image.Image, random: Random) -> Image.Image:
    """A sheet on a dark table."""
    page = np.asarray(picture(sheet(digit, random), 235, 40))
    around = np.full((600, 600), 90, dtype=np.float32) + random.normal(0, 6, (600, 600))
    around[100:500, 100:500] = page
    return Image.fromarray(around.astype(np.uint8)).rotate(random.uniform(-5, 5), fillcolor=90)


def thinned(ink: Array) -> Array:
    """Strokes of one pixel along the middle of the ink (Zhang and Suen, 1984)."""
    image = np.pad(ink > 0.5, 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            # From above, clockwise.
            shifts = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)]
            near = [np.roll(image, shift, (0, 1)) for shift in shifts]
            count = sum(part.astype(int) for part in near)
            steps = sum((~near[i] & near[(i + 1) % 8]).astype(int) for i in range(8))
            up, right, down, left = near[0], near[2], near[4], near[6]
            free = (
                ~(up & right & down) & ~(right & down & left) if first else ~(up & right & left) & ~(up & down & left)
            )
            gone = image & (count >= 2) & (count <= 6) & (steps == 1) & free
            image &= ~gone
            changed |= bool(gone.any())
    return image[1:-1].astype(np.float32)[:, 1:-1]


def pen(digit: Image.Image, random: Random, width: int) -> Array:
    """The ink of a digit drawn with a pen so many pixels wide, 200 pixels high."""
    middle = thinned(enlarged(digit.filter(ImageFilter.GaussianBlur(0.7)), 200))
    dots = Image.fromarray((255 * middle).astype(np.uint8))
    wide = np.asarray(dots.filter(ImageFilter.GaussianBlur(width / 2)), dtype=np.float32)
    distance = np.asarray(dots.filter(ImageFilter.MaxFilter(width | 1)), dtype=np.float32) / 255
    round_ = distance if width < 4 else (wide > 255 * 0.12).astype(np.float32)
    return pasted(round_, 400, 400, *random.integers(0, 201, 2))


def thin(digit: Image.Image, random: Random) -> Image.Image:
    """A thin pen."""
    return picture(pen(digit, random, 3), 250, 20)


def hair(digit: Image.Image, random: Random) -> Image.Image:
    """A very thin pen."""
    return picture(pen(digit, random, 1), 250, 20)


def thick(digit: Image.Image, random: Random) -> Image.Image:
    """A felt pen."""
    ink = Image.fromarray((255 * sheet(digit, random, crisp=3)).astype(np.uint8)).filter(ImageFilter.MaxFilter(13))
    return picture(np.asarray(ink, dtype=np.float32) / 255, 250, 20)


def tilted(digit: Image.Image, random: Random, angle: float = 20) -> Image.Image:
    """A tilted sheet."""
    sign = random.choice((-1, 1))
    return picture(sheet(digit, random, 200, 300), 255, 0).rotate(sign * angle, Image.Resampling.BICUBIC, fillcolor=255)


def tiny(digit: Image.Image, random: Random, paper: float = 255) -> Image.Image:
    """28x28 pixels, a digit of 12 pixels at (1, 1)."""
    small = Image.fromarray((255 * trimmed(enlarged(digit, 280))).astype(np.uint8))
    small.thumbnail((12, 12), Image.Resampling.LANCZOS, reducing_gap=None)
    return picture(pasted(np.asarray(small, dtype=np.float32) / 255, 28, 28, 1, 1), paper, 0)


def anywhere(digit: Image.Image, random: Random) -> Image.Image:
    """28x28 pixels, a digit of 10 to 26 pixels anywhere."""
    small = Image.fromarray((255 * trimmed(enlarged(digit, 280))).astype(np.uint8))
    side = int(random.integers(10, 27))
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    top, left = (int(random.integers(1, 28 - length)) for length in (small.height, small.width))
    return picture(pasted(np.asarray(small, dtype=np.float32) / 255, 28, 28, top, left), 255, 0)


def scan(digit: Image.Image, random: Random, sigma: float = 0) -> Image.Image:
    """28x28 pixels on grey paper."""
    return noise(picture(np.asarray(digit, dtype=np.float32) / 255, 215, 0), random, sigma)


def coloured(digit: Image.Image, random: Random, *pen: float) -> Image.Image:
    """A pen of a colour."""
    return picture(sheet(digit, random), np.full((400, 400, 3), 250, dtype=np.float32), np.array(pen))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def turned(digit: Image.Image, random: Random) -> Image.Image:
    """A photograph that EXIF data say to turn."""
    image = picture(sheet(digit, random), 240, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = image.rotate(90, expand=True)
    image.info["exif"] = exif.tobytes()
    return image


def canvas(digit: Image.Image, random: Random, tone: int = 0) -> Image.Image:
    """A canvas with transparency."""
    alpha = Image.fromarray((255 * sheet(digit, random)).astype(np.uint8))
    image = Image.new("RGBA", alpha.size, (tone, tone, tone, 0))
    image.putalpha(alpha)
    return image


def specks(digit: Image.Image, random: Random) -> Image.Image:
    """Dirt on the paper."""
    ink = sheet(digit, random)
    for top, left in random.integers(0, 396, (12, 2)):
        ink[top : top + 4, left : left + 4] = 0.9
    return picture(ink, 245, 30)


def row(digits: list[Image.Image], random: Random) -> Image.Image:
    """Digits beside one another, of several sizes, in uneven light."""
    page, left = np.zeros((400, 1200), dtype=np.float32), int(random.integers(20, 60))
    for digit in digits:
        ink = trimmed(enlarged(digit, int(random.integers(130, 190)), 2))
        top = int(random.integers(90, 130))
        page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        left += ink.shape[1] + int(random.integers(14, 60))
    light = 235 - 80 * ramp(400, 1200, random.uniform(0, 2 * np.pi))
    return noise(picture(page, light, 0.2 * light), random, 3)


def empty(random: Random) -> Image.Image:
    """A blank sheet in uneven light."""
    light = 235 - 100 * ramp(400, 400, random.uniform(0, 2 * np.pi))
    return noise(Image.fromarray(light.astype(np.uint8)), random, 4)


def cut(digit: Image.Image, random: Random) -> Image.Image:
    """A digit of which a part is beyond the border."""
    ink = trimmed(enlarged(digit, 300, 2))
    return picture(pasted(ink[: 2 * len(ink) // 3], 400, 400, 400 - 2 * len(ink) // 3, 60), 240, 30)


WAYS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "clean": lambda digit, random: picture(enlarged(digit, 280)),
    "light on dark": lambda digit, random: picture(enlarged(digit, 280), 20, 240),
    "canvas": canvas,
    "white on canvas": lambda digit, random: canvas(digit, random, 255),
    "no margin": lambda digit, random: picture(trimmed(enlarged(digit, 280))),
    "off centre": lambda digit, random: picture(sheet(digit, random, 120, 500)),
    "mild shadow": lambda digit, random: shadow(digit, random, 190),
    "strong shadow": lambda digit, random: shadow(digit, random, 120),
    "edge of shadow": edge_of_shadow,
    "lamp": corner,
    "faint squares": squares,
    "squares": lambda digit, random: squares(digit, random, 25, 170),
    "ruled": lines,
    "large photo": large,
    "exif": turned,
    "chalk": chalk,
    "pencil": pencil,
    "red": lambda digit, random: coloured(digit, random, 210, 30, 40),
    "yellow": lambda digit, random: coloured(digit, random, 250, 220, 40),
    "colour photo": photograph,
    "low contrast": lambda digit, random: noise(picture(sheet(digit, random), 200, 160), random, 3),
    "blurred": lambda digit, random: picture(enlarged(digit, 280)).filter(ImageFilter.GaussianBlur(8)),
    "jpeg": lambda digit, random: jpeg(noise(picture(sheet(digit, random), 230, 60), random, 12), 10),
    "thin": thin,
    "hair": hair,
    "thick": thick,
    "tilted": tilted,
    "tiny": tiny,
    "anywhere": anywhere,
    "scan": scan,
    "noisy scan": lambda digit, random: scan(digit, random, 6),
    "specks": specks,
    "table": table,
}
