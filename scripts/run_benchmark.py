"""The paper's long-context command, as calls of `hylorada-train` and `hylorada-report`.

    python scripts/run_benchmark.py --dataset longbench --max_length 4096 --methods lora hylorada \\
        --s2_attn --train_embeddings --train_norms \\
        --rope_scaling_type linear --rope_scaling_factor 4.0 --epochs 3

Names, defaults and flags are the paper's (GPT-2, batch 4, accumulation 16, lr 2e-4); a component
whose flag is missing is off, which is said of HyLoRADA alone. Words with an equals sign go to every
run as they are (`seed=1`). What is run is printed first; `--print` does no more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from hylorada import cli

GROUP = "run_benchmark"
NO_ROPE = ("gpt2", "gpt2-medium", "tiny")
# LongBench is a test set: the methods train on the text that the paper names (3, Setup).
DATASETS = {"longbench": ["dataset=wikitext103", "eval=longbench"]}


def commands(argv: Sequence[str] | None = None) -> tuple[list[list[str]], bool]:
    """The words of `hylorada-train`, a call for each method; whether they are only to be printed.

    Args:
        argv: words of the paper's command; default: those of this process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", default="wikitext103", help="of conf/dataset, or longbench")
    add("--max_length", type=int, default=2048, help="tokens")
    add("--methods", nargs="+", default=["baseline", "lora", "hylorada"], help="of conf/method")
    add("--model", default="gpt2", help="of conf/model, or a hub id")
    add("--epochs", type=float, default=3.0)
    add("--batch_size", type=int, default=4)
    add("--grad_accum", type=int, default=16)
    add("--lr", type=float, default=2e-4)
    add("--s2_attn", action="store_true", help="shifted sparse attention in HyLoRADA")
    add("--train_embeddings", action="store_true", help="position embeddings in HyLoRADA")
    add("--train_norms", action="store_true", help="norms in HyLoRADA")
    add("--rope_scaling_type", choices=("linear", "yarn", "dynamic"))
    add("--rope_scaling_factor", type=float, help="only for a model that has RoPE")
    add("--print", action="store_true", help="only print the commands")
    args, more = parser.parse_known_args(argv)
    unknown = [word for word in more if word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"cannot read {unknown[0]}; settings are written key=value")
    common = [
        f"length={args.max_length}", f"model={args.model}", "train=paper", f"group={GROUP}",
        *DATASETS.get(args.dataset, [f"dataset={args.dataset}"]),
        f"train.epochs={args.epochs:g}", f"train.micro_batch_size={args.batch_size}",
        f"train.gradient_accumulation_steps={args.grad_accum}", f"train.lr={args.lr:g}",
    ]  # fmt: skip
    if args.model not in NO_ROPE:
        common += _rope(args)
    elif args.rope_scaling_type or args.rope_scaling_factor:
        print(f"{args.model} has no RoPE: --rope_scaling_* would scale nothing and is left out")
    switches = [
        f"method.s2_attn.enabled={str(args.s2_attn).lower()}",
        f"method.train_embeddings={str(args.train_embeddings).lower()}",
        f"method.train_norms={str(args.train_norms).lower()}",
    ]
    runs = [
        [f"method={method}", *common, *(switches if method == "hylorada" else []), *more]
        for method in args.methods
    ]
    return runs, args.print


def _rope(args: argparse.Namespace) -> list[str]:
    words = []
    if args.rope_scaling_type:
        words.append(f"method.position_range.rope_type={args.rope_scaling_type}")
    if args.rope_scaling_factor:
        words.append(f"method.position_range.rope_factor={args.rope_scaling_factor:g}")
    return words


def main() -> int:
    """Every method runs, whatever happens to the others; the first failure's exit code."""
    runs, only_print = commands()
    codes = []
    for words in runs:
        print(f"hylorada-train {shlex.join(words)}", flush=True)
        if not only_print:
            codes.append(cli.train(words))
    if not only_print:
        codes.append(cli.report([f"outputs/{GROUP}"]))
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
