"""What one training step asks of a device, counted on any machine: launches, waiting, logits.

    python benchmarks/operations.py              # counts, prints the table, writes results/

A small model on a GPU is bound by the host: each operation that is not a view or an allocation
launches at least one kernel, some microseconds of Python and driver whatever the length, and each
number that the host reads back empties the queue. Both follow from the code and not from the
machine, so they are counted here, on a CPU, in bf16 autocast, on models of the real depths and of
tiny widths (a launch costs the same for any width):

* operations: calls that reach torch's dispatcher below autograd, of one micro-batch, forward and
  backward. Left out: what returns a view of its input, what only allocates, and the reading back
  of one number. A lower bound of the kernels: on CUDA an `index_put` or `slice_backward` is
  several. The first pass is not counted, since it fills caches.
* synchronisations: reads of data that the device has computed, and operations whose result has a
  size that depends on data (`nonzero`, indexing by a mask), in a training step of two micro-batches
  once the loop runs. What the host computes on its own copy of the text is none.
* logits: bytes of the largest tensor over the vocabulary, at 8,192 tokens with the real vocabulary
  (computed from its measured share of the tokens).

Clipping and AdamW are not part of the operations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
import warnings
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LENGTH = 128
CHUNK = 16  # tokens of logits at one time: eight chunks
VOCABULARY = 264
REAL_LENGTH, REAL_CHUNK = 8192, 512
MODELS = {
    "gpt2": "GPT-2 (12 layers)",
    "smollm2": "SmolLM2-135M (30 layers)",
}
REAL_VOCABULARY = {"gpt2": 50257, "smollm2": 49152}
TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "smollm2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
ATTENTION = {"gpt2": ["c_attn", "c_proj"], "smollm2": ["q_proj", "k_proj", "v_proj", "o_proj"]}
_S2 = {"s2_attn_enabled": True, "s2_group_size": LENGTH // 4}
_PARTS: dict[str, dict[str, Any]] = {
    "position bias": {"position_bias_enabled": True},
    "landmarks": {"landmark_enabled": True},
    "S2": _S2,
    "norms": {"train_norms": True},
    "embeddings": {"train_embeddings": True},
}
ARMS: dict[str, dict[str, Any] | None] = {
    "peft": None,
    "lora": {},
    "longlora": {**_S2, "s2_shift": "heads", "train_norms": True, "train_embeddings": True},
    **{f"lora + {name}": part for name, part in _PARTS.items()},
    "hylorada": {key: value for part in _PARTS.values() for key, value in part.items()},
}
TEXTS = {
    "peft": "peft LoRA, SDPA attention, the model's own loss",
    "lora": "LoRA with this project's kernels and loss",
    "longlora": "LongLoRA: LoRA on attention, S2 by heads, norms, position embeddings",
    "hylorada": "all components",
}

_NO_KERNEL = (
    "empty", "detach", "alias", "_unsafe_view", "lift_fresh", "promote_types", "_local_scalar",
)  # fmt: skip
_DATA_SIZED = ("nonzero", "masked_select", "unique", "is_nonzero")
_READS = (Tensor.tolist, Tensor.cpu, Tensor.numpy)


# ------------------------------------------------------------------------------------- counting


def launches(operator: Any) -> bool:
    """Whether a call of it puts work on a device: it is no view, no allocation, no read."""
    name = operator.__name__
    if any(word in name for word in _NO_KERNEL):
        return False
    outputs = operator._schema.returns
    return not outputs or any(out.alias_info is None or out.alias_info.is_write for out in outputs)


class Operations(TorchDispatchMode):
    """Counts the operations that launch, by name, and the widest tensor over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not launches(func):
            return out
        self.by_name[func.__name__] += 1
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.dim() > 1 and x.shape[-1] == VOCABULARY:
                self.logits = max(self.logits, x.numel() * x.element_size())
        return out

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.by_name.values())


