"""Whether a file is locked is told without changing it."""

import errno
import os
from pathlib import Path

import pytest

from vipolyqwen_core.file_lock import file_lock, is_locked


@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_lock_is_seen_also_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read_only: bool
) -> None:
    path, opened = tmp_path / ".lock", os.open

    def open_read_only(place: Path, flags: int) -> int:
        if is_read_only and flags != os.O_RDONLY:
            raise OSError(errno.EROFS, "Read-only file system", str(place))
        return opened(place, flags)

    assert not is_locked(path)
    with path.open("a+", encoding="utf-8") as file:
        assert file_lock(file) is None
        monkeypatch.setattr("vipolyqwen_core.file_lock.os.open", open_read_only)
        assert is_locked(path)
    assert not is_locked(path)
