"""Vietnamese typed without diacritics, told from English by its syllables: `toi muon mua xe`.

Every Vietnamese syllable follows one pattern, which few English words fit; the frequent ones that do are
listed, and count for neither language.
"""

import polars as pl

PLAIN_SYLLABLE = (
    r"^(?:ngh|ng|nh|gh|gi|kh|ph|th|tr|ch|qu|[bcdghklmnprstvx])?"
    r"(?:uye|uya|uyu|oai|oay|oeo|uoi|uou|ieu|yeu|uay|uoc|ia|ie|ye|iu|ua|ue|ui|uo|uu|uy|oa|oe|oi|oo|ai|ao|au|ay"
    r"|eo|eu|[aeiouy])"
    r"(?:ch|ng|nh|[cmnpt])?$"
)
"""A Vietnamese syllable without its diacritics."""
ALSO_ENGLISH = frozenset(
    """
    aim am an at bat bet bin bit boat boo bum bun but buy by can cat chain chap chin chip chop coach
    coat coin com cop cup cut day dec diet dim dip do doe doing don dot due gain gang gap gem get go
    goat going gun gut guy gym hat he hen him hip hit hong hoop hop hot hum hung in ip it kin king
    kit kong let lie lip lit loan long loom loop lot lung main man map mat may me men met mom moon
    mop much mum my nap net no noon not nun nut on pain pan pat pay pen pet pie pin ping pit poem
    pop pot put quiet quit rain ran ray re rep rich rim ring rip room root rum run sat say set sin
    sing sip sit so son song soon such sue suit sum sun tap tech ten than that the them then thin
    thing tie tip to tom too top train trap tray trip true try tun un up vet via vie yen yet
    """.split()  # noqa: SIM905
)
"""Frequent English words that look like such a syllable."""
SYLLABLE_SHARE = 0.75
"""So many of the words are syllables at least."""
VIETNAMESE_SHARE = 0.4
"""So many of the words are syllables that no English word looks like, and one at least."""


def is_plain_vietnamese(words: pl.Expr, syllables: pl.Expr, also_english: pl.Expr) -> pl.Expr:
    """Whether an ASCII text of so many words is Vietnamese.

    Args:
        words: words of two letters or more
        syllables: those that PLAIN_SYLLABLE fits
        also_english: syllables that are in ALSO_ENGLISH
    """
    vietnamese = syllables - also_english
    return (
        (syllables >= SYLLABLE_SHARE * words) & (vietnamese >= VIETNAMESE_SHARE * words) & (vietnamese >= 1)
    )
