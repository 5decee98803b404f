"""Which stored evaluation is reused, and on which one a promotion may rest."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from assets.evaluation_report import (
    champion_of_then,
    evaluation_basis,
    evaluation_metadata,
    evaluation_report,
    is_of_other_split,
    judged_evaluation,
    read_basis,
    stored_evaluation,
    write_basis,
)
from assets.registered_model import MAX_DESCRIPTION_CHARS, described
from assets.registry import Version
from assets.resources import ManifestResource, MlflowResource, RecipeResource, WorkspaceResource
from tests.core.small_evaluation import evaluation as of_pools
from tests.core.small_evaluation import pool
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.promotion import Decision
from vipolyqwen_core.evaluation.results import (
    BM25,
    PLAIN,
    TRAINED,
    UNTRAINED,
    Evaluation,
    SimilarityResult,
    Verdict,
)
from vipolyqwen_core.recipes import demo
from vipolyqwen_core.workspace import Workspace

RUN = "demo-1"


def evaluation(mrr: float = 0.5) -> Evaluation:
    return Evaluation(
        run_name=RUN,
        model="model",
        champion=None,
        data_version="d",
        num_rows=1,
        rows_by_task={},
        primary_metric="mrr@10",
        primary={TRAINED: mrr, UNTRAINED: 0.1, BM25: 0.2},
        enough=True,
        gain_over_untrained=Interval(0.4, 0.3, 0.5),
        gain_over_champion=None,
        pools=(),
        cross_lingual=(),
        similarities=(),
        matryoshka={},
        verdict=Verdict(True, (), ()),
        seconds=1.0,
    )


def basis(champion: int | None) -> dict[str, Any]:
    model = None if champion is None else f"model-{champion}"
    return {"version": 1, "result": "r", "champion": champion, "champion_model": model, "apart": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation that was held against version 3."""
    evaluation().write(tmp_path)
    write_basis(tmp_path, basis(3))
    (tmp_path / "report.html").touch()
    return tmp_path


def test_an_evaluation_is_reused_on_the_same_basis(folder: Path) -> None:
    assert stored_evaluation(folder, basis(3), settled=False) == evaluation()
    assert stored_evaluation(folder, {**basis(3), "result": "other"}, settled=False) is None
    (folder / "report.html").unlink()
    assert stored_evaluation(folder, basis(3), settled=False) is None


def test_a_later_champion_reopens_the_judgement_only_before_registration(folder: Path) -> None:
    elsewhere = {**basis(3), "champion_model": "of another registry"}
    assert stored_evaluation(folder, elsewhere, settled=False) is None
    assert stored_evaluation(folder, elsewhere, settled=True) == evaluation()
    assert stored_evaluation(folder, basis(4), settled=False) is None
    assert stored_evaluation(folder, basis(4), settled=True) == evaluation()


def test_other_rules_of_promotion_make_a_new_report_only_before_registration(folder: Path) -> None:
    changed = {**basis(3), "registry": {"min_gain": 0.1}}
    assert stored_evaluation(folder, changed, settled=False) is None
    assert stored_evaluation(folder, changed, settled=True) == evaluation()


def test_whatever_an_evaluation_depends_on_is_of_its_basis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "result.json").write_text("{}")
    recipe = demo()
    run = TrainingRun(
        recipe=recipe, backbone=tmp_path, training_set=tmp_path, output=tmp_path, tags={"split": "a"}
    )
    tags = {"vipolyqwen.model_digest": "d", "vipolyqwen.split": "a"}
    before = evaluation_basis(run, Version(3, (), tags))

    def differing(changed: TrainingRun = run, number: int = 3, **other: str) -> set[str]:
        named = {f"vipolyqwen.{name}": value for name, value in other.items()}
        now = evaluation_basis(changed, Version(number, (), {**tags, **named}))
        return {name for name in before if before[name] != now[name]}

    assert differing() == set()
    assert differing(number=4) == {"champion"}
    assert differing(model_digest="of another registry") == {"champion_model"}
    assert differing(split="b") == {"apart"}
    for name, change in {
        "settings": {"evaluation": replace(recipe.evaluation, confidence=0.9)},
        "registry": {"registry": replace(recipe.registry, min_gain=0.1)},
        "positive_score": {"objective": replace(recipe.objective, positive_score=0.9)},
    }.items():
        assert differing(replace(run, recipe=replace(recipe, **change))) == {name}
    monkeypatch.setattr("vipolyqwen_core.evaluation.results.VERSION", "another")
    (tmp_path / "result.json").write_text('{"steps": 1}')
    assert differing() == {"version", "result"}


