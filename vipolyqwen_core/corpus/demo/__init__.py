"""The built-in corpus: some five thousand pairs of all tasks, made by code, with a known amount of dirt.

Most of it is Vietnamese, the rest English and Chinese. It serves three ends: a newcomer sees every stage of
the factory at work without a download; tests have a corpus whose every defect is known; and a tiny model that
starts from nothing can learn it within minutes.

How it is made to be learned and still to be honest. All content is put together from small tables of parts:
a scene from colours, shapes and corners, a receipt from a shop, goods and a sum, a sentence from who, what,
where, when and how. Each part occurs often; a combination occurs once. So the evaluation asks about
combinations that were never seen, made of parts that were, and a model that knows the parts can answer. A
combination is a `group_id`: its questions in other languages share it, so no filled template stands on both
sides of the split. Questions about pictures are few and fit any picture of the task, so the answer has to
come from the picture. The answers of one picture in several languages share a `positive_key`.

Long sentences of a kind differ in two parts at least (`samples.Contents`), so that near-duplicate detection
does not tie the corpus into one component. Scores of text pairs follow from the parts that two sentences
share (`text_pairs`). Pictures use DejaVu from matplotlib, which has no Chinese characters: these stand in
questions and answers only.

On top of the clean pairs comes a known amount of dirt (`dirt`): `dirt.json` beside the manifest says for each
kind how many, in which source, on which lines, and what must become of them.
"""

from vipolyqwen_core.corpus.demo.writer import demo_samples, demo_texts, write_demo_corpus

__all__ = ["demo_samples", "demo_texts", "write_demo_corpus"]
