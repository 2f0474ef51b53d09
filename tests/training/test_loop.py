import json
import math
import shutil
import signal

import pytest
import torch
from helpers.families import VOCAB, make_model, tokens

from hylorada.config import LrScaleConfig, TrainConfig
from hylorada.data.order import block_order
from hylorada.errors import DivergedError, Interrupted
from hylorada.process.progress import Reporter
from hylorada.process.signals import Stop
from hylorada.training.checkpoint import load_newest, read_checkpoint
from hylorada.training.loop import Training
from hylorada.training.loss import LossModel
from hylorada.training.optim import learning_rate, make_optimizer
from hylorada.training.plan import make_plan

LENGTH = 29
CPU = torch.device("cpu")


class RandomBlocks:
    """Blocks of random tokens, of which each leaves another number unscored."""

    length = LENGTH

    def __len__(self):
        return 7

    def __getitem__(self, i):
        ids = tokens(1, LENGTH, seed=i)[0]
        labels = ids.clone()
        labels[1 : 1 + 3 * i] = -100
        return {"input_ids": ids, "labels": labels}


def make_training(
    tmp_path, *, model=None, blocks=None, stop=None, evaluate=None, late=False, **settings
):
    model = model or make_model("gpt2")
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        # Not the bias of the keys: its gradient is zero but for rounding, which Adam would enlarge.
        parameter.requires_grad_("ln_" in name or "c_attn.weight" in name)
    defaults = {"max_steps": 4, "save_every": 0, "lr": 1e-2, "max_grad_norm": 1.0}
    tmp_path.mkdir(exist_ok=True)
    training = Training(
        model=model,
        loss_model=LossModel(model, 16),
        blocks=blocks or RandomBlocks(),
        settings=TrainConfig(**{**defaults, **settings}),
        seed=3,
        device=CPU,
        autocast=None,
        run_dir=tmp_path,
        stop=stop or Stop(),
        reporter=Reporter(),
        evaluate=evaluate,
    )
    training.settles_late = late  # as on a GPU
    return training


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def weights(training):
    return {name: p.detach().clone() for name, p in training.trainables}


