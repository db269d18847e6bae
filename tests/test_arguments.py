import math
import re
from typing import Annotated, Literal

import numpy as np
import pytest

from lit_models.common.arguments import Fraction, PositiveFloat, PositiveInt, Range, UnitInterval, check_arguments


class Given:
    def __init__(
        self,
        count: PositiveInt = 1,
        rate: UnitInterval | None = None,
        sizes: list[PositiveInt] | None = None,
        pair: tuple[int, PositiveInt] = (0, 1),
        several: tuple[PositiveInt, ...] = (),
        std: PositiveFloat | list[PositiveFloat] = 1.0,
        scale: PositiveFloat | Literal["auto"] = 1.0,
        kind: Literal["gru", "lstm"] = "gru",
        decay: Fraction = 0.0,
        tau: Annotated[float, Range(above=0, high=1)] = 1.0,
    ):
        pass


@pytest.mark.parametrize(
    "fine",
    [
        {"count": 1, "rate": 0, "sizes": [1, 2], "pair": (-5, 1), "several": (1, 2, 3), "std": [0.1, 2]},
        {"rate": None, "sizes": None, "scale": "auto", "kind": "lstm", "decay": 0, "tau": 1},
        {"scale": 0.5, "std": math.inf, "count": np.int64(3)},
    ],
)
def test_what_is_in_range_passes(fine):
    check_arguments(Given, fine)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count is 0: it must be at least 1"),
        ("count", [1], "count is [1]: it must be at least 1"),
        ("count", "1", "count is 1: it must be at least 1"),
        ("rate", 1.5, "rate is 1.5: it must be at least 0 and at most 1"),
        ("rate", math.nan, "rate is nan: it must be at least 0 and at most 1"),
        ("sizes", [3, 0], "sizes is 0: it must be at least 1"),
        ("pair", (3, -1), "pair is -1: it must be at least 1"),
        ("several", (1, 2, 0), "several is 0: it must be at least 1"),
        ("std", 0, "std is 0: it must be above 0"),
        ("std", [1.0, -1.0], "std is -1.0: it must be above 0"),
        ("scale", -1.0, "scale is -1.0: it must be above 0"),
        ("kind", "gur", "kind is 'gur': it must be gru or lstm"),
        ("decay", 1, "decay is 1: it must be at least 0 and below 1"),
        ("tau", 0, "tau is 0: it must be above 0 and at most 1"),
    ],
)
def test_what_is_not_is_refused_in_one_line(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_arguments(Given, {name: value})
