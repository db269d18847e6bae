"""What people do with any LightningModule works with every model."""

import copy
import io
import pickle
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.tuner import Tuner
from registry import MODELS
from test_models import examples, output
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lit_models
from datamodules import ImageFolderDataModule, MNISTDataModule, TimeSeriesDataModule
from lit_models import CNN, RNN, FaceEmbedder, Net, RNNClassifier
from lit_models.cli import main as cli
from lit_models.training.schedule import OneCycleLR
from rl import DQN

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.fixture(params=MODELS)
def row(request):
    seed_everything(0)
    return MODELS[request.param]


@pytest.fixture
def trainer(tmp_path):
    """Makes a Trainer that takes two steps an epoch."""

    def make(*callbacks, **options):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        few = {"limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "max_epochs": 1}
        options = {"accelerator": "cpu", "default_root_dir": tmp_path} | quiet | few | options
        return Trainer(callbacks=list(callbacks), **options)

    return make


def trained(row, trainer, **options):
    model = row.make(**options)
    trainer().fit(model, datamodule=row.data())
    return model


def same_output(one, other):
    x = examples(one, 3)
    return torch.equal(output(one.eval(), x), output(other.eval(), x))


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


@pytest.mark.parametrize("copied", [unpickled, saved, copy.deepcopy], ids=lambda function: function.__name__)
def test_a_copy_is_the_same_and_trains_on(row, trainer, copied):
    fresh = copied(row.make())
    assert fresh.optimizer is row.make().optimizer
    trainer().fit(fresh, datamodule=row.data())
    again = copied(fresh)
    assert same_output(again, fresh)
    trainer().fit(again, datamodule=row.data())
    assert not same_output(again, fresh)


class Passing(Net):
    """Passes its keywords on, and names none."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class WithCriterion(Net):
    """Takes a module, and has one by default."""

    def __init__(self, criterion=torch.nn.MSELoss(), **kwargs):  # noqa: B008
        super().__init__(**kwargs)
        self.criterion = criterion


def test_a_copy_has_the_module_that_was_given():
    assert isinstance(copy.deepcopy(WithCriterion(criterion=torch.nn.L1Loss())).criterion, torch.nn.L1Loss)
    assert isinstance(copy.deepcopy(WithCriterion()).criterion, torch.nn.MSELoss)


def test_a_copy_of_a_subclass_has_its_own_optimizer():
    assert unpickled(Passing(optimizer=SGD)).optimizer.keywords == SGD.keywords
    assert unpickled(Passing()).optimizer is Net().optimizer


@pytest.mark.slow
def test_trains_in_spawned_processes(row, trainer):
    model = row.make()
    before = parameters_to_vector(model.parameters()).clone()
    trainer(strategy="ddp_spawn", devices=2).fit(model, datamodule=row.data())
    assert not torch.equal(parameters_to_vector(model.parameters()), before)


def test_parameters_are_a_vector(row, trainer):
    model = trained(row, trainer)
    vector = parameters_to_vector(model.parameters())
    vector_to_parameters(vector / 2, model.parameters())
    assert torch.equal(parameters_to_vector(model.parameters()), vector / 2)


def test_is_pruned(row, trainer):
    model = row.make()
    trainer(ModelPruning("l1_unstructured", amount=0.5)).fit(model, datamodule=row.data())
    weights = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    assert (parameters_to_vector(weights) == 0).float().mean() > 0.3


def test_trains_with_lbfgs(row, trainer):
    model = row.make(optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=3))
    before = parameters_to_vector(model.parameters()).clone()
    trainer().fit(model, datamodule=row.data())
    assert not torch.equal(parameters_to_vector(model.parameters()), before)


def test_layout_is_the_usual_one_in_training_too(row, trainer):
    assert all(weight.is_contiguous() for weight in trained(row, trainer).parameters())


def steps_to_search(model):
    """Steps of the optimizer for 20 looks at the loss, between which an agent takes several."""
    return 20 * getattr(model, "steps_per_batch", 1)


SEARCHING = {"max_epochs": 10, "check_val_every_n_epoch": 100}  # of two steps


def test_a_learning_rate_is_found_and_used(row, trainer):
    model, data = row.make(optimizer=SGD), row.data()
    steps = steps_to_search(model)
    tuner = Tuner(trainer(**SEARCHING))
    found = tuner.lr_find(model, datamodule=data, num_training=steps, early_stop_threshold=None)
    assert len(set(found.results["lr"])) == 20
    assert found.suggestion() not in (None, 0.1)
    assert model.learning_rate == found.suggestion()
    trainer().fit(model, datamodule=data)
    assert {group["lr"] for group in model.optimizers().optimizer.param_groups} == {model.learning_rate}


def test_a_learning_rate_that_a_callback_finds_is_the_peak_of_the_schedule(row, trainer):
    model = row.make(optimizer=SGD, lr_scheduler=OneCycleLR)
    finder = LearningRateFinder(num_training_steps=steps_to_search(model), early_stop_threshold=None)
    running = trainer(finder, **SEARCHING)
    running.fit(model, datamodule=row.data())
    (group,) = running.optimizers[0].param_groups
    assert finder.optimal_lr.suggestion() not in (None, 0.1)
    assert group["max_lr"] == model.learning_rate == finder.optimal_lr.suggestion()


class OwnOptimizer(Net):
    """Configures its optimizer itself."""

    def __init__(self, lr=0.1, **kwargs):
        super().__init__(**kwargs)
        self.lr = lr

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def on_train_start(self):
        self.moments = len(self.optimizers().state)


def test_a_subclass_with_an_optimizer_of_its_own_keeps_it(trainer, tmp_path):
    data = MNISTDataModule(batch_size=8)
    model, running = OwnOptimizer(), trainer()
    running.fit(model, datamodule=data)
    running.save_checkpoint(tmp_path / "model.ckpt")
    resumed = OwnOptimizer()
    trainer(max_epochs=2).fit(resumed, datamodule=data, ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert resumed.moments == len(list(model.parameters()))
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    running = trainer(finder, **SEARCHING)
    running.fit(resumed, datamodule=data)
    assert running.optimizers[0].param_groups[0]["lr"] == resumed.lr == finder.optimal_lr.suggestion() != 0.1


def test_an_agent_fills_its_replay_again_after_a_search(trainer):
    row = MODELS["DQN"]
    agent = row.make(n_steps=40, learning_starts=300)
    finder = LearningRateFinder(num_training_steps=steps_to_search(agent), early_stop_threshold=None)
    trainer(finder, **SEARCHING).fit(agent)
    steps = agent.gradient_steps
    assert steps == 20 * agent.hparams.gradient_steps
    assert agent.env_steps == 300 + (20 - 1) * 4  # the first step's rollout is the one that fills it


@pytest.mark.parametrize("finder", ["LearningRateFinder", "BatchSizeFinder"])
def test_a_run_that_goes_on_does_not_search_again(finder, tmp_path):
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    args = ["fit", "--model=Net", "--data=MNISTDataModule", f"--trainer.callbacks={finder}", *few]
    number = "num_training_steps=30" if finder == "LearningRateFinder" else "max_trials=3"
    first = cli.CLI([*args, f"--trainer.callbacks.{number}", "--trainer.max_epochs=20"])
    last = tmp_path / "Net" / "version_0" / "checkpoints" / "last.ckpt"
    second = cli.CLI(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=21"])
    assert second.datamodule.batch_size == first.datamodule.batch_size
    rates = [command.trainer.optimizers[0].param_groups[0]["lr"] for command in (first, second)]
    assert rates[0] == rates[1]
    assert second.trainer.global_step == first.trainer.global_step + 2


def test_a_batch_size_is_found_and_used(row, trainer):
    model, data = row.make(), row.data()
    running = trainer()
    size = Tuner(running).scale_batch_size(model, datamodule=data, init_val=4, max_trials=2, steps_per_trial=1)
    assert size == 8 if data else size > 4
    assert (data.batch_size if data else model.hparams.batch_size) == size
    model, finder = row.make(optimizer=SGD, lr_scheduler=OneCycleLR), BatchSizeFinder(init_val=16, max_trials=1)
    share = 0.004 if isinstance(data, MNISTDataModule) else 1.0
    running = trainer(finder, limit_train_batches=share)
    running.fit(model, datamodule=row.data())
    assert finder.optimal_batch_size == 16
    schedule = running.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == running.global_step == schedule.last_epoch


@pytest.mark.parametrize("name", ["RNN", "RNNClassifier", "DQN"])
def test_is_quantized(name):
    torch.manual_seed(0)
    model = MODELS[name].make().eval()
    kinds = {torch.nn.Linear, torch.nn.GRU}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will move to another package
        quantized = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
    x = examples(model, 4)
    difference = (output(quantized, x) - output(model, x)).abs().max()
    assert 0 < difference < 0.05 * output(model, x).abs().max()


class DatabaseLogger(Logger):
    """A logger that has no folder, as MLflow's with a database, which is too large a package for these tests."""

    name, version, save_dir = "experiment", "1", None

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log_metrics(self, metrics, step=None):
        self.logged |= metrics

    def log_hyperparams(self, params, *args, **kwargs):
        self.logged |= dict(params)


def test_a_logger_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    logger = f"--trainer.logger={DatabaseLogger.__module__}.{DatabaseLogger.__qualname__}"
    command = cli.CLI(["fit", "--model=Net", "--data=MNISTDataModule", logger, *flags])
    assert {"val/accuracy", "hidden_features"} <= set(command.trainer.logger.logged)
    assert Path("logs", "experiment", "1", "checkpoints", "last.ckpt").is_file()


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1, 28, 28, dtype=torch.uint8), 3


