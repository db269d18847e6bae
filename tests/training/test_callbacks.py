import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch.utils.data import DataLoader, StackDataset

from lit_models import Net
from lit_models.cli import main as cli
from lit_models.training import callbacks


def test_the_last_checkpoint_is_the_last_also_where_it_is_not_the_best(tmp_path):
    flags = [f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    short = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=20", "--trainer.limit_val_batches=2"]
    # The best is here the greatest loss, that of the first epoch.
    assert cli.main(["fit", *flags, *short, "--checkpoint.monitor=val/loss", "--checkpoint.mode=max"]) == 0
    folder = tmp_path / "mnist" / "version_0" / "checkpoints"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 60
    best = next(path for path in folder.iterdir() if path.name != "last.ckpt")
    assert torch.load(best, weights_only=True)["global_step"] == 20


@pytest.mark.parametrize("interval", [1, 2])
def test_speed_counts_neither_validation_nor_what_is_drawn_or_saved_after_it(interval, monkeypatch):
    class Slow(Callback):
        def on_validation_batch_end(self, *args):
            clock.now += 100

        def on_validation_end(self, trainer, pl_module):
            clock.now += 1000

        def on_train_batch_end(self, *args):
            clock.now += 2

    class Saving(Checkpoint):  # Lightning puts these last
        def on_validation_end(self, trainer, pl_module):
            clock.now += 10_000 * trainer.is_last_batch

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        monotonic = perf_counter

    clock = Clock()
    monkeypatch.setattr(callbacks, "time", clock)
    images = StackDataset(torch.zeros(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64))
    loader = DataLoader(images, batch_size=4)
    options = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    watch = [Slow(), Saving(), callbacks.Throughput()]
    trainer = Trainer(accelerator="cpu", max_epochs=1, val_check_interval=interval, callbacks=watch, **options)
    trainer.fit(Net(), loader, loader)
    assert trainer.callback_metrics["throughput/samples_per_second"] == 8 / 4
