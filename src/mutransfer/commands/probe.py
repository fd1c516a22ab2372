"""`mutransfer probe`: the facts of an optimizer that nobody has declared, measured; or the reasons why it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Probe:
    """What does this optimizer do with a gradient? Its facts, measured on synthetic ones. Exit code 0 facts, 1 no rule fits.

    Examples:
      mutransfer probe package.module:Tiger --set momentum=0.9
      mutransfer probe optimizers.py:Mine --json
      mutransfer probe adafactor
    """

    summary: ClassVar[str] = "what does this optimizer do with a gradient? its facts, measured"

    name: Annotated[Positional[str], arg(metavar="OPTIMIZER")]
    """Your class as package.module:Class or file.py:Class; or a name that plans know, such as adamw."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Settings of the constructor that you train with, such as momentum=0.9 eps=1e-12."""
    group: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Settings of the param group that the constructor does not take, such as use_muon=true."""
    json: bool = False
    """Print the measurements as JSON."""

    def run(self) -> int:
        """Probe, print the table and the line to write (or the reasons). Returns 0 with facts, 1 without."""
        from mutransfer.commands.output import show_json
        from mutransfer.commands.user_code import find, pairs
        from mutransfer.probe import probe_optimizer

        settings, group = pairs(self.set, "--set"), pairs(self.group, "--group")
        if "group" in settings:
            raise InputError(f"--set group={settings['group']!r}: settings of the param group go to --group")
        cls = find(self.name, "optimizer class") if ":" in self.name else self.name
        probe = probe_optimizer(cls, group=group, **settings)
        if self.json:
            show_json(probe.to_dict())
        else:
            print(probe)
        return 0 if probe.reliable else 1
