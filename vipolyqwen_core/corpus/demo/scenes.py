"""Scenes of coloured shapes: where two shapes are, and how many of one kind there are on which ground."""

import math
import random
from collections.abc import Iterator
from functools import partial

from PIL import Image, ImageDraw

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo.lettering import Colour, blank
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Picture, Sample, languages_of
from vipolyqwen_core.corpus.demo.vocabulary import (
    COLOUR_VALUES,
    COLOURS,
    CORNERS,
    NUMBERS,
    SHAPES,
    Language,
)

SIDE = 112
"""Side of a scene in pixels: 16 visual tokens."""

QUESTIONS = {
    Language.VI: ("Ảnh cho thấy gì?", "Mô tả ảnh này.", "Trong ảnh có những gì?", "Hãy tả bức ảnh."),
    Language.EN: ("What does the picture show?", "Describe the picture.", "What can be seen here?"),
    Language.ZH: ("图片里有什么？", "请描述这张图片。"),
}
"""They fit any picture, so that the answer has to come from the picture."""

PAIR_SLOTS = (len(SHAPES), len(COLOURS), len(SHAPES), len(COLOURS), len(CORNERS), len(CORNERS))
COUNT_SLOTS = (5, len(SHAPES), len(COLOURS), len(COLOURS))

DICE = {
    1: ((0.5, 0.5),),
    2: ((0.27, 0.27), (0.73, 0.73)),
    3: ((0.22, 0.22), (0.5, 0.5), (0.78, 0.78)),
    4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
    5: ((0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)),
}
"""Where the shapes of a count stand, as on a die."""


def pale(colour: Colour) -> Colour:
    """The colour as a ground: shapes of the full colour stand out from it."""
    red, green, blue = (round(255 - (255 - value) * 0.4) for value in colour)
    return red, green, blue


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: int, x: float, y: float, radius: float, colour: Colour
) -> None:
    """Draw shape number `shape` of SHAPES around a centre."""
    r = radius
    if shape == 0:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == 1:
        draw.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=colour)
    elif shape == 2:
        draw.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=colour)
    elif shape == 3:
        spikes = [(math.pi * (i / 5 - 0.5), r if i % 2 == 0 else 0.42 * r) for i in range(10)]
        draw.polygon([(x + s * math.cos(a), y + s * math.sin(a)) for a, s in spikes], fill=colour)
    elif shape == 4:
        draw.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=colour)
        draw.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=colour)
    else:
        draw.ellipse((x - r, y - 0.9 * r, x + 0.08 * r, y + 0.15 * r), fill=colour)
        draw.ellipse((x - 0.08 * r, y - 0.9 * r, x + r, y + 0.15 * r), fill=colour)
        draw.polygon([(x - 0.93 * r, y - 0.1 * r), (x + 0.93 * r, y - 0.1 * r), (x, y + r)], fill=colour)


def draw_pair(content: Content, seed: str) -> Image.Image:
    """Two shapes, each in the middle of its corner, give or take a little."""
    rng = random.Random(seed)
    ground = rng.randrange(236, 256)
    image, draw = blank(SIDE, SIDE, (ground, ground, ground))
    for shape, colour, corner in (content[0:2] + content[4:5], content[2:4] + content[5:6]):
        x = SIDE * (0.25 + 0.5 * (corner % 2)) + rng.uniform(-4, 4)
        y = SIDE * (0.25 + 0.5 * (corner // 2)) + rng.uniform(-4, 4)
        draw_shape(draw, shape, x, y, rng.uniform(20, 25), COLOUR_VALUES[colour])
    return image


def draw_count(content: Content, seed: str) -> Image.Image:
    """One to five equal shapes on a pale ground."""
    rng = random.Random(seed)
    number, shape, colour, ground = content
    image, draw = blank(SIDE, SIDE, pale(COLOUR_VALUES[ground]))
    radius = rng.uniform(14, 17)
    for x, y in DICE[number + 1]:
        centre = x * SIDE + rng.uniform(-3, 3), y * SIDE + rng.uniform(-3, 3)
        draw_shape(draw, shape, *centre, radius, COLOUR_VALUES[colour])
    return image


def thing(shape: int, colour: int, language: Language, number: int = 0) -> str:
    """`hình tròn đỏ`, `a red circle`, `红色圆形`; with a number (0 stands for one) `three red circles`."""
    name, shade = SHAPES[shape].to(language, 1 if number else 0), COLOURS[colour].to(language)
    if language is Language.VI:
        return f"{name} {shade}"
    return f"{shade} {name}" if language is Language.EN else f"{shade}{name}"


def an(noun: str) -> str:
    """The noun with its English article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def tell_pair(content: Content, language: Language) -> str:
    """What `draw_pair` shows, in reading order."""
    parts = []
    for shape, colour, corner in (content[0:2] + content[4:5], content[2:4] + content[5:6]):
        name, place = thing(shape, colour, language), CORNERS[corner].to(language)
        if language is Language.EN:
            parts.append(f"{an(name)} {place}")
        else:
            parts.append(f"{name} {place}" if language is Language.VI else f"{place}{name}")
    return ("，" if language is Language.ZH else ", ").join(parts)


def tell_count(content: Content, language: Language) -> str:
    """What `draw_count` shows."""
    number, shape, colour, ground = content
    count, shade = NUMBERS[number].to(language), COLOURS[ground].to(language)
    name = thing(shape, colour, language, number)
    return {
        Language.VI: f"{count} {name} trên nền {shade} nhạt",
        Language.EN: f"{count} {name} on a pale {shade} ground",
        Language.ZH: f"浅{shade}背景上{'一' if number == 0 else count}个{name}",
    }[language]


def nearly(content: Content) -> Content:
    """The content of `draw_pair` with another colour for its second shape."""
    return (*content[:3], (content[3] + 3) % len(COLOURS), *content[4:])


def is_pair(content: Content) -> bool:
    """Whether the two shapes stand in two corners, in reading order."""
    return content[4] < content[5]


def is_count(content: Content) -> bool:
    """Whether the shapes stand out: black makes no pale ground of its own, a colour none for itself."""
    return content[2] != content[3] and COLOUR_VALUES[content[3]] != (20, 20, 20)


def scenes(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Pairs of shapes and counts of shapes in turn, with a question that fits either. Each fourth pair brings
    a hard negative."""
    pairs, counts = Contents(rng, PAIR_SLOTS), Contents(rng, COUNT_SLOTS, apart=False)
    for i in range(num_contents):
        group = f"scene-{i:05d}"
        wrong: Content | None = None
        path = f"scenes/{i:05d}.{'jpg' if i % 8 == 5 else 'png'}"
        if i % 2 == 0:
            content = pairs.draw(is_pair)
            picture, tell = Picture(path, partial(draw_pair, content, group)), tell_pair
            wrong = nearly(content) if i % 8 == 0 else None
        else:
            content = counts.draw(is_count)
            picture, tell = Picture(path, partial(draw_count, content, group)), tell_count
        for language in languages_of(i):
            yield Sample(
                task=Task.VQA_SINGLE,
                language=language,
                question=rng.choice(QUESTIONS[language]),
                answer=tell(content, language),
                group=group,
                pictures=(picture,),
                negatives=(tell_pair(wrong, language),) if wrong else (),
            )
