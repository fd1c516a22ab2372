"""`mutransfer data`: the known data sets, and bringing one onto this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg, subcommand


@dataclass(frozen=True)
class List:
    """Every known data set, its size and source, and whether it is on this machine.

    Example: mutransfer data list
    """

    summary: ClassVar[str] = "the known data sets, and which are on this machine"

    folder: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The data folder; by default MUTRANSFER_DATA, else the user's cache folder."""
    json: bool = False
    """Print the list as JSON."""

    def run(self) -> int:
        """Print the table. Returns 0."""
        from rich.console import Console
        from rich.table import Table

        from mutransfer.commands.output import show_json
        from mutransfer.data import data_root, listing

        rows = listing(self.folder)
        if self.json:
            show_json([asdict(row) for row in rows])
            return 0
        table = Table("name", "kind", "size", "here", "source", box=None, pad_edge=False)
        for row in rows:
            here = ", ".join(row.prepared) or "yes" if row.present else "–"
            table.add_row(row.name, row.kind, row.size, here, row.source)
        Console(highlight=False).print(table)
        print(f"\nfolder: {data_root(self.folder)}\nto get one:  mutransfer data prepare NAME")
        return 0


@dataclass(frozen=True)
class Prepare:
    """Download (or read a local file), tokenize and store one data set; a second time it is found done.

    Examples:
      mutransfer data prepare shakespeare
      mutransfer data prepare wikitext-2 --source wikitext.txt --tokenizer byte
    """

    summary: ClassVar[str] = "download or read, tokenize and store one data set"

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A name of: mutransfer data list."""
    source: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """A local file or folder in place of the network."""
    folder: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The data folder; by default MUTRANSFER_DATA, else the user's cache folder."""
    tokenizer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Text: char, byte, gpt2 or another tiktoken name."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """At most so many tokens (or rows)."""
    json: bool = False
    """Print what was stored as JSON."""

    def run(self) -> int:
        """Prepare the data and say where it is. Returns 0."""
        import sys

        from mutransfer.commands.output import show_json
        from mutransfer.data import prepare

        done = prepare(
            self.name, self.folder, self.source, self.tokenizer, self.limit,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
        if self.json:
            show_json({"name": done.name, "folder": done.folder, "cached": done.cached, "meta": done.meta})
            return 0
        counts = {key: value for key, value in done.meta.items() if key.endswith(("_tokens", "_rows"))}
        said = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
        print(f"{done.name}: {said} in {done.folder}" + (" (was there already)" if done.cached else ""))
        return 0


@dataclass(frozen=True)
class Data:
    """The known data sets, and bringing one onto this machine.

    Examples:
      mutransfer data list
      mutransfer data prepare shakespeare
    """

    summary: ClassVar[str] = "list the known data sets, or prepare one"

    action: (
        Annotated[List, subcommand("list", description=List.summary)]
        | Annotated[Prepare, subcommand("prepare", description=Prepare.summary)]
    )

    def run(self) -> int:
        """Run the chosen action."""
        return self.action.run()
