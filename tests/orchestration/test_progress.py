"""What the terminal shows while a run works."""

import io

from rich.console import Console

from orchestration.progress import FactoryProgress


def test_news_leave_the_count_and_the_time_in_view() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = FactoryProgress(console, num_stages=21)
    progress.source = "demo_text_pair"
    progress.start("curated_corpus")
    progress.say("the built-in corpus is read, and what it says is long, as news of a stage may be")
    with console.capture() as shown:
        console.print(progress.bar.get_renderable())
    line = shown.get()
    assert line.count("\n") == 1
    assert all(word in line for word in ("curated_corpus demo_text_pair", " 0/21 ", " 0:00:00 the"))
    assert line.rstrip().endswith("…")
