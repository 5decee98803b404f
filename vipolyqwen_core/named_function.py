"""Functions of one's own, as a manifest or a command names them: `package.module:function`."""

import importlib
from collections.abc import Callable
from typing import Any


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function of that name; its module is imported.

    Args:
        where: what names it, for the sentence where there is none
    Raises:
        ValueError: there is no such module or function, or the module cannot be imported
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise ValueError(f"{where} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    except Exception as error:
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{where}: module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


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
