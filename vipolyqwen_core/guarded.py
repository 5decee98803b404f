"""`python -m vipolyqwen_core.guarded STARTER COMMAND`: a command that does not outlive its starter.

A launcher whose parent is killed with SIGKILL is never told. Linux tells it, when it is asked to beforehand;
the wish survives the exec, so nothing is left of this process. On other systems a small process of its own
watches. `STARTER` is the number of the process that starts it: where that was killed before the wish was
made, nothing is run.

The command leads a process group of its own. At Ctrl-C a terminal signals the whole group of the starter,
which passes the signal on: here it would come twice, and at the second one torch's launcher no longer waits
for its ranks.
"""

import os
import sys

from vipolyqwen_core.first_process import EXIT_CODE
from vipolyqwen_core.process_ties import end_with_parent

if __name__ == "__main__":
    starter, *command = sys.argv[1:]
    end_with_parent()
    if os.getppid() != int(starter):
        print(f"process {starter}, which started this one, is gone: nothing is run", file=sys.stderr)
        sys.exit(EXIT_CODE)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    os.execvp(command[0], command)
