"""Tables in pages of the docs, between two marks that a command writes anew."""

from collections.abc import Sequence

__all__ = ["markdown_table", "plain", "replace_between"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: float) -> str:
    """Write a number with three significant digits and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def replace_between(page: str, marks: tuple[str, str], text: str) -> str:
    """Return a page with what stands between two marks replaced."""
    begin, end = marks
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
