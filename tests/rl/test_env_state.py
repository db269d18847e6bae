"""State of environments: what continues from it is as if it had not stopped."""

import io
from enum import Enum
from functools import partial

import numpy as np
import pytest
import torch
import worlds  # noqa: F401  registers the environments

from rl.env_state import get_env_state, set_env_state
from rl.envs import make_vector_env


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {}),  # vectorized by itself
        ("Acrobot-v1", {}),
        ("MountainCar-v0", {"frame_stack": 3}),
        ("Screen-v0", {"grayscale": True}),
    ],
)
def test_env_continues_from_its_state(env_id, options):
    first, second = (make_vector_env(env_id, 3, **options) for _ in range(2))
    draw = np.random.default_rng(0)
    for number, environments in enumerate((first, second)):
        environments.reset(seed=number)
    for _ in range(30):
        first.step(draw.integers(2, size=3))
    content = io.BytesIO()
    torch.save(get_env_state(first), content)
    content.seek(0)
    set_env_state(second, torch.load(content, weights_only=True))
    for _ in range(300):  # over many an episode's end
        action = draw.integers(2, size=3)
        for one, other in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            assert np.array_equal(one, other)


class Light(Enum):
    RED, GREEN = 1, 2


def test_unrestorable_values_have_no_state():
    board = np.zeros((2, 2))
    assert get_env_state(board) is not None
    for value in (Light.GREEN, [Light.RED], {"board": board, "cells": board.reshape(-1)}, partial(max, 1)):
        assert get_env_state(value) is None


def test_env_with_an_object_has_no_state():
    environments = make_vector_env("Emulator-v0", 2)
    environments.reset(seed=0)
    assert get_env_state(environments) is None
