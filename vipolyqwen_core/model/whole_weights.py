"""Weights are loaded whole or not at all.

transformers fills what a checkpoint lacks with random numbers and a warning: such a model trains, and gives
vectors that mean nothing.
"""

import os
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, Final

from safetensors import SafetensorError

SHOWN: Final = 3
"""Names of weights in a message."""


def load_whole(load: Callable[..., Any], source: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
    """The model of a `from_pretrained`, if it found each weight in its shape.

    Args:
        load: a `from_pretrained` of transformers; it is called with the other arguments
        source: directory or hub id
    Returns:
        what `load` returns for these arguments
    Raises:
        ValueError: a weight is missing or of another shape, or the file is cut; names source and weights
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
    if missing or misshapen:
        told = [f"{name} is missing" for name in missing] + misshapen
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise ValueError(
            f"{source}: its weights are not those that its config.json describes: "
            f"{', '.join(told[:SHOWN])}{more}"
        )
    return (model, info) if wants_info else model
