"""The factory's packages, which a checkout has beside the core and an installed wheel has not."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from vipolyqwen_core.workspace import lead_children

ROOT = Path(__file__).parents[1]
"""Folder of the checkout, or of what is installed."""
FACTORY = ("orchestration", "assets", "quality")


def has_factory() -> bool:
    """Whether this is a checkout. A package of such a name that lies elsewhere is somebody's own."""
    return (ROOT / "orchestration" / "commands.py").is_file()


def put_own_packages_first() -> None:
    """Let no package of somebody's own project take the place of the factory's, whose names are common words.

    In this process they would come from PYTHONPATH, in its children from the current folder too.
    """
    hidden = has_factory() and not all(_is_own(find_spec(name)) for name in FACTORY)
    if hidden:
        sys.path.insert(0, str(ROOT))
    lead_children(ROOT if hidden else None)


def _is_own(package: ModuleSpec | None) -> bool:
    file = package and package.origin
    return bool(file) and Path(str(file)).resolve().is_relative_to(ROOT.resolve())
