"""The training process: `accelerate launch -m vipolyqwen_core.training --config run.json`.

One process needs no launcher: `python -m vipolyqwen_core.training --config run.json`. The same command
resumes a run that was interrupted, and says so where it is finished. `--dry-run` prints the plan only.
"""

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from vipolyqwen_core.first_process import EXIT_CODE
from vipolyqwen_core.process_ties import leave_with_parent
from vipolyqwen_core.standard_streams import outlive_terminal
from vipolyqwen_core.training.only_training import only_training
from vipolyqwen_core.training.run_file import ERRORS_FOLDER, read_run
from vipolyqwen_core.training.stopping import StoppedEarly, StopSignal
from vipolyqwen_core.workspace import configure, configure_mlflow_of_training, process_rank, workspace_of_run
from vipolyqwen_core.written_aside import written_aside

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vipolyqwen_core.training", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="run.json, the settings of the run")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    parser.add_argument("--pairs-per-second", type=float, help="rate to estimate the time of a dry run with")
    parser.add_argument("--machines", type=int, default=1, help="machines that a dry run reckons with")
    told = parser.parse_args(arguments)
    if told.machines < 1 or (told.pairs_per_second is not None and told.pairs_per_second <= 0):
        parser.error("--machines and --pairs-per-second must be above 0")
    outlive_terminal()
    rank = process_rank()
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(message)s" if rank == 0 else f"rank {rank}: %(message)s",
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    configure(workspace_of_run(told.config))
    configure_mlflow_of_training()
    try:
        run = read_run(told.config)
        if told.dry_run:
            from vipolyqwen_core.training.dry_run import describe

            if rank == 0:
                print(describe(run, told.pairs_per_second, told.machines))
            return 0
        leave_with_parent()
        stop = StopSignal()
        stop.listen()
        alone = only_training(run.output, stop) if rank == 0 else nullcontext()
        with recorded_failure(run.output, rank), alone:
            from vipolyqwen_core.training.train import train  # seconds of imports: errors above come at once

            train(run, stop)
    except StoppedEarly as stopped:
        logging.info("%s", stopped)
        return EXIT_CODE
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


@contextmanager
def recorded_failure(output: Path, rank: int) -> Iterator[None]:
    """Leave the traceback of whatever ends the block in `errors/rank<N>.txt`, for the launcher to find.

    Where the folder takes no file, the error of the block is the one to read, and `explain_errors` says so.
    """
    place = output / ERRORS_FOLDER / f"rank{rank}.txt"
    with suppress(OSError):
        place.unlink(missing_ok=True)
    try:
        yield
    except StoppedEarly:
        raise
    except BaseException:
        trace = traceback.format_exc()
        with suppress(OSError), written_aside(place) as aside:  # never without its last line: it explains
            aside.write_text(trace, encoding="utf-8")
        raise


if __name__ == "__main__":
    sys.exit(main())
