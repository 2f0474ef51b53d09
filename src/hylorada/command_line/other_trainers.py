"""What the settings of other trainers are called here: transformers, TRL, axolotl, torchtune, ...

Only for error messages: no other name is accepted.
"""

from __future__ import annotations

import re

_NOT_OFFERED = "is not offered here"
_ADAMW = f"another optimiser than AdamW {_NOT_OFFERED}"
_QUANTISED = f"a base in 8 bits {_NOT_OFFERED}; 4 are: model.quantization=nf4"
_PLANS = "hylorada-train plans with dry_run=true"
_TOKEN = "tokens are read from the environment: HF_TOKEN, WANDB_API_KEY"
_EPOCHS = "train.epochs, with train.max_steps=0"
_LENGTH = "length, as in length=4k or length=3000"

# One line for all names of one thing; "name=value" where the value decides.
_MEANT = {
    "train.lr": "learning_rate peak_lr",
    "train.lr_scale.lora_B": "loraplus_lr_ratio loraplus_ratio",
    "train.lr_scale.embeddings": "embedding_lr_scale",
    _EPOCHS: "epochs num_train_epochs num_epochs n_epochs epoch",
    "train.max_steps": "num_steps total_steps num_training_steps max_train_steps "
    "max_steps_per_epoch iterations max_iters",
    "train.max_seconds": "max_time max_train_time time_limit",
    "train.max_tokens": "num_tokens total_tokens",
    "train.micro_batch_size": "per_device_train_batch_size batch_size train_batch_size bs "
    "micro_batch_size",
    "train.gradient_accumulation_steps": "gradient_accumulation_steps gradient_accumulation "
    "grad_accum grad_accumulation_steps accumulate_grad_batches accumulation_steps",
    "eval.perplexity.batch_size": "per_device_eval_batch_size eval_batch_size",
    "train.precision=bf16": "bf16 bf16=true bfloat16 bf16=auto mixed_precision=bf16",
    "train.precision=fp32": "bf16=false fp32 fp32=true float32 fp16=false",
    "train.precision=fp16": "fp16 fp16=true float16 half mixed_precision=fp16",
    "train.precision": "mixed_precision amp precision_type",
    "method.lora.r": "lora_r lora_rank lora_dim rank lora_attn_dim",
    "method.lora.lora_alpha": "alpha",
    "method.lora.lora_dropout": "dropout",
    "method.lora.target_modules": "lora_target_modules lora_target lora_attn_modules lora_modules "
    "lora_target_linear",
    "method=rslora": "rslora use_rslora=true",
    "method=dora": "dora peft_use_dora",
    "method=longlora": "longlora shift_attn shift_attn=true s2_attention use_s2",
    "method": "finetuning_type peft_type peft_method peft adapter lora use_peft use_lora",
    "model": "model_name_or_path base_model model_name model_id pretrained_model_name_or_path "
    "checkpoint_dir base_model_name_or_path pretrained_model tokenizer_name_or_path",
    "model.attn_implementation": "flash_attention flash_attn flash_attention_2 use_flash_attention "
    "sdp_attention",
    "remote code is never run here": "trust_remote_code",
    "model.quantization=nf4": "load_in_4bit load_in_4bit=true qlora bnb_4bit_quant_type",
    "model.quantization": "quantization quantization_bit quantization_config",
    _QUANTISED: "load_in_8bit",
    "output_root, or group for the folder below it": "output_dir out_dir save_dir log_dir "
    "logging_dir result_dir run_dir workdir",
    "group": "run_name wandb_name wandb_run_name wandb_group exp_name experiment_name name",
    "dataset, or dataset=local with dataset.path": "dataset_name dataset_path data data_path "
    "data_dir dataset_dir train_file train_data datasets corpus",
    "dataset.hub_config": "dataset_config dataset_config_name subset",
    "dataset.text_column": "text_field dataset_text_field text_column_name text_key column",
    "dataset.max_documents": "max_samples max_train_samples num_samples",
    "dataset.packing": "sample_packing pack_sequences group_texts",
    _LENGTH: "max_seq_length max_seq_len sequence_len seq_len seq_length sequence_length "
    "cutoff_len block_size model_max_length context_length context_len context_window n_ctx",
    "train.lr_scheduler": "lr_scheduler_type scheduler scheduler_type",
    "train.warmup_ratio": "warmup_steps num_warmup_steps warmup",
    "train.max_grad_norm": "gradient_clipping grad_clip clip_grad_norm gradient_clip_val",
    "train.weight_decay": "wd",
    "train.adam_beta1, train.adam_beta2": "betas adam_betas",
    "train.adam_epsilon": "eps epsilon",
    _ADAMW: "optim optimizer optimizer_type",
    "train.save_every": "save_steps save_strategy checkpoint_every save_interval saves_per_epoch "
    "save_every_n_steps",
    "train.keep_checkpoints": "save_total_limit max_checkpoints",
    "train.log_every": "logging_steps log_every_n_steps log_interval log_steps",
    "train.eval_every": "eval_steps evaluation_strategy eval_strategy eval_interval "
    "run_val_every_n_steps evals_per_epoch do_eval",
    "train.gradient_checkpointing": "enable_activation_checkpointing activation_checkpointing "
    "use_gradient_checkpointing",
    "train.gradient_checkpointing_offload": "activation_offloading enable_activation_offloading",
    "track=off": "wandb=false use_wandb=false report_to=none disable_wandb wandb_disabled "
    "wandb_mode=disabled",
    "track=offline": "wandb_mode=offline wandb_offline",
    "track=wandb": "wandb=true use_wandb=true report_to=wandb wandb_mode=online wandb_log",
    "track=tensorboard": "report_to=tensorboard use_tensorboard",
    "track": "wandb use_wandb report_to wandb_mode logger log_with metric_logger",
    "track.project": "wandb_project project_name project",
    "track.entity": "wandb_entity entity",
    "track.tags": "wandb_tags",
    "resume": "resume_from_checkpoint auto_resume_from_checkpoints resume_from "
    "overwrite_output_dir",
    "resume=never": "overwrite_output_dir=true",
    "seed": "random_seed data_seed rng_seed manual_seed",
    "device=cuda": "gpu cuda use_gpu use_cuda",
    "device=cpu": "no_cuda no_cuda=true use_cpu cpu",
    "threads": "num_threads n_threads torch_threads omp_num_threads",
    "method.position_range.rope_type": "rope_scaling rope_scaling_type",
    "method.position_range.rope_factor": "rope_scaling_factor",
    "one run has one process here; launcher= runs the cells of a sweep side by side":
    "deepspeed fsdp num_processes nproc_per_node n_gpu num_gpus world_size fsdp_config",
    _PLANS: "dry_run dryrun plan plan_only",
    _TOKEN: "token hf_token hub_token api_key wandb_api_key use_auth_token wandb_key",
    "eval": "evaluation benchmark",
}  # fmt: skip
_BY_NAME = {name: meant for meant, names in _MEANT.items() for name in names.split()}


def meant_by(key: str, value: str = "") -> str:
    """What a setting of another trainer is here, in words; empty if it is known nowhere.

    Args:
        key: as typed, dotted or not, with dashes or underscores.
        value: as typed; only ``true``, ``false`` and names of modes decide anything.
    """
    name = re.sub(r"[^a-z0-9_]", "_", key.rpartition(".")[2].strip("-+").lower())
    found = _BY_NAME.get(f"{name}={value.strip().lower()}") or _BY_NAME.get(name)
    return found or ""
