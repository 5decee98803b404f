"""The command `vipolyqwen`: use and train a model and, from a checkout, run the factory.

Commands import what they need when they run, so that `--help` is fast. A user's mistake ends in a message of
one sentence and exit code 1; `--debug` shows the traceback instead.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from vipolyqwen_core import __version__
from vipolyqwen_core.contract import Task
from vipolyqwen_core.first_process import heed_sigterm
from vipolyqwen_core.full_disk import sign_of_full_disk, told_of_full_disk
from vipolyqwen_core.own_packages import has_factory, put_own_packages_first
from vipolyqwen_core.standard_streams import open_closed_streams, outlive_terminal
from vipolyqwen_core.workspace import (
    Workspace,
    configure,
    current_workspace,
    hide_loading_bars,
    manifest_setting,
    recipe_setting,
)

USER_ERRORS = (ValueError, OSError)
"""What a user can mend: a wrong value, or a file, folder or disk that is not as it should be."""
EXTRAS = {
    **dict.fromkeys(("encode", "search", "export", "mine", "prune"), "search"),
    **dict.fromkeys(("train", "evaluate"), "train"),
}
"""By command, the extra that brings what it needs above the base dependencies; the factory's: `pipeline`."""
OF_THE_FACTORY = ("demo", "run", "sources", "trace", "rollback", "ui")
"""Commands that only a checkout has."""
DEBUG = "debug"

output = Console()
complaints = Console(stderr=True)


class Commands(TyperGroup):
    """Commands whose failures end in one sentence."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named."""
        if args[0] in OF_THE_FACTORY and not has_factory():
            _complain(f"{args[0]!r} is a command of the factory, which runs from its checkout alone")
            raise typer.Exit(1)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if ctx.params.get(DEBUG) or not _is_absent(error):
                raise
            extra = EXTRAS.get(ctx.invoked_subcommand, "pipeline")
            brings = rf"which the extra `{extra}` brings: pip install '.\[{extra}]' in the checkout"
            _complain(rf"{one_sentence(error)}, {brings}, or 'WHEEL\[{extra}]'")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            complaints.print("Interrupted.")
            raise typer.Exit(130) from error
        except Exception as error:
            # whatever a library calls it
            full = told_of_full_disk(error, current_workspace()) if sign_of_full_disk(error) else ""
            if ctx.params.get(DEBUG) or not (full or isinstance(error, USER_ERRORS)):
                raise
            _complain(f"{one_sentence(error)}{escape(full)}")
            raise typer.Exit(1) from error


app = typer.Typer(
    name="vipolyqwen",
    cls=Commands,
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A data-to-model factory for multimodal embeddings.",
)


def _complain(sentence: str) -> None:
    complaints.print(f"[bold red]error:[/] {sentence}", highlight=False, soft_wrap=True)


def _is_absent(error: ModuleNotFoundError) -> bool:
    """Whether a whole package is not installed; else the import is a mistake of ours."""
    return bool(error.name) and find_spec(str(error.name).partition(".")[0]) is None


