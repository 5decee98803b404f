"""What every part of the factory agrees on: tasks, prefixes, the columns of each table, the shape letters.

Pure Python, so that a GPU node, a served model and the Dagster code location can all import it in no time.
`vipolyqwen_core.corpus.tables` makes Arrow schemas of the columns below, `quality.polars_tables` Polars ones.

Shape letters of docstrings; others are told where they stand:
    B   pairs of one task in a batch            S   segments: items packed into one sequence
    C   candidates an anchor is compared with   T   packed tokens of all segments
    D   dimension of an embedding               H   hidden size of the backbone
    N   pictures in a batch                     P   picture patches of all pictures
    M   hard negatives of the pairs             Q   queries of an evaluation pool
"""

from enum import StrEnum
from typing import Final, NamedTuple

IMAGE_PLACEHOLDER: Final = "<image>"
"""Stands in a text where a picture belongs. It counts only where pictures are declared."""

EMBEDDING_DIM: Final = 1024
EXPERIMENT: Final = "vipolyqwen"
"""Experiment of the factory's runs in MLflow."""
REGISTERED_MODEL: Final = "vipolyqwen"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"


class Task(StrEnum):
    """The five tasks. The value is the one spelling: column, config key, metric name, prefix."""

    TEXT_PAIR = "text_pair"
    INSTR = "instr"
    OCR = "ocr"
    VQA_SINGLE = "vqa_single"
    VQA_MULTI = "vqa_multi"


IMAGE_TASKS: Final = frozenset({Task.OCR, Task.VQA_SINGLE, Task.VQA_MULTI})
"""Tasks whose query has a picture."""


class Side(StrEnum):
    """The two sides of a pair."""

    QUERY = "query"
    TARGET = "target"


class Split(StrEnum):
    """Where a pair of the training set belongs."""

    TRAIN = "train"
    EVAL = "eval"

    @property
    def file(self) -> str:
        """Name of its table, TRAINING, in the folder of a training set."""
        return f"{self.value}.arrow"


PREFIX_TOKENS: Final[dict[Task, str]] = {task: f"<{task.value}>" for task in Task}
"""Spelling of each prefix in the tokenizer. It exists in inputs only as an id, never as pasted text."""

PREFIXED_SIDES: Final[dict[Task, frozenset[Side]]] = {
    task: frozenset(Side) if task is Task.TEXT_PAIR else frozenset({Side.QUERY}) for task in Task
}


def prefix_of(task: Task, side: Side) -> Task | None:
    """The prefix that a side has in training."""
    return task if side in PREFIXED_SIDES[task] else None


class Turn(NamedTuple):
    """An earlier turn of a dialogue."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str


class Column(NamedTuple):
    """One column of a table that is handed from stage to stage."""

    name: str
    dtype: str
    """An Arrow type: string, binary, bool, int32, int64, uint64, float32, `list<...>`,
    `struct<name: type, ...>` or `fixed_size_list<float32>[1024]`."""
    meaning: str


PAIR: Final = (
    Column("sample_id", "string", "32 hex digits: hash of task, both sides, their images and the score"),
    Column("source", "string", "name of the source in the manifest"),
    Column("task", "string", "a value of Task"),
    Column("language", "string", "vi, en, zh or other: detected on both sides together, never believed"),
    Column("query", "string", "normalised text, with <image> where a picture belongs"),
    Column("query_images", "list<string>", "image ids, in the order of the placeholders of history + query"),
    Column("history", "list<struct<role: string, text: string>>", "earlier turns of a dialogue; null: none"),
    Column("target", "string", "normalised text, with <image> where a picture belongs"),
    Column("target_images", "list<string>", "image ids, in the order of the placeholders"),
    Column("score", "float32", "similarity in [0, 1] of a scored pair, else null"),
    Column(
        "negatives",
        "list<struct<text: string, images: list<string>>>",
        "explicit hard negatives: further targets that are wrong; null: none",
    ),
    Column("group_id", "string", "declared: rows of one group never stand on both sides of the split"),
    Column("positive_key", "string", "declared: targets of rows with the same key are all right answers"),
    Column("file", "string", "the source file, relative to the source's root"),
    Column("line", "int64", "1-based line, or 1-based record where a file has no lines"),
    Column("item", "int32", "which pair of that record, from 0"),
)
"""One row of `curated_corpus`. Tables are sorted by (file, line, item)."""

TAGGED: Final = (
    *PAIR,
    Column("prefix", "string", "the task prefix, spelled as the task: `ocr`"),
    Column("query_hash", "uint64", "identity of the side: its normalised text, history and image ids"),
    Column("target_hash", "uint64", "likewise; equal hashes are known false negatives"),
    Column("positive_hash", "uint64", "hash of positive_key, 0 where there is none"),
    Column("query_tokens", "int32", "length of the packed query, with prefix and picture tokens"),
    Column("target_tokens", "int32", "length of the packed target, hard negatives included"),
    Column("query_patches", "int32", "picture patches of the query (before the merge)"),
    Column("target_patches", "int32", "picture patches of the target, hard negatives included"),
)
"""One row of `tagged_corpus` and of `validated_corpus`. Placeholders are repaired: as many as pictures."""

TRAINING: Final = (
    *TAGGED,
    Column("split", "string", "train or eval"),
    Column("component", "string", "id of the component of linked rows; a component never crosses the split"),
    Column("query_image_rows", "list<int64>", "row of each query picture in the pinned image store"),
    Column("target_image_rows", "list<int64>", "row of each target picture in the pinned image store"),
    Column("negative_image_rows", "list<list<int64>>", "the same for each hard negative; null: none"),
)
"""One row of the training set's `train.arrow` and `eval.arrow`."""

