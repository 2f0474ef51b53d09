"""HyLoRADA: long-context parameter-efficient fine-tuning in which every switch proves that it acts."""
