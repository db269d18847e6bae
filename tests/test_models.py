"""What holds for every model of the registry."""

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from registry import MODELS
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import lit_models
import rl
from lit_models.training.resume import ExactResume

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FEW = {"limit_val_batches": 1, "limit_test_batches": 2, "limit_predict_batches": 2, "num_sanity_val_steps": 0}


def image_models():
    return [name for name, row in MODELS.items() if row.make().example_input_array.dtype == torch.uint8]


@pytest.fixture(params=MODELS)
def row(request):
    seed_everything(0)
    return MODELS[request.param]


def trainer(*callbacks, **options):
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **QUIET | FEW | {"max_epochs": 1} | options)


def examples(model, count):
    example, draw = model.example_input_array, torch.Generator().manual_seed(0)
    shape = (count, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=draw)
    return torch.randint(0, 256, shape, dtype=example.dtype, generator=draw)


def output(model, x):
    with torch.no_grad():
        found = model(x)
    return found[0] if isinstance(found, tuple) else found


def test_every_public_model_has_a_row():
    named = [getattr(package, name) for package in (lit_models, rl) for name in package.__all__]
    models = {kind for kind in named if hasattr(kind, "task")}
    bases = {lit_models.LitModule, lit_models.Classifier, lit_models.LanguageModel}
    bases |= {lit_models.Forecaster, lit_models.ScaledForecaster}
    assert models - bases == {row.kind for row in MODELS.values()}


def test_one_output_per_input(row):
    model = row.make().eval()
    whole = output(model, examples(model, 5))
    assert whole.shape == (5, model.num_classes) if model.task == "classification" else len(whole) == 5
    assert len(output(model, examples(model, 0))) == 0
    torch.testing.assert_close(output(model, examples(model, 5)[2:3]), whole[2:3], atol=1e-5, rtol=1e-4)


class Gradients(Callback):
    """Which parameters had one, in any step."""

    def __init__(self):
        self.found = set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.found |= {name for name, weight in named if weight.grad is not None and weight.grad.any()}


def test_every_parameter_gets_a_gradient(row):
    model, gradients = row.make(), Gradients()
    trainer(gradients, limit_train_batches=row.steps).fit(model, datamodule=row.data())
    assert gradients.found == {name for name, weight in model.named_parameters() if weight.requires_grad}


class UntilHalved(Checkpoint):  # which come after the model has logged
    """Stops once the loss is less than half of the first: a margin leaves a rest."""

    def __init__(self):
        self.losses = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        trainer.should_stop = self.losses[-1] < 0.5 * self.losses[0]


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.kind.task == "classification"])
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    model = MODELS[name].make()
    images, labels = examples(model, 16), torch.arange(16) % model.num_classes
    model.eval()  # without dropout, which would hide what has been learnt
    optimizer = model.optimizer(model.parameters())  # its own, which is meant to train it well
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            return
    pytest.fail(f"the loss is {loss:.3f} after 150 steps")


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.data()])
def test_loss_of_one_batch_falls_in_a_trainer(name):
    seed_everything(0)
    row, until = MODELS[name], UntilHalved()
    options = {"dropout": 0.0} if "dropout" in row.make().hparams else {}
    model = row.make(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2), **options)
    options = {"overfit_batches": 1, "limit_val_batches": 0, "enable_checkpointing": True}
    trainer(until, max_epochs=45, **options).fit(model, datamodule=row.data())
    assert until.losses[-1] < 0.5 * until.losses[0]


@pytest.mark.parametrize("name", image_models())
def test_bytes_and_floats_are_the_same_image(name):
    model = MODELS[name].make().eval()
    images = examples(model, 4)
    torch.testing.assert_close(output(model, images), output(model, images.float() / 255))


def test_input_is_left_as_it_was(row):
    model = row.make().eval()
    x = examples(model, 4)
    x = x.float() if x.dtype == torch.uint8 else x
    before = x.clone()
    output(model, x)
    assert torch.equal(x, before)


class Types(Callback):
    """Of what comes into a training step, and out of it."""

    def __init__(self):
        self.inputs, self.losses = set(), set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.inputs.add(batch[0].dtype)
        self.losses |= {outputs["loss"].dtype} if outputs else set()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_trains_in_bf16_and_sums_in_fp32(row, precision):
    model, data, metrics, types = row.make(), row.data(**row.augmented), {}, Types()
    running = trainer(types, precision=precision, limit_train_batches=4)
    running.fit(model, datamodule=data)
    metrics |= running.callback_metrics
    running.test(model, datamodule=data, verbose=False)
    metrics |= running.callback_metrics
    assert all(value.isfinite() for value in metrics.values())
    assert {value.dtype for value in metrics.values()} <= {torch.float32, torch.float64}
    assert types.losses <= {torch.float32}
    # Augmented in fp32; bytes are exact, and rows and observations have been left as they were.
    assert types.inputs == {torch.float32 if row.augmented else model.example_input_array.dtype}
    weights = {parameter.dtype for parameter in model.parameters()}
    assert weights == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    # Eight bits would leave no more than three digits of any of these.
    assert any((value.float() != value.bfloat16().float()).item() for value in metrics.values())


def test_checkpoint_from_python_loads_by_itself(row, tmp_path):
    model, running = row.make(), trainer(limit_train_batches=2)
    running.fit(model, datamodule=row.data())
    running.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["model_class"] == f"{row.kind.__module__.partition('.')[0]}.{row.kind.__name__}"
    x = examples(model, 3)
    for loaded in (lit_models.load(tmp_path / "model.ckpt"), row.kind.load_from_checkpoint(tmp_path / "model.ckpt")):
        assert torch.equal(output(loaded.cpu().eval(), x), output(model.cpu().eval(), x))


def test_a_plain_trainer_gets_exact_resume_once(row):
    model, running = row.make(), trainer(limit_train_batches=1)
    for _ in range(2):
        running.fit(model, datamodule=row.data())
    assert sum(isinstance(callback, ExactResume) for callback in running.callbacks) == 1
    own = ExactResume()
    given = trainer(own, limit_train_batches=1)
    given.fit(row.make(), datamodule=row.data())
    assert [callback for callback in given.callbacks if isinstance(callback, ExactResume)] == [own]


def test_a_trainer_goes_on_with_another_kind_of_model(row, tmp_path):
    def fit(model, data=None, loader=None):
        running.fit_loop.epoch_progress.reset()
        running.fit(model, loader, datamodule=data)
        running.test(model, loader, datamodule=data, verbose=False)

    running = trainer(logger=TensorBoardLogger(tmp_path), limit_train_batches=1)
    fit(row.make(), row.data())
    fit(BoringModel(), loader=DataLoader(torch.randn(4, 32)))
    other = MODELS["RNN" if row.kind is not MODELS["RNN"].kind else "Net"]
    fit(other.make(), other.data())


def test_predictions_are_rows(row):
    model, data = row.make(), row.data()
    running = trainer(limit_train_batches=1)
    running.fit(model, datamodule=data)
    rows = [one for batch in running.predict(model, datamodule=data) for one in batch]
    assert rows
    assert len({tuple(one) for one in rows}) == 1  # the same columns in all
