"""Faces in pictures: where they are found, and how they are cut out."""

import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn import FACE, person, scene
from PIL import Image

from datamodules.common.image_io import MAX_SIDE, open_image
from datamodules.face_data.detection import EYE_HEIGHT, FACE_SIDE, MARGIN, Face, FaceDetector, align

cv2 = pytest.importorskip("cv2", reason="needs the extra faces")
ORL = ROOT.parent / "shared" / "data" / "orl_faces"
TILT = math.radians(20)


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def overlap(box, other):
    """What two boxes share, of what they cover together."""
    (left, top, width, height), (left2, top2, width2, height2) = box, other
    across = min(left + width, left2 + width2) - max(left, left2)
    down = min(top + height, top2 + height2) - max(top, top2)
    shared = max(0, across) * max(0, down)
    return shared / (width * height + width2 * height2 - shared)


def drawn_box(left, top, side):
    return left + FACE[0] * side, top + FACE[1] * side, FACE[2] * side, FACE[3] * side


def angle(eyes):
    (x, y), (other_x, other_y) = eyes
    return math.degrees(math.atan2(other_y - y, other_x - x))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("number", range(10))
def test_drawn_people_are_found_with_both_eyes(number, mode, detector):
    for variation in range(3):
        (face,) = detector(person(number, variation, size=120).convert(mode))
        assert overlap(face.box, drawn_box(0, 0, 120)) > 0.65
        (x, y), (other_x, other_y) = face.eyes
        assert 0.3 < x / 120 < 0.5 < other_x / 120 < 0.7
        assert all(abs(height / 120 - 0.43) < 0.06 for height in (y, other_y))


@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
def test_faces_are_found_largest_first(scale, detector):
    places = [
        (round(left * scale), round(top * scale), round(side * scale))
        for left, top, side in [(430, 60, 160), (30, 40, 280), (300, 280, 120)]
    ]
    picture = scene(list(zip((5, 0, 3), places, strict=True)), (round(640 * scale), round(480 * scale)))
    faces = detector(picture)
    largest_first = sorted(places, key=lambda place: -place[2])
    assert len(faces) == 3
    for face, place in zip(faces, largest_first, strict=True):
        assert overlap(face.box, drawn_box(*place)) > 0.6


def test_empty_scene_and_tiny_image_have_no_faces(detector):
    assert detector(scene([])) == []
    assert detector(Image.new("L", (1, 3))) == []


@pytest.mark.parametrize("tilt", [-20, 20])
def test_tilted_face_is_aligned(tilt, detector):
    straight = person(0, size=160)
    tilted = straight.rotate(-tilt, Image.Resampling.BICUBIC, fillcolor=(168, 172, 176))
    (face,), (before,) = detector(tilted), detector(straight)
    assert angle(face.eyes) - angle(before.eyes) == pytest.approx(tilt, abs=4)
    crop, expected = align(tilted, face, 96), align(straight, before, 96)
    assert (crop.float() - expected.float()).abs().mean() < 12
    (again,) = detector(Image.fromarray(align(tilted, face, 160, margin=0.5).permute(1, 2, 0).numpy()))
    assert abs(angle(again.eyes)) < 4


