"""USAGE.md is true: its snippets run, its commands and keys exist, its manifest and its samples are read."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from dagster._config import Shape, validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from PIL import Image

from orchestration.instance import SETTINGS
from tests.mlflow_store import mlflow_store, register_model
from vipolyqwen_core import workspace as workspace_module
from vipolyqwen_core.config import Recipe
from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import COLUMNS_OF_FORMAT, Format, Source, load_manifest
from vipolyqwen_core.recipes import RECIPES
from vipolyqwen_core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
USAGE = (ROOT / "USAGE.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|`|bin/)vipolyqwen ([^`\n]*)", re.MULTILINE)


def blocks(language: str, label: str = "") -> list[str]:
    """The fenced blocks of a language that carry a label."""
    found = [text for spoken, named, text in BLOCK.findall(USAGE) if (spoken, named) == (language, label)]
    assert found, (language, label)
    return found


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model` and the pictures that the snippets name, as the current one."""
    from vipolyqwen_core.serving.model_card import ModelFacts
    from vipolyqwen_core.serving.model_directory import complete_model_directory

    shutil.copytree(tiny_model_dir, tmp_path / "model")
    complete_model_directory(tmp_path / "model", ModelFacts("usage", "demo", "tiny", "none"))
    for number, name in enumerate(("hoa_don.png", "pho.jpg", "q1.png", "q2.png")):
        Image.new("RGB", (60 + 10 * number, 50), (40 * number, 90, 200)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(snippets: list[str], names: dict[str, object]) -> dict[str, object]:
    """Execute snippets one after the other in one namespace."""
    for number, snippet in enumerate(snippets, start=1):
        exec(compile(snippet, f"USAGE.md, snippet {number}", "exec"), names)
    return names


def test_the_snippets_run_in_order_and_agree(folder: Path):
    names = run(blocks("python"), {})
    for name in ("chunk", "page", "photo", "dish", "report", "total", "what", "trend", "answer", "refined"):
        assert np.linalg.norm(names[name]) == pytest.approx(1.0, abs=1e-5), name
    assert names["similarities"].shape == (3, 3)
    assert names["albums"].shape == names["gallery"].shape == (2, 64)
    assert names["short"].shape == (3, 32)
    # the same item by embedder, transformers and sentence-transformers
    embedder = names["embedder"]
    assert np.allclose(names["unit_vectors"][0].numpy(), embedder.encode("một câu"), atol=1e-5)
    assert np.allclose(names["embeddings"][0], embedder.encode("một câu"), atol=1e-5)
    assert np.allclose(names["pictures"][0], names["photo"], atol=1e-5)
    assert np.allclose(
        names["asked"], embedder.encode("Tổng cộng là bao nhiêu?", "hoa_don.png", "ocr"), atol=1e-5
    )


def test_the_mlflow_snippet_serves_the_champion(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import mlflow

    from vipolyqwen_core.contract import CHAMPION, REGISTERED_MODEL

    monkeypatch.setenv("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
    with mlflow_store(f"sqlite:///{folder / 'mlflow.db'}"):
        experiment = mlflow.create_experiment("usage", artifact_location=(folder / "artifacts").as_uri())
        version = register_model(folder / "model", experiment).registered_model_version
        mlflow.MlflowClient().set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
        names = run([blocks("python")[0], *blocks("python", "mlflow")], {})
    served, embedder = np.stack(names["embeddings"]["embedding"]), names["embedder"]
    assert np.allclose(served[0], embedder.encode("giá xăng hôm nay"), atol=1e-5)
    assert np.allclose(served[1], embedder.encode(images="hoa_don.png"), atol=1e-5)
    assert np.allclose(served[2], embedder.encode("Tổng cộng là bao nhiêu?", "hoa_don.png", "ocr"), atol=1e-5)


def test_the_search_snippet_finds_what_was_exported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from tests.core.small_training_set import some_pairs, write_training_set
    from vipolyqwen_core.config import ExportSettings
    from vipolyqwen_core.serving.export import export

    workspace = Workspace(folder / "home")
    write_training_set(workspace.training_set, some_pairs())
    export(workspace.training_set, folder / "model", "1", workspace, ExportSettings())
    monkeypatch.setenv("VIPOLYQWEN_HOME", str(workspace.home))
    names = run(blocks("python", "workspace"), {})
    assert names["hits"]
    assert names["rows"]
    assert all(row["side"] == "target" for row in names["rows"])
    assert all((hit.language, hit.side) == ("vi", "target") for hit in names["hits"])
    assert len(capsys.readouterr().out.splitlines()) == len(names["hits"])


def test_every_command_and_option_exists():
    from vipolyqwen_core.__main__ import app, mount_factory

    mount_factory()
    group = typer.main.get_command(app)
    lines = COMMAND.findall(USAGE)
    assert len(lines) > 12
    for line in lines:
        command, words = group, line.split()
        for word in list(words):
            if word.startswith("-"):
                break
            if hasattr(command, "commands"):
                assert word in command.commands, f"`vipolyqwen {line}`: no command {word}"
                command = command.commands[word]
        options = {name for parameter in [*command.params, *group.params] for name in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in options, f"`vipolyqwen {line}`: no option {word}"


def test_the_manifest_loads_and_the_tables_name_every_key_and_format(tmp_path: Path):
    (manifest,) = blocks("yaml", "manifest")
    (tmp_path / "corpora.yaml").write_text(manifest, encoding="utf-8")
    loaded = load_manifest(tmp_path / "corpora.yaml")
    assert {source.format for source in loaded.sources} == set(Format)
    for field in dataclasses.fields(Source):
        assert f"| `{field.name}` |" in USAGE, field.name
    for kind in Format:
        row = re.findall(rf"^\| `{kind.value}` \|.*\n", USAGE, re.MULTILINE)[-1]  # `adapter` is a key, too
        shared = {"group_id", "positive_key", "negatives"} if "three" in row else set()
        for column in COLUMNS_OF_FORMAT[kind] - shared:
            assert f"`{column}`" in row, (kind, column)


def test_the_samples_of_the_owners_format_are_read(tmp_path: Path):
    from vipolyqwen_core.corpus.readers import read_source

    (samples,) = blocks("json", "owner")
    (tmp_path / "samples.jsonl").write_text(samples, encoding="utf-8")
    source = Source(name="ours", format=Format.OWNER_JSONL, paths=(str(tmp_path / "samples.jsonl"),))
    records = list(read_source(source))
    assert all(record.rejection is None for record in records)
    assert {pair.task for record in records for pair in record.pairs} == set(Task)


def test_the_adapter_reads_what_it_was_written_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vipolyqwen_core.corpus.readers import read_source

    (adapter,) = blocks("python", "adapter")
    (tmp_path / "usage_readers.py").write_text(adapter, encoding="utf-8")
    pages = [{"scan": "1.png", "text": "Điều 1"}, {"scan": "2.png", "text": ""}]
    (tmp_path / "pages.json").write_text(json.dumps(pages), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    source = Source(
        name="scans",
        format=Format.ADAPTER,
        adapter="usage_readers:scans",
        paths=(str(tmp_path / "pages.json"),),
    )
    read, rejected = read_source(source)
    assert read.pairs[0].target == "Điều 1"
    assert rejected.rejection is not None
    assert rejected.rejection.rule == "empty_page"
    sys.modules.pop("usage_readers")


def test_the_suites_are_read_as_the_manifest_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from quality.own_suites import own_suites

    (manifest,), (entries,) = blocks("yaml", "manifest"), blocks("yaml", "suites")
    (tmp_path / "corpora.yaml").write_text(manifest + entries, encoding="utf-8")
    (tmp_path / "receipts.yaml").write_text(blocks("yaml", "suite")[0], encoding="utf-8")
    (tmp_path / "my_suites.py").write_text(blocks("python", "suite")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_manifest(tmp_path / "corpora.yaml")
    suites = own_suites(loaded)
    sys.modules.pop("my_suites")
    assert [(suite.name, suite.check) for suite in suites] == [
        ("receipts_say_what_was_paid", "receipts"),
        ("chats_are_polite", "chats"),
    ]
    assert [len(suite.expectations) for suite in suites] == [2, 1]


def test_the_recipe_snippet_makes_a_recipe_and_the_table_names_all():
    names = run(blocks("python", "recipe"), {})
    recipe = names["receipts"]()
    assert isinstance(recipe, Recipe)
    assert recipe.model.matryoshka_dims == (512, 256)
    assert names["mined"]().mining.negatives_per_pair == 1
    for name in RECIPES:
        assert f"| `{name}` |" in USAGE


def test_dagster_takes_the_settings_for_more_machines_beside_ours():
    (snippet,) = blocks("yaml", "dagster")
    settings = yaml.safe_load(snippet)
    told = validate_config(Shape(dagster_instance_config_schema()), {**SETTINGS, **settings})
    assert told.success, told.errors
    passed_on = settings["run_launcher"]["config"]["ray"]["env_vars"]
    assert {*passed_on} == {
        *re.findall(r"^\| `([A-Z_]+)` \|", USAGE, re.MULTILINE),
        settings["storage"]["postgres"]["postgres_db"]["password"]["env"],
    } - {"VIPOLYQWEN_TIME_ZONE", "VIPOLYQWEN_ON_FAILURE"}  # of sensors and schedules


def test_every_snippet_is_run_by_some_test_and_every_link_leads_somewhere():
    labels = {(language, label) for language, label, _ in BLOCK.findall(USAGE)}
    assert labels == {
        ("python", ""),
        ("python", "mlflow"),
        ("python", "workspace"),
        ("python", "adapter"),
        ("python", "recipe"),
        ("yaml", "manifest"),
        ("yaml", "suites"),
        ("yaml", "suite"),
        ("yaml", "dagster"),
        ("python", "suite"),
        ("json", "owner"),
        ("bash", ""),
        ("text", ""),
    }
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", USAGE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", USAGE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_layout_and_the_variables_are_those_of_the_workspace(tmp_path: Path):
    workspace = Workspace(tmp_path)
    (layout,) = blocks("text")
    paths = [value for name in dir(Workspace) if isinstance(value := getattr(workspace, name), Path)]
    paths += [part("SOURCE") for part in (workspace.images, workspace.curated, workspace.tagged)]
    paths += [workspace.validated("SOURCE")]
    for path in paths:
        if path.is_relative_to(tmp_path) and path != tmp_path:
            first, *rest = path.relative_to(tmp_path).parts
            line = next(line for line in layout.splitlines() if first in line)
            assert all(part in line for part in rest), path
    for variable in re.findall(r"^([A-Z_]{6,}) ", workspace_module.__doc__ or "", re.MULTILINE):
        assert f"| `{variable}` |" in USAGE, variable
