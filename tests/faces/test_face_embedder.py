"""The face embedder: margins, evaluation, head and threshold, alone and from the command line."""

import csv
import logging
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, fails
from drawn import noise_people
from launch import TWO, finished, fit, start
from lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, StackDataset
from torchvision import models

import lit_models
from datamodules import CIFAR10DataModule, FaceDataModule
from lit_models import FaceEmbedder
from lit_models.cli import main as cli
from lit_models.faces.margins import with_margin

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def images(count, side=32, channels=1):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=draw)


def embedder(**options):
    torch.manual_seed(0)
    return FaceEmbedder(image_size=32, **options)


@pytest.mark.parametrize(
    ("margin", "size", "expected"),
    [
        ("cosface", 0.35, [0.5 - 0.35, -0.9 - 0.35]),
        ("arcface", 0.5, [math.cos(math.pi / 3 + 0.5), -0.9 - 0.5 * math.sin(0.5)]),  # acos(-0.9) + 0.5 is above pi
        ("none", 0.0, [0.5, -0.9]),
    ],
)
def test_margins_worked_out_by_hand(margin, size, expected):
    cosines, labels = torch.tensor([[0.5, 0.2, -0.3], [0.1, 0.7, -0.9]]), torch.tensor([0, 2])
    with_it = with_margin(cosines, labels, margin, size)
    torch.testing.assert_close(with_it[[0, 1], labels], torch.tensor(expected))
    others = torch.tensor([[False, True, True], [True, True, False]])
    assert torch.equal(with_it[others], cosines[others])


def test_the_loss_of_a_margin_worked_out_by_hand():
    # One embedding at 60 degrees from its own person and 90 from the other, scale 2, CosFace with 0.3.
    cosines = torch.tensor([[0.5, 0.0]])
    loss = F.cross_entropy(2 * with_margin(cosines, torch.tensor([0]), "cosface", 0.3), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)))


