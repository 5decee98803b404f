"""The house: imports run one way, and heavy or foreign libraries stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestration", "assets", "quality", "vipolyqwen_core")
"""Each may import what stands behind it, and itself."""

FORBIDDEN_IN_CORE = {"dagster", "great_expectations", "polars", "mlflow"}
ALLOWED = {
    ("vipolyqwen_core/serving/mlflow_model.py", "mlflow"),
    ("vipolyqwen_core/serving/registration.py", "mlflow"),
    ("vipolyqwen_core/training/mlflow_run.py", "mlflow"),
}
HEAVY = {
    "torch", "transformers", "accelerate", "mlflow", "great_expectations", "lance", "lancedb", "matplotlib",
    "scipy", "polars", "lingua", "rensa", "pandas",
}  # fmt: skip


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    above = set(PACKAGES[: PACKAGES.index(package)])
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in above | {"tests"}
    ]
    assert modules(package)
    assert wrong == []


def test_what_mlflow_runs_imports_of_this_package_only_what_encodes() -> None:
    served = imports(ROOT / "vipolyqwen_core/serving/mlflow_model.py")
    assert {name for name in served if name.startswith("vipolyqwen")} == {"vipolyqwen_core.serving.encoder"}


def test_core_stays_free_of_the_factory_libraries() -> None:
    wrong = [
        f"{relative} imports {name}"
        for path in modules("vipolyqwen_core")
        for name in imports(path)
        if (top := name.split(".")[0]) in FORBIDDEN_IN_CORE
        and ((relative := str(path.relative_to(ROOT))), top) not in ALLOWED
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["assets", "orchestration"])
def test_heavy_libraries_are_imported_inside_asset_functions(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path, top_level_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_environment_variables_are_read_in_one_file() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert readers == {"vipolyqwen_core/workspace.py"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import vipolyqwen_core", ("torch", "transformers", "numpy")),
        ("import vipolyqwen_core.contract, vipolyqwen_core.recipes", ("torch", "transformers", "yaml")),
        ("import vipolyqwen_core.processing.processor", ("torch", "transformers")),
        ("import vipolyqwen_core.processing.packing", ("transformers",)),
        # PyTorch and others read variables that these settle first
        ("import vipolyqwen_core.__main__, vipolyqwen_core.training.__main__", ("torch", "mlflow")),
        ("import orchestration.definitions", tuple(sorted(HEAVY - {"pandas", "scipy"}))),
    ],
)
def test_import_stays_light(statement: str, absent: tuple[str, ...]) -> None:
    program = f"{statement}\nimport sys\nprint(*[name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_readme_tells_where_everything_is() -> None:
    """Stages of `assets/` are named by the flow; `demo/` and other packages of the core by their folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    layout = readme[readme.index("## Repository layout") :]
    for package in (*PACKAGES, "vipolyqwen_core/corpus"):
        named = layout[layout.index(f"{Path(package).name}/ ") :]
        untold = {path.name for path in (ROOT / package).glob("*.py") if f" {path.name} " not in f"{named} "}
        untold -= {
            f"{path.stem}.py" for path in (ROOT / package).glob("*.py") if f"[{path.stem}<br/>" in readme
        }
        assert untold <= {"__init__.py"}, package
