"""`mutransfer grow`: a checkpoint of a small model becomes one of a big model, which goes on where the small one was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.growth.files.checkpoint import Checkpoint
    from mutransfer.growth.files.growing import Growing
    from mutransfer.growth.tensors import GrowPlan

FAILED = 1
TIED = "without noise the copies stay equal for ever, and the big model trains as the small one: give --noise 0.05"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Grow:
    """Warm-start a big model from a small one's checkpoint: the same function, optimizer state and schedule, then noise.

    Examples:
      mutransfer grow runs/a --to width=1024 --noise 0.05 --out runs/b
      mutransfer grow model.pt --model package.module:make_model --from width=256 --to width=1024 --optimizer-state opt.pt --out big
      mutransfer grow ./llama --to hidden_size=4096 intermediate_size=11008 num_attention_heads=32 --out ./llama-wide
    """

    summary: ClassVar[str] = "a big model's checkpoint from a small one's"

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The folder of a run, of a Hugging Face model, a file of torch.save or of safetensors. It is only read."""
    to: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")]
    """The new sizes, such as width=1024 depth=8; those not named stay."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """A new folder: it is there whole or not at all. Needed unless --plan-only."""
    noise: Annotated[str, arg(metavar="NOISE")] = "0"
    """Breaks the tie between copies, which else stay equal for ever: 0.05, relative:0.05, gaussian:0.05:preserving."""
    seed: Annotated[int, arg(metavar="INT")] = 0
    """Of the noise."""
    steps: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Runs: the new total of updates, those made counted; by default the run's own. A finished run needs it."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Plain files: the factory make_model(**sizes) -> nn.Module (or (model, optimizer)) as package.module:name or file.py:name."""
    from_: Annotated[tuple[str, ...], arg(name="from", metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Plain files: the factory's arguments for the model in the checkpoint, all of them."""
    optimizer_state: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Plain files and Hugging Face folders: the optimizer's state_dict(), saved with torch.save."""
    optimizer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Plain files and Hugging Face folders: the optimizer that trains the model, such as sgd; by default adamw."""
    axes: Annotated[tuple[str, ...], arg(metavar="PATTERN=AXES ...", help_behavior_hint="")] = ()
    """As in mutransfer plan: axes of tensors whose meaning shapes cannot tell, such as 'experts.*=stack in out'."""
    roles: Annotated[tuple[str, ...], arg(metavar="PATTERN=ROLE ...", help_behavior_hint="")] = ()
    """As in mutransfer plan: roles by name pattern, such as 'lm_head.weight=output'."""
    head_size: Annotated[tuple[int, int] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """As in mutransfer plan: the attention head sizes, where the model does not tell."""
    plan: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The plan from the small sizes to the new ones, as mutransfer plan --save wrote it; by default made here."""
    depth_mode: Literal["identity", "interleave", "append"] = "identity"
    """New blocks: identity adds nothing at the start; interleave (0 0 1 1) and append (0 1 0 1) repeat trained blocks."""
    branch_out: Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="")] = ()
    """Last tensors of residual branches, where new blocks start as identity and names do not tell."""
    uneven: bool = False
    """Sizes that are no whole multiples: the function is kept, the path of training is not."""
    maps: Annotated[tuple[str, ...], arg(metavar="PATTERN:AXIS=MAP ...", help_behavior_hint="")] = ()
    """Which unit each unit copies, where it cannot be told, such as '*.qkv.weight:0=3*[4→8*16]'; or: units."""
    fresh_state: bool = False
    """Start the optimizer's state anew, as where no rule for it exists; the settings go on."""
    no_verify: bool = False
    """Write without comparing the grown model with the small one, which is done before noise; when it differs nothing is written."""
    against: Annotated[Path | None, arg(metavar="CHECKPOINT", help_behavior_hint="")] = None
    """Only verify: compare this grown checkpoint, written earlier, with the small one, and write nothing (0 the same, 1 not)."""
    max_shard_size: Annotated[str, arg(metavar="SIZE")] = "5GB"
    """Safetensors: the largest file."""
    plan_only: bool = False
    """Print the grow plan and stop."""
    save_plan: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the grow plan as JSON."""
    json: bool = False
    """Print what was done as JSON."""

    def run(self) -> int:
        """Plan, verify, write. Returns 0, or 1 when the grown model is not the small one (then nothing is written)."""
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.growth.files.folder import require_new
        from mutransfer.growth.files.growing import Growing
        from mutransfer.growth.files.verifying import Verdict, verify
        from mutransfer.growth.files.write import prepare, write
        from mutransfer.growth.noise import noise_of

        noise = noise_of(self.noise)
        if self.out is None and not self.plan_only and self.against is None:
            raise InputError(
                "--out is missing: write a new folder, such as --out runs/big (or --plan-only, or --against)"
            )
        if self.out is not None and self.against is not None:
            raise InputError("--against only verifies: leave --out out")
        if self.out is not None:
            require_new(self.out, self.checkpoint)
        if self.save_plan is not None:
            require_file(self.save_plan, "--save-plan")
        checkpoint = self._open()
        grow_plan = self._grow_plan(checkpoint)
        notes = [*checkpoint.notes, *([] if noise or not _copies(grow_plan) else [TIED])]
        if not self.json:
            print(f"{self.checkpoint}: {checkpoint.words()}")
            print(grow_plan)
            for note in notes:
                print(f"· {note}")
        if self.save_plan is not None:
            grow_plan.save(self.save_plan)
        if self.against is not None:
            return self._verified(checkpoint, Growing(grow_plan, checkpoint.weights))
        if self.plan_only or self.out is None:
            if self.json:
                show_json({"checkpoint": self.checkpoint, "notes": notes, "grow_plan": grow_plan.to_dict()})
            return 0
        growing = Growing(grow_plan, checkpoint.weights, noise, self.seed, self.fresh_state)
        prepared = prepare(checkpoint, growing)
        verdict = Verdict(None, "not verified, as asked", {}) if self.no_verify else verify(checkpoint, growing)
        if not self.json:
            print(verdict.words)
        if verdict.ok is False:
            if self.json:
                show_json(
                    {"checkpoint": self.checkpoint, "out": None, "verified": False, "verification": verdict.details}
                )
            else:
                print("nothing is written: the grown model is not the small one (--no-verify writes it all the same)")
            return FAILED
        said = {"verified": verdict.ok, "verification": dict(verdict.details), "notes": notes}
        record = write(checkpoint, prepared, self.out, said)
        if self.json:
            show_json(
                {"checkpoint": self.checkpoint, "out": self.out, "next": checkpoint.next_steps(self.out), **record}
            )
            return 0
        print(f"grown into {self.out}; {checkpoint.next_steps(self.out)}")
        return 0

    def _verified(self, checkpoint: Checkpoint, growing: Growing) -> int:
        from mutransfer.cli import FAILS, HOLDS, INCONCLUSIVE
        from mutransfer.commands.output import show_json
        from mutransfer.growth.files.open import weights_of
        from mutransfer.growth.files.verifying import verify

        assert self.against is not None
        verdict = verify(checkpoint, growing, weights_of(self.against, checkpoint.big))
        if self.json:
            show_json(
                {
                    "checkpoint": self.checkpoint,
                    "against": self.against,
                    "verified": verdict.ok,
                    "verification": verdict.details,
                }
            )
        else:
            print(verdict.words)
        return INCONCLUSIVE if verdict.ok is None else HOLDS if verdict.ok else FAILS

    def _open(self) -> Checkpoint:
        from mutransfer.commands.user_code import find_function, pairs
        from mutransfer.growth.files import open_checkpoint
        from mutransfer.plans import Plan

        to, base = pairs(self.to, "--to"), pairs(self.from_, "--from")
        if not to:
            raise InputError("--to names no size: write the new ones, such as --to width=1024")
        make = None if self.model is None else find_function(self.model, "factory make_model(**sizes)")
        return open_checkpoint(
            self.checkpoint, to, base=base, make=make, optimizer_state=self.optimizer_state,
            plan=None if self.plan is None else Plan.load(self.plan), planning=self._planning(), steps=self.steps,
            largest=_bytes(self.max_shard_size),
        )  # fmt: skip

    def _planning(self) -> dict[str, Any]:
        from mutransfer.commands.plan import patterns

        options = {
            "optimizer": self.optimizer, "axes": patterns(self.axes, "--axes"), "roles": patterns(self.roles, "--roles"),
            "head_size": self.head_size,
        }  # fmt: skip
        return {name: value for name, value in options.items() if value is not None}

    def _grow_plan(self, checkpoint: Checkpoint) -> GrowPlan:
        from mutransfer.growth.build import grow_plan

        return grow_plan(
            checkpoint.small, checkpoint.big, checkpoint.plan, batch=checkpoint.call(), maps=_maps(self.maps), uneven=self.uneven,
            depth=self.depth_mode, branch_out=self.branch_out,
        )  # fmt: skip


def _copies(plan: GrowPlan) -> bool:
    return any(map_.grows for tensor in plan.tensors for map_ in tensor.maps)


def _maps(words: tuple[str, ...]) -> dict[str, dict[int, str]] | str | None:
    if words == ("units",):
        return "units"
    found: dict[str, dict[int, str]] = {}
    for word in words:
        place, equals, text = word.partition("=")
        pattern, colon, axis = place.rpartition(":")
        if not (equals and colon and pattern and text and axis.isdecimal()):
            raise InputError(f"--maps {word!r}: write PATTERN:AXIS=MAP, such as '*.qkv.weight:0=3*[4→8*16]'")
        found.setdefault(pattern, {})[int(axis)] = text
    return found or None


def _bytes(text: str) -> int:
    upper = text.strip().upper()
    unit = next((u for u in UNITS if upper.endswith(u)), "")
    number: Any = upper.removesuffix(unit).strip()
    try:
        size = int(float(number) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"--max-shard-size {text!r}: write a size such as 5GB or 500MB")
    return size
