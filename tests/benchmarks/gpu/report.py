"""Figures as they come: printed, and written anew after each part: a run cut short leaves what it has."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.checks import Check

GOALS = {"chunk": 0.50, "step": 0.38}
"""Share of the measured bfloat16 matrix rate, recomputation not counted."""
ORIGINAL_PAIRS_PER_SECOND = 4.2
"""Of the original implementation on one GPU, by its own account."""
ORIGINAL_FACTOR = 8
COLUMNS = {
    "pairs/s": ("pairs_per_second", "{:.1f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "TFLOP a pair": ("flops_a_pair", "{:.3g}", 1e12),
    "TFLOP/s": ("flops_per_second", "{:.3g}", 1e12),
    "of matrix rate": ("share_of_matmul_rate", "{:.1%}"),
    "of the sustained": ("share_of_sustained_rate", "{:.1%}"),
    "with recomputation": ("share_with_recomputation", "{:.1%}"),
    "peak GB": ("peak_gb", "{:.1f}"),
    "waits for data": ("waiting_share", "{:.1%}"),
    "loaders could, pairs/s": ("loader_pairs_per_second", "{:.0f}"),
}


@dataclass
class Report:
    """Everything that was found."""

    folder: Path
    limit_seconds: float
    started: float = field(default_factory=time.perf_counter)
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def seconds_left(self) -> float:
        """Until the limit of the whole run."""
        return self.limit_seconds - (time.perf_counter() - self.started)

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", flush=True)

    def fact(self, **facts: Any) -> None:
        """Something about the run."""
        self.facts |= facts
        self.say(", ".join(f"{name}: {value}" for name, value in facts.items()))
        self.write()

    def check(self, check: Check) -> None:
        """The outcome of a check."""
        self.checks.append(check)
        self.say(f"{'ok' if check.passed else 'WRONG'}  {check.name}: {check.value:.6g} ({check.limit:g})")
        self.write()

    def row(self, name: str, figures: dict[str, Any]) -> None:
        """Figures of one way to train; with `outcome` only, where there are none."""
        self.rows.append((name, figures))
        self.say(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in figures.items()))
        self.write()

    def note(self, text: str) -> None:
        """A sentence that belongs below the table."""
        self.notes.append(text)
        self.say(text)
        self.write()

    def verdicts(self) -> list[str]:
        """Each goal against the best row that it is about."""
        lines = []
        for negatives, goal in GOALS.items():
            lines.append(
                _verdict(
                    f"{goal:.0%} of the measured matrix rate with {negatives} negatives",
                    self._best(f"{negatives} negatives", "share_of_matmul_rate"),
                    goal,
                    "{:.1%}",
                )
            )
        goal = ORIGINAL_FACTOR * ORIGINAL_PAIRS_PER_SECOND
        name = f"{ORIGINAL_FACTOR} times the original's {ORIGINAL_PAIRS_PER_SECOND} pairs/s"
        lines.append(_verdict(name, self._best("chunk negatives", "pairs_per_second"), goal, "{:.1f}"))
        return lines

    def write(self) -> None:
        """Write gpu.json and gpu.md."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "facts": self.facts,
            "checks": [asdict(check) for check in self.checks],
            "rows": [{"way": name, **figures} for name, figures in self.rows],
            "notes": self.notes,
            "verdicts": self.verdicts(),
            "failed": self.failed,
            "seconds": time.perf_counter() - self.started,
        }
        (self.folder / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (self.folder / "gpu.md").write_text("\n".join(self.markdown()) + "\n", encoding="utf-8")

    def markdown(self) -> list[str]:
        """The section for RESULTS.md.

        A short row may be served from what the loaders held ready, so their own rate stands beside the wait.
        """
        lines = [f"{name}: {value}  " for name, value in self.facts.items()]
        lines += ["", f"| way | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
        for name, figures in self.rows:
            cells = [_cell(figures, *column) for column in COLUMNS.values()]
            if "outcome" in figures:
                cells[0] = figures["outcome"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", *(f"- {note}" for note in self.notes), ""]
        lines += ["| check | value | limit | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {check.name} | {check.value:.6g} | {check.limit:g} | {'ok' if check.passed else 'WRONG'} |"
            for check in self.checks
        ]
        return [*lines, "", *(f"- {verdict}" for verdict in self.verdicts())]

    def _best(self, start: str, figure: str) -> tuple[str, float] | None:
        found = [
            (name, figures[figure])
            for name, figures in self.rows
            if name.startswith(start) and figures.get(figure) is not None
        ]
        return max(found, key=lambda row: row[1], default=None)


def _verdict(goal: str, best: tuple[str, float] | None, least: float, form: str) -> str:
    if best is None:
        return f"{goal}: not measured"
    name, value = best
    return f"{goal}: {'reached' if value >= least else 'MISSED'}, {form.format(value)} ({name})"


def _cell(figures: dict[str, Any], name: str, form: str, unit: float = 1.0) -> str:
    value = figures.get(name)
    return "" if value is None else form.format(value / unit)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
