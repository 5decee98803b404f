import subprocess
import sys


def test_forward_losses_and_backward_never_wait_for_the_device(tiny_backbone):
    command = [sys.executable, "-m", "tests.core.training.no_waiting", str(tiny_backbone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
