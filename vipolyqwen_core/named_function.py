"""Functions of one's own, as a manifest or a command names them: `package.module:function`."""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_imported: dict[str, tuple[int, ...]] = {}
"""What was told of the file of a module when it was imported."""
_one_at_a_time = threading.RLock()


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function of that name, as the file of its module is now: a process may live for weeks.

    Args:
        where: what names it, for the sentence where there is none
    Raises:
        ValueError: there is no such module or function, or the module cannot be imported
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(_current_module(module_name), function_name, None)
    except ImportError as error:
        raise ValueError(f"{where} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    except Exception as error:
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{where}: module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def _current_module(name: str) -> ModuleType:
    """The module, imported anew where its file has changed since: a reload would keep the names of before."""
    with _one_at_a_time:
        if (module := sys.modules.get(name)) is not None:
            stamp = _stamp(module.__spec__)
            if _imported.setdefault(name, stamp) == stamp:
                return importlib.import_module(name)  # waits where another thread is at it
            for old in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[old]
        importlib.invalidate_caches()
        stamp = _stamp(importlib.util.find_spec(name))  # before: what is written meanwhile is another
        module = importlib.import_module(name)
        _imported[name] = stamp
        return module


def _stamp(spec: ModuleSpec | None) -> tuple[int, ...]:
    """Of the file; empty: there is none."""
    try:
        found = os.stat(spec.origin) if spec is not None and spec.origin is not None else None
    except OSError:
        return ()
    return () if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def call_function(name: str, where: str) -> Any:
    """What the function of that name returns, which takes nothing.

    Raises:
        ValueError: it cannot be loaded, or fails
    """
    function = load_function(name, where)
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{where} failed: {type(error).__name__}: {error}") from error
