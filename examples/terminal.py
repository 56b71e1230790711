"""Show several growing texts at once, and the seconds that a wait takes."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# Called with the texts so far, which of them are finished, and whether this is the last call.
View = Callable[[Sequence[str], Sequence[bool], bool], None]


def choose_view(headings: Sequence[str]) -> View:
    return (terminal_view if sys.stdout.isatty() else file_view)(headings)


def file_view(headings: Sequence[str]) -> View:
    """Print each text once it is finished, in the order of the headings."""
    printed = 0

    def view(texts: Sequence[str], finished: Sequence[bool], last: bool) -> None:
        nonlocal printed
        while printed < len(headings) and (finished[printed] or last):
            print(f"{headings[printed]}\n{readable(texts[printed])}\n", flush=True)
            printed += 1

    return view


def terminal_view(headings: Sequence[str]) -> View:
    """Redraw all texts in place: the end of each while they grow, at last the whole."""
    drawn = 0

    def view(texts: Sequence[str], finished: Sequence[bool], last: bool) -> None:
        nonlocal drawn
        columns, height = shutil.get_terminal_size()
        room = sys.maxsize if last else max(1, (height - 1) // len(headings) - 2)
        lines = []
        for heading, text, done in zip(headings, texts, finished, strict=True):
            cursor = "" if done or last else "▌"
            lines.append(f"\x1b[1m{heading[:columns]}\x1b[0m")
            lines += [*wrap(readable(text) + cursor, columns)[-room:], ""]
        if not last:
            lines = lines[-(height - 1) :]
        back = f"\x1b[{drawn}F" if drawn else ""
        body = "".join(f"{line}\x1b[K\n" for line in lines)
        # Automatic wrapping is off meanwhile: a line with wide characters must stay one line.
        print(f"\x1b[?7l{back}{body}\x1b[J\x1b[?7h", end="", flush=True)
        drawn = len(lines)

    return view


def readable(text: str) -> str:
    # A character whose last bytes are still to come shows up as U+FFFD at the end.
    text = text.rstrip("\ufffd").expandtabs(4)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc").strip()


def wrap(text: str, columns: int) -> list[str]:
    paragraphs = [textwrap.wrap(line, max(columns - 2, 8)) or [""] for line in text.split("\n")]
    return [f"  {line}" for paragraph in paragraphs for line in paragraph]


@contextmanager
def progress(label: str) -> Iterator[None]:
    """Count the seconds on stderr while the block runs; one plain line where it is a file."""
    live, start, finished = sys.stderr.isatty(), time.perf_counter(), threading.Event()

    def write(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    def report() -> None:
        write(f"\r{label} ... " * live + f"{time.perf_counter() - start:.1f} s")

    def tick() -> None:
        while live and not finished.wait(0.1):
            report()

    write(f"{label} ... ")
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
        report()
        write("\n")
