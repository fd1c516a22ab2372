"""The command line: parse, run one command, turn its outcome into an exit code.

0 it holds · 1 it does not hold · 2 bad input (one line, nothing written) · 3 inconclusive · 130 interrupted
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from mutransfer.commands.output import remember_command
from mutransfer.errors import InputError

HOLDS, FAILS, BAD_INPUT, INCONCLUSIVE, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130

_DESCRIPTION = """\
Tune a small model, train a big one: hyperparameter transfer by maximal update parametrization.

Example: mutransfer quickstart

Exit codes: 0 it holds, 1 it does not hold, 2 bad input, 3 inconclusive"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but a bug in this package shows a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _speak_any_encoding()
    try:
        _refuse_slips(arguments)
        command = _parse(arguments)
        remember_command(arguments)
        return command if isinstance(command, int) else command.run()
    except InputError as error:
        return _complain(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; finished runs are kept, the same command continues", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HOLDS
    except Exception:
        traceback.print_exc()
        return _complain("this is a bug in mutransfer; please report the lines above", BUG)


def _refuse_slips(arguments: list[str]) -> None:
    """What a parser would take silently: an empty argument (for a folder: the current one), an option given again."""
    if "" in arguments:
        place = arguments.index("") + 1
        raise InputError(f"argument {place} is empty (an unset shell variable?): write a value or leave it out")
    options = [word.split("=")[0] for word in arguments if word.startswith("--")]
    again = [option for option in options if options.count(option) > 1]
    if again:
        raise InputError(f"{again[0]} is given twice: write it once, with all its values")


def _speak_any_encoding() -> None:
    """A terminal that knows ASCII only shows `?` for μ and box lines, instead of stopping the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="replace")


def _complain(message: str, code: int) -> int:
    print(f"mutransfer: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Any:
    """The command with its arguments, or the exit code where there is nothing to run (help, version)."""
    if not arguments:
        arguments = ["--help"]
    if arguments == ["--version"]:
        from mutransfer import __version__

        print(f"mutransfer {__version__}")
        return HOLDS
    from mutransfer.commands import COMMANDS, Command

    first = arguments[0]
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return _cli(COMMANDS[name], arguments[words:], f"mutransfer {name}", inspect.getdoc(COMMANDS[name]))
    if first in ("-h", "--help"):
        return _cli(Command, ["--help"], "mutransfer", _DESCRIPTION)
    if first.startswith("-"):
        raise InputError(f"there is no option {first!r}; write mutransfer COMMAND [options] (see: mutransfer --help)")
    known = [name for name in COMMANDS if " " not in name]
    close = difflib.get_close_matches(first, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(known)}"
    raise InputError(f"there is no command {first!r}: {hint}")


def _cli(kind: Any, arguments: list[str], program: str, description: str | None) -> Any:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _wide(not {"-h", "--help"} & set(arguments)):
            config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
            return tyro.cli(kind, args=arguments, prog=program, description=description, config=config)
    except SystemExit as stop:
        if not stop.code:
            return HOLDS
        raise InputError(_one_line(said.getvalue(), program, kind)) from None


@contextlib.contextmanager
def _wide(wanted: bool) -> Iterator[None]:
    """A parser that believes in a very wide terminal does not wrap the message that is about to become one line."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if wanted:
            if before is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = before


def _one_line(boxed: str, program: str, kind: Any) -> str:
    """The parser's framed message as one line: what is unknown, else what is missing; and where help is."""
    sections: list[list[str]] = [[]]
    for line in boxed.splitlines():
        inside = line.strip("│╭╮╰╯|+")
        text = inside.strip()
        framed = line.startswith(("╭", "╰", "+-"))  # drawn in ASCII where the terminal knows nothing else
        if framed or not text or inside.startswith(" " * 9):  # the frame; an option's help
            continue
        if set(text) <= {"─", "-"}:
            sections.append([])
        else:
            sections[-1].append(text)
    said = [
        " ".join(section) for section in sections if section and not section[0].startswith(("For full", "Argument"))
    ]
    said = [text for text in said if not re.fullmatch(r"[A-Z][a-z]+ [a-z]+", text)]  # titles, where frames are ASCII
    unknown = [text for text in said if text.startswith(("Unrecognized", "Error"))]
    text = "; ".join((unknown or said)[:2]) or "the command cannot be read"
    for pattern, plain in _PLAIN:
        text = re.sub(pattern, plain, text)
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    options = [f"--{name.rstrip('_').replace('_', '-')}" for name in names]  # from_: a keyword of Python
    wrong = [word.strip(",:") for word in text.split() if word.startswith("--")] if unknown else []
    close = [match for word in wrong if word not in options for match in difflib.get_close_matches(word, options, n=1)]
    return text + (f"; did you mean {close[0]}?" if close else "") + f" (see: {program} --help)"


# the parser speaks of its own insides: (what it says, what that means)
_PLAIN = (
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (r"Could not find valid parse for arguments: \[(.*)\]", r"\1 cannot be read as what it takes"),
    (r"(--[\w-]+): no type matching .*? from \[(.*?)\]\..*", r"\1 \2 cannot be read as what it takes"),
    (r"^Error parsing ", ""),
    (r"^Missing from mutransfer (.*?): ", r"\1 also needs "),
)


if __name__ == "__main__":
    sys.exit(main())
