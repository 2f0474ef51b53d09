"""Whole runs of a second or two: a random two-layer model, a byte tokenizer, a few text files.

A run that is killed, or that a limit of its process stops, is a process of its own, forked from a
server that has imported everything once. One that only goes on to its end does so in this process,
which is warm and so takes half of the time.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.mounts import mount_small, own_mounts
from helpers.patience import wait_long_for_trackers
from hylorada import config as configs
from hylorada.errors import HyloradaError

LENGTH = 96  # of the runs; the model was "trained" at 64
STEPS = 10
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["hylorada.runner.run", "hylorada.cli"])


def make_model_folder(folder: Path, letters: str = "") -> Path:
    """Save the model and its tokenizer, whose words are these letters; empty: all bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(letters or pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(vocab),
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder)  # dropout stays at GPT-2's 0.1: the runner must switch it off
    return folder


def make_texts(folder: Path) -> Path:
    words = random.Random(0)
    for split, count in (("train", 6), ("validation", 1), ("test", 2)):
        for i in range(count):
            text = " ".join(words.choice(("alpha", "beta", "gamma", "delta")) for _ in range(90))
            path = folder / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def make_config(root: Path, **changes: Any) -> configs.RunConfig:
    """A run that trains every component; ``changes`` are dotted keys with ``__`` for the dot."""
    config = configs.RunConfig(output_root=str(root / "outputs"), threads=1)
    config.length = configs.LengthConfig("tiny", LENGTH, 2, 1)
    config.model = configs.ModelConfig("tiny-random", str(root / "model"))
    config.dataset = configs.DatasetConfig(
        "texts", "local", path=str(root / "texts"), cache_dir=str(root / "cache")
    )
    config.train.max_steps, config.train.save_every, config.train.lr = STEPS, 4, 1e-2
    config.train.micro_batch_size, config.train.gradient_accumulation_steps = 2, 2
    config.track.kind = "off"
    config.eval.lost_in_middle.enabled = False
    config.eval.short_context.max_blocks = 0  # a number of its own, tested by itself
    method = config.method
    method.position_bias.enabled = method.landmark.enabled = method.s2_attn.enabled = "true"
    method.train_embeddings = method.train_norms = "true"
    method.s2_attn.group_size = 32
    method.lora.lora_dropout = 0.1  # so that the generators matter
    for key, value in changes.items():
        *path, last = key.split("__")
        target: Any = config
        for name in path:
            target = getattr(target, name)
        assert hasattr(target, last), key
        setattr(target, last, value)
    return config


def launch(config: configs.RunConfig, directory: Path, **environment: str) -> Any:
    """Start a run in a process of its own."""
    process = _CONTEXT.Process(target=_child, args=(config, directory, environment))
    process.start()
    return process


def finish(process: Any, seconds: float = 300.0) -> int:
    """Wait for it; the exit code, negative for a signal that killed it."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the run did not end within {seconds} s")
    return process.exitcode


def run_to_end(config: configs.RunConfig, directory: Path, **environment: str) -> int:
    return finish(launch(config, directory, **environment))


def run_here(config: configs.RunConfig, directory: Path) -> int:
    """A run in this process; its exit code."""
    from hylorada.runner.run import run

    said = directory.parent / f"{directory.name}.err"
    said.touch()
    try:
        run(config, directory)
    except HyloradaError as error:
        said.write_text(str(error))
        return error.exit_code
    return 0


def killed(exit_code: int) -> bool:
    return exit_code == -signal.SIGKILL


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def write_unhashed(directory: Path, record: dict[str, Any]) -> None:
    """A result.json as it was written before records knew hashes of themselves and their files."""
    plain = {key: value for key, value in record.items() if key not in ("sha256", "files")}
    (directory / "result.json").write_text(json.dumps(plain))


def outcome(directory: Path) -> dict[str, bytes]:
    """The files that must not depend on interruptions."""
    names = ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    return {name: (directory / name).read_bytes() for name in names}


def _fit_no_more_than(sequences: int) -> None:
    """Memory runs out where more sequences than that are trained on or measured at once."""
    import torch

    from hylorada.evaluation import perplexity
    from hylorada.training.step import OptimizerStep

    backward, token_nll = OptimizerStep._backward, perplexity.token_nll

    def refuse_more(rows: Any) -> None:
        if len(rows) > sequences:
            raise torch.OutOfMemoryError(f"no memory for {len(rows)} sequences")

    def limited_backward(self: Any, loss_model: Any, batch: Any, tokens: int) -> Any:
        refuse_more(batch["input_ids"])
        return backward(self, loss_model, batch, tokens)

    def limited_nll(model: Any, ids: Any, *words: Any, **named: Any) -> Any:
        refuse_more(ids)
        return token_nll(model, ids, *words, **named)

    OptimizerStep._backward, perplexity.token_nll = limited_backward, limited_nll


def _die_in_pass(number: int) -> None:
    """This process is killed where it would begin that micro-batch; others may be inside theirs."""
    from hylorada.training.step import OptimizerStep

    backward, begun = OptimizerStep._backward, iter(range(1, number))

    def mortal_backward(self: Any, loss_model: Any, batch: Any, tokens: int) -> Any:
        if next(begun, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, loss_model, batch, tokens)

    OptimizerStep._backward = mortal_backward


def _child(config: configs.RunConfig, directory: Path, environment: dict[str, str]) -> None:
    gc.freeze()  # what was imported before the fork: a look at it would copy its pages
    os.environ.update(environment)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if limit := environment.get("TEST_LARGEST_FILE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    if size := environment.get("TEST_SMALL_DISK"):
        own_mounts()
        mount_small(directory, int(size))
    import torch

    torch.set_num_threads(1)
    wait_long_for_trackers(pytest.MonkeyPatch())
    if seconds := environment.get("TEST_KEEP_SECONDS"):
        from hylorada.evaluation import resumable

        resumable.KEEP_SECONDS = float(seconds)
    if sequences := environment.get("TEST_FITS"):
        _fit_no_more_than(int(sequences))
    if where := environment.get("TEST_DIES_IN_PASS"):  # rank:micro-batch of this attempt
        rank, number = where.split(":")
        if rank == environment["RANK"]:
            _die_in_pass(int(number))
    if code := run_here(config, directory):
        os._exit(code)
