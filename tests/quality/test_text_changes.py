"""Changes of a text are shown where they are, and can be seen."""

from quality.text_changes import changes, marked


def test_marked_texts_say_what_each_has_alone() -> None:
    left, right = marked("NO: 28,JALAN ASTANA", "NO: 28, JALAN BESAR")
    assert left == [("NO: 28,", False), ("JALAN ", False), ("ASTANA", True)]
    assert right == [("NO: 28,", False), (" ", True), ("JALAN ", False), ("BESAR", True)]
    left, right = marked("高兴", "高山")
    assert left == [("高", False), ("兴", True)]


def test_of_a_long_text_only_the_places_that_changed_are_shown() -> None:
    words = [f"từ{number}" for number in range(200)]
    before = " ".join(words)
    assert changes(before, "<image>" + before) == "từ0 từ1 từ2 … -> <image>từ0 từ1 từ2 …"
    after = before.replace("từ100", "chữ").replace("từ150", "chữ")
    first, second = changes(before, after).split("; ")
    assert first == "…từ97 từ98 từ99 từ100 từ101 từ102 từ103… -> …từ97 từ98 từ99 chữ từ101 từ102 từ103…"
    assert "từ150" in second
    scattered = " ".join("chữ" if number % 20 == 0 else word for number, word in enumerate(words))
    assert changes(before, scattered).endswith("; and 6 more places")


def test_what_cannot_be_seen_is_spelled() -> None:
    assert changes("e\u0301\tb\u00a0c", "é b c") == "e\\u0301\\tb\\xa0c -> é b c"
