"""The command line: what a person types, and what a mistake ends in."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

import vipolyqwen_core.__main__ as cli
from vipolyqwen_core.config import ExportSettings, TrainingRun, to_json
from vipolyqwen_core.full_disk import told_of_full_disk
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.serving.vector_file import write_vectors
from vipolyqwen_core.workspace import Workspace

SOURCES = "VIPOLYQWEN_SOURCES"


class TrainingStub(NamedTuple):
    """What the command needs of a run that it launches."""

    output: Path


@pytest.fixture
def vipolyqwen(tmp_path: Path):
    """Runs the command in a folder of its own; returns the finished process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vipolyqwen_core", *arguments],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("VIPOLYQWEN")},
                "COLUMNS": "200",
                "DAGSTER_HOME": "",
                "MLFLOW_TRACKING_URI": "",
                **environment,
            },
            capture_output=True,
            text=True,
        )

    return run


def test_help_lists_every_command(vipolyqwen) -> None:
    shown = vipolyqwen("--help")
    assert shown.returncode == 0
    core, factory = "encode search train evaluate export", "demo run sources trace rollback ui"
    for command in f"{core} {factory}".split():
        assert command in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner\n"
        "import vipolyqwen_core.__main__ as cli; cli.mount_factory()\n"
        "assert CliRunner().invoke(cli.app, ['run', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'dagster', 'mlflow', 'polars', 'numpy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stderr


def test_version(vipolyqwen) -> None:
    assert vipolyqwen("--version").stdout.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["encode"], 2, "nothing to encode"),
        (["encode", "a", "b", "--image", "x.png"], 2, "pictures go with one text"),
        (["encode", "a", "--out", "v.parquet"], 2, "--out v.parquet: vectors are written as NumPy's .npy"),
        (["encode", "--file", "nowhere.txt"], 1, "nowhere.txt does not exist"),
        (["encode", "--file", "."], 1, ". cannot be used: Is a directory"),
        (["encode", "a", "--prefix", "song"], 2, "song"),
        (["search"], 2, "nothing to look for"),
        (["search", "a", "--words", "--prefix", "ocr"], 2, "without picture or prefix"),
        (["search", "a"], 1, "nothing was exported yet"),
        (["train", "--recipe", "grand"], 1, "unknown recipe 'grand'"),
        (["train", "--config", "nowhere.json"], 1, "nowhere.json does not exist"),
        (["evaluate", "nowhere"], 1, "does not exist"),
        (["export", "m", "--model-version", "lancedb"], 1, "'lancedb' cannot name a folder"),
        (["run", "--sources", "nowhere.yaml"], 1, "manifest"),
        (["run", "--sources", "."], 1, "is no file"),
        (["ui", "--port", "99999"], 2, "65535"),
        (["sources", "check", "nowhere.yaml"], 1, "nowhere.yaml does not exist"),
        (["dance"], 2, "No such command"),
    ],
)
def test_a_mistake_ends_in_one_sentence(vipolyqwen, arguments: list[str], code: int, sentence: str) -> None:
    ended = vipolyqwen(*arguments)
    assert ended.returncode == code, ended.stderr
    assert sentence in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_file_that_is_no_text_is_named(vipolyqwen, tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(b"ab\xff\xfe")
    ended = vipolyqwen("encode", "--file", "picture.txt")
    assert ended.returncode == 1
    assert "picture.txt is no text in UTF-8: byte 2" in ended.stderr


def test_a_rival_that_is_no_model_is_refused_before_any_work(vipolyqwen, tmp_path: Path) -> None:
    run = TrainingRun(
        recipe=demo(), backbone=tmp_path, training_set=tmp_path / "none", output=tmp_path / "run"
    )
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "run" / "run.json").write_text(to_json(run))
    ended = vipolyqwen("evaluate", "run", "--champion", "rival")
    assert ended.returncode == 1
    assert "rival is no model directory" in ended.stderr


