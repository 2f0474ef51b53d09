from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers.mounts import need_mounts
from helpers.text_tokenizers import make_tokenizer

from hylorada.config import DatasetConfig
from hylorada.data import token_corpus
from hylorada.data.blocks import Blocks
from hylorada.data.documents import Document
from hylorada.data.token_corpus import load_token_corpus, tokenizer_sha256
from hylorada.errors import DataError, DiskError

TEXTS = {
    "one": "alpha beta\n",
    "leer": "",
    "drei": "grüße 世界 <eos>",
    "vier": "x" * 41,
}


@pytest.fixture
def source(monkeypatch):
    """Replaces the reader of documents; the list it holds may be changed by the test."""
    documents = [Document(name, text) for name, text in TEXTS.items()]
    monkeypatch.setattr(
        token_corpus, "read_documents", lambda dataset, split, unit: iter(documents)
    )
    return documents


def config(tmp_path, **settings) -> DatasetConfig:
    return DatasetConfig(cache_dir=str(tmp_path / "cache"), **settings)


def entries(tmp_path):
    return [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_corpus_equals_each_document_encoded_alone(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(token_corpus, "_BATCH_CHARACTERS", 12)  # several batches
    corpus = load_token_corpus(config(tmp_path), "train", tokenizer)
    whole = []
    for i, (name, text) in enumerate(TEXTS.items()):
        ids = tokenizer(text)["input_ids"]
        document = corpus.documents[i]
        assert (document.name, document.start, document.end) == (
            name, len(whole), len(whole) + len(ids),
        )  # fmt: skip
        assert document.tokens.tolist() == ids == corpus.document_tokens(i).tolist()
        assert document.words == len(text.split())
        assert document.bytes == len(text.encode())
        whole += ids
    assert corpus.tokens.tolist() == whole
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.total_tokens == len(whole)
    assert sum(d.words for d in corpus.documents) == sum(len(t.split()) for t in TEXTS.values())
    assert sum(d.bytes for d in corpus.documents) == sum(len(t.encode()) for t in TEXTS.values())
    assert [d.name for d in corpus.documents[1:3]] == ["leer", "drei"]
    assert corpus.documents[-1].name == "vier"
    with pytest.raises(IndexError):
        corpus.documents[4]


def test_what_opens_a_text_stands_before_a_document_and_never_inside(tmp_path, source):
    llama = make_tokenizer("llama2")
    corpus = load_token_corpus(config(tmp_path), "train", llama)
    for document, text in zip(corpus.documents, TEXTS.values(), strict=True):
        ids = document.tokens.tolist()
        assert ids == [llama.bos_token_id, *llama(text, add_special_tokens=False)["input_ids"]]
        assert ids.count(llama.bos_token_id) == 1
    blocks = Blocks(corpus, 4)
    first, second = (blocks[i]["input_ids"].tolist() for i in (0, 1))
    assert first + second == corpus.documents[0].tokens.tolist()[:8]
    assert second[0] != llama.bos_token_id


def test_the_text_of_a_special_token_becomes_the_token(tmp_path, source):
    source[:] = [Document("a", "one<|endoftext|>two")]
    tiny = make_tokenizer("embedded")
    ids = load_token_corpus(config(tmp_path), "train", tiny).document_tokens(0).tolist()
    assert ids == [*tiny("one")["input_ids"], tiny.eos_token_id, *tiny("two")["input_ids"]]


def test_counts_of_the_source_win_over_counted_ones(tmp_path, source, tokenizer):
    source[:] = [Document("a", "one two", words=5, bytes=99)]
    document = load_token_corpus(config(tmp_path), "train", tokenizer).documents[0]
    assert (document.words, document.bytes) == (5, 99)


def test_large_vocabularies_take_four_bytes(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: (1 << 16) + 1)
    corpus = load_token_corpus(config(tmp_path), "train", tokenizer)
    assert corpus.tokens.dtype == np.uint32
    assert corpus.document_tokens(0).tolist() == tokenizer(TEXTS["one"])["input_ids"]


def test_second_call_reads_the_cache(tmp_path, source, tokenizer, monkeypatch):
    first = load_token_corpus(config(tmp_path), "train", tokenizer)
    monkeypatch.setattr(token_corpus, "_build", None)  # would fail
    second = load_token_corpus(config(tmp_path), "train", tokenizer)
    assert second.folder == first.folder
    assert second.sha256 == first.sha256


def test_key_changes_with_content_and_tokenizer(tmp_path, source, tokenizer):
    first = load_token_corpus(config(tmp_path), "train", tokenizer)
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    other.add_tokens(["alpha"])
    second = load_token_corpus(config(tmp_path), "train", other)
    assert second.sha256 == first.sha256
    assert second.total_tokens == first.total_tokens - 4
    source[0] = Document("one", "alpha beta!")
    third = load_token_corpus(config(tmp_path), "train", tokenizer)
    source[0] = Document("uno", "alpha beta!")
    fourth = load_token_corpus(config(tmp_path), "train", tokenizer)
    assert len({c.folder for c in (first, second, third, fourth)}) == 4
    assert len({c.sha256 for c in (first, third, fourth)}) == 3


def test_padding_of_an_earlier_call_is_no_new_tokenizer(tokenizer):
    before = tokenizer_sha256(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    padded = tokenizer_sha256(tokenizer)
    tokenizer(["a", "bb"], padding="max_length", truncation=True, max_length=8)
    assert tokenizer_sha256(tokenizer) == padded
    tokenizer.pad_token = None
    assert tokenizer_sha256(tokenizer) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "unlink", "meta"])
def test_damaged_entry_is_set_aside_and_made_again(tmp_path, source, tokenizer, damage, caplog):
    corpus = load_token_corpus(config(tmp_path), "train", tokenizer)
    ids = corpus.tokens.tolist()
    target = corpus.folder / "tokens.bin"
    if damage == "truncate":
        target.write_bytes(target.read_bytes()[:-2])
    elif damage == "flip":
        data = bytearray(target.read_bytes())
        data[7] ^= 1
        target.write_bytes(data)
    elif damage == "unlink":
        target.unlink()
    else:
        (corpus.folder / "meta.json").write_text("{")
    again = load_token_corpus(config(tmp_path), "train", tokenizer)
    assert again.tokens.tolist() == ids
    assert any(".bad-" in p.name for p in entries(tmp_path))
    assert "set aside" in caplog.text


def test_an_entry_may_be_read_by_whom_its_folder_lets_in(tmp_path, source, tokenizer):
    load_token_corpus(config(tmp_path), "train", tokenizer)
    (entry,) = entries(tmp_path)
    assert entry.stat().st_mode == entry.parent.stat().st_mode  # of one mask


def test_stopping_leaves_nothing_half_written(tmp_path, source, tokenizer):
    def stop(tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_token_corpus(config(tmp_path), "train", tokenizer, progress=stop)
    assert entries(tmp_path) == []


def test_leftover_of_a_killed_process_is_removed(tmp_path, source, tokenizer):
    folder = load_token_corpus(config(tmp_path), "train", tokenizer).folder
    for path in folder.iterdir():
        path.unlink()
    folder.rename(folder.parent / f"{folder.name}.tmp-killed")
    load_token_corpus(config(tmp_path), "train", tokenizer)
    assert [p.name for p in entries(tmp_path)] == [folder.name]


def test_text_that_changes_between_the_passes_is_refused(tmp_path, tokenizer, monkeypatch):
    versions = iter(["before", "after"])
    monkeypatch.setattr(
        token_corpus,
        "read_documents",
        lambda dataset, split, unit: iter([Document("a", next(versions))]),
    )
    with pytest.raises(DataError, match="changed while they were read"):
        load_token_corpus(config(tmp_path), "train", tokenizer)
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("documents", "words"),
    [([], "no document"), ([Document("a", ""), Document("b", "")], "no token in 2 documents")],
)
def test_nothing_to_tokenise_is_a_data_error(tmp_path, source, tokenizer, documents, words):
    source[:] = documents
    with pytest.raises(DataError, match=words):
        load_token_corpus(config(tmp_path), "test", tokenizer)


def test_cache_that_cannot_be_written_is_a_disk_error(tmp_path, source, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"dataset\.cache_dir"):
        load_token_corpus(DatasetConfig(cache_dir=str(tmp_path / "file")), "train", tokenizer)


FULL = ("the disk is full", "free some space or set dataset.cache_dir to another folder")
LIMITED = ("(ulimit -f: 1.0 MiB)", "raise that limit or set dataset.cache_dir to another folder")


@pytest.mark.parametrize("how", ["full", "limited"])
def test_full_disk_is_a_disk_error_and_leaves_nothing(tmp_path, source, tokenizer, how):
    (tmp_path / "cache").mkdir()
    prepare = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    if how == "full":
        need_mounts()
        prepare = f"own_mounts(); mount_small({str(tmp_path / 'cache')!r}, 1 << 20)"
    code = f"""
        import os, resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers.mounts import mount_small, own_mounts
        {prepare if how == "full" else ""}
        from helpers.plain_tokenizer import PlainTokenizer
        from hylorada.config import DatasetConfig
        from hylorada.data import token_corpus
        from hylorada.data.documents import Document
        from hylorada.errors import DiskError
        token_corpus.read_documents = lambda d, s, u: iter([Document("a", "x" * 2_000_000)])
        tokenizer = PlainTokenizer()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        {prepare if how == "limited" else ""}
        try:
            token_corpus.load_token_corpus(
                DatasetConfig(cache_dir={str(tmp_path / "cache")!r}), "train", tokenizer)
        except DiskError as error:
            print(error, end="")
        assert [name for name in os.listdir({str(tmp_path / "cache")!r}) if ".tmp-" in name] == []
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert all(words in done.stdout for words in (FULL if how == "full" else LIMITED)), done.stdout
    assert "\n" not in done.stdout
    assert entries(tmp_path) == []


def test_two_processes_build_one_entry(tmp_path):
    """Started together on the same cache, both get the same tokens and one entry is left."""
    code = f"""
        import sys, time, hashlib
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers.plain_tokenizer import PlainTokenizer
        from hylorada.config import DatasetConfig
        from hylorada.data import token_corpus
        from hylorada.data.documents import Document
        def documents(dataset, split, unit):
            for i in range(40):
                yield Document(str(i), "text %d " % i * 5000)
        token_corpus.read_documents = documents
        tokenizer = PlainTokenizer()
        print("ready", flush=True)
        sys.stdin.readline()
        built = []
        token_corpus._build = lambda *a, _build=token_corpus._build: (built.append(1), _build(*a))
        corpus = token_corpus.load_token_corpus(
            DatasetConfig(cache_dir={str(tmp_path / "cache")!r}), "train", tokenizer)
        print(corpus.total_tokens, hashlib.sha256(corpus.tokens).hexdigest(), len(built))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=300)[0].split() for process in processes]
    assert lines[0][:2] == lines[1][:2]
    assert sorted(line[2] for line in lines) == ["0", "1"]
    assert len(entries(tmp_path)) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="high-water mark of Linux")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak resident memory with 2 and with 12 million tokens is the same."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers.plain_tokenizer import PlainTokenizer
        from hylorada.config import DatasetConfig
        from hylorada.data import token_corpus
        from hylorada.data.documents import Document
        def documents(dataset, split, unit):
            for i in range(int(sys.argv[1])):
                yield Document(str(i), "ten bytes " * 20_000)
        token_corpus.read_documents = documents
        corpus = token_corpus.load_token_corpus(
            DatasetConfig(cache_dir={str(tmp_path / "cache")!r}), "train", PlainTokenizer())
        # Not ru_maxrss: a process begins with that of its parent, which may have held more.
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
        print(corpus.total_tokens, int(peak.split()[1]) // 1024)
    """
    peaks = {}
    for documents in (10, 60):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(documents)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        tokens, peaks[documents] = map(int, done.stdout.split())
        assert tokens == documents * 200_000
    # 10 million more ids in Python are 80 MB; what is held is one batch of a million characters.
    assert peaks[60] - peaks[10] < 40, peaks
