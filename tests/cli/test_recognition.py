"""People in pictures, from the command line: enrolled, identified and verified."""

import csv
import errno
import io
import os
import random
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fails
from drawn import FACE, person, scene
from lightning import Trainer
from PIL import Image

from datamodules.face_data.detection import FaceDetector, align
from lit_models import FaceEmbedder, Net
from lit_models.cli import main as cli
from lit_models.faces.verification import stranger_similarities, threshold_at, verify_pairs
from lit_models.training import figures

cv2 = pytest.importorskip("cv2", reason="needs the extra faces")
pytest.importorskip("safetensors", reason="needs the extra faces")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
TRAINED, VALIDATED, KNOWN = range(24), range(24, 30), range(30, 36)
SCENE = {30: (40, 60, 200), 33: (250, 250, 180), 40: (400, 30, 190)}  # who is where: left, top, side


def save(model, path, **additions):
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    torch.save(torch.load(path, weights_only=True) | additions, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("recognition")


@pytest.fixture(scope="module")
def embedder(place):
    """The checkpoint of a model that has learned to tell drawn people apart, with a threshold from other people."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    detector, images, labels = FaceDetector(), [], []
    for number in (*TRAINED, *VALIDATED):
        for variation in range(2):
            picture = person(number, variation).convert("L")
            images.append(align(picture, detector(picture)[0], 32))
            labels.append(number)
    images, labels = torch.stack(images), torch.tensor(labels)
    training = labels < len(TRAINED)
    model = FaceEmbedder(image_size=32, num_classes=len(TRAINED)).train()
    model.log_loss = lambda loss: None
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        chosen = training.nonzero()[:, 0][torch.randperm(int(training.sum()))[:32]]
        batch = images[chosen]
        batch = torch.where((torch.rand(len(batch)) < 0.5)[:, None, None, None], batch.flip(3), batch)
        optimizer.zero_grad()
        model.training_step((batch, labels[chosen]), 0).backward()
        optimizer.step()
    with torch.no_grad():
        embeddings, unseen = model.eval()(images[~training]), labels[~training]
        result = verify_pairs(embeddings, unseen, torch.arange(len(unseen)), torch.zeros(len(unseen), dtype=torch.bool))
        strangers = stranger_similarities(result.embeddings, result.labels, F.normalize(model.lda(model.prototypes)))
    model.threshold.fill_(threshold_at(result.impostor, 0.01))
    model.stranger_threshold.fill_(threshold_at(strangers, 0.01))
    return save(model, place / "embedder.ckpt")


@pytest.fixture(scope="module")
def people(place):
    """A folder with two pictures of each of six people."""
    for number in KNOWN:
        (place / "people" / f"Person {number}").mkdir(parents=True)
        for variation in range(2):
            person(number, variation).save(place / "people" / f"Person {number}" / f"{variation}.png")
    return place / "people"


@pytest.fixture(scope="module")
def enrolled(embedder, people, place):
    """A gallery of them; it is not to be changed."""
    assert cli.main(["enrol", f"--ckpt_path={embedder}", f"--gallery={place / 'known'}", f"--pictures={people}"]) == 0
    return place / "known"


@pytest.fixture
def gallery(enrolled, tmp_path):
    return shutil.copy(enrolled, tmp_path / "gallery")


@pytest.fixture
def does(capsys, embedder):
    """What the command line prints, run in this process with a trained model."""

    def does(verb, *args, ckpt_path=embedder):
        assert cli.main([verb, f"--ckpt_path={ckpt_path}", *map(str, args)]) == 0
        return capsys.readouterr().out

    return does


@pytest.fixture
def refuses(capsys, embedder):
    def refuses(verb, *args, ckpt_path=embedder):
        return fails(capsys, verb, f"--ckpt_path={ckpt_path}", *args)

    return refuses


def rows(output):
    with open(output / "faces.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def drawn(path, number, variation=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    person(number, variation, **options).save(path)
    return path


def test_a_scene_is_identified_in_words_rows_and_on_a_copy(does, enrolled, tmp_path):
    picture = scene(SCENE.items())
    picture.save(tmp_path / "party.png")
    said = does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", tmp_path / "party.png")
    found = rows(tmp_path / "out")
    assert list(found[0]) == ["file", "face", "left", "top", "width", "height", "name", "similarity", "time"]
    assert [row["face"] for row in found] == ["1", "2", "3"]
    assert {row["file"] for row in found} == {str(tmp_path / "party.png")}
    names = {30: "Person 30", 33: "Person 33", 40: "unknown"}
    for number, (left, top, side) in SCENE.items():
        (row,) = (row for row in found if row["name"] == names[number])
        wanted = (left + FACE[0] * side, top + FACE[1] * side, FACE[2] * side, FACE[3] * side)
        box = [int(row[key]) for key in ("left", "top", "width", "height")]
        assert all(abs(value - other) < 0.12 * side for value, other in zip(box, wanted, strict=True))
        similarity = float(row["similarity"])
        _, _, rest = said.partition(f"party.png: face {row['face']} at {box}: {names[number]} (")
        assert float(rest.partition(")")[0]) == pytest.approx(similarity, abs=1e-3)
    assert f"1 pictures; names and boxes are in {tmp_path / 'out'}" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["faces.csv", "party.faces.jpg"]
    with Image.open(tmp_path / "out" / "party.faces.jpg") as copy:
        assert copy.size == picture.size
        changed = np.abs(np.asarray(copy, dtype=int) - np.asarray(picture)).max(axis=2) > 40
    for row in found:  # boxes around the faces, nothing in the middle of them
        left, top, width, height = (int(row[key]) for key in ("left", "top", "width", "height"))
        assert changed[top + height // 4 : top + 3 * height // 4, left - 2 : left + 3].any(axis=1).all()
        assert not changed[top + height // 3 : top + height // 2, left + width // 3 : left + 2 * width // 3].any()


def test_known_people_are_accepted_and_strangers_refused(does, gallery, tmp_path):
    # Drawn by lot, since numbers that are 20 apart look much alike: as many of them are enrolled as are strangers.
    others = random.Random(0).sample(range(36, 80), 30)
    added, strangers = others[:14], others[14:]
    for number in added:
        for variation in range(2):
            drawn(tmp_path / "added" / f"Person {number}" / f"{variation}.png", number, variation)
    assert "20 people, 40 pictures" in does("enrol", f"--gallery={gallery}", f"--pictures={tmp_path / 'added'}")
    for number in KNOWN:
        drawn(tmp_path / "known" / f"Person {number}.png", number, variation=7)
    does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", tmp_path / "known")
    assert [f"{row['name']}.png" for row in rows(tmp_path / "out")] == [f"Person {number}.png" for number in KNOWN]
    for number in strangers:
        drawn(tmp_path / "strangers" / f"{number}.png", number)
    does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", tmp_path / "strangers")
    names = [row["name"] for row in rows(tmp_path / "out")]
    assert len(names) == len(strangers)
    assert names.count("unknown") >= 0.8 * len(strangers)


def test_strangers_are_refused_where_those_trained_on_are_enrolled(does, tmp_path):
    # Trained apart from one another, they would have strangers accepted at nearly any similarity.
    for number in TRAINED:
        drawn(tmp_path / "people" / f"Person {number}" / "one.png", number, variation=3)
    gallery = f"--gallery={tmp_path / 'gallery'}"
    does("enrol", gallery, f"--pictures={tmp_path / 'people'}")
    strangers = random.Random(0).sample(range(36, 80), 16)
    for number in strangers:
        drawn(tmp_path / "strangers" / f"{number}.png", number)
    does("identify", gallery, f"--output={tmp_path / 'out'}", tmp_path / "strangers")
    assert [row["name"] for row in rows(tmp_path / "out")].count("unknown") >= 0.6 * len(strangers)


def test_pictures_are_verified(does, refuses, people, tmp_path):
    one, other = people / "Person 30" / "0.png", people / "Person 30" / "1.png"
    stranger = people / "Person 31" / "0.png"
    assert does("verify", one, other).startswith("the same person: similarity 0.")
    assert does("verify", one, one).startswith("the same person: similarity 1.000, threshold ")
    assert does("verify", one, stranger).startswith("different people: similarity ")
    assert does("verify", one, stranger, "--threshold=-1").startswith("the same person: ")
    assert does("verify", one, other, "--threshold=1").startswith("different people: ")
    assert does("verify", one, other, "--threshold=1").endswith("threshold 1.000\n")
    assert "--threshold is 1.5: it must be in -1..1" in refuses("verify", one, other, "--threshold=1.5")


def test_what_cannot_be_verified(refuses, people, tmp_path):
    one = people / "Person 30" / "0.png"
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "wall.png")
    scene(SCENE.items()).save(tmp_path / "party.png")
    (tmp_path / "empty.png").touch()
    assert f"no face(s) in {tmp_path / 'wall.png'}: give a picture of one" in refuses(
        "verify", one, tmp_path / "wall.png"
    )
    assert f"3 face(s) in {tmp_path / 'party.png'}: give" in refuses("verify", tmp_path / "party.png", one)
    assert "two pictures are compared, but 1 are given" in refuses("verify", one)
    assert "two pictures are compared, but 3 are given" in refuses("verify", one, one, one)
    assert f"no picture {tmp_path / 'none.png'}" in refuses("verify", one, tmp_path / "none.png")
    assert f"no picture {tmp_path}" in refuses("verify", one, tmp_path)
    assert f"cannot read {tmp_path / 'empty.png'}: " in refuses("verify", one, tmp_path / "empty.png")
    assert "pictures" in refuses("verify")
    assert "leave --pictures out, and give what follows it by itself" in refuses("verify", "--pictures", one, one)


def test_a_model_without_validation_has_no_threshold(does, refuses, people, tmp_path):
    torch.manual_seed(0)
    path = save(FaceEmbedder(image_size=32), tmp_path / "fresh.ckpt")
    one, other = people / "Person 30" / "0.png", people / "Person 31" / "0.png"
    said = refuses("verify", one, other, ckpt_path=path)
    assert said.endswith("has no threshold, since it was trained without validation: give --threshold")
    does("verify", one, other, "--threshold=0.5", ckpt_path=path)
    enrol = ("enrol", f"--gallery={tmp_path / 'one'}", f"--pictures={one}", "--name=Ann")
    said = refuses(*enrol, ckpt_path=path)
    assert said.endswith("a threshold cannot be chosen with only one person: give --threshold, such as 0.5")
    assert not (tmp_path / "one").exists()
    assert "threshold 0.500\n" in does(*enrol, "--threshold=0.5", ckpt_path=path)


def test_people_are_added_replaced_and_removed(does, gallery, people, tmp_path):
    new = drawn(tmp_path / "new.png", 50)
    said = does("enrol", f"--gallery={gallery}", f"--pictures={new}", "--name=Zoe")
    assert said.startswith("enrolled Zoe: 1 picture(s)\n")
    assert "7 people, 13 pictures; threshold 0." in said
    assert said.endswith("rate of 0.01 over 13 pictures, which are too few to tell less than 0.077\n")
    does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", new)
    assert [row["name"] for row in rows(tmp_path / "out")] == ["Zoe"]
    said = does("enrol", f"--gallery={gallery}", f"--pictures={people / 'Person 31'}", "--name=Zoe")
    assert said.startswith("added 2 picture(s) to Zoe, who has 3 now\n")
    assert "7 people, 15 pictures" in said
    said = does("enrol", f"--gallery={gallery}", f"--pictures={new}", "--name=Zoe", "--replace=true")
    assert said.startswith("replaced Zoe: 1 picture(s) instead of 3\n")
    assert "7 people, 13 pictures" in said
    assert does("enrol", f"--gallery={gallery}", "--remove=Zoe").startswith("removed Zoe\n")
    said = does("enrol", f"--gallery={gallery}", "--name=Zoe", "--pictures", new, people / "Person 31", "--replace")
    assert said.startswith("enrolled Zoe: 3 picture(s)\n")
    assert does("enrol", f"--gallery={gallery}", "--remove=Zoe").startswith("removed Zoe\n")
    # Taken out and put in at once: the one, then the other.
    said = does("enrol", f"--gallery={gallery}", "--remove=Person 35", f"--pictures={new}", "--name=Yan")
    assert said.startswith("removed Person 35\nenrolled Yan: 1 picture(s)\n")
    assert "6 people, 11 pictures" in said
    does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", new)
    assert [row["name"] for row in rows(tmp_path / "out")] == ["Yan"]


def test_the_last_person_can_be_removed(does, refuses, gallery, people, tmp_path):
    for number in KNOWN:
        said = does("enrol", f"--gallery={gallery}", f"--remove=Person {number}")
        if number == KNOWN[-2]:
            assert "1 people, 2 pictures" in said
            assert "the one of the model's validation, until there are two people" in said
    assert "0 people, 0 pictures" in said
    one = people / "Person 30" / "0.png"
    refused = refuses("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", one)
    assert refused.endswith(f"nobody is in {gallery}: enrol people first")
    assert "6 people, 12 pictures" in does("enrol", f"--gallery={gallery}", f"--pictures={people}")


def test_a_threshold_that_was_given_is_kept_until_another_is_asked_for(does, gallery, people):
    again = ("enrol", f"--gallery={gallery}", f"--pictures={people / 'Person 30'}", "--name=Person 30")
    assert "threshold 0.123\n" in does(*again, "--threshold=0.123")
    assert "threshold 0.123\n" in does(*again)
    said = does(*again, "--far=0.5")
    assert "for a false-accept rate of 0.5 over 12 pictures\n" in said
    assert said.endswith(does(*again).partition("\n")[2])


@pytest.mark.parametrize(
    "name",
    ["Ann Lee", 'O\'Hara, "Al"', "a/b\\c", "李 小龍", "Ünï: [x]", "two\nlines", "1\x1b[2J", "123", "-x", "{}", "=1"],
)
def test_any_name_can_be_enrolled(name, does, gallery, people, tmp_path):
    one = people / "Person 34" / "0.png"
    does("enrol", f"--gallery={gallery}", "--remove=Person 34", f"--pictures={one}", f"--name={name}")
    said = does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'out'}", one)
    shown = " ".join(name.replace("\x1b", " ").split())
    assert f": {shown} (1.000)" in said.splitlines()[0]
    assert [row["name"] for row in rows(tmp_path / "out")] == [name]
    with Image.open(tmp_path / "out" / "0.faces.jpg") as copy:
        copy.load()
    assert does("enrol", f"--gallery={gallery}", f"--remove={name}").startswith(f"removed {shown}\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_files_whose_names_are_no_text_are_taken(does, people, tmp_path):
    name = os.fsdecode(b"\xff")
    for known in ("Person 30", "Person 31"):
        shutil.copytree(people / known, tmp_path / "root" / f"{known}{name}")
    gallery, output = tmp_path / "gallery", tmp_path / f"out{name}"
    said = does("enrol", f"--gallery={gallery}", f"--pictures={tmp_path / 'root'}")
    assert "enrolled Person 30?: 2 picture(s)\n" in said
    said = does("identify", f"--gallery={gallery}", f"--output={output}", tmp_path / "root" / f"Person 31{name}")
    assert "out?\n" in said
    assert {row["name"] for row in rows(output)} == {f"Person 31{name}"}


@pytest.mark.parametrize("name", ["", " ", "unknown"])
def test_a_name_that_says_nothing_is_refused(name, refuses, gallery, people, tmp_path):
    said = refuses("enrol", f"--gallery={gallery}", f"--pictures={people / 'Person 30' / '0.png'}", f"--name={name}")
    assert f"{name!r} cannot be a name: give another one" in said
    drawn(tmp_path / "root" / "unknown" / "0.png", 30)
    assert "'unknown' cannot be a name" in refuses("enrol", f"--gallery={gallery}", f"--pictures={tmp_path / 'root'}")


def test_pictures_of_one_name_get_copies_of_their_own(does, enrolled, tmp_path):
    one, other = drawn(tmp_path / "a" / "x.png", 30), drawn(tmp_path / "b" / "x.jpg", 31)
    does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", one, tmp_path / "b", other)
    copies = sorted(path.name for path in (tmp_path / "out").glob("*.jpg"))
    assert copies == ["x.faces.jpg", "x.faces_2.jpg", "x.faces_3.jpg"]
    assert [row["name"] for row in rows(tmp_path / "out")] == ["Person 30", "Person 31", "Person 31"]


def test_a_source_is_never_overwritten(does, enrolled, tmp_path):
    files = [drawn(tmp_path / "in" / name, 30) for name in ("x.jpg", "x.faces.jpg", "x.faces_2.jpg", "x.png")]
    before = [path.read_bytes() for path in files]
    does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'in'}", tmp_path / "in")
    assert [path.read_bytes() for path in files] == before
    assert len(rows(tmp_path / "in")) == 4
    assert len(list((tmp_path / "in").iterdir())) == 4 + 4 + 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_in_the_pixels_of_a_large_photograph(orientation, does, enrolled, tmp_path):
    picture = scene([(33, (2400, 1300, 1400))], size=(4000, 3000))  # read at half the size
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = picture.transpose(turn[orientation]) if orientation in turn else picture
    stored.save(tmp_path / "large.jpg", exif=exif)
    said = does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", tmp_path / "large.jpg")
    (row,) = rows(tmp_path / "out")
    box = [int(row[key]) for key in ("left", "top", "width", "height")]
    wanted = (2400 + FACE[0] * 1400, 1300 + FACE[1] * 1400, FACE[2] * 1400, FACE[3] * 1400)
    assert all(abs(value - other) < 170 for value, other in zip(box, wanted, strict=True))
    assert f"face 1 at {box}: " in said
    with Image.open(tmp_path / "out" / "large.faces.jpg") as copy:
        assert copy.size == (2000, 1500)


def test_boxes_end_at_the_edges_of_the_picture(does, enrolled, tmp_path):
    face = person(30, size=2400).crop((480, 500, 1920, 2000))  # its box reaches beyond
    face.save(tmp_path / "close.png")
    (found,) = FaceDetector()(face.resize((1920, 2000)))
    does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", tmp_path / "close.png")
    (row,) = rows(tmp_path / "out")
    left, top, width, height = (int(row[key]) for key in ("left", "top", "width", "height"))
    assert min(found.box[:2]) < 0 or found.box[0] + found.box[2] > 1920
    assert 0 <= left < left + width <= 1440
    assert 0 <= top < top + height <= 1500
    assert width > 1200


def test_pictures_are_added_and_nothing_is_lost(does, refuses, gallery, people, tmp_path):
    known = f"--gallery={gallery}"
    third = drawn(tmp_path / "more" / "Person 30" / "2.png", 30, variation=2)
    said = does("enrol", known, f"--pictures={tmp_path / 'more'}")
    assert said.startswith("added 1 picture(s) to Person 30, who has 3 now\n")
    said = does("enrol", known, f"--pictures={third}", "--name= Person 30 ")
    assert said.startswith("added 0 picture(s) to Person 30, who has 3 now; 1 more were there already\n")
    said = does("enrol", known, f"--pictures={people}")
    assert said.count("2 more were there already\n") == len(KNOWN)
    assert "6 people, 13 pictures" in said
    said = does("enrol", known, f"--pictures={tmp_path / 'more'}", "--replace=true")
    assert said.startswith("replaced Person 30: 1 picture(s) instead of 3\n")
    with pytest.warns(UserWarning, match="a picture of person 30 is one of Person 30, too") as caught:
        does("enrol", known, f"--pictures={third}", "--name=person 30")
    assert any("person 30 is another person than Person 30" in str(warning.message) for warning in caught)
    assert "--replace is about the people in --pictures" in refuses("enrol", known, "--remove=Person 30", "--replace")
    # As a folder's name may be stored, and as it is typed.
    does("enrol", known, f"--pictures={drawn(tmp_path / 'x.png', 51)}", "--name=Jose\u0301")
    assert "to Jos\u00e9, who has 2 now" in does(
        "enrol", known, f"--pictures={drawn(tmp_path / 'y.png', 51, 1)}", "--name=Jos\u00e9"
    )


def test_nothing_is_said_to_be_done_that_was_not_written(capsys, embedder, gallery, tmp_path):
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "wall.png")
    command = ["enrol", f"--ckpt_path={embedder}", f"--gallery={gallery}", "--remove=Person 30", "--name=Zoe"]
    with warnings.catch_warnings(action="ignore"):
        assert cli.main([*command, f"--pictures={tmp_path / 'wall.png'}"]) == 1
    assert capsys.readouterr().out == ""


def test_copies_of_earlier_runs_are_no_pictures(does, refuses, gallery, caplog, tmp_path):
    root = tmp_path / "people"
    for number in (30, 31):
        drawn(root / f"Person {number}" / "0.png", number)
    (root / "Person 30" / "notes.txt").touch()
    for output in (root / "out", root / "other", root / "Person 31"):
        does("identify", f"--gallery={gallery}", f"--output={output}", root)
        assert len(rows(output)) == 2
    assert f"{root}: left out: 3 file(s) of other kinds (.csv, .txt), 4 copies drawn by identify" in caplog.text
    assert "no images in" in refuses("identify", f"--gallery={gallery}", f"--output={tmp_path / 'x'}", root / "out")
    caplog.clear()
    said = does("enrol", f"--gallery={tmp_path / 'new'}", f"--pictures={root}")
    assert "2 people, 2 pictures" in said
    assert f"{root}: left out: 4 file(s) of other kinds (.csv, .txt), 6 copies drawn by identify" in caplog.text
    copy = root / "out" / "0.faces.jpg"  # but where it is asked for
    does("identify", f"--gallery={gallery}", f"--output={tmp_path / 'x'}", copy)
    assert [row["file"] for row in rows(tmp_path / "x")] == [str(copy)]


def test_what_is_no_output_of_identify_is_not_overwritten(does, refuses, enrolled, people, tmp_path):
    one, out = people / "Person 30" / "0.png", tmp_path / "out"
    mine = drawn(out / "0.faces.jpg", 31)
    before = mine.read_bytes()
    does("identify", f"--gallery={enrolled}", f"--output={out}", one)
    assert mine.read_bytes() == before
    assert (out / "0.faces_2.jpg").is_file()
    (out / "faces.csv").write_text("name,age\n")
    said = refuses("identify", f"--gallery={enrolled}", f"--output={out}", one)
    assert said.endswith(f"{out / 'faces.csv'} is not a table of identify: give another --output")
    assert (out / "faces.csv").read_text() == "name,age\n"


def film(path, *scenes, rate=10, size=(320, 240)):
    """A video with a second of each scene of people."""
    codec = cv2.VideoWriter_fourcc(*{".avi": "MJPG", ".mp4": "mp4v"}[path.suffix.lower()])
    writer = cv2.VideoWriter(str(path), codec, rate, size)
    for people in scenes:
        for _ in range(rate):
            writer.write(np.asarray(scene(people, size))[:, :, ::-1])
    writer.release()
    return path


@pytest.mark.parametrize("name", ["clip.avi", "clip, no 2.MP4"])
def test_people_in_a_video_are_identified_with_times(name, does, enrolled, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    film(folder / name, [(30, (20, 20, 200))], [], [(33, (100, 30, 180))])
    drawn(folder / "still.png", 31)
    said = does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", folder)
    *frames, still = rows(tmp_path / "out")
    assert [(row["time"], row["name"]) for row in frames] == [
        ("0.000", "Person 30"),
        ("1.000", ""),
        ("2.000", "Person 33"),
    ]
    assert (still["time"], still["name"]) == ("", "Person 31")
    assert abs(int(frames[2]["left"]) - (100 + FACE[0] * 180)) < 22
    assert f"{name} at 2.000 s: face 1 at [" in said
    assert "1 pictures, 3 frames of videos, 2 of them with faces" in said
    stem = (folder / name).stem
    copies = {f"{stem}.0000.000s.faces.jpg", f"{stem}.0002.000s.faces.jpg", "still.faces.jpg"}
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == copies
    does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", folder / name, "--interval=0.55")
    assert [row["time"] for row in rows(tmp_path / "out")] == ["0.000", "0.600", "1.100", "1.700", "2.200", "2.800"]


def test_what_is_wrong_with_a_video_is_one_line(does, refuses, enrolled, people, tmp_path):
    whole = film(tmp_path / "whole.avi", [], [])
    (tmp_path / "cut.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    film(tmp_path / "empty.avi")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "nothing.mov").touch()
    known = (f"--gallery={enrolled}", f"--output={tmp_path / 'out'}")
    assert refuses("identify", *known, tmp_path / "empty.avi").endswith("empty.avi: it has no frames")
    for name in ("text.mp4", "nothing.mov"):
        said = refuses("identify", *known, tmp_path / name)
        assert said.endswith(f"cannot read {tmp_path / name}: it is no video that OpenCV can decode")
    for interval in ("0", "-1", ".inf", ".nan"):
        assert "it must be above 0, in seconds" in refuses("identify", *known, whole, f"--interval={interval}")
    with pytest.warns(UserWarning, match=r"cut.avi seems damaged, or cut short: its frames end at 0\.. of 2.0 s"):
        does("identify", *known, tmp_path / "cut.avi")
    with pytest.warns(UserWarning, match=r"text.mp4: it is no video that OpenCV can decode: left out"):
        assert "1 pictures; " in does("identify", *known, tmp_path / "text.mp4", people / "Person 30" / "0.png")
    assert "it is a video, of which only identify takes frames" in refuses("verify", whole, whole)
    (tmp_path / "Ann").mkdir()
    whole.rename(tmp_path / "Ann" / "whole.avi")
    said = refuses("enrol", f"--gallery={enrolled}", "--name=Ann", f"--pictures={tmp_path / 'Ann'}")
    assert said.endswith("Ann, only 1 file(s) of other kinds (.avi)")


@pytest.fixture
def piped(monkeypatch):
    def piped(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return piped


def test_a_picture_from_standard_input(does, refuses, enrolled, people, piped, tmp_path):
    one, known = people / "Person 30" / "0.png", (f"--gallery={enrolled}", f"--output={tmp_path / 'out'}")
    piped(one.read_bytes())
    assert "standard input: face 1 at [" in does("identify", *known, "-")
    (row,) = rows(tmp_path / "out")
    assert (row["file"], row["name"], row["time"]) == ("-", "Person 30", "")
    assert (tmp_path / "out" / "stdin.faces.jpg").is_file()
    piped(one.read_bytes())
    assert does("verify", one, "-").startswith("the same person: similarity 1.000")
    for content, said in ((b"", "it is empty"), (b"no picture", "it is no picture that Pillow knows")):
        piped(content)
        assert refuses("identify", *known, "-").endswith(f"cannot read a picture from standard input: {said}")
    piped(one.read_bytes()[:3000])
    assert "cannot read a picture from standard input: " in refuses("identify", *known, "-")
    assert refuses("identify", *known, "-", "-").endswith("standard input is one picture: give - once")


@pytest.mark.parametrize("name", ["a, b.png", "two\nlines.png", 'the "one".png', "王 é.png", "%d.png", "-x.png"])
def test_pictures_of_any_name_are_identified(name, does, enrolled, tmp_path):
    path = drawn(tmp_path / name, 30)
    said = does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", path)
    assert f"{' '.join(name.split())}: face 1 at [" in said
    assert [(row["file"], row["name"]) for row in rows(tmp_path / "out")] == [(str(path), "Person 30")]


def write_rotated(picture, path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def write_see_through(picture, path):
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, picture.width, 5))
    picture.putalpha(alpha)
    picture.save(path)


def write_deep(picture, path):
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


FORMATS = {
    "rotated.jpg": write_rotated,
    "print.jpg": lambda picture, path: picture.convert("CMYK").save(path),
    "alpha.png": write_see_through,
    "deep.png": write_deep,
    "palette.gif": lambda picture, path: picture.save(path),
    "grey.tif": lambda picture, path: picture.convert("L").save(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_photographs_of_any_kind_are_identified(name, does, enrolled, tmp_path):
    picture = scene([(30, (20, 30, 200))], size=(300, 240))
    FORMATS[name](picture, tmp_path / name)
    does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", tmp_path / name)
    (row,) = rows(tmp_path / "out")
    assert row["name"] == "Person 30"
    assert abs(int(row["left"]) - (20 + FACE[0] * 200)) < 24  # in the upright picture
    assert abs(int(row["top"]) - (30 + FACE[1] * 200)) < 24
    with Image.open(next((tmp_path / "out").glob("*.jpg"))) as copy:
        assert (copy.size, copy.mode) == ((300, 240), "RGB")


def test_a_picture_without_faces_has_a_row_and_a_copy(does, enrolled, tmp_path):
    Image.new("RGB", (200, 150), "grey").save(tmp_path / "wall.png")
    said = does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", tmp_path / "wall.png")
    assert "wall.png: no face is found\n" in said
    (row,) = rows(tmp_path / "out")
    assert (row["face"], row["left"], row["name"], row["similarity"]) == ("0", "", "", "")
    assert (tmp_path / "out" / "wall.faces.jpg").is_file()


def test_damaged_pictures_are_named_and_left_out(does, refuses, enrolled, tmp_path):
    good = drawn(tmp_path / "root" / "Ann" / "good.png", 30)
    (good.parent / "cut.png").write_bytes(good.read_bytes()[:3000])
    (good.parent / "empty.png").touch()
    Image.new("RGB", (200, 200), "grey").save(good.parent / "wall.png")
    scene(SCENE.items()).save(good.parent / "several.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = does("enrol", f"--gallery={tmp_path / 'new'}", f"--pictures={tmp_path / 'root'}")
    words = [str(warning.message) for warning in caught]
    assert said.startswith("enrolled Ann: 2 picture(s)\n")
    for name in ("cut", "empty"):
        assert any(w.startswith(f"cannot read {good.parent / name}.png: ") and w.endswith(": left out") for w in words)
    assert f"no face in {good.parent / 'wall.png'}: left out" in words
    assert f"3 faces in {good.parent / 'several.png'}: the largest is taken" in words
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        does("identify", f"--gallery={enrolled}", f"--output={tmp_path / 'out'}", good.parent)
    assert sum("left out" in str(warning.message) for warning in caught) == 2
    assert {row["file"].rpartition("/")[2] for row in rows(tmp_path / "out")} == {"good.png", "several.png", "wall.png"}
    for name in ("good", "several"):
        (good.parent / f"{name}.png").unlink()
    with warnings.catch_warnings(action="ignore"):
        said = refuses("enrol", f"--gallery={tmp_path / 'none'}", f"--pictures={tmp_path / 'root'}")
        assert "no picture of Ann can be used: add one that shows their face, or remove them" in said
        known = (f"--gallery={enrolled}", f"--output={tmp_path / 'bad'}")
        assert f"cannot read {good.parent / 'cut.png'}: " in refuses("identify", *known, good.parent / "cut.png")
        bad = (good.parent / "cut.png", good.parent / "empty.png")
        assert "none of the pictures can be read" in refuses("identify", *known, *bad)
    assert not (tmp_path / "none").exists()
    assert not list((tmp_path / "bad").iterdir())


def pattern(number, variation):
    """A small pattern that is a person's own, a little disturbed."""
    own = torch.rand(8, 8, generator=torch.Generator().manual_seed(number))
    own = own + 0.1 * torch.rand(8, 8, generator=torch.Generator().manual_seed(100 * number + variation))
    return Image.fromarray((own / 1.1 * 255).byte().numpy()).resize((40, 30), Image.Resampling.NEAREST)


def test_pictures_can_be_faces_as_they_are(does, refuses, embedder, tmp_path):
    for number in range(4):
        (tmp_path / "root" / f"P{number}").mkdir(parents=True)
        for variation in range(3):
            pattern(number, variation).save(tmp_path / "root" / f"P{number}" / f"{variation}.png")
    new, gallery = tmp_path / "new.png", f"--gallery={tmp_path / 'gallery'}"
    pattern(2, 9).save(new)
    said = does("enrol", gallery, f"--pictures={tmp_path / 'root'}", "--detect=false")
    assert "4 people, 12 pictures" in said
    does("identify", gallery, f"--output={tmp_path / 'out'}", new)  # as the gallery was made
    (row,) = rows(tmp_path / "out")
    assert [row[key] for key in ("left", "top", "width", "height", "name")] == ["0", "0", "40", "30", "P2"]
    assert does("verify", "--detect=false", new, tmp_path / "root" / "P2" / "0.png").startswith("the same person")
    assert "no face(s)" in refuses("verify", new, new)
    said = refuses("enrol", gallery, f"--pictures={tmp_path / 'root'}", "--detect=true")
    assert "was made with another --detect or --detector: leave them out" in said
    # As the model was trained, where nothing else is asked for.
    checkpoint = torch.load(embedder, weights_only=True) | {"datamodule_hyper_parameters": {"detect": False}}
    torch.save(checkpoint, tmp_path / "whole.ckpt")
    assert "similarity 1.000" in does("verify", new, new, ckpt_path=tmp_path / "whole.ckpt")


ENROL = [
    ((), "there is nothing to do: give --pictures to enrol people, or --remove with a name"),
    (("--name=Ann",), "there is nothing to do"),
    (("--remove=Person 30", "--name=Ann"), "--name is of the person in --pictures: give them too, or leave it out"),
    (("--pictures={people}", "--far=0.1", "--threshold=0.5"), "--far has a threshold chosen, --threshold gives one"),
    (("--pictures={people}", "--far=1"), "--far is 1.0: it must be at least 0 and less than 1"),
    (("--pictures={people}", "--far=.nan"), "--far is nan: it must be at least 0 and less than 1"),
    (("--pictures={people}", "--threshold=2"), "--threshold is 2.0: it must be in -1..1"),
    (("--pictures={people}", "--threshold=.nan"), "--threshold is nan: it must be in -1..1"),
    (("--pictures={people}", "--detect=false"), "was made with another --detect or --detector: leave them out"),
    (("--pictures={people}", "--detector=yunet.onnx"), "was made with another --detect or --detector: leave them out"),
    (
        ("--pictures={people}/none",),
        "no folder {people}/none: give the folder above the people's, or the pictures of one",
    ),
    (("--pictures={people}/Person 30/0.png",), "no folder {people}/Person 30/0.png: give the folder above"),
    (("--pictures", "{people}", "{people}"), "several --pictures: give the folder above the people's"),
    (("--pictures={people}/none", "--name=Ann"), "no picture or folder {people}/none"),
    (("--pictures={people}/Person 30",), "{people}/Person 30 has no subfolders: give each person one, or --name"),
    (("--remove=Persn 30",), "has nobody called 'Persn 30'; did you mean 'Person 30'?"),
    (("--remove=Xaver",), "has nobody called 'Xaver'"),
    (("--picture={people}",), "there is no option '--picture'; did you mean '--pictures'?"),
    (("--pictures={people}", "--gallery={people}"), "{people} is a folder: give a file as --gallery"),
    (("--remove=Ann", "--gallery={people}/none"), "no gallery {people}/none: make one with"),
    (("--pictures={people}", "--gallery={people}/new", "--detect=false", "--detector=x.onnx"), "--detector looks for"),
    (("--pictures={people}", "--gallery={people}/new", "--detector=x.onnx"), "no file x.onnx: yunet is the path of"),
]


@pytest.mark.parametrize(("args", "message"), ENROL)
def test_what_cannot_be_enrolled_is_said_in_a_line(args, message, refuses, enrolled, people):
    before = enrolled.read_bytes()
    args = [arg.format(people=people) for arg in args]
    assert message.format(people=people) in refuses("enrol", f"--gallery={enrolled}", *args)
    assert enrolled.read_bytes() == before
    assert not (people / "new").exists()


def test_what_enrolling_needs_is_missed_before_pictures_are_read(capsys, embedder, people, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    new = (f"--ckpt_path={embedder}", f"--gallery={tmp_path / 'new'}", f"--pictures={people}")
    assert cli.main(["enrol", *new]) == 1
    said = capsys.readouterr()
    assert "a gallery needs the extra faces: pip install -e '.[faces]'" in said.err
    assert not said.out


def test_an_empty_folder_of_a_person_is_named(refuses, gallery, tmp_path):
    drawn(tmp_path / "root" / "Ann" / "0.png", 30)
    (tmp_path / "root" / "Bob").mkdir()
    said = refuses("enrol", f"--gallery={gallery}", f"--pictures={tmp_path / 'root'}")
    assert f"no images in {tmp_path / 'root' / 'Bob'}" in said
    (tmp_path / "root" / "Bob" / "bob.mp4").touch()
    said = refuses("enrol", f"--gallery={gallery}", f"--pictures={tmp_path / 'root'}")
    assert "Bob, only 1 file(s) of other kinds (.mp4): fill the folder, or remove it" in said


def test_what_cannot_be_identified_is_said_in_a_line(refuses, gallery, people, tmp_path):
    one, out = people / "Person 30" / "0.png", tmp_path / "out"
    known = f"--gallery={gallery}"
    missing = tmp_path / "none"
    assert f"no picture or folder {missing}" in refuses("identify", known, f"--output={out}", one, missing)
    (tmp_path / "bare").mkdir()
    assert f"no images in {tmp_path / 'bare'}" in refuses("identify", known, f"--output={out}", tmp_path / "bare")
    assert f"no gallery {missing}: make one" in refuses("identify", f"--gallery={missing}", f"--output={out}", one)
    assert "no checkpoint" in refuses("identify", known, f"--output={out}", one, ckpt_path=missing)
    assert "there is no value for output: give one" in refuses("identify", known, one)
    assert not out.exists()
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        said = refuses("identify", known, f"--output={output}", one)
        assert said.startswith(f"error: cannot write into {output} (")
        assert said.endswith("give another --output")
    assert (tmp_path / "file").read_text() == "mine"


def test_each_fault_of_writing_is_said_of_its_own_file(refuses, gallery, people, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    command = ("identify", f"--gallery={gallery}", f"--output={out}", people / "Person 30" / "0.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert refuses(*command) == f"error: cannot write into {out} (No space left on device): give another --output"
    with monkeypatch.context() as patch:
        patch.setattr(figures.ImageFont, "truetype", lambda *args: (_ for _ in ()).throw(OSError("no such font")))
        assert refuses(*command) == "error: no such font"
    assert not list(out.iterdir())
    (out / "faces.csv").mkdir()
    said = refuses(*command)
    assert said.startswith(f"error: cannot write {out / 'faces.csv'} (")
    assert said.endswith("): give another --output")


@pytest.mark.parametrize("verb", ["enrol", "identify"])
def test_galleries_that_do_not_fit_are_refused(verb, refuses, gallery, people, tmp_path):
    torch.manual_seed(5)
    other = save(FaceEmbedder(image_size=32, num_classes=2), tmp_path / "other.ckpt")
    args = [f"--gallery={gallery}"]
    args += [f"--pictures={people}"] if verb == "enrol" else [f"--output={tmp_path / 'out'}", people]
    assert f"{gallery} was made with another checkpoint: give that one" in refuses(verb, *args, ckpt_path=other)
    content = gallery.read_bytes()
    gallery.write_bytes(content.replace(b"Person 31", b"Person 13"))
    assert f"{gallery} is damaged, or was edited: enrol again" in refuses(verb, *args)
    for length in (0, 100, len(content) - 1):
        gallery.write_bytes(content[:length])
        assert f"{gallery} is not a gallery, or is cut short" in refuses(verb, *args)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["enrol", "identify", "verify"])
def test_another_model_recognizes_nobody(verb, refuses, people, tmp_path):
    path, one = save(Net(), tmp_path / "net.ckpt"), people / "Person 30" / "0.png"
    args = {
        "enrol": [f"--gallery={tmp_path / 'new'}", f"--pictures={people}"],
        "identify": [f"--gallery={tmp_path / 'new'}", f"--output={tmp_path / 'out'}", one],
        "verify": [one, one],
    }[verb]
    said = refuses(verb, *args, ckpt_path=path)
    assert said.endswith(f"{path} holds Net, not a FaceEmbedder, which recognizes people")
