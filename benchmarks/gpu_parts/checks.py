"""Stage 1: is it right there. Each row has the error and what was allowed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts import arms
from gpu_parts.place import Place
from gpu_parts.rows import Cell, Found
from hylorada.architecture import anatomy
from hylorada.architecture.logits import output_head
from hylorada.evaluation.candidates import Prefix
from hylorada.evaluation.scoring import evaluation_mode, token_nll
from hylorada.kernels.frozen_layers import own_kernels, use_frozen_kernels
from hylorada.methods.landmarks import running_mean
from hylorada.methods.s2_attention import s2_attention_forward
from hylorada.training.loss import LossModel, chunked_cross_entropy
from hylorada.training.recomputation import gradient_checkpointing
from hylorada.training.weights import trainable

HEADS = {"12-12": (12, 12), "9-3": (9, 3), "4-1": (4, 1)}
DTYPES = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 1e-2)}
S2 = [f"s2/{h}/{s}/{d}" for h in HEADS for s in ("layers", "heads") for d in DTYPES]
FAMILIES = ("gpt2", "smollm2")


def cells(place: Place) -> list[Cell]:
    """The most telling first."""
    leaks = [f"leak/{model}/{kind}" for model in FAMILIES for kind in ("plain", "packed")]
    frozen = [f"frozen/{m}/{d}/{c}" for m in FAMILIES for d in DTYPES for c in ("plain", "ckpt")]
    losses = [
        f"loss/{labels}/{chunk}" for labels in ("all", "some", "none") for chunk in (512, 2048)
    ]
    return [
        Cell("1", S2, 20, lambda keys: s2(place, keys)),
        Cell("1", leaks, 8, lambda keys: leak(place, keys)),
        Cell("1", losses, 4, lambda keys: loss(place, keys)),
        Cell("1", frozen, 8, lambda keys: frozen_layers(place, keys)),
        Cell("1", ["landmarks/8k", "landmarks/128k"], 4, lambda keys: landmarks(place, keys)),
        Cell("1", [f"decode/{kv}" for kv in (3, 8)], 12, lambda keys: decode(place, keys)),
        Cell("1", ["candidates"], 4, lambda keys: candidates(place)),
    ]


def off(got: Tensor, want: Tensor) -> float:
    """Norm of the difference by the norm of what is right; NaN stays NaN."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def judged(error: float, limit: float, **more: Any) -> dict[str, Any]:
    """A row; beyond the limit, or not a number, it is an error."""
    values = {"off": error, "limit": limit, **more}
    return values if error <= limit else {"error": f"off by {error:.3g}", **values}


# ------------------------------------------------------------------------- shifted attention


def s2(place: Place, keys: list[str]) -> Found:
    """Output and gradients against one dense mask in float64, over batches, lengths, documents."""
    group = 16 if place.tiny else 256
    lengths = (33,) if place.tiny else (1000, 2048, 2049)
    for key in keys:
        _, heads, shift, dtype = key.split("/")
        kind, limit = DTYPES[dtype]
        worst, where = 0.0, ""
        ran: set[str] = set()
        for rows in (1, 2):
            for n in lengths:
                for text in ("plain", "packed", "padded"):
                    look = rows == 1 and n == lengths[-1] and not (place.tiny and text != "plain")
                    with recorded(ran) if look else nullcontext():
                        error = one_s2(place, HEADS[heads], shift, kind, rows, n, group, text)
                    if not error <= worst:
                        worst, where = error, f"{rows} x {n}, {text}"
        yield key, judged(worst, limit, where=where, kernels=sorted(ran))


