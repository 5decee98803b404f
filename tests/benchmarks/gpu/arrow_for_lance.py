"""Imported first: where Lance is missing, `without_lance/lance.py` takes its place, in workers too."""

import importlib.util
import sys
from pathlib import Path
from typing import Final

HAS_LANCE: Final = importlib.util.find_spec("lance") is not None
if not HAS_LANCE:
    sys.path.append(
        str(Path(__file__).parent / "without_lance")
    )  # spawned workers get the path of their parent
