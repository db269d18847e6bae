"""Galleries: who is in one, the threshold that is chosen, and files that are not what was written."""

import json
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from lit_models import FaceEmbedder, load
from lit_models.faces.gallery import Gallery, GalleryMetadata, checksum, fingerprint, read_gallery
from lit_models.faces.verification import stranger_similarities

safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra faces")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FaceEmbedder(image_size=32, num_classes=3, embedding_dim=8).eval()


def directions(seed, *shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def empty(dim=8, model="", threshold=0.5):
    metadata = GalleryMetadata(model, [], detect=True, detector=None, margin=0.1, far=0.01, threshold=threshold)
    return Gallery(metadata, torch.empty(0, dim), torch.empty(0, dtype=torch.int64))


def filled(people, dim=8, **options):
    """A gallery of people by name, with so many pictures each, and their embeddings."""
    gallery, embeddings = empty(dim, **options), {}
    for seed, (name, pictures) in enumerate(people.items()):
        embeddings[name] = directions(seed, pictures, dim)
        gallery.add(name, embeddings[name])
    return gallery, embeddings


def assert_holds(gallery, embeddings):
    """The people and their pictures are those given, in that order."""
    assert gallery.metadata.names == list(embeddings)
    assert gallery.labels.dtype == torch.int64
    assert gallery.labels.tolist() == [number for number, rows in enumerate(embeddings.values()) for _ in rows]
    assert torch.equal(gallery.embeddings, torch.cat([gallery.embeddings[:0], *embeddings.values()]))


def test_people_are_added_and_removed():
    gallery, embeddings = filled({"Ann": 3, "Bob": 1, "Cid": 2})
    assert_holds(gallery, embeddings)
    gallery.remove("Ann")  # the first one: the others' numbers go down
    embeddings.pop("Ann")
    assert_holds(gallery, embeddings)
    fresh = directions(9, 4, 8)
    for name in list(gallery.metadata.names):
        gallery.remove(name)
    assert_holds(gallery, {})
    assert gallery.add("Dan", fresh) == 4
    assert_holds(gallery, {"Dan": fresh})


def test_pictures_are_added_to_a_person_once_each():
    gallery, embeddings = filled({"Ann": 3, "Bob": 1})
    fresh = directions(9, 2, 8)
    again = torch.cat([fresh, embeddings["Ann"][1:2], fresh[:1], embeddings["Bob"]])
    assert gallery.add("Ann", again) == 3  # the two, and Bob's
    assert [gallery.count(name) for name in ("Ann", "Bob", "Cid")] == [6, 1, 0]
    assert torch.equal(gallery.embeddings, torch.cat([*embeddings.values(), fresh, embeddings["Bob"]]))
    assert gallery.labels.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert (gallery.sharing("Ann"), gallery.sharing("Bob")) == (["Bob"], ["Ann"])
    gallery.remove("Bob")
    assert gallery.sharing("Ann") == []
    assert gallery.add("Ann", again[:0]) == 0


def test_the_threshold_is_that_of_strangers_worked_out_by_hand():
    gallery, embeddings = filled({"Ann": 3, "Bob": 4, "Cid": 2, "Dan": 3})
    strangers = [
        max(float(row @ other) for somebody, others in embeddings.items() if somebody != name for other in others)
        for name, rows in embeddings.items()
        for row in rows
    ]
    torch.testing.assert_close(stranger_similarities(gallery.embeddings, gallery.labels), torch.tensor(strangers))
    ranked = sorted(strangers, reverse=True)
    for far, accepted in ((0, 0), (0.05, 0), (0.25, 3), (0.5, 6)):  # of twelve pictures
        gallery.choose_threshold(far)
        assert gallery.metadata.far == far
        assert gallery.metadata.threshold == pytest.approx(ranked[accepted], abs=1e-6)
        assert sum(value >= gallery.metadata.threshold for value in strangers) <= accepted


def test_the_nearest_of_ten_thousand_people_is_the_right_one():
    people = directions(0, 10_000, 128)
    names = [f"person {number}" for number in range(10_000)]
    pictures = F.normalize(people.repeat_interleave(2, dim=0) + 0.03 * directions(1, 20_000, 128) * 128**0.5, dim=1)
    metadata = GalleryMetadata("", names, detect=True, detector=None, margin=0.1, far=0.01, threshold=0.5)
    gallery = Gallery(metadata, pictures, torch.arange(10_000).repeat_interleave(2))
    chosen = torch.randperm(10_000, generator=torch.Generator().manual_seed(2))[:500]
    probes = F.normalize(people[chosen] + 0.03 * directions(3, 500, 128) * 128**0.5, dim=1)
    numbers, similarities = gallery.nearest(probes)
    assert torch.equal(numbers, chosen)
    own = torch.stack([(probes * pictures[2 * chosen + n]).sum(1) for n in (0, 1)])
    torch.testing.assert_close(similarities, own.amax(0))
    numbers, similarities = gallery.nearest(probes[:0])
    assert numbers.shape == similarities.shape == (0,)


def test_a_gallery_comes_back_as_it_was_saved(model, tmp_path):
    names = {"Ann": 2, 'Bob "B", jr.': 1, "Çelik/Ö": 3, "李 小龍": 1, "two\nlines": 2, "\udcff": 1}
    gallery, embeddings = filled(names, model=fingerprint(model), threshold=float("inf"))
    path = tmp_path / "new" / "people.gallery"
    gallery.save(path)
    read = read_gallery(path, model)
    assert read.metadata == gallery.metadata
    assert_holds(read, embeddings)
    read.remove("Ann")
    read.save(path)  # over the one that was read
    assert read_gallery(path, model).metadata.names == list(names)[1:]
    assert [file.name for file in path.parent.iterdir()] == ["people.gallery"]


def test_an_empty_gallery_comes_back(model, tmp_path):
    empty(model=fingerprint(model)).save(tmp_path / "nobody")
    assert_holds(read_gallery(tmp_path / "nobody", model), {})


@pytest.fixture
def saved(model, tmp_path):
    gallery, _ = filled({"Ann": 2, "Bob": 1}, model=fingerprint(model))
    gallery.save(tmp_path / "people")
    return tmp_path / "people"


def refusal(path, model):
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_gallery(path, model)
    return str(caught.value)


def test_a_flipped_bit_is_noticed_wherever_it_is(saved, model, tmp_path):
    content, flipped = saved.read_bytes(), tmp_path / "flipped"
    for place, byte in enumerate(content):
        flipped.write_bytes(content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :])
        assert re.search("is not a gallery|is damaged", refusal(flipped, model))


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_gallery_cut_short_is_refused(saved, model, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert "is not a gallery, or is cut short" in refusal(saved, model)


def test_an_edited_name_is_noticed(saved, model):
    saved.write_bytes(saved.read_bytes().replace(b"Bob", b"Eve"))
    assert "is damaged, or was edited: enrol again" in refusal(saved, model)


def test_the_gallery_of_another_model_is_refused(saved):
    torch.manual_seed(1)
    assert "was made with another checkpoint" in refusal(saved, FaceEmbedder(image_size=32).eval())


def rewrite(path, tensors=None, **changed):
    """Writes a gallery with other contents and their checksum."""
    with safetensors.safe_open(path, framework="pt") as file:
        header, kept = file.metadata(), {name: file.get_tensor(name) for name in ("embeddings", "labels")}
    header |= changed
    tensors = tensors or kept
    safetensors.save_file(tensors, path, header | {"sha256": checksum(header["metadata"], tensors)})


def test_a_gallery_of_another_format_is_refused(saved, model):
    rewrite(saved, gallery="2")
    assert "one of another version of this package: enrol again" in refusal(saved, model)


def test_other_files_are_no_galleries(saved, model, tmp_path):
    (tmp_path / "text").write_text("Ann, Bob and Cid\n" * 100)
    assert "is not a gallery" in refusal(tmp_path / "text", model)
    safetensors.save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    assert "is not a gallery" in refusal(tmp_path / "weights", model)
    torch.save({"state_dict": {}}, tmp_path / "checkpoint")
    assert "is not a gallery" in refusal(tmp_path / "checkpoint", model)
    for missing in (tmp_path / "no such file", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no gallery {missing}: make one with")):
            read_gallery(missing, model)


def test_a_gallery_needs_safetensors(saved, model, monkeypatch):
    gallery = read_gallery(saved, model)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for act in (lambda: read_gallery(saved, model), lambda: gallery.save(saved)):
        with pytest.raises(ValueError, match=r"a gallery needs the extra faces: pip install -e '\.\[faces\]'"):
            act()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "people", tmp_path):
        with pytest.raises(OSError, match=re.escape(f"cannot write {path} (")):
            empty().save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def save(model, path):
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)


