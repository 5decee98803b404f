# ruff: noqa: SIM905
"""A text corpus of any size whose answers are known: what is a copy of what, and what leaks.

Words follow Zipf's law in Vietnamese, English and Chinese; some Vietnamese is typed without diacritics. Of
all rows:

    15 %   exact copies of another row, half of them dirty: equal after normalisation only
    10 %   near copies, a quarter each: typing errors, words that change places, a word that is replaced,
           another template around the same words; numbers stay
     3 %   share the query of another row, with another target: linked, and no copies

Half of the copies lie in the source of their original, the rest anywhere, and half of the originals stand in
an earlier part of the corpus. One source is a benchmark. Of the other rows 0.1 % copy a row of it, 0.1 % are
near one, and 0.2 % hold a run of 16 words out of one of its queries.
"""

import json
import random
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vipolyqwen_core.corpus.manifest import Format, Manifest, Source

BLOCK_ROWS = 50_000
SOURCES = ("chat", "forum", "news", "wiki")
BENCHMARK = "exam"
EXACT, SHARED_QUERY, BANNED_RUN = "exact", "shared_query", "banned_run"
EDITS = ("typing", "reordered", "replaced", "template")
NEAR = tuple(f"near_{edit}" for edit in EDITS)
SHARES = {
    EXACT: 0.15,
    **dict.fromkeys(NEAR, 0.025),
    SHARED_QUERY: 0.03,
    "banned_exact": 0.001,
    **{f"banned_{kind}": 0.00025 for kind in NEAR},
    BANNED_RUN: 0.002,
}
"""Kind of a row -> its share. Kinds of benchmark rows begin with `banned`; all others are fresh rows."""
RUN_WORDS = 16
EARLIER_ORIGINALS = 20_000
LANGUAGES = {"vi": 0.6, "en": 0.25, "zh": 0.15}
PLAIN_SHARE, TEMPLATE_SHARE, NUMBER_SHARE = 0.05, 0.3, 0.15
LONGEST_WORDS = 400
ANSWERS_SCHEMA = {
    "source": pl.String,
    "line": pl.Int64,
    "row": pl.Int64,
    "original": pl.Int64,  # the row that it copies or shares something with; null: none
    "kind": pl.String,
    "similarity": pl.Float64,  # of a copy: the lower Jaccard similarity of its two sides, by 5-grams
}

TEMPLATES = {
    "vi": ("Hãy giải thích: {}", "Xin cho biết {}", "Câu hỏi: {} Trả lời ra sao?", "Bạn nghĩ gì về {}"),
    "en": ("Explain this: {}", "Please tell me about {}", "Question: {} What is it?", "Describe {} briefly."),
    "zh": ("请解释：{}", "请告诉我{}是什么", "问题：{}怎么回答？", "简单描述{}。"),
}
ENGLISH = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an"
    " they which one you were all her she there would their we him been has when who will no more if out so"
    " what up said about other into than its time only could new them man some these then two first may any"
    " like now my such make over our even most me state after also made many did must before back see through"
    " way where get much go well your know should down work year because come people just say each those take"
).split()
CONSONANTS = "b c ch d đ g gh h kh l m n ng nh ph qu r s t th tr v x".split()
RHYMES = (
    "a am an ang anh ac ach ai ao ă ăn ăng ăc ât â ân âm âu e em en eo ê ên êm êu i in inh im iêng iên iêu o"
    " on ong oi oan oa ô ôn ông ôi ôc ơ ơn ơi u un ung uôn uông uôi ư ưng ươn ương ươi ươc y yên uy uyên"
).split()
TONES = ("", "\u0301", "\u0300", "\u0309", "\u0303", "\u0323")


class Pair(NamedTuple):
    """A row of the corpus."""

    scored: bool
    language: str
    template: str | None
    content: str
    """The query without its template."""
    query: str
    target: str


class Known(NamedTuple):
    """A row that others may copy."""

    row: int
    source: str
    pair: Pair


def manifest_of(folder: Path) -> Manifest:
    """The sources of a corpus, the benchmark first."""
    return Manifest(
        sources=tuple(
            Source(
                name=name,
                format=Format.OWNER_JSONL,
                paths=(str(folder / f"{name}.jsonl"),),
                languages=tuple(LANGUAGES),
                off_limits=name == BENCHMARK,
            )
            for name in (BENCHMARK, *SOURCES)
        )
    )


