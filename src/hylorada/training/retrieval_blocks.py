"""Training on key-value retrieval itself (`train.task`), or on some of it (`train.mix`).

Zero-shot, a base of a few million parameters retrieves hardly anything, and a comparison of methods
ends at the floor. Tuned on the same task it can tell them apart. What is learnt by heart cannot
help in the evaluation: training keys begin with other hexadecimal digits than the keys that are
generated for evaluation, and no answer lies where the evaluation asks, nor within a twentieth of
the context around it. The ends are held out no more than the middle, so that a curve by depth does
not show the hold-out.

Dimension: T tokens in a sequence.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hylorada.architecture.labels import IGNORE
from hylorada.config import RetrievalTaskConfig
from hylorada.data.token_corpus import tokenizer_sha256
from hylorada.errors import ConfigError, DataError
from hylorada.evaluation.continuations import PromptEncoder
from hylorada.evaluation.retrieval_prompts import RetrievalPrompt, generate_key_values, place

BAND = 0.05  # of the context, to each side of a held-out depth
_SEPARATOR = "\n\n"  # between two examples of a sequence


class RetrievalBlocks:
    """A sequence of blocks of exactly `length` tokens, each full of solved examples.

    Only the tokens of the answers are labelled. An example has between the fewest pairs that leave
    a place beside the held-out depths and as many as fit what is left of the block, evenly in the
    logarithm: long ones teach distance, short ones give more answers for the same tokens. Block
    `i` is a function of the settings, the seed and `i` alone.

    The ids of an example are those of its prompt and answer as one text, which is what the
    evaluation scores; a token that spans the two is labelled. Those of the line breaks after it
    follow, never joined with the answer's end, which the evaluation does not join either.

    Attributes:
        length: tokens in a block.
        label: what it is, in words.
        sha256: of all that the blocks follow from.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        settings: RetrievalTaskConfig,
        seed: int,
    ) -> None:
        """Find out how long an example is.

        Args:
            tokenizer: of the base.
            length: tokens in a block.
            settings: style and number of pairs, blocks in an epoch, depths near which no answer
                lies.
            seed: of the examples.

        Raises:
            ConfigError: so many depths are held out that no place is left.
            DataError: not even the smallest example fits a block.
        """
        self.length = length
        self._settings, self._seed = settings, seed
        self._encoder = PromptEncoder(tokenizer)
        self._held_out = tuple(settings.held_out)
        self._fewest = self._fewest_items()
        identity = [
            "key-value training", 2, length, settings.key_style, settings.items,
            settings.sequences, self._held_out, seed, tokenizer_sha256(tokenizer),
        ]  # fmt: skip
        self.sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        depths = ", ".join(f"{depth:g}" for depth in self._held_out)
        self.label = f"generated key-value pairs ({settings.key_style}), none near depth {depths}"
        sample = self._prompt(random.Random(0), self._fewest)
        solved = sample.text + sample.candidates[sample.gold]
        self._between = self._encoder.after(solved, _SEPARATOR)
        rng = random.Random(0)
        smaller, larger = (len(self._example(rng, self._fewest + n)[0]) for n in (0, 8))
        self._per_item = (larger - smaller) / 8
        self._rest = smaller - self._per_item * self._fewest  # tokens beside the pairs
        most = math.ceil(1.2 * smaller)  # they differ a little
        if most > length:
            raise DataError(
                f"train.retrieval: an example of {self._fewest} pairs has up to {most} tokens "
                f"and length.max_length is {length}; use a longer one, fewer train.retrieval.items "
                "or train.retrieval.key_style=hex"
            )

    def __len__(self) -> int:
        return self._settings.sequences

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Return block `i`.

        Returns:
            `input_ids` [T] and `labels` [T], int64; labels, not shifted, are -100 but for answers.
        """
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng = random.Random(f"retrieval task/{self._seed}/{i}")
        ids: list[int] = []
        labels: list[int] = []
        while True:
            room = self.length - len(ids)
            items = self._draw_items(rng, room)
            example, answered = self._example(rng, items)
            while len(example) > room and items > self._fewest:
                items -= 1
                example, answered = self._example(rng, items)
            ids += example
            labels += answered
            if len(example) > room:  # cut off, its question with it: the end of the block
                answers = len(labels) - len(answered)
                labels[answers:] = [IGNORE] * len(answered)
            if len(ids) >= self.length:
                break
        return {
            "input_ids": torch.tensor(ids[: self.length]),
            "labels": torch.tensor(labels[: self.length]),
        }

    def _fewest_items(self) -> int:
        given = self._settings.items
        for items in (given,) if given else range(2, 100):
            if items > 1 and _free_places(items, self._held_out):
                return items
        raise ConfigError(
            f"train.retrieval: no place among {given or 'up to 99'} pairs is left beside the "
            f"depths held out ({list(self._held_out)}); use more items or hold out fewer"
        )

    def _draw_items(self, rng: random.Random, room: int) -> int:
        most = int((room - self._rest) / self._per_item)
        if self._settings.items or most <= self._fewest:
            return self._fewest
        return round(math.exp(rng.uniform(math.log(self._fewest), math.log(most))))

    def _example(self, rng: random.Random, items: int) -> tuple[list[int], list[int]]:
        """Token ids and labels of an example, its answer and the separator."""
        prompt = self._prompt(rng, items)
        tokens = self._encoder.prompt(prompt.text, [prompt.candidates[prompt.gold]])
        question, (answer,) = tokens.ids[: tokens.shared], tokens.candidates
        unlabelled = [IGNORE] * len(question), [IGNORE] * len(self._between)
        return question + answer + self._between, [*unlabelled[0], *answer, *unlabelled[1]]

    def _prompt(self, rng: random.Random, items: int) -> RetrievalPrompt:
        style, seed = self._settings.key_style, rng.getrandbits(64)
        (example,) = generate_key_values(items, 1, seed=seed, form=style, split="train")
        index = rng.choice(_free_places(items, self._held_out))
        return example.prompt(index / (items - 1), 0)


def _free_places(items: int, held_out: Sequence[float]) -> list[int]:
    """Indices among `items` that no held-out depth stands for or is near to."""
    taken = {place(depth, items) for depth in held_out}
    return [
        index
        for index in range(items)
        if index not in taken
        and all(abs(index / (items - 1) - depth) > BAND + 1e-9 for depth in held_out)
    ]
