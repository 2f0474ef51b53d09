"""The model card of a finished run: `adapter/README.md`, made from its record.

It names the base by name and hash, what was trained and on what, every number with its convention
and, where the record has one, its interval, and how to load the adapter. It holds no path of the
machine: a base that lay in a folder is called by the folder's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hylorada.config import EMBEDDED
from hylorada.process.counts import number_of
from hylorada.process.disk import replace_file
from hylorada.process.redaction import redacted_text
from hylorada.records import base_rows
from hylorada.records.chosen_settings import choice_in_words, chosen_in
from hylorada.records.component_names import component_words
from hylorada.records.run_files import ADAPTER_SETTINGS
from hylorada.settings.fetched_models import fetched

Record = dict[str, Any]

CARD = "README.md"
_CONVENTIONS = {
    "blocks": "perplexity, non-overlapping windows",
    "sliding": "perplexity, sliding windows",
    "word": "perplexity per word",
    "paper": "mean perplexity of single WikiText paragraphs",
}


def write_card(directory: Path, record: Record) -> None:
    """Write the card of a run beside its adapter; a run without one (baseline) gets none.

    Args:
        directory: of the run.
        record: its result.json, with metrics.

    Raises:
        DiskError: full or read-only.
    """
    folder = directory / "adapter"
    if (folder / ADAPTER_SETTINGS).is_file():
        replace_file(folder / CARD, model_card(record, folder).encode())


def model_card(record: Record, adapter: Path) -> str:
    """The card of an adapter, as Markdown with a YAML header.

    Args:
        record: of a run that trained an adapter.
        adapter: the folder of that adapter; only its configuration is read.
    """
    settings = json.loads((adapter / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
    parts = [_header(record, settings), _title(record), _method(record, settings)]
    return _card([*parts, *_common(record), _loading(record, settings)])


def merged_card(record: Record, adapter: Path | None) -> str:
    """The card of a whole model: a base with its extension, and what was trained in its weights.

    Args:
        record: of the run.
        adapter: the folder of its adapter; None for a run without one (baseline).
    """
    settings = adapter and json.loads((adapter / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
    method = _method(record, settings) if settings else "## Method\n\nNothing was trained."
    parts = [_header(record, None), _title(record), method, *_common(record)]
    return _card([*parts, _loading_merged()])


def _card(parts: list[str]) -> str:
    return redacted_text("\n\n".join(parts)) + "\n"


def _title(record: Record) -> str:
    return f"# {record['method']}, {record['length']:,} tokens, on {base_name(record)}"


def _common(record: Record) -> list[str]:
    return [_base(record), _training(record), _results(record), _integrity(record)]


def base_name(record: Record) -> str:
    """What the base is called: its hub id, its name in the settings, or that of its folder."""
    name, path = record["model"], record["config"]["model"]["path"]
    if path == EMBEDDED:
        return "hylorada-tiny"
    if (known := fetched(path)) is not None:
        return known.title
    if _on_hub(record):
        return path
    return name if "/" not in name and name != path else Path(path).expanduser().resolve().name


def _on_hub(record: Record) -> bool:
    path = record["config"]["model"]["path"]
    local = path.startswith((".", "/", "~")) or Path(path).expanduser().exists()
    return path != EMBEDDED and not local and fetched(path) is None


def _plain(settings: Record) -> bool:
    return settings["peft_type"] == "LORA"


def _header(record: Record, settings: Record | None) -> str:
    """The YAML header; of a merged model without the settings of an adapter."""
    method, hub_set = record["method"], record["config"]["dataset"].get("hub_id")
    tags = [
        "hylorada",
        "long-context",
        *(["lora"] if settings and _plain(settings) else []),
        method,
    ]
    data = ModelCardData(
        base_model=base_name(record),
        library_name="peft" if settings else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        datasets=[hub_set] if hub_set and not record["config"]["dataset"].get("path") else None,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _method(record: Record, settings: Record) -> str:
    own = _of_peft(record, settings) if _other(record) else _low_rank(record, settings)
    experts = (record.get("parameters") or {}).get("experts")
    lines = [*own, *([f"- {experts['note']}"] if experts else [])]
    lines += [
        f"- {name} left out: {reason}" for name, reason in (record.get("left_out") or {}).items()
    ]
    counts = record["parameters"]["by_group"]
    rows = [[component_words(name), f"{count:,}"] for name, count in counts.items()]
    rows.append(["all", f"{record['parameters']['trainable']:,}"])
    table = _table(["trained", "numbers"], rows)
    return "## Method\n\n" + "\n".join(lines) + f"\n\n{table}"


def _other(record: Record) -> Record:
    """The settings of another method of peft that was trained in the place of LoRA; often none."""
    return record["config"]["method"].get("peft") or {}


def _of_peft(record: Record, settings: Record) -> list[str]:
    asked = {key: value for key, value in _other(record).items() if key != "peft_type"}
    told = ", ".join(f"{key} = {value}" for key, value in asked.items())
    lines = [f"- {settings['peft_type']}, PEFT's own" + (f", with {told}" if told else "")]
    targets = settings.get("target_modules") or []
    names = [targets] if isinstance(targets, str) else sorted(targets)
    names += sorted(settings.get("modules_to_save") or [])
    lines += [f"- on {', '.join(f'`{name}`' for name in names)}"] if names else []
    reached = record["position_range"]
    if reached["kind"] != "none":
        lines.append(
            f"- made for {record['length']:,} positions ({reached['kind']}: {reached['type']})"
        )
    return lines


def _low_rank(record: Record, settings: Record) -> list[str]:
    lora = record["config"]["method"]["lora"]
    scale = "alpha / sqrt(r)" if settings["use_rslora"] else "alpha / r"
    start = "orthonormal rows" if lora["init"] == "orthogonal" else "Kaiming"
    targets = [*(settings["target_modules"] or []), *(settings.get("target_parameters") or [])]
    lines = [
        f"- {'DoRA' if settings['use_dora'] else 'LoRA'} with r = {settings['r']}, alpha = "
        f"{settings['lora_alpha']:g}, scale {scale}, dropout {settings['lora_dropout']:g}; A "
        f"started with {start}, B at zero",
        f"- on {', '.join(f'`{name}`' for name in sorted(targets))}",
    ]
    if settings.get("s2_attn_enabled"):
        when = "training and evaluation" if settings["s2_in_evaluation"] else "training alone"
        fully = ""
        for what in ("layers", "heads"):
            share = settings.get(f"s2_full_{what}")
            fully += f"; {100 * share:g} % of the {what} attend fully" if share else ""
        lines.append(
            f"- shifted sparse attention in groups of {settings['s2_group_size']:,} tokens, in "
            f"{when}{fully}"
        )
    if settings.get("max_length"):
        reached = record["position_range"]
        kind = {"rope": "RoPE"}.get(reached["kind"], reached["kind"])
        how = "the base's own range" if kind == "none" else f"{kind}: {reached['type']}"
        lines.append(f"- made for {settings['max_length']:,} positions ({how})")
    return lines


def _base(record: Record) -> str:
    known, model = record["provenance"], record["config"]["model"]
    lines = [f"- {base_name(record)}" + (" (ships with hylorada)" if _embedded(record) else "")]
    if known.get("base_model_read_from"):
        lines.append(f"- read from {known['base_model_read_from']}")
    if model["revision"]:
        lines.append(f"- revision {model['revision']}")
    for key, what in (
        ("base_model_sha256", "its tensors as loaded"),
        ("base_model_config_sha256", "its configuration as loaded"),
    ):
        if known.get(key):
            lines.append(f"- sha256 of {what}: `{known[key]}`")
    return "## Base model\n\n" + "\n".join(lines)


def _embedded(record: Record) -> bool:
    return record["config"]["model"]["path"] == EMBEDDED


def _training(record: Record) -> str:
    done, train, known = record["training"], record["config"]["train"], record["provenance"]
    lines = [
        f"- {split}: {words} (sha256 `{known['dataset_sha256'][split][:16]}`)"
        for split, words in known.get("dataset", {}).items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items())
    lines += [
        f"- {done['tokens']:,} tokens in {number_of(done['steps'], 'step')}, task {train['task']}, "
        f"sequences of {record['length']:,} tokens, seed {record['seed']}",
        f"- AdamW, learning rate {train['lr']:g} ({train['lr_scheduler']}), {done['precision']} on "
        f"{done['device']}",
        f"- {versions}",
    ]
    if (chosen := chosen_in(record)) is not None:
        lines.append(f"- chosen: {choice_in_words(chosen)}")
    return "## Data and training\n\n" + "\n".join(lines)


def _results(record: Record) -> str:
    measured = (record.get("base") or {}).get("extended") or {}
    rows = [
        [f"`{name}`", _number(metric), _number(measured.get(name)), _described(name, metric)]
        for name, metric in record["metrics"].items()
    ]
    lines = [_table(["metric", "this model", base_rows.base_label(record), "what it is"], rows)]
    for name, metric in base_rows.own_window(record).items():
        lines.append(
            f"The base as it is, in its own window of {metric['window']:,} tokens: `{name}` "
            f"{_number(metric)}."
        )
    lines.append("Brackets: 95 % intervals.")
    return "## Results\n\n" + "\n\n".join(lines)


def _number(metric: Record | None) -> str:
    if metric is None:
        return "not measured"
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "not finite"
    text = f"{value:.4g}"
    return text if low is None or high is None else f"{text} [{low:.4g}, {high:.4g}]"


def _described(name: str, metric: Record) -> str:
    """The convention of a number in words, from what the record says of it."""
    words: list[str] = []
    convention = metric.get("convention")
    if convention:
        words.append(_CONVENTIONS.get(str(convention), str(convention)))
    elif metric.get("scoring"):
        words.append(f"share of right answers, {metric['scoring']} ({metric.get('form', 'kv')})")
    elif name.startswith("context_gain/"):
        words.append("nats of the same targets")
    for key, form in (
        ("split", "{} split"), ("window", "window {:,}"), ("stride", "stride {:,}"),
        ("context", "context {:,}"), ("depth", "depth {:g}"), ("tokens", "{:,} tokens"),
        ("prompts", "{:,} prompts"), ("examples", "{:,} examples"), ("chance", "chance {:.3g}"),
    ):  # fmt: skip
        if metric.get(key) is not None:
            words.append(form.format(metric[key]))
    return ", ".join(words)


def _integrity(record: Record) -> str:
    gate = record.get("integrity")
    if gate is None:
        return "## Integrity\n\nThe gate was switched off for this run; nothing was proven."
    ran = [name for name, check in gate["checks"].items() if check["ok"] and not check["skipped"]]
    verdict = "passed" if gate["ok"] else "failed"
    lines = [f"Before training, the model {verdict} these checks: {', '.join(ran)}."]
    allowed = [c["detail"] for c in gate["checks"].values() if "control arm" in c["detail"]]
    return "## Integrity\n\n" + "\n\n".join([*lines, *allowed])


_COMPUTES = {"bf16": "bfloat16", "fp16": "float16"}


def _loading(record: Record, settings: Record) -> str:
    """A program that loads the adapter; it runs as it stands where its two places are true."""
    plain, model = _plain(settings), record["config"]["model"]
    imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    extending: list[str] = []
    if _other(record):
        extending = _extending(record)
        imports += ["from hylorada.methods.position_range import extend_range"] if extending else []
    elif not plain:
        imports.insert(0, "import hylorada  # makes the method known to peft")
    place = f'base = "{base_name(record)}"' + ("" if _on_hub(record) else "  # its folder")
    options = {"dtype": record["provenance"].get("base_model_dtype")}
    if _embedded(record):
        imports = ["from importlib.resources import files", "", *imports]
        place = 'base = str(files("hylorada") / "assets" / "tiny")'
    elif (known := fetched(model["path"])) is not None:
        options["gguf_file"] = known.file.name
    elif model["path"].endswith(".gguf"):
        options["gguf_file"] = Path(model["path"]).name
    elif _on_hub(record):
        options["revision"] = model["revision"]
    told = "".join(f', {name}="{value}"' for name, value in options.items() if value)
    quantization = record["provenance"].get("base_model_quantization")
    if quantization:
        imports.append("from transformers import BitsAndBytesConfig")
        computes = _COMPUTES.get(record["provenance"].get("precision", ""), "float32")
        told += (
            ', device_map="cuda", quantization_config=BitsAndBytesConfig(load_in_4bit=True, '
            f'bnb_4bit_quant_type="{quantization}", bnb_4bit_use_double_quant=True, '
            f'bnb_4bit_compute_dtype="{computes}")'
        )
    code = [
        *imports, "", place, 'adapter = "adapter"  # the folder of this file',
        f"model = AutoModelForCausalLM.from_pretrained(base{told})",
        *extending,
        "model = PeftModel.from_pretrained(model, adapter).eval()",
    ]  # fmt: skip
    why = (
        "It is PEFT's own LoRA and loads without hylorada."
        if plain
        else "Without `import hylorada` PEFT refuses it: its components or its longer range live "
        "in that package. It is loaded onto the base as it is; the extension comes with it."
    )
    if _other(record):
        why = f"It is PEFT's own {settings['peft_type']}."
        if extending:
            why += " The longer range is not in its file: the base is extended before it is loaded."
    program = "\n".join(code)
    return f"## How to load it\n\n{why}\n\n```python\n{program}\n```"


def _extending(record: Record) -> list[str]:
    """The lines that give a base the range of the run; none where it has it by itself."""
    if record["position_range"]["kind"] == "none":
        return []
    told, asked = (
        record["config"]["model"]["trained_length"],
        dict(record["config"]["method"]["position_range"]),
    )
    lines = [f"model.config.hylorada_trained_length = {told}"] if told else []
    settings = f'"{asked["learned_init"]}", "{asked["rope_type"]}", {asked["rope_factor"]:g}'
    return [*lines, f"extend_range(model, {record['length']}, {settings})"]


def _loading_merged() -> str:
    program = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "merged"  # the folder of this file
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)"""
    why = (
        "It is a model of transformers and needs nothing else. Its weights are float32: in "
        "bfloat16 they round, and with them what was trained. Dropout is 0, as in training."
    )
    return f"## How to load it\n\n{why}\n\n```python\n{program}\n```"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
