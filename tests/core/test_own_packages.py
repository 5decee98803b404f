"""The factory's packages have common names: those of a user's own project do not take their place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from orchestration.commands import mount
from vipolyqwen_core import __main__ as command
from vipolyqwen_core import own_packages

ROOT = Path(__file__).parents[2]
PRINT = "import queue, assets, quality; print(queue.__file__, assets.__file__, quality.__file__, sep='\\n')"
SCRIPT = f"""
import subprocess, sys
from vipolyqwen_core.own_packages import put_own_packages_first

put_own_packages_first()
{PRINT}
subprocess.run([sys.executable, "-c", {PRINT!r}], check=True)
"""
"""As the command does it: a file in another folder than the current one, whose children look there first."""


def own_project(folder: Path) -> Path:
    for name in ("assets", "quality", "orchestration"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    (folder / "queue.py").write_text("raise RuntimeError('this is the queue of a project')", encoding="utf-8")
    return folder


def printed(script: Path, folder: Path, paths: list[Path]) -> list[str]:
    script.parent.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_children_find_the_packages_of_the_factory_from_the_folder_of_a_project(tmp_path: Path) -> None:
    files = printed(tmp_path / "bin" / "command", own_project(tmp_path / "project"), [ROOT])
    assert files[:3] == files[3:]
    assert files[1:3] == [str(ROOT / name / "__init__.py") for name in ("assets", "quality")]


def test_packages_on_the_path_do_not_hide_those_of_the_factory(tmp_path: Path) -> None:
    project = own_project(tmp_path / "project")
    (project / "queue.py").unlink()  # on the path it would be in the way of any program
    files = printed(tmp_path / "bin" / "command", project, [project, ROOT])
    assert files[:3] == files[3:]
    assert files[1:3] == [str(ROOT / name / "__init__.py") for name in ("assets", "quality")]


def test_with_the_model_alone_a_package_of_the_name_is_not_taken_for_the_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(own_project(tmp_path))
    (tmp_path / "queue.py").unlink()
    monkeypatch.setattr(own_packages, "ROOT", tmp_path / "site-packages")
    mounted: list[str] = []
    monkeypatch.setattr(command, "import_module", mounted.append)
    command.mount_factory()
    assert mounted == []
    for name in command.OF_THE_FACTORY:
        ended = CliRunner().invoke(command.app, [name, "--help"])
        assert ended.exit_code == 1
        assert ended.stderr.startswith(f"error: '{name}' is a command of the factory, which runs from its")
    assert CliRunner().invoke(command.app, ["rum"]).exit_code == 2


def test_the_commands_that_a_wheel_lacks_are_those_of_the_factory() -> None:
    mounted = typer.Typer()
    mount(mounted)
    assert sorted(get_command(mounted).commands) == sorted(command.OF_THE_FACTORY)
