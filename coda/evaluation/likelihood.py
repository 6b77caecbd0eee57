"""How probable a model finds text: Monte Carlo estimates of the bound of eq. 6 (arXiv 2510.03270), with standard errors.

With alpha_t = 1 - t and t uniform in (0, 1), the bound is E_t[1/t * sum over masked tokens of -log p(x_0 | x_t)]. The
integral over t can be done by hand: it equals E_l[n/l * sum over l masked tokens of -log p], with l uniform in 1..n and
the l tokens drawn from the n at random, in which no weight is ever larger than n (LLaDA, arXiv 2502.09992, eq. 6). That
is what is estimated here; there is no smallest t.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from coda.evaluation.generating import seed_of
from coda.model import CoDALanguageModel
from coda.model.sampling_coda import row_noise
from coda.objective import DiffusionObjective


@dataclass(frozen=True)
class Row:
    """Tokens, some of which are scored given the others.

    Attributes:
        ids: Token ids, L of them.
        scored: For each, whether its probability is asked for; what is not predicted by the model (the first token of a
            row or segment, under shift) never is.
        segments: A number per token that tells packed documents apart; None is one document.
    """

    ids: list[int]
    scored: list[bool]
    segments: list[int] | None = None


@dataclass(frozen=True)
class Bound:
    """An upper bound of the negative log-likelihood, in nats.

    Attributes:
        nats: The estimate, summed over tokens.
        variance: Of the estimate; unbiased.
        tokens: How many were scored.
    """

    nats: float
    variance: float
    tokens: int

    @property
    def standard_error(self) -> float:
        """Of ``nats``."""
        return math.sqrt(self.variance)

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits(self) -> float:
        """The same in bits."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """Upper bound of the perplexity per token."""
        return math.exp(self.per_token)

    @classmethod
    def total(cls, bounds: Iterable["Bound"]) -> "Bound":
        """The bound of all rows together, whose noise is independent."""
        given = list(bounds)
        parts = (sum(one.nats for one in given), sum(one.variance for one in given), sum(one.tokens for one in given))
        return cls(*parts)


@dataclass
class Likelihood:
    """Estimates bounds with a number of masks per row.

    The masks come in pairs: the numbers of masked tokens are spread evenly over 1..n, two to each part, which makes the
    estimate better than independent draws and still tells its variance without bias.

    Args:
        model: In evaluation mode, on its device.
        samples: Masks drawn per row, an even number.
        batch_size: Masked rows given to the model at once.
        seed: Of the masks; a row's are a function of this and its own number.
        title: Of the progress bar; None shows none.
    """

    model: CoDALanguageModel
    samples: int = 64
    batch_size: int = 16
    seed: int = 0
    title: str | None = None
    objective: DiffusionObjective = field(init=False)

    def __post_init__(self) -> None:
        if self.samples < 2 or self.samples % 2:
            raise ValueError(f"likelihood samples is {self.samples}; draw an even number of masks, 2 at least")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; give the model at least 1 row at a time")
        self.objective = DiffusionObjective(shift=bool(self.model.config.shift))

    def bounds(self, rows: Sequence[Row]) -> list[Bound]:
        """The bound of each row. A row without a token that can be scored has a bound of 0 over 0 tokens.

        Raises:
            ValueError: If a row is longer than the model, or its parts differ in length.
        """
        self._check(rows)
        # The samples of a row lie side by side; rows of like length share a batch.
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        draws = [(number, sample) for number in order for sample in range(self.samples)]
        values = torch.zeros(len(rows), self.samples, dtype=torch.float64)
        tokens = torch.zeros(len(rows), dtype=torch.long)
        for start in tqdm(range(0, len(draws), self.batch_size), self.title, disable=self.title is None, unit="batch"):
            batch = draws[start : start + self.batch_size]
            numbers, samples = (torch.tensor(part) for part in zip(*batch, strict=True))
            values[numbers, samples], tokens[numbers] = self._draw(rows, batch)
        pairs = values.view(len(rows), self.samples // 2, 2)
        variance = (pairs[..., 0] - pairs[..., 1]).square().sum(dim=1) / self.samples**2
        results = zip(values.mean(dim=1).tolist(), variance.tolist(), tokens.tolist(), strict=True)
        return [Bound(*result) for result in results]

    @torch.no_grad()
    def _draw(self, rows: Sequence[Row], batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """One estimate, in nats, for each (row, sample) of a batch, float64 [B], and how many tokens are scored [B]."""
        ids, given, scored, segments = self._padded([rows[number] for number, _ in batch])
        seeds = [seed_of(self.seed, str(number), sample) for number, sample in batch]
        samples = [sample for _, sample in batch]
        masked, count = self._masks(scored, torch.tensor(seeds, device=ids.device), samples)
        noisy = torch.where(masked, self.model.config.mask_token_id, ids)
        outputs = self.model(
            noisy,
            # Padding is a segment of its own, where there are segments: a query without any key would yield NaN.
            attention_mask=None if segments is not None or bool(given.all()) else given,
            segment_ids=segments,
            output_logits=False,
        )
        level = count / scored.sum(dim=1).clamp(min=1)
        nll = self.objective(
            outputs.last_hidden_state, self.model.lm_head.weight, ids, masked, scored, level.clamp(min=1e-9)
        ).nll
        estimate = nll.double() / level.double().clamp(min=1e-9)
        return estimate.cpu(), scored.sum(dim=1).cpu()

    def _masks(self, scored: Tensor, seeds: Tensor, samples: list[int]) -> tuple[Tensor, Tensor]:
        """Draw masks bool [B, L] inside ``scored``, and the number of masked tokens [B], uniform in 1..n."""
        total = scored.sum(dim=1)
        parts = self.samples // 2
        part = torch.tensor(samples, device=scored.device) // 2
        level = (part + row_noise(seeds, 0, 1)[:, 0].double()) / parts
        count = torch.minimum(1 + (level * total).long(), total)
        noise = row_noise(seeds, 1, scored.shape[1]).masked_fill(~scored, 2.0)
        order = noise.argsort(dim=1, stable=True)
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        return (rank < count[:, None]) & scored, count

    def _padded(self, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Ids, what is given, what is scored and segments, [B, L] each, padded on the right."""
        width = max(len(row.ids) for row in rows)

        def padded(parts: Iterable[Sequence[int]], value: int) -> Tensor:
            filled = [[*part, *[value] * (width - len(part))] for part in parts]
            return torch.tensor(filled, device=self.model.device)

        ids = padded((row.ids for row in rows), int(self.model.config.pad_token_id or 0))
        given = padded(([1] * len(row.ids) for row in rows), 0).bool()
        scored = padded((row.scored for row in rows), False).bool()
        segments = None
        if any(row.segments is not None for row in rows):
            segments = padded((row.segments or [0] * len(row.ids) for row in rows), -1)
        return ids, given, self.objective.predictable(scored, segments), segments

    def _check(self, rows: Sequence[Row]) -> None:
        positions = int(self.model.config.max_position_embeddings)
        for number, row in enumerate(rows):
            lengths = {len(row.ids), len(row.scored), len(row.segments if row.segments is not None else row.ids)}
            if len(lengths) > 1:
                raise ValueError(
                    f"row {number} has ids, scored and segments of lengths {sorted(lengths)}; make them equal"
                )
            if len(row.ids) > positions:
                raise ValueError(
                    f"row {number} has {len(row.ids)} tokens, the model {positions} positions; split it (windows_of)"
                )