@pytest.mark.parametrize(
    ("own", "rival", "apart"),
    [("a", "a", False), ("a", "b", True), (None, "b", True), ("a", None, False), (None, None, False)],
)
def test_a_champion_is_of_another_split_where_its_own_is_known(
    tmp_path: Path, own: str | None, rival: str | None, apart: bool
) -> None:
    place = tmp_path / "place"
    run = TrainingRun(
        recipe=demo(), backbone=place, training_set=place, output=place, tags={"split": own} if own else {}
    )
    found = Version(3, (), {"vipolyqwen.split": rival} if rival else {})
    assert is_of_other_split(found, run) == apart


def test_that_the_champion_is_of_another_split_reopens_the_judgement_only_before_registration(
    folder: Path,
) -> None:
    apart = {**basis(3), "apart": True}
    assert stored_evaluation(folder, apart, settled=False) is None
    assert stored_evaluation(folder, apart, settled=True) == evaluation()
    write_basis(folder, apart)  # then the split comes back from a backup
    assert stored_evaluation(folder, basis(3), settled=False) is None


def test_the_asset_asks_for_the_champion_and_its_split_and_that_of_then_once_the_run_is_champion_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingRun(
        recipe=demo(),
        backbone=tmp_path,
        training_set=tmp_path,
        output=tmp_path,
        run_name=RUN,
        tags={"split": "a"},
    )
    (tmp_path / "result.json").write_text("{}")
    folder = Workspace(tmp_path).evaluations / RUN
    asked: list[tuple[Path | None, bool, str, str | None]] = []

    def judge(
        _run: TrainingRun,
        _model: Path,
        champion: Path | None,
        folder: Path,
        apart: bool,
        rival: str,
        decided: str | None,
    ) -> Evaluation:
        asked.append((champion, apart, rival, decided))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").touch()
        evaluation().write(folder)
        return evaluation()

    def materialize(champion: Version) -> None:
        monkeypatch.setattr("assets.evaluation_report.champion", lambda _: champion)
        evaluation_report(
            workspace=WorkspaceResource(home=str(tmp_path)),
            manifest=ManifestResource(path=None, home=str(tmp_path)),
            recipe=RecipeResource(name="demo"),
            mlflow=MlflowResource(home=str(tmp_path)),
        )

    third = Version(3, (), {"vipolyqwen.split": "b"})
    for name, found in {
        "assets.evaluation_report.numbered_version": third,
        "assets.evaluation_report.finished_run": (run, SimpleNamespace(mlflow_run_id="m")),
        "assets.evaluation_report.model_digest": "d",
        "assets.evaluation_report.version_of_run": None,
        "assets.evaluation_report.model_folder": tmp_path / "v3",
        "assets.resources.ManifestResource.load": None,
        "assets.resources.MlflowResource.connect": None,
        "assets.resources.MlflowResource.log_evaluation": None,
        "assets.resources.MlflowResource.run_link": dg.MetadataValue.url("http://mlflow"),
    }.items():
        monkeypatch.setattr(name, lambda *_, found=found: found)
    monkeypatch.setattr("vipolyqwen_core.evaluation.evaluate.evaluate", judge)
    materialize(Version(3, ("champion",), {"vipolyqwen.split": "b"}))
    assert asked == [(tmp_path / "v3", True, "champion (version 3)", None)]
    own = Version(4, ("champion",), {"vipolyqwen.run": RUN, "vipolyqwen.model_digest": "d"})
    materialize(own)  # killed before its last tag
    assert len(asked) == 1
    monkeypatch.setattr("vipolyqwen_core.evaluation.results.VERSION", "another")
    settled = replace(own, tags={**own.tags, "vipolyqwen.decision": "better"})
    monkeypatch.setattr("assets.evaluation_report.version_of_run", lambda *_: settled)
    materialize(own)
    assert asked[1:] == [(tmp_path / "v3", True, "champion (version 3)", "Version 4: better")]
    monkeypatch.setattr("vipolyqwen_core.evaluation.results.VERSION", "one more")
    with monkeypatch.context() as patched:
        patched.setattr("assets.evaluation_report.model_folder", lost)
        materialize(own)
        materialize(own)
    assert asked[2:] == [(None, False, "champion", "Version 4: better")]
    (folder / "basis.json").unlink()
    materialize(own)
    assert asked[3:] == [(None, False, "champion", "Version 4: better")]


def lost(*_: object) -> Path:
    """A model directory that is nowhere any more."""
    raise ValueError("the registry cannot give the files of version 3")


def test_the_champion_of_then_is_one_that_the_registry_still_has(tmp_path: Path) -> None:
    versions = {3: SimpleNamespace(version="3", aliases=[], tags={"vipolyqwen.model_digest": "model-3"})}
    client = SimpleNamespace(
        search_model_versions=lambda _: list(versions.values()),
        get_model_version=lambda _, number: versions[int(number)],
    )
    present = Version(7, ("champion",), {})
    evaluation().write(tmp_path)
    assert champion_of_then(client, tmp_path, otherwise=present) is present
    for held, found in ((basis(3), 3), (basis(None), None), ({**basis(3), "champion_model": "other"}, 7)):
        write_basis(tmp_path, held)
        then = champion_of_then(client, tmp_path, otherwise=present)
        assert (then.number if then else None) == found
    write_basis(tmp_path, basis(3))
    versions.clear()
    assert champion_of_then(client, tmp_path, otherwise=present) is present


