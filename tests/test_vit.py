"""The Vision Transformer against torchvision's, its positions, its attention, and what is refused."""

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import VisionTransformer

from datamodules import MNISTDataModule
from lit_models import ViT
from lit_models.vit import Block, sincos

SMALL = {"image_size": 32, "patch_size": 8, "dim": 24, "depth": 2, "heads": 3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(model):
    """A model whose weights are all drawn, none of them zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_against_torchvision():
    ours = drawn(ViT(**SMALL))
    theirs = VisionTransformer(32, 8, 2, 3, 24, 96, num_classes=10).eval()
    state = {"class_token": ours.class_token.view(1, 1, -1), "conv_proj.weight": ours.patches.weight}
    state |= {"conv_proj.bias": ours.patches.bias, "heads.head.weight": ours.head.weight}
    state |= {
        "heads.head.bias": ours.head.bias,
        "encoder.ln.weight": ours.norm.weight,
        "encoder.ln.bias": ours.norm.bias,
    }
    state["encoder.pos_embedding"] = torch.cat([torch.zeros(1, 24), ours.positions])[None]
    names = {"ln_1": "norm1", "ln_2": "norm2", "self_attention.out_proj": "attention.output"}
    names |= {"mlp.0": "mlp.0", "mlp.3": "mlp.3"}
    for number, block in enumerate(ours.blocks):
        own, prefix = dict(block.named_parameters()), f"encoder.layers.encoder_layer_{number}"
        for kind in ("weight", "bias"):
            state[f"{prefix}.self_attention.in_proj_{kind}"] = own[f"attention.qkv.{kind}"]
            state |= {f"{prefix}.{name}.{kind}": own[f"{mine}.{kind}"] for name, mine in names.items()}
    theirs.load_state_dict({name: value.detach() for name, value in state.items()})
    images = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)


def test_base_has_the_papers_size():
    model = ViT(num_classes=1000, image_size=224, patch_size=16, dim=768, depth=12, heads=12)
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == 86_567_656 - 768
    )  # a position of its class token


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"positions": "sincos"}])
def test_a_patch_elsewhere_matters_by_its_position_alone(options):
    model = drawn(ViT(**SMALL, **options))
    images = torch.rand(1, 3, 32, 32)
    moved = images.roll(8, dims=3)
    assert not torch.allclose(model(images), model(moved), atol=1e-4)
    model.positions.data.zero_()
    torch.testing.assert_close(model(images), model(moved), atol=1e-5, rtol=1e-4)


def test_sines_and_cosines_tell_rows_and_columns_apart():
    places = sincos(4, 16)
    assert places.shape == (16, 16)
    assert len(places.unique(dim=0)) == 16
    grid = places.view(4, 4, 16)
    assert torch.equal(grid[:, 0, :8], grid[:, 3, :8])  # the first half is of the row
    assert torch.equal(grid[0, :, 8:], grid[3, :, 8:])
    torch.testing.assert_close(grid[1, 2], torch.cat([grid[1, 0, :8], grid[0, 2, 8:]]))
    torch.testing.assert_close(
        grid[2, 0, [0, 4]],
        torch.tensor([2.0, 2.0]).sin() * torch.tensor([1.0, 0]) + torch.tensor([0, 2.0]).cos() * torch.tensor([0, 1.0]),
    )


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_attention_is_what_the_blocks_use(pool):
    model = drawn(ViT(**SMALL, pool=pool))
    images = torch.rand(2, 3, 32, 32)
    weights = model.attention(images)
    count = 16 + (pool == "class")
    assert weights.shape == (2, 2, 3, count, count)
    torch.testing.assert_close(weights.sum(dim=4), torch.ones(2, 2, 3, count))
    block, x = model.blocks[0], model.tokens(images)
    value = block.attention.project(block.norm1(x))[2]
    mixed = block.attention.output((weights[0] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, block.attention(block.norm1(x)), atol=1e-5, rtol=1e-4)


def test_stochastic_depth_leaves_branches_out_and_keeps_the_mean():
    block = Block(8, 2, 2.0, 0.0, drop_path=0.75).train()
    branch = torch.ones(4000, 3, 8)
    dropped = block.drop(branch)
    assert {0.0, 4.0} == set(dropped.unique().tolist())
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))  # an image's branch as a whole
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval().drop(branch), branch)


def test_depth_is_dropped_more_and_more():
    model = ViT(**SMALL | {"depth": 5}, drop_path=0.4)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_size": 30},
            "images of 30 pixels are not divided by patches of 8: set patch_size to one of 2, 3, 5, 6",
        ),
        ({"heads": 5}, "dim is 24, which 5 heads do not divide: set dim to 25"),
        ({"dim": 18, "positions": "sincos"}, "dim is 18: positions sincos need one that 4 divides"),
        ({"drop_path": 1.5}, "drop_path is 1.5"),
        ({"depth": 0}, "depth is 0: it must be at least 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=r".") as error:
        ViT(**SMALL | options)
    assert message in str(error.value)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"the images are 24x24 pixels, but ViT takes 32"):
        ViT(**SMALL)(torch.rand(1, 3, 24, 24))


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_tensorboard_shows_attention_and_positions(pool, tmp_path):
    small = {"in_channels": 1, "image_size": 28, "patch_size": 7, "dim": 16, "depth": 2, "heads": 2}
    short = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0, "max_epochs": 1}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = TensorBoardLogger(tmp_path, "", "")
    running = Trainer(accelerator="cpu", logger=logger, **short, **quiet)
    running.fit(ViT(**small, pool=pool), datamodule=MNISTDataModule(batch_size=8))
    assert {"val/attention", "val/positions"} <= {*EventAccumulator(str(tmp_path)).Reload().Tags()["images"]}
