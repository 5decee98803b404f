"""The whole evaluation on a small training set, with an untrained model that stands in for a trained one."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.small_training_set import SmallPair, some_pairs, write_training_set
from vipolyqwen_core.config import (
    EvaluationSettings,
    ModelSettings,
    Precision,
    ProcessingSettings,
    Recipe,
    TrainingRun,
)
from vipolyqwen_core.contract import Side, Split, Task
from vipolyqwen_core.evaluation import results
from vipolyqwen_core.evaluation.baselines import untrained_embedder
from vipolyqwen_core.evaluation.encoding import EvaluationPairs, RowVectors, swap_partners
from vipolyqwen_core.evaluation.evaluate import evaluate
from vipolyqwen_core.evaluation.gallery import build_gallery
from vipolyqwen_core.evaluation.judged_pool import JudgedPool
from vipolyqwen_core.evaluation.metrics import PRIMARY, correlation
from vipolyqwen_core.evaluation.results import Evaluation, read_evaluation
from vipolyqwen_core.evaluation.retrieval import build_pools, rank_pool
from vipolyqwen_core.model.modeling import ViPolyQwenModel
from vipolyqwen_core.processing.processor import ViPolyQwenProcessor
from vipolyqwen_core.serving.encoder import ViPolyQwenEmbedder
from vipolyqwen_core.serving.stored_sides import StoredSides, read_split
from vipolyqwen_core.training.identity import data_version


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, tiny_processing: ProcessingSettings
) -> TrainingRun:
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 5 / s, "loss/ocr": 4 / s}) + "\n" for s in range(1, 6))
    )
    recipe = Recipe(
        name="small",
        backbone="tiny",
        model=ModelSettings(embedding_dim=64, matryoshka_dims=(16,)),
        processing=tiny_processing,
        evaluation=EvaluationSettings(bootstrap_samples=100, gallery_queries=1),
    )
    training_set = write_training_set(folder / "training_set", some_pairs())
    return TrainingRun(
        recipe=recipe, backbone=tiny_backbone, training_set=training_set, output=folder, run_name="small-run"
    )


@pytest.fixture(scope="module")
def evaluated(
    run: TrainingRun, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Path]:
    output = tmp_path_factory.mktemp("evaluation")
    return evaluate(run, tiny_model_dir, tiny_model_dir, output), output


@pytest.fixture(scope="module")
def against_champion(
    run: TrainingRun, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    """Another model with the model of `evaluated` as champion, of another split; a pool counts from 10 pairs
    and targets on."""
    recipe, folder = run.recipe, tmp_path_factory.mktemp("other")
    ViPolyQwenModel.from_backbone(run.backbone, recipe.model, recipe.processing, seed=1).save_pretrained(
        folder
    )
    ViPolyQwenProcessor.from_backbone(run.backbone, recipe.processing).save_pretrained(folder)
    settings = replace(recipe.evaluation, gallery_queries=0, min_pairs=10, min_distinct_targets=10)
    changed = replace(run, recipe=replace(recipe, evaluation=settings))
    return evaluate(changed, folder, tiny_model_dir, folder, champion_is_apart=True)


def sides_of(run: TrainingRun) -> StoredSides:
    return StoredSides(run.training_set, Split.EVAL, data_version(run.training_set))


@pytest.fixture(scope="module")
def encoded(run: TrainingRun, tiny_model_dir: Path) -> tuple[EvaluationPairs, RowVectors]:
    """The evaluation pairs with their vectors under the model of `evaluated`, with prefixes."""
    table = read_split(run.training_set, Split.EVAL)
    pairs = EvaluationPairs(table, sides_of(run), 4096)
    (vectors,) = pairs.encode(ViPolyQwenEmbedder.from_pretrained(tiny_model_dir), (True,), results.TRAINED)
    return pairs, vectors


def test_the_untrained_model_is_that_of_the_run_before_its_first_step(run: TrainingRun) -> None:
    training = replace(run.recipe.training, seed=1, precision=Precision.BFLOAT16)
    changed = replace(run, recipe=replace(run.recipe, training=training))
    untrained = untrained_embedder(changed).model
    first = ViPolyQwenModel.from_backbone(run.backbone, run.recipe.model, run.recipe.processing, seed=1)
    assert torch.equal(untrained.projection.weight, first.projection.weight)
    assert untrained.backbone.dtype == torch.bfloat16


def test_every_pool_has_every_system(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    assert [pool.name for pool in evaluation.pools] == [
        "text_pair/en",
        "instr/en",
        "instr/vi",
        "ocr/en",
        "vqa_single/en",
        "vqa_multi/en",
    ]
    for pool in evaluation.pools:
        expected = set(results.SYSTEMS) - (set() if pool.has_pictures else {results.SWAPPED})
        assert set(pool.scores) == expected
        assert all(0 <= value <= 1 for scores in pool.scores.values() for value in scores.values())


def test_the_gallery_shows_the_hits_of_its_queries_and_no_more(
    encoded: tuple[EvaluationPairs, RowVectors], tiny_model_dir: Path
) -> None:
    pairs, vectors = encoded
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    judged = []
    for pool in build_pools(pairs.rows, 0.5):
        ranking = rank_pool(pool, vectors.query, vectors.target)
        ranking.nearest[:, 2:] = -1 if pool.task is Task.OCR else ranking.nearest[:, 2:]
        judged.append(JudgedPool(pool, {results.TRAINED: ranking}, has_pictures=False))
    shown = build_gallery(judged, pairs, vectors, embedder, num_queries=3, seed=0)
    names = Counter(query.pool for query in shown)
    assert names == {"text_pair/en": 3, "instr/en": 2, "instr/vi": 1, "ocr/en": 3,
                     "vqa_single/en": 3, "vqa_multi/en": 3}  # fmt: skip
    table = pairs.table.to_pylist()
    for query in shown:
        of_pool = [n for n, row in enumerate(table) if f"{row['task']}/{row['language']}" == query.pool]
        cosines = [hit.cosine for hit in query.hits]
        assert cosines == sorted(cosines, reverse=True)
        assert [hit.rank for hit in query.hits] == list(range(1, len(cosines) + 1))
        assert len(cosines) == (2 if query.pool in ("ocr/en", "vqa_multi/en") else 3)
        asking = [n for n in of_pool if pairs.texts(np.array([n]), Side.QUERY)[0] == query.query.text]
        right = {table[n]["target"] for n in asking}
        if len(asking) == 1:  # else its picture decides
            assert [hit.is_right for hit in query.hits] == [hit.side.text in right for hit in query.hits]
            assert query.right.text in right
            targets = [next(n for n in of_pool if table[n]["target"] == hit.side.text) for hit in query.hits]
            assert np.allclose(vectors.target[targets] @ vectors.query[asking[0]], cosines, atol=1e-6)
        if any(hit.is_right for hit in query.hits):
            assert query.rank_of_right == 1 + [hit.is_right for hit in query.hits].index(True)


def test_a_model_gains_nothing_over_itself(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    gain = evaluation.gain_over_champion
    assert gain is not None
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)
    assert evaluation.primary[results.TRAINED] == evaluation.primary[results.CHAMPION]


def test_a_champion_scores_as_when_it_was_the_model_and_gains_are_differences(
    evaluated: tuple[Evaluation, Path], against_champion: Evaluation
) -> None:
    before, now = ((*each.pools, *each.cross_lingual) for each in (evaluated[0], against_champion))
    for earlier, pool in zip(before, now, strict=True):
        assert pool.scores[results.CHAMPION] == earlier.scores[results.TRAINED]
        assert pool.scores[results.CHAMPION_PLAIN] == earlier.scores[results.PLAIN]
        assert pool.scores[results.UNTRAINED] == earlier.scores[results.UNTRAINED]
    by_system = [
        (
            {
                system: means.get("recall@1" if each.is_choice else PRIMARY)
                for system, means in each.scores.items()
            },
            each,
        )
        for each in now
    ]
    assert any(each.is_choice and each.gain_over_untrained.mean for each in now)
    for scores, found in ((against_champion.primary, against_champion), *by_system):
        for rival, gain in (
            (results.CHAMPION, found.gain_over_champion),
            (results.UNTRAINED, found.gain_over_untrained),
        ):
            assert gain.mean == pytest.approx(scores[results.TRAINED] - scores[rival])
    assert against_champion.gain_over_champion.mean != 0
    assert (evaluated[0].champion_is_apart, against_champion.champion_is_apart) == (False, True)


def test_a_pool_counts_from_so_many_pairs_targets_and_components_on(against_champion: Evaluation) -> None:
    sizes = {
        each.name: (each.num_pairs, each.num_targets, each.num_components) for each in against_champion.pools
    }
    assert sizes["instr/en"] == (10, 10, 10)
    assert sizes["instr/vi"] == (8, 8, 8)
    assert [pool.name for pool in against_champion.pools if pool.is_large] == ["instr/en"]
    assert [pool.name for pool in against_champion.counted()] == ["instr/en"]
    assert against_champion.enough


def test_two_answers_are_a_choice_and_stay_out_of_the_mean(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    (choice,) = [pool for pool in evaluation.pools if pool.is_choice]
    assert (choice.task, choice.num_targets, choice.counts) == (Task.VQA_MULTI, 2, False)
    assert choice.scores[results.CHANCE]["recall@1"] == pytest.approx(0.5)
    counted = [pool.scores[results.TRAINED][PRIMARY] for pool in evaluation.counted()]
    assert evaluation.primary[results.TRAINED] == pytest.approx(np.mean(counted))


def test_small_pools_prove_nothing(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    assert not evaluation.enough
    assert not evaluation.verdict.learned
    assert "no pool is large enough" in evaluation.verdict.failures[0]


def test_every_evaluation_pair_is_counted_under_its_task(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    assert sum(evaluation.rows_by_task.values()) == evaluation.num_rows
    assert set(evaluation.rows_by_task) >= {pool.task for pool in evaluation.pools}


def test_words_alone_find_what_shares_a_number(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    by_name = {pool.name: pool for pool in evaluation.pools}
    assert by_name["instr/vi"].scores[results.BM25]["recall@1"] == 1
    assert by_name["vqa_single/en"].scores[results.BM25]["recall@1"] < 0.5


def test_declared_keys_give_pools_across_languages(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    assert [pool.name for pool in evaluation.cross_lingual] == ["instr/en>vi", "instr/vi>en"]
    assert evaluation.cross_lingual[0].num_queries == 8


def test_scored_pairs_and_slices_are_judged_by_the_vectors_with_prefix(
    encoded: tuple[EvaluationPairs, RowVectors], evaluated: tuple[Evaluation, Path]
) -> None:
    (pairs, vectors), (evaluation, _) = encoded, evaluated
    (similarity,) = evaluation.similarities
    assert (similarity.language, similarity.num_pairs, similarity.is_large) == ("en", 8, False)
    scored = np.flatnonzero(~np.isnan(pairs.rows.score))
    cosines = (vectors.query[scored] * vectors.target[scored]).sum(axis=1)
    expected = correlation(cosines, pairs.rows.score[scored])
    assert similarity.scores[results.TRAINED] == pytest.approx(expected, abs=1e-4)
    assert similarity.scores[results.BM25] == {}  # both sides of each pair share as many words
    names = [pool.name for pool in evaluation.counted()]
    counted = [pool for pool in build_pools(pairs.rows, 0.5) if pool.name in names]
    query, target = (
        side[:, :16] / np.linalg.norm(side[:, :16], axis=1)[:, None]
        for side in (vectors.query, vectors.target)
    )
    means = [rank_pool(pool, query, target).means[PRIMARY] for pool in counted]
    assert evaluation.matryoshka == {16: pytest.approx(np.mean(means))}


def test_the_file_gives_back_the_same_evaluation(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, output = evaluated
    assert read_evaluation(output) == evaluation
    metrics = evaluation.metrics()
    assert set(metrics) >= {
        PRIMARY,
        "mrr@10/ocr/en",
        "untrained/mrr@10",
        "spearman/en",
        "learned",
    }
    assert metrics["num_evaluation_pairs"] == evaluation.num_rows
    assert metrics["num_pools_in_mean"] == len(evaluation.counted())


def test_the_report_stands_alone(evaluated: tuple[Evaluation, Path]) -> None:
    _, output = evaluated
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    for expected in (
        "Evaluation of small-run",
        "vqa_single/en",
        ">swapped<",
        "data:image/jpeg;base64",
    ):
        assert expected in html
    assert html.count("weights of the pooling over the picture") == 4  # ocr, vqa_single: 1; vqa_multi: 2
    assert html.count("data:image/png;base64") == 3  # losses, recalls, histograms


def test_the_report_of_a_comparison_tells_of_no_champion(
    run: TrainingRun, tiny_model_dir: Path, evaluated: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    """The kinds of pooling are compared so, of which none is registered."""
    settings = replace(run.recipe.evaluation, gallery_queries=0)
    beside = replace(run, recipe=replace(run.recipe, evaluation=settings))
    evaluate(beside, tiny_model_dir, tiny_model_dir, tmp_path, rival="baseline", decides=False)
    told, judged = (
        (folder / "report.html").read_text(encoding="utf-8") for folder in (tmp_path, evaluated[1])
    )
    for term in ("over the {}, [", "<th>over the {}</th>", "<dt>{}</dt>", "<th>{}</th>"):
        assert term.format("baseline") in told
        assert term.format("champion") in judged
    assert [word for word in ("hampion", "hallenger", "registry", "Promotion") if word in told] == []
    evaluate(beside, tiny_model_dir, tiny_model_dir, tmp_path, decides=False)  # by hand, beside the champion
    assert "Promotion" in judged
    assert "Promotion" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_batch_size_moves_no_score(
    run: TrainingRun, tiny_model_dir: Path, evaluated: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    settings = replace(run.recipe.evaluation, batch_tokens=60, gallery_queries=0)
    small = replace(run, recipe=replace(run.recipe, evaluation=settings))
    again = evaluate(small, tiny_model_dir, None, tmp_path)
    for ours, theirs in zip(again.pools, evaluated[0].pools, strict=True):
        assert ours.scores[results.TRAINED] == theirs.scores[results.TRAINED]
        assert ours.scores[results.SWAPPED] == theirs.scores[results.SWAPPED] if ours.has_pictures else True


def test_a_side_is_encoded_once_for_all_rows_that_have_it(run: TrainingRun, tiny_model_dir: Path) -> None:
    table = read_split(run.training_set, Split.EVAL)
    pairs = EvaluationPairs(table, sides_of(run), 4096)
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    seen = []
    encode = embedder.encode_items
    embedder.encode_items = lambda items, tokens: encode(seen.extend(found := list(items)) or found, tokens)  # type: ignore
    prefixed, plain = pairs.encode(embedder, (True, False), results.TRAINED)
    made = [make() for make in seen]
    distinct = {(item.text, item.history, item.prefix, *(i.tobytes() for i in item.images)) for item in made}
    assert len(seen) == len(distinct)
    row = int(np.flatnonzero(pairs.rows.task == "ocr")[0])
    assert np.array_equal(prefixed.target[row], plain.target[row])
    assert not np.array_equal(prefixed.query[row], plain.query[row])
    row = int(np.flatnonzero(pairs.rows.task == "text_pair")[0])
    assert not np.array_equal(prefixed.target[row], plain.target[row])


def test_a_vector_that_is_not_finite_is_named(run: TrainingRun, tiny_model_dir: Path) -> None:
    table = read_split(run.training_set, Split.EVAL)
    pairs = EvaluationPairs(table, sides_of(run), 4096)
    embedder = ViPolyQwenEmbedder.from_pretrained(tiny_model_dir)
    encode = embedder.encode_items

    def broken(items: Any, tokens: int) -> Any:
        vectors = encode(items, tokens)
        vectors[-1, 3] = np.nan
        return vectors

    embedder.encode_items = broken  # type: ignore[method-assign]
    row = int(np.unique(pairs.rows.target, return_index=True)[1].max())  # the last target that is new
    sample = table["sample_id"][row].as_py()
    expected = f"'champion' are not finite, .* the target of evaluation row {row} .sample {sample}"
    with pytest.raises(ValueError, match=expected):
        pairs.encode(embedder, (False,), results.CHAMPION)
    pictured = np.flatnonzero([bool(shown) for shown in pairs.picture_ids(np.arange(table.num_rows))])[:2]
    with pytest.raises(ValueError, match=f"'swapped' .* the query of evaluation row {pictured[1]} "):
        pairs.encode_swapped(embedder, pictured, pictured[::-1])


def test_the_text_of_a_dialogue_holds_its_earlier_turns(run: TrainingRun) -> None:
    table = read_split(run.training_set, Split.EVAL)
    pairs = EvaluationPairs(table, sides_of(run), 4096)
    row = table["query"].to_pylist().index("Count to three")
    (text,) = pairs.texts(np.array([row]), Side.QUERY)
    assert text == "user: Hello\nassistant: Hi, how can I help?\nCount to three"


def test_swapped_queries_show_other_pictures_of_the_same_number() -> None:
    pictures = [("a",), ("a",), ("b",), ("c",), ("d", "e"), ("f", "g"), ("a",), ("h",)]
    places, partners = swap_partners(pictures, seed=0)
    assert sorted(places) == list(range(8))
    for place, partner in zip(places, partners, strict=True):
        assert pictures[place] != pictures[partner]
        assert len(pictures[place]) == len(pictures[partner])
    assert len(set(partners)) == 8


def test_a_swapped_query_is_ranked_as_the_one_whose_picture_it_shows(
    run: TrainingRun, encoded: tuple[EvaluationPairs, RowVectors], evaluated: tuple[Evaluation, Path]
) -> None:
    """All ask the same, each about a picture of its own: so a query becomes its partner's."""
    pairs, vectors = encoded
    (pool,) = [each for each in build_pools(pairs.rows, 0.5) if each.name == "vqa_single/en"]
    places, partners = swap_partners(pairs.picture_ids(pool.queries), run.recipe.evaluation.seed)
    queries = vectors.query.copy()
    queries[pool.queries[places]] = vectors.query[pool.queries[partners]]
    (scores,) = [each.scores for each in evaluated[0].pools if each.name == pool.name]
    assert scores[results.SWAPPED] == rank_pool(pool, queries, vectors.target).means
    assert scores[results.SWAPPED] != scores[results.TRAINED]


