"""Semantic IDs in the vocabulary of a language model of `transformers`: tokens and embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rqtoolkit.errors import DataError, MissingDependencyError
from rqtoolkit.semantic_ids.tokens import STYLE, level_tokens

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["extend_tokenizer", "import_transformers"]


def extend_tokenizer(
    ids: SemanticIDs, tokenizer: Any, model: Any = None, *, style: str = STYLE, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Teach a tokenizer, and a model, the tokens of semantic IDs.

    Each level gets one token for each code. Tokens that the tokenizer has keep their numbers, so
    that a second call adds what is new and changes nothing else. Of the model, input embeddings and
    head grow where they have to (never shrink), and the rows of new tokens become the codewords:
    turned into the model's width by one random orthogonal map for all levels, which keeps angles as
    far as the width allows, and scaled, level by level, to the mean norm of the rows that were
    there. Levels without codewords, such as counters, and codes that are never used start random.

    Args:
        ids: Semantic IDs.
        tokenizer: Of `transformers`; changed.
        model: Of `transformers`, with tied or untied head; changed. Pass it when its tokens are
            added: rows of tokens that both already had are left as they are.
        style: How a token is written, see `rqtoolkit.semantic_ids.tokens.STYLE`.
        seed: Of the map and of random rows.

    Returns:
        Token numbers of each level, in the order of the codes: shapes (K_level,), int64.

    Raises:
        MissingDependencyError: If transformers is not installed.
        ConfigError: If style does not tell levels apart.
        DataError: If the tokenizer does not take the tokens as they are.
    """
    added_token = import_transformers().AddedToken
    levels = level_tokens(ids.codebook_sizes, style)
    known = len(tokenizer)
    tokenizer.add_tokens(
        [added_token(token, normalized=False, special=False) for row in levels for token in row]
    )
    token_ids = [np.array(tokenizer.convert_tokens_to_ids(row), np.int64) for row in levels]
    if len(np.unique(np.concatenate(token_ids))) != sum(ids.codebook_sizes):
        raise DataError(
            f"extend_tokenizer: style={style!r} gives tokens that the tokenizer does not keep "
            "apart; got one number for several. Choose another style."
        )
    if model is not None:
        before = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > before:
            _resize(model, len(tokenizer))
        _start_rows(ids, token_ids, model, min(known, before), seed)
    return token_ids


def _resize(model: Any, rows: int) -> None:
    quick = "mean_resizing" in inspect.signature(model.resize_token_embeddings).parameters
    # The rows are set afterwards: their start from the covariance of all others would be wasted.
    model.resize_token_embeddings(rows, **({"mean_resizing": False} if quick else {}))


def _start_rows(
    ids: SemanticIDs, token_ids: Sequence[NDArray[np.int64]], model: Any, known: int, seed: int
) -> None:
    """Set the rows of tokens from number `known` on, in the embeddings and an untied head."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [inputs.weight]
    if head is not None and head.weight.data_ptr() != inputs.weight.data_ptr():
        weights.append(head.weight)
    codewords = _codewords(ids)
    for weight in weights:
        generator = torch.Generator().manual_seed(seed)
        norms = weight[:known].detach().float().norm(dim=1)
        norm = norms[norms > 0].mean().nan_to_num(1.0)  # rows of padding are often zero
        for rows, table in zip(
            token_ids, _to_width(codewords, weight.shape[1], generator), strict=True
        ):
            new = torch.from_numpy(rows >= known)
            places = torch.from_numpy(rows)[new].to(weight.device)
            with torch.no_grad():
                weight[places] = (table * norm.cpu())[new].to(weight)


def _codewords(ids: SemanticIDs) -> list[Tensor]:
    """Return what each code adds to a vector, a table (K, dim) a level; rows of 0 where unknown."""
    quantizer = ids.quantizer
    sizes = ids.codebook_sizes
    if quantizer is None:
        return [torch.zeros(size, 1) for size in sizes]
    codebooks = getattr(quantizer, "codebooks", None)
    if codebooks is None:
        tables = _mean_additions(ids)
    else:
        shared = len(codebooks) == 1
        tables = [codebooks[0 if shared else level] for level in range(ids.depth)]
    dim = tables[0].shape[1]
    tables += [torch.zeros(size, dim) for size in sizes[len(tables) :]]
    return [table[:size].float().cpu() for table, size in zip(tables, sizes, strict=True)]


def _mean_additions(ids: SemanticIDs, most: int = 2**16) -> list[Tensor]:
    """Return what each code changes in the decoded vectors, on average of (most of) the items."""
    quantizer: Any = ids.quantizer
    codes = torch.from_numpy(ids.codes[:most, : ids.depth])
    tables, before = [], torch.zeros(())
    for level in range(ids.depth):
        decoded = quantizer.decode(codes[:, : level + 1]).detach().float().cpu()
        shape = (ids.codebook_sizes[level], decoded.shape[1])
        sums = torch.zeros(shape).index_add_(0, codes[:, level], decoded - before)
        counts = torch.bincount(codes[:, level], minlength=shape[0]).clamp(min=1)
        tables.append(sums / counts[:, None])
        before = decoded
    return tables


def _to_width(codewords: list[Tensor], width: int, generator: torch.Generator) -> list[Tensor]:
    """Return tables (K, width) of mean norm 1, turned by one orthogonal map; zero rows random."""
    dim = codewords[0].shape[1]
    larger, smaller = max(dim, width), min(dim, width)
    turn = torch.linalg.qr(torch.randn(larger, smaller, generator=generator))[0]
    turn = turn if dim >= width else turn.T
    tables = []
    for words in codewords:
        table = words @ turn
        norms = table.norm(dim=1, keepdim=True)
        table = table / norms[norms > 0].mean().nan_to_num(1.0)
        random = nn.functional.normalize(torch.randn(len(table), width, generator=generator))
        tables.append(torch.where(norms > 0, table, random))
    return tables


def import_transformers() -> ModuleType:
    """Return the package, which is optional.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError(
            "semantic_ids.decoding: tokenizers and models need transformers; got none installed. "
            "Run `pip install 'rqtoolkit[huggingface]'`."
        ) from None
    return transformers
