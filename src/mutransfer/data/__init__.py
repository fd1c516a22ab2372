"""Data: text, tables and images, by name or path, in an order that depends on the seed alone.

load(name)       a data set with `batch(step, seed, …)` and `val_batches(…)`
prepare(name)    download or read, tokenize and store one of the larger sets
listing()        what is known, and what is on this machine
"""

from mutransfer.data.catalog import DataInfo, data_root, listing
from mutransfer.data.download import download
from mutransfer.data.images import ImageData, make_images
from mutransfer.data.loading import Data, load
from mutransfer.data.prepare import Prepared, prepare
from mutransfer.data.tabular import Examples, TableData, make_table
from mutransfer.data.text import TextData, embedded_text, text_batch, val_batches
from mutransfer.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    TiktokenTokenizer,
    TokenIds,
    Tokenizer,
    make_tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "Data",
    "DataInfo",
    "Examples",
    "ImageData",
    "Prepared",
    "TableData",
    "TextData",
    "TiktokenTokenizer",
    "TokenIds",
    "Tokenizer",
    "data_root",
    "download",
    "embedded_text",
    "listing",
    "load",
    "make_images",
    "make_table",
    "make_tokenizer",
    "prepare",
    "text_batch",
    "tokenizer_from_dict",
    "val_batches",
]
