import pytest
import torch
from torch import nn

from lit_models import CNN, Net


class Article(nn.Module):
    """The article's network, written out."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=7, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(256 * 4 * 4, 10)

    def forward(self, x):
        return self.classifier(self.features(x).view(x.size(0), -1))


def with_weights_of(model):
    article = Article()
    article.load_state_dict(dict(zip(article.state_dict(), model.state_dict().values(), strict=True)))
    return article


def test_parameters_are_the_articles_counted_by_hand():
    convolutions = (3 * 49 + 1) * 64 + (64 * 9 + 1) * 192 + (192 * 9 + 1) * 384 + (384 * 9 + 1) * 256
    by_hand = convolutions + (256 * 9 + 1) * 256 + (256 * 16 + 1) * 10
    assert sum(weight.numel() for weight in CNN().parameters()) == by_hand == 2_300_234


@pytest.mark.parametrize("side", [43, 46, 50])
def test_at_the_articles_sizes_it_is_the_articles_network(side):
    model, images = CNN(), torch.rand(2, 3, side, side)
    torch.testing.assert_close(model(images), with_weights_of(model)(images))


@pytest.mark.parametrize("side", [42, 51])
def test_no_other_size_fits_the_articles_linear_layer(side):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Article()(torch.rand(2, 3, side, side))
    assert CNN()(torch.rand(2, 3, side, side)).shape == (2, 10)


def test_takes_any_size_from_28_pixels_up_any_channels_and_classes():
    assert CNN(in_channels=1, num_classes=7)(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert CNN(in_channels=5, num_classes=2)(torch.rand(2, 5, 60, 31)).shape == (2, 2)


def test_larger_images_are_averaged_down_to_four_by_four():
    features, images = CNN().features, torch.rand(1, 3, 75, 75)
    before = features[:-1](images)
    assert before.shape == (1, 256, 8, 8)
    torch.testing.assert_close(features(images), nn.functional.avg_pool2d(before, 2))


def test_scaled_images_are_what_the_network_sees():
    model, images = CNN(image_size=48), torch.rand(2, 3, 10, 30)
    large = nn.functional.interpolate(images, (48, 48), mode="bilinear")
    torch.testing.assert_close(model(images), with_weights_of(model)(large))


def test_batch_norm_replaces_the_bias_and_normalises():
    model = CNN(batch_norm=True)
    layers = [layer for layer in model.features if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d] * 5
    assert all(layer.bias is None for layer in layers[::2])
    seen = []
    layers[1].register_forward_hook(lambda layer, args, output: seen.append(output))
    model(torch.rand(8, 3, 48, 48))
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.zeros(64), atol=1e-5, rtol=0)


def test_dropout_works_by_the_feature():
    dropped = CNN(dropout=0.5).classifier[:2].train()(torch.ones(4, 256, 4, 4)) == 0
    assert 0.4 < dropped.float().mean() < 0.6


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (CNN, (1, 3, 27, 48), "27x48 pixels, but CNN takes 28 or more"),
        (CNN, (1, 1, 48, 48), "1 channel.*set model.in_channels to 1"),
        (Net, (1, 1, 32, 32), "Net takes 28 to 31"),
        (Net, (1, 3, 28, 28), "set model.in_channels to 3"),
        (CNN, (1, 50, 1), r"takes images \(batch, channels, height, width\), not a tensor \(1, 50, 1\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model()(torch.rand(shape))


def test_impossible_options_are_refused():
    for options in ({"in_channels": 0}, {"num_classes": 1}, {"std": 0.0}, {"std": [1.0, -1.0, 1.0]}):
        with pytest.raises(ValueError, match="must be"):
            CNN(**options)
    with pytest.raises(ValueError, match="at least 28"):
        CNN(image_size=27)
    with pytest.raises(ValueError, match="mean has 3 numbers, but in_channels is 1"):
        CNN(in_channels=1, mean=[0.5, 0.5, 0.5])