class _Reads(TorchDispatchMode):
    """Counts what waits for the device. A tensor is the host's if it was made of such alone."""

    def __init__(self) -> None:
        super().__init__()
        self.where: Counter[str] = Counter()
        self.on_host: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def is_on_host(self, x: Tensor) -> bool:
        return self.on_host.get(x.untyped_storage()._cdata) is not None

    def put_on_host(self, x: Tensor) -> None:
        self.on_host[x.untyped_storage()._cdata] = x.untyped_storage()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        of_host = bool(inputs) and all(map(self.is_on_host, inputs))
        name = func.__name__
        by_mask = name.startswith("index.") and any(x.dtype == torch.bool for x in inputs[1:])
        reads = "_local_scalar_dense" in name or by_mask
        if (reads or any(word in name for word in _DATA_SIZED)) and not of_host:
            self.where[name] += 1
        out = func(*args, **(kwargs or {}))
        if of_host:
            for x in tree_leaves(out):
                if isinstance(x, Tensor):
                    self.put_on_host(x)
        return out


class Synchronisations(TorchFunctionMode):
    """Counts reads of what the device has computed, on a machine whose device is the host.

    What `host` names, and what is computed from that alone, is the host's until it is moved; moving
    it makes a copy here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads = _Reads()

    def __enter__(self) -> Synchronisations:
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def host(self, *tensors: Tensor) -> None:
        """These are the host's."""
        for x in tensors:
            self._reads.put_on_host(x)

    @property
    def where(self) -> Counter[str]:
        """How many of each kind."""
        return self._reads.where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and any(
            isinstance(a, torch.device) for a in (*args, *kwargs.values())
        ):
            moved = func(*args, **kwargs)
            return moved.clone() if not self._reads.is_on_host(moved) else _elsewhere(moved)
        if func in _READS and not self._reads.is_on_host(args[0]):
            self.where[func.__name__] += 1
        return func(*args, **kwargs)


def _elsewhere(x: Tensor) -> Tensor:
    """A copy that nothing of the host's goes into."""
    with torch._C.DisableTorchFunction():
        return torch.from_numpy(x.numpy().copy())


# --------------------------------------------------------------------------------------- models


def build(arm: str, name: str) -> tuple[Any, Any]:
    """(the adapted model, loss of token ids) of an arm, on the CPU, for bf16 autocast."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    part = ARMS[arm]
    trained = LENGTH // 2 if part and part.get("train_embeddings") else LENGTH
    shared = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    base: Any
    if name == "gpt2":
        base = GPT2LMHeadModel(GPT2Config(
            n_embd=48, n_layer=12, n_head=12, n_positions=trained, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", **shared,
        ))  # fmt: skip
    else:
        base = LlamaForCausalLM(LlamaConfig(
            hidden_size=72, intermediate_size=96, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=LENGTH, tie_word_embeddings=True,
            attn_implementation="sdpa", **shared,
        ))  # fmt: skip
    options: dict[str, Any] = {"r": 8, "target_modules": TARGETS[name]}
    options["fan_in_fan_out"] = name == "gpt2"
    if part is None:
        model = get_peft_model(base, LoraConfig(lora_alpha=16, use_rslora=True, **options))
        return model.train(), lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss

    from hylorada.kernels.frozen_weights import make_fast
    from hylorada.methods import HyloradaConfig, adapt
    from hylorada.training.loss import LossModel

    if arm == "longlora":
        options["target_modules"] = ATTENTION[name]
    if name != "gpt2":
        part = {key: value for key, value in part.items() if key != "train_embeddings"}
    adapted: Any = adapt(base, HyloradaConfig(**options, **part), max_length=LENGTH)
    loss_model = LossModel(adapted.train(), CHUNK)
    make_fast(adapted, torch.bfloat16)
    loss_model.train()
    return loss_model, lambda ids: loss_model(ids, ids)[0]


def count_operations(arm: str, name: str) -> dict[str, Any]:
    """Operations of one micro-batch and bytes of its logits."""
    model, loss_of = build(arm, name)
    ids = torch.arange(LENGTH)[None] % VOCABULARY
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        forward, backward = Operations(), Operations()
        with forward, torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(ids)
        with backward:
            loss.backward()
    # as many tokens' worth of logits as here, at the real length, chunk and vocabulary
    tokens = forward.logits / VOCABULARY / LENGTH * REAL_LENGTH
    if ARMS[arm] is not None:
        tokens = forward.logits / VOCABULARY / CHUNK * REAL_CHUNK
    return {
        "forward": forward.count,
        "backward": backward.count,
        "operations": forward.count + backward.count,
        "logits_bytes": round(tokens * REAL_VOCABULARY[name]),
        "by_name": dict((forward.by_name + backward.by_name).most_common()),
    }


class _Text:
    """Blocks of one text, as the loop reads them."""

    length = LENGTH

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = (torch.arange(LENGTH) + i) % VOCABULARY
        return {"input_ids": ids, "labels": ids.clone()}


class _HostText(_Text):
    """The same, known to be the host's."""

    def __init__(self, reads: Synchronisations) -> None:
        self.reads = reads

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = super().__getitem__(i)
        self.reads.host(*row.values())
        return row


