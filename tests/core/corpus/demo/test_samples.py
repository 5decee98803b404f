"""The clean samples of the built-in corpus: distinct, balanced, apart, and drawn within the pixel budget."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest
from PIL import Image

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo import demo_samples, demo_texts
from vipolyqwen_core.corpus.demo.lettering import fitted, font
from vipolyqwen_core.corpus.demo.samples import Contents, Sample
from vipolyqwen_core.corpus.demo.text_pairs import SIZES, sentence, similarity
from vipolyqwen_core.corpus.demo.vocabulary import CITIES, FRUITS, GOODS, PAPERS, SHOPS, Language

VIETNAMESE_PAIRS = 740
"""A quarter of so many is 150 with little doubt: three standard deviations above it."""


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(demo_samples())


def test_every_task_has_enough_vietnamese_positives_to_be_judged(samples: list[Sample]) -> None:
    positives = [s for s in samples if s.language is Language.VI and (s.score is None or s.score >= 0.5)]
    counts = Counter(sample.task for sample in positives)
    assert set(counts) == set(Task)
    assert min(counts.values()) >= VIETNAMESE_PAIRS


def test_every_task_is_asked_in_every_language(samples: list[Sample]) -> None:
    assert {(s.task, s.language) for s in samples} == {(t, lang) for t in Task for lang in Language}


def test_vietnamese_leads(samples: list[Sample]) -> None:
    counts = Counter(sample.language for sample in samples)
    assert counts[Language.VI] > 3 * (counts[Language.EN] + counts[Language.ZH])


def test_no_row_occurs_twice(samples: list[Sample]) -> None:
    keys = [
        (s.task, s.history, s.question, s.details, s.answer, tuple(p.path for p in s.pictures))
        for s in samples
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("task", Task)
def test_answers_of_a_task_are_distinct_but_made_of_few_words(task: Task, samples: list[Sample]) -> None:
    answers = [s.answer for s in samples if s.task is task and s.language is Language.VI]
    assert len(set(answers)) > 0.95 * len(answers)
    words = Counter(word for answer in answers for word in re.findall(r"\d|[^\W\d]+", answer))
    rare = sum(uses for uses in words.values() if uses < 4)
    assert rare < 0.05 * words.total()


def test_questions_about_pictures_are_few_and_fit_all_kinds(samples: list[Sample]) -> None:
    by_question: dict[tuple[Task, str], set[str]] = defaultdict(set)
    for sample in samples:
        if sample.pictures and len(sample.pictures) == 1:
            by_question[sample.task, sample.question].add(sample.group.split("-")[0])
    kinds = {task: set[str]() for task in Task}
    for (task, _), groups in by_question.items():
        kinds[task] |= groups
    assert len(by_question) <= 36
    common = [groups == kinds[task] for (task, _), groups in by_question.items()]
    assert sum(common) > 0.8 * len(common)


def test_history_never_contains_the_answer(samples: list[Sample]) -> None:
    for sample in samples:
        assert all(sample.answer not in turn.text for turn in sample.history)


def test_hard_negatives_are_one_word_away_from_the_answer(samples: list[Sample]) -> None:
    pairs = [(sample.answer, negative) for sample in samples for negative in sample.negatives]
    assert len(pairs) > 40
    for answer, negative in pairs:
        parts, others = answer.replace("，", ", ").split(", "), negative.replace("，", ", ").split(", ")
        assert parts[0] == others[0]
        assert parts[1] != others[1]


def test_pictures_are_whole_visual_tokens_within_the_budget(samples: list[Sample]) -> None:
    one_of_a_kind = {picture.path.split("/")[0]: picture for s in samples for picture in s.pictures}
    assert set(one_of_a_kind) >= {
        "scenes",
        "charts",
        "receipts",
        "papers",
        "tables",
        "comparisons",
        "dialogues",
    }
    for picture in one_of_a_kind.values():
        image = picture.draw()
        assert image.mode == "RGB"
        assert image.width % 28 == 0
        assert image.height % 28 == 0
        assert image.width * image.height <= 64 * 28 * 28
        assert len(image.getcolors(1 << 16) or ()) >= 2


def test_a_picture_is_drawn_the_same_each_time(samples: list[Sample]) -> None:
    for sample in samples[::211]:
        for picture in sample.pictures:
            assert picture.draw().tobytes() == picture.draw().tobytes()


def test_different_contents_give_different_pixels(samples: list[Sample]) -> None:
    paths = {picture.path: picture for s in samples[::7] for picture in s.pictures}
    drawn = [picture.draw().tobytes() for picture in paths.values()]
    assert len(set(drawn)) == len(drawn)


def test_same_seed_same_texts_and_other_seed_others() -> None:
    assert list(demo_texts(scale=0.1)) == list(demo_texts(scale=0.1))
    assert list(demo_texts(scale=0.1)) != list(demo_texts(seed=1, scale=0.1))


def test_the_font_has_every_letter_that_stands_on_pictures() -> None:
    words = [
        w for table in (SHOPS, GOODS, PAPERS, CITIES, FRUITS) for phrase in table for ws in phrase for w in ws
    ]
    unknown = _shape("\ue123")  # from the private use area: the font draws its box for unknown letters
    assert _shape("中") == unknown
    for letter in sorted(set("".join(words)) - {" "}):
        assert _shape(letter) != unknown, letter


def _shape(letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font(24).getmask(letter)
    return mask.size, bytes(mask)


def test_a_fitted_text_is_no_wider_than_its_box() -> None:
    assert fitted("Trúc Xanh, Đà Lạt", 100, 30).getlength("Trúc Xanh, Đà Lạt") <= 100
    assert fitted("Huế", 100, 30).size == 30


def test_contents_differ_in_two_slots() -> None:
    contents = Contents(random.Random(0), (4, 4, 4))
    drawn = [contents.draw() for _ in range(8)]
    distances = [sum(a != b for a, b in zip(x, y, strict=True)) for x in drawn for y in drawn if x is not y]
    assert min(distances) >= 2


def test_a_full_template_is_an_error() -> None:
    contents = Contents(random.Random(0), (2, 2), apart=False)
    assert len({contents.draw() for _ in range(4)}) == 4
    with pytest.raises(ValueError, match=r"\(2, 2\) values in its slots is full"):
        contents.draw()


def test_scores_fill_the_range(samples: list[Sample]) -> None:
    scores = [s.score for s in samples if s.score is not None]
    assert min(scores) == 0.0
    assert max(scores) == 1.0
    assert {int(score * 10) for score in scores} == set(range(11))
    assert all(s.score is not None for s in samples if s.task is Task.TEXT_PAIR)


def test_similarity_is_the_weight_of_what_agrees() -> None:
    content = (3, 5, 7, 2, 1)
    assert similarity(content, content) == 1.0
    assert similarity(content, (0, 5, 7, 2, 1)) == 0.7
    assert similarity(content, (0, 0, 0, 0, 0)) == 0.0


def test_sentences_of_one_content_differ_in_words_only() -> None:
    rng = random.Random(3)
    content = tuple(rng.randrange(size) for size in SIZES)
    told = {sentence(content, Language.VI, order, wording) for order in range(3) for wording in range(32)}
    assert len(told) == 96


def test_a_group_is_one_content_in_several_languages(samples: list[Sample]) -> None:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    for group in groups.values():
        if group[0].task is not Task.TEXT_PAIR:
            assert _distinct(s.language for s in group)
        assert len({tuple(p.path for p in s.pictures) for s in group}) == 1


def _distinct(values: Iterable[object]) -> bool:
    listed = list(values)
    return len(set(listed)) == len(listed)


def test_vietnamese_marks_are_drawn() -> None:
    plain, marked = (Image.Image.getbbox(_written(word)) for word in ("An", "Ấn"))
    assert plain is not None
    assert marked is not None
    assert marked[1] < plain[1]


def _written(word: str) -> Image.Image:
    mask = font(24).getmask(word, anchor="ls")
    image = Image.new("L", (80, 60))
    offset = font(24).getbbox(word, anchor="ls")
    image.paste(255, (10, 40 + offset[1], 10 + mask.size[0], 40 + offset[1] + mask.size[1]))
    return image
