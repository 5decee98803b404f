"""Known false negatives: who leaves whose denominator."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.objectives import reference
from tests.core.objectives.examples import mixed_pairs
from vipolyqwen_core.contract import Task
from vipolyqwen_core.objectives.negatives import excluded
from vipolyqwen_core.objectives.pairs import pair_keys


def test_the_own_pair_is_no_negative():
    keys = pair_keys([Task.OCR] * 3, [1, 2, 3], [4, 5, 6])
    own = torch.eye(3, dtype=torch.bool)
    assert torch.equal(excluded(keys, keys).targets, own)
    assert torch.equal(excluded(keys, keys).queries, own)


def test_equal_targets_queries_and_positive_keys_leave_both_directions():
    keys = pair_keys(
        [Task.OCR] * 6,
        [1, 2, 3, 3, 5, 6],  # 2 and 3 share a query
        [11, 11, 13, 14, 15, 16],  # 0 and 1 share a target
        positive_hashes=[0, 0, 0, 0, 9, 9],  # 4 and 5 share a key; 0 is none
    )
    block = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
    assert torch.equal(excluded(keys, keys).targets, block)
    assert torch.equal(excluded(keys, keys).queries, block)


def test_a_candidate_that_is_the_anchor_itself_leaves():
    # the target of pair 1 is the text of query 0; the query of pair 2 is the text of target 0
    keys = pair_keys([Task.TEXT_PAIR] * 3, [1, 2, 11], [11, 1, 13])
    assert excluded(keys, keys).targets[0].tolist() == [True, True, False]
    assert excluded(keys, keys).queries[0].tolist() == [True, False, True]


def test_hard_negatives_leave_where_they_are_the_target_or_the_anchor_itself():
    keys = pair_keys([Task.OCR] * 2, [1, 2], [11, 12], negative_hashes=[[12, 99], [1, 2, 11]])
    assert excluded(keys, keys).targets[:, 2:].tolist() == [
        [False, False, True, False, True],  # 1 is its query, 11 its target
        [True, False, False, True, False],
    ]


def test_a_mined_negative_leaves_where_its_pair_has_the_same_query_or_the_same_key():
    keys = pair_keys(
        [Task.OCR] * 3,
        [1, 2, 3],
        [11, 12, 13],
        positive_hashes=[0, 7, 0],
        negative_hashes=[[91, 92, 93], [], []],
        negative_query_hashes=[[3, 50, 0], [], []],  # 91 answers query 3, 93 was declared
        negative_positive_hashes=[[0, 7, 0], [], []],  # 92 answers whatever has the key 7
    )
    assert excluded(keys, keys).targets[:, 3:].tolist() == [
        [False, False, False],
        [False, True, False],
        [True, False, False],
    ]


def test_other_tasks_give_no_candidates_unless_asked_for():
    keys = pair_keys(
        [Task.OCR, Task.INSTR, Task.OCR], [1, 2, 3], [11, 12, 13], negative_hashes=[[], [90], [91]]
    )
    assert excluded(keys, keys).targets[0].tolist() == [True, True, False, True, False]
    assert excluded(keys, keys).queries[1].tolist() == [True, True, True]
    assert excluded(keys, keys, cross_task=True).targets[0].tolist() == [True, False, False, False, False]
    assert excluded(keys, keys, cross_task=True).queries[1].tolist() == [False, True, False]


def test_hashes_above_the_signed_range_stay_distinct():
    keys = pair_keys([Task.OCR] * 3, [2**64 - 1, 2**63, 2**63 - 1], [1, 2, 3])
    assert torch.equal(excluded(keys, keys).queries, torch.eye(3, dtype=torch.bool))


@given(seed=st.integers(0, 10_000), num_pairs=st.integers(1, 16), cross_task=st.booleans())
def test_the_masks_keep_exactly_the_candidates_of_the_plain_definition(seed, num_pairs, cross_task):
    pairs = mixed_pairs(num_pairs, dim=3, seed=seed)
    plain = reference.plain_pairs(pairs)
    targets = torch.cat([pairs.target, pairs.negatives])
    wrong_targets = excluded(pairs.keys, pairs.keys, cross_task=cross_task).targets
    wrong_queries = excluded(pairs.keys, pairs.keys, cross_task=cross_task).queries
    for i, anchor in enumerate(plain):
        kept = targets[~wrong_targets[i]].tolist()
        assert sorted(kept) == sorted(reference.wrong_targets(anchor, plain, cross_task))
        kept = pairs.query[~wrong_queries[i]].tolist()
        assert sorted(kept) == sorted(reference.wrong_queries(anchor, plain, cross_task))