def test_a_schedule_over_data_without_length_needs_max_steps(trainer):
    model, loader = Net(optimizer=SGD, lr_scheduler=OneCycleLR), DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match=r"the training data have no length: set trainer.max_steps"):
        trainer(limit_train_batches=None).fit(model, loader)
    running = trainer(limit_train_batches=None, max_steps=5)
    running.fit(model, loader)
    assert running.lr_scheduler_configs[0].scheduler.total_steps == 5


# Hyperparameters that are not plain.

NUMBERS = np.array([0.1, 0.2], dtype=np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(mean=NUMBERS.mean(), std=NUMBERS[:1], channels=np.array([4, 8]), hidden_features=np.int64(20)),
        lambda: CNN(
            in_channels=np.int32(1), mean=torch.tensor(0.1), dropout=np.float64(0.5), batch_norm=np.bool_(True)
        ),
        lambda: RNNClassifier(hidden_dim=np.int64(8), class_names=np.array(list("0123456789"))),
        lambda: RNN(hidden_dim=np.int64(8), num_layers=np.int64(2), mean=NUMBERS[:1], std=NUMBERS[1:]),
        lambda: FaceEmbedder(image_size=np.int64(32), scale=np.float32(20)),
        lambda: DQN(gamma=np.float64(0.9), hidden_sizes=np.array([8]), env_options={"max_episode_steps": np.int64(9)}),
    ],
    ids=["Net", "CNN", "RNNClassifier", "RNN", "FaceEmbedder", "DQN"],
)
def test_numbers_of_numpy_travel_in_a_checkpoint(make, trainer, tmp_path):
    model = make()
    row, running = MODELS[type(model).__name__], trainer()
    running.fit(model, datamodule=row.data())
    running.save_checkpoint(tmp_path / "model.ckpt")
    loaded = lit_models.load(tmp_path / "model.ckpt")
    assert same_output(loaded, model)
    assert dict(loaded.hparams_initial) | {"num_classes": None} == dict(model.hparams) | {"num_classes": None}


