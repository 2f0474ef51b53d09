"""Make the embedded base model `tiny`: tokenizer, then training on two CPU cores.

    python scripts/pretrain_tiny.py --books <folder of PG-19 parquet> --out build/tiny --minutes 90

The same command resumes exactly where a stopped run was saved. SIGUSR1 begins the cool-down at
once, SIGTERM saves and exits. What the model is and can do: src/hylorada/assets/tiny/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import logging
import math
import signal
import statistics
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from pretrain import measure, state
from pretrain.corpus import VOCAB_SIZE, WINDOW, Windows, prepare
from pretrain.initial import LOOK_BACK, look_back, sinusoids
from pretrain.loss import mean_loss
from pretrain.synthetic import KeyValueText, periodic_row, synthetic_row
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

log = logging.getLogger("pretrain")

CODE, BOOKS = 3, 4  # windows of 1024 tokens in a step
# The copying curriculum: windows in a step, first in short rows until its loss is below a bound,
# then in full ones. With one window a step throughout, 5.7M tokens taught no copying at all.
SYNTHETIC_FIRST, SYNTHETIC, LEARNED = 6, 2, 3.0
# Tokens of a row until this share of the training time: attention is most of a step's cost at 1024.
LENGTHS = ((0.15, 256), (0.55, 512), (math.inf, WINDOW))
COOL_DOWN_PART = 0.25  # of the training time
WARM_UP_STEPS = 100
STALL = 5.0  # a step counts for at most this many times the median step: a stopped process is free


def parse_args() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True, help="folder of PG-19 parquet files")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="training time, measuring included"
    )
    parser.add_argument("--measure", type=Path, help="only measure this export")
    parser.add_argument("--publish", type=Path, help="folder that receives each export")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--rows", type=int, default=2, help="rows of 1024 tokens in a micro-batch")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    return parser.parse_args()


def build_model(seed: int) -> GPT2LMHeadModel:
    """Return the untrained model: the GPT-2 architecture, about 7.1M parameters."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=WINDOW,
        n_embd=256,
        n_layer=6,
        n_head=8,
        activation_function="gelu_pytorch_tanh",  # gelu_new in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight += sinusoids(WINDOW, config.n_embd)
    for head, distance in LOOK_BACK:
        look_back(model, head, distance)
    return model


