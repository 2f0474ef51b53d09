"""Text with retrieval examples in between (`train.mix`), which ask for the middle of a window.

Whole steps are on examples, not rows of a step: answers are a hundredth of a row's tokens, and
beside rows of text they would hardly weigh anything.

Dimension: T tokens in a block.
"""

from __future__ import annotations

from torch import Tensor

from hylorada.data.blocks import Blocks
from hylorada.data.token_corpus import TokenCorpus
from hylorada.training.retrieval_blocks import RetrievalBlocks


class Mixture(Blocks):
    """The blocks of a corpus, and after the last of them the examples; a `Plan` says which when.

    Hash and documents are those of the text: the examples follow from settings, seed and tokenizer.
    """

    def __init__(self, corpus: TokenCorpus, examples: RetrievalBlocks, share: float) -> None:
        """Plan the blocks.

        Args:
            corpus: the tokens of the text.
            examples: sequences of as many tokens as a block is to have.
            share: of the steps that read examples; for the label.

        Raises:
            ConfigError, DataError: as `Blocks`.
        """
        super().__init__(corpus, examples.length)
        self._examples = examples
        self.label = f"{corpus.label}; in {100 * share:g} % of the steps {examples.label}"

    def __len__(self) -> int:
        return super().__len__() + len(self._examples)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Return block `i`: `input_ids` [T] and `labels` [T], int64, of text or of examples."""
        text = super().__len__()
        return super().__getitem__(i) if i < text else self._examples[i - text]