def one_sentence(error: BaseException) -> str:
    """The message of an error on one line, with rich's markup made harmless."""
    from pydantic import ValidationError

    from vipolyqwen_core.config import explain
    from vipolyqwen_core.terminal import printable

    message = explain(error) if isinstance(error, ValidationError) else str(error)
    message = " ".join(message.split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        gone = isinstance(error, FileNotFoundError)
        message = f"{error.filename} " + ("does not exist" if gone else f"cannot be used: {error.strerror}")
    return escape(printable(message))


@app.callback()
def settle(
    home: Annotated[
        Path | None, typer.Option(help="The workspace; default: VIPOLYQWEN_HOME, else .vipolyqwen here.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """One vector for text, pictures and both."""
    if version:
        output.print(__version__)
        raise typer.Exit
    configure(Workspace(home.expanduser().resolve()) if home else current_workspace())


@app.command()
def encode(
    text: Annotated[list[str] | None, typer.Argument(help="Texts; each is one item.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Picture; with one text they make one item.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A text file; each line with text is an item.")] = None,
    prefix: Annotated[Task | None, typer.Option(help="Task prefix; the everyday use has none.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model directory; default: the model of the exported table.")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Keep only the first dimensions (Matryoshka models).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="At most this many items per batch.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npy to write.")] = Path("embeddings.npy"),
) -> None:
    """Encode texts, pictures, or one text with its pictures, into a .npy of unit vectors."""
    texts = [*(text or []), *(_lines(file) if file else [])]
    pictures = [str(path) for path in image or []]
    if not texts and not pictures:
        raise typer.BadParameter("nothing to encode: give texts, --image or --file")
    if len(texts) > 1 and pictures:
        raise typer.BadParameter(
            f"{len(texts)} texts and {len(pictures)} pictures: pictures go with one text"
        )
    if out.suffix.lower() not in ("", ".npy") and (out.is_file() or not out.exists()):  # a pipe has any name
        raise typer.BadParameter(f"--out {out}: vectors are written as NumPy's .npy, not as {out.suffix}")
    hide_loading_bars()
    if model is None:  # a model of one's own needs the base dependencies alone
        from vipolyqwen_core.serving.current_export import read_current

        model = read_current(current_workspace()).model_directory()
    refuse_unwritable(out)
    import numpy as np

    from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
    from vipolyqwen_core.serving.vector_file import write_vectors

    embedder = ViPolyQwenEmbedder.from_pretrained(model)
    together = bool(texts and pictures)
    vectors = embedder.encode(
        text=texts[0] if together else texts or None,
        images=pictures or None,
        prefix=prefix,
        batch_size=batch_size,
        dim=dim,
        show_progress=not together,
    )
    vectors = np.atleast_2d(vectors)
    write_vectors(out, vectors)
    output.print(
        f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions: {out.resolve()}",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="The query.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture of the query.")] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many hits.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="SQL filter on the table's columns: \"language = 'vi' and side = 'target'\"."),
    ] = None,
    prefix: Annotated[Task | None, typer.Option(help="Task prefix; the everyday use has none.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Search for the words themselves (BM25).")] = False,
) -> None:
    """Search the exported table by text, by pictures, or by both."""
    if not text and not image:
        raise typer.BadParameter("nothing to look for: give a text, --image, or both")
    if words and (image or prefix or not text):
        raise typer.BadParameter("--words looks for a text alone, without picture or prefix")
    from vipolyqwen_core.serving.current_export import read_current

    workspace = current_workspace()
    read_current(workspace)  # says that nothing was exported before seconds of imports
    hide_loading_bars()
    from vipolyqwen_core.serving import search as searching
    from vipolyqwen_core.terminal import hits_table

    if words:
        hits = searching.search_words(workspace, text or "", top, where)
    else:
        hits = searching.search(workspace, text, [str(path) for path in image or []], top, where, prefix)
    what = " + ".join([*([repr(text)] if text else []), *(str(path) for path in image or [])])
    output.print(hits_table(hits, f"{len(hits)} hits for {what}"))
    output.print(f"Table: {workspace.lancedb}", soft_wrap=True, markup=False)


@app.command()
def mine(
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Recipe; default: VIPOLYQWEN_RECIPE, else demo.")
    ] = None,
) -> None:
    """Mine hard negatives for the training set with the model of the exported table."""
    from vipolyqwen_core.recipes import load_recipe

    settings = load_recipe(recipe or recipe_setting())
    hide_loading_bars()
    from vipolyqwen_core.mining.mine import mine as mine_negatives

    workspace = current_workspace()
    found = mine_negatives(workspace, settings).details
    told = (
        f"{found['negatives']:,} hard negatives for {found['pairs_with_negatives']:,} pairs, found by model "
        f"version {found['teacher']}"
        if found["teacher"]
        else "Nothing was exported yet, so no model could find any: training goes without"
    )
    output.print(f"{told}: {workspace.hard_negatives}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="A run.json, in place of recipe and training set.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Recipe; default: VIPOLYQWEN_RECIPE, else demo.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option("--sources", "-s", help="Manifest with weights; else VIPOLYQWEN_SOURCES.")
    ] = None,
    training_set: Annotated[Path | None, typer.Option(help="Training set; default: the workspace's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, train nothing.")] = False,
    pairs_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Rate for the time estimate of a dry run.")
    ] = None,
    machines: Annotated[int, typer.Option(min=1, help="Machines that a dry run reckons with.")] = 1,
) -> None:
    """Train on a training set by `accelerate launch`; a run that was interrupted resumes."""
    from vipolyqwen_core.recipes import load_recipe
    from vipolyqwen_core.training.identity import identified_run
    from vipolyqwen_core.training.result import read_result
    from vipolyqwen_core.training.run_file import RUN_FILE, read_run, write_run

    workspace = current_workspace()
    configure(workspace, sources=sources)
    if config is not None:
        run = read_run(config)
    else:
        settings = load_recipe(recipe or recipe_setting())
        from vipolyqwen_core.model.backbone import resolve_backbone

        backbone = resolve_backbone(settings.backbone, workspace)
        run = identified_run(workspace, settings, backbone, source_weights(), training_set)
    finished = read_result(run.output) is not None
    if dry_run:
        from vipolyqwen_core.training.dry_run import describe

        output.print(describe(run, pairs_per_second, machines), highlight=False, soft_wrap=True, markup=False)
        if config is None:  # several machines are started by hand, on this file
            file = run.output / RUN_FILE if finished else write_run(run)
            output.print(f"The run's settings: {file}", soft_wrap=True, markup=False)
        return
    from vipolyqwen_core.training.launch import TrainingFailed, launch

    try:
        launch(run)
    except TrainingFailed as error:  # the ranks have printed their tracebacks
        raise ValueError(str(error).splitlines()[0]) from error
    if finished:
        output.print("This run was finished before.")
    output.print(f"Model: {run.output / 'model'}", soft_wrap=True, markup=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    champion: Annotated[Path | None, typer.Option(help="Model directory to compare with.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the report.")] = None,
) -> None:
    """Evaluate a trained model against chance, BM25 and its untrained self.

    The factory's own evaluation of the run, which decides about promotion, is not touched.
    """
    from vipolyqwen_core.evaluation import REPORT_FILE
    from vipolyqwen_core.training.result import MODEL_FOLDER
    from vipolyqwen_core.training.run_file import RUN_FILE, read_run

    settings = read_run(run / RUN_FILE)
    for model in (run / MODEL_FOLDER, champion):
        if model is not None and not (model / "config.json").is_file():  # said before minutes of encoding
            raise ValueError(f"{model} is no model directory: it has no config.json")
    out = out or current_workspace().evaluations / f"{settings.run_name}-alone"
    refuse_unwritable(out / REPORT_FILE)
    hide_loading_bars()
    from vipolyqwen_core.evaluation.evaluate import evaluate as judge
    from vipolyqwen_core.terminal import evaluation_tables, print_verdict

    evaluation = judge(settings, run / MODEL_FOLDER, champion, out, decides=False)
    output.print(evaluation_tables(evaluation))
    print_verdict(evaluation, output)
    output.print(f"Report: {out / REPORT_FILE}", soft_wrap=True, markup=False)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    model_version: Annotated[str, typer.Option(help="Version that the table records.")],
    training_set: Annotated[Path | None, typer.Option(help="Training set; default: the workspace's.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per batch.")] = 16_384,
    compile_layers: Annotated[
        bool, typer.Option("--compile-layers", help="Compile the layers: slow to start, then faster.")
    ] = False,
) -> None:
    """Encode a training set's pairs into Parquet and the LanceDB table that `search` reads."""
    hide_loading_bars()
    from vipolyqwen_core.config import ExportSettings
    from vipolyqwen_core.serving.export import export as write

    workspace = current_workspace()
    settings = ExportSettings(batch_tokens=batch_tokens, compile_layers=compile_layers)
    summary = write(training_set or workspace.training_set, model, model_version, workspace, settings)
    output.print(
        f"{summary.rows:,} rows: {summary.encoded:,} were encoded now, {summary.deleted:,} others deleted",
        highlight=False,
    )
    output.print(f"Parquet: {summary.parquet}", soft_wrap=True, markup=False)
    output.print(f"Table:   {summary.table}", soft_wrap=True, markup=False)


@app.command()
def prune(yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False) -> None:
    """Delete what retraining leaves behind: checkpoints of finished runs, vectors of earlier versions."""
    from rich.filesize import decimal

    from vipolyqwen_core import pruning

    workspace = current_workspace()
    found = pruning.leftovers(workspace)
    for leftover in found:
        told = f"{leftover.path}: {decimal(leftover.num_bytes)}, {leftover.what}"
        output.print(told, highlight=False, soft_wrap=True, markup=False)
    for kept in pruning.unfinished(workspace):
        told = f"kept: {kept.path}: {decimal(kept.num_bytes)}, {kept.what}"
        output.print(told, highlight=False, soft_wrap=True, markup=False)
    if not found:
        output.print("Nothing is left over.")
        return
    size = decimal(sum(leftover.num_bytes for leftover in found))
    if yes or typer.confirm(f"Delete {size}?"):
        deleted = pruning.prune(found, workspace)
        size = decimal(sum(leftover.num_bytes for leftover in deleted))
        output.print(f"{size} were deleted.", highlight=False)


def refuse_unwritable(file: Path) -> None:
    """Say before minutes of encoding that its result has no place; leaves nothing behind.

    Raises:
        ValueError: it is a folder, or below a file, or this user may not write there
    """
    there = next(place for place in (file, *file.absolute().parents) if place.exists())
    written = [there, there.resolve().parent] if there.is_file() else [there]  # a file is replaced
    if there.is_dir() == (there == file) or not all(os.access(place, os.W_OK) for place in written):
        raise ValueError(f"{file} cannot be written: look at {there}, what it is and who may write there")


def source_weights() -> dict[str, float]:
    """Weights by source, of the manifest that is set; 1.0 for each where none is."""
    from vipolyqwen_core.corpus.manifest import load_manifest

    path = manifest_setting()
    return {} if path is None else {source.name: source.weight for source in load_manifest(path).sources}


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty; they end where those of a corpus do.

    Raises:
        ValueError: it is not UTF-8
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: byte {error.start} cannot be read") from error
    return [line for line in text.split("\n") if line.strip()]


def main() -> None:
    """Entry point."""
    heed_sigterm()
    open_closed_streams()
    outlive_terminal()
    put_own_packages_first()
    mount_factory()
    app()


def mount_factory() -> None:
    """Add the factory's commands where its packages lie beside this one: the sole look upward."""
    if has_factory():
        import_module("orchestration.commands").mount(app)


if __name__ == "__main__":
    main()