def build_optimizers(model: GPT2LMHeadModel, name: str, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, AdamW for all else (or AdamW alone)."""
    matrices = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    tables = [p for n, p in model.named_parameters() if ".h." not in n and p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    if name == "adamw":
        groups.append({"params": matrices, "weight_decay": 0.1})
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    if name == "adamw":
        return [adamw]
    muon = torch.optim.Muon(
        matrices, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Ids, labels (negative: not counted) and positions, each of shape (rows, length)."""


class Batches:
    """The rows of each step, a function of (seed, step) alone."""

    def __init__(self, data: Path, tokenizer: Tokenizer, seed: int) -> None:
        self.seed = seed
        self.code = Windows(np.load(data / "code.npy"), seed + 1)
        self.books = Windows(np.load(data / "books.npy"), seed + 2)
        self.text = KeyValueText(tokenizer)

    def text_rows(self, step: int, length: int) -> Rows:
        """Return the real text of a step."""
        rows = [
            windows[index].reshape(-1, length)
            for windows, count in ((self.code, CODE), (self.books, BOOKS))
            for index in range(step * count, (step + 1) * count)
        ]
        ids = np.concatenate(rows)
        return self._place(ids, ids, np.random.default_rng([self.seed, 4, step]))

    def synthetic_rows(self, step: int, length: int, windows: int, copying: float) -> Rows:
        """Return the copying curriculum of a step; `copying` is its share of copying rows."""
        rng = np.random.default_rng([self.seed, 3, step])
        ids, labels = [], []
        for _ in range(windows * WINDOW // length):
            source = self.code if rng.random() < 0.5 else self.books
            start = int(rng.integers(len(source.stream) - WINDOW))
            real = source.stream[start : start + WINDOW].astype(np.int64)
            row, target = synthetic_row(rng, length, VOCAB_SIZE, real, self.text, copying)
            ids.append(row)
            labels.append(target)
        return self._place(np.stack(ids), np.stack(labels), rng)

    def periodic_rows(self, step: int, length: int, windows: int) -> Rows:
        """Return rows of one short random segment each, over and over."""
        rng = np.random.default_rng([self.seed, 5, step])
        rows = [periodic_row(rng, length, VOCAB_SIZE) for _ in range(windows * WINDOW // length)]
        return self._place(np.stack([r for r, _ in rows]), np.stack([t for _, t in rows]), rng)

    @staticmethod
    def _place(ids: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Rows:
        """Start short rows anywhere, so that every position embedding is trained throughout."""
        rows, length = ids.shape
        first = rng.integers(0, WINDOW - length + 1, (rows, 1))
        return (
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            torch.from_numpy(first + np.arange(length)),
        )


class Trainer:
    """The run: model, optimizers, clock, files."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.data = args.out / "data"
        self.tokenizer = Tokenizer.from_file(str(args.out / "tokenizer" / "tokenizer.json"))
        self.batches = Batches(self.data, self.tokenizer, args.seed)
        self.heldout = {n: np.load(self.data / f"heldout_{n}.npy") for n in ("code", "books")}
        self.model = build_model(args.seed)
        self.forward = torch.compile(self.model) if args.compile else self.model
        self.optimizers = build_optimizers(self.model, args.optimizer, args.lr)
        self.step = self.tokens = 0
        self.seconds = 0.0  # counted training time
        self.cool_from: float | None = None  # counted seconds at which the cool-down began
        self.copying: float | None = None  # running mean of the curriculum's loss
        self.copies = False  # that it has fallen below `LEARNED`
        self.cool_now = self.stop_now = False
        self.recent: deque[float] = deque(maxlen=25)
        self.path = args.out / "checkpoint.pt"
        self._resume()
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "cool_now", True))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop_now", True))

    def _resume(self) -> None:
        saved = state.load(self.path)
        if saved is None:
            return
        self.model.load_state_dict(saved["model"])
        for optimizer, content in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        self.step, self.tokens = saved["step"], saved["tokens"]
        self.seconds, self.cool_from = saved["seconds"], saved["cool_from"]
        self.copying, self.copies = saved.get("copying"), saved.get("copies", False)
        self.write(event="resumed")

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "cool_from": self.cool_from,
            "copying": self.copying,
            "copies": self.copies,
        }
        state.save(self.path, content)

    def progress(self) -> float:
        """Return the share of the training time that is used."""
        return self.seconds / (60 * self.args.minutes)

    def lr_factor(self) -> float:
        """Warm-up, stable, linear cool-down over the last quarter of what has been trained."""
        if self.cool_from is None and (self.cool_now or self.progress() >= 1 - COOL_DOWN_PART):
            self.cool_from = max(self.seconds, 1.0)
            self.write(event="cool-down")
        if self.cool_from is None:
            return min(1.0, (self.step + 1) / WARM_UP_STEPS)
        length = self.cool_from * COOL_DOWN_PART / (1 - COOL_DOWN_PART)
        return max(0.0, 1 - (self.seconds - self.cool_from) / length)

    def train_step(self, factor: float) -> float:
        """Take one optimizer step; return the mean loss of the real text."""
        progress = self.progress() if self.cool_from is None else 1.0
        length = next(length for end, length in LENGTHS if progress <= end)
        text = self.batches.text_rows(self.step, length)
        if self.copies:
            synthetic = self.batches.synthetic_rows(self.step, length, SYNTHETIC, 0.4)
        else:  # little text and the plainest repetitions, until a head that copies has formed
            few = len(text[0]) // (CODE + BOOKS)
            text = tuple(torch.cat([part[:few], part[-few:]]) for part in text)
            synthetic = self.batches.periodic_rows(self.step, 256, SYNTHETIC_FIRST)
        counts = [(labels_BL[:, 1:] >= 0).sum().item() for _, labels_BL, _ in (text, synthetic)]
        losses = [self.backward(rows, sum(counts)) for rows in (text, synthetic)]
        total = sum(losses) / sum(counts)
        copying = losses[1] / counts[1]
        self.copying = copying if self.copying is None else 0.95 * self.copying + 0.05 * copying
        if not self.copies and self.copying < LEARNED:
            self.copies = True
            self.write(event="copying learned: fewer synthetic rows, of full length")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not (math.isfinite(total) and torch.isfinite(norm)):
            self.write(event="step skipped: not finite")
        else:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.args.lr * factor
                optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += text[0].numel() + synthetic[0].numel()
        return losses[0] / counts[0]

    def backward(self, rows: Rows, count: int) -> float:
        """Add the gradient of the rows' summed loss over `count` tokens; return that sum."""
        total = 0.0
        size = self.args.rows * WINDOW // rows[0].shape[1]
        for ids, labels, positions in zip(*(part.split(size) for part in rows), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                logits_BLV = self.forward(
                    input_ids=ids, position_ids=positions, use_cache=False
                ).logits
            loss = mean_loss(logits_BLV[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), count)
            loss.backward()
            total += loss.item() * count
        return total

    def count(self, duration: float) -> None:
        """Add a step's duration, capped, to the training time."""
        self.recent.append(duration)
        self.seconds += min(duration, STALL * statistics.median(self.recent))

    def write(self, **fields: object) -> None:
        """Append a line to the log."""
        line = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            **fields,
        }
        with (self.args.out / "training_log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)

    def publish(self, **fields: object) -> None:
        """Measure, save and export; `fields` go to the line of the log."""
        started = time.perf_counter()
        self.model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            numbers = measure.quick(self.model, self.heldout, self.tokenizer)
        self.model.train()
        self.seconds += min(time.perf_counter() - started, 60.0)
        self.write(**{name: round(value, 4) for name, value in numbers.items()}, **fields)
        self.save()
        folder = self.args.out / f"export-{self.step:06d}"
        state.export(self.model, self.args.out / "tokenizer", folder)
        if self.args.publish:
            state.refresh(folder, self.args.out / "training_log.jsonl", self.args.publish)

    def run(self) -> None:
        """Train until the cool-down ends or a signal says stop."""
        last = self.seconds
        first_export = self.step == 0
        losses: list[float] = []
        while (factor := self.lr_factor()) > 0.0 and not self.stop_now:
            started = time.perf_counter()
            losses.append(self.train_step(factor))
            self.count(time.perf_counter() - started)
            if self.step % 10 == 0:
                mean = sum(losses) / len(losses)
                self.write(
                    loss=round(mean, 4),
                    synthetic_loss=round(self.copying or 0.0, 4),
                    lr=round(self.args.lr * factor, 6),
                )
                losses.clear()
            due = 2.0 if first_export else self.args.save_minutes
            if self.seconds - last >= 60 * due:
                self.publish()
                last, first_export = self.seconds, False
        if self.stop_now:
            self.save()
            sys.exit(128 + signal.SIGTERM)
        self.publish(event="done")
        measure_export(self.args.out, self.args.out / f"export-{self.step:06d}")


def measure_export(out: Path, folder: Path) -> None:
    """Write the numbers of the model card, of the fp16 weights of an export read as fp32."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    heldout = {name: np.load(out / "data" / f"heldout_{name}.npy") for name in ("code", "books")}
    numbers = measure.full(model, heldout, tokenizer)
    (out / "measured.json").write_text(json.dumps(numbers, indent=1) + "\n")


def keep_memory() -> None:
    """Make glibc keep freed blocks: 12 % faster than mapping the logits afresh in every step."""
    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def main() -> None:
    """Prepare the data, train, export."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{args.out} is in use by a running pretrain_tiny.py: stop it first")
        keep_memory()
        prepare(args.books, args.out, args.seed)
        if args.measure:
            measure_export(args.out, args.measure)
        else:
            Trainer(args).run()


if __name__ == "__main__":
    main()
