"""Rules that reject: every name that a ledger may hold, what it means, and the rules for rows as Polars.

Rules for records and pictures are applied where they are read (`vipolyqwen_core.corpus`); they are listed
here with the rest, so that one place says what each name means.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl

from quality.pair_columns import num_pictures
from vipolyqwen_core.config import CurationSettings
from vipolyqwen_core.contract import IMAGE_PLACEHOLDER, IMAGE_TASKS, Task

RULES: dict[str, str] = {
    # read: records
    "broken_json": "The line, or the element of the array, is not JSON.",
    "line_too_long": "The line is longer than any of a corpus.",
    "ambiguous_column": "Several columns of the file have the name that is needed, with different cells.",
    "broken_csv": "The line is not CSV, or has more cells than the header, or than any table.",
    "not_an_object": "The record is JSON, but no object.",
    "unreadable_file": "The file, or its packing, breaks off: the rest of it cannot be read.",
    "empty_file": "The file holds no records.",
    "missing_field": "The record lacks a field that its format needs.",
    "missing_line": "One of the parallel files has fewer lines than another.",
    "wrong_type": "A field holds another type than its format says.",
    "unknown_data_type": "The data_type of the sample is none that is known.",
    "other_task": "The sample belongs to another task than the manifest says of its source.",
    "video_or_audio": "The record has a video or audio, without which it would say something else.",
    "no_images": "The task needs a picture, and the record names none.",
    "no_pairs": "The adapter made no pair of the record.",
    "score_not_a_number": "The score is not a number.",
    "broken_dialogue": "The messages are no list of objects with a role and a content.",
    "unknown_role": "The role of a message is none of system, user and assistant, by any usual name; "
    "that of an adapter's turn is none of these as they stand here.",
    "unknown_part": "A part of a message is neither text nor picture.",
    "picture_in_answer": "The last answer of a dialogue holds a picture, as only questions may.",
    "no_question": "The answer of a dialogue does not follow a turn of the user.",
    "no_answer": "The dialogue has no answer of the assistant.",
    # curated: pictures
    "missing_image": "There is no such picture below the image root.",
    "no_image_root": "The record names a picture by its path, and the source has no image_root.",
    "path_leaves_root": "The path of the picture leaves the image root, is absolute, or is a URL.",
    "unreadable_image": "The picture's file cannot be read.",
    "too_many_bytes": "The picture's file is larger than any picture of a corpus.",
    "empty_image": "The picture's file is empty.",
    "not_an_image": "The bytes are no picture format that is known.",
    "too_many_pixels": "The picture, or a tile of it, has more pixels than curation.max_image_pixels.",
    "truncated_image": "The picture breaks off before its end.",
    "broken_image": "The picture cannot be decoded.",
    "decoder_crashed": "The process that decoded the picture died of it.",
    # curated: rows
    "no_picture": "The task needs a picture in the query, and there is none.",
    "empty_query": "The query has neither text nor picture.",
    "empty_target": "The target has neither text nor picture.",
    "query_too_short": "The query's text is shorter than curation.min_chars, and it has no picture.",
    "target_too_short": "The target's text is shorter than curation.min_chars, and it has no picture.",
    "query_too_long": "The query's text is longer than curation.max_chars.",
    "target_too_long": "The target's text is longer than curation.max_chars.",
    "undecoded_query": "U+FFFD or `?` in place of three letters and a tenth of the query, or half `?`.",
    "undecoded_target": "U+FFFD or `?` in place of three letters and a tenth of the target, or half `?`.",
    "repetitive_query": "One repeated line, phrase, word or character fills the query.",
    "repetitive_target": "One repeated line, phrase, word or character fills the target.",
    "score_out_of_range": "The score is not a number within the `score_range` of its source.",
    "answer_in_query": "The query ends with the whole answer, which is none of several options.",
    # tagged
    "too_many_placeholders": "A side has more <image> than pictures.",
    "placeholders": "Pictures and <image> do not match.",
    "picture_size": "The picture's shape cannot be cut into patches.",
    "picture_mode": "The picture is not RGB.",
    "pictures_too_long": "Pictures and turns alone take more than processing.max_tokens.",
    "not_unicode": "The text cannot be written as UTF-8.",
    # validated
    "placeholder_mismatch": "The pair has not as many <image> as pictures.",
    "nothing_to_encode": "A side has no tokens.",
    # curated and training_set: duplicates
    "exact_duplicate": "Task, query, target and pictures equal those of a row that is kept.",
    "near_duplicate": "Query and target nearly equal those of a row that is kept, pictures are the same.",
    # training_set: split
    "off_limits": "The source is a benchmark that is off limits: its rows never train.",
    "linked_to_off_limits": "The row shares a picture, text or group with a benchmark that is off limits.",
    "evaluation_retired": "The row evaluated before, but its component now trains, too.",
    "evaluation_full": "The row's component evaluates, and evaluation has its split.max_eval_pairs rows.",
    "picture_of_other_task": "A picture of the row trains for another task (split.one_task_per_picture).",
}
"""Rule -> one sentence. Names are keys to count by: they never change their meaning."""


@dataclass(frozen=True)
class RowRule:
    """A rule for one row."""

    name: str
    """As in RULES."""
    fails: pl.Expr
    """True where the row is to be rejected."""
    value: pl.Expr
    """The offending value, as text."""


INVISIBLE = r"^[\s\p{Cf}\p{Mn}\x{115F}\x{1160}\x{2800}\x{3164}\x{FFA0}]*$"
"""A text in which nothing is seen: blanks, joiners, marks without a letter, fillers."""
UNDECODED = r"\x{FFFD}|\p{Latin}\?[\p{Latin}&&\p{Ll}]"
"""What is left of a letter that was lost: databases and old exports write `Ti?ng Vi?t`."""
MIN_UNDECODED = 3
"""Fewer are a slip."""
UNDECODED_SHARE = 0.1
"""Of all characters: of a Vietnamese text whose letters with marks are lost, a fifth is."""
MIN_LOST_WORDS = 5
"""Characters of words that are `?` all through; fewer may be meant: `???`."""
LOST_WORDS = r"(?s)^\P{L}*$|(?:^|\s)\p{P}*\?\?.*\s\p{P}*\?\?"
"""No letter at all, or two words that begin with `??`: in `What?????` the question marks follow a word."""
MIN_REPETITION_CHARS = 100
MAX_PERIOD = 8
FILLER = re.compile(r"(?<![-=._ ])[-=._ ]{8,200}(?![-=._ ])")
"""What leads the eye in forms, tables of contents and rules of tables; what runs on is none."""
MIN_LEFT = 8
"""Letters and digits beside it; a text that has fewer is little else."""
MARKS = r"(?:\s|<\|[a-z_]+\|>|</?s>|\[/?INST\]|[\"'“”‘’.。])+"
"""What may stand around an answer: marks of a chat, quotes, a full stop."""
BOUNDARY = re.compile(r"(?:^|[>\]\n.:?!。：？！\"'“”‘’])\s*$")
"""The end of what stands in front of an answer that begins there; a cut-out of a sentence does not."""
OPTION = re.compile(r"\(?(?:[^\W\d_]+ ){0,3}\(?([A-Ha-h1-9](?=[.:)/])|[①-⑨])([.:)/]?)")
"""How the text of an option begins that is named with its label: a letter or number, and what follows it."""
BEHIND_LABEL = re.compile(r"(?:\b[A-Ha-h1-9][.)/]|[①-⑨])\s*$")
"""The end of what stands in front of an option named without its label; `B:` is also who says it."""
LABEL_BEFORE = {
    label: before
    for labels in ("ABCDEFGH", "abcdefgh", "123456789", "①②③④⑤⑥⑦⑧⑨")
    for before, label in pairwise(labels)
}
LEADING_PICTURES = rf"^(?:\s*{re.escape(IMAGE_PLACEHOLDER)})+"
"""Where the pictures of a query stand; tagging puts them there where the data does not say where."""
MIN_ANSWER_CHARS = 32
"""A shorter answer may well stand at the end of a question: `true or false`."""


def row_rules(settings: CurationSettings) -> list[RowRule]:
    """The rules of curation, in the order in which they are asked. Columns: those of a pair."""
    needs_picture = pl.col("task").is_in([task.value for task in IMAGE_TASKS])
    rules = [RowRule("no_picture", needs_picture & (num_pictures("query") == 0), pl.col("query"))]
    min_chars, max_chars, max_repetition = (
        _limit(settings, name) for name in ("min_chars", "max_chars", "max_repetition")
    )
    for side in ("query", "target"):
        text, chars = pl.col(side), pl.col(side).str.len_chars()
        bare = num_pictures(side) == 0
        blank = text.str.replace_all(IMAGE_PLACEHOLDER, "", literal=True).str.strip_chars() == ""
        # Where a side has pictures, `<image>` alone is no text, but the pictures are content.
        rules += [
            RowRule(f"empty_{side}", bare & text.str.contains(INVISIBLE) | ~bare & text.is_null(), text),
            RowRule(f"{side}_too_short", bare & ~blank & (chars < min_chars), text),
            RowRule(f"{side}_too_long", chars > max_chars, pl.format("{} characters", chars)),
            RowRule(f"undecoded_{side}", _undecoded(text), text),
            RowRule(f"repetitive_{side}", _repeats(text, max_repetition), text),
        ]
    score = pl.col("score")
    rules.append(
        RowRule(
            "score_out_of_range",
            score.is_not_null() & (score.is_nan() | (score < 0) | (score > 1)),
            score.cast(pl.String),
        )
    )
    rules.append(RowRule("answer_in_query", answered(), pl.col("target")))
    return rules


def _undecoded(text: pl.Expr) -> pl.Expr:
    """Whether letters with marks are lost, or all letters of a writing that is not Latin."""
    chars = text.str.len_chars()
    lost, marks = text.str.count_matches(UNDECODED), text.str.count_matches(r"\?")
    no_words = (marks >= MIN_LOST_WORDS) & (2 * marks >= chars) & text.str.contains(LOST_WORDS)
    return (lost >= MIN_UNDECODED) & (lost >= UNDECODED_SHARE * chars) | no_words


def _limit(settings: CurationSettings, name: str) -> pl.Expr:
    """A limit for each row: that of its task, else that of all tasks."""
    limit = pl.lit(getattr(settings, name))
    for task, limits in settings.by_task.items():
        if (own := getattr(limits, name)) is not None:
            limit = pl.when(pl.col("task") == task.value).then(pl.lit(own)).otherwise(limit)
    return limit


def answered() -> pl.Expr:
    """Whether the query of a row holds its answer: it equals the target, or ends with all of it. Never null.

    The original implementation trained on conversations that held their answers. Equal sentences are a pair.

    Marks of a chat, quotes and full stops at the ends do not count; where these differ, the answer has to
    begin behind a sign: it may have been cut out of a sentence. A question may also end with the option that
    is right: `Which is stronger? A. ... B. ...`. Then the answer has the label B, or stands behind it, the
    query has the label A, too, and the option stands there once. Pictures in front do not count: what
    curation has passed passes with those that tagging puts there.
    """
    query = pl.col("query").str.replace(LEADING_PICTURES, "").str.strip_chars()
    target = pl.col("target").str.strip_chars()
    bare_query = query.str.replace(f"{MARKS}$", "")
    bare_target = target.str.replace(f"{MARKS}$", "").str.replace(f"^{MARKS}", "")
    ends = (target.str.len_chars() >= MIN_ANSWER_CHARS) & bare_query.str.ends_with(bare_target)
    sides = pl.struct(query=bare_query, target=bare_target, is_same=query.str.ends_with(target))
    # null for nearly all rows: nothing to look at
    is_answer = pl.when(ends).then(sides).map_elements(_is_answer, return_dtype=pl.Boolean)
    return (
        (pl.col("task") != Task.TEXT_PAIR.value)
        & (num_pictures("target") == 0)
        & ((query == target) | is_answer.fill_null(False))
    )


def _is_answer(sides: Mapping[str, Any]) -> bool:
    """Whether a target at the end of a query is its answer, neither an option nor cut out of a sentence."""
    query, target = sides["query"], sides["target"]
    front = query.removesuffix(target)
    if not sides["is_same"] and (len(target) < MIN_ANSWER_CHARS or not BOUNDARY.search(front)):
        return False
    behind = BEHIND_LABEL.search(front)
    option = behind[0] + target if behind else target
    label = OPTION.match(option)
    if label is None or (before := LABEL_BEFORE.get(label[1])) is None:
        return True
    has_another = re.search(rf"\b{before}{re.escape(label[2])}" if label[2] else before, query) is not None
    return not has_another or query.count(option) > 1


def _repeats(text: pl.Expr, max_share: pl.Expr) -> pl.Expr:
    """Whether one repeated line, phrase, word or character fills more than `max_share` of a long text.

    Only texts with few distinct words or characters are counted out.
    """
    words = text.str.split(" ")
    few_words = words.list.n_unique() * 3 <= words.list.len()
    lines = text.str.count_matches("\n") >= 2
    few_characters = (words.list.len() <= 3) & (text.str.len_chars() >= MIN_REPETITION_CHARS)
    suspected = (text.str.len_chars() >= MIN_REPETITION_CHARS) & (few_words | lines | few_characters)
    share = pl.when(suspected).then(text).map_elements(repetition_share, return_dtype=pl.Float64)
    return (share > max_share).fill_null(False)


def repetition_share(text: str) -> float:
    """The share of the text that its most repeated line, phrase, word or character fills.

    A phrase is up to 8 words, or 8 characters where a text has no spaces, that follow themselves. Leaders of
    dots, lines and dashes between words count as one space.
    """
    filled = FILLER.sub(" ", text)
    text = filled if sum(map(str.isalnum, filled)) >= MIN_LEFT else text
    words = text.split()
    shares = [_most_frequent(parts) for parts in (text.split("\n"), words, list(text))]
    shares += [
        _periodic(parts, period) for parts in (words, list(text)) for period in range(2, MAX_PERIOD + 1)
    ]
    return max(shares)


def _most_frequent(parts: Sequence[str]) -> float:
    """Share of the most frequent part, by characters; 0 where none occurs three times."""
    counts = Counter(part.strip() for part in parts)
    size = sum(len(part) * count for part, count in counts.items())
    return max(
        (len(part) * count / size for part, count in counts.items() if part and count > 2), default=0.0
    )


def _periodic(parts: Sequence[str], period: int) -> float:
    """Share of the parts that are the same as the one a period before; 0 for less than three periods."""
    if len(parts) < 3 * period:
        return 0.0
    return sum(a == b for a, b in zip(parts, parts[period:], strict=False)) / (len(parts) - period)


def first_failure(rows: pl.DataFrame, rules: list[RowRule]) -> pl.DataFrame:
    """The rows with `rule`, `reason` and `value` of the first rule that each of them fails; null: none.

    Each rule is asked of the rows that no earlier one rejected.
    """
    none = {name: pl.lit(None, dtype=pl.String) for name in ("rule", "reason", "value")}
    rows = rows.with_columns(**none) if "rule" not in rows.columns else rows
    place = rows.select(pl.int_range(pl.len(), dtype=pl.UInt32)).to_series()
    flags = rows.select(rule.fails.fill_null(False).alias(rule.name) for rule in rules)
    for rule in rules:
        failing = place.filter(flags[rule.name] & rows["rule"].is_null())
        if failing.is_empty():
            continue
        values = rows[failing].select(rule.value.cast(pl.String)).to_series()
        rows = rows.with_columns(
            rows["rule"].scatter(failing, rule.name),
            rows["reason"].scatter(failing, RULES[rule.name]),
            rows["value"].scatter(failing, values),
        )
    return rows
