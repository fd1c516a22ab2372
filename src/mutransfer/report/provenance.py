"""Where a result comes from: command, versions, machine, the state of the user's repository. No paths."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone


@dataclass(frozen=True)
class Provenance:
    """Labelled facts, in the order in which they are shown."""

    facts: tuple[tuple[str, str], ...]

    @classmethod
    def now(cls, command: str, **more: str) -> Provenance:
        """The facts of this moment, this process and the current folder's git repository, if it is one."""
        import numpy
        import torch

        from mutransfer import __version__

        facts = [
            ("command", command),
            ("mutransfer", __version__),
            ("torch", torch.__version__),
            ("numpy", numpy.__version__),
            ("python", platform.python_version()),
            ("machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"),
            *more.items(),
            ("repository", git_state()),
            ("written", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ]
        return cls(tuple(facts))


def git_state() -> str:
    """The commit of the current folder's repository, and whether tracked files differ from it; "none" outside of one."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "none"
    return commit + (" with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
