"""A program of one or two processes: `python workers.py OUTPUT DEVICES BATCH_SIZE`; the first saves what came of it."""

import sys

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from datamodules.common.base import ImageDataModule
from datamodules.common.tensors import BatchDataset
from lit_models import Net


class RandomImages(ImageDataModule):
    num_classes = 10

    def __init__(self, batch_size):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        draw = torch.Generator().manual_seed(0)
        for name, count in (("train", 640), ("val", 1_001), ("test", 10_001)):
            images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=draw)
            labels = torch.randint(0, 10, (count,), generator=draw)
            setattr(self, f"{name}_set", BatchDataset(images, labels))


class Watch(Callback):
    def __init__(self):
        self.gradients, self.seen = [], {"val": 0, "test": 0}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in pl_module.parameters()]))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen["val"] += len(batch[1])

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen["test"] += len(batch[1])


if __name__ == "__main__":
    output, devices, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    model = Net(conv_dropout=0.0, dropout=0.0, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    watch, data = Watch(), RandomImages(batch_size)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[watch],
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics |= trainer.test(model, datamodule=data, verbose=False)[0]
    seen = torch.tensor(list(watch.seen.values()))
    seen = trainer.strategy.reduce(seen, reduce_op="sum").tolist()
    if trainer.is_global_zero:
        torch.save({"metrics": metrics, "gradients": torch.stack(watch.gradients), "seen": seen}, output)
