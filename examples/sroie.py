"""Worked adapters: SROIE keeps a JSON of four keys and a CSV of text boxes for each scanned receipt.

`questions`: each key (company, date, address, total) becomes one question about the receipt. A key that is
missing or empty gives no pair and stands in the ledger with its reason. `transcript`: the whole text of the
receipt. All pairs of one receipt share its picture, so the split never parts them.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, Rejection, SourceFile
from vipolyqwen_core.corpus.readers.files import read_lines, read_text

QUESTIONS = {
    "company": "Which company issued this receipt?",
    "date": "On which date was this receipt issued?",
    "address": "What is the address on this receipt?",
    "total": "What is the total amount of this receipt?",
}


WHOLE_TEXT = "Read the whole text of this receipt, line by line."
CORNERS = 8
"""Numbers in front of a box's text: four corners."""


def questions(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
    """One record a key of the file `123.json`, about the picture `123.jpg`."""
    text = read_text(file.location)
    try:
        answers = json.loads(text)
    except json.JSONDecodeError as error:
        yield Rejection("broken_json", f"the file is not JSON: {error.msg}", text[:200])
        return
    if not isinstance(answers, dict):
        yield Rejection("not_an_object", "expected an object with the four keys", text[:200])
        return
    picture = PurePosixPath(file.name).with_suffix(".jpg").name
    for key, question in QUESTIONS.items():
        answer = answers.get(key)
        if isinstance(answer, str) and answer.strip():
            yield RawPair(Task.VQA_SINGLE, question, answer, query_images=(picture,))
        else:
            yield Rejection("missing_key", f"the receipt has no {key}", str(answers))


def transcript(source: Source, file: SourceFile) -> Iterator[RawPair | Rejection]:
    """One record a file `123.csv`: the texts of its boxes in their order. A text may hold commas itself."""
    boxes = [line.text.split(",", CORNERS) for line in read_lines(file.location) if line.text.strip()]
    broken = next((box for box in boxes if len(box) <= CORNERS), None)
    if broken is not None:
        yield Rejection("broken_box", "a box has fewer than eight numbers and a text", ",".join(broken)[:200])
        return
    text = "\n".join(box[CORNERS] for box in boxes)
    yield RawPair(Task.OCR, WHOLE_TEXT, text, query_images=(f"{PurePosixPath(file.name).stem}.jpg",))
