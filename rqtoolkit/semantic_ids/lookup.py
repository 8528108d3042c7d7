"""From items to codes and from codes to items, many at a time."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import shown
from rqtoolkit.semantic_ids.items import RowIndex, as_item_ids, check_kind
from rqtoolkit.semantic_ids.stacks import stack_numbers

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["find_rows", "items_of", "lookup", "rows"]


def rows(
    self: "SemanticIDs", item_ids: Any, *, errors: Literal["raise", "null"] = "null"
) -> NDArray[np.int64]:
    """Return the rows of items in `item_ids` and `codes`.

    Args:
        self: Semantic IDs.
        item_ids: Shape (M,); may repeat.
        errors: What unknown items are: an error, or row −1.

    Raises:
        DataError: If an item is unknown and errors is "raise"; or if integers were given for
            strings, or the other way round.
    """
    return find_rows("SemanticIDs.rows", self, item_ids, errors=errors)


def find_rows(
    where: str, ids: "SemanticIDs", item_ids: Any, *, errors: Literal["raise", "null"] = "null"
) -> NDArray[np.int64]:
    """Return what `rows` does; errors name the method `where`."""
    if errors not in ("raise", "null"):
        raise ConfigError(f"{where}: errors={shown(errors)} is unknown. Choose 'raise' or 'null'.")
    wanted = as_item_ids(where, item_ids)
    check_kind(where, wanted, ids.item_ids)
    if "items" not in ids.indexes:
        ids.indexes["items"] = RowIndex(ids.item_ids)
    found = ids.indexes["items"].find(wanted)
    if errors == "raise" and (found < 0).any():
        raise DataError(
            f"{where}: {(found < 0).sum()} of {len(found)} item_ids are not published, such as "
            f"{shown(wanted[np.argmin(found)])}. Add them, or pass errors='null'."
        )
    return found


def lookup(
    self: "SemanticIDs", item_ids: Any, *, errors: Literal["raise", "null"] = "raise"
) -> NDArray[np.int64]:
    """Return the codes of items.

    Args:
        self: Semantic IDs.
        item_ids: Shape (M,); may repeat.
        errors: What unknown items are: an error, or rows of −1.

    Returns:
        Shape (M, length).

    Raises:
        DataError: If an item is unknown and errors is "raise"; or if integers were given for
            strings, or the other way round.
    """
    found = find_rows("SemanticIDs.lookup", self, item_ids, errors=errors)
    codes = np.full((len(found), self.length), -1)
    codes[found >= 0] = self.codes[found[found >= 0]]
    return codes


def items_of(self: "SemanticIDs", codes: ArrayLike, *, all: bool = False) -> Any:  # noqa: A002
    """Return the items that have these codes.

    Args:
        self: Semantic IDs.
        codes: Shape (..., length), integers; values that no code has, such as −1, name no item.
        all: Return every item of each ID, where items share them.

    Returns:
        Item ids, shape (...), a masked array: masked where there is none (`.tolist()` has None),
        the one published first where there are several. With `all`, a list of arrays of item ids,
        one for each of the codes in order.

    Raises:
        ShapeError: If the last axis is not `length`.
        DataError: If the codes are no integers.
    """
    table = np.asarray(codes)
    if table.ndim == 0 or table.shape[-1] != self.length:
        raise ShapeError(
            f"SemanticIDs.items_of: codes has to have shape (..., {self.length}); got "
            f"{table.shape}."
        )
    if table.dtype.kind not in "iu":
        raise DataError(
            f"SemanticIDs.items_of: codes have to be integers; got dtype {table.dtype}."
        )
    flat = table.reshape(-1, self.length)
    sizes = self.codebook_sizes
    if "codes" not in self.indexes:
        self.indexes["codes"] = RowIndex(stack_numbers(self.codes, sizes))
    possible = np.all((flat >= 0) & (flat < np.array(sizes)), axis=1).astype(bool)
    keys = stack_numbers(np.where(possible[:, None], flat, 0), sizes)
    if all:
        found = self.indexes["codes"].find_all(keys)
        return [
            self.item_ids[some if fits else some[:0]]
            for some, fits in zip(found, possible, strict=True)
        ]
    first = np.where(possible, self.indexes["codes"].find(keys), -1)
    items = np.zeros(len(first), self.item_ids.dtype)
    items[first >= 0] = self.item_ids[first[first >= 0]]
    return np.ma.MaskedArray(items, mask=first < 0).reshape(table.shape[:-1])
