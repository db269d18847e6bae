"""The replay buffer, against numbers worked out by hand and against the arithmetic it stands for."""

import io

import pytest
import torch
from torch.utils.data import DataLoader

from rl.buffers import ReplayBuffer, ReplayDataset

NO = torch.tensor([False])
YES = torch.tensor([True])


def add(buffer, number, *, terminated=NO, truncated=NO, autoreset=None, reward=None):
    """A step of one environment from the observation `number` to the next number."""
    observation = torch.tensor([[float(number)]])
    reward = torch.tensor([float(number) if reward is None else reward])
    buffer.add(observation, torch.tensor([number % 2]), reward, observation + 1, terminated, truncated, autoreset)


def kept(buffer, name="observation"):
    return getattr(buffer, name)[: buffer.size].flatten().tolist()


def test_oldest_are_overwritten():
    buffer = ReplayBuffer(5, (1,))
    for number in range(7):
        add(buffer, number)
    assert (buffer.size, kept(buffer)) == (5, [5, 6, 2, 3, 4])
    assert kept(buffer, "next_observation") == [6, 7, 3, 4, 5]
    assert kept(buffer, "action") == [1, 0, 0, 1, 0]


def test_step_wraps_around():
    buffer = ReplayBuffer(5, (2,), num_envs=3)
    no = torch.zeros(3, dtype=torch.bool)
    for number in range(2):
        observation = torch.arange(6.0).view(3, 2) + 10 * number
        buffer.add(observation, torch.arange(3), torch.ones(3), observation + 1, no, no)
    assert buffer.observation.tolist() == [[14, 15], [2, 3], [4, 5], [10, 11], [12, 13]]
    assert buffer.action.tolist() == [2, 1, 2, 0, 1]


def test_nstep_returns_by_hand():
    buffer = ReplayBuffer(10, (1,), n_steps=3, gamma=0.5)
    for number in range(1, 4):
        add(buffer, number)
    assert kept(buffer) == [1]  # the other returns are not complete
    add(buffer, 4, terminated=YES)
    rows = zip(*(kept(buffer, name) for name in ("observation", "reward", "discount", "next_observation")), strict=True)
    assert sorted(rows) == [
        (1, 1 + 2 / 2 + 3 / 4, 1 / 8, 4),
        (2, 2 + 3 / 2 + 4 / 4, 1 / 8, 5),
        (3, 3 + 4 / 2, 1 / 4, 5),
        (4, 4, 1 / 2, 5),
    ]
    ends = dict(zip(kept(buffer), kept(buffer, "terminated"), strict=True))
    assert ends == {1: False, 2: True, 3: True, 4: True}


def test_truncated_is_not_terminated():
    buffer = ReplayBuffer(10, (1,), n_steps=2)
    add(buffer, 1)
    add(buffer, 2, truncated=YES)
    assert kept(buffer, "terminated") == [False, False]
    assert kept(buffer, "next_observation") == [3, 3]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_nstep_stops_at_episode_end(n_steps):
    draw = torch.Generator().manual_seed(0)
    envs, steps = 4, 200
    buffer = ReplayBuffer(envs * steps, (2,), num_envs=envs, n_steps=n_steps, gamma=0.9)
    episode, time = torch.zeros(envs), torch.zeros(envs)
    skip = torch.zeros(envs, dtype=torch.bool)
    rewards, lengths = {}, {}
    for _ in range(steps):
        terminated, truncated = torch.rand(2, envs, generator=draw) < 0.1
        reward = torch.randn(envs, generator=draw)
        terminated, truncated = terminated & ~skip, truncated & ~skip
        seen = torch.stack([episode * envs + torch.arange(envs), time], dim=1)
        over = terminated | truncated
        buffer.add(seen, torch.zeros(envs), reward, seen + torch.tensor([0.0, 1.0]), terminated, truncated, skip)
        for env in (~skip).nonzero()[:, 0].tolist():
            key = tuple(seen[env].tolist())
            rewards[key] = reward[env].item()
            if over[env]:
                lengths[key[0]] = (key[1] + 1, terminated[env].item())
        # As gymnasium does it: the step after an episode's end only resets.
        time = torch.where(skip, 0.0, time + 1)
        episode += skip
        skip = over
    batch = buffer.sample(2000)
    for first, reward, last, terminated, discount in zip(*batch[:1], *batch[2:6], strict=True):
        (name, start), (other, end) = first.tolist(), last.tolist()
        length, ended = lengths.get(name, (float("inf"), False))
        assert name == other
        assert end == min(start + n_steps, length)
        assert terminated.item() == (ended and end == length)
        assert discount.item() == pytest.approx(0.9 ** (end - start), rel=1e-5)
        expected = sum(0.9**k * rewards[name, start + k] for k in range(int(end - start)))
        assert reward.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_autoreset_is_not_stored():
    buffer = ReplayBuffer(10, (1,))
    add(buffer, 1, terminated=YES)
    add(buffer, 2, autoreset=YES)
    add(buffer, 3)
    assert kept(buffer) == [1, 3]