def count_step(arm: str, name: str) -> dict[str, Any]:
    """Synchronisations of one step of two micro-batches, and operations of its AdamW."""
    from rich.console import Console

    from hylorada.config import TrainConfig
    from hylorada.process.progress import Reporter
    from hylorada.process.signals import Stop
    from hylorada.training.loop import Training

    loss_model, _ = build(arm, name)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            model=loss_model,
            loss_model=loss_model,
            blocks=_Text(),
            settings=TrainConfig(max_steps=4, gradient_accumulation_steps=2, save_every=0),
            seed=0,
            device=torch.device("cpu"),
            autocast=torch.bfloat16,
            run_dir=Path(folder),
            stop=Stop(),
            reporter=Reporter(Console(quiet=True)),
        )
        training._step(1)
        training._step(2)
        reads = Synchronisations()
        optimizer = training.optimizer_step.optimizer
        if not optimizer.defaults.get("fused"):  # then its step counters are the host's
            reads.host(*(state["step"] for state in optimizer.state.values()))
        training.blocks = _HostText(reads)
        with reads:
            training._step(3)
    return {"synchronisations": sum(reads.where.values()), "reads": dict(reads.where)}


def count_all(names: list[str]) -> dict[str, Any]:
    """Every row, by model and arm."""
    rows: dict[str, Any] = {}
    for name in names:
        for arm in ARMS:
            if name == "smollm2" and arm in ("longlora", "lora + embeddings"):
                continue  # nine heads have no half; rotary positions have no table
            rows[f"{name}/{arm}"] = count_operations(arm, name)
            if arm in ("lora", "longlora", "hylorada"):
                rows[f"{name}/{arm}"] |= count_step(arm, name)
    return rows


# -------------------------------------------------------------------------------------- results


def render(results: dict[str, Any]) -> str:
    """The rows as markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    lines = [
        "# What one training step asks of a device",
        "",
        f"Counted, not measured ({versions}).",
        "Batch 1, bf16 autocast, eight chunks of logits, S2 with g = n/4; real depths, tiny "
        "widths. What counts: see `operations.py`.",
        "",
        *(f"* `{arm}`: {text}" for arm, text in TEXTS.items()),
    ]
    for name, title in MODELS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| | forward | backward | operations | of peft's | waits in a step | logits at 8K |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        rows = {k.split("/", 1)[1]: v for k, v in results["rows"].items() if k.startswith(name)}
        for arm, row in rows.items():
            lines.append(
                f"| {arm} | {row['forward']:,} | {row['backward']:,} | {row['operations']:,} "
                f"| {row['operations'] / rows['peft']['operations']:.2f} "
                f"| {row.get('synchronisations', '')} | {row['logits_bytes'] / 1e6:,.0f} MB |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/operations")
    parser.add_argument("--names", action="store_true", help="print the counts of each operation")
    args = parser.parse_args()
    from importlib.metadata import version

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = count_all(args.model or list(MODELS))
    versions = {package: version(package) for package in ("torch", "transformers", "peft")}
    results = {"versions": versions, "rows": rows}
    text = render(results)
    print(text)
    if args.names:
        for key, row in rows.items():
            print(key, row["by_name"], row.get("reads", ""))
    if not args.model:
        with contextlib.suppress(FileExistsError):
            args.out.parent.mkdir(parents=True)
        args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
