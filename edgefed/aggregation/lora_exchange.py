"""LoRA as a federation exchanges it: safetensors factors in, rank layers out, a PEFT adapter at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edgefed.aggregation.changes import check_summable, inner_products, shortened
from edgefed.aggregation.defence import Verdict, check_defence, defend
from edgefed.aggregation.exchange import Chosen, Delivered, Intervention, MergedState
from edgefed.aggregation.method import Contribution, GlobalState, load_state, save_state
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.options import ClientPrivacy
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError, ConfigError
from edgefed.files import hash_file, replace_file, sync_directory, temporary_beside
from edgefed.lora.adapters import adapter_rank
from edgefed.lora.files import AdapterFile, open_adapter, split_layers
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import sufficient_bytes
from edgefed.lora.peft_files import write_peft
from edgefed.models.checkpoint import linear_shapes
from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.rank_layers import boundaries
from edgefed.protocol.tasks import LoraMethod

__all__ = ["LoraExchange", "state_adapter"]

_STATE = "state.safetensors"
_MANIFEST = "manifest.json"


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` holds: the parts, and the file name of each."""

    manifest: Manifest
    names: list[str]
    norm: float


class LoraExchange:
    """The exchange of a LoRA federation. See `edgefed.aggregation.exchange.Exchange` for what each method promises."""

    def __init__(
        self,
        method: LoraMethod,
        optimizer: ServerOptimizer,
        *,
        model_path: Path,
        model_name: str,
        seed: int,
        memory_limit_bytes: int | None = None,
        privacy: ClientPrivacy | None = None,
        robustness: Robustness = UNDEFENDED,
    ) -> None:
        self._method = method
        self._privacy = privacy if privacy is not None and privacy.noise_multiplier else None
        self._optimizer = optimizer
        self._aggregation = METHODS[method.aggregation]
        self._shapes = linear_shapes(model_path, method.target_modules)
        self._model_name = model_name
        self._seed = seed
        self._memory_limit_bytes = memory_limit_bytes
        self._robustness = robustness
        check_defence(self._aggregation, robustness)
        smallest = min(min(shape) for shape in self._shapes.values())
        if max(method.ranks) > smallest:
            raise ConfigError(
                f"method.ranks: rank {max(method.ranks)} is over {smallest}, the smaller side of the smallest matrix"
            )
        if self._privacy is not None:
            self._check_privacy()
        if memory_limit_bytes is not None:
            self._check_memory_limit(memory_limit_bytes)

    def begin(self, directory: Path) -> MergedState:
        """Makes the state before round 1, or returns it if it is there."""
        if directory.is_dir():
            return self.load(directory)
        state = self._aggregation.init(self._shapes, self._method.global_rank, self._seed)
        return self._write(directory, state, previous=())

    def load(self, directory: Path) -> MergedState:
        """Returns a state made earlier."""
        try:
            description = msgspec.json.decode((directory / _MANIFEST).read_bytes(), type=_Description)
            parts = zip(description.manifest.parts, description.names, strict=True)
            files = {part.sha256: directory / name for part, name in parts}
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise AdapterError(f"the state in {directory} cannot be read: {error}") from error
        return MergedState(description.manifest, files, description.norm)

    def check(self, update: Path, plan: Plan, start: Path) -> None:
        """Judges an update, one module in memory at a time."""
        file = open_adapter(update)
        wrong = sorted(set(file.modules) ^ set(self._shapes))
        if wrong:
            raise AdapterError(f"module {wrong[0]!r} is missing or is not one of the federation's {len(self._shapes)}")
        if plan.rank not in self._method.ranks:
            raise AdapterError(f"rank {plan.rank} is not allowed; the federation trains {sorted(self._method.ranks)}")
        for module, shape in self._shapes.items():
            if file.shapes[module] != shape:
                raise AdapterError(f"module {module!r} has shape {file.shapes[module]}; {shape} is needed")
            if file.ranks[module] != plan.rank:
                raise AdapterError(f"module {module!r} has rank {file.ranks[module]}; {plan.rank} was announced")
            check_summable(file.load(module), f"module {module!r}")  # loading refuses NaN and infinity
        self._check_start(plan, start)
        if self._robustness.over_norm == "reject":
            self._check_norm(update, plan, start)

    def choose(self, delivered: Sequence[Delivered]) -> Chosen:
        """Decides which updates are merged: all of them as they are, where no rule and no bound is set."""
        if self._robustness == UNDEFENDED:
            return Chosen(tuple(delivered))
        verdicts = defend(
            self._aggregation,
            self._robustness,
            self._contributions(delivered),
            self._shapes,
            memory_limit_bytes=self._memory_limit_bytes,
        )
        pairs = list(zip(delivered, verdicts, strict=True))
        return Chosen(
            tuple(replace(one, weight=verdict.weight, share=verdict.share) for one, verdict in pairs if verdict.weight),
            tuple(_intervention(one, verdict) for one, verdict in pairs if verdict.reason),
        )

    def merge(self, before: Path, delivered: Sequence[Delivered], round_: int, after: Path) -> MergedState:
        """Merges a round; a left-over of an interrupted merge of the same round is replaced."""
        state = load_state(before / _STATE)
        rank, optimizer, seed = self._method.global_rank, self._optimizer, self._seed + round_
        if self._privacy is not None:
            apply_private = self._aggregation.apply_private
            assert apply_private is not None, "checked when this was made"
            contributions = self._contributions(delivered)
            state = apply_private(
                state, contributions, rank=rank, optimizer=optimizer, seed=seed, privacy=self._privacy
            )
        else:
            state = self._aggregation.apply(
                state,
                self._shortened(delivered),
                rank=rank,
                optimizer=optimizer,
                seed=seed,
                memory_limit_bytes=self._memory_limit_bytes,
                trim=self._robustness.byzantine if self._robustness.rule == "trimmed_mean" else 0,
            )
        return self._write(after, state, previous=self.load(before).manifest.parts)

    def export(self, state: Path, output: Path, *, rank: int | None = None) -> None:
        """Writes a PEFT adapter directory."""
        write_peft(
            output,
            state_adapter(state),
            base_model=self._model_name,
            rank=rank,
            target_modules=self._method.target_modules,
        )

    def _check_privacy(self) -> None:
        if self._aggregation.apply_private is None:
            able = sorted(name for name, method in METHODS.items() if method.apply_private is not None)
            raise ConfigError(
                f"client_privacy needs a method that adds up changes, and aggregation {self._method.aggregation} does "
                f"not: take {' or '.join(able)}, or leave client_privacy out"
            )
        if self._memory_limit_bytes is not None:
            raise ConfigError(
                "client_privacy and aggregator.merge_memory_bytes do not go together: noise must be added before "
                "anything is cut, to whole matrices; leave one of them out"
            )
        if self._robustness != UNDEFENDED:
            fields, unset = Robustness.__struct_fields__, UNDEFENDED
            given = [name for name in fields if getattr(self._robustness, name) != getattr(unset, name)]
            raise ConfigError(
                f"client_privacy and robustness.{', robustness.'.join(given)} do not go together: with client_privacy "
                "all devices count the same and are cut to client_privacy.clip_norm, and leaving one out or weighing "
                "it by what it sent would break that or do nothing; leave one of them out"
            )

    def _contributions(self, delivered: Sequence[Delivered]) -> list[Contribution]:
        return [_contribution(one, self._starting_layers(one.start)) for one in delivered]

    def _shortened(self, delivered: Sequence[Delivered]) -> list[Contribution]:
        return [
            shortened(self._aggregation, contribution, one.share) if one.share < 1 else contribution
            for one, contribution in zip(delivered, self._contributions(delivered), strict=True)
        ]

    def _check_start(self, plan: Plan, start: Path) -> None:
        """A rank held that the round's adapter never had would make the start that is taken off the update wrong."""
        published = self.load(start).manifest.rank
        if plan.held_rank > published:
            raise AdapterError(f"held rank {plan.held_rank} was announced, and the round's adapter had {published}")

    def _check_norm(self, update: Path, plan: Plan, start: Path) -> None:
        limit = self._robustness.max_update_norm
        one = Delivered("", 0, 1.0, plan.rank, plan.held_rank, update, start)
        inner = inner_products(
            self._aggregation, self._contributions([one]), self._shapes, memory_limit_bytes=self._memory_limit_bytes
        )
        norm = float(np.sqrt(max(0.0, inner[0, 0])))
        if limit is not None and norm > limit:
            raise AdapterError(f"its change has norm {norm:.4g}; at most {limit:g} is allowed")

    def _check_memory_limit(self, limit_bytes: int) -> None:
        """Refuses a limit that nothing keeps to, or that a merge could not keep: better now than after a round."""
        for what, bounded in (
            (f"aggregation {self._method.aggregation}", self._aggregation.decomposes),
            (f"server optimizer {self._optimizer.name}", self._optimizer.name in ("averaging", "momentum")),
            ("robustness.rule trimmed_mean", self._robustness.rule != "trimmed_mean"),
        ):
            if not bounded:
                raise ConfigError(f"aggregator.merge_memory_bytes has no effect on {what}: leave it out")
        largest = max(self._method.global_rank, *self._method.ranks)
        clipped = self._robustness.max_update_norm is not None and self._aggregation.start == "truncated"
        rank = 2 * largest if self._optimizer.name == "momentum" or clipped else largest
        needed_bytes = max(sufficient_bytes(shape, rank) for shape in self._shapes.values())
        if limit_bytes < needed_bytes:
            raise ConfigError(
                f"aggregator.merge_memory_bytes is {limit_bytes}, and merging this model's matrices at rank {largest} "
                f"needs {needed_bytes}: raise it, or lower method.ranks and method.server_rank"
            )

    def _starting_layers(self, directory: Path) -> list[AdapterFile]:
        return [open_adapter(path) for path in self.load(directory).files.values()]

    def _cuts(self, total_rank: int, previous: Sequence[Part]) -> tuple[tuple[int, int], ...]:
        """Where the adapter is cut: at the ranks that devices train, or where flora's earlier rounds end."""
        if self._method.aggregation == "flora":
            return boundaries([part.rank_hi for part in previous], total_rank)
        return boundaries(self._method.ranks, total_rank)

    def _write(self, directory: Path, state: GlobalState, previous: Sequence[Part]) -> MergedState:
        temporary = temporary_beside(directory)
        temporary.mkdir(parents=True)
        try:
            self._fill(temporary, state, previous)
            if directory.exists():
                shutil.rmtree(directory)
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # what a full disk has cut short would keep it full
        sync_directory(directory.parent)
        return self.load(directory)

    def _fill(self, temporary: Path, state: GlobalState, previous: Sequence[Part]) -> None:
        cuts = self._cuts(adapter_rank(state.adapter), previous)
        paths = split_layers(state.adapter, cuts, temporary, self._method.broadcast_precision)
        parts = [
            Part(sha256=hash_file(path), size_bytes=path.stat().st_size, rank_lo=lo, rank_hi=hi)
            for (lo, hi), path in zip(cuts, paths, strict=True)
        ]
        norm = float(np.sqrt(sum(matrix.norm() ** 2 for matrix in state.adapter.values())))
        description = _Description(manifest=Manifest(parts=parts), names=[path.name for path in paths], norm=norm)
        save_state(temporary / _STATE, state)
        replace_file(temporary / _MANIFEST, [msgspec.json.encode(description)])


def state_adapter(directory: Path) -> dict[str, LowRank]:
    """Returns the exact global adapter of a state that `LoraExchange` wrote.

    Raises:
        AdapterError: it is damaged or not there.
    """
    return dict(load_state(directory / _STATE).adapter)


def _intervention(one: Delivered, verdict: Verdict) -> Intervention:
    what: Literal["excluded", "clipped"] = "clipped" if verdict.weight else "excluded"
    return Intervention(device=one.device, round=one.round, what=what, reason=verdict.reason)


def _contribution(one: Delivered, layers: Sequence[AdapterFile]) -> Contribution:
    return Contribution(
        device=one.device,
        weight=one.weight,
        rank=one.rank,
        held_rank=one.held_rank,
        update=open_adapter(one.update).load,
        start=_joined(layers),
        round=one.round,
    )


def _joined(layers: Sequence[AdapterFile]) -> Callable[[str], LowRank]:
    def load(module: str, layers: Sequence[AdapterFile]) -> LowRank:
        return LowRank.stack([layer.load(module) for layer in layers])

    return partial(load, layers=layers)
