"""Small environments whose values are known, or that go wrong; importing it registers them."""

import enum
import os
import sys
import time
import uuid
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

RATE = 1  # that methods read


class TwoStates(gymnasium.Env):
    """From state 0: action 0 goes to state 1, action 1 ends with 1. From state 1: 0 ends with 2, 1 goes to state 0."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2))
        return self._see(), {}

    def step(self, action):
        over = action != self.state
        reward = (2.0 if self.state else 1.0) if over else 0.0
        self.state = 1 - self.state
        return self._see(), reward, bool(over), False, {}

    def _see(self):
        return np.eye(2, dtype=np.float32)[self.state]


class Goals(gymnasium.Env):
    """State 0, state 1, the end; the reward is 1 less the squared distance of the action from 0, and then from 2."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2))
        return self._see(), {}

    def step(self, action):
        assert action in self.action_space
        reward, over = 1 - float(action[0] - 2 * self.state) ** 2, self.state == 1
        self.state = 1 - self.state
        return self._see(), reward, over, False, {}

    def _see(self):
        return np.eye(2, dtype=np.float32)[self.state]


class Wages(gymnasium.Env):
    """One state, a reward of 1 a step, and after five steps the end, or only a break."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, terminates=False, breaks=None):
        self.terminates, self.breaks = terminates, breaks

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        assert action in (5, 6)
        self.steps += 1
        if self.breaks == "raise" and self.steps == 4:
            raise OSError("the motor is gone")
        seen = np.full(1, np.nan if self.breaks == "nan" and self.steps == 4 else 1, np.float32)
        over = self.steps == 5
        return seen, 1.0, over and self.terminates, over and not self.terminates, {}


class Screen(gymnasium.Env):
    """An image, bright or dark; the reward is 1 for saying which. Ten steps."""

    observation_space = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action):
        reward = float(action == self.bright)
        self.steps += 1
        return self._see(), reward, False, self.steps == 10, {}

    def _see(self):
        self.bright = int(self.np_random.integers(2))
        return np.full((40, 36, 3), 200 if self.bright else 20, np.uint8)


class Odd(gymnasium.Env):
    """Observations are drawn from a space, or given; so is the reward; episodes are of some steps, or endless."""

    action_space = spaces.Discrete(2)
    pay = 1  # of the class

    def __init__(self, space=None, seen=None, reward=1.0, length=5, ends_process=None, factor=1):
        self.observation_space = space or spaces.Box(0, 1, (2,), np.float32)
        self.seen, self.reward, self.length, self.ends_process, self.factor = seen, reward, length, ends_process, factor
        self.drawn = np.random.random()  # another one whenever it is made
        self.rates = {"tax": 0.5}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert seed is None or seed < 2**31
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.ends_process:
            os._exit(7)
        seen = self.observation_space.sample()
        if self.seen is not None and self.steps == 4:
            seen[:] = self.seen
        reward = self.reward * self.factor * wage(self.pay) * self.rates["tax"] * 2
        return seen, reward, False, self.steps == self.length, {}


def wage(pay):
    return pay * RATE


class Action(enum.IntEnum):
    LEFT = 0
    RIGHT = 1


class Piece:
    """An object that keys a table, so that its address is in the key."""


class Busy(Wages):
    """Its attributes tell of the process, of the day, of the machine and of chance, or are filled by playing."""

    sides, pairs = {"north", "south", "east", "west"}, {frozenset({"a", "b"}): 1, frozenset({"c", "d"}): 2}
    nested: ClassVar[set] = {frozenset({"a", "b"}), frozenset({"c", "d"}), frozenset({"e", "f"})}
    seen: ClassVar[dict] = {}
    default, moves = Action.LEFT, {Action.LEFT: Action.RIGHT}

    def __init__(self):
        super().__init__()
        self.pid, self.name, self.home = os.getpid(), f"run_{os.getpid()}", os.getcwd()
        self.started, self.log = int(time.time()), time.strftime("logs/%Y-%m-%d_%H-%M-%S")
        self.device = "cuda:0" if len(sys.argv) > 1 and sys.argv[1] == "cuda" else "cpu"
        self.scores = {Piece(): 0, Piece(): 1}
        self.names = {uuid.uuid4().hex: 1 for _ in range(np.random.randint(1, 9))}
        self.drawn = list(np.random.random(np.random.randint(1, 30)))
        self.image = np.empty((5, 5))  # holds anything at first

    def step(self, action):
        self.image[:], self.seen[self.steps] = self.steps, 1
        return super().step(action)


class Multiplied(gymnasium.Wrapper):
    """A wrapper of one's own."""

    def __init__(self, env, times=1):
        super().__init__(env)
        self.times = times

    def step(self, action):
        seen, reward, *rest = self.env.step(action)
        return seen, self.times * reward, *rest


class TwoTorques(gymnasium.ActionWrapper):
    """Pendulum with an action of two numbers, whose sum it takes."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def action(self, action):
        return action.sum(keepdims=True)


class Vectorized(Odd):
    """Whose vectorized form sees something else than it."""

    @staticmethod
    def make(num_envs, **options):
        space = spaces.Box(0, 1, (3,), np.float32)
        return gymnasium.vector.SyncVectorEnv([lambda: Odd(space)] * num_envs)


class Other(Wages):
    """With a space that DQN does not take."""

    def __init__(self, action=None, observation=None):
        super().__init__()
        self.action_space = action or self.action_space
        self.observation_space = observation or self.observation_space


class Emulator(Wages):
    """Whose state lies in an object."""

    def reset(self, *, seed=None, options=None):
        self.memory = object()
        return super().reset(seed=seed)


box = spaces.Box(-1, 1, (2,), np.float32)
gymnasium.register("TwoStates-v0", TwoStates)
gymnasium.register("Goals-v0", Goals)
gymnasium.register("Wages-v0", Wages)
gymnasium.register("Screen-v0", Screen)
gymnasium.register("Emulator-v0", Emulator)
gymnasium.register("Odd-v0", Odd)
gymnasium.register("Busy-v0", Busy)
gymnasium.register("Vectorized-v0", Vectorized, vector_entry_point=Vectorized.make)
gymnasium.register("GraphSeen-v0", Other, kwargs={"observation": spaces.Graph(box, box)})
gymnasium.register("ManyActions-v0", Other, kwargs={"action": spaces.MultiDiscrete([2, 2])})
gymnasium.register("Unbounded-v0", Other, kwargs={"action": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
gymnasium.register("Bytes-v0", Other, kwargs={"action": spaces.Box(0, 255, (2,), np.uint8)})
