"""The factory's commands, mounted on `vipolyqwen` where the factory's packages can be found.

Everything heavy is imported inside the commands, so that `--help` is quick.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.console import Console

from vipolyqwen_core.workspace import (
    DEFAULT_MLFLOW_PORT,
    Workspace,
    configure,
    current_workspace,
    manifest_setting,
    recipe_setting,
)

output = Console()

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", help="Name, .json file or package.module:function; else VIPOLYQWEN_RECIPE."
    ),
]
SourcesOption = Annotated[
    str | None,
    typer.Option("--sources", "-s", help="The manifest; else VIPOLYQWEN_SOURCES, else the demo corpus."),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", help="Folder or URL that the manifest's relative paths start from."),
]

sources_app = typer.Typer(no_args_is_help=True, help="Look at sources before they are run.")


def mount(app: typer.Typer) -> None:
    """Add the factory's commands."""
    app.command()(demo)
    app.command()(run)
    app.command()(trace)
    app.command()(rollback)
    app.command()(ui)
    sources_app.command("check")(check_sources)
    app.add_typer(sources_app, name="sources")


def demo(
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Name, .json file or package.module:function.")
    ] = "demo",
) -> None:
    """Run the whole factory on the built-in corpus: about ten minutes on 2 cores."""
    workspace = current_workspace()
    from vipolyqwen_core.corpus.demo import write_demo_corpus

    with output.status("writing the demo corpus"):
        manifest = write_demo_corpus(workspace.demo_corpus)
    output.print(f"The demo corpus: {manifest.parent}", highlight=False, soft_wrap=True, markup=False)
    _run_and_report(workspace, None, recipe or "demo")


def run(sources: SourcesOption = None, recipe: RecipeOption = None, root: RootOption = None) -> None:
    """Run the whole factory over a manifest: from raw files to a searchable table."""
    workspace = current_workspace()
    configure(workspace, sources=sources, recipe=recipe, data_root=root or None)
    _run_and_report(workspace, manifest_setting(), recipe_setting())


def _run_and_report(workspace: Workspace, sources: str | None, recipe: str) -> None:
    from orchestration.factory import run_factory
    from orchestration.summary import print_summary

    with _told(workspace) as console:
        print_summary(run_factory(workspace, sources, recipe, console), workspace, console)


@contextmanager
def _told(workspace: Workspace) -> Iterator[Console]:
    """A console for a run whose end is told in one sentence; `factory.log` keeps the rest.

    Whoever stops it is told that nothing is lost: Dagster has an error of its own for Ctrl-C.

    Raises:
        ValueError: the run failed
    """
    from dagster import DagsterExecutionInterruptedError

    from orchestration.factory import FactoryError
    from orchestration.undisturbed import undisturbed
    from vipolyqwen_core.full_disk import told_of_full_disk

    log = workspace.home / "factory.log"
    with undisturbed(log) as console:
        try:
            yield console
        except (KeyboardInterrupt, DagsterExecutionInterruptedError) as error:
            console.print("Interrupted. The same command goes on where this one stopped.")
            raise typer.Exit(130) from error
        except Exception as error:
            full = told_of_full_disk(error, workspace)  # Dagster's own database may meet one, too
            if not full and not isinstance(error, FactoryError):
                raise
            with suppress(OSError):  # the log may lie on the full disk
                traceback.print_exception(error)
            sentence = str(error).partition("\n")[0]  # SQLAlchemy adds the statement
            raise ValueError(f"{sentence}{full} (details: {log} and `vipolyqwen ui`)") from error


def check_sources(
    manifest: Annotated[str, typer.Argument(help="The manifest.")],
    recipe: RecipeOption = None,
    root: RootOption = None,
) -> None:
    """Read each source and write nothing: counts, first rejects, three pairs as they would be tagged."""
    workspace = current_workspace()
    configure(workspace, sources=manifest, recipe=recipe, data_root=root or None)
    from orchestration.sources_check import print_sources
    from vipolyqwen_core.corpus.manifest import load_manifest
    from vipolyqwen_core.recipes import load_recipe

    if not print_sources(load_manifest(manifest), load_recipe(recipe_setting()), workspace, output):
        raise typer.Exit(1)


def trace(
    sample: Annotated[
        str, typer.Argument(metavar="SAMPLE_ID", help="32 hex digits, the first 6 of them, or FILE:LINE.")
    ],
    sources: SourcesOption = None,
    root: RootOption = None,
) -> None:
    """Tell what happened to a row at each stage; a source behind a login is read with the manifest's."""
    from orchestration.summary import print_trace

    workspace = current_workspace()
    configure(workspace, sources=sources, data_root=root or None)
    print_trace(sample, workspace, output)


def rollback(version: Annotated[int, typer.Argument(help="The registered version to go back to.")]) -> None:
    """Make an earlier version champion again and export with it."""
    from orchestration.factory import run_rollback

    workspace = current_workspace()
    with _told(workspace) as console:
        run_rollback(workspace, recipe_setting(), version, console)
        console.print(
            f"Version {version} is champion, and the table in {workspace.exports} is its own.",
            soft_wrap=True,
            markup=False,
        )


def ui(
    sources: SourcesOption = None,
    recipe: RecipeOption = None,
    root: RootOption = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of Dagster.")] = 3000,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Port of MLflow.")
    ] = DEFAULT_MLFLOW_PORT,
) -> None:
    """Serve Dagster and MLflow over the workspace, until Ctrl-C."""
    workspace = current_workspace()
    configure(workspace, sources=sources, recipe=recipe, data_root=root or None)
    from orchestration.definitions import build_definitions
    from orchestration.servers import serve
    from vipolyqwen_core.recipes import load_recipe

    try:  # served all the same: what is there can be looked at, and a file be mended meanwhile
        load_recipe(recipe_setting())
        build_definitions(workspace, manifest_setting(), recipe_setting())
    except ValueError as error:
        output.print(f"Dagster can run nothing until this is mended: {error}", soft_wrap=True, markup=False)
    serve(workspace, port, mlflow_port, output)
