import json
import logging
import os

import pytest
import torch
from helpers.unreadable import a_folder, no_permission
from torch import nn

from hylorada.errors import DataError, DiskError
from hylorada.training.checkpoint import (
    Damaged,
    load_newest,
    read_checkpoint,
    restore,
    save_checkpoint,
)


def make_training(seed=0, **kernel):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1, dtype=torch.bfloat16))
    trainables = list(model.named_parameters())
    return trainables, torch.optim.AdamW(model.parameters(), lr=0.1, **kernel)


def step(trainables, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for _, p in trainables:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def save(directory, number, training=None, keep=2):
    trainables, optimizer = training or make_training(number)
    return save_checkpoint(directory, {"step": number}, trainables, optimizer, keep)


def test_restored_training_continues_bit_for_bit(tmp_path):
    trainables, optimizer = make_training()
    step(trainables, optimizer, 1)
    save(tmp_path, 1, (trainables, optimizer))
    step(trainables, optimizer, 2)

    others, other_optimizer = make_training(seed=9)
    restore(load_newest(tmp_path), others, other_optimizer)
    step(others, other_optimizer, 2)
    for (name, a), (_, b) in zip(trainables, others, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("writes", ["fused", "foreach"])
@pytest.mark.parametrize("reads", ["fused", "foreach"])
def test_a_checkpoint_of_either_kernel_of_adamw_continues_in_either(tmp_path, writes, reads):
    trainables, optimizer = make_training(**{writes: True})
    step(trainables, optimizer, 1)
    save(tmp_path, 1, (trainables, optimizer))
    step(trainables, optimizer, 2)

    others, other_optimizer = make_training(seed=9, **{reads: True})
    restore(load_newest(tmp_path), others, other_optimizer)
    step(others, other_optimizer, 2)
    for (name, a), (_, b) in zip(trainables, others, strict=True):
        if writes == reads:
            assert torch.equal(a, b), name
        torch.testing.assert_close(a, b)
        assert other_optimizer.state[b]["step"] == 2


def test_layout_has_a_manifest_of_every_file_and_no_pickle(tmp_path):
    path = save(tmp_path, 20)
    assert path.name == "step-00000020"
    files = {p.name for p in path.iterdir()}
    assert files == {
        "MANIFEST.json", "state.json", "trainables.safetensors", "optimizer.safetensors",
    }  # fmt: skip
    assert set(json.loads((path / "MANIFEST.json").read_text())) == files - {"MANIFEST.json"}


def test_newest_is_chosen_and_older_ones_are_pruned(tmp_path):
    for number in (5, 10, 15):
        save(tmp_path, number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    assert load_newest(tmp_path).state["step"] == 15


def test_one_written_while_steps_are_skipped_pushes_no_other_out(tmp_path):
    def write(number, skipped, keep):
        state = {"step": number, "skipped_in_row": skipped}
        save_checkpoint(tmp_path, state, *make_training(number), keep)
        return [int(p.name[-2:]) for p in sorted(tmp_path.iterdir())]

    assert write(1, 0, keep=2) == [1]
    assert write(2, 0, keep=2) == [1, 2]
    assert write(3, 1, keep=2) == [1, 2, 3]
    assert write(4, 2, keep=2) == [1, 2, 4]
    assert write(5, 0, keep=2) == [2, 5]  # the weights move again
    assert write(6, 1, keep=1) == [5, 6]
    assert write(7, 2, keep=1) == [5, 7]
    assert load_newest(tmp_path).state["step"] == 7


def test_nothing_written_is_none(tmp_path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "absent") is None


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["trainables.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
def test_damage_is_noticed_set_aside_and_the_previous_one_used(tmp_path, caplog, name, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING):
        assert load_newest(tmp_path).state["step"] == 1
    assert "step-00000002 is damaged" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bad-step-00000002", "step-00000001"]


@pytest.mark.parametrize("damage", [truncate, os.unlink])
def test_a_damaged_manifest_is_noticed(tmp_path, damage):
    path = save(tmp_path, 1)
    damage(path / "MANIFEST.json")
    with pytest.raises(Damaged):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["MANIFEST.json", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("hide", [no_permission, a_folder])
def test_one_that_cannot_be_read_is_not_called_damaged_and_stays(tmp_path, name, hide):
    save(tmp_path, 1)
    hide(save(tmp_path, 2) / name)
    with pytest.raises(DataError, match=rf"step-00000002/{name}: cannot be read \(") as error:
        load_newest(tmp_path)
    assert str(error.value).endswith("move step-00000002 away to go on from an earlier one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_one_of_another_version_is_not_called_damaged_and_stays(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("hylorada.training.checkpoint.FORMAT", 2)
        save(tmp_path, 1)
    with pytest.raises(DataError, match=r"another version of hylorada \(format 2, this one reads"):
        load_newest(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_checkpoints_that_may_not_be_listed_are_not_taken_for_none(tmp_path):
    save(tmp_path, 1)
    no_permission(tmp_path)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        load_newest(tmp_path)
    tmp_path.chmod(0o700)
    assert load_newest(tmp_path).state["step"] == 1


def test_all_damaged_is_an_error_each_time_and_names_them(tmp_path):
    for number in (1, 2):
        flip_a_bit(save(tmp_path, number) / "state.json")
    for _ in range(2):
        with pytest.raises(DataError, match=r"\.bad-step-00000001, \.bad-step-00000002"):
            load_newest(tmp_path)


def test_a_second_damaged_one_of_the_same_step_does_not_replace_the_first(tmp_path):
    save(tmp_path, 1)
    for _ in range(2):
        flip_a_bit(save(tmp_path, 2) / "state.json")
        load_newest(tmp_path)
    assert len(list(tmp_path.glob(".bad-step-00000002*"))) == 2


def test_what_a_killed_save_left_is_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".partial-step-00000002").mkdir()
    assert load_newest(tmp_path).state["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    path = save(tmp_path, 1)
    before = (path / "trainables.safetensors").read_bytes()
    save(tmp_path, 1, make_training(seed=5))
    assert (path / "trainables.safetensors").read_bytes() == before


def test_a_full_disk_keeps_the_previous_one_and_says_what_is_needed(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = os.fsync
    calls = iter(range(100))

    def full(descriptor):
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"full.*free .* MiB, needs .* MiB"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_other_parameters_are_refused_by_name(tmp_path):
    save(tmp_path, 1)
    other = nn.Linear(3, 5)
    with pytest.raises(DataError, match=r"other parameters.*first 0\.bias"):
        restore(
            load_newest(tmp_path),
            list(other.named_parameters()),
            torch.optim.AdamW(other.parameters()),
        )