def test_the_fingerprint_is_of_what_makes_embeddings(tmp_path):
    torch.manual_seed(0)
    model = FaceEmbedder(image_size=32, num_classes=3).eval()
    own = fingerprint(model)
    save(model, tmp_path / "first.ckpt")
    again = load(tmp_path / "first.ckpt")
    save(again, tmp_path / "second.ckpt")
    assert fingerprint(again) == fingerprint(load(tmp_path / "second.ckpt")) == own
    with torch.no_grad():
        model.head.add_(1)
    model.threshold.fill_(0.3)
    assert fingerprint(model) == own
    model.export_spec()  # which removes the head
    assert fingerprint(model) == own
    model.hparams.flip_average = False
    assert fingerprint(model) != own
    with torch.no_grad():
        next(again.network.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(again) != own
    again = load(tmp_path / "second.ckpt")
    again.lda.update(torch.randn(8, 775), torch.arange(8) % 2)
    assert fingerprint(again) != own


def test_a_gallery_holds_no_more_than_it_says(saved, model):
    with safetensors.safe_open(saved, framework="pt") as file:
        assert sorted(file.keys()) == ["embeddings", "labels"]
        assert json.loads(file.metadata()["metadata"])["names"] == ["Ann", "Bob"]


@pytest.mark.parametrize(
    "changed",
    [
        {"names": None},
        {"names": ["Ann", 5]},
        {"model": 5},
        {"detect": "yes"},
        {"detector": ["file"]},
        {"margin": "0.1"},
        {"threshold": None},
        {"far": {}},
        {"class_path": "os.system", "output": "/tmp"},
    ],
    ids=str,
)
def test_metadata_of_other_types_are_refused(saved, model, changed):
    metadata = json.loads(safetensors.safe_open(saved, framework="pt").metadata()["metadata"])
    rewrite(saved, metadata=json.dumps(metadata | changed))
    assert "is damaged, or was edited: enrol again" in refusal(saved, model)


@pytest.mark.parametrize("text", ["", "5", "[]", "{}", "{", "[" * 100_000])
def test_metadata_that_are_none_are_refused(saved, model, text):
    rewrite(saved, metadata=text)
    assert "is damaged, or was edited: enrol again" in refusal(saved, model)


def test_people_whom_a_gallery_does_not_name_are_refused(saved, model):
    ones, people = directions(0, 3, 8), torch.tensor([0, 0, 1])
    for embeddings, numbers in (
        (ones, torch.tensor([0, 0, 2])),
        (ones, torch.tensor([0, -1, 1])),
        (ones, people.float()),
        (ones, people[:2]),
        (ones[:, :7], people),
        (ones.double(), people),
        (ones[0], people[0]),
    ):
        rewrite(saved, {"embeddings": embeddings.contiguous(), "labels": numbers.contiguous()})
        assert "is damaged, or was edited: enrol again" in refusal(saved, model)
    rewrite(saved, {"embeddings": ones})
    assert "is damaged, or was edited: enrol again" in refusal(saved, model)
    content = safetensors.safe_open(saved, framework="pt").metadata()
    safetensors.save_file({"embeddings": ones.bfloat16(), "labels": people}, saved, content)  # NumPy has no such type
    assert "is damaged, or was edited: enrol again" in refusal(saved, model)
