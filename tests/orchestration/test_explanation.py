"""Failures of a run as one sentence."""

import json

import dagster as dg

from orchestration.explanation import explain_failure


def failed_events(asset: dg.AssetsDefinition, *checks: dg.AssetChecksDefinition) -> list[dg.DagsterEvent]:
    result = dg.materialize([asset, *checks], raise_on_error=False)
    assert not result.success
    return list(result.all_events)


def test_a_users_mistake_is_named_with_its_stage_and_source() -> None:
    @dg.asset
    def curated_corpus() -> None:
        raise ValueError("source 'receipts':\n no file matches receipts/*.jsonl")

    sentence = explain_failure(failed_events(curated_corpus), "receipts")
    assert (
        sentence == "curated_corpus of source receipts: source 'receipts': no file matches receipts/*.jsonl"
    )


def test_the_sentence_of_the_stage_is_told_and_not_the_error_of_a_library_that_it_explains() -> None:
    @dg.asset
    def trained_model() -> None:
        try:
            json.loads("broken")
        except ValueError as error:
            raise ValueError("stage.json is damaged: delete it") from error

    sentence = explain_failure(failed_events(trained_model), None)
    assert sentence == "trained_model: stage.json is damaged: delete it"


def test_a_failure_that_was_meant_is_quoted() -> None:
    @dg.asset
    def trained_model() -> None:
        raise dg.Failure("rank 1 died without a traceback")

    assert (
        explain_failure(failed_events(trained_model), None)
        == "trained_model: rank 1 died without a traceback"
    )


def test_a_blocking_check_tells_what_it_found() -> None:
    @dg.asset
    def curated_corpus() -> None: ...

    @dg.asset_check(asset=curated_corpus, blocking=True)
    def nothing_vanishes() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="5 in, 4 out, 0 in the ledger")

    sentence = explain_failure(failed_events(curated_corpus, nothing_vanishes), "receipts")
    expected = "curated_corpus of source receipts: check nothing_vanishes: 5 in, 4 out, 0 in the ledger"
    assert sentence == expected