def test_training_equals_a_naive_loop_with_plain_cross_entropy(tmp_path):
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.05}
    training = make_training(tmp_path, **settings)
    training.run()

    # The oracle: all sequences of a step in one batch, the model's own logits, one mean.
    other = make_training(tmp_path / "other", **settings)
    model, optimizer = other.model, make_optimizer(other.trainables, other.settings)
    blocks = RandomBlocks()
    stream = [int(b) for epoch in range(3) for b in block_order(7, 3, epoch)]
    for step in range(1, 5):
        rows = [blocks[b] for b in stream[4 * (step - 1) : 4 * step]]
        ids, labels = (torch.stack([r[k] for r in rows]) for k in ("input_ids", "labels"))
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCAB), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in other.trainables], 0.05)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 4, other.settings)
        optimizer.step()
        optimizer.zero_grad()
        line = lines(tmp_path)[step - 1]
        # Another order of float32 sums; Adam's division enlarges it over the steps.
        assert line["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert line["train/lr"] == learning_rate(step, 4, other.settings)
    for (name, a), (_, b) in zip(training.trainables, other.trainables, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=name)


def test_a_group_with_a_rate_of_its_own_moves_by_it_and_goes_on_from_a_checkpoint(tmp_path):
    def train(name, checkpoint=None, **settings):
        settings = {"lr": 2**-7, "save_every": 1, "keep_checkpoints": 4, **settings}
        training = make_training(tmp_path / name, model=make_model("gpt2"), **settings)
        training.run(checkpoint)
        return training

    def after_the_first_step(name):  # whose gradients are the same in all
        return read_checkpoint(tmp_path / name / "checkpoints" / "step-00000001").trainables

    settings = {"lr_scale": LrScaleConfig(norms=8.0)}
    scaled = train("scaled", **settings)
    train("slow")
    train("fast", lr=2**-4)
    moved, slow, fast = map(after_the_first_step, ("scaled", "slow", "fast"))
    for name, values in moved.items():
        assert torch.equal(values, (fast if "ln_" in name else slow)[name]), name
        assert not torch.equal(fast[name], slow[name]), name
    rates = [learning_rate(step, 4, scaled.settings) for step in range(1, 5)]
    assert [line["train/lr"] for line in lines(tmp_path / "scaled")] == rates

    shutil.copytree(tmp_path / "scaled", tmp_path / "on")
    halfway = read_checkpoint(tmp_path / "on" / "checkpoints" / "step-00000002")
    shutil.rmtree(tmp_path / "on" / "checkpoints")
    continued = train("on", halfway, **settings)
    assert lines(tmp_path / "on") == lines(tmp_path / "scaled")
    for (name, a), (_, b) in zip(scaled.trainables, continued.trainables, strict=True):
        assert torch.equal(a, b), name


def test_tokens_count_what_is_scored(tmp_path):
    training = make_training(tmp_path, max_steps=2, micro_batch_size=3)
    training.run()
    blocks = [int(b) for epoch in range(2) for b in block_order(7, 3, epoch)][:6]
    assert lines(tmp_path)[-1]["train/tokens"] == sum(LENGTH - 1 - 3 * b for b in blocks)


@pytest.mark.parametrize(
    ("settings", "steps", "sequences"),
    [
        ({"max_steps": 5}, 5, 20),
        ({"epochs": 2.0}, 4, 14),  # the fourth step has the last two sequences
        ({"epochs": 0.5}, 1, 4),
        ({"max_tokens": 4 * (LENGTH - 1) + 1}, 2, 8),
        ({"max_tokens": 4 * (LENGTH - 1)}, 1, 4),
    ],
)
def test_budgets(settings, steps, sequences):
    settings = {"max_steps": 0, **settings}
    config = TrainConfig(micro_batch_size=2, gradient_accumulation_steps=2, **settings)
    plan = make_plan(7, LENGTH, config)
    assert (plan.steps, plan.sequences) == (steps, sequences)
    places = [b for step in range(1, steps + 1) for b in plan.of_step(step, seed=1)]
    assert len(places) == sequences
    assert sorted(places[:7]) == sorted(set(places[:7]))  # no block twice within an epoch


def test_the_last_partial_step_weighs_its_tokens(tmp_path):
    training = make_training(
        tmp_path, max_steps=0, epochs=1.0, micro_batch_size=2, gradient_accumulation_steps=2
    )
    counters = training.run()
    assert counters.step == 2
    assert counters.tokens == sum(LENGTH - 1 - 3 * b for b in range(7))


def poison(training, steps, how):
    """Make the loss or one gradient of the given steps non-finite."""
    inner, calls = training.loss_model, iter(range(1, 1000))

    def loss_model(**batch):
        sum_nll, count = inner(**batch)
        if next(calls) in steps:
            if how == "loss":
                return sum_nll * math.nan, count
            parameter = training.trainables[2][1]
            handle = parameter.register_hook(lambda g: (handle.remove(), g * math.inf)[1])
        return sum_nll, count

    training.loss_model = loss_model


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_non_finite_step_leaves_weights_and_moments_untouched(tmp_path, how, late):
    before = make_training(tmp_path / "two", max_steps=4, warmup_ratio=0.0, late=late)
    before.settings.lr_scheduler = "constant"
    poison(before, {3, 4}, how)
    before.run()

    clean = make_training(tmp_path / "clean", max_steps=2, warmup_ratio=0.0)
    clean.settings.lr_scheduler = "constant"
    clean.run()
    for (name, a), (_, b) in zip(before.trainables, clean.trainables, strict=True):
        assert torch.equal(a, b), name
        for key, value in before.optimizer_step.optimizer.state[a].items():
            assert torch.equal(value, clean.optimizer_step.optimizer.state[b][key]), (name, key)
    assert before.counters.skipped == 2
    assert before.counters.tokens == clean.counters.tokens
    last = lines(tmp_path / "two")[-1]
    expected = "loss is nan" if how == "loss" else before.trainables[2][0]
    assert expected in last["train/skipped"]
    assert set(last) == {"step", "train/skipped"}


def test_gradients_that_are_finite_but_not_their_norm_move_nothing_either(tmp_path):
    training = make_training(tmp_path, max_steps=2)
    before = weights(training)
    training.trainables[1][1].register_hook(lambda g: torch.full_like(g, 3e38))
    training.run()
    assert [line["train/skipped"] for line in lines(tmp_path)] == ["gradient norm overflows"] * 2
    assert all(torch.equal(before[name], p) for name, p in training.trainables)


@pytest.mark.parametrize("late", [False, True])
def test_too_many_in_a_row_diverge_and_the_last_good_checkpoint_stands(tmp_path, late):
    training = make_training(tmp_path, max_steps=9, save_every=2, max_nonfinite_steps=3, late=late)
    poison(training, {2, 3, 5, 6, 7}, "loss")
    with pytest.raises(DivergedError, match=r"3 steps in a row.*step 7.*lower train\.lr"):
        training.run()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert training.counters.step == 7
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert checkpoint.state["step"] == 6
    assert checkpoint.state["skipped_in_row"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in checkpoint.trainables.values())


@pytest.mark.parametrize("keep", [1, 2])
def test_divergence_leaves_the_checkpoint_from_before_it_and_both_continue_exactly(tmp_path, keep):
    def train(folder, bad, checkpoint=None):
        training = make_training(
            folder, max_steps=9, save_every=1, max_nonfinite_steps=4, keep_checkpoints=keep,
            model=make_model("gpt2"),
        )  # fmt: skip
        poison(training, bad, "loss")
        training.run(checkpoint)

    def saved(folder):
        return sorted(int(p.name[-2:]) for p in (folder / "checkpoints").iterdir())

    with pytest.raises(DivergedError):
        train(tmp_path / "bad", {4, 5, 6, 7})
    assert saved(tmp_path / "bad") == [*range(4 - keep, 4), 6]
    newest = load_newest(tmp_path / "bad" / "checkpoints")
    good = read_checkpoint(tmp_path / "bad" / "checkpoints" / "step-00000003")
    assert (newest.state["skipped_in_row"], good.state["skipped_in_row"]) == (3, 0)

    # From the newest one, as a run that was never stopped and whose step 7 is sound.
    shutil.copytree(tmp_path / "bad", tmp_path / "on")
    train(tmp_path / "on", set(), newest)
    train(tmp_path / "whole", {4, 5, 6})
    assert lines(tmp_path / "on") == lines(tmp_path / "whole")
    # From the one before the skipping, as a run that never skipped.
    shutil.copytree(tmp_path / "bad", tmp_path / "back")
    train(tmp_path / "back", set(), good)
    train(tmp_path / "clean", set())
    assert lines(tmp_path / "back") == lines(tmp_path / "clean")
    assert saved(tmp_path / "back") == list(range(10 - keep, 10))


def test_an_absurd_learning_rate_diverges_and_only_finite_weights_are_saved(tmp_path):
    training = make_training(
        tmp_path, max_steps=12, lr=1e20, save_every=1, keep_checkpoints=12, warmup_ratio=0.0
    )
    with pytest.raises(DivergedError):
        training.run()
    saved = [read_checkpoint(path) for path in (tmp_path / "checkpoints").glob("step-*")]
    assert saved
    for checkpoint in saved:
        assert all(bool(torch.isfinite(t).all()) for t in checkpoint.trainables.values())


def test_weights_that_blow_up_in_the_last_step_are_named(tmp_path):
    """No loss follows that would show it: the learning rate alone makes infinities of them."""
    settings = {"max_steps": 1, "lr": 1e39, "warmup_ratio": 0.0, "lr_scheduler": "constant"}
    training = make_training(tmp_path, **settings)
    with pytest.raises(DivergedError, match=r"after step 1, its last, .*ln_1\.weight.*not finite"):
        training.run()
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_evaluation_comes_every_so_often_but_not_at_the_end(tmp_path):
    seen = []

    def evaluate(step):
        seen.append(step)
        return {"validation/ppl": float(step)}

    training = make_training(tmp_path, max_steps=6, eval_every=2, evaluate=evaluate)
    training.run()
    assert seen == [2, 4]
    found = [line for line in lines(tmp_path) if "validation/ppl" in line]
    assert found == [{"step": 2, "validation/ppl": 2.0}, {"step": 4, "validation/ppl": 4.0}]


class Ticking:
    """A clock that goes on by one second whenever it is read."""

    def __init__(self, start):
        self.now = start

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("late", [False, True])
def test_training_ends_with_the_step_in_which_its_time_is_over(tmp_path, late):
    def train(name, checkpoint=None, start=0.0, **settings):
        settings = {"max_steps": 9, "save_every": 1, "keep_checkpoints": 9, **settings}
        training = make_training(
            tmp_path / name, model=make_model("gpt2"), late=late, log_every=4, eval_every=3,
            evaluate=lambda step: {"validation/ppl": 1.0}, **settings,
        )  # fmt: skip
        training.clock = Ticking(start)
        training.run(checkpoint)
        return training

    training, whole = train("timed", max_seconds=5.5), train("whole")
    assert (training.ended_by, whole.ended_by) == ("seconds", "steps")
    steps = training.counters.step
    assert steps == 6
    assert load_newest(tmp_path / "timed" / "checkpoints").state["step"] == steps
    # The rates are those of the plan, whenever the end comes; the last step is logged.
    timed = [line for line in lines(tmp_path / "timed") if "train/lr" in line]
    assert [line["step"] for line in timed] == [4, 6]
    assert timed[1]["train/lr"] == learning_rate(6, 9, training.settings)
    assert timed[0] == next(line for line in lines(tmp_path / "whole") if line["step"] == 4)

    # Continued by another process, whose clock reads something else: the time before it counts.
    shutil.copytree(tmp_path / "timed", tmp_path / "on")
    halfway = read_checkpoint(tmp_path / "on" / "checkpoints" / "step-00000002")
    shutil.rmtree(tmp_path / "on" / "checkpoints")
    continued = train("on", halfway, start=1e6, max_seconds=5.5)
    assert continued.counters.step == steps
    assert lines(tmp_path / "on") == lines(tmp_path / "timed")
    # And once more when all is done.
    again = train("on", load_newest(tmp_path / "on" / "checkpoints"), max_seconds=5.5)
    assert (again.counters.step, again.ended_by) == (steps, "seconds")
    assert lines(tmp_path / "on") == lines(tmp_path / "timed")


@pytest.mark.parametrize(
    ("late", "eval_every", "steps"),
    # On a GPU a step's time is known when the next was launched, or when it is evaluated.
    [(False, 0, 1), (True, 0, 2), (True, 1, 1)],
)
def test_time_that_is_over_at_once_leaves_what_was_trained(tmp_path, late, eval_every, steps):
    training = make_training(
        tmp_path, max_steps=9, max_seconds=1e-9, late=late, eval_every=eval_every,
        evaluate=lambda step: {"validation/ppl": 1.0},
    )  # fmt: skip
    training.clock = Ticking(0.0)
    training.run()
    newest = load_newest(tmp_path / "checkpoints")
    assert newest.state["step"] == training.counters.step == steps
    logged = [line["step"] for line in lines(tmp_path) if "train/lr" in line]
    assert logged == list(range(1, steps + 1))


def test_log_every_and_metrics_hold_no_times(tmp_path):
    make_training(tmp_path, max_steps=5, log_every=2).run()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5]
    assert set(lines(tmp_path)[0]) == {
        "step", "train/loss", "train/lr", "train/grad_norm", "train/tokens",
    }  # fmt: skip


