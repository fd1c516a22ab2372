"""The user's own code on the command line: `package.module:name` or `file.py:name`, imported and called with care."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from mutransfer.errors import InputError


def find(spec: str, wanted: str, builtin: Iterable[str] = ()) -> Any:
    """The object that `package.module:name` or `file.py:name` names, importable from the current folder.

    Raises InputError naming what is wrong: no such module, an error inside it, no such name in it.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        known = f"{', '.join(builtin)} or " if builtin else ""
        raise InputError(f"{spec!r} names no {wanted}: write {known}package.module:name (or file.py:name)")
    module = _from_file(place, spec) if place.endswith(".py") else _from_path(place, spec)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            close = difflib.get_close_matches(part, vars(value) if hasattr(value, "__dict__") else (), n=1)
            raise InputError(f"{spec!r}: {place} has no {part!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        value = getattr(value, part)
    return value


def find_function(spec: str, wanted: str, builtin: Iterable[str] = ()) -> Callable[..., Any]:
    """As `find`, for a function; errors raised inside it become one line that names it and the error."""
    value = find(spec, wanted, builtin)
    if not callable(value):
        raise InputError(f"{spec!r} is a {type(value).__name__}, not a function: name a {wanted}")
    return guarded(value, spec)


def guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with whatever it raises turned into an InputError that quotes the error's type and message."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (InputError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:
            shown = ", ".join([*map(_short, args), *(f"{key}={_short(value)}" for key, value in kwargs.items())])
            raise InputError(f"{name}({shown}) raised {quoted(error)}") from error

    return call


def quoted(error: BaseException) -> str:
    """`Type: message` of an error, and where in the user's code it was raised."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if Path(code.co_filename).is_relative_to(Path.cwd()) and "site-packages" not in code.co_filename:
            place = f" ({Path(code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}{place}"


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | bool | dict) else f"<{type(value).__name__}>"


def _from_path(name: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{spec!r}: {name!r} is no module name; write package.module:name (or file.py:name)")
    with_folder(Path.cwd())
    return _imported(lambda: importlib.import_module(name), name, spec)


def _from_file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise InputError(f"{spec!r}: there is no file {place!r}")
    with_folder(path.resolve().parent)

    def load() -> ModuleType:
        described = importlib.util.spec_from_file_location(path.stem, path)
        assert described is not None and described.loader is not None  # it ends in .py and exists
        module = importlib.util.module_from_spec(described)
        sys.modules[path.stem] = module  # dataclasses and pickle look their module up by name
        try:
            described.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
        return module

    return _imported(load, path.stem, spec)


def _imported(load: Callable[[], ModuleType], name: str, spec: str) -> ModuleType:
    try:
        return load()
    except (InputError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{spec!r}: there is no module {error.name!r} that can be imported from the current folder"
            ) from error
        raise InputError(f"{spec!r}: importing it raised {quoted(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec!r}: importing it raised {quoted(error)}") from error


def with_folder(folder: Path) -> None:
    """Make the modules of a folder importable, as `python -m` does with the current one."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def assignments(
    words: Iterable[str], option: str, example: str = "name=value, such as width=64 depth=2"
) -> dict[str, str]:
    """`width=64 norm=rmsnorm` as name → text. Raises InputError for a word without `=` and for a name given twice."""
    texts: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise InputError(f"{option} {word!r}: write {example}")
        if name in texts:
            raise InputError(f"{option} names {name!r} twice: {name}={texts[name]} and {word}")
        texts[name] = text
    return texts


def pairs(words: Iterable[str], option: str) -> dict[str, Any]:
    """`assignments` with values: Python literals, `true`, `false` and `none`; anything else is a text."""
    return {name: literal(text) for name, text in assignments(words, option).items()}


def literal(text: str) -> Any:
    """A word as a Python literal, `true`, `false` or `none`; anything else is a text."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
