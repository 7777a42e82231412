"""LoRA in a loaded model, by peft: factors that are trained, and a frozen branch of what the federation already knows.

Two adapters can be active at once, and their changes add up:

- ``train``: this device's factors, of the rank that it trains;
- ``held``: a prefix of the global adapter, of any other rank, without gradients or optimizer state.

peft keeps B and A apart from the scale s; everything that travels has s folded in (left = s·B, right = A).
`AdaptedModel` unfolds with its own s on the way in and folds on the way out, so factors of a device with another α mean
the same here.
Both are kept in float32 whatever the base is: a step of training is smaller than bf16 can tell from none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from edgefed.errors import AdapterError, ModelError
from edgefed.lora.low_rank import LowRank
from edgefed.models.flops import Adaptation, ExampleFlops
from edgefed.models.layout import ModelLayout
from edgefed.training.base_model import LoadedModel
from edgefed.training.options import LoraOptions

__all__ = ["AdaptedModel", "AdapterName", "install", "peft_quietly"]

AdapterName = Literal["train", "held"]
_IN_PEFT: Mapping[AdapterName, str] = {"train": "edgefed_train", "held": "edgefed_held"}
"""peft keeps adapters in a ModuleDict, which takes no key that torch.nn.Module uses itself, as it does "train"."""


@contextmanager
def peft_quietly() -> Iterator[Any]:
    """Lend peft, without its warnings about what transformers will rename one day.

    Imported here and not above, so that `load_base` has quieted bitsandbytes before peft imports that.
    """
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield peft


def install(
    base: LoadedModel, modules: Sequence[str], options: LoraOptions, *, seed: int, held_rank: int = 0
) -> AdaptedModel:
    """Put LoRA into a base model: fresh trained factors, and room for a held branch.

    Args:
        base: the model; its weights stay as they are.
        modules: paths of the linear layers to change, as `edgefed.models.checkpoint.linear_shapes` names them.
        options: rank, scale and dropout of the trained factors.
        seed: of the fresh factors (A uniform as peft draws it, B zero).
        held_rank: rank of the held branch, which is zero until `AdaptedModel.set_factors`; 0 for none.

    Raises:
        ModelError: a path is no linear layer of the model.
    """
    adapted = AdaptedModel(base, modules)
    adapted.reinstall(options, seed=seed, held_rank=held_rank)
    return adapted


class AdaptedModel:
    """A base model with LoRA on some of its layers; stays in memory from round to round.

    Attributes:
        model: the peft model, to call.
        tokenizer: the base's.
        device: the base's.
        options: of the trained factors.
    """

    def __init__(self, base: LoadedModel, modules: Sequence[str]) -> None:
        self.base = base
        self.tokenizer = base.tokenizer
        self.device = base.device
        self.modules = tuple(sorted(modules))
        self.model: Any = None
        self.options = LoraOptions(rank=1)
        self._layers: dict[str, Any] = {}  # peft's LoraLayer by module
        self._scales: dict[AdapterName, float] = {}
        known = {name for name, _ in base.model.named_modules()}
        unknown = [name for name in self.modules if name not in known]
        if unknown or not self.modules:
            raise ModelError(f"the model has no layer {', '.join(unknown[:3]) or '(none was named)'}")

    def reinstall(self, options: LoraOptions, *, seed: int, held_rank: int = 0) -> None:
        """Begin anew with other ranks, on the same base in memory. Arguments as of `install`."""
        for name in list(self._scales):
            self.model.delete_adapter(_IN_PEFT[name])
            del self._scales[name]
        self.options = options
        with torch.random.fork_rng(devices=[]):  # peft draws factors of its own, which are overwritten
            self._add("train", options)
            if held_rank:
                self._add("held", LoraOptions(rank=held_rank, alpha=float(held_rank)))
        self._draw_factors(seed)
        self.model.set_adapter(_IN_PEFT["train"])  # the wrapper knows of one active adapter, its layers of both
        self.model.base_model.set_adapter([_IN_PEFT[name] for name in self._scales])
        for adapter in self._scales:
            for module in self.modules:
                for weight in self._weights(adapter, module):
                    weight.requires_grad_(adapter == "train")

    def _add(self, name: AdapterName, options: LoraOptions) -> None:
        with peft_quietly() as peft:
            config = peft.LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.dropout,
                use_rslora=options.scaling == "alpha/sqrt(r)",
                target_modules=list(self.modules),
                bias="none",
                task_type="SEQ_2_SEQ_LM",
            )
            if self.model is None:
                self.model = peft.get_peft_model(self.base.model, config, adapter_name=_IN_PEFT[name])
            else:
                self.model.add_adapter(_IN_PEFT[name], config)
        self._scales[name] = options.scale
        self._layers = {module: self.base.model.get_submodule(module) for module in self.modules}

    def _draw_factors(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in self.modules:
                a, _ = self._weights("train", name)
                bound = a.shape[1] ** -0.5  # kaiming-uniform with a = √5
                a.copy_(torch.empty(a.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
                for adapter in self._scales:
                    self._weights(adapter, name)[1].zero_()

    @property
    def held_rank(self) -> int:
        """Rank of the held branch, 0 where there is none."""
        return int(self._layers[self.modules[0]].r.get(_IN_PEFT["held"], 0))

    def flops(self) -> ExampleFlops:
        """Return what counts the operations of training on examples, with the factors as they are installed now."""
        targets = {name.rpartition(".")[2] for name in self.modules}
        return ExampleFlops(_layout(self.base.model.config), Adaptation(targets, self.options.rank, self.held_rank))

    def parameters(self) -> list[torch.Tensor]:
        """Return what is trained: A and B of every module, in a fixed order."""
        return [weight for name in self.modules for weight in self._weights("train", name)]

    def set_factors(self, adapter: AdapterName, factors: Mapping[str, LowRank]) -> None:
        """Put factors in, unfolding this device's scale.

        Args:
            adapter: "train" or "held".
            factors: for every module, left (out_features, r) and right (r, in_features), r being the installed rank.

        Raises:
            AdapterError: a module is missing or unknown, or a factor has another shape.
        """
        if adapter not in self._scales:
            raise AdapterError(f"no {adapter!r} adapter is installed")
        if set(factors) != set(self.modules):
            odd = sorted(set(factors) ^ set(self.modules))
            raise AdapterError(f"the factors and the model's LoRA layers differ in {odd[0]} and {len(odd) - 1} more")
        scale = self._scales[adapter]
        for name, factor in factors.items():
            a, b = self._weights(adapter, name)
            if factor.left.shape != tuple(b.shape) or factor.right.shape != tuple(a.shape):
                raise AdapterError(
                    f"{name}: factors of shapes {factor.left.shape} and {factor.right.shape} do not fit the "
                    f"{adapter!r} adapter's {tuple(b.shape)} and {tuple(a.shape)}"
                )
            with torch.no_grad():
                b.copy_(torch.from_numpy(factor.left / np.float32(scale)))
                a.copy_(torch.from_numpy(np.ascontiguousarray(factor.right)))

    def get_factors(self, adapter: AdapterName = "train") -> dict[str, LowRank]:
        """Return {module: factors} with the scale folded into left; the arrays are copies."""
        found = {}
        for name in self.modules:
            a, b = (weight.detach().to("cpu", torch.float32).numpy() for weight in self._weights(adapter, name))
            found[name] = LowRank(b * np.float32(self._scales[adapter]), a.copy())
        return found

    def _weights(self, adapter: AdapterName, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self._layers[name]
        return layer.lora_A[_IN_PEFT[adapter]].weight, layer.lora_B[_IN_PEFT[adapter]].weight

    def remove(self) -> LoadedModel:
        """Take LoRA out again and return the base as it was; this object cannot be used afterwards."""
        self.model.unload()
        self._layers, self._scales, self.model = {}, {}, None
        return self.base


def _layout(config: Any) -> ModelLayout:
    """The numbers of a model in memory; whether its embedding is tied makes no difference to operations."""
    return ModelLayout(
        name=str(config.name_or_path),
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        encoder_layers=config.num_layers,
        decoder_layers=config.num_decoder_layers,
        heads=config.num_heads,
        vocabulary=config.vocab_size,
        gated=config.is_gated_act,
        tied=bool(config.tie_word_embeddings),
    )