def test_reading_a_step_late_changes_no_byte(tmp_path):
    for name, late in (("now", False), ("late", True)):
        training = make_training(
            tmp_path / name, model=make_model("gpt2"), late=late, max_steps=9, save_every=4,
            eval_every=3, evaluate=lambda step: {"validation/ppl": 1.0 * step}, keep_checkpoints=9,
            log_every=2,
        )  # fmt: skip
        poison(training, {2, 3, 6}, "gradient")
        training.run()
    folders = [tmp_path / "now", tmp_path / "late"]
    names = ["metrics.jsonl"]
    for step in (4, 8, 9):
        path = f"checkpoints/step-{step:08d}"
        names += [f"{path}/trainables.safetensors", f"{path}/optimizer.safetensors"]
        now, late = (json.loads((f / path / "state.json").read_text()) for f in folders)
        for key in ("seconds", "timing_bytes", "peak_memory_bytes"):
            now.pop(key), late.pop(key)
        assert now == late
    for name in names:
        assert folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", ["step", "evaluation"])
def test_a_stop_saves_and_continues_to_the_same_bytes(tmp_path, at, late):
    def scenario(folder, stop, interrupt):
        def evaluate(step):
            if interrupt and at == "evaluation" and step == 4:
                stop.requested = signal.SIGTERM
                stop.check()
            return {"validation/ppl": 1.0}

        training = make_training(
            folder,
            max_steps=6,
            eval_every=2,
            evaluate=evaluate,
            stop=stop,
            model=make_model("gpt2"),
            late=late,
        )
        if interrupt and at == "step":
            inner = training.loss_model

            def loss_model(**batch):
                if training.counters.step == 4:
                    stop.requested = signal.SIGTERM
                return inner(**batch)

            training.loss_model = loss_model
        return training

    scenario(tmp_path / "whole", Stop(), False).run()
    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        scenario(tmp_path / "cut", Stop(), True).run()
    assert caught.value.exit_code == 143
    checkpoint = load_newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["step"] == 4
    again = scenario(tmp_path / "cut", Stop(), False)
    again.run(checkpoint)

    for name in ("metrics.jsonl", "checkpoints/step-00000006/trainables.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bf16_autocast_keeps_parameters_and_moments_in_float32(tmp_path):
    training = make_training(tmp_path, max_steps=2)
    training.autocast = torch.bfloat16
    training.__post_init__()
    plain = make_training(tmp_path / "plain", max_steps=2)
    training.run()
    plain.run()
    for _, parameter in training.trainables:
        assert parameter.dtype == torch.float32
        assert training.optimizer_step.optimizer.state[parameter]["exp_avg"].dtype == torch.float32
    a, b = lines(tmp_path)[0]["train/loss"], lines(tmp_path / "plain")[0]["train/loss"]
    assert a != b  # bf16 was really used
    assert a == pytest.approx(b, rel=1e-2)  # 8 bits of mantissa
