"""What keeps the factory from running, and who is told how it ended."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import dagster as dg
import pytest
from rich.console import Console

from assets.training_set import HOST_TAG
from orchestration.definitions import build_definitions
from orchestration.factory import (
    FactoryError,
    alone,
    execute,
    refuse_failure,
    refuse_while_in_use,
    run_factory,
)
from orchestration.instance import PARTITION_TAG, open_instance
from vipolyqwen_core.workspace import Workspace

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


@pytest.mark.parametrize(
    ("raised", "told"),
    [(dg.DagsterExecutionInterruptedError(), KeyboardInterrupt), (ValueError("no"), FactoryError)],
)
def test_whoever_stops_a_run_is_told_of_no_failure(raised: BaseException, told: type[BaseException]) -> None:
    @dg.asset
    def training_set() -> None:
        raise raised

    result = dg.materialize([training_set], raise_on_error=False)
    with pytest.raises(told):
        refuse_failure(result, None)


@pytest.mark.parametrize("heeded", [signal.SIG_DFL, signal.default_int_handler])
def test_sigterm_is_heeded_between_two_jobs_as_before_them(heeded: Handler) -> None:
    """Also in a shell's background job, which ignores SIGINT."""
    during = []

    @dg.op
    def look() -> None:
        during.append(signal.getsignal(signal.SIGTERM))

    @dg.job
    def corpus() -> None:
        look()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, heeded)
        with dg.DagsterInstance.ephemeral() as instance:
            assert execute(corpus, instance, []).success
        after = signal.getsignal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert after is heeded
    assert during[0] not in (signal.SIG_IGN, heeded), "Dagster's own, while it is at work"


def test_a_command_is_refused_while_another_run_needs_the_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace, console = Workspace(tmp_path), Console(quiet=True)
    model = build_definitions(workspace, None, "demo").resolve_job_def("model")
    with open_instance(workspace) as instance:
        tags = {**model.run_tags, HOST_TAG: "pod-1"}
        run = instance.create_run_for_job(model, tags=tags, status=dg.DagsterRunStatus.STARTED)
        with pytest.raises(FactoryError, match=f"run {run.run_id[:8]} of model needs it, on pod-1: wait"):
            run_factory(workspace, None, "demo", console)
        assert [run.job_name for run in instance.get_runs()] == ["model"]


def test_a_command_of_the_same_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace, console = Workspace(tmp_path), Console(quiet=True)
    at_it = rf"another one \(process {os.getpid()}\) is at it: wait for it, or stop it"
    first = build_definitions(workspace, None, "demo").resolve_job_def("corpus").partitions_def
    assert first is not None
    name = first.get_first_partition_key()
    with alone(workspace, name), alone(workspace, None):
        with pytest.raises(FactoryError, match=f"source {name} is rebuilt by this command, and {at_it}"):
            run_factory(workspace, None, "demo", console)
        with (
            pytest.raises(FactoryError, match=f"the training set is rebuilt .* {at_it}"),
            alone(workspace, None),
        ):
            pass
    with alone(workspace, name), open_instance(workspace) as instance:
        assert not instance.get_runs()


def test_a_backbone_without_weights_is_refused_before_any_work(tmp_path: Path, tiny_backbone: Path) -> None:
    backbone = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, backbone, ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": "bare", "backbone": str(backbone)}), encoding="utf-8")
    workspace = Workspace(tmp_path / "home")
    with pytest.raises(ValueError, match="has no weights"):
        run_factory(workspace, None, str(recipe), Console(quiet=True))
    assert list(workspace.home.iterdir()) == [workspace.demo_corpus]


def test_a_suite_with_an_unknown_name_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Một", "output": "Hai"}\n', encoding="utf-8")
    (tmp_path / "suite.yaml").write_text(
        "expectations: [{expectation: ExpectColumnValuesToNotBeNull, column: total}]", encoding="utf-8"
    )
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(
        "sources: [{name: rows, task: instr, format: alpaca, paths: [rows.jsonl]}]\n"
        "expectations: [suite.yaml]\n",
        encoding="utf-8",
    )
    workspace = Workspace(tmp_path / "home")
    with pytest.raises(ValueError, match=r"suite\.yaml.*total"):
        run_factory(workspace, str(manifest), "demo", Console(quiet=True))
    assert not workspace.home.exists()


def test_a_file_system_without_links_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(link: Path, _target: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(link))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    place = Workspace(tmp_path / "home")
    with pytest.raises(ValueError, match=rf"symbolic link .* in {place.home} \(Operation not supported\)"):
        run_factory(place, None, "demo", Console(quiet=True))
    assert list(place.home.iterdir()) == [place.demo_corpus]


def test_a_source_that_another_run_curates_is_left_to_it() -> None:
    @dg.job
    def corpus() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(
            corpus, tags={PARTITION_TAG: "demo_ocr"}, status=dg.DagsterRunStatus.STARTED
        )
        refuse_while_in_use(instance, "demo_vqa")
        with pytest.raises(
            FactoryError, match=f"source demo_ocr is rebuilt .* run {run.run_id[:8]} of corpus"
        ):
            refuse_while_in_use(instance, "demo_ocr")
