"""Stage 3: a real base on real books, LoRA with full attention beside every component.

Both arms have the same rank, seed, order of the data, learning rate and number of seconds. They are
measured on the same blocks twice: after the same number of tokens (that of the slower one) and
after the same time. One seed: a direction, not a claim.
"""

from __future__ import annotations

import math
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_parts import arms
from gpu_parts.place import Place
from gpu_parts.rows import Cell, Found
from hylorada.config import ModelConfig, TrainConfig
from hylorada.evaluation.scoring import evaluation_mode, token_nll
from hylorada.loading.backbone import load_backbone
from hylorada.methods import HyloradaConfig, adapt
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel
from hylorada.training.recomputation import gradient_checkpointing

LENGTHS = {"16k": 40.0, "32k": 45.0, "8k": 25.0}  # seconds of training for each arm
RATE = 5e-4  # chosen beforehand, one for both
EVERY = 10  # steps between adapters that are kept
BLOCKS = 24
CPU = torch.device("cpu")


class Text:
    """Blocks of a file of 16-bit token ids, or of the standard library in place of one."""

    def __init__(self, place: Place, folder: Path | None, tokenizer: Any, split: str) -> None:
        if folder is not None:
            self.ids = np.fromfile(folder / f"{split}.u16", dtype=np.uint16)
            self.label = f"{folder.name} {split}"
        else:
            paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
            some = paths[::2] if split == "train" else paths[1::2]
            text = "".join(path.read_text(errors="replace") for path in some)
            text = text[: 20_000 if place.tiny else 4_000_000]
            self.ids = np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
            self.label = f"standard library, {split}"
        self.length = 0

    def cut(self, length: int) -> Text:
        """Blocks of so many tokens from now on."""
        self.length = length
        return self

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        part = self.ids[i * self.length : (i + 1) * self.length].astype(np.int64)
        ids = torch.from_numpy(part)
        return {"input_ids": ids, "labels": ids.clone()}


def cells(place: Place, model: Path | None, tokens: Path | None) -> list[Cell]:
    """A cell a length: both arms, since their tokens are made equal afterwards."""
    return [
        Cell("3", [f"books/{length}/{arm}" for arm in ("lora", "hyl")], 2 * seconds + 30,
             lambda keys, length=length: books(place, model, tokens, length, keys))
        for length, seconds in LENGTHS.items()
    ]  # fmt: skip


def books(
    place: Place, model: Path | None, tokens: Path | None, length: str, keys: list[str]
) -> Found:
    """Train both, measure both."""
    # The embedded base reaches less far.
    n = 64 if place.tiny else place.tokens(length) // (1 if model else 4)
    seconds = 0.15 if place.tiny else LENGTHS[length]
    settings = ModelConfig() if model is None else ModelConfig("real", str(unpacked(model)))
    trained: dict[str, tuple[Any, dict[int, dict[str, Tensor]], dict[str, Any]]] = {}
    for arm in ("lora", "hyl"):
        trained[arm] = train(place, settings, tokens, arm, n, seconds, ckpt=length == "32k")
        place.clean()
    common = min(max(kept) for _, kept, _ in trained.values())
    for arm, (adapted, kept, values) in trained.items():
        test = Text(place, tokens, values.pop("tokenizer"), "test").cut(n)
        last = max(kept)
        at = {name: scores(place, adapted, kept[step], test)
              for name, step in (("equal_tokens", common), ("equal_time", last))}  # fmt: skip
        key = f"books/{length}/{arm}"
        if key in keys:
            yield key, {
                **values, "steps": last, "equal_at_step": common,
                **{f"ppl_{name}": score["ppl"] for name, score in at.items()},
                **{f"ppl_by_position_{name}": score["by_position"] for name, score in at.items()},
                "eval": test.label, "eval_blocks": at["equal_time"]["blocks"],
            }  # fmt: skip


def unpacked(model: Path) -> Path:
    """A GGUF file as a folder in bfloat16 beside it, unpacked once; a folder as it is."""
    folder = model.with_name(f"{model.stem}-bf16")
    if model.suffix == ".gguf" and not (folder / "config.json").is_file():
        backbone = load_backbone(ModelConfig("real", str(model), dtype="float32"), CPU)
        backbone.model.to(torch.bfloat16).save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
    return folder if model.suffix == ".gguf" else model


def train(
    place: Place, settings: ModelConfig, tokens: Path | None, arm: str, n: int, seconds: float,
    ckpt: bool,
) -> tuple[Any, dict[int, dict[str, Tensor]], dict[str, Any]]:  # fmt: skip
    """The model, its adapters by step, and what training it cost."""
    backbone = load_backbone(settings, place.device, "auto")
    family = "gpt2" if backbone.model.config.model_type == "gpt2" else "smollm2"
    config = HyloradaConfig(max_length=n, fan_in_fan_out=family == "gpt2",
                            train_embeddings=family == "gpt2")  # fmt: skip
    if arm == "hyl":
        config = arms.every_component(place, family, n)
        config.s2_group_size = min(config.s2_group_size, n // 4)
    adapted: Any = adapt(backbone.model, config, n, seed=0)
    adapted.train()
    arms.make_fast(adapted, torch.bfloat16)
    text = Text(place, tokens, backbone.tokenizer, "train").cut(n)
    kept: dict[int, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            model=adapted, loss_model=LossModel(adapted), blocks=text,
            settings=TrainConfig(max_steps=10**5, lr=RATE, lr_scheduler="constant",
                                 warmup_ratio=1e-4, save_every=0),
            seed=0, device=place.device, autocast=torch.bfloat16, run_dir=Path(folder), stop=Stop(),
            reporter=Reporter(),
        )  # fmt: skip
        place.reset_peak()
        step, spent, first = 0, 0.0, 0.0
        with gradient_checkpointing(adapted.get_base_model(), ckpt):
            while spent < seconds:
                started = time.perf_counter()
                training._step(step + 1)
                place.wait()
                took = time.perf_counter() - started
                step += 1
                first = first or took  # not counted: plans and the like
                spent += took if step > 1 else 0.0
                if step % EVERY == 0 or spent >= seconds or place.tiny:
                    kept[step] = {k: p.detach().cpu().clone() for k, p in training.trainables}
    return adapted, kept, {
        "tokens": step * n, "length": n, "training_s": spent, "first_s": first,
        "step_ms": spent / max(step - 1, 1) * 1e3,
        "tokens_per_s": (step - 1) * n / max(spent, 1e-9),
        "loss": training.counters.last_loss, "rate": RATE, "ckpt": ckpt, "text": text.label,
        "base": settings.name, "g": config.s2_group_size if arm == "hyl" else None,
        "tokenizer": backbone.tokenizer, **place.memory(),
    }  # fmt: skip


@torch.no_grad()
def scores(place: Place, adapted: Any, weights: dict[str, Tensor], test: Text) -> dict[str, Any]:
    """Perplexity of the test blocks, whole and by eighths of the window."""
    parameters = dict(adapted.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
    total = torch.zeros(test.length, dtype=torch.float64)
    count = min(len(test), 2 if place.tiny else BLOCKS)
    with evaluation_mode(adapted, torch.bfloat16):
        for i in range(count):
            ids = test[i]["input_ids"][None].to(place.device)
            total += token_nll(adapted, ids)[0].double().cpu()
    mean = total[:-1] / max(count, 1)
    by_position = [math.exp(min(float(part.mean()), 700)) for part in mean.chunk(8)]
    return {
        "blocks": count,
        "ppl": math.exp(min(float(mean.mean()), 700)),
        "by_position": by_position,
    }
