"""Instructions with an input and an answer that follows from them: nothing has to be known, all is said."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.demo import text_pairs
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Sample, languages_of
from vipolyqwen_core.corpus.demo.vocabulary import (
    BOSSES,
    DISHES,
    EVENTS,
    GUESTS,
    NUMBERS,
    OCCASIONS,
    PEOPLE,
    PLACES,
    REASONS,
    TASTES,
    Language,
    Phrase,
)

Filled = tuple[str, str, str]
"""Instruction, input and answer."""


@dataclass(frozen=True)
class Kind:
    """A kind of instruction: its slots, and what is said with them in each language."""

    name: str
    slots: tuple[Sequence[Phrase], ...]
    fill: Callable[[Content, Language, random.Random], Filled]


def _templates(
    slots: tuple[Sequence[Phrase], ...], table: dict[Language, tuple[str, str, str]]
) -> Callable[[Content, Language, random.Random], Filled]:
    """A filler for templates whose fields {0}, {1} ... are the slots; wordings stand apart by ` / `."""

    def fill(content: Content, language: Language, rng: random.Random) -> Filled:
        parts = [slot[value].to(language) for slot, value in zip(slots, content, strict=True)]
        texts = [rng.choice(template.split(" / ")).format(*parts) for template in table[language]]
        instruction, details, answer = (text[0].upper() + text[1:] for text in texts)
        return instruction, details, answer

    return fill


SEVERAL = NUMBERS[1:]
INVITATION_SLOTS = (EVENTS, GUESTS, PLACES, OCCASIONS)
INVITATION = {
    Language.VI: (
        "Viết lời mời {1} đến dự {0}. / Soạn giúp tôi thiệp mời {1} tới {0}. / Hãy mời {1} dự {0}.",
        "Địa điểm: {2}. Thời gian: {3}. / Khi nào: {3}; nơi tổ chức: {2}.",
        "Kính mời {1} tới dự {0}, {2}, {3}. / Trân trọng mời {1}: {0} diễn ra {2} {3}.",
    ),
    Language.EN: (
        "Write an invitation for {1} to {0}. / Please invite {1} to {0}.",
        "Place: {2}. Time: {3}. / When: {3}; where: {2}.",
        "We warmly invite {1} to {0}, {2}, {3}. / To {1}: please join us for {0}, {3}, {2}.",
    ),
    Language.ZH: (
        "请写一份邀请，请{1}参加{0}。 / 帮我邀请{1}出席{0}。",
        "地点：{2}。时间：{3}。",
        "诚邀{1}{3}{2}参加{0}。 / 敬请{1}光临{0}，{3}，{2}。",
    ),
}

LEAVE_SLOTS = (BOSSES, REASONS, SEVERAL, OCCASIONS)
LEAVE = {
    Language.VI: (
        "Viết thư xin nghỉ {2} ngày gửi {0}. / Soạn đơn gửi {0}, xin nghỉ {2} ngày.",
        "Lý do: {1}. Bắt đầu: {3}. / Nghỉ từ {3} vì {1}.",
        "Kính gửi {0}, tôi xin nghỉ {2} ngày từ {3} do {1}. / Thưa {0}, vì {1}, tôi xin nghỉ {2} ngày, {3}.",
    ),
    Language.EN: (
        "Ask {0} for {2} days off in a letter. / Write to {0}: I need {2} days of leave.",
        "Reason: {1}. Start: {3}.",
        "To {0}: because of {1}, may I take {2} days off, {3}? / To {0}: {2} days off, {3}, for {1}, please.",
    ),
    Language.ZH: (
        "给{0}写请假信，请{2}天假。 / 写信向{0}请{2}天假。",
        "原因：{1}。开始：{3}。",
        "尊敬的{0}：因{1}，我想{3}请假{2}天。 / {0}您好，我{1}，{3}需请{2}天假。",
    ),
}

RECIPE_SLOTS = (DISHES, SEVERAL, TASTES, GUESTS)
RECIPE = {
    Language.VI: (
        "Lên thực đơn một món {2} cho {3}. / Gợi ý món ăn {2} để mời {3}.",
        "{0}. Cần {1} suất. / Món {0}; làm {1} phần ăn.",
        "Đãi {3} {1} suất, {2}: {0}. / {1} phần {0}, nấu {2} để {3} thưởng thức.",
    ),
    Language.EN: (
        "Plan a dish {2} for {3}. / Suggest a meal {2} to serve {3}.",
        "{0}. Portions: {1}.",
        "{1} portions for {3}, {2}: {0}. / Serve {3} {1} plates of {0}, {2}.",
    ),
    Language.ZH: (
        "为{3}安排一道{2}的菜。",
        "{0}。份数：{1}。",
        "给{3}准备{1}份，{2}：{0}。 / {1}份{0}，{2}，招待{3}。",
    ),
}

SUMMARY = {
    Language.VI: (
        "Rút ra các ý chính của câu. / Ai làm gì, ở đâu, khi nào?",
        "Người: {0}; việc: {1}; nơi: {2}; lúc: {3}; kèm: {4}",
    ),
    Language.EN: (
        "Extract the facts of the sentence. / Who does what, where and when?",
        "Who: {0}; what: {1}; where: {2}; when: {3}; also: {4}",
    ),
    Language.ZH: (
        "提取句子的要点。 / 谁在哪里做什么？",
        "人物：{0}；事情：{1}；地点：{2}；时间：{3}；情况：{4}",
    ),
}
TRANSLATION = {
    Language.VI: "Dịch câu sau sang tiếng Anh. / Câu này nói thế nào bằng tiếng Anh?",
    Language.EN: "Translate the sentence into Vietnamese. / How do you say this in Vietnamese?",
    Language.ZH: "把这句话翻译成英文。 / 用英语怎么说？",
}


def _summary(content: Content, language: Language, rng: random.Random) -> Filled:
    instruction, answer = (rng.choice(template.split(" / ")) for template in SUMMARY[language])
    parts = [slot[value].to(language) for slot, value in zip(text_pairs.SLOTS, content, strict=True)]
    sentence = text_pairs.sentence(content, language, rng.randrange(3), rng.randrange(32))
    return instruction, sentence, answer.format(*parts)


def _translation(content: Content, language: Language, rng: random.Random) -> Filled:
    other = Language.EN if language is not Language.EN else Language.VI
    order, wording = rng.randrange(3), rng.randrange(32)
    return (
        rng.choice(TRANSLATION[language].split(" / ")),
        text_pairs.sentence(content, language, order, wording),
        text_pairs.sentence(content, other, order, wording),
    )


KINDS = (
    Kind("invitation", INVITATION_SLOTS, _templates(INVITATION_SLOTS, INVITATION)),
    Kind("leave", LEAVE_SLOTS, _templates(LEAVE_SLOTS, LEAVE)),
    Kind("recipe", RECIPE_SLOTS, _templates(RECIPE_SLOTS, RECIPE)),
    Kind("summary", text_pairs.SLOTS, _summary),
    Kind("translation", text_pairs.SLOTS, _translation),
)
SHARES = (0, 1, 2, 3, 0, 1, 2, 3, 4)
"""Kinds in turn; a translation half as often as the others."""


def instructions(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Instructions of all kinds, in Vietnamese, some of them in English and Chinese too."""
    contents = [Contents(rng, [len(slot) for slot in kind.slots]) for kind in KINDS]
    for i in range(num_contents):
        which = SHARES[i % len(SHARES)]
        content = contents[which].draw()
        for language in languages_of(i):
            instruction, details, answer = KINDS[which].fill(content, language, rng)
            yield Sample(
                task=Task.INSTR,
                language=language,
                question=instruction,
                details=details,
                answer=answer,
                group=f"{KINDS[which].name}-{i:05d}",
            )


OPENINGS = {
    Language.VI: ("Tôi cần viết một tấm thiệp.", "Vâng, thiệp gửi cho ai và vì việc gì?"),
    Language.EN: ("I have to write a card.", "Certainly. To whom, and what about?"),
    Language.ZH: ("我要写一张请帖。", "好的，请谁，什么事？"),
}


def instruction_dialogues(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Invitations in two turns: the wish, then its details."""
    slots = (EVENTS, PEOPLE, PLACES, OCCASIONS)
    contents = Contents(rng, [len(slot) for slot in slots])
    fill = _templates(slots, INVITATION)
    for i in range(num_contents):
        content = contents.draw()
        for language in languages_of(i):
            instruction, details, answer = fill(content, language, rng)
            user, assistant = OPENINGS[language]
            yield Sample(
                task=Task.INSTR,
                language=language,
                question=f"{instruction} {details}",
                answer=answer,
                group=f"card-{i:05d}",
                history=(Turn("user", user), Turn("assistant", assistant)),
            )
