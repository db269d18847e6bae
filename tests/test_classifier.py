from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, StackDataset

import lit_models
from datamodules.common.base import ImageDataModule
from datamodules.common.tensors import BatchDataset
from lit_models import Classifier, Net
from lit_models.training.data_checks import balanced_weights

SGD = partial(torch.optim.SGD, lr=0.1)


def fit(model, tmp_path, images=10, batch_size=4, epochs=2, labels=None, log_every_n_steps=50):
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=draw)
    labels = torch.arange(images) % 10 if labels is None else labels
    data = StackDataset(pictures, labels)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"log_every_n_steps": log_every_n_steps}
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **options
    )
    trainer.fit(model, DataLoader(data, batch_size=batch_size), DataLoader(data, batch_size=batch_size))
    return trainer, pictures, labels


def test_net_is_the_articles_to_the_parameter():
    assert sum(weight.numel() for weight in Net().parameters()) == 21_840


def test_net_computes_what_the_article_draws():
    model = Net(mean=0.5, std=0.25).eval()
    conv1, conv2 = (layer for layer in model.features if isinstance(layer, nn.Conv2d))
    linear1, linear2 = (layer for layer in model.classifier if isinstance(layer, nn.Linear))
    images = torch.rand(3, 1, 28, 28)
    x = torch.relu(nn.functional.max_pool2d(conv1((images - 0.5) / 0.25), 2))
    x = torch.relu(nn.functional.max_pool2d(conv2(x), 2))
    x = linear2(torch.relu(linear1(x.flatten(1))))
    torch.testing.assert_close(model(images), x)


def test_both_dropouts_work_and_by_the_feature():
    model = Net(conv_dropout=0.5, dropout=0.0).train()
    channels = model.features[:5](model.normalize(torch.rand(4, 1, 28, 28)))
    dropped = (channels == 0).flatten(2).all(dim=2)
    assert 0 < dropped.float().mean() < 1
    hidden = Net(dropout=0.5).classifier[:4].train()(torch.rand(4, 20, 4, 4))
    assert not ((hidden == 0).all(dim=1)).any()


def test_epoch_metrics_are_right_over_all_not_a_mean_of_batches(tmp_path):
    # 10 images in batches of 4, 4 and 2, and a model that never changes: the means of the batches would differ.
    model = Net(optimizer=partial(torch.optim.SGD, lr=0.0), conv_dropout=0, dropout=0)
    trainer, images, _ = fit(model, tmp_path, epochs=1, labels=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]))
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    logits = model(images)
    for stage in ("train", "val"):
        assert trainer.callback_metrics[f"{stage}/accuracy"] == pytest.approx(
            (logits.argmax(1) == labels).sum().item() / 10
        )
        loss = nn.functional.cross_entropy(logits, labels).item()
        assert trainer.callback_metrics[f"{stage}/loss"] == pytest.approx(loss, rel=1e-5)


def test_one_cycle_ends_with_training_without_being_told_when(tmp_path):
    model = Net(optimizer=SGD, lr_scheduler=partial(OneCycleLR, max_lr=0.1, final_div_factor=100))
    rates = []
    model.on_train_batch_start = lambda *_: rates.append(model.optimizers().param_groups[0]["lr"])
    fit(model, tmp_path)
    # From 0.1 / 25 over 0.1 to 0.1 / 25 / 100, in the 6 steps of 2 epochs.
    assert (rates[0], max(rates), rates[5]) == pytest.approx((4e-3, 0.1, 4e-5), rel=0.1)


def test_other_schedules_step_once_an_epoch(tmp_path):
    trainer, _, _ = fit(Net(optimizer=SGD, lr_scheduler=partial(StepLR, step_size=1, gamma=0.1)), tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_schedule_told_its_steps_is_left_alone_and_steps_once_an_epoch(tmp_path):
    fit(Net(optimizer=SGD, lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=3)), tmp_path)


def test_a_schedule_over_all_steps_needs_an_end(tmp_path):
    with pytest.raises(ValueError, match="max_epochs"):
        fit(Net(optimizer=SGD, lr_scheduler=partial(OneCycleLR, max_lr=0.1)), tmp_path, epochs=-1)


def test_trains_without_logging_steps(tmp_path):
    fit(Net(optimizer=SGD), tmp_path, log_every_n_steps=0)


def test_labels_outside_the_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_classes=10"):
        fit(Net(), tmp_path, labels=torch.full((10,), 10))


def test_as_many_names_as_classes():
    with pytest.raises(ValueError, match="2 class_names"):
        Net(class_names=["cat", "dog"])