def test_containers_of_omegaconf_travel_in_a_checkpoint(trainer, tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"channels": [4, 8], "mean": [0.1307], "env": {"max_episode_steps": 9}})
    model, running = Net(channels=config.channels, mean=config.mean), trainer()
    running.fit(model, datamodule=MNISTDataModule(batch_size=8))
    running.save_checkpoint(tmp_path / "model.ckpt")
    assert lit_models.load(tmp_path / "model.ckpt").hparams.channels == [4, 8]
    assert type(DQN(env_options=config.env).hparams.env_options) is dict


def test_data_take_paths_and_numbers_of_numpy(pets, trainer, tmp_path):
    data = ImageFolderDataModule(root=Path(pets), image_size=np.int64(28), rotation=np.float64(10))
    model, running = CNN(num_classes=2), trainer()
    running.fit(model, datamodule=data)
    running.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["datamodule_hyper_parameters"]["root"] == str(pets)


class Others(MNISTDataModule):
    """Data with what a checkpoint cannot hold."""

    def __init__(self, transform=None):
        super().__init__(batch_size=8)
        self.save_hyperparameters()

    def setup(self, stage):
        super().setup(stage)
        self.class_names = np.array(self.class_names)
        self.hparams.transform = lambda image: image


def test_what_data_set_later_is_made_plain_or_left_out(trainer, tmp_path):
    model, running = Net(), trainer()
    running.fit(model, datamodule=Others())
    with pytest.warns(UserWarning, match=r"Others: transform is a builtins.function, which a checkpoint cannot hold"):
        running.save_checkpoint(tmp_path / "model.ckpt")
    assert lit_models.load(tmp_path / "model.ckpt").class_names == list("0123456789")


