"""A worked adapter: SROIE keeps a JSON of four keys (company, date, address, total) for each scanned receipt.

Each key becomes one question about the receipt. A key that is missing or empty gives no pair and stands in
the ledger with its reason; all questions on one receipt share its picture, so the split never parts them.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.manifest import Source
from vipolyqwen_core.corpus.readers import RawPair, Rejection, SourceFile
from vipolyqwen_core.corpus.readers.files import read_text

QUESTIONS = {
    "company": "Which company issued this receipt?",
    "date": "On which date was this receipt issued?",
    "address": "What is the address on this receipt?",
    "total": "What is the total amount of this receipt?",
}


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