def test_uniform_sampling():
    buffer = ReplayBuffer(20, (1,))
    for number in range(33):
        add(buffer, number)
    counts = buffer.sample(400, 100).index.flatten().bincount(minlength=20)
    chi_square = ((counts - 2000) ** 2 / 2000).sum().item()
    assert 5 < chi_square < 50  # 19 degrees of freedom: 99.98% lie between


def test_prioritized_sampling_is_proportional():
    buffer = ReplayBuffer(150, (1,), prioritized=True, alpha=0.5)
    for number in range(150):
        add(buffer, number)
    errors = torch.linspace(-1, 2, 150)
    buffer.update(torch.arange(150), errors)
    draws = 200_000
    counts = buffer.sample(draws).index.bincount(minlength=150)
    expected = (errors.abs() + 1e-6) ** 0.5
    expected *= draws / expected.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 90 < chi_square < 225  # 149 degrees of freedom: 99.98% lie between
    uniform = torch.full((150,), draws / 150)
    assert ((counts - uniform) ** 2 / uniform).sum() > 1000


def test_importance_weights_by_hand():
    buffer = ReplayBuffer(4, (1,), prioritized=True, alpha=1.0, beta=0.5)
    for number in range(4):
        add(buffer, number)
    buffer.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 10.0]))
    batch = buffer.sample(1000)
    assert set(batch.index.tolist()) == {0, 1, 2, 3}
    # (4 p)^-1/2 over its greatest, which is that of the least likely: (p / p0)^-1/2.
    torch.testing.assert_close(
        batch.weight, torch.tensor([1, 1 / 2, 1 / 3, 1 / 10])[batch.index].sqrt(), rtol=1e-4, atol=0
    )
    assert ReplayBuffer(4, (1,)).update(torch.arange(2), torch.ones(2)) is None


def test_new_transitions_get_max_priority():
    buffer = ReplayBuffer(3, (1,), prioritized=True, alpha=1.0)
    add(buffer, 0)
    buffer.update(torch.tensor([0]), torch.tensor([7.0]))
    add(buffer, 1)
    assert buffer.priority.tolist() == pytest.approx([7, 7, 0], abs=1e-5)
    assert set(buffer.sample(100).index.tolist()) == {0, 1}


@pytest.mark.parametrize("prioritized", [False, True])
def test_buffer_continues_from_its_state(prioritized):
    first, second = (ReplayBuffer(9, (1,), n_steps=3, prioritized=prioritized, seed=seed) for seed in (1, 2))
    for number in range(14):
        add(first, number)
    first.update(first.sample(5).index, torch.rand(5))
    state = first.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for number in range(14, 17):
        for buffer in (first, second):
            add(buffer, number)
    for one, other in zip(first.sample(3, 50), second.sample(3, 50), strict=True):
        assert torch.equal(one, other)


def test_impossible_buffers_are_refused():
    with pytest.raises(ValueError, match=r"a buffer of 31 transitions is too small for 4 .* 8 .* at least 32"):
        ReplayBuffer(31, (4,), num_envs=8, n_steps=4)
    with pytest.raises(ValueError, match=r"takes 141,120,000,000,000 bytes, but .* are free: keep at most"):
        ReplayBuffer(10_000_000_000, (84, 84), torch.uint8)


def test_images_keep_their_dtype():
    buffer = ReplayBuffer(4, (2, 2, 3), torch.uint8)
    image = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    buffer.add(image, torch.tensor([0]), torch.ones(1), image - 1, NO, NO)
    batch = buffer.sample(2, 3)
    assert (batch.observation.shape, batch.observation.dtype) == ((2, 3, 2, 2, 3), torch.uint8)
    assert batch.next_observation.unique().tolist() == [254]


def test_vector_actions():
    buffer = ReplayBuffer(6, (1,), action_shape=(2,), action_dtype=torch.float32, num_envs=2, n_steps=2)
    no, actions = torch.zeros(2, dtype=torch.bool), torch.arange(12.0).view(3, 2, 2) / 8
    for action in actions:
        buffer.add(torch.zeros(2, 1), action, torch.ones(2), torch.zeros(2, 1), no, no)
    assert torch.equal(buffer.action[: buffer.size], actions[:2].flatten(0, 1))  # the last return is not complete
    batch = buffer.sample(3, 5)
    assert (batch.action.shape, batch.action.dtype) == ((3, 5, 2), torch.float32)
    copy = ReplayBuffer(6, (1,), action_shape=(2,), action_dtype=torch.float32, num_envs=2, n_steps=2)
    copy.load_state_dict(buffer.state_dict())
    assert torch.equal(copy.sample(50).action, buffer.sample(50).action)
    assert torch.equal(copy.pending_action, buffer.pending_action)


def test_dataset_collects_before_each_batch():
    buffer, calls = ReplayBuffer(4, (1,)), []

    def collect():
        calls.append(len(calls))
        add(buffer, len(calls))

    loader = DataLoader(ReplayDataset(buffer, collect, 3, (2, 5)), batch_size=None)
    assert len(loader) == 3
    for number, batch in enumerate(loader):
        assert len(calls) == number + 1
        assert batch.reward.shape == (2, 5)
        assert batch.reward.max() <= number + 1
