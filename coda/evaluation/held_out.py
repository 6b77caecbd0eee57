"""The perplexity bound of held-out text: a file, a folder of code, or a split of a prepared corpus."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from coda.data.encoders import Encoded, TextEncoder
from coda.data.store import TokenStore
from coda.data.text import TextFiles
from coda.data.tokenizer import separator_id, tokenizer_fingerprint
from coda.evaluation.likelihood import Bound, Likelihood, Row, windows_of

STORE = "manifest.json"  # what tells a prepared corpus from a folder of files
MAX_LENGTH = 2048  # tokens of a row, unless the model has fewer positions


def documents_of(
    source: str, tokenizer: PreTrainedTokenizerBase, split: str, limit: int | None
) -> Iterator[tuple[list[int], int, int | None]]:
    """Token ids of each document, how many of them are a prompt, and its bytes if they are known.

    Raises:
        ValueError: If there is nothing to read, or the corpus was prepared with another tokenizer.
    """
    if (Path(source) / STORE).is_file():
        yield from _prepared(source, tokenizer, split, limit)
        return
    encoder = TextEncoder(tokenizer)
    for number, document in enumerate(TextFiles([source]).documents()):
        if limit is not None and number >= limit:
            return
        (encoded,) = encoder([document])
        assert isinstance(encoded, Encoded)
        yield encoded.tokens.tolist(), 0, len(str(document).encode())


def _prepared(
    source: str, tokenizer: PreTrainedTokenizerBase, split: str, limit: int | None
) -> Iterator[tuple[list[int], int, int | None]]:
    store = TokenStore(source)
    if store.manifest["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise ValueError(f"likelihood: {source} was prepared with another tokenizer than the model's; prepare it again")
    number = 0
    for corpus in store.corpora():
        stream = store.stream(corpus, split)
        for index in range(stream.documents):
            if limit is not None and number >= limit:
                return
            number += 1
            tokens, prompt = stream.document(index)
            yield tokens.tolist(), prompt, None


def measure(
    likelihood: Likelihood,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    split: str = "val",
    limit: int | None = None,
    length: int | None = None,
    context: int = 1,
) -> dict[str, Any]:
    """Estimate the bound of all documents of ``source``.

    Args:
        likelihood: The estimator.
        tokenizer: The model's.
        source: A file or folder of text, code, JSONL or parquet (column ``text``), or a folder of prepared tokens.
        split: Of prepared tokens: ``val`` or ``train``.
        limit: Documents to read; None reads all.
        length: Tokens of a row; None takes 2048, or as many as the model has positions.
        context: Given tokens before those scored, where a document is longer than a row.

    Returns:
        As JSON: ``nats_per_token`` with ``standard_error`` and a 95% interval, ``perplexity`` with the same, counts, and
        ``bits_per_byte`` where the bytes are known.
    """
    length = length or min(MAX_LENGTH, int(likelihood.model.config.max_position_embeddings))
    rows: list[Row] = []
    sizes: list[int | None] = []
    for tokens, prompt, size in documents_of(source, tokenizer, split, limit):
        rows += windows_of(tokens, separator_id(tokenizer), length, context, prompt)
        sizes.append(size)
    bound = Bound.total(likelihood.bounds(rows))
    if not bound.tokens:
        raise ValueError(f"likelihood: {source} holds no token to score; give a file with text")
    settings = {"source": source, "split": split, "limit": limit, "length": length, "context": context}
    counted = {
        "documents": len(sizes),
        "tokens": bound.tokens,
        "masks_per_row": likelihood.samples,
        "seed": likelihood.seed,
    }
    return {**settings, **counted, **_summary(bound, None if None in sizes else sum(size or 0 for size in sizes))}


def _summary(bound: Bound, size: int | None) -> dict[str, Any]:
    error = bound.standard_error / bound.tokens
    interval = [Bound(bound.nats + sign * 1.96 * bound.standard_error, 0.0, bound.tokens) for sign in (-1, 1)]
    summary: dict[str, Any] = {
        "nats_per_token": bound.per_token,
        "standard_error": error,
        "interval": [end.per_token for end in interval],
        "perplexity": bound.perplexity,
        "perplexity_interval": [end.perplexity for end in interval],
    }
    if size:
        summary["bits_per_byte"] = bound.bits / size
    return summary
