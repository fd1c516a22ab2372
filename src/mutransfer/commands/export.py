"""`mutransfer export`: the rows of a sweep as CSV or parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Export:
    """A sweep's runs as a table, one row each; with --points, one row for each logged point.

    Examples:
      mutransfer export runs --out runs.csv
      mutransfer export runs --out points.parquet --points
    """

    summary: ClassVar[str] = "a sweep's runs as CSV or parquet"

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The folder of a sweep."""
    out: Annotated[Path, arg(metavar="FILE")]
    """The file to write: .csv or .parquet."""
    points: bool = False
    """The logged points instead of the runs."""
    json: bool = False
    """Print what was written as JSON."""

    def run(self) -> int:
        """Write the file. Returns 0."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.sweep.export import write_table
        from mutransfer.sweep.store import Store

        require_file(self.out, "--out")
        if self.out.suffix not in (".csv", ".parquet"):
            raise InputError(f"--out {str(self.out)!r}: end it in .csv or .parquet")
        with Store(self.folder, create=False) as store:
            rows = store.rows()
            names = {row["key"]: row for row in rows}
            if self.points:
                keys = store.points()
                rows = [
                    {"key": key, **{n: names[key].get(n) for n in ("recipe", "width", "depth", "lr", "seed")}, **point}
                    for key, points in keys.items()
                    for point in points
                ]
        if not rows:
            missing = "points, for none of its runs logged any" if self.points and names else "ended runs yet"
            raise InputError(f"{str(self.folder)!r} holds no {missing}: nothing to write")
        write_table(self.out, rows)
        if self.json:
            show_json(
                {"file": self.out, "rows": len(rows), "columns": list(dict.fromkeys(n for row in rows for n in row))}
            )
        else:
            print(f"{len(rows)} rows in {self.out}")
        return 0
