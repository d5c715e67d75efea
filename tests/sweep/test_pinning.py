"""What determines a trial's outcome without being named in its stages is in its key: the corpus that is replayed."""

from dataclasses import replace

from harness.models import resolve_model
from harness.setting import with_corpus


def test_another_corpus_is_another_reference(world, tmp_path):
    base = resolve_model(str(world.llama))
    references = []
    for text in ("old", "new", "old"):
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text(f'{{"text": "{text}"}}\n')
        references.append(with_corpus(replace(base, corpus=str(corpus)), ()))
    assert references[0] == references[2]
    assert references[0] != references[1]
    assert with_corpus(base, ()) == base.ref
