"""Questions over several turns, and comparisons of two pictures.

What was said before never gives the answer away: it says what kind of picture lies on the table, if that.
"""

import random
from collections.abc import Iterator
from functools import partial

from PIL import Image

from vipolyqwen_core.contract import Task, Turn
from vipolyqwen_core.corpus.demo import charts, scenes
from vipolyqwen_core.corpus.demo.lettering import blank
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Picture, Sample, languages_of
from vipolyqwen_core.corpus.demo.scenes import an, thing
from vipolyqwen_core.corpus.demo.vocabulary import COLOUR_VALUES, COLOURS, SHAPES, Language

SIDE = 84
"""Side of each of two pictures to be compared: 9 visual tokens."""

COMPARISON_SLOTS = (len(SHAPES), len(COLOURS), len(SHAPES), len(COLOURS))

COMPARISONS = {
    Language.VI: ("So sánh hai ảnh.", "Hai ảnh khác nhau thế nào?", "Mỗi ảnh có gì?"),
    Language.EN: ("Compare the two pictures.", "How do the two pictures differ?"),
    Language.ZH: ("比较这两张图片。", "两张图片有什么不同？"),
}

OPENINGS = {
    Language.VI: (
        ("Xem giúp tôi ảnh này.", "Vâng, bạn muốn biết điều gì?"),
        ("Bạn nhìn thấy ảnh chứ?", "Có, tôi thấy rõ."),
        ("Ảnh này có chữ không?", "Tôi xem rồi. Bạn hỏi tiếp đi."),
    ),
    Language.EN: (
        ("Please look at this picture.", "Yes, what would you like to know?"),
        ("Can you see the picture?", "Yes, quite clearly."),
    ),
    Language.ZH: (("请看这张图片。", "好的，您想知道什么？"), ("你看得见图片吗？", "看得很清楚。")),
}

REQUESTS = {
    Language.VI: ("Vậy hãy tả lại cho tôi.", "Kể rõ từng phần đi.", "Cụ thể là những gì?"),
    Language.EN: ("Then describe it to me.", "Tell me all the details."),
    Language.ZH: ("那请描述一下。", "具体有哪些内容？"),
}


def draw_single(shape: int, colour: int, seed: str) -> Image.Image:
    """One large shape."""
    rng = random.Random(seed)
    ground = rng.randrange(236, 256)
    image, draw = blank(SIDE, SIDE, (ground, ground, ground))
    centre = SIDE / 2 + rng.uniform(-4, 4), SIDE / 2 + rng.uniform(-4, 4)
    scenes.draw_shape(draw, shape, *centre, rng.uniform(28, 34), COLOUR_VALUES[colour])
    return image


def tell_comparison(content: Content, language: Language) -> str:
    """What the two pictures show."""
    shape, colour, other_shape, other_colour = content
    first, second = thing(shape, colour, language), thing(other_shape, other_colour, language)
    return {
        Language.VI: f"ảnh đầu là {first}, ảnh sau là {second}",
        Language.EN: f"first {an(first)}, then {an(second)}",
        Language.ZH: f"第一张是{first}，第二张是{second}",
    }[language]


def comparisons(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Two pictures of one shape each."""
    contents = Contents(rng, COMPARISON_SLOTS, apart=False)
    for i in range(num_contents):
        content = contents.draw(lambda content: content[:2] != content[2:])
        group = f"comparison-{i:05d}"
        pictures = tuple(
            Picture(
                f"comparisons/{i:05d}_{side}.png",
                partial(draw_single, content[2 * side], content[2 * side + 1], f"{group}-{side}"),
            )
            for side in range(2)
        )
        for language in languages_of(i):
            yield Sample(
                task=Task.VQA_MULTI,
                language=language,
                question=rng.choice(COMPARISONS[language]),
                answer=tell_comparison(content, language),
                group=group,
                pictures=pictures,
            )


def dialogues(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Scenes and bar charts that are asked about in the second turn."""
    pairs, counts = Contents(rng, scenes.PAIR_SLOTS), Contents(rng, scenes.COUNT_SLOTS, apart=False)
    bars = Contents(rng, charts.BAR_SLOTS)
    for i in range(num_contents):
        group, path = f"dialogue-{i:05d}", f"dialogues/{i:05d}.png"
        if i % 3 == 0:
            content = pairs.draw(scenes.is_pair)
            picture, tell = Picture(path, partial(scenes.draw_pair, content, group)), scenes.tell_pair
        elif i % 3 == 1:
            content = counts.draw(scenes.is_count)
            picture, tell = Picture(path, partial(scenes.draw_count, content, group)), scenes.tell_count
        else:
            content = bars.draw(charts.is_bars)
            picture, tell = Picture(path, partial(charts.draw_bars, content, group)), charts.tell_bars
        for language in languages_of(i):
            user, assistant = rng.choice(OPENINGS[language])
            yield Sample(
                task=Task.VQA_MULTI,
                language=language,
                question=rng.choice(REQUESTS[language]),
                answer=tell(content, language),
                group=group,
                pictures=(picture,),
                history=(Turn("user", user), Turn("assistant", assistant)),
            )