def one_s2(
    place: Place, heads: tuple[int, int], shift: str, dtype: torch.dtype, rows: int, n: int,
    group: int, text: str,
) -> float:  # fmt: skip
    """The worst of output and three gradients, under both layers' patterns."""
    H, K = heads
    D = 16 if place.tiny else 64
    generator = torch.Generator().manual_seed(n)
    shapes = ((rows, H, n, D), (rows, K, n, D), (rows, K, n, D))
    exact = [torch.randn(s, generator=generator).to(dtype).double() for s in shapes]
    exact = [t.to(place.device).requires_grad_() for t in exact]
    given = [t.detach().to(dtype).requires_grad_() for t in exact]
    ids_BN = torch.ones(rows, n, dtype=torch.long, device=place.device)
    if text == "packed":
        ids_BN += (torch.arange(n, device=place.device) > n // 3).long()
    if text == "padded":
        ids_BN[:, n - n // 5 :] = 0
    real_BN1 = (ids_BN != 0)[..., None, None]
    grad = torch.randn(rows, n, H, D, generator=generator).to(place.device) * real_BN1
    errors = []
    for layer in (0, 1):
        config = SimpleNamespace(
            s2_group_size=group, s2_shift=shift, s2_in_evaluation=True, s2_full_heads=0
        )
        module: Any = SimpleNamespace(
            config=config, layer_idx=layer, training=True, is_causal=True,
            num_key_value_groups=H // K,
        )  # fmt: skip
        place.poison()
        out = s2_attention_forward(module, *given, None if text == "plain" else ids_BN)[0]
        found = torch.autograd.grad(out, given, grad.to(dtype))
        want = dense(exact, ids_BN, group, shift, layer)
        right = torch.autograd.grad(want, exact, grad.double())
        errors += [off(out * real_BN1, want * real_BN1)]
        errors += [off(a, b) for a, b in zip(found, right, strict=True)]
    return max(errors, key=lambda e: (e != e, e))  # NaN is the worst


def dense(qkv: list[Tensor], ids_BN: Tensor, group: int, shift: str, layer: int) -> Tensor:
    """The definition: one n x n mask a head."""
    q, k, v = qkv
    H, n = q.shape[1], q.shape[2]
    k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))
    place_N = torch.arange(n, device=q.device)
    allowed = []
    for shifted in (False, True):
        segment_N = (place_N + (group // 2 if shifted else 0)) // group
        allowed.append((segment_N[:, None] == segment_N) & (place_N[:, None] >= place_N))
    shifted_H = [bool(layer % 2) if shift == "layers" else h >= (H + 1) // 2 for h in range(H)]
    mask_HNN = torch.stack([allowed[int(s)] for s in shifted_H])
    same_BNN = ids_BN[:, :, None] == ids_BN[:, None]
    mask = mask_HNN[None] & same_BNN[:, None]
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@contextmanager
def recorded(names: set[str]) -> Iterator[None]:
    """Collect the names of the attention kernels that run inside."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("_")
        plain = name.startswith("scaled_dot_product_attention") and "math" not in name
        if "attention" in name and not plain:
            names.add(name.removeprefix("scaled_dot_product_").removesuffix("_backward"))


# -------------------------------------------------------------------------------- leaks, losses


def leak(place: Place, keys: list[str]) -> Found:
    """Later tokens change; no state before them moves by a bit, in bf16, with kernels in place."""
    n = 49 if place.tiny else 2049
    for key in keys:
        _, model, text = key.split("/")
        group = arms.every_component(place, model, n)
        group.s2_group_size = 16 if place.tiny else 256
        under = arms.base(place, model, place.trained)
        made: Any = arms.adapt(under, group, n, seed=0).to(place.device).train()
        output_head(made)
        arms.make_fast(made, torch.bfloat16)
        with torch.no_grad():
            for _, p in trainable(made):
                p.add_(0.02 * torch.randn(p.shape, device=p.device))
        ids = place.ids(model, n)
        other = ids.clone()
        cut = n // 2 + 1
        more: dict[str, Any] = {}
        still = slice(0, cut)
        if text == "packed":
            start = n // 3
            positions = torch.cat([torch.arange(start), torch.arange(n - start)])
            more["position_ids"] = positions[None].to(place.device)
            cut, still = 0, slice(start, n)
            other[:, :start] = place.ids(model, start, seed=9)
        else:
            other[:, cut:] = place.ids(model, n - cut, seed=9)
        with torch.no_grad(), place.bf16():
            states = [
                anatomy.backbone(made)(input_ids=i, use_cache=False, **more).last_hidden_state
                for i in (ids, other)
            ]
        moved = float((states[0][:, still] - states[1][:, still]).abs().max())
        elsewhere = float((states[0] - states[1]).abs().max())
        yield key, judged(moved, 0.0, moves_elsewhere=elsewhere, tokens=n)


def loss(place: Place, keys: list[str]) -> Found:
    """The chunked loss and three gradients against plain cross-entropy in float64."""
    rows, width, vocabulary = (50, 16, 61) if place.tiny else (5000, 768, 50257)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(s, generator=generator)
        for s in ((rows, width), (vocabulary, width), (vocabulary,))
    ]
    tensors[1] *= width**-0.5
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    for key in keys:
        _, scored, chunk = key.split("/")
        target = labels.clone()
        target[{"all": slice(0), "some": slice(3, rows // 2), "none": slice(None)}[scored]] = -100
        target = target.to(place.device)
        exact = [t.double().to(place.device).requires_grad_() for t in tensors]
        logits = exact[0] @ exact[1].T + exact[2]
        want = F.cross_entropy(logits, target, reduction="sum")
        right = torch.autograd.grad(want, exact)
        del logits
        given = [t.to(place.device).requires_grad_() for t in tensors]
        place.poison()
        size = 16 if place.tiny else int(chunk)
        got = chunked_cross_entropy(*given, target, chunk=size, num_tokens=1)
        found = torch.autograd.grad(got, given)
        errors = [off(got, want), *(off(a, b) for a, b in zip(found, right, strict=True))]
        yield key, judged(max(errors), 1e-4, errors=errors)


def frozen_layers(place: Place, keys: list[str]) -> Found:
    """Loss and every gradient, with the kernels in place and with peft's and torch's own."""
    n = 40 if place.tiny else 2049
    for key in keys:
        _, model, dtype, how = key.split("/")
        config = arms.every_component(place, model, n)
        config.s2_group_size = 16 if place.tiny else 256
        made: Any = arms.adapt(arms.base(place, model, place.trained), config, n, seed=0)
        made.to(place.device).train()
        use_frozen_kernels(made)
        with torch.no_grad():
            for _, p in trainable(made):
                p.add_(0.02 * torch.randn(p.shape, device=p.device))
        loss_model, ids = LossModel(made), place.ids(model, n)
        parameters = [p for _, p in trainable(made)]

        def gradients(
            own: bool,
            ids: Tensor = ids,
            made: Any = made,
            loss_model: Any = loss_model,
            dtype: str = dtype,
            how: str = how,
            parameters: Any = parameters,
        ) -> Any:
            lm = anatomy.causal_lm(made)
            autocast = torch.autocast(place.device.type, torch.bfloat16, enabled=dtype == "bf16")
            with gradient_checkpointing(lm, how == "ckpt"), autocast:
                if own:
                    with own_kernels(made):
                        total = loss_model(ids, ids)[0]
                        return total, torch.autograd.grad(total, parameters)
                total = loss_model(ids, ids)[0]
                return total, torch.autograd.grad(total, parameters)

        (fast, ours), (plain, theirs) = gradients(False), gradients(True)
        flat = [torch.cat([g.flatten() for g in gs]) for gs in (ours, theirs)]
        by_tensor = [off(a, b) for a, b in zip(ours, theirs, strict=True)]
        yield key, judged(
            max(off(fast, plain), off(*flat)), 1e-4 if dtype == "fp32" else 5e-2,
            loss=off(fast, plain), gradients=off(*flat), worst_tensor=max(by_tensor),
        )  # fmt: skip


# ------------------------------------------------------------------------- landmarks, generation


def landmarks(place: Place, keys: list[str]) -> Found:
    """The running mean against a processor's, whole and in pieces with a state; and its time."""
    for key in keys:
        n = place.tokens(key.partition("/")[2])
        x = torch.randn(1, n, 8, generator=torch.Generator().manual_seed(0))
        positions = torch.arange(n)[None]
        packed = torch.cat([torch.arange(n // 3), torch.arange(n - n // 3)])[None]
        there, errors = x.to(place.device), {}
        for name, ids in (("whole", positions), ("packed", packed)):
            want = running_mean(x, ids, None, None)[0]
            errors[name] = off(running_mean(there, ids.to(place.device), None, None)[0], want)
        state, pieces = None, []
        for part in torch.arange(n).split(n // 3 + 1):
            part = part.to(place.device)
            mean, state = running_mean(
                there[:, part], positions.to(place.device)[:, part], None, state
            )
            pieces.append(mean)
        errors["pieces"] = off(torch.cat(pieces, 1), running_mean(x, positions, None, None)[0])
        there.requires_grad_()

        took = place.milliseconds(partial(_both_ways, there, positions.to(place.device)))
        yield key, judged(max(errors.values()), 1e-9, ms=took, **errors)


def _both_ways(x_1TK: Tensor, positions_1T: Tensor) -> Tensor:
    mean = running_mean(x_1TK, positions_1T, None, None)[0]
    return torch.autograd.grad(mean.sum(), x_1TK)[0]


def decode(place: Place, keys: list[str]) -> Found:
    """Greedy decoding by torch's choice of kernel and by the plain one; time of a new length."""
    for key in keys:
        kv = int(key.partition("/")[2])
        changes = {"num_key_value_heads": min(kv, 2), "num_attention_heads": 6} if place.tiny else {
            "num_key_value_heads": kv, "num_attention_heads": 9 if kv == 3 else 8,
            "hidden_size": 576 if kv == 3 else 512,
        }  # fmt: skip
        model = arms.base(place, "smollm2", place.tokens("2k"), **changes).eval()
        ids = place.ids("smollm2", 30 if place.tiny else 500)
        count = 4 if place.tiny else 64
        ask = {
            "max_new_tokens": count,
            "min_new_tokens": count,
            "do_sample": False,
            "pad_token_id": 0,
        }
        generate = partial(model.generate, input_ids=ids, **ask)
        forward = partial(model, use_cache=False)
        same: dict[str, Any] = {}
        with torch.no_grad(), place.bf16():
            with sdpa_kernel(SDPBackend.MATH):
                want = generate()
            for name, cudnn in (("cudnn_on", True), ("cudnn_off", False)):
                before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(cudnn)
                try:
                    took = place.once(generate)[1]
                    agree = (generate() == want)[0].long().cumprod(0).sum() - ids.shape[1]
                    news = [place.once(partial(forward, ids[:, n:]))[1] for n in range(1, 6)]
                finally:
                    torch.backends.cuda.enable_cudnn_sdp(before)
                same[name] = {
                    "tokens_that_agree": int(agree), "ms_a_token": took / count,
                    "new_length_ms": statistics.median(news),
                }  # fmt: skip
        # Rounding alone may part two greedy texts; garbled ones part at once and stay apart.
        yield key, {"of": count, **same}


def candidates(place: Place) -> Found:
    """Log-likelihoods after a shared prompt against each by itself, in float32."""
    n, count = (24, 4) if place.tiny else (1024, 12)
    made: Any = arms.adapted(place, "hyl-f32", "smollm2", 2 * n)
    prompt = place.ids("smollm2", n)[0].tolist()
    asked = [place.ids("smollm2", 3 + i % 5, seed=i)[0].tolist() for i in range(count)]
    with evaluation_mode(made):
        got = torch.tensor(Prefix(made, prompt).log_likelihoods(asked))
        want = []
        for one in asked:
            ids = torch.tensor([prompt + one], device=place.device)
            want.append(-token_nll(made, ids)[0, n - 1 : n - 1 + len(one)].sum())
        right = torch.stack(want).cpu()
    output_head(made)
    yield "candidates", judged(off(got, right), 1e-4)
