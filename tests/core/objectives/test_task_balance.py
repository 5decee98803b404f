"""Dynamic task weights."""

import pytest

from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.task_balance import TaskBalance


def test_weights_are_inverse_to_the_running_loss_and_have_mean_one():
    weights = TaskBalance().updated({Task.TEXT_PAIR: 4.0, Task.OCR: 1.0}).weights()
    assert weights[Task.OCR] == pytest.approx(4 * weights[Task.TEXT_PAIR])
    assert sum(weights.values()) == pytest.approx(2.0)


def test_a_task_that_a_step_lacks_keeps_its_running_loss():
    balance = TaskBalance(decay=0.75).updated({Task.OCR: 1.0, Task.INSTR: 2.0}).updated({Task.OCR: 3.0})
    assert balance.running == {Task.OCR: 0.75 * 1.0 + 0.25 * 3.0, Task.INSTR: 2.0}


def test_a_solved_task_does_not_take_all_the_weight():
    weights = TaskBalance().updated({Task.OCR: 0.0, Task.INSTR: 1e-3}).weights()
    assert weights[Task.OCR] == pytest.approx(weights[Task.INSTR])


def test_nothing_seen_gives_no_weights():
    assert TaskBalance().weights() == {}
