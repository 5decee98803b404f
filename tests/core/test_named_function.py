"""Functions of one's own are those of the file as it is now."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vipolyqwen_core.named_function import call_function, load_function

NAME = "told_by_test_named_function:told"


def write(file: Path, text: str, number: int) -> None:
    """Python takes bytecode for that of a file of the same second and size."""
    file.write_text(text)
    os.utime(file, (number, number))


def test_a_module_that_is_edited_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "told_by_test_named_function.py"
    write(file, "def told():\n    return 'first'\n", 1)
    before = load_function(NAME, "adapter")
    assert load_function(NAME, "adapter") is before  # nor is it imported each time
    write(file, "def told():\n    return 'again'\n", 2)
    assert (before(), call_function(NAME, "adapter")) == ("first", "again")
    write(file, "def renamed():\n    return 'again'\n", 5)
    with pytest.raises(ValueError, match=r"has no function told$"):
        call_function(NAME, "adapter")
    write(file, "def told(:\n", 3)
    for _ in range(2):  # what was read before is not taken for it
        with pytest.raises(ValueError, match=r"^adapter cannot be imported: SyntaxError"):
            call_function(NAME, "adapter")
    file.unlink()
    with pytest.raises(ValueError, match=r"^adapter cannot be imported: .*PYTHONPATH"):
        call_function(NAME, "adapter")
    write(file, "def told():\n    return 'mended'\n", 4)
    assert call_function(NAME, "adapter") == "mended"


def test_threads_that_ask_at_once_get_the_whole_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "slowly_told_by_test_named_function.py"
    module.write_text("import time\ntime.sleep(0.2)\ndef told():\n    return 'whole'\n")
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(call_function, ["slowly_told_by_test_named_function:told"] * 2, ["adapter"] * 2)
        assert list(found) == ["whole"] * 2


def test_modules_without_a_file_are_taken_as_they_are() -> None:
    for _ in range(2):
        assert load_function("sys:getrecursionlimit", "adapter")() > 0
