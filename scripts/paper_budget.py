"""`--num_train` and `--epochs` of the paper's scripts, in the words of `hylorada-train`."""

from __future__ import annotations

import argparse
import shlex

from hylorada import cli


def run(overlay: str, length: int, description: str | None) -> int:
    """Run an overlay with the budget that was typed; the exit code.

    Args:
        overlay: its name.
        length: tokens in a training sequence.
        description: what --help says.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_train", type=int, help="training sequences; default: all")
    parser.add_argument("--epochs", type=float, help="passes over them; default: 3")
    parser.add_argument("--print", action="store_true", help="only print the command")
    args, more = parser.parse_known_args()
    unknown = [word for word in more if word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"cannot read {unknown[0]}; settings are written key=value")
    words = ["-m", f"experiment={overlay}"]
    if args.num_train is not None:
        # Sequences are drawn from the whole text, so passes over a part of it are a longer budget.
        passes = 3.0 if args.epochs is None else args.epochs
        tokens = round(args.num_train * passes * (length - 1))  # the first of a block is not scored
        words += ["train.epochs=0", f"train.max_tokens={tokens}"]
    elif args.epochs is not None:
        words.append(f"train.epochs={args.epochs:g}")
    words += more
    print(f"hylorada-train {shlex.join(words)}", flush=True)
    return 0 if args.print else cli.train(words)