class WithLoss(Net):
    def __init__(self, loss=None, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.loss, self.weights = loss, weights


def test_a_module_that_a_subclass_takes_is_left_out_of_checkpoints_with_a_warning(trainer, tmp_path):
    weights = torch.arange(3.0)
    model, running = WithLoss(loss=torch.nn.MSELoss(), weights=weights, mean=np.float32(0.5)), trainer()
    assert isinstance(model.hparams.loss, torch.nn.MSELoss)
    running.fit(model, datamodule=MNISTDataModule(batch_size=8))
    with pytest.warns(UserWarning, match=r"WithLoss: loss is a torch.nn.modules.loss.MSELoss"):
        running.save_checkpoint(tmp_path / "model.ckpt")
    loaded = WithLoss.load_from_checkpoint(tmp_path / "model.ckpt", loss=torch.nn.L1Loss())
    assert (loaded.hparams.mean, type(loaded.loss)) == (0.5, torch.nn.L1Loss)
    assert torch.equal(loaded.weights, weights)


class OfHydra(LightningDataModule):
    """Data of others, whose hyperparameters are a container of OmegaConf."""

    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters(config)

    def train_dataloader(self):
        return loader(IMAGES, LABELS)


def test_hyperparameters_of_others_that_are_omegaconfs_do_not_spoil_a_checkpoint(trainer, tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    running = trainer()
    running.fit(Net(), datamodule=OfHydra(omegaconf.OmegaConf.create({"sizes": [1, 2]})))
    running.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert content["datamodule_hyper_parameters"] == {"sizes": [1, 2]}
    assert isinstance(lit_models.load(tmp_path / "model.ckpt"), Net)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Net(mean=object()), "mean is a builtins.object"),
        (lambda: RNN(std=[object()]), "std is a builtins.object"),
        (lambda: FaceEmbedder(scale=lambda: 24), "scale is a builtins.function"),
        (lambda: DQN(env_options={"reward": {"function": print}}), "env_options.reward.function is a builtins.builtin"),
        (lambda: MNISTDataModule(data_dir=b"data"), "data_dir is a builtins.bytes"),
        (lambda: TimeSeriesDataModule(length=1j), "length is a builtins.complex"),
    ],
)
def test_what_cannot_be_plain_is_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"{name}.*, which a checkpoint cannot hold"):
        make()


# Loaders of one's own.

IMAGES = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 10


def loader(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=8)


