"""Everything that only a GPU can tell, on one that is there for a few minutes.

    python benchmarks/gpu.py --out gpu.jsonl                          # all stages
    python benchmarks/gpu.py --stages 0,1,2a --out gpu.jsonl --deadline-s 330
    python benchmarks/gpu.py --device cpu --tiny --out /tmp/try.jsonl # a rehearsal, the same rows

Stages: 0 the machine and its ceilings · 1 is it right · 2a, 2b what a step costs, where it goes,
what fits, what measuring costs · 3 a real base on real books. Each stage has its cells, the most
valuable first; a cell is skipped where its rows are there already (in --out or --done), or where
the time left does not suffice, is ended when its time box is over, and leaves a row with the error
where it fails. Rows are JSON lines, flushed one by one. Nothing is downloaded.

README.md beside this file says how to bring it to a machine without a network.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

STAGES = ("0", "1", "2a", "2b", "3")
HERE = Path(__file__).resolve().parent


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", default=",".join(STAGES), help="of 0,1,2a,2b,3, in this order")
    add("--out", type=Path, default=HERE / "results" / "gpu.jsonl", help="rows are added to it")
    add("--done", type=Path, nargs="*", default=[], help="files whose rows are not made again")
    add("--deadline-s", type=float, default=3600.0, help="nothing begins that ends later")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="small shapes, the same keys: a rehearsal")
    add("--only", default="", help="rows with a key that contains one of these (a,b,c)")
    add("--retry", action="store_true", help="rows with an error are made again")
    add("--no-suite", action="store_true", help="stage 1 without the project's own tests")
    add("--model", type=Path, help="stage 3: a folder with the base; else the embedded one")
    add("--tokens", type=Path, help="stage 3: a folder with train.u16 and test.u16 of its tokens")
    add("--merge", type=Path, nargs="+", help="add the rows of these files to --out, make its page")
    add("--list", action="store_true", help="print the keys of all rows and end")
    args = parser.parse_args(argv)
    args.stages, args.only = args.stages.split(","), args.only.split(",")
    unknown = [stage for stage in args.stages if stage not in STAGES]
    if unknown:
        parser.error(f"--stages: no stage {unknown[0]}; choose from {', '.join(STAGES)}")
    return args


def plan(place: Any, args: argparse.Namespace, rows: Any) -> list[Any]:
    """The cells of all stages, the most valuable first."""
    from gpu_parts import checks, evaluation, machine, real, runs, steps

    before, after = ([], []) if args.no_suite else ([cell] for cell in runs.suites(place))
    timed = steps.cells(place, rows)
    return [
        *machine.cells(place),
        *checks.cells(place),
        *before,
        *timed[:2],  # steps at 8K of both small models: most of what is asked
        *runs.cells(place),
        *timed[2:],
        *evaluation.cells(place),
        *real.cells(place, args.model, args.tokens),
        *after,
    ]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; 0 if no row of this call is an error."""
    started = time.monotonic()
    args = parse(argv)
    sys.path[:0] = [str(HERE), str(HERE.parent / "src")]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from gpu_parts.place import Place, common
    from gpu_parts.report import merge, summary
    from gpu_parts.rows import Rows, run

    if args.merge:
        print(f"{merge(args.merge, args.out)} rows added to {args.out}")
        return 0
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if args.device == "cuda" and not (args.list or torch.cuda.is_available()):
        print("torch sees no GPU here; rehearse with --device cpu --tiny", file=sys.stderr)
        return 2
    device = (
        torch.device("cuda", 0) if args.device == "cuda" and not args.list else torch.device("cpu")
    )
    place = Place(device, args.tiny)
    if args.tiny:
        torch.set_num_threads(1)  # more only wait for each other
    rows = Rows(args.out, args.done, common(device), args.retry)
    ends = started + args.deadline_s
    cells = [cell for cell in plan(place, args, rows) if cell.stage in args.stages]
    for cell in cells:
        cell.keys = [k for k in cell.keys if any(part in f"{cell.stage}/{k}" for part in args.only)]
        cell.seconds *= 10 if args.tiny else 1  # a rehearsal takes what its processor takes
    if args.list:
        print("\n".join(key for cell in cells for key in cell.rows()))
        return 0
    made = run(cells, rows, ends, place.clean)
    print(summary(made))
    return int(any(not row["ok"] for row in made))


if __name__ == "__main__":
    sys.exit(main())
