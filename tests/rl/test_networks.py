"""Networks, against values worked out by hand."""

import torch

from rl.networks import QNetwork, as_channels


def test_layer_norm_precedes_activation():
    network = QNetwork((4,), False, 2, hidden_sizes=(8,), activation="tanh", layer_norm=True)
    seen = torch.randn(3, 4)
    hidden = network.hidden[0](seen)
    spread = hidden.var(dim=1, keepdim=True, correction=0)
    normal = (hidden - hidden.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
    torch.testing.assert_close(network(seen), network.advantage(normal.tanh()))


def test_dueling_by_hand():
    network = QNetwork((4,), False, 3, hidden_sizes=(), dueling=True)
    with torch.no_grad():
        network.advantage.weight.zero_()
        network.value.weight.zero_()
        network.advantage.bias.copy_(torch.tensor([1.0, 2.0, 6.0]))
        network.value.bias.fill_(10)
    assert network(torch.zeros(1, 4)).tolist() == [[8, 9, 13]]


def test_frames_become_channels_in_order():
    images = torch.arange(2 * 4 * 40 * 40 * 3).view(2, 4, 40, 40, 3).float()
    stacked = as_channels(images)
    assert stacked.shape == (2, 12, 40, 40)
    assert torch.equal(stacked[1, 3 * 2 + 1], images[1, 2, :, :, 1])
    assert torch.equal(as_channels(images[:, 0])[1, 2], images[1, 0, :, :, 2])
    assert torch.equal(as_channels(images[..., 0]), images[..., 0])
