"""What holds for every model."""

import pytest
import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, StackDataset

from lit_models import CNN, Net, RNNClassifier

MODELS = {"Net": Net, "CNN": CNN, "RNNClassifier": RNNClassifier}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


@pytest.fixture
def batch(model):
    shape = (16, *model.example_input_array.shape[1:])
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw), torch.arange(16) % model.num_classes


def test_logits_have_a_row_an_image(model, batch):
    assert model(batch[0]).shape == (16, model.num_classes)
    assert model(batch[0][:0]).shape == (0, model.num_classes)


def test_every_parameter_gets_a_gradient(model, batch):
    cross_entropy(model(batch[0]), batch[1]).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_overfits_one_batch(model, batch):
    model.eval()  # without dropout, which would hide what has been learnt
    optimizer = model.optimizer(model.parameters())  # its own, which is meant to train it well
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_bytes_and_floats_are_the_same_picture(model, batch):
    model.eval()
    torch.testing.assert_close(model(batch[0]), model(batch[0].float() / 255))


def test_input_is_left_as_it_was(model, batch):
    images = batch[0].float() / 255
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


def test_checkpoint_from_python_loads_by_itself(model, batch, tmp_path):
    loader = DataLoader(StackDataset(*batch), batch_size=4)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(model, loader)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["model_class"] == f"lit_models.{type(model).__name__}"
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).cpu().eval()
    assert torch.equal(loaded(batch[0]), model.cpu().eval()(batch[0]))
