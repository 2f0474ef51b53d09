"""Data with a known truth, many draws at once, and the intervals of before to compare with.

Letters: N draws of a whole study, S seeds, D documents, E examples, K depths.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from hylorada.statistics.clustered import LEVEL, two_way
from hylorada.statistics.student import t_quantile, t_two_sided

DRAWS = 2000
CELLS = [
    (seeds, documents, noise)
    for noise in (0.0, 0.005, 0.02)
    for seeds in (1, 3, 5)
    for documents in (5, 11, 62)
    if not (seeds == 1 and noise)  # about that one seed's own difference nothing changes
]
"""Seeds, documents, standard deviation between seeds in nats per token."""


@dataclass(frozen=True)
class Study:
    """Differences of two arms in many simulated studies.

    Attributes:
        difference_NSD: sums of NLL, one arm less the other.
        tokens_ND: of log-normal size, new in every study.
        true_N: the difference in nats per token that an interval should hold.
    """

    difference_NSD: np.ndarray
    tokens_ND: np.ndarray
    true_N: np.ndarray

    def estimated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard error and degrees of freedom of each study."""
        value_N, variance_N, df_N = two_way(self.difference_NSD, self.tokens_ND)
        return value_N, np.sqrt(variance_N), df_N

    def covered(self, level: float = LEVEL) -> np.ndarray:
        """Which studies have the truth in their interval, of those that give one."""
        value_N, se_N, df_N = self.estimated()
        given_N = df_N >= 1  # as in clustered_mean
        reach_N = t_quantile((1 + level) / 2, df_N) * se_N
        return (np.abs(value_N - self.true_N) <= reach_N)[given_N]

    def p_values(self) -> np.ndarray:
        """Against no difference; 1 where there is no interval."""
        value_N, se_N, df_N = self.estimated()
        return np.where(df_N >= 1, t_two_sided(value_N / se_N, df_N), 1.0)


def studies(
    seeds: int,
    documents: int,
    seed_noise: float = 0.0,
    effect: float = 0.0,
    number: int = DRAWS,
    rng: np.random.Generator | int = 1,
    by_seed: bool = True,
) -> Study:
    """Two arms whose difference varies with the document, the seed and both.

    In nats per token: 0.01 between documents, 0.3 / sqrt(tokens) from a document's own tokens,
    0.004 in each cell; as between LoRA and HyLoRADA on the embedded base.

    Args:
        seeds: S.
        documents: D.
        seed_noise: standard deviation between seeds.
        effect: the true difference over all documents and seeds.
        number: N.
        rng: a generator, or a seed of one.
        by_seed: with one seed the truth is that of this seed, as the report says; False: over all.
    """
    rng = np.random.default_rng(rng)
    tokens_ND = np.ceil(rng.lognormal(8, 1, (number, documents)))
    mean_ND = effect + rng.normal(0, 0.01, tokens_ND.shape)
    mean_ND += rng.normal(0, 0.3, tokens_ND.shape) / np.sqrt(tokens_ND)
    seed_NS = rng.normal(0, 1, (number, seeds)) * seed_noise
    cell_NSD = rng.normal(0, 0.004, (number, seeds, documents))
    per_token_NSD = mean_ND[:, None] + seed_NS[:, :, None] + cell_NSD
    true_N = np.full(number, effect)
    if seeds == 1 and by_seed:
        true_N = true_N + seed_NS[:, 0]
    return Study(per_token_NSD * tokens_ND[:, None], tokens_ND, true_N)


def bootstrapped(study: Study, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the percentile bootstrap over seeds and documents that reports had before.

    All studies share their resamples, which changes no coverage.
    """
    seeds, documents = study.difference_NSD.shape[1:]
    rng = np.random.default_rng(20230701)
    seeds_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws).astype(float)
    documents_BD = rng.multinomial(documents, np.full(documents, 1 / documents), draws)
    total_NB = sum(
        (study.difference_NSD[:, s] @ documents_BD.T) * seeds_BS[:, s] for s in range(seeds)
    )
    drawn_NB = total_NB / (seeds * (study.tokens_ND @ documents_BD.T))
    low_N, high_N = np.quantile(drawn_NB, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=1)
    return low_N, high_N


def share(truth_N: np.ndarray) -> float:
    """Percent of the draws in which something holds."""
    return 100 * float(np.mean(truth_N))


def say(line: str) -> None:
    """A line of the tables in docs/METHODOLOGY.md, for `pytest -s`."""
    sys.stdout.write(f"{line}\n")


def answers(
    examples: int,
    depths: list[float],
    alike: float,
    seeds: int = 1,
    seed_noise: float = 0.0,
    number: int = DRAWS,
    rng: np.random.Generator | int = 1,
) -> np.ndarray:
    """Right (1) and wrong (0) answers [N, S, E, K].

    Args:
        examples: E.
        depths: probability of a right answer at each of K depths.
        alike: with this probability an example is easy or hard at all depths and seeds at once.
        seeds: S.
        seed_noise: standard deviation between seeds of the probability.
        number: N.
        rng: a generator, or a seed of one.
    """
    rng = np.random.default_rng(rng)
    shape = (number, seeds, examples, len(depths))
    alone = rng.random(shape)
    shared = rng.random((number, 1, examples, 1))
    luck = np.where(rng.random((number, 1, examples, 1)) < alike, shared, alone)
    seed = seed_noise * rng.normal(size=(number, seeds, 1, 1))
    return (luck < np.array(depths) + seed).astype(float)