def test_an_evaluation_that_was_replaced_since_is_not_reused(folder: Path) -> None:
    evaluation(mrr=0.9).write(folder)  # killed before its basis was written, or made by hand
    assert read_basis(folder) is None
    assert stored_evaluation(folder, basis(3), settled=True) is None
    with pytest.raises(dg.Failure, match="materialise evaluation_report first"):
        judged_evaluation(folder, basis(3), crowned=False)


def test_a_decision_rests_on_the_champion_of_this_moment(folder: Path) -> None:
    assert judged_evaluation(folder, basis(3), crowned=False) == evaluation()
    with pytest.raises(dg.Failure, match="held against champion 3, but the champion is 5 by now"):
        judged_evaluation(folder, basis(5), crowned=False)
    elsewhere = {**basis(3), "champion_model": "of another registry"}
    with pytest.raises(dg.Failure, match="champion 3 of another model, but the champion is 3 by now"):
        judged_evaluation(folder, elsewhere, crowned=False)
    with pytest.raises(dg.Failure, match="the champion is none by now"):
        judged_evaluation(folder, basis(None), crowned=False)


@pytest.mark.parametrize("crowned", [False, True])
@pytest.mark.parametrize("name", ["result", "version"])
def test_a_decision_rests_on_no_evaluation_of_other_weights_or_other_code(
    folder: Path, name: str, crowned: bool
) -> None:
    with pytest.raises(dg.Failure, match=rf"one of before \({name}\): materialise evaluation_report again"):
        judged_evaluation(folder, {**basis(3), name: "other"}, crowned)


def test_the_rules_of_promotion_are_those_of_the_decision(folder: Path) -> None:
    changed = {**basis(3), "registry": {"min_gain": 0.1}}
    assert judged_evaluation(folder, changed, crowned=False) == evaluation()


def test_a_run_that_is_champion_already_is_decided_on(folder: Path) -> None:
    assert judged_evaluation(folder, basis(4), crowned=True) == evaluation()


def test_a_version_is_of_a_run_by_its_name_and_its_weights() -> None:
    named = {"vipolyqwen.run": RUN}
    weighed = Version(4, (), {**named, "vipolyqwen.model_digest": "d"})
    assert weighed.is_of(RUN, "d")
    assert not weighed.is_of(RUN, "trained elsewhere")
    assert not weighed.is_of("demo-2", "d")
    assert Version(4, (), named).is_of(RUN, "d")  # registered before versions named their model


def test_a_gain_over_the_champion_and_shorter_vectors_are_shown() -> None:
    gain = Interval(0.02, -0.01, 0.05)
    full = replace(evaluation(), matryoshka={256: 0.4}, gain_over_champion=gain, rival="champion (version 3)")
    shown = evaluation_metadata(full)
    assert shown["gain over the champion"] == "+0.020 [-0.010, +0.050]"
    assert shown["held against"] == "champion (version 3)"
    assert "256 | 0.4" in shown["shorter vectors"].value
    assert not {"gain over the champion", "shorter vectors"} & set(evaluation_metadata(evaluation()))


def test_the_page_begins_with_what_was_found_and_calls_systems_by_their_labels() -> None:
    across = replace(pool(), language="en>vi", is_large=False, counts=False)
    scored = SimilarityResult("vi", 200, True, {PLAIN: {"spearman": 0.5}})
    full = replace(of_pools(pool()), cross_lingual=(across,), similarities=(scored,), matryoshka={8: 0.4})
    shown = evaluation_metadata(full)
    assert list(shown)[:4] == ["summary", "learned", "verdict", "mrr@10"]
    assert "across languages" in list(shown)[-4:]
    assert "| ocr/en&gt;vi * | 200 |" in shown["across languages"].value
    assert "this model | no prefix | untrained" in shown["mrr@10 by pool, accuracy of choices"].value
    assert "| no prefix | 0.5 |" in shown["scored pairs"].value


def test_a_version_is_described_by_its_decision_and_its_card_without_front_matter() -> None:
    decision = Decision("challenger", ("too little gain",), ("few pairs",))
    head = "Registered as challenger: too little gain; few pairs\n\n"
    card = "---\ntags: [a]\n---\n\n# Model\n\n---\nmore\n"
    assert described(card, decision) == f"{head}# Model\n\n---\nmore"
    assert described("# Model", decision) == f"{head}# Model"
    assert len(described("x" * 9000, decision)) == MAX_DESCRIPTION_CHARS