def evaluated(labels, predicted, names=None, num_classes=3):
    """What a test logs of a model that predicts each image's first pixel, over batches of 4 images."""

    class Fixed(Classifier):
        def forward(self, images):
            return nn.functional.one_hot(images[:, 0, 0, 0].long(), num_classes).float()

    sgd = partial(torch.optim.SGD, lr=0.1)
    model = Fixed(1, num_classes, 0.0, 1.0, names, sgd, None)
    model.example_input_array = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    images = torch.tensor(predicted, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    loader = DataLoader(StackDataset(images, torch.tensor(labels)), batch_size=4)
    trainer.test(model, loader, verbose=False)
    tested = {name: value.item() for name, value in trainer.callback_metrics.items()}
    trainer.validate(model, loader, verbose=False)
    return tested, {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_every_class_counts_alike_in_the_balanced_accuracy():
    labels, predicted = [0] * 7 + [1] * 2, [0] * 6 + [1] + [0, 1]  # of the third class there are none
    tested, validated = evaluated(labels, predicted, ["dog", "cat \udcff", "bird"])
    assert tested.pop("test/loss") == pytest.approx(validated.pop("val/loss"))
    expected = {"accuracy": 7 / 9, "balanced_accuracy": (6 / 7 + 1 / 2) / 2}
    assert validated == pytest.approx({f"val/{name}": value for name, value in expected.items()})
    expected |= {"accuracy/dog": 6 / 7, "accuracy/cat ?": 1 / 2}
    assert tested == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    many = evaluated(labels, predicted, num_classes=51)[0]
    assert set(many) == {"test/loss", "test/accuracy", "test/balanced_accuracy"}


def rare_data(dogs=57, cats=3):
    """Grey squares: dogs and cats of two shades that noise makes overlap."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([1] * dogs + [0] * cats)
    shades = 100 + 60 * labels.view(-1, 1, 1, 1) + torch.randn(dogs + cats, 1, 28, 28, generator=draw) * 40
    data = ImageDataModule()
    data.save_hyperparameters({"batch_size": 20})
    data.num_classes, data.class_names, data.shape = 2, ["cat", "dog"], (1, 28, 28)
    data.train_set = data.val_set = data.test_set = BatchDataset(shades.clamp(0, 255).byte(), labels)
    data.setup = lambda stage: None
    return data


@pytest.mark.parametrize(("weights", "found"), [(None, False), ("balanced", True), ([19.0, 1.0], True)])
def test_rare_classes_are_learnt_with_weights(weights, found, tmp_path):
    torch.manual_seed(0)
    model = Net(1, 2, conv_dropout=0.0, dropout=0.0, mean=0.5, std=0.25, class_weights=weights)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=4, accelerator="cpu", default_root_dir=tmp_path, **options)
    data = rare_data()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    trainer.test(model, datamodule=data, verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["test/accuracy"] >= 0.95
    assert (metrics["test/accuracy/cat"] > 0.9) == found
    assert metrics["test/balanced_accuracy"].item() == pytest.approx(1.0 if found else 0.5)
    loaded = lit_models.load(tmp_path / "model.ckpt")
    assert loaded.hparams.class_weights == weights
    assert lit_models.load(tmp_path / "model.ckpt", num_classes=3).num_classes == 3
    trainer.test(loaded, data.test_dataloader(), verbose=False)
    assert trainer.callback_metrics["test/loss"] == pytest.approx(metrics["test/loss"].item())


def test_weights_are_those_of_the_training_loss_alone():
    data = rare_data()
    images, labels = data.train_set.__getitems__([0, 1, 58, 59])
    model = Net(1, 2, conv_dropout=0.0, dropout=0.0, class_weights=[3, 1])
    each = nn.functional.cross_entropy(model(images), labels, reduction="none")
    expected = (each * torch.tensor([1.0, 1.0, 3.0, 3.0])).mean()
    torch.testing.assert_close(model.training_step((images, labels), 0), expected)
    model.validation_step((images, labels), 0)
    torch.testing.assert_close(
        model.means.totals["val"]["loss"] / 4, nn.functional.cross_entropy(model(images), labels)
    )
    torch.testing.assert_close(balanced_weights(model, data), torch.tensor([60 / (2 * 3), 60 / (2 * 57)]))


def test_weights_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="3 class_weights are given, but num_classes is 2"):
        Net(1, 2, class_weights=[1, 2, 3])
    with pytest.raises(ValueError, match=r"class_weights is 0\.0: it must be above 0"):
        Net(1, 2, class_weights=[1.0, 0.0])
    with pytest.raises(ValueError, match="class_weights is 'even': it must be balanced"):
        Net(1, 2, class_weights="even")
    with pytest.raises(ValueError, match="but a plain data loader has no train_set with labels to count: give a list"):
        fit(Net(class_weights="balanced"), tmp_path)