PLAN_INDEX: Final = (
    Column("sample_id", "string", "as in the pair"),
    Column("task", "string", "as in the pair"),
    Column("source", "string", "as in the pair"),
    Column("tokens", "int32", "tokens of both sides and the hard negatives"),
    Column("patches", "int32", "picture patches of both sides and the hard negatives"),
    Column("images", "int32", "pictures of both sides and the hard negatives"),
)
"""The training set's `index.parquet`: row i describes row i of `train.arrow`. The plan reads only this."""

MINED: Final = (
    Column(
        "negatives", "list<int64>", "rows of train.arrow whose targets are its hard negatives, nearest first"
    ),
    Column("similarities", "list<float32>", "cosine of the row's query with each of them"),
    Column("tokens", "int32", "tokens that they add to the row, at most"),
    Column("patches", "int32", "picture patches that they add, at most"),
    Column("images", "int32", "pictures that they add, at most"),
)
"""`hard_negatives/mined.arrow`: row i describes row i of `train.arrow`. What a row adds counts the declared
negatives of the rows that its negatives come from, which training leaves out."""

LEDGER: Final = (
    Column("stage", "string", "the stage that rejected: read, curated, tagged, validated or training_set"),
    Column("source", "string", "name of the source in the manifest"),
    Column("sample_id", "string", "the pair; null where a record could not be read into one"),
    Column("rule", "string", "name of the rule, the key to count by: `truncated_image`"),
    Column("reason", "string", "one sentence for a person"),
    Column("value", "string", "the offending value, cut to 200 characters"),
    Column("file", "string", "the source file, relative to the source's root"),
    Column("line", "int64", "1-based line or record"),
    Column("item", "int32", "which pair of that record, from 0; null for a record"),
)
"""Every row that did not make it, with its reason. Reading: records = records that gave at least one pair +
records in the ledger. After that, by stage and source: pairs in = pairs out + pairs in the ledger."""

IMAGE_STORE: Final = (
    Column("image_id", "string", "32 hex digits: hash of size and RGB pixels after normalisation"),
    Column("bytes", "binary", "an upright RGB picture without metadata: the original bytes, or PNG"),
    Column("format", "string", "JPEG, PNG, WEBP ...: what the bytes really are"),
    Column("width", "int32", "pixels"),
    Column("height", "int32", "pixels"),
    Column("phash", "string", "64-bit perceptual hash in hex; it proposes equal pictures, never decides"),
    Column("origin", "string", "path below the image root of the first file with this picture"),
    Column("reencoded", "bool", "true where the original bytes had to be written anew"),
)
"""A Lance dataset for each source. A row never changes; a new run writes a new version of the dataset."""

ASSIGNMENTS: Final = (
    Column("sample_id", "string", "a pair that was in some training set, or a copy dropped for one"),
    Column("component", "string", "its component at that time"),
    Column("split", "string", "train or eval: sticky"),
    Column("content", "string", "hashes of its two sides: what it says, without its score; zeros: unknown"),
    Column("links", "list<uint64>", "first 16 digits of its image ids, hash of its group; empty for a copy"),
)
"""The persisted split. Rows that were assigned once keep their side."""

EXPORT: Final = (
    Column("sample_id", "string", "the pair the side belongs to"),
    Column("side", "string", "query or target"),
    Column("prefix", "string", "prefix the side was encoded with; null: none, the everyday use"),
    Column("split", "string", "train or eval"),
    Column("origin", "string", "file:line of the pair, or the picture's path below the image root"),
    Column("source", "string", "name of the source"),
    Column("task", "string", "a value of Task"),
    Column("language", "string", "vi, en, zh or other"),
    Column("text", "string", "what was encoded, history included"),
    Column("image_ids", "list<string>", "its pictures in the image store of the source"),
    Column("model_version", "string", "registry version that made the vector"),
    Column("embedding", f"fixed_size_list<float32>[{EMBEDDING_DIM}]", "unit vector"),
)
"""One row a side: `embeddings.parquet` and the LanceDB table `embeddings`."""

MINED_TABLE: Final = "mined.arrow"
"""File of `hard_negatives/`, MINED; row i describes row i of `train.arrow`."""

MODEL_FILES: Final = {
    "config.json": "ViPolyQwenConfig: backbone, pooling, dimension, prefixes, prompt template, pixel budget",
    "model.safetensors": "all weights (an index beside it where they are sharded); safetensors only",
    "tokenizer.json": "the backbone's tokenizer with the five prefixes added as special tokens",
    "tokenizer_config.json": "its settings",
    "preprocessor_config.json": "picture processing: patch and merge size, pixel budget, mean, deviation",
    "modules.json": "makes the folder loadable by sentence-transformers",
    "config_sentence_transformers.json": "its prompts, one a prefix, and cosine similarity",
    "README.md": "model card",
}
"""Files of a model directory, as training exports it and as the registry carries it."""

BACKBONE_FILES: Final = (
    "config.json",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
)
"""Files of a backbone directory: what Qwen/Qwen2-VL-2B-Instruct has, and what the tiny backbone writes."""
