"""The Mackey-Glass series, a classic benchmark of forecasting methods.

Mackey and Glass, "Oscillation and chaos in physiological control systems", Science 197, 1977:
`dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x(t)`, chaotic at the usual tau of 17.
"""

import torch
from torch import Tensor

STEPS = 10  # of the integration per unit of time
WASHOUT = 1000  # units of time, after which the start no longer matters


def mackey_glass(length: int, seed: int = 0) -> Tensor:
    """The series `(length,)` at whole units of time, in float64; `seed` draws the constant history from 1.1..1.3.

    Integrated by the classical Runge-Kutta method with steps of 0.1; the delayed value in the middle of a step comes
    from a cubic Hermite polynomial, which keeps the method's fourth order.
    """

    def slope(x: float, delayed: float) -> float:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

    h, lag = 1 / STEPS, 17 * STEPS  # tau, in steps
    start = 1.1 + 0.2 * float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    values, middles = [start] * (lag + 1), [start] * lag  # at each step, and halfway to the next
    for _ in range((WASHOUT + length) * STEPS):
        x, old, middle, new = values[-1], values[-1 - lag], middles[-lag], values[-lag]
        k1 = slope(x, old)
        k2 = slope(x + h / 2 * k1, middle)
        k3 = slope(x + h / 2 * k2, middle)
        k4 = slope(x + h * k3, new)
        values.append(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        middles.append((x + values[-1]) / 2 + h / 8 * (k1 - slope(values[-1], new)))
    return torch.tensor(values[lag + WASHOUT * STEPS :: STEPS][:length], dtype=torch.float64)