def test_an_evaluation_by_hand_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(recipe=demo(), backbone=tmp_path, training_set=tmp_path, output=tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text(to_json(run))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("vipolyqwen_core.evaluation.evaluate.evaluate", lambda *_, **more: told.append(more))
    monkeypatch.setattr("vipolyqwen_core.terminal.evaluation_tables", lambda _: "")
    monkeypatch.setattr("vipolyqwen_core.terminal.print_verdict", lambda *_: None)
    cli.evaluate(run=tmp_path, champion=tmp_path / "model", out=tmp_path / "out")
    assert told == [{"decides": False}]


def test_lines_to_encode_end_where_lines_of_a_corpus_do(tmp_path: Path) -> None:
    lines = ["mot\u2028hai", "ba\x0cbon", "nam\x85sau", "bay"]
    text = f"\ufeff{lines[0]}\r\n{lines[1]}\n \n{lines[2]}\n{lines[3]}"
    (tmp_path / "texts.txt").write_bytes(text.encode())
    assert cli._lines(tmp_path / "texts.txt") == lines


def test_settings_out_of_range_are_named_without_jargon() -> None:
    with pytest.raises(ValueError, match="batch_tokens") as caught:
        ExportSettings(batch_tokens=0)
    sentence = cli.one_sentence(caught.value)
    assert sentence == "batch_tokens: Input should be greater than 0 (given: '0')"


def test_what_a_message_quotes_of_a_corpus_is_no_command_to_the_terminal() -> None:
    assert cli.one_sentence(ValueError("a\x1b]0;b\x07.jsonl: [red]")) == "a\ufffd]0;b\ufffd.jsonl: \\[red]"


def test_ctrl_c_ends_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(file: Path) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_lines", stop)
    monkeypatch.setattr(cli, "configure", lambda workspace: None)
    ended = CliRunner().invoke(cli.app, ["encode", "--file", "lines.txt"])
    assert ended.exit_code == 130
    assert ended.stderr == "Interrupted.\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "report.html"),
        RuntimeError("LanceError(IO): No space left on device (os error 28)"),
        ValueError("sqlite3.OperationalError: database or disk is full"),
    ],
    ids=["system", "library", "database"],
)
def test_a_full_disk_ends_in_a_sentence_with_what_is_free_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    monkeypatch.setattr(cli, "configure", lambda workspace: None)
    monkeypatch.setattr("vipolyqwen_core.training.run_file.read_run", fails)
    told = CliRunner().invoke(cli.app, ["evaluate", "run"])
    assert told.exit_code == 1
    assert "; free now: " in told.stderr
    assert f" GB in {tmp_path}, " in told.stderr
    assert told.stderr.endswith(". Make room: the same command goes on\n")
    assert told.stderr.count("\n") == 1


def test_a_full_disk_is_told_where_temporary_files_have_no_room_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    told = told_of_full_disk(OSError(errno.ENOSPC, "No space left on device"), Workspace(tmp_path))
    assert told.startswith("; free now: ")
    assert f" GB in {tmp_path}" in told


def test_a_full_disk_apart_from_the_workspace_is_told_of(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out" / "v.npy"))
    (tmp_path / "out").mkdir()
    assert f" GB in {tmp_path / 'out'}, " in told_of_full_disk(error, Workspace(tmp_path / "home"))
    assert f" GB in {tmp_path / 'out'}" not in told_of_full_disk(error, Workspace(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "place", "extra"),
    [
        (["encode", "a"], "vipolyqwen_core.serving.current_export.read_current", "search"),
        (["prune"], "vipolyqwen_core.pruning.leftovers", "search"),
        (["evaluate", "run"], "vipolyqwen_core.training.run_file.read_run", "train"),
    ],
)
def test_a_command_that_lacks_a_package_names_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], place: str, extra: str
) -> None:
    def lacks(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'absent_package'", name="absent_package.part")

    monkeypatch.setattr(place, lacks)
    monkeypatch.setattr(cli, "configure", lambda workspace: None)
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(tmp_path))
    ended = CliRunner().invoke(cli.app, arguments)
    assert ended.exit_code == 1
    assert ended.stderr == (
        f"error: No module named 'absent_package', which the extra `{extra}` brings: "
        f"pip install '.[{extra}]' in the checkout, or 'WHEEL[{extra}]'\n"
    )


