"""From corpora to batches of tokens: sources, tokenizer, the token store, mixtures, packing and the LightningDataModules."""

from coda.data.conversations import HubInstructions, InstructionFiles, StandardLibraryFunctions
from coda.data.corpus import CorpusDataModule
from coda.data.instruction import InstructionDataModule
from coda.data.sources import Source
from coda.data.text import HubDataset, InstalledPackage, StandardLibrary, TextFiles
from coda.data.tokenizer import load_tokenizer

__all__ = [
    "CorpusDataModule",
    "HubDataset",
    "HubInstructions",
    "InstalledPackage",
    "InstructionDataModule",
    "InstructionFiles",
    "Source",
    "StandardLibrary",
    "StandardLibraryFunctions",
    "TextFiles",
    "load_tokenizer",
]
