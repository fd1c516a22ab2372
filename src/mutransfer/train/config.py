"""One training run as a frozen value: everything that decides its result, validated, JSON in and out, hashed."""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import nn

from mutransfer.duration import Duration
from mutransfer.errors import InputError
from mutransfer.models import GPT, MLP, GPTConfig, MLPConfig, ResNet, ResNetConfig
from mutransfer.models.config import LATER
from mutransfer.optimizers import facts_for
from mutransfer.optimizers.classes import check_run
from mutransfer.recipes import recipe_named
from mutransfer.rules import MODES, Mode
from mutransfer.train import warm
from mutransfer.train.schedule import SCHEDULES, Schedule

ModelConfig = GPTConfig | MLPConfig | ResNetConfig

_KINDS: dict[str, tuple[type, type[nn.Module]]] = {
    "gpt": (GPTConfig, GPT),
    "mlp": (MLPConfig, MLP),
    "resnet": (ResNetConfig, ResNet),
}
PLACEMENTS = ("absorbed", "multiplier")


@dataclass(frozen=True)
class RunConfig:
    """One training run. Learning rate, decay and eps are the *base's*: the plan turns them into each tensor's own.

    `model` is the model that is trained and `base` the sizes that its plan transfers from, by field name of `model`
    (``base={"width": 32, "depth": 2}``); the sizes not named are the same in both. A micro-batch holds
    ``batch / accumulation`` rows.
    Raises `InputError` at construction for every value that cannot be run.
    """

    model: ModelConfig = field(default_factory=GPTConfig)
    base: dict[str, int] = field(default_factory=dict)

    recipe: str = "mup"
    mode: Mode = "exact"
    placement: str = "absorbed"

    optimizer: str = "adamw"
    lr: float = 2**-8
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    eps: float = 1e-8

    data: str = "topics"
    tokenizer: str | None = None
    batch: int = 16
    accumulation: int = 1

    steps: int = 200
    warmup: int = 20
    schedule: Schedule = "cosine"
    final_lr_ratio: float = 0.1
    wsd_decay_fraction: float = 0.2

    clip: float | None = 1.0
    clip_norm: Literal["plan", "torch"] = "plan"
    autocast: Literal["none", "bf16"] = "none"
    seed: int = 0

    val_every: int = 0
    """Validate after every so many updates and after the last one; 0: only after the last one."""
    val_batches: int = 8
    """Validation batches of `batch` rows; 0: no validation at all."""
    log_every: int = 20
    checkpoint_every: int = 0
    """Save after every so many updates and after the last one; 0: only after the last one."""
    device: str = "auto"

    duration: str | None = field(default=None, metadata=LATER)
    """The rule by which lr, betas, eps and decay follow batch and length (`mutransfer.duration`); None: they do not."""
    base_batch: int | None = field(default=None, metadata=LATER)
    """The base's `batch`, under `duration`; None: the same."""
    base_steps: int | None = field(default=None, metadata=LATER)
    """The base's `steps`, under `duration`; None: as many as give the same number of rows in all."""

    grow_from: dict[str, int] | None = field(default=None, metadata=LATER)
    """Sizes of a smaller model that is trained first and then grown (`mutransfer.grow`) into this one, which is trained on from there,
    on the batches that follow; "/2" is half of `model`'s. None: the run starts from fresh weights."""
    grow_steps: int | None = field(default=None, metadata=LATER)
    """Updates of the small model; `steps` are those of the big one after it, with a schedule of its own."""
    grow_lr: float | None = field(default=None, metadata=LATER)
    """The small model's `lr`; None: the same. Runs that share all that is the small model's train it once."""
    grow_warmup: int | None = field(default=None, metadata=LATER)
    """The small model's `warmup`; None: the same."""
    grow_schedule: Schedule | None = field(default=None, metadata=LATER)
    """The small model's `schedule`; None: the same."""
    grow_noise: float = field(default=0.0, metadata=LATER)
    """Size of the noise that parts the copies; without it they stay equal for ever."""
    grow_noise_kind: str = field(default="gaussian", metadata=LATER)
    """The other words of that noise, such as relative, spectral or gaussian:preserving."""
    grow_state: str = field(default="copy", metadata=LATER)
    """What becomes of the optimizer's state: copy, by its rule, or fresh."""
    grow_depth: str = field(default="identity", metadata=LATER)
    """What new blocks are where depth grows: identity, interleave or append."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelConfig):
            raise InputError(f"model={self.model!r}: give a GPTConfig, an MLPConfig or a ResNetConfig")
        if not isinstance(self.base, Mapping):
            raise InputError(f"base={self.base!r}: give the base sizes by name, such as base={{'width': 64}}")
        # 1 and 1.0, a list and a tuple are one run: they must give one hash
        for name in _FLOATS:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, float(value))
        object.__setattr__(self, "base", {key: self.base[key] for key in sorted(self.base, key=str)})
        if self.grow_from is not None:
            if not isinstance(self.grow_from, Mapping):
                raise InputError(
                    f"grow_from={self.grow_from!r}: give the small sizes by name, as grow_from={{'width': 32}}"
                )
            object.__setattr__(self, "grow_from", warm.resolved(self.grow_from, self.model))
        if isinstance(self.betas, list | tuple):
            betas = tuple(float(b) if isinstance(b, int | float) else b for b in self.betas)
            object.__setattr__(self, "betas", betas)
        self._check_names()
        self._check_numbers()
        self._check_sizes()
        self._check_duration()
        warm.check(self)

    def _check_names(self) -> None:
        recipe_named(self.recipe)
        facts_for(self.optimizer)
        check_run(self.optimizer, self.schedule)
        _choice("mode", self.mode, MODES)
        _choice("placement", self.placement, PLACEMENTS)
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("clip_norm", self.clip_norm, ("plan", "torch"))
        _choice("autocast", self.autocast, ("none", "bf16"))
        _check_device_name(self.device)
        for name in ("data", "tokenizer"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (name == "tokenizer" and value is None):
                raise InputError(f"{name}={value!r}: give the name of a {'data set' if name == 'data' else name}")

    def _check_numbers(self) -> None:
        _number("lr", self.lr, low=0, open_low=True)
        _number("weight_decay", self.weight_decay, low=0)
        _number("momentum", self.momentum, low=0, high=1, open_high=True)
        _number("eps", self.eps, low=0)
        _number("final_lr_ratio", self.final_lr_ratio, low=0, high=1)
        _number("wsd_decay_fraction", self.wsd_decay_fraction, low=0, high=1)
        if self.grow_lr is not None:
            _number("grow_lr", self.grow_lr, low=0, open_low=True)
        _number("grow_noise", self.grow_noise, low=0)
        if self.clip is not None:
            _number("clip", self.clip, low=0, open_low=True, hint=" (or None for no clipping)")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise InputError(f"betas={self.betas!r}: give two numbers in [0, 1), such as betas=(0.9, 0.95)")
        for beta in self.betas:
            _number("betas", beta, low=0, high=1, open_high=True)
        for name in ("batch", "accumulation", "steps", "log_every"):
            _integer(name, getattr(self, name), low=1)
        for name in ("warmup", "seed", "val_every", "val_batches", "checkpoint_every"):
            _integer(name, getattr(self, name), low=0)
        if self.seed >= 2**63:
            raise InputError(f"seed={self.seed}: give a whole number below 2**63")
        if self.warmup > self.steps:
            raise InputError(f"warmup={self.warmup} is longer than the run, steps={self.steps}: give warmup <= steps")
        if self.batch % self.accumulation:
            raise InputError(
                f"batch={self.batch} does not divide into accumulation={self.accumulation} equal micro-batches: "
                f"give a batch that is a multiple of {self.accumulation}"
            )

    def _check_sizes(self) -> None:
        if self.recipe != "sp" and not self.base:
            raise InputError(
                f"recipe={self.recipe!r} needs the base sizes it transfers from: give base={{'width': 64}}"
            )
        known = {f.name for f in fields(self.model)}
        for name, size in self.base.items():
            if name not in known:
                raise InputError(
                    f"base={self.base!r}: {_suggest(name, known, f'a field of {type(self.model).__name__}')}"
                )
            _integer(f"base[{name!r}]", size, low=1)
            if type(getattr(self.model, name)) is not int:
                raise InputError(
                    f"base={self.base!r}: {name}={getattr(self.model, name)!r} of the model is not a size; "
                    "name sizes that grow, such as width and depth"
                )
        self.build_base_config()  # a base that cannot be built is an error now, not at the start of the run

    def _check_duration(self) -> None:
        for name in ("base_batch", "base_steps"):
            value = getattr(self, name)
            if value is not None:
                _integer(name, value, low=1)
                if self.duration is None:
                    raise InputError(f"{name}={value} needs a rule: give duration='completed-p', or leave out {name}")
        if self.duration is not None and "context" in self.base:
            raise InputError(
                f"base={self.base!r} with duration={self.duration!r}: batches are counted in rows, so give one context"
            )
        facts = {self.optimizer: facts_for(self.optimizer)}
        if facts[self.optimizer].matrix_only:
            facts["adamw"] = facts_for("adamw")
        longer = self.longer
        made = Duration.of(self.duration, longer.get("batch"), None, longer.get("steps"), facts)
        if made is not None:  # a beta below 0 is an error now, not at the start of the run
            for name in facts:
                made.remembered(name, {"betas": self.betas, "momentum": self.momentum})

    @property
    def longer(self) -> dict[str, Any]:
        """The options of `mutransfer.plan` that say how batch and length differ from the base's; none without `duration`."""
        if self.duration is None:
            return {}
        batch = (self.base_batch or self.batch, self.batch)
        steps = {} if self.base_steps is None else {"steps": (self.base_steps, self.steps)}
        return {"duration": self.duration, "batch": batch, **steps}

    @property
    def model_kind(self) -> str:
        """ "gpt", "mlp" or "resnet"."""
        return next(kind for kind, (config, _) in _KINDS.items() if type(self.model) is config)

    @property
    def target(self) -> dict[str, int]:
        """The sizes of the trained model under the names that `base` uses."""
        return {name: getattr(self.model, name) for name in self.base}

    @property
    def small(self) -> "RunConfig | None":
        """The run of the small model that this one grows from; None where it starts from fresh weights."""
        return None if self.grow_from is None else warm.small_config(self)

    def build_base_config(self) -> ModelConfig:
        """The model config at the base sizes."""
        return replace(self.model, **self.base)

    def make_model(self, **sizes: int) -> nn.Module:
        """A freshly drawn model with these sizes in place of `model`'s own: the factory that the plan is made from."""
        return _KINDS[self.model_kind][1](replace(self.model, **sizes))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the model's fields are under "model" together with its "kind"."""
        out = {
            f.name: _plain(getattr(self, f.name))
            for f in fields(self)
            if not (f.metadata.get("later") and getattr(self, f.name) == f.default)
            or (self.grow_from is not None and f.name.startswith("grow_"))  # a noise of 0 is a value to compare
        }
        model = {
            f.name: _plain(getattr(self.model, f.name), f.default)
            for f in fields(self.model)
            if not (f.metadata.get("later") and getattr(self.model, f.name) == f.default)
        }
        out["model"] = {"kind": self.model_kind, **model}
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `to_dict`: ``from_dict(to_dict(c)) == c``. Unknown fields raise `InputError`."""
        values = _fields_by_name("a run's config", data)
        model = _fields_by_name("model", values.pop("model", {}))
        kind = model.pop("kind", "gpt")
        _choice("model.kind", kind, tuple(_KINDS))
        config = _KINDS[kind][0]
        for owner, given, prefix in ((cls, values, ""), (config, model, "model.")):
            known = {f.name for f in fields(owner)}
            for name in given:
                if name not in known:
                    raise InputError(_suggest(name, known, f"a field of {owner.__name__}", prefix))
        return cls(
            model=config(**{k: _frozen(v) for k, v in model.items()}), **{k: _frozen(v) for k, v in values.items()}
        )

    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON: the same for equal configs, on every machine and in every session."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()

    def __hash__(self) -> int:
        return int(self.hash()[:15], 16)


_FLOATS = (
    "lr", "weight_decay", "momentum", "eps", "final_lr_ratio", "wsd_decay_fraction", "clip", "grow_lr", "grow_noise",
)  # fmt: skip


def canonical_json(data: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any, default: Any = None) -> Any:
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _fields_by_name(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is of type {type(value).__name__}: give a JSON object with the fields by name")
    return dict(value)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _suggest(name: object, known: Any, what: str, prefix: str = "") -> str:
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    return f"{prefix}{name} is not {what}: {hint}"


def _choice(field_name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{field_name}={value!r} is unknown: {hint}choose from {', '.join(known)}")


def _number(
    name: str,
    value: object,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    hint: str = "",
) -> None:
    ok = isinstance(value, float) and math.isfinite(value) and low <= value <= high
    if not ok or (open_low and value == low) or (open_high and value == high):
        if high == math.inf:
            wanted = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
        else:
            wanted = f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise InputError(f"{name}={value!r}: give {wanted}{hint}")


def _integer(name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name}={value!r}: give a whole number of at least {low}")


def _check_device_name(device: object) -> None:
    base, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if base not in ("auto", "cpu", "cuda", "mps") or (":" in str(device) and not (base == "cuda" and index.isdigit())):
        raise InputError(f"device={device!r} is unknown: choose from auto, cpu, cuda, cuda:0, mps")
