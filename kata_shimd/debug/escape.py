"""Text that may come from a guest, made safe for a terminal: no control characters, no bidirectional overrides."""

from collections.abc import Iterator


def harmless(text: str) -> str:
    """``text`` with everything escaped that is neither printable nor a newline or tab."""
    return text if text.isprintable() else "".join(map(_character, text))


def one_line(value: object) -> str:
    """A value for the middle of a line: newlines and tabs are escaped as well."""
    text = value if isinstance(value, str) else str(value)
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def block(text: str, *, lines: int, indent: str) -> Iterator[str]:
    """The last ``lines`` lines of a longer text, each behind ``indent``; says how many were left out."""
    every = [line.rstrip() for line in harmless(text).splitlines() if line.strip()]
    if len(every) > lines:
        yield f"{indent}… {len(every) - lines} lines above"
    yield from (indent + line for line in every[-lines:])


def _character(char: str) -> str:
    if char.isprintable() or char in "\n\t":
        return char
    return "" if char == "\r" else char.encode("unicode_escape").decode("ascii")
