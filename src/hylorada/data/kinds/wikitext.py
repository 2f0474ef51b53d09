"""WikiText (Merity et al., arXiv 1609.07843): rows of lines, joined to articles.

The hub's rows are the lines of the official file, with an empty row for each line that holds a
single space. Put together, the articles are the official `wiki.*.raw` byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hylorada.config import DatasetConfig
from hylorada.data.documents import Document
from hylorada.data.files import form_of
from hylorada.data.formats import read_rows
from hylorada.data.kind import Kind
from hylorada.data.rows import RowAccount, plain_newlines, unique_names
from hylorada.data.sources import split_files
from hylorada.errors import DataError

PARAGRAPH_CHARACTERS = 100

# Lines such as " = 1 henry and capacitance C = " occur inside formulas and tables; a title stands
# between two empty lines.
_TITLE = re.compile(r" = (?!= )(.*?)(?<! =) = \n")


def read_wikitext(dataset: DatasetConfig, split: str) -> Iterator[Document]:
    """Yield the articles of one split; text before the first title is a document of its own.

    Raises:
        DataError: The split is not available or has no usable row.
    """
    config = dataset.hub_config
    folders = (config, f"wikitext/{config}", ".") if config else (".",)
    files = split_files(dataset, split, folders)
    if "raw" in config and (other := [file.name for file in files if form_of(file) == ".tokens"]):
        raise DataError(
            f"dataset {dataset.name}: {other[0]} has <unk> for rare words, which is another text "
            f"than {config}; give its wiki.*.raw, or read it as dataset=local"
        )
    account = RowAccount(f"dataset {dataset.name}, {split}")
    unique = unique_names()

    def lines() -> Iterator[str]:
        for file in files:
            for row in read_rows(file, [dataset.text_column]):
                text = account.text(row, dataset.text_column, may_be_empty=True)
                if text is not None:
                    text = plain_newlines(text)
                    yield text if text.strip() else " \n"
        account.close()

    for title, article in _articles(lines()):
        text = "".join(article)
        yield Document(unique(title), text, words=count_words(text))


def paragraphs(articles: Iterable[Document]) -> Iterator[Document]:
    """Yield the lines of more than 100 characters, without the white space around them.

    Only to compare with the perplexities 69.00 and 57.40 of the HyLoRADA paper, which are means
    over such lines of WikiText-2's validation split.
    """
    for article in articles:
        for number, line in enumerate(article.text.split("\n"), 1):
            text = line.strip()
            if len(text) > PARAGRAPH_CHARACTERS:
                yield Document(f"{article.name}, line {number}", text, words=count_words(text))


def count_words(text: str) -> int:
    """Words as WikiText counts them: pieces between white space, and one `<eos>` a line."""
    return len(text.split()) + text.count("\n")


def _articles(lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """Titles with the lines of their articles."""
    title = "(before the first title)"
    article: list[str] = []
    before, line = " \n", next(lines, None)
    while line is not None:
        after = next(lines, None)
        match = _TITLE.fullmatch(line)
        alone = not before.strip() and (after is None or not after.strip())
        if match and alone:
            if any(x.strip() for x in article):
                # The empty line before a title stays with the article before it.
                yield title, article
                article = []
            title = match[1]
        article.append(line)
        before, line = line, after
    if article:
        yield title, article


KIND = Kind(read_wikitext, "WikiText", units={"paragraphs": paragraphs}, noun="articles")
