"""Which stored evaluation is reused, and on which one a promotion may rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.evaluation_report import (
    evaluation_metadata,
    is_of_other_split,
    judged_evaluation,
    read_basis,
    stored_evaluation,
    write_basis,
)
from assets.registered_model import MAX_DESCRIPTION_CHARS, described
from assets.registry import Version
from vipolyqwen_core.config import TrainingRun
from vipolyqwen_core.evaluation.bootstrap import Interval
from vipolyqwen_core.evaluation.results import BM25, TRAINED, UNTRAINED, Evaluation, Verdict
from vipolyqwen_core.recipes import demo

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
    full = replace(evaluation(), matryoshka={256: 0.4}, gain_over_champion=Interval(0.02, -0.01, 0.05))
    shown = evaluation_metadata(full)
    assert shown["gain over the champion"] == "+0.020 [-0.010, +0.050]"
    assert "256 | 0.4" in shown["shorter vectors"].value
    assert not {"gain over the champion", "shorter vectors"} & set(evaluation_metadata(evaluation()))


def test_a_version_is_described_by_its_card_without_front_matter() -> None:
    assert described("---\ntags: [a]\n---\n\n# Model\n\n---\nmore\n") == "# Model\n\n---\nmore"
    assert described("# Model") == "# Model"
    assert len(described("x" * 9000)) == MAX_DESCRIPTION_CHARS