@pytest.mark.parametrize("make", [Net, partial(FaceEmbedder, num_classes=10, image_size=32)])
def test_predicts_images_alone_or_with_labels_or_names(make, trainer):
    model = make()
    images = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2)) if isinstance(model, FaceEmbedder) else IMAGES
    names = [str(number) for number in range(16)]
    predicted = [
        [row for rows in trainer().predict(model, data) for row in rows]
        for data in (
            DataLoader(images, batch_size=8),
            loader(images),
            loader(images, LABELS[:, None]),
            DataLoader(list(zip(images, names, strict=True)), batch_size=8),
        )
    ]
    assert [row["file"] for row in predicted[3]] == names
    numbers = [[[value for key, value in row.items() if key not in ("file", "label")] for row in p] for p in predicted]
    assert numbers[0] == numbers[1] == numbers[2] == numbers[3]


@pytest.mark.parametrize("labels", [LABELS.int(), LABELS.byte(), LABELS[:, None]], ids=["int32", "uint8", "column"])
@pytest.mark.parametrize("make", [Net, partial(FaceEmbedder, num_classes=10, image_size=32)])
def test_labels_are_integers_of_any_kind(make, labels, trainer):
    results = []
    for given in (LABELS, labels):
        seed_everything(0)
        model, running = make(), trainer()
        images = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2)) if isinstance(model, FaceEmbedder) else IMAGES
        running.fit(model, loader(images, given), loader(images, given))
        results.append((parameters_to_vector(model.parameters()), running.callback_metrics["train/accuracy"]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("make", [Net, partial(FaceEmbedder, num_classes=10, image_size=32)])
def test_labels_out_of_range_are_one_line(make, label, trainer):
    model, labels = make(), LABELS.clone()
    labels[0] = label
    images = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2)) if isinstance(model, FaceEmbedder) else IMAGES
    with pytest.raises(ValueError, match=r"[^\n]*num_classes=10: labels start at 0$"):
        trainer().fit(model, loader(images, labels))


BATCHES = {
    "a tensor (8, 1, 28, 28) of uint8": DataLoader(IMAGES, batch_size=8),
    "a list of 3": loader(IMAGES, LABELS, LABELS),
    "a tensor (8,) of float32": loader(IMAGES, LABELS.float()),
    "a tensor (8, 10) of int64": loader(IMAGES, torch.nn.functional.one_hot(LABELS)),
    "a dictionary of image, label": DataLoader(
        [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)], batch_size=8
    ),
}


@pytest.mark.parametrize("found", BATCHES)
@pytest.mark.parametrize("make", [Net, partial(FaceEmbedder, num_classes=10), RNN])
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_other_batches_are_refused_with_what_is_expected(make, found, verb, trainer):
    with pytest.raises(ValueError, match=r"a batch is .*takes pairs \((images, labels|context, target)\)") as raised:
        getattr(trainer(), verb)(make(), BATCHES[found])
    assert found in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [Net, partial(FaceEmbedder, num_classes=10), RNN])
def test_other_batches_to_predict_are_refused(make, trainer):
    with pytest.raises(ValueError, match="a batch is a dictionary of image, label"):
        trainer().predict(make(), BATCHES["a dictionary of image, label"])


@pytest.mark.parametrize("columns", [(2, 2), (1, 2)])
def test_series_of_other_columns_are_refused_with_the_option(columns, trainer):
    parts = [torch.zeros(8, rows, count) for rows, count in zip((50, 20), columns, strict=True)]
    with pytest.raises(ValueError, match=r"a batch is a list of 2 .* but input_dim of RNN is 1: set model.input_dim"):
        trainer().fit(RNN(), loader(*parts))


def test_names_that_are_not_one_per_image_are_refused(trainer):
    images = DataLoader([(image, {"id": 1}) for image in IMAGES], batch_size=8)
    with pytest.raises(ValueError, match=r"a list of 2 .*dict.* in pairs with as many labels or names"):
        trainer().predict(Net(), images)


