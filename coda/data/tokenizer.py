"""Tokenizers: loading one, training a small one, and the special tokens that diffusion needs."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coda.data.sources import Source, reason
from coda.files import cache_key, new_folder

MASK_TOKEN = "<|mask|>"
END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
TRAINING_CHARACTERS = 100_000_000  # of each source
CHARACTERS_PER_TOKEN = 4  # about
# Pieces that merges never cross: an indentation, a word with the space before it, digits one by one, runs of symbols.
PIECES = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it has the absorbing state ``<|mask|>`` and padding.

    Args:
        path: A folder, or a Hugging Face name.

    Raises:
        ValueError: If there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises many kinds for a damaged folder
        raise ValueError(
            f"data.tokenizer is {path!r}, where no tokenizer can be loaded; give a folder or a Hugging Face name "
            f"({reason(error)})"
        ) from error
    return with_special_tokens(tokenizer)


def with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add ``<|mask|>`` if it is missing, as the next free id, and pad with the end of text; changes ``tokenizer``.

    Raises:
        ValueError: If it has no token that could end a document.
    """
    if separator_id(tokenizer) is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no token that ends a text; set its eos_token")
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(separator_id(tokenizer))
    return tokenizer


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Qwen3's special tokens.

    Args:
        documents: Texts to train on.
        vocab_size: Size with the special tokens, more than the 256 bytes and those.

    Raises:
        ValueError: If ``vocab_size`` is too small.
    """
    special = [END_OF_TEXT, "<|im_start|>", END_OF_TURN, MASK_TOKEN]
    if vocab_size < 256 + len(special):
        least = 256 + len(special)
        raise ValueError(f"data.vocab_size is {vocab_size}; {least} is the least: all bytes and special tokens")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=END_OF_TEXT,
        eos_token=END_OF_TURN,
        bos_token=END_OF_TEXT,
        mask_token=MASK_TOKEN,
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


def open_trained_tokenizer(sources: list[Source], vocab_size: int, cache: Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer trained on these sources, or train it first if it is not cached under ``cache``."""
    key = cache_key([source.fingerprint() for source in sources], vocab_size, PIECES)
    folder = cache / "tokenizers" / key
    if not folder.is_dir():
        with new_folder(folder) as unfinished:
            documents = chain.from_iterable(_head(source) for source in sources)
            train_tokenizer(documents, vocab_size).save_pretrained(unfinished)
    return load_tokenizer(str(folder))


def _head(source: Source) -> Iterator[str]:
    """The first documents, enough to learn merges from: a hub corpus would not end in a day."""
    read, enough = 0, min(TRAINING_CHARACTERS, (source.max_tokens or TRAINING_CHARACTERS) * CHARACTERS_PER_TOKEN)
    for document in source.documents():
        if read >= enough:
            return
        text = document if isinstance(document, str) else "\n".join(turn.content for turn in document)
        read += len(text)
        yield text


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token written behind every document: the end of text, else the end of sequence."""
    separator: int = tokenizer.get_vocab().get(END_OF_TEXT, tokenizer.eos_token_id)
    return separator


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary, its merges and the special tokens, but not of how the last call padded and truncated."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(state, dict):
        state |= {"padding": None, "truncation": None}
    return hashlib.sha256(f"{state}{tokenizer.special_tokens_map}".encode()).hexdigest()[:16]