def write_corpus(folder: Path, rows: int, seed: int = 0) -> None:
    """Write so many rows, a benchmark of a hundredth of them, and `answers/*.parquet` (ANSWERS_SCHEMA)."""
    (folder / "answers").mkdir(parents=True)
    writer = _Writer(folder, seed)
    benchmark = writer.write_benchmark(max(rows // 100, 500))
    earlier: list[Known] = []
    for start in range(0, rows, BLOCK_ROWS):
        earlier = writer.write_block(min(BLOCK_ROWS, rows - start), benchmark, earlier)


def read_answers(folder: Path) -> pl.DataFrame:
    """The answers to a corpus, by row."""
    return pl.read_parquet(folder / "answers" / "*.parquet").sort("row")


class _Writer:
    """Appends rows to the files of their sources, and the answers beside them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.words = Words(seed)
        self.lines = dict.fromkeys((BENCHMARK, *SOURCES), 0)
        self.num_rows = 0

    def write_benchmark(self, rows: int) -> list[Known]:
        known = [Known(row, BENCHMARK, pair) for row, pair in enumerate(self.words.pairs(rows))]
        self._append([(each, None, "benchmark", None) for each in known])
        return known

    def write_block(self, size: int, benchmark: list[Known], earlier: list[Known]) -> list[Known]:
        """Write a block of rows; the originals that later blocks may copy."""
        rng = self.random
        counts = {kind: round(share * size) for kind, share in SHARES.items()}
        fresh = self.words.pairs(size - sum(counts.values()))
        own = [Known(row, rng.choice(SOURCES), pair) for row, pair in enumerate(fresh, self.num_rows)]
        rows: list[tuple[Known, int | None, str, float | None]] = [
            (each, None, "fresh", None) for each in own
        ]
        spare = iter(self.words.pairs(counts[SHARED_QUERY] + counts[BANNED_RUN]))
        for kind, count in counts.items():
            for _ in range(count):
                pool = (
                    benchmark
                    if kind.startswith("banned")
                    else earlier
                    if earlier and rng.random() < 0.5
                    else own
                )
                original = rng.choice(pool)
                while not _fits(kind, original.pair):
                    original = rng.choice(pool)
                copy = self._copy(kind, original.pair, spare)
                source = original.source
                if source == BENCHMARK or rng.random() < 0.5:
                    source = rng.choice(SOURCES)
                rows.append(
                    (
                        Known(self.num_rows + len(rows), source, copy),
                        original.row,
                        kind,
                        similarity(original.pair, copy) if EXACT in kind or "near" in kind else None,
                    )
                )
        self._append(rows)
        return rng.sample(known := earlier + own, min(len(known), EARLIER_ORIGINALS))

    def _copy(self, kind: str, pair: Pair, spare: Iterator[Pair]) -> Pair:
        kind = kind.removeprefix("banned_")
        if kind == EXACT:
            return self._dirty(pair) if self.random.random() < 0.5 else pair
        if kind == SHARED_QUERY:
            return pair._replace(target=next(spare).target)
        if kind == "run":
            other = next(spare)
            parts = _words(pair)
            start = self.random.randrange(len(parts) - RUN_WORDS + 1)
            run = _joined(parts[start : start + RUN_WORDS], pair.language)
            return other._replace(query=f"{other.query} {run} {other.content}")
        edit = kind.removeprefix("near_")
        if edit == "template":
            others = [template for template in TEMPLATES[pair.language] if template != pair.template]
            return pair._replace(query=self.random.choice(others).format(pair.content))
        sides = self.random.choice((("query",), ("target",), ("query", "target")))
        return pair._replace(
            **{side: self._edited(edit, getattr(pair, side), pair.language) for side in sides}
        )

    def _edited(self, edit: str, text: str, language: str) -> str:
        rng = self.random
        if edit == "typing":
            letters = list(text)
            places = [place for place, letter in enumerate(letters) if letter.isalpha()]
            for place in rng.sample(places, min(len(places), rng.randint(1, 2))):
                letters[place] = rng.choice(("", letters[place] * 2, self.words.draw(language)[0]))
            return "".join(letters)
        parts = _parts(text, language)
        places = [place for place, part in enumerate(parts) if part.isalpha()]
        if edit == "replaced":
            parts[rng.choice(places)] = self.words.draw(language)
        else:
            one, two = rng.choice(list(pairwise(places)))
            parts[one], parts[two] = parts[two], parts[one]
        return _joined(parts, language)

    def _dirty(self, pair: Pair) -> Pair:
        """The same after normalisation: NFD, or no-break spaces and a zero-width one, or entities."""
        form = self.random.randrange(3)

        def soiled(text: str) -> str:
            if form == 0:
                return unicodedata.normalize("NFD", text) + " "
            if form == 1:
                return text.replace(" ", "\u00a0 ", 2) + "\u200b"
            return " " + text.replace(" ", "&nbsp;", 1) + "\r\n"

        return pair._replace(query=soiled(pair.query), target=soiled(pair.target))

    def _append(self, rows: list[tuple[Known, int | None, str, float | None]]) -> None:
        self.random.shuffle(rows)
        texts: dict[str, list[str]] = {name: [] for name in self.lines}
        answers = []
        for known, original, kind, similar in rows:
            self.lines[known.source] += 1
            answers.append((known.source, self.lines[known.source], known.row, original, kind, similar))
            texts[known.source].append(_json_line(known.pair))
        for source, lines in texts.items():
            with open(self.folder / f"{source}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(lines)
        table = pl.DataFrame(answers, schema=ANSWERS_SCHEMA, orient="row")
        table.write_parquet(self.folder / "answers" / f"{self.num_rows:012}.parquet")
        self.num_rows += len(rows)


def _fits(kind: str, pair: Pair) -> bool:
    """Whether such a copy can be made of a pair."""
    if kind.endswith("template"):
        return pair.template is not None
    return kind != BANNED_RUN or len(_words(pair)) >= RUN_WORDS


def _json_line(pair: Pair) -> str:
    fields = {"data_type": "contrastive_with_score" if pair.scored else "instruction"}
    fields |= {"input": pair.query, "output": pair.target}
    return json.dumps(fields | ({"similarity_score": 0.75} if pair.scored else {}), ensure_ascii=False) + "\n"


def _words(pair: Pair) -> list[str]:
    """The words of the content, without a number at its end."""
    return _parts(pair.content.rstrip("0123456789 "), pair.language)


def _parts(text: str, language: str) -> list[str]:
    return list(text) if language == "zh" else text.split(" ")


def _joined(parts: list[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(parts)


def similarity(one: Pair, two: Pair) -> float:
    """The lower Jaccard similarity of the sides, after what normalisation takes away, by 5-grams."""
    return min(
        _jaccard(_clean(one.query), _clean(two.query)), _jaccard(_clean(one.target), _clean(two.target))
    )


def _clean(text: str) -> str:
    text = text.replace("&nbsp;", " ").replace("\u200b", "")
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _jaccard(one: str, two: str) -> float:
    if one == two:
        return 1.0
    first, second = ({text[place : place + 5] for place in range(len(text) - 4)} for text in (one, two))
    return len(first & second) / len(first | second) if first | second else 0.0


class Words:
    """Vocabularies of three languages by Zipf's law, and pairs of sentences made of them."""

    def __init__(self, seed: int) -> None:
        self.numbers = np.random.default_rng(seed)
        self.random = random.Random(seed)
        syllables = [
            unicodedata.normalize("NFC", start + rhyme[0] + tone + rhyme[1:])
            for start in CONSONANTS
            for rhyme in RHYMES
            for tone in TONES
        ]
        self.random.shuffle(syllables)
        beginnings = [
            start + vowel
            for start in "b br c cl d dr f g h j l m n p pr r s st t tr v w".split()
            for vowel in "a e i o u ea ou".split()
        ]
        endings = "ck d ft ld ll m n nd ng r rt st t th ver ning tion ment ster".split()
        english = [
            one + end + more for one in beginnings for end in endings for more in ("", "ed", "s", "er", "ly")
        ]
        self.random.shuffle(english)
        self.vocabulary = {
            "vi": syllables[:7000],
            "en": [*ENGLISH, *english],
            "zh": [chr(0x4E00 + 5 * place) for place in self.numbers.permutation(3500)],
        }
        self.cumulative = {}
        for language, words in self.vocabulary.items():
            weights = 1 / (np.arange(len(words)) + 2.7) ** 1.05
            self.cumulative[language] = np.cumsum(weights) / weights.sum()

    def draw(self, language: str) -> str:
        """One word, the rare ones as likely as the frequent ones."""
        return self.random.choice(self.vocabulary[language])

    def pairs(self, count: int) -> list[Pair]:
        """So many new pairs, in the shares of the languages."""
        rng = self.random
        names = rng.choices(list(LANGUAGES), list(LANGUAGES.values()), k=count)
        texts = {name: iter(self._texts(name, names.count(name))) for name in LANGUAGES}
        made = []
        for name in names:
            content, target = next(texts[name])
            if rng.random() < NUMBER_SHARE:
                content += f" {rng.randrange(100_000)}"
            if name == "vi" and rng.random() < PLAIN_SHARE:
                content, target = _without_marks(content), _without_marks(target)
            template = rng.choice(TEMPLATES[name]) if rng.random() < TEMPLATE_SHARE else None
            query = template.format(content) if template else content.capitalize()
            made.append(Pair(rng.random() < 0.4, name, template, content, query, target.capitalize()))
        return made

    def _texts(self, language: str, count: int) -> list[tuple[str, str]]:
        """Contents of queries, and targets."""
        scale = 1.6 if language == "zh" else 1.0
        queries = self._lengths(count, 14 * scale, 0.4, least=8)
        targets = self._lengths(count, 22 * scale, 0.7, least=5)
        sentences = self._sentences(language, np.concatenate([queries, targets]))
        end = "。" if language == "zh" else "."
        return [
            (query, target + end) for query, target in zip(sentences[:count], sentences[count:], strict=True)
        ]

    def _lengths(self, count: int, median: float, sigma: float, least: int) -> NDArray[np.int64]:
        lengths = np.exp(self.numbers.normal(np.log(median), sigma, count))
        return np.clip(lengths, least, LONGEST_WORDS).astype(np.int64)

    def _sentences(self, language: str, lengths: NDArray[np.int64]) -> list[str]:
        chosen = np.searchsorted(self.cumulative[language], self.numbers.random(int(lengths.sum())))
        words = pl.Series(self.vocabulary[language])[chosen].to_arrow()
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        lists = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, words.cast(pa.large_string())))
        assert isinstance(lists, pl.Series)
        return lists.list.join("" if language == "zh" else " ").to_list()


def _without_marks(text: str) -> str:
    plain = unicodedata.normalize("NFD", text.replace("đ", "d"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))