def test_a_command_in_a_folder_that_is_gone_ends_in_a_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    program = (
        "import os; from vipolyqwen_core.__main__ import app\n"
        f"os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
        "app(['search', 'a'])"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("VIPOLYQWEN")}
    own["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    # -P: the installed command does not import from the current folder either
    ended = subprocess.run([sys.executable, "-P", "-c", program], env=own, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr


def test_a_training_alone_has_the_weights_of_the_manifest_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text("sources: [{name: shop, format: owner_jsonl, paths: [a.jsonl], weight: 3.0}]")
    weights: list[dict[str, float]] = []
    monkeypatch.setattr(cli, "configure", lambda _, sources=None: monkeypatch.setenv(SOURCES, sources))
    monkeypatch.setattr("vipolyqwen_core.model.backbone.resolve_backbone", lambda *_: tmp_path)
    monkeypatch.setattr(
        "vipolyqwen_core.training.identity.identified_run",
        lambda workspace, recipe, backbone, given, place: weights.append(given) or TrainingStub(tmp_path),
    )
    monkeypatch.setattr("vipolyqwen_core.training.launch.launch", lambda run: None)
    cli.train(sources=str(manifest))
    assert weights == [{"shop": 3.0}]


def test_debug_shows_the_traceback(vipolyqwen) -> None:
    ended = vipolyqwen("--debug", "search", "a")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_nothing_is_written_where_nothing_was_done(vipolyqwen, tmp_path: Path) -> None:
    vipolyqwen("search", "a")
    assert list(tmp_path.iterdir()) == []


def test_encode_writes_unit_vectors(vipolyqwen, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("một câu\n\nmột câu khác\n", encoding="utf-8")
    texts = ["a sentence", "--file", "lines.txt"]
    ended = vipolyqwen("encode", *texts, "--model", str(tiny_model_dir), "--out", "out [vi]/v.npy")
    assert ended.returncode == 0, ended.stderr
    vectors = np.load(tmp_path / "out [vi]" / "v.npy")
    assert len(vectors) == 3
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert str(tmp_path / "out [vi]" / "v.npy") in ended.stdout


@pytest.mark.parametrize("name", ["vectors", "V.NPY"])
def test_vectors_are_written_under_the_name_that_was_asked_for(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(cli.app, ["encode", "a", "--model", str(tiny_model_dir), "--out", name])
    assert ended.exit_code == 0, ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.load(tmp_path / name).shape[0] == 1


def test_a_full_disk_leaves_the_vectors_of_before_and_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    out = tmp_path / "out [vi].npy"
    left_over = tmp_path / ".out [vi].npy.0-0.ab.partial"  # of a process that was killed
    for file in (out, left_over):
        file.write_bytes(b"before")
    texts = [str(number) for number in range(40)]
    limited = f"ulimit -f 8; exec {sys.executable} -m vipolyqwen_core encode {' '.join(texts)} --model "
    ended = subprocess.run(
        ["bash", "-c", f"{limited} {tiny_model_dir} --out '{out.name}'"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stderr
    assert f"error: {out} cannot be used: File too large" in ended.stderr
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("is_link", [True, False], ids=["link", "pipe"])
def test_vectors_go_where_a_link_leads_and_into_a_pipe(tmp_path: Path, is_link: bool) -> None:
    vectors, file = np.eye(3, dtype=np.float32), tmp_path / "v.npy"
    if is_link:
        (tmp_path / "link").symlink_to(file)
        write_vectors(tmp_path / "link", vectors)
        assert (tmp_path / "link").is_symlink()
        found = file.read_bytes()
    else:
        reader, writer = os.pipe()
        write_vectors(Path(f"/dev/fd/{writer}"), vectors)
        os.close(writer)
        with open(reader, "rb") as pipe:
            found = pipe.read()
    np.testing.assert_array_equal(np.load(io.BytesIO(found)), vectors)


@pytest.mark.parametrize("out", ["folder", "file/v.npy"])
def test_a_place_that_takes_no_result_is_named_before_any_work(vipolyqwen, tmp_path: Path, out: str) -> None:
    (tmp_path / "folder" / "report.html").mkdir(parents=True)
    (tmp_path / "file").touch()
    ended = vipolyqwen("encode", "a", "--model", "nowhere", "--out", out)
    assert ended.returncode == 1
    assert f"{out} cannot be written: look at" in ended.stderr

    run = TrainingRun(recipe=demo(), backbone=Path("b"), training_set=Path("t"), output=Path("run"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "run" / "run.json").write_text(to_json(run))
    ended = vipolyqwen("evaluate", "run", "--out", out)
    assert ended.returncode == 1
    assert f"{out}/report.html cannot be written" in ended.stderr


def test_unreadable_sources_are_refused_before_any_work(vipolyqwen, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "manifest.yaml").write_text(
        "sources:\n"
        "- {name: gone, format: alpaca, task: instr, paths: gone.json}\n"
        "- {name: empty, format: owner_jsonl, paths: empty.jsonl}\n"
    )
    for command in (["run", "--sources", "manifest.yaml"], ["sources", "check", "manifest.yaml"]):
        ended = vipolyqwen(*command)
        said = " ".join((ended.stdout + ended.stderr).split())
        assert ended.returncode == 1
        assert "source 'gone': there is no file" in said
        assert "source 'empty': file" in said
        assert "is empty" in said
        assert not list(tmp_path.glob(".vipolyqwen/curated*"))
