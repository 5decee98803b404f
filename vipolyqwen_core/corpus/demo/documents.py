"""Pages to be read: receipts, official papers and price tables, in large type.

Each line of a page says one thing out of a dozen, and stands where such a line always stands; a page is a new
combination. A colour narrows what a page may say (a shop's sign, a paper's margin), letters decide.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

from vipolyqwen_core.contract import Task
from vipolyqwen_core.corpus.demo.lettering import Colour, blank, write_line
from vipolyqwen_core.corpus.demo.samples import Content, Contents, Picture, Sample
from vipolyqwen_core.corpus.demo.vocabulary import (
    CITIES,
    COLOUR_VALUES,
    FRUITS,
    GOODS,
    PAPERS,
    SHOPS,
    Language,
)

WIDTH, LINE = 140, 28
"""Width of a page and height of a line in pixels: a line is one row of five visual tokens."""
INK: Colour = (25, 25, 35)
WHITE: Colour = (255, 255, 255)
YELLOW: Colour = COLOUR_VALUES[3]

QUESTIONS = {
    Language.VI: ("Đọc chữ trong ảnh.", "Trong ảnh viết gì?", "Chép lại trang này.", "Ảnh ghi những gì?"),
    Language.EN: ("Read the text in the picture.", "What is written here?", "Transcribe this page."),
    Language.ZH: ("读出图片中的文字。", "图片上写着什么？"),
}
"""They fit any page, so that the answer has to come from the picture."""


@dataclass(frozen=True)
class Page:
    """A kind of page: its slots, how it is drawn and how it reads."""

    name: str
    slots: tuple[int, ...]
    draw: Callable[[Content, Language, str], Image.Image]
    tell: Callable[[Content, Language], str]
    valid: Callable[[Content], bool] = lambda content: True


def _sheet(lines: int, seed: str) -> tuple[random.Random, Colour, int]:
    rng = random.Random(seed)
    paper = (rng.randrange(238, 256), rng.randrange(238, 256), rng.randrange(232, 252))
    return rng, paper, lines * LINE


def _box(line: int, rng: random.Random, left: int = 4, right: int = WIDTH - 4) -> tuple[int, int, int, int]:
    """The box of a line, moved a little."""
    x, y = rng.randrange(-2, 3), line * LINE + rng.randrange(-1, 2)
    return left + x, y, right + x, y + LINE


def amount(tens: int, units: int, language: Language) -> str:
    """A price of 10 to 99 thousand."""
    separator = "," if language is Language.EN else "."
    return f"{tens + 1}{units}{separator}000"


RECEIPT_SLOTS = (len(SHOPS), len(GOODS), 9, 10)


def draw_receipt(content: Content, language: Language, seed: str) -> Image.Image:
    """Shop in white on its colour, what was bought, a dashed rule, the sum."""
    shop, goods, tens, units = content
    rng, paper, height = _sheet(4, seed)
    image, draw = blank(WIDTH, height, paper)
    sign = COLOUR_VALUES[shop % len(COLOUR_VALUES)]
    draw.rectangle((0, 0, WIDTH, LINE - 1), fill=sign)
    write_line(draw, SHOPS[shop].to(language), _box(0, rng), INK if sign == YELLOW else WHITE, 24)
    write_line(draw, GOODS[goods].to(language), _box(1, rng), INK, 24)
    for x in range(6, WIDTH - 6, 10):
        draw.line((x, 2.5 * LINE, x + 5, 2.5 * LINE), fill=(140, 140, 140), width=2)
    write_line(draw, amount(tens, units, language), _box(3, rng), INK, 26)
    return image


def tell_receipt(content: Content, language: Language) -> str:
    """The receipt as one line of text."""
    shop, goods = SHOPS[content[0]].to(language), GOODS[content[1]].to(language)
    total = amount(content[2], content[3], language)
    return {
        Language.VI: f"{shop}, {goods}, {total} đồng",
        Language.EN: f"{shop}, {goods}, {total} dong",
        Language.ZH: f"{shop}，{goods}，{total}盾",
    }[language]


PAPER_SLOTS = (len(PAPERS), len(CITIES), 28, 12)


def draw_paper(content: Content, language: Language, seed: str) -> Image.Image:
    """A margin in the colour of its kind, heading, city, date."""
    kind, city, day, month = content
    rng, paper, height = _sheet(4, seed)
    image, draw = blank(WIDTH, height, paper)
    draw.rectangle((0, 0, 10, height), fill=COLOUR_VALUES[kind % 4])
    write_line(draw, PAPERS[kind].to(language), _box(0, rng, 14), INK, 22)
    draw.line((24, 1.3 * LINE, WIDTH - 10, 1.3 * LINE), fill=INK, width=2)
    write_line(draw, CITIES[city].to(language), _box(2, rng, 14), INK, 24)
    write_line(draw, f"{day + 1:02d}/{month + 1:02d}", _box(3, rng, 14), INK, 26)
    return image


def tell_paper(content: Content, language: Language) -> str:
    """The paper as one line of text."""
    kind, city = PAPERS[content[0]].to(language), CITIES[content[1]].to(language)
    date = f"{content[2] + 1:02d}/{content[3] + 1:02d}"
    return ("，" if language is Language.ZH else ", ").join((kind, city, date))


TABLE_SLOTS = (len(FRUITS), 9, 10, len(FRUITS), 9, 10)


def draw_table(content: Content, language: Language, seed: str) -> Image.Image:
    """A head of two words, and two rows of a fruit and its price."""
    rng, paper, height = _sheet(3, seed)
    image, draw = blank(WIDTH, height, paper)
    split = WIDTH * 6 // 10
    draw.rectangle((0, 0, WIDTH, LINE - 4), fill=(225, 225, 235))
    head = {Language.VI: ("Quả", "Giá"), Language.EN: ("Fruit", "Price"), Language.ZH: ("Fruit", "Price")}
    for column, (left, right) in enumerate(((4, split), (split, WIDTH - 4))):
        write_line(draw, head[language][column], _box(0, rng, left, right), (110, 110, 120), 16)
    for row in range(2):
        fruit, tens, units = content[3 * row : 3 * row + 3]
        write_line(draw, FRUITS[fruit].to(language), _box(row + 1, rng, 4, split), INK, 22)
        write_line(draw, f"{tens + 1}{units}", _box(row + 1, rng, split, WIDTH - 4), INK, 24)
        draw.line((0, (row + 1) * LINE, WIDTH, (row + 1) * LINE), fill=(160, 160, 170))
    draw.line((split, 0, split, height), fill=(160, 160, 170))
    return image


def tell_table(content: Content, language: Language) -> str:
    """The table, row by row."""
    parts = [
        f"{FRUITS[content[i]].to(language)} {content[i + 1] + 1}{content[i + 2]}"
        for i in range(0, len(content), 3)
    ]
    return ("，" if language is Language.ZH else ", ").join(parts)


PAGES = (
    Page("receipt", RECEIPT_SLOTS, draw_receipt, tell_receipt),
    Page("paper", PAPER_SLOTS, draw_paper, tell_paper),
    Page("table", TABLE_SLOTS, draw_table, tell_table, lambda content: content[0] != content[3]),
)


def pages(rng: random.Random, num_contents: int) -> Iterator[Sample]:
    """Receipts, papers and tables in turn. Each eighth is an English page, asked about in English and, every
    other time, in Chinese."""
    contents = [Contents(rng, page.slots) for page in PAGES]
    for i in range(num_contents):
        which = i % len(PAGES)
        page = PAGES[which]
        content = contents[which].draw(page.valid)
        group = f"{page.name}-{i:05d}"
        shown = Language.EN if i % 8 == 4 else Language.VI
        picture = Picture(f"{page.name}s/{i:05d}.png", partial(page.draw, content, shown, group))
        asked = (shown, Language.ZH) if shown is Language.EN and i % 16 == 4 else (shown,)
        for language in asked:
            yield Sample(
                task=Task.OCR,
                language=language,
                question=rng.choice(QUESTIONS[language]),
                answer=page.tell(content, language),
                group=group,
                pictures=(picture,),
            )
