"""Data that are, or are not, for a model."""

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, StackDataset

from datamodules import MNISTDataModule
from lit_models import CNN, RNN, FaceEmbedder, LitModule, Net
from lit_models.training.data_checks import check_task

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Data(LightningDataModule):
    """Somebody else's, with what it says of itself."""

    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)

    def train_dataloader(self):
        images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
        return DataLoader(StackDataset(images, torch.arange(4)), batch_size=2)


def fit(model, data):
    Trainer(max_steps=1, accelerator="cpu", **QUIET).fit(model, datamodule=data)


@pytest.mark.parametrize(
    ("model", "attributes", "message"),
    [
        (
            CNN,
            {"task": "forecasting"},
            "Data is for forecasting, but CNN for classification: .*, or --model RNN or TransformerForecaster$",
        ),
        (RNN, {"task": "classification"}, "--model CNN, Net, RNNClassifier or ViT$"),
        (Net, {"num_features": 3}, "Data is for forecasting"),
        (RNN, {"num_classes": 3}, "Data is for classification"),
        (Net, {"task": "binary"}, "Data is for binary, but Net for classification: choose other data$"),
    ],
)
def test_another_task_is_refused(model, attributes, message):
    with pytest.raises(ValueError, match=message):
        check_task(model(), Data(**attributes))


@pytest.mark.parametrize(
    ("model", "attributes"),
    [
        (Net, {}),
        (Net, {"num_classes": 10, "shape": (28, 28)}),
        (Net, {"task": "classification", "shape": None}),
        (Net, {"shape": (1, 28, 28)}),
    ],
)
def test_what_others_say_of_their_data_does_no_harm(model, attributes):
    fit(model(), Data(**attributes))


def test_embedder_takes_classes_for_people():
    check_task(FaceEmbedder(), MNISTDataModule())


def test_model_without_a_task():
    class Own(LitModule):
        def __init__(self):
            super().__init__(torch.optim.Adam, None)
            self.layer = torch.nn.Linear(784, 4)

        def training_step(self, batch, batch_idx):
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1).float()), batch[1])
            self.log_loss(loss)
            return loss

    fit(Own(), Data(num_classes=4))


def test_scale_of_other_columns():
    model = RNN(1)
    data = Data(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="mean has 3 numbers, but input_dim is 1"):
        fit(model, data)
