"""A worked adapter: NLVR holds statements that are true or false of a picture of three boxes.

A picture lies there in several orders of its boxes, `dev-1572-0-0.png`, `dev-1572-0-1.png`, and the
statement holds for each: one record gives a pair an order. They are the same scene, so they share a group,
and the split never parts them.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from fsspec.core import url_to_fs

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, RecordError, Rejection, SourceFile
from vipolyqwen_core.corpus.readers.row_fields import required, text_of
from vipolyqwen_core.corpus.readers.rows import read_rows

ANSWERS = {"true": "Yes, this is true.", "false": "No, this is false."}


def statements(source: Source, file: SourceFile) -> Iterator[list[RawPair] | Rejection]:
    """One record a statement of `dev.json`, about the pictures `dev-IDENTIFIER-*.png`."""
    part = PurePosixPath(file.name).stem.split("_")[0]
    orders = _orders(source)
    for row in read_rows(file, source):
        try:
            if row.error is not None:
                raise row.error
            sentence = text_of(required(row.fields, ["sentence"]), "the sentence")
            scene = f"{part}-{text_of(required(row.fields, ['identifier']), 'the identifier')}"
            label = text_of(required(row.fields, ["label"]), "the label")
            if label not in ANSWERS:
                raise RecordError("unknown_label", "the label is neither true nor false", label)
            if scene not in orders:
                raise RecordError("missing_scene", "there is no picture of the scene", scene)
        except RecordError as error:
            yield error.rejection
            continue
        yield [
            RawPair(Task.VQA_SINGLE, sentence, ANSWERS[label], query_images=(picture,), group_id=scene)
            for picture in orders[scene]
        ]


def _orders(source: Source) -> dict[str, list[str]]:
    """The pictures of each scene, one for each order of its boxes."""
    fs, folder = url_to_fs(source.image_root)
    orders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(PurePosixPath(path).name for path in fs.ls(folder, detail=False)):
        orders[name.rpartition("-")[0]].append(name)
    return orders
