"""`python -m vipolyqwen_core.training.guarded COMMAND`: run a command that does not outlive its starter.

A launcher whose parent is killed with SIGKILL is never told. Linux tells it, when it is asked to beforehand;
the wish survives the exec, so nothing is left of this process.
"""

import os
import sys

from vipolyqwen_core.training.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