@pytest.mark.parametrize("side", [50, 400])
@pytest.mark.parametrize("margin", [0.0, MARGIN, 0.4])
def test_eyes_are_aligned_to_their_places(side, margin):
    middle, apart = (230.0, 150.0), 80.0
    half = (apart / 2 * math.cos(TILT), apart / 2 * math.sin(TILT))
    eyes = ((middle[0] - half[0], middle[1] - half[1]), (middle[0] + half[0], middle[1] + half[1]))
    ys, xs = np.mgrid[:300, :400] + 0.5
    dots = sum(np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 6**2)) for x, y in eyes)
    picture = Image.fromarray((255 * dots).astype(np.uint8))
    (crop,) = align(picture, Face((0, 0, 1, 1), eyes), side, margin).double()
    columns = torch.arange(side).double() + 0.5
    for half_crop, sign in ((crop[:, : side // 2], -1), (crop[:, side // 2 :], 1)):
        start = 0 if sign < 0 else side // 2
        mass = half_crop.sum()
        x = (half_crop.sum(0) @ columns[start : start + side // 2]) / mass / side
        y = (half_crop.sum(1) @ columns) / mass / side
        assert x == pytest.approx(0.5 + sign / FACE_SIDE / 2 / (1 + 2 * margin), abs=0.004)
        assert y == pytest.approx((EYE_HEIGHT + margin) / (1 + 2 * margin), abs=0.004)


def test_missing_eyes_are_at_their_mean_positions():
    picture, box = person(0, size=300), (100.0, 60.0, 100.0, 100.0)
    usual = ((129.0, 98.5), (169.0, 98.5))
    assert torch.equal(align(picture, Face(box, None), 64), align(picture, Face(box, usual), 64))


def test_shrunk_face_is_averaged_and_edges_repeated():
    board = Image.fromarray((np.indices((300, 300)).sum(0) % 2 * 255).astype(np.uint8))
    crop = align(board, Face((50, 50, 200, 200), None), 16)
    assert (crop.int() - 127).abs().max() <= 40
    assert crop.shape == (1, 16, 16)
    crop = align(Image.new("RGB", (60, 40), (9, 80, 200)), Face((-20, -20, 100, 100), None), 32, margin=1.0)
    assert crop.flatten(1).unique(dim=1).flatten().tolist() == [9, 80, 200]


def test_detector_is_picklable_and_thread_safe(detector):
    pictures = [person(number, size=120) for number in range(4)]
    expected = [detector(picture) for picture in pictures]
    assert [pickle.loads(pickle.dumps(detector))(picture) for picture in pictures] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(detector, pictures * 4)) == expected * 4


def test_exif_rotation(detector, tmp_path):
    picture = scene([(0, (100, 100, 300))])
    picture.save(tmp_path / "upright.png")
    turned = {3: 180, 6: 90, 8: 270}
    for orientation, degrees in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("png", "tiff"):
            picture.rotate(degrees, expand=True).save(tmp_path / f"{orientation}.{kind}", exif=exif)
    expected = open_image(tmp_path / "upright.png", 3)
    for orientation in turned:
        for kind in ("png", "tiff"):
            opened = open_image(tmp_path / f"{orientation}.{kind}", 3)
            assert np.array_equal(opened, expected)
            assert detector(opened) == detector(expected) != []


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0garbage", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40])
def test_damaged_exif_is_ignored(exif, tmp_path):
    person(0).save(tmp_path / "damaged.jpg", exif=b"Exif\0\0" + exif)
    assert open_image(tmp_path / "damaged.jpg", 3).size == (120, 120)


def test_same_face_in_files_of_any_mode(detector, tmp_path):
    picture = person(0, size=200)
    gray = np.asarray(picture.convert("L"))
    kinds = {
        "cmyk.tiff": picture.convert("CMYK"),
        "alpha.png": picture.convert("RGBA"),
        "palette.gif": picture.quantize(128),
        "deep.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "float.tiff": Image.fromarray(gray.astype(np.float32) / 255),
    }
    (expected,) = detector(picture)
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
        for channels in (1, 3):
            opened = open_image(tmp_path / name, channels)
            assert (opened.mode, opened.size) == ("L" if channels == 1 else "RGB", (200, 200))
            (face,) = detector(opened)
            assert overlap(face.box, expected.box) > 0.9
            assert face.eyes


@pytest.mark.parametrize("mode", ["L", "1"])
def test_huge_image_is_scaled_down_without_a_warning(mode, tmp_path, recwarn):
    Image.new(mode, (10000, 9000), 1).save(tmp_path / "huge.png", compress_level=1)
    assert open_image(tmp_path / "huge.png", 1).size == (MAX_SIDE, MAX_SIDE * 9 // 10)
    assert not recwarn.list


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is told in other units")
def test_huge_jpeg_takes_little_memory(tmp_path):
    Image.new("L", (10000, 10000), 200).save(tmp_path / "huge.jpg")
    code = """
import resource, sys
from pathlib import Path
from datamodules.common.image_io import open_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
print(open_image(Path(sys.argv[1]), 1).size, peak() - before < 50)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "huge.jpg")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"{(MAX_SIDE, MAX_SIDE)} True"


def test_more_pixels_than_pillow_opens_are_refused(tmp_path, monkeypatch):
    person(0).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(ValueError, match=r"more than 10000 pixels: scale it down first"):
        open_image(tmp_path / "large.png", 3)


def test_missing_opencv_names_the_way_out(monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(ValueError, match=r"has no Haar cascades: pip install 'opencv-python-headless>=4.8,<5', or"):
        FaceDetector()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"needs the extra faces: pip install -e '\.\[faces\]'"):
        FaceDetector()


@pytest.fixture
def bright(tmp_path):
    """A file with a network that has YuNet's outputs, and finds a face of 128x128 around a white cell of 32x32."""
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    # The box's middle and the logarithms of its sides, then five points, the face's right eye first: all in cells.
    numbers = {"cls": [0.0], "obj": [1.0], "bbox": [0.5, 0.5, math.log(4), math.log(4)]}
    numbers["kps"] = [-0.3, 0.1, 1.3, 0.2, 0.5, 1, 0, 1.5, 1, 1.5]
    nodes, weights, outputs = [], [], []
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node("AveragePool", ["input"], [f"{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        for name, bias in numbers.items():
            own, count = f"{name}_{stride}", len(bias)
            scale = 1 / (3 * 255) if name == "cls" and stride == 32 else 0.0
            weights += [
                helper.make_tensor(f"{own}_weight", kind, [count, 3, 1, 1], [scale] * 3 * count),
                helper.make_tensor(f"{own}_bias", kind, [count], bias),
                helper.make_tensor(f"{own}_shape", onnx.TensorProto.INT64, [3], [1, -1, count]),
            ]
            nodes += [
                helper.make_node("Conv", [f"{stride}", f"{own}_weight", f"{own}_bias"], [f"{own}_map"]),
                helper.make_node("Transpose", [f"{own}_map"], [f"{own}_last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{own}_last", f"{own}_shape"], [own]),
            ]
            outputs.append(helper.make_tensor_value_info(own, kind, [1, None, count]))
    given = helper.make_tensor_value_info("input", kind, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "bright", [given], outputs, weights)
    path = tmp_path / "bright.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_yunet_replaces_the_cascades(mode, bright, monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")  # as in OpenCV 5
    picture = Image.new(mode, (1280, 1280))  # searched at half the size
    picture.paste("white", (640, 512, 704, 576))
    (face,) = FaceDetector(str(bright))(picture)
    assert face.box == pytest.approx((672 - 128, 544 - 128, 256, 256), abs=0.5)
    (x, y), (other_x, other_y) = face.eyes
    assert (x, y, other_x, other_y) == pytest.approx((620.8, 518.4, 723.2, 524.8), abs=0.5)


def test_wrong_yunet_file_is_one_line(tmp_path, capfd):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.onnx: yunet is the path of"):
        FaceDetector(str(tmp_path / "absent.onnx"))
    (tmp_path / "wrong.onnx").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"wrong\.onnx is no YuNet model"):
        FaceDetector(str(tmp_path / "wrong.onnx"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not ORL.is_dir(), reason="needs the portraits of ORL")
def test_orl_portraits_are_framed_like_their_central_squares(detector):
    pictures = [open_image(path, 1) for path in sorted(ORL.glob("s*/*.pgm"))[::9]]
    faces = [detector(picture) for picture in pictures]
    assert sum(len(found) == 1 for found in faces) >= 0.98 * len(pictures)
    eyes = np.array([found[0].eyes for found in faces if found and found[0].eyes])
    assert len(eyes) >= 0.85 * len(pictures)
    left, right = (eyes.mean(0) - [0, 10]) / 92  # in the square of 92x92 in the middle of 92x112
    framed = 1 + 2 * MARGIN
    assert right[0] - left[0] == pytest.approx(1 / FACE_SIDE / framed, abs=0.02)
    assert (left[1] + right[1]) / 2 == pytest.approx((EYE_HEIGHT + MARGIN) / framed, abs=0.02)
