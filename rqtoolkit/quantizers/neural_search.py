"""All levels of a neural residual quantizer: sums of codewords, and the search for codes."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.quantizers.neural_network import ImplicitCodebook

__all__ = ["NeuralLevels"]


class NeuralLevels(nn.Module):
    """A plain table, then levels that depend on those before, in units of the data's spread.

    Args:
        tables: Base codewords (K_d, dim) of each level, in the units of the vectors.
        center: Subtracted from vectors before anything else, shape (dim,).
        spread: Divides them after that, a scalar.
        width: Features of each level's network.
        blocks: Residual blocks that every candidate passes.
        generator: Source of the initial weights, on the CPU.
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        tables: Sequence[Tensor],
        *,
        center: Tensor,
        spread: Tensor,
        width: int,
        blocks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)
        self.first = nn.Parameter((tables[0] - center) / spread)
        self.levels = nn.ModuleList(
            ImplicitCodebook(table / spread, width=width, blocks=blocks, generator=generator)
            for table in tables[1:]
        )

    @property
    def rest(self) -> list[ImplicitCodebook]:
        """The levels after the first."""
        return [cast("ImplicitCodebook", level) for level in self.levels]

    def normalize(self, x: Tensor) -> Tensor:
        """Return vectors in the units that everything else here works in."""
        return (x - self.center) / self.spread

    def restore(self, x: Tensor) -> Tensor:
        """Undo `normalize`."""
        return x * self.spread + self.center

    def partial_sums(self, codes: Tensor) -> list[Tensor]:
        """Sums (N, dim) of the first 1, 2, … d codewords that codes (N, d) name, normalised."""
        sums = [self.first[codes[:, 0]]]
        for level, chosen in zip(self.rest, codes.T[1:], strict=False):
            codewords = level.codewords(level.context(sums[-1]), chosen[:, None])
            sums.append(sums[-1] + codewords[:, 0])
        return sums

    @torch.no_grad()
    def decode(self, codes: Tensor, *, max_bytes: int) -> Tensor:
        """Return the vectors (N, dim) that codes (N, d) stand for, in their own units."""
        vectors = self.center.new_empty(len(codes), len(self.center))
        for rows in chunk_slices(len(codes), self._row_bytes(1, 1), max_bytes):
            vectors[rows] = self.restore(self.partial_sums(codes[rows])[-1])
        return vectors

    @torch.no_grad()
    def encode(
        self, x: Tensor, *, beam: int, candidates: int, depth: int, max_bytes: int
    ) -> Tensor:
        """Encode by beam search: at each level a table names candidates, the network decides.

        Args:
            x: Vectors, shape (N, dim), normalised.
            beam: Prefixes kept per vector.
            candidates: Codewords evaluated for each kept prefix.
            depth: Levels to encode.
            max_bytes: Bound on what is held at once beyond input and output.

        Returns:
            Codes, shape (N, depth), int64.
        """
        codes = torch.empty(len(x), depth, dtype=torch.int64, device=x.device)
        for rows in chunk_slices(len(x), self._row_bytes(beam, candidates), max_bytes):
            codes[rows] = self._search(x[rows], beam, candidates, depth)[:, 0]
        return codes

    @torch.no_grad()
    def encode_stacks(self, x: Tensor, *, beam: int, candidates: int, max_bytes: int) -> Tensor:
        """Return all stacks of codes that the beam ends with, best first.

        Arguments as in `encode`; shape (N, beam, depth), fewer where fewer exist.
        """
        depth = len(self.levels) + 1
        chunks = chunk_slices(len(x), self._row_bytes(beam, candidates), max_bytes)
        return torch.cat([self._search(x[rows], beam, candidates, depth) for rows in chunks])

    def _search(self, x: Tensor, beam: int, candidates: int, depth: int) -> Tensor:
        scores = 0.5 * self.first.square().sum(dim=1) - x @ self.first.T
        codes = _smallest(scores, beam)[..., None]
        sums = self.first[codes[..., 0]]
        for level in self.rest[: depth - 1]:
            residuals = (x[:, None] - sums).flatten(0, 1)
            context = level.context(sums.flatten(0, 1))
            named = level.shortlist(residuals, context, candidates)
            codewords = level.codewords(context, named)
            errors = (residuals[:, None] - codewords).square().sum(dim=2)
            kept = _smallest(errors.reshape(len(x), -1), beam)
            parents = kept // named.shape[1]
            chosen = named.reshape(len(x), -1).gather(1, kept)
            codes = torch.cat([_rows(codes, parents), chosen[..., None]], dim=2)
            added = _rows(codewords.reshape(len(x), -1, x.shape[1]), kept)
            sums = _rows(sums, parents) + added
        return codes

    def _row_bytes(self, beam: int, candidates: int) -> int:
        """Bytes that a vector takes: scores, or the features and codewords of candidates."""
        dim = len(self.center)
        largest = 2 * len(self.first)
        for level in self.rest:
            width, size = level.embed.out_features, len(level.table)
            evaluated = min(candidates, size) * (4 * width + 3 * dim)
            largest = max(largest, beam * max(evaluated, 3 * size + 4 * width))
        return 4 * (largest + 2 * dim * len(self.rest))


def _smallest(scores: Tensor, count: int) -> Tensor:
    """Columns (N, count) of the smallest scores (N, M), best first; all where M is less."""
    if count == 1:
        return scores.argmin(dim=1, keepdim=True)
    return scores.topk(min(count, scores.shape[1]), dim=1, largest=False).indices


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Of values (N, M, d), take rows (N, count) of each, giving (N, count, d)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))
