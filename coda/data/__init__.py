"""From corpora to packed batches of tokens: sources, tokenizer, token store, packing and the LightningDataModules."""

from coda.data.corpus import CorpusDataModule
from coda.data.sources import HubDataset, StandardLibrary, TextFiles, TextSource
from coda.data.tokenizer import load_tokenizer

__all__ = ["CorpusDataModule", "HubDataset", "StandardLibrary", "TextFiles", "TextSource", "load_tokenizer"]
