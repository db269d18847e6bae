"""The network from faces to features: the energies of Gabor filters, and what is learned beside them."""

import math

import pytest
import torch

from lit_models.faces.backbones import MIN_WAVELENGTH, ORIENTATIONS, WAVELENGTHS, GaborEnergy, Residual, gabor_backbone

ENERGIES = ORIENTATIONS * len(WAVELENGTHS)


def wave(wavelength, angle, phase, side):
    """An image `(1, 1, side, side)` of a wave of amplitude 1."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    return torch.cos(2 * math.pi * along / wavelength + phase)[None, None]


@pytest.mark.parametrize("direction", range(ORIENTATIONS))
@pytest.mark.parametrize("scale", range(len(WAVELENGTHS)))
@pytest.mark.parametrize(("side", "grid"), [(32, 32), (48, 24), (96, 24)])
def test_a_wave_has_the_energy_1_in_its_own_filter_wherever_its_crests_are(side, grid, scale, direction):
    angle = math.pi * direction / ORIENTATIONS
    middles = []
    for phase in (0.0, 1.0, math.pi / 2):
        maps = GaborEnergy(side)(wave(max(side * WAVELENGTHS[scale], MIN_WAVELENGTH), angle, phase, side))
        assert maps.shape == (1, 1 + ENERGIES, grid, grid)
        middles.append(maps[0, 1:, grid // 2, grid // 2])
    strongest = scale * ORIENTATIONS + direction
    for middle in middles:
        assert middle.argmax() == strongest
        assert middle[strongest].item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(middles[0], middles[2], atol=0.1, rtol=0)


def test_a_flat_image_has_no_energy_and_the_image_itself_is_among_the_maps():
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    maps = GaborEnergy(48)(image)
    assert maps.shape == (2, 3 + ENERGIES, 24, 24)
    torch.testing.assert_close(maps[:, :3, 0, 0], image[:, :, :2, :2].mean(dim=(2, 3)))
    flat = GaborEnergy(48)(torch.full((1, 1, 48, 48), 2.0))
    assert flat[:, 1:].max() < 0.04  # of which all is what keeps the root from a slope without end


def test_a_residual_block_adds_nothing_at_first_and_then_what_it_learns():
    torch.manual_seed(0)
    block, x = Residual(5, 8), torch.randn(4, 5, 6, 6)
    torch.testing.assert_close(block(x), x)
    block(x).square().sum().backward()
    assert block.layers[-1].weight.grad.any()
    torch.nn.init.ones_(block.layers[-1].weight)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize(("channels", "features"), [(1, 775), (3, 825)])
@pytest.mark.parametrize("side", [32, 48, 75])
def test_the_number_of_features_is_the_same_for_every_size(channels, features, side):
    network, count = gabor_backbone(channels, side)
    assert count == features
    assert network(torch.randn(2, channels, side, side)).shape == (2, features)


def test_parameters_counted_by_hand():
    parameters = sum(parameter.numel() for parameter in gabor_backbone(1, 48)[0].parameters())
    assert parameters == 2 * 31 + 31 * 64 * 9 + 2 * 64 + 64 * 31 * 9