def test_queries_on_one_picture_find_no_partner() -> None:
    places, _ = swap_partners([("a",), ("a",), ()], seed=0)
    assert len(places) == 0


def test_a_set_with_nothing_to_rank_is_refused(
    run: TrainingRun, tiny_model_dir: Path, tmp_path: Path
) -> None:
    lonely = write_training_set(tmp_path / "lonely", [SmallPair("one", "two")])
    with pytest.raises(ValueError, match=r"1 evaluation pairs .* nothing to rank"):
        evaluate(replace(run, training_set=lonely), tiny_model_dir, None, tmp_path)


def test_a_set_that_is_built_anew_meanwhile_is_not_judged_as_half_of_each(
    run: TrainingRun, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_training_set(tmp_path / "set", some_pairs())

    def late(*arguments: Any) -> Any:
        folder.rename(tmp_path / "old")
        write_training_set(folder, [*reversed(some_pairs()), SmallPair("one", "two")])
        return build_pools(*arguments)

    monkeypatch.setattr("vipolyqwen_core.evaluation.evaluate.build_pools", late)
    with pytest.raises(ValueError, match=r"set was built anew meanwhile.*again"):
        evaluate(replace(run, training_set=folder), tiny_model_dir, None, tmp_path / "report")
    assert not (tmp_path / "report").exists()
