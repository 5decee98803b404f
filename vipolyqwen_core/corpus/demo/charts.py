"""Bar charts and line charts, to be read as values and as trends."""

import random
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

from PIL import Image, ImageDraw

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo.lettering import blank, write_line
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Picture, Sample, languages_of
from vipolyqwen_core.corpus.demo.scenes import QUESTIONS
from vipolyqwen_core.corpus.demo.vocabulary import COLOUR_VALUES, COLOURS, TRENDS, Language

WIDTH, HEIGHT = 140, 112
"""Size of a chart in pixels: 20 visual tokens. The axis takes the first column of them."""
LEVELS = 5
STEP = 20
"""Values are multiples of STEP up to LEVELS * STEP."""
TOP, BOTTOM, LEFT = 10, 104, 28

BAR_SLOTS = (len(COLOURS), LEVELS, len(COLOURS), LEVELS, len(COLOURS), LEVELS)
LINE_SLOTS = (len(COLOURS), LEVELS, len(TRENDS), len(TRENDS), len(TRENDS))


def height_of(level: int) -> float:
    """The pixel row of a level (0: the lowest value, STEP)."""
    return BOTTOM - (level + 1) * (BOTTOM - TOP) / LEVELS


def _axes(seed: str) -> tuple[Image.Image, ImageDraw.ImageDraw, random.Random]:
    """An empty chart: scale, grid and axes on paper of a chance tint."""
    rng = random.Random(seed)
    tint = (rng.randrange(240, 256), rng.randrange(240, 256), rng.randrange(240, 256))
    image, draw = blank(WIDTH, HEIGHT, tint)
    for level in range(LEVELS):
        y = height_of(level)
        draw.line((LEFT, y, WIDTH, y), fill=(205, 205, 205))
        write_line(draw, str((level + 1) * STEP), (0, round(y) - 6, LEFT - 2, round(y) + 6), (90, 90, 90), 11)
    draw.line((LEFT, 4, LEFT, BOTTOM), fill=(60, 60, 60), width=2)
    draw.line((LEFT, BOTTOM, WIDTH, BOTTOM), fill=(60, 60, 60), width=2)
    return image, draw, rng


def draw_bars(content: Content, seed: str) -> Image.Image:
    """Three coloured bars."""
    image, draw, rng = _axes(seed)
    width = rng.uniform(24, 30)
    for i in range(3):
        colour, level = content[2 * i : 2 * i + 2]
        middle = LEFT + (WIDTH - LEFT) * (i + 0.5) / 3 + rng.uniform(-2, 2)
        box = (middle - width / 2, height_of(level), middle + width / 2, BOTTOM - 1)
        draw.rectangle(box, fill=COLOUR_VALUES[colour])
    return image


def levels_of(content: Content) -> list[int]:
    """Levels of the four points of a line: its start, then the steps that its TRENDS mean."""
    return list(accumulate(content[2:], lambda level, trend: level + trend - 2, initial=content[1]))


def draw_line_chart(content: Content, seed: str) -> Image.Image:
    """One coloured line over four points."""
    image, draw, rng = _axes(seed)
    points = [
        (LEFT + 8 + i * (WIDTH - LEFT - 18) / 3, height_of(level) + rng.uniform(-1.5, 1.5))
        for i, level in enumerate(levels_of(content))
    ]
    colour = COLOUR_VALUES[content[0]]
    draw.line(points, fill=colour, width=6, joint="curve")
    for x, y in points:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    return image


def tell_bars(content: Content, language: Language) -> str:
    """What `draw_bars` shows, from left to right."""
    parts = [
        f"{COLOURS[content[i]].to(language)} {(content[i + 1] + 1) * STEP}" for i in range(0, len(content), 2)
    ]
    listed = ("，" if language is Language.ZH else ", ").join(parts)
    return {Language.VI: f"cột {listed}", Language.EN: f"bars {listed}", Language.ZH: f"柱形：{listed}"}[
        language
    ]


def tell_line_chart(content: Content, language: Language) -> str:
    """What `draw_line_chart` shows, from left to right."""
    colour, start = COLOURS[content[0]].to(language), (content[1] + 1) * STEP
    trends = [TRENDS[trend].to(language) for trend in content[2:]]
    return {
        Language.VI: f"đường {colour} từ {start}, {', '.join(trends)}",
        Language.EN: f"a {colour} line from {start}, {', '.join(trends)}",
        Language.ZH: f"{colour}线从{start}开始，{'，'.join(trends)}",
    }[language]


def is_bars(content: Content) -> bool:
    """Whether the bars have three colours."""
    return len({content[0], content[2], content[4]}) == 3


def is_line(content: Content) -> bool:
    """Whether the line stays within the scale, and does something."""
    levels = levels_of(content)
    return min(levels) >= 0 and max(levels) < LEVELS and len(set(levels)) > 1


def charts(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Bar and line charts in turn, with questions that fit any picture."""
    bars, lines = Contents(rng, BAR_SLOTS), Contents(rng, LINE_SLOTS, apart=False)
    for i in range(num_contents):
        group, path = f"chart-{i:05d}", f"charts/{i:05d}.png"
        if i % 3:
            content = bars.draw(is_bars)
            picture, tell = Picture(path, partial(draw_bars, content, group)), tell_bars
        else:
            content = lines.draw(is_line)
            picture, tell = Picture(path, partial(draw_line_chart, content, group)), tell_line_chart
        for language in languages_of(i):
            yield Sample(
                task=Task.VQA_SINGLE,
                language=language,
                question=rng.choice(QUESTIONS[language]),
                answer=tell(content, language),
                group=group,
                pictures=(picture,),
            )