@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
@pytest.mark.parametrize(
    ("images", "span"),
    [
        (IMAGES.float(), "floats from 0 to 255"),
        ((IMAGES / 255 - 0.5) / 0.25, "floats from -2 to 2"),
        (IMAGES > 127, "bool from 0 to 1"),
        (IMAGES.int() * 257, "int32 from 0 to 6.554e\\+04"),
    ],
)
def test_images_in_another_range_are_warned_of_once(verb, images, span, trainer):
    with pytest.warns(UserWarning, match=f"the images are {span}: Net takes uint8 in 0..255") as caught:
        getattr(trainer(max_epochs=2), verb)(Net(), loader(images, LABELS))
    assert sum("the images are" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255, IMAGES.long()], ids=["uint8", "float", "int64"])
def test_images_in_the_right_range_are_not_warned_of(images, trainer):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the images are")
        trainer().test(Net(), loader(images, LABELS))


# A checkpoint that is read into a model made afresh.


def test_a_fresh_forecaster_takes_the_scale_of_a_checkpoint(trainer, tmp_path):
    running, windows = trainer(), loader(torch.full((8, 50, 1), 300.0), torch.full((8, 20, 1), 301.0))
    running.fit(RNN(mean=300.0, std=2.0), windows)
    running.save_checkpoint(tmp_path / "model.ckpt")
    fresh = RNN()
    (there,) = trainer().test(fresh, windows, ckpt_path=tmp_path / "model.ckpt", weights_only=True, verbose=False)
    (here,) = trainer().test(lit_models.load(tmp_path / "model.ckpt"), windows, verbose=False)
    assert there == here
    with pytest.warns(UserWarning, match=r"mean is 0.0, but 300.0 in the checkpoint"):
        trainer().test(RNN(mean=0.0), windows, ckpt_path=tmp_path / "model.ckpt", weights_only=True, verbose=False)


def test_a_fresh_face_embedder_takes_the_head_of_a_checkpoint(trainer, tmp_path):
    row, running = MODELS["FaceEmbedder"], trainer()
    model, data = row.make(), row.data()
    running.fit(model, datamodule=data)
    running.save_checkpoint(tmp_path / "model.ckpt")
    fresh = row.make()
    trainer().test(fresh, datamodule=data, ckpt_path=tmp_path / "model.ckpt", weights_only=True, verbose=False)
    assert same_output(fresh, model)


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.data()])
def test_steps_need_no_trainer(name):
    row = MODELS[name]
    model, data = row.make(**{"num_classes": 8} if name == "FaceEmbedder" else {}), row.data()
    data.setup("fit")
    optimizer = model.configure_optimizers()["optimizer"]
    before = parameters_to_vector(model.parameters()).clone()
    loss = model.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    optimizer.step()
    assert not torch.equal(parameters_to_vector(model.parameters()), before)


# Callbacks that change the plan.


def test_averaging_weights_may_add_an_epoch_to_a_schedule_over_all_steps(trainer):
    model = CNN(in_channels=1, batch_norm=True, optimizer=SGD, lr_scheduler=OneCycleLR)
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    running = trainer(averaging, max_epochs=3)
    running.fit(model, datamodule=MNISTDataModule(batch_size=8))
    assert running.global_step >= 6


def test_a_pruned_run_goes_on(tmp_path):
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    prune = ["--trainer.callbacks=ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"]
    fit = ["fit", "--model=Net", "--data=MNISTDataModule", "--trainer.max_epochs=1", *few, *prune]
    assert cli.main([*fit, "--trainer.callbacks.amount=0.5"]) == 0
    last = tmp_path / "Net" / "version_0" / "checkpoints" / "last.ckpt"
    assert cli.main(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=2"]) == 0


def test_what_a_callback_raises_is_one_line(tmp_path, capsys):
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    stopping = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/lss"]
    few.append("--trainer.num_sanity_val_steps=0")  # after which the name would be known to be wrong
    message = fails(capsys, "fit", "--model=Net", "--data=MNISTDataModule", *few, *stopping)
    assert "RuntimeError: Early stopping conditioned on metric `val/lss` which is not available" in message


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_compiles_for_several_sizes(size):
    model = CNN().eval()
    model.compile(backend="eager")
    for side in size:
        assert model(torch.zeros(2, 3, side, side, dtype=torch.uint8)).shape == (2, 10)
