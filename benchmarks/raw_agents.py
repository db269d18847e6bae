"""Plain loops, without a Trainer: PPO on CartPole and DDPG on Pendulum, with the settings of our configs.

They play as many greedy episodes after every epoch as ours does, and keep nothing: no curves, no checkpoints.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.agent import Agent
from rl.envs import make_vector_env
from rl.evaluation import Policy, play_episodes

Evaluate = Callable[[Policy], object]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def orthogonal(network: nn.Sequential, last: float) -> nn.Sequential:
    """Initializes layers with a gain of sqrt(2), and the last one with its own."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return network


def ppo(agent: Agent, evaluate: Evaluate, epochs: int) -> Policy:
    """`configs/ppo_cartpole.yaml`."""
    count, length, minibatches, gamma, decay = 32, 32, 2, 0.99, 0.95
    envs = make_vector_env(num_envs=count, **agent.env_settings)
    actor, critic = orthogonal(mlp(4, 64, 64, 2), 0.01), orthogonal(mlp(4, 64, 64, 1), 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, eps=1e-5, fused=True)
    rollouts_per_epoch = agent.hparams.steps_per_epoch // (count * length)
    observation, done = torch.tensor(envs.reset(seed=0)[0]), torch.zeros(count, dtype=torch.bool)

    def policy(seen: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return actor(torch.as_tensor(seen)).argmax(dim=1).numpy()

    for rollout in range(epochs * rollouts_per_epoch):
        left = 1 - rollout / (epochs * rollouts_per_epoch)
        optimizer.param_groups[0]["lr"], clip = 2e-3 * left, 0.2 * left
        seen, actions, log_probs = torch.empty(length, count, 4), torch.empty(length, count, dtype=torch.int64), []
        ends, terms, resets, rewards = [], [], [], []
        following = torch.empty(length, count, 4)
        with torch.no_grad():
            for step in range(length):
                logits = actor(observation)
                action = (logits + torch.from_numpy(np.random.gumbel(size=logits.shape))).argmax(dim=1)
                log_probs.append(logits.log_softmax(dim=1).gather(1, action[:, None])[:, 0])
                seen[step], actions[step] = observation, action
                resets.append(done)
                array, reward, terminated, truncated, _ = envs.step(action.numpy())
                observation, done = torch.tensor(array), torch.tensor(terminated | truncated)
                following[step] = observation
                rewards.append(torch.tensor(reward).float() * 0.05)
                ends.append(done)
                terms.append(torch.tensor(terminated))
            value, next_value = critic(seen)[..., 0], critic(following)[..., 0]
            advantage, running = torch.empty(length, count), torch.zeros(count)
            for step in reversed(range(length)):
                error = rewards[step] + gamma * next_value[step] * ~terms[step] - value[step]
                running = error + gamma * decay * running * ~ends[step]
                running = running * ~resets[step]
                advantage[step] = running
        kept = ~torch.stack(resets).flatten()
        fields = (seen.flatten(0, 1), actions.flatten(), torch.stack(log_probs).flatten(), advantage.flatten())
        s, a, before, gain = (part[kept] for part in fields)
        target = gain + value.flatten()[kept]
        for _ in range(10):
            for index in torch.randperm(len(s)).tensor_split(minibatches):
                normal = (gain[index] - gain[index].mean()) / (gain[index].std() + 1e-8)
                logarithms = actor(s[index]).log_softmax(dim=1)
                ratio = (logarithms.gather(1, a[index, None])[:, 0] - before[index]).exp()
                surrogate = torch.minimum(ratio * normal, ratio.clamp(1 - clip, 1 + clip) * normal).mean()
                entropy = -(logarithms.exp() * logarithms).sum(dim=1).mean()
                error = F.mse_loss(critic(s[index])[:, 0], target[index])
                optimizer.zero_grad()
                (-surrogate + 0.5 * error - 0.01 * entropy).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        if (rollout + 1) % rollouts_per_epoch == 0:
            evaluate(policy)
    return policy


def ddpg(agent: Agent, evaluate: Evaluate, epochs: int) -> Policy:
    """`configs/ddpg_pendulum.yaml`."""
    count, batch, gamma, tau, warm_up, total = 8, 256, 0.98, 0.005, 1000, agent.env_steps
    envs = make_vector_env(num_envs=count, **agent.env_settings)
    actor, critic = mlp(3, 64, 64, 1), mlp(4, 64, 64, 1)
    slow_actor, slow_critic = deepcopy(actor), deepcopy(critic)
    pairs = [
        (slow, fast)
        for old, new in ((slow_actor, actor), (slow_critic, critic))
        for slow, fast in zip(old.parameters(), new.parameters(), strict=True)
    ]
    slow, fast = ([pair[side].data for pair in pairs] for side in (0, 1))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3, fused=True)
    memory = torch.empty(total, 3 + 1 + 1 + 3)  # observation, action, reward, next observation
    size, steps, epoch = 0, 0, 0
    observation, done = torch.tensor(envs.reset(seed=0)[0]), np.zeros(count, dtype=bool)

    def q(network: nn.Module, seen: Tensor, action: Tensor) -> Tensor:
        return network(torch.cat([seen, action], dim=1))[:, 0]

    def policy(seen: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return 2 * actor(torch.as_tensor(seen)).tanh().numpy()

    while steps < total:
        with torch.no_grad():
            if steps < warm_up:
                action = torch.rand(count, 1) * 2 - 1
            else:
                action = (actor(observation).tanh() + 0.2 * torch.randn(count, 1)).clamp(-1, 1)
        array, reward, _, truncated, _ = envs.step(2 * action.numpy())
        following = torch.tensor(array)
        rows = torch.cat([observation, action, torch.tensor(reward).float()[:, None], following], dim=1)[~done]
        memory[size : size + len(rows)] = rows
        size, steps = size + len(rows), steps + count
        observation, done = following, truncated
        if steps < warm_up:
            continue
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - 0.8 * epoch / epochs)
        s, a, r, after = memory[torch.randint(size, (8 * batch,))].split((3, 1, 1, 3), dim=1)
        with torch.no_grad():
            target = r[:, 0] + gamma * q(slow_critic, after, slow_actor(after).tanh())  # the time limit is no end
        for part in range(8):
            rows = slice(part * batch, (part + 1) * batch)
            optimizer.zero_grad()
            F.mse_loss(q(critic, s[rows], a[rows]), target[rows]).backward()
            critic.requires_grad_(False)
            (-q(critic, s[rows], actor(s[rows]).tanh()).mean()).backward()
            critic.requires_grad_(True)
            optimizer.step()
            torch._foreach_lerp_(slow, fast, tau)
        if steps - warm_up >= (epoch + 1) * (total - warm_up) // epochs:
            epoch += 1
            evaluate(policy)
    return policy


LOOPS: dict[str, Callable[[Agent, Evaluate, int], Policy]] = {"ppo_cartpole": ppo, "ddpg_pendulum": ddpg}


def train(name: str, agent: Agent, seed: int) -> tuple[float, Policy]:
    """Seconds of a plain loop with its evaluations, and the policy that it has learnt.

    Args:
        name: Of the config that the loop is for.
        agent: One that was trained with it, for its environment, steps and evaluations.
        seed: Of weights, noise and minibatches.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    episodes = agent.hparams.eval_episodes
    envs = make_vector_env(num_envs=min(episodes, 100), **agent.env_settings)
    began = time.perf_counter()
    policy = LOOPS[name](agent, lambda policy: play_episodes(envs, policy, episodes, seed), len(agent.eval_returns))
    return time.perf_counter() - began, policy
