"""Weights are loaded whole or not at all.

transformers fills what a checkpoint lacks with random numbers and a warning: such a model trains, and gives
vectors that mean nothing. What the model has no place for it drops, and that may be the trained pooling.
"""

import os
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, Final

from safetensors import SafetensorError

SHOWN: Final = 3
"""Names of weights in a message."""


def load_whole(
    load: Callable[..., Any],
    source: str | os.PathLike[str],
    *args: Any,
    surplus_allowed: bool = False,
    **kwargs: Any,
) -> Any:
    """The model of a `from_pretrained`, if it found each weight in its shape and a place for each.

    Args:
        load: a `from_pretrained` of transformers; it is called with the other arguments
        source: directory or hub id
        surplus_allowed: of a backbone, whose head that names the next token is left out
    Returns:
        what `load` returns for these arguments
    Raises:
        ValueError: a weight is missing, of another shape or surplus, or the file is cut; names source and
            weights
        OSError: there is no such model, or no safetensors of it
    """
    wants_info = kwargs.pop("output_loading_info", False)
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    try:
        model, info = load(source, *args, **kwargs)
    except (SafetensorError, JSONDecodeError) as error:  # the weights, or the index of their shards
        raise ValueError(f"{source}: its weights are damaged ({error}); copy the model anew") from error
    missing = sorted(info["missing_keys"])
    misshapen = [
        f"{name} is {list(found)} in place of {list(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    surplus = [] if surplus_allowed else sorted(info["unexpected_keys"])
    if missing or misshapen or surplus:
        told = [f"{name} is missing" for name in missing] + misshapen
        told += [f"{name} has no place in the model" for name in surplus]
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise ValueError(
            f"{source}: its weights are not those that its config.json describes: "
            f"{', '.join(told[:SHOWN])}{more}"
        )
    return (model, info) if wants_info else model
