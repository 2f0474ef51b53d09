"""PG-19 (Rae et al., arXiv 1911.05507): one document a book.

The official files end their lines in CRLF, the hub's copy may not: the text has plain newlines
either way, and the bytes counted are those stored. Words are the pieces between white space.
"""

from __future__ import annotations

from collections.abc import Iterator

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.formats import read_rows
from hylorada.data.kind import Kind
from hylorada.data.rows import RowAccount, document, unique_names
from hylorada.data.sources import split_files

OFFICIAL_BOOKS = {"train": 28602, "validation": 50, "test": 100}
OFFICIAL_TEST_WORDS = 6_966_499  # of all 100 books: the divisor of the published word-level PPL

_TITLE = "short_book_title"


def read_pg19(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the books of one split, named by title and Project Gutenberg number.

    Raises:
        DataError: The split is not available or has no usable book.
    """
    files = split_files(dataset, split, (".", "data", "pg19"))
    account = RowAccount(f"dataset {dataset.name}, {split}")
    unique = unique_names()
    for file in files:
        for row in read_rows(file, [dataset.text_column, _TITLE, "url"]):
            text = account.text(row, dataset.text_column)
            if text is None or row.values is None:
                continue
            title = " ".join(str(row.values.get(_TITLE) or f"row {row.number}").split())
            number = str(row.values.get("url") or "").rstrip("/").rpartition("/")[2]
            yield document(unique(f"{title} ({number})" if number else title), text)
    account.close()


KIND = Kind(
    read_pg19,
    "PG-19",
    noun="books",
    sizes=OFFICIAL_BOOKS,
    words={"test": OFFICIAL_TEST_WORDS},
)
