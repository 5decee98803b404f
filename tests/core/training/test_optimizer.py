"""The learning rate is a function of the step, in closed form."""

import math

import pytest

from vipolyqwen_core.config import OptimizerSettings
from vipolyqwen_core.training.optimizer import learning_rate


def test_the_rate_rises_to_its_peak_and_falls_as_half_a_cosine():
    settings = OptimizerSettings(learning_rate=0.5, warmup_share=0.25)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:4] == pytest.approx([0.5 / 3, 1.0 / 3, 0.5, 0.5])  # a quarter of ten steps: three of them
    falling = [0.25 * (1 + math.cos(math.pi * done / 7)) for done in range(7)]
    assert rates[3:] == pytest.approx(falling)
    assert learning_rate(0, 1, settings) == 0.5