@pytest.mark.parametrize("margin", ["arcface", "cosface"])
def test_a_margin_of_0_is_a_softmax_of_cosines(margin):
    cosines = (torch.rand(50, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    labels = torch.arange(50) % 7
    torch.testing.assert_close(with_margin(cosines, labels, margin, 0.0), cosines, atol=1e-6, rtol=0)
    model = embedder(num_classes=7, margin=margin, margin_size=0.0)
    plain = embedder(num_classes=7, margin="none")
    batch = images(14), torch.arange(14) % 7
    losses = []
    for each in (model, plain):
        each.log_loss = lambda loss: None
        torch.manual_seed(1)  # of the dropout
        losses.append(each.training_step(batch, 0))
    torch.testing.assert_close(*losses)


def test_arcface_has_a_finite_slope_everywhere_and_falls_with_the_angle():
    cosines = torch.tensor([[-1.0], [-0.9], [-0.88], [-0.5], [0.0], [0.99], [1.0]], requires_grad=True)
    result = with_margin(cosines, torch.zeros(7, dtype=torch.int64), "arcface", 0.5)
    assert (result.diff(dim=0) > 0).all()
    result.sum().backward()
    assert cosines.grad.isfinite().all()


def test_embeddings_have_length_1_and_bytes_and_floats_are_the_same_picture():
    model = embedder(num_classes=5).eval()
    embeddings = model(images(6))
    assert embeddings.shape == (6, 128)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(model(images(6).float() / 255), embeddings)
    darker = images(6).float() / 255 * 0.5 + 0.2
    torch.testing.assert_close(model(darker), embeddings, atol=0.02, rtol=0)  # light and contrast count for little
    assert model(images(6)[:0]).shape == (0, 128)


def test_with_flip_averaging_an_image_and_its_mirror_image_are_the_same():
    for average in (True, False):
        model = embedder(num_classes=5, flip_average=average).eval()
        alike = torch.allclose(model(images(4)), model(images(4).flip(3)), atol=1e-5)
        assert alike is average


def test_every_parameter_gets_a_gradient_and_one_batch_is_learnt():
    model = embedder(num_classes=4)
    model.log_loss = lambda loss: None
    batch = images(16), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        if step == 1:  # what a residual block adds is nothing in the first
            assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    assert loss < 0.1


def test_prototypes_are_the_means_of_each_persons_features():
    model, labels = embedder(num_classes=5, dropout=0.5), torch.tensor([0, 1, 2, 0, 1, 0, 2, 3])
    model.log_loss = lambda loss: None
    for _ in range(5):
        model.training_step((images(8), labels), 0)
    features = model.network(model.normalize(images(8))).detach()
    means = torch.stack([features[labels == person].mean(dim=0) for person in range(4)])
    torch.testing.assert_close(model.prototypes[:4], means * (1 - 0.9**5), atol=1e-4, rtol=0)
    assert not model.prototypes[4].any()  # of whom there is no picture


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_of_torchvision_as_backbones(name):
    model = embedder(num_classes=5, backbone=name).eval()
    assert model(images(2)).shape == (2, 128)
    color = embedder(num_classes=5, backbone=name, in_channels=3).eval()
    assert color(images(2, channels=3)).shape == (2, 128)
    model.log_loss = lambda loss: None
    model.train().training_step((images(4), torch.arange(4)), 0).backward()
    assert model.head.grad.shape == (5, 128)
    assert model.head.grad.any()


def test_what_is_impossible_is_one_line(monkeypatch, tmp_path):
    for options, message in (
        ({"backbone": "resnet8"}, "no network 'resnet8'; did you mean 'resnet18'"),
        ({"backbone": "squeezenet1_0"}, "is no linear one: choose another backbone"),
        ({"weights": "DEFAULT"}, "name it as backbone"),
        ({"embedding_dim": 800}, "embedding_dim is 800: the network has 775 features, so at most that"),
        ({"margin": "arc"}, "margin is 'arc': it must be arcface or cosface or none"),
        ({"margin": "none", "margin_size": 0.3}, "margin is none: leave it out"),
        ({"in_channels": 2}, "in_channels is 2: it must be 1 or 3"),
        ({"scale": 0.0}, "must be above 0"),
        ({"num_classes": 1}, "num_classes is 1: it must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder(**options)
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"could not download the weights of resnet18: .*set model.weights to nu"):
        embedder(backbone="resnet18", weights="DEFAULT")
    with pytest.raises(
        ValueError, match=r"40x40 pixels, but FaceEmbedder takes 32 along each side, or set model.image_size"
    ):
        embedder()(images(2, side=40))
    with pytest.raises(ValueError, match=r"a training batch has 1 image, but takes 2 at least: raise data.identities"):
        embedder(num_classes=3).training_step((images(1), torch.zeros(1, dtype=torch.int64)), 0)


def test_weights_of_torchvision_are_started_from_and_not_asked_for_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = models.resnet18().state_dict()  # random ones, where torchvision keeps what it has downloaded
    torch.save(weights, folder / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    model = embedder(num_classes=3, backbone="resnet18", weights="DEFAULT")
    assert torch.equal(model.network.conv1.weight, weights["conv1.weight"])
    assert model.hparams.weights is None  # a checkpoint brings its own


def test_images_of_another_data_module_are_drawn_too(cifar10, tmp_path):
    data = CIFAR10DataModule(str(cifar10), val_size=60, download=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(embedder(in_channels=3), datamodule=data)
    (names,) = tmp_path.rglob("metadata.tsv")
    assert set(names.read_text().split()) <= set("0123456789")


def loader(labels, side=32):
    """Images of which those of a person are alike."""
    own = images(int(labels.max()) + 1, side).float()
    noise = torch.randn(len(labels), 1, side, side, generator=torch.Generator().manual_seed(1)) * 20
    return DataLoader(StackDataset((own[labels] + noise).clamp(0, 255).byte(), labels), batch_size=5)


def test_data_of_others_need_only_images_and_labels():
    model, labels = embedder(num_classes=4), torch.arange(24) % 4
    trainer = Trainer(max_epochs=4, accelerator="cpu", num_sanity_val_steps=2, **QUIET)
    trainer.fit(model, loader(labels), loader(labels))
    metrics = trainer.callback_metrics
    names = {"auc", "eer", "tar_at_far_1e-2", "tar_at_far_1e-3", "rank_1", "rank_5"}
    assert {f"val/{name}" for name in names} | {"train/loss", "train/accuracy"} <= set(metrics)
    assert metrics["val/auc"] > 0.9
    assert metrics["val/rank_1"] == 1
    (result,) = trainer.test(model, loader(labels), verbose=False)
    assert result["test/auc"] == pytest.approx(metrics["val/auc"].item(), abs=1e-6)
    assert (len(model.result.genuine), len(model.result.impostor)) == (4 * 15, 6 * 36)
    people = F.normalize(model.lda(model.prototypes))
    nearest = (model.result.embeddings @ people.T).amax(dim=1)
    assert model.stranger_threshold > nearest.sort().values[-2]  # one of 24 would be more than a hundredth
    accepted = (model.result.impostor >= model.threshold).float().mean()
    assert accepted <= 1e-2 < accepted + 2 / 216


def test_an_evaluation_that_failed_leaves_nothing_behind():
    model, labels = embedder(num_classes=4), torch.arange(24) % 4
    trainer = Trainer(accelerator="cpu", **QUIET)
    expected = trainer.test(model, loader(labels), verbose=False)
    broken = [(images(5).flip(2), labels[5:10]), (images(5, side=40), labels[:5])]
    with pytest.raises(ValueError, match="40x40 pixels"):
        trainer.test(model, DataLoader(broken, batch_size=None), verbose=False)
    assert len(model.collector.batches) == 1
    assert trainer.test(model, loader(labels), verbose=False) == expected
    assert len(model.result.indices) == 24


def test_figures_of_a_run_are_those_of_its_embeddings(tmp_path):
    data = FaceDataModule(
        str(noise_people(tmp_path)),
        split_by="image",
        train_images=3,
        image_size=32,
        identities_per_batch=6,
        images_per_identity=3,
    )
    model = embedder()
    trainer = Trainer(max_epochs=3, accelerator="cpu", **QUIET)
    trainer.fit(model, datamodule=data)
    assert model.hparams.num_classes == 6
    assert model.head.shape == (6, 775)
    assert model.threshold.isinf()  # nothing was validated on
    assert model.stranger_threshold.isinf()
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    with torch.no_grad():
        embeddings = model.eval()(data.test_set.images)
    _, labels, _, known = data.test_set.tensors
    found = labels[known][(embeddings[~known] @ embeddings[known].T).argmax(1)]
    assert result["test/rank_1"] == pytest.approx((found == labels[~known]).float().mean().item(), abs=1e-6)
    assert len(model.result.genuine) == 6 * 3  # pairs of the three pictures that were not trained on


def test_other_numbers_of_people_are_refused_or_get_a_fresh_head(tmp_path, caplog):
    folder = str(noise_people(tmp_path / "faces"))
    data = FaceDataModule(folder, split_by="image", train_images=3, image_size=32)
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    with pytest.raises(ValueError, match=r"has 6 people to train on, but num_classes of FaceEmbedder is 4"):
        trainer.fit(embedder(num_classes=4), datamodule=data)
    with pytest.raises(ValueError, match=r"do not say how many people they show: set model.num_classes"):
        Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(embedder(), loader(torch.arange(8) % 4))
    model = embedder()
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = lit_models.load(tmp_path / "model.ckpt")
    assert torch.equal(again(images(3)), model.eval()(images(3)))
    with caplog.at_level(logging.INFO):
        other = lit_models.load(tmp_path / "model.ckpt", num_classes=9)
    said = "head of lit_models.FaceEmbedder is new, for 9 classes instead of 6: it is to be trained"
    assert [line for line in caplog.messages if "is new" in line] == [said]
    assert other.head.shape == (9, 775)
    assert torch.equal(other(images(3)), again(images(3)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the command line, tested: its folder."""
    folder = tmp_path_factory.mktemp("faces")
    flags = [f"--data.root={noise_people(folder / 'people', people=12)}", f"--trainer.default_root_dir={folder}"]
    flags += ["--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=3", "--model.embedding_dim=64"]
    assert cli.main(["fit", f"--config={ROOT / 'configs' / 'face_orl.yaml'}", *flags]) == 0
    (path,) = folder.rglob("last.ckpt")
    assert cli.main(["test", f"--ckpt_path={path}"]) == 0
    return path.parent.parent


def test_tensorboard_shows_curves_pictures_and_the_projector(run):
    board = EventAccumulator(str(run)).Reload()
    scalars = {"train/loss", "train/accuracy", "train/lr", "val/eer", "val/auc", "val/rank_1", "test/tar_at_far_1e-2"}
    assert scalars <= set(board.Tags()["scalars"])
    names = ("roc", "similarities", "confused_same", "confused_different")
    assert set(board.Tags()["images"]) == {f"{stage}/{name}" for stage in ("val", "test") for name in names}
    assert [event.step for event in board.Scalars("val/eer")] == [2, 5]
    projector = (run / "projector_config.pbtxt").read_text()
    assert projector.count("tensor_name") == 1
    (names,) = run.glob("*/test_faces/metadata.tsv")
    assert list(run.glob("*/val_faces/metadata.tsv"))
    vectors = names.with_name("tensors.tsv").read_text().splitlines()
    assert len(vectors) == len(names.read_text().splitlines()) == 2 * 6
    assert len(vectors[0].split("\t")) == 64
    assert names.with_name("sprite.png").exists()


def test_the_command_line_predicts_embeddings(run, tmp_path):
    path = run / "checkpoints" / "last.ckpt"
    assert cli.main(["predict", f"--ckpt_path={path}", f"--output={tmp_path / 'all.csv'}"]) == 0
    folder = run.parent.parent / "people" / "person 3"
    command = ["predict", f"--ckpt_path={path}", f"--images={folder}", f"--output={tmp_path / 'one.csv'}"]
    assert cli.main(command) == 0
    everyone, person = (list(csv.reader((tmp_path / name).open())) for name in ("all.csv", "one.csv"))
    assert (len(everyone), len(person)) == (1 + 2 * 6, 1 + 6)
    assert person[0] == ["file", *map(str, range(64))]
    assert sum(float(number) ** 2 for number in person[1][1:]) == pytest.approx(1, abs=1e-5)


def test_the_exported_embedder_has_no_head_and_the_same_embeddings(run, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra export")
    path, output = run / "checkpoints" / "last.ckpt", tmp_path / "file"
    assert cli.main(["export", f"--ckpt_path={path}", "--format=safetensors", f"--output={output}"]) == 0
    model, alone = lit_models.load(path), lit_models.load(output)
    assert model.head.shape == (8, 775)
    assert alone.head is None
    assert torch.equal(alone(images(9, side=48)), model(images(9, side=48)))
    assert alone.threshold == model.threshold


def test_a_model_for_other_images_is_one_line(faces, capsys):
    config = f"--config={ROOT / 'configs' / 'face_orl.yaml'}"
    message = fails(capsys, "fit", config, f"--data.root={faces}", "--data.grayscale=false", "--trainer.logger=false")
    assert "the images have 3 channel(s), but in_channels of FaceEmbedder is 1: to train on them, set" in message


@pytest.mark.slow
def test_two_processes_train_on_people_and_evaluate_every_picture_once(faces, tmp_path):
    flags = [
        f"--data.root={faces}",
        "--data.val_fraction=0.4",
        "--data.identities_per_batch=2",
        "--trainer.max_epochs=4",
    ]
    flags += ["--trainer.check_val_every_n_epoch=2", "--trainer.devices=2", *TWO[:2]]
    process = fit(tmp_path, *flags, config=ROOT / "configs" / "face_orl.yaml")
    text = finished(process)
    assert process.returncode == 0, text
    path = next(tmp_path.rglob("last.ckpt"))
    results = []
    for devices in (1, 2):
        command = [sys.executable, "-m", "lit_models", "validate", f"--ckpt_path={path}"]
        process = start([*command, f"--trainer.devices={devices}", *TWO[:2]], tmp_path)
        text = finished(process)
        assert process.returncode == 0, text
        rows = [line.split() for line in text.splitlines() if line.startswith("val/")]
        results.append({name: float(value) for name, value in rows})
    assert len(results[0]) == 6
    assert results[0] == pytest.approx(results[1], abs=1e-3)


@pytest.mark.slow
def test_one_split_of_orl_is_learnt(orl, tmp_path):
    config = f"--config={ROOT / 'configs' / 'face_orl.yaml'}"
    flags = [f"--data.root={orl}", "--data.split_by=image", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", config, *flags]) == 0
    command = cli.CLI(["test", f"--ckpt_path={next(tmp_path.rglob('last.ckpt'))}"])
    assert command.trainer.callback_metrics["test/rank_1"] >= 0.98