def continuation(context: list[int], choice: list[int], separator: int, positions: int) -> Row:
    """A row that scores ``choice`` given ``context``, shortened from the left to what the model can read.

    An empty context becomes the ``separator``, which stands before every document in training.

    Raises:
        ValueError: If ``choice`` alone is longer than the model.
    """
    if len(choice) >= positions:
        raise ValueError(f"a continuation has {len(choice)} tokens, the model {positions} positions; shorten it")
    given = (context or [separator])[-(positions - len(choice)) :]
    return Row([*given, *choice], [False] * len(given) + [True] * len(choice))


def windows_of(document: list[int], separator: int, length: int, context: int = 1, prompt: int = 0) -> Iterator[Row]:
    """Cut a document into rows that score each of its tokens once.

    Args:
        document: Token ids.
        separator: What precedes it.
        length: Tokens of a row, its context included.
        context: Tokens before those scored that a row repeats from the last; 1 at least.
        prompt: How many tokens of the document, from the first, are given and not scored.

    Raises:
        ValueError: If ``context`` leaves no room.
    """
    if not 1 <= context < length:
        raise ValueError(f"likelihood context is {context}; it must be at least 1 and below the row's {length} tokens")
    tokens, start = [separator, *document], 1
    while start < len(tokens):
        first = max(start - context, 0)
        end = min(first + length, len(tokens))
        scored = [first + place >= start and first + place > prompt for place in range(end - first)]
        if any(scored):
            yield Row(tokens[first:end], scored)
        start = end
