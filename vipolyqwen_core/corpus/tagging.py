"""Stage `tagged`: from curated pairs to pairs with prefix, repaired placeholders, identities and lengths.

    tagged/<source>/pairs.parquet     TAGGED, in the order of the curated pairs
    tagged/<source>/ledger.parquet    LEDGER, stage `tagged`
    tagged/<source>/stage.json        StageSummary; details: truncated pairs, longest sides

Streams by record batches: memory holds one batch and the sizes of the source's pictures.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vipolyqwen_core.config import CurationSettings, ProcessingSettings, to_json
from vipolyqwen_core.contract import LEDGER, PAIR, TAGGED, Side, Task, Turn, prefix_of
from vipolyqwen_core.corpus.hashing import content_digest, fingerprint, key_hash, side_hash
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.image_store import ImageStore
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.normalised_pair import normalise_pair
from vipolyqwen_core.corpus.pictures import PictureError, decode_picture
from vipolyqwen_core.corpus.readers import RawPair, Rejection, read_source, shorten
from vipolyqwen_core.corpus.tables import (
    StageSummary,
    arrow_schema,
    read_batches,
    read_stage,
    unchanged_stage,
)
from vipolyqwen_core.corpus.text import PlaceholderError, repair_dialogue
from vipolyqwen_core.processing.processor import Measures, ViPolyQwenProcessor
from vipolyqwen_core.workspace import Workspace
from vipolyqwen_core.written_aside import written_aside

logger = logging.getLogger(__name__)

STAGE = "tagged"
CODE_VERSION = 1
"""Raise it when the same input gives another result: earlier results are then made anew."""
TOO_MANY_PLACEHOLDERS = "too_many_placeholders"
"""The rule under which a row is rejected whose sides `repaired_sides` refuses."""
BATCH_PAIRS = 4096
PREVIEW_PAIRS = 3

Row = dict[str, Any]
Size = tuple[int, int]
_PLACES = ("source", "sample_id", "file", "line", "item")


class RepairedSide(NamedTuple):
    """A side with as many placeholders as pictures."""

    text: str
    history: tuple[Turn, ...] | None
    images: Sequence[str]


def tag(
    source: Source, processing: ProcessingSettings, backbone: Path | str, workspace: Workspace
) -> StageSummary:
    """Tag the curated pairs of a source; reuse what stands where nothing has changed.

    Raises:
        ValueError: the source was not curated yet, or the backbone has no tokenizer of Qwen2-VL
    """
    started = time.monotonic()
    curated = read_stage(workspace.curated(source.name))
    if curated is None:
        raise ValueError(f"source {source.name!r} has not been curated yet: run that stage first")
    processor = ViPolyQwenProcessor.from_backbone(backbone, processing)
    mark = fingerprint(STAGE, CODE_VERSION, curated.data_version, to_json(processing), _identity(processor))
    folder = workspace.tagged(source.name)
    if (summary := unchanged_stage(folder, mark, ("pairs.parquet", "ledger.parquet"))) is not None:
        logger.info("%s: unchanged, %d pairs", source.name, summary.pairs_out)
        return summary
    pairs_in, rejected, details = 0, Counter[str](), Counter[str]()
    sizes = _picture_sizes(curated)
    with written_aside(folder) as aside:
        aside.mkdir()
        pairs, ledger = aside / "pairs.parquet", aside / "ledger.parquet"
        with (
            pq.ParquetWriter(pairs, arrow_schema(TAGGED)) as kept_writer,
            pq.ParquetWriter(ledger, arrow_schema(LEDGER)) as ledger_writer,
        ):
            for rows in _batches(workspace.curated(source.name) / "pairs.parquet"):
                tagged, refused, truncated = tag_rows(rows, sizes, processor)
                kept_writer.write_table(pa.Table.from_pylist(tagged, schema=arrow_schema(TAGGED)))
                ledger_writer.write_table(pa.Table.from_pylist(refused, schema=arrow_schema(LEDGER)))
                pairs_in += len(rows)
                rejected.update(line["rule"] for line in refused)
                details["pairs"] += len(tagged)
                details["truncated_pairs"] += truncated
                for name in ("query_tokens", "target_tokens"):
                    longest = max((row[name] for row in tagged), default=0)
                    details[f"longest_{name}"] = max(details[f"longest_{name}"], longest)
                logger.info("%s: %d of %d pairs tagged", source.name, pairs_in, curated.pairs_out)
        summary = StageSummary(
            stage=STAGE,
            fingerprint=mark,
            data_version=content_digest([pairs, ledger]),
            pairs_in=pairs_in,
            pairs_out=details.pop("pairs", 0),
            rejected=dict(rejected.most_common()),
            seconds=time.monotonic() - started,
            details=dict(details),
        )
        assert summary.pairs_in == summary.pairs_out + sum(summary.rejected.values()), summary
        summary.write(aside)
    return summary


def tag_rows(
    rows: Sequence[Row], sizes: Mapping[str, Size], processor: ViPolyQwenProcessor
) -> tuple[list[Row], list[Row], int]:
    """Rows of PAIR as rows of TAGGED, those that cannot be tagged as rows of LEDGER, and how many are cut.

    Args:
        sizes: width and height of each picture, by id
    """
    refusals: dict[int, Rejection] = {}
    sides: list[list[RepairedSide]] = []  # query, target, hard negatives of each row
    for number, row in enumerate(rows):
        try:
            sides.append(repaired_sides(row))
        except PlaceholderError as error:
            refusals[number] = Rejection(TOO_MANY_PLACEHOLDERS, str(error), shorten(error.text))
            sides.append([])
    places = [(number, which) for number, some in enumerate(sides) for which in range(len(some))]
    measured = _measure(rows, sides, places, sizes, processor)
    for failed, complaint in measured.errors.items():
        number, which = places[failed]
        text = sides[number][which].text
        refusals.setdefault(number, Rejection(complaint.rule, complaint.reason, shorten(text)))
    lengths: list[list[int]] = [[0, 0, 0, 0] for _ in rows]  # query tokens, patches; target tokens, patches
    cut = set()
    for measure, (number, which) in enumerate(places):
        side = min(which, 1)  # hard negatives count with the target
        lengths[number][2 * side] += int(measured.tokens[measure])
        lengths[number][2 * side + 1] += int(measured.patches[measure])
        if measured.truncated_tokens[measure] and number not in refusals:
            cut.add(number)
    tagged = [
        _tagged(row, sides[number], lengths[number])
        for number, row in enumerate(rows)
        if number not in refusals
    ]
    refused = [_ledger_line(rows[number], refusals[number]) for number in sorted(refusals)]
    return tagged, refused, len(cut)


def preview(
    source: Source,
    curation: CurationSettings,
    processing: ProcessingSettings,
    backbone: Path | str,
    num_pairs: int = PREVIEW_PAIRS,
) -> tuple[list[Row], list[Row]]:
    """The first pairs of a source as they would be tagged, rows of TAGGED; nothing is written.

    Pairs that could not be tagged on the way to them come second, as rows of LEDGER. Those whose pictures
    are missing or broken are passed over.
    The language is not detected (null).

    Raises:
        ValueError: the source cannot be read, or the backbone has no tokenizer of Qwen2-VL
    """
    root = ImageRoot(source.image_root)
    processor = ViPolyQwenProcessor.from_backbone(backbone, processing)
    shown: list[Row] = []
    refused: list[Row] = []
    pairs = (
        (record.file, record.line, item, pair)
        for record in read_source(source, curation.dialogue_turns)
        for item, pair in enumerate(record.pairs)
    )
    for file, line, item, pair in islice(pairs, 20 * num_pairs):
        sizes: dict[str, Size] = {}
        try:
            row = _preview_row(pair, root, curation.max_image_pixels, sizes)
        except PictureError:
            continue
        row |= {"source": source.name, "file": file, "line": line, "item": item}
        tagged, rejected, _ = tag_rows([row], sizes, processor)
        shown += tagged
        refused += rejected
        if len(shown) >= num_pairs:
            break
    return shown, refused


def _identity(processor: ViPolyQwenProcessor) -> str:
    """Hash of all that decides about ids and patches."""
    return fingerprint(processor.tokenizer.to_str(), processor.contract, processor.layout)


def _picture_sizes(curated: StageSummary) -> dict[str, Size]:
    images = curated.details.get("images")
    if not images:
        return {}
    table = ImageStore(**images).table(["image_id", "width", "height"])
    ids, widths, heights = (table[name].to_pylist() for name in ("image_id", "width", "height"))
    return dict(zip(ids, zip(widths, heights, strict=True), strict=True))


def _batches(path: Path) -> Iterator[list[Row]]:
    names = [column.name for column in PAIR]
    for batch in read_batches(path, BATCH_PAIRS, names):
        yield batch.to_pylist()


def repaired_sides(row: Mapping[str, Any]) -> list[RepairedSide]:
    """Query, target and hard negatives of a row, with as many placeholders as pictures.

    Raises:
        PlaceholderError: a side has more placeholders than pictures
    """
    turns = [Turn(turn["role"], turn["text"]) for turn in row["history"] or ()]
    query_images, target_images = row["query_images"] or (), row["target_images"] or ()
    query, history = repair_dialogue(row["query"], len(query_images), turns)
    target, _ = repair_dialogue(row["target"], len(target_images))
    sides = [RepairedSide(query, history, query_images), RepairedSide(target, None, target_images)]
    for negative in row["negatives"] or ():
        images = negative["images"] or ()
        text, _ = repair_dialogue(negative["text"], len(images))
        sides.append(RepairedSide(text, None, images))
    return sides


def _measure(
    rows: Sequence[Row],
    sides: Sequence[Sequence[RepairedSide]],
    places: Sequence[tuple[int, int]],
    sizes: Mapping[str, Size],
    processor: ViPolyQwenProcessor,
) -> Measures:
    """Lengths of all sides, each with its prefix where the task prefixes that side."""
    flat = [sides[number][which] for number, which in places]
    prefixed = [
        prefix_of(Task(rows[number]["task"]), Side.TARGET if which else Side.QUERY)
        for number, which in places
    ]
    return processor.measure(
        [side.text for side in flat],
        [[sizes[image] for image in side.images] for side in flat],
        [side.history or () for side in flat],
        prefixed,
    )


def _tagged(row: Row, sides: Sequence[RepairedSide], lengths: Sequence[int]) -> Row:
    query, target, *negatives = sides
    return {
        **row,
        "query": query.text,
        "history": None if query.history is None else [turn._asdict() for turn in query.history],
        "target": target.text,
        "negatives": [{"text": side.text, "images": list(side.images)} for side in negatives] or None,
        "prefix": row["task"],
        "query_hash": side_hash(query.text, query.images, query.history),
        "target_hash": side_hash(target.text, target.images),
        "positive_hash": key_hash(row["positive_key"]),
        "query_tokens": lengths[0],
        "query_patches": lengths[1],
        "target_tokens": lengths[2],
        "target_patches": lengths[3],
    }


def _ledger_line(row: Row, rejection: Rejection) -> Row:
    return {"stage": STAGE, **{name: row[name] for name in _PLACES}, **vars(rejection)}


def _preview_row(pair: RawPair, root: ImageRoot, max_image_pixels: int, sizes: dict[str, Size]) -> Row:
    """A row of PAIR, as curation would make it; the sizes of its pictures go into `sizes`.

    Raises:
        PictureError: a picture is missing or broken
    """

    def ids(images: Sequence[str | bytes]) -> list[str]:
        found = []
        for image in images:
            data = root.read(image) if isinstance(image, str) else image
            picture = decode_picture(data, max_image_pixels)
            found.append(image_id(picture.image))
            sizes[found[-1]] = (picture.width, picture.height)
        return found

    normalised, images = normalise_pair(pair), [ids(side) for side in pair.images]
    return {
        "sample_id": normalised.hashes(images)[0],
        "language": None,
        **normalised.columns(images),
    }
