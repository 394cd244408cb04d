"""Every Python snippet of the original training module's document runs; only the import line is ours."""

import pytest
from conftest import EXAMPLE, SEED, random_llama

SNIPPETS = {
    "ConfigLoader": (
        """
from chatbot_sft import ConfigLoader

config = ConfigLoader.load_config("configs/sft.yaml")
ConfigLoader.validate_config(config)
"""
    ),
    "ModelLoader": (
        """
from chatbot_sft import ModelLoader

model_loader = ModelLoader(config)
model, tokenizer = model_loader.load_and_configure()
"""
    ),
    "DatasetLoader": (
        """
from chatbot_sft import DatasetLoader

dataset_loader = DatasetLoader(config, tokenizer)
dataset = dataset_loader.prepare_dataset()
"""
    ),
    "MemoryBefore": (
        """
from chatbot_sft import ModelLoader

# Get initial memory
stats = ModelLoader.show_memory_stats()
start_memory = stats["current_memory_gb"]
"""
    ),
    "SFTTrainerWrapper": (
        """
from chatbot_sft import SFTTrainerWrapper

trainer = SFTTrainerWrapper(config, model, tokenizer, dataset)
trainer_stats = trainer.setup_and_train()
trainer.save_model()
"""
    ),
    "TrainingMonitor": (
        """
from chatbot_sft import TrainingMonitor

TrainingMonitor.print_training_stats(trainer_stats, start_memory)
"""
    ),
    "MemoryAfter": (
        """
# Get memory after training
stats = ModelLoader.show_memory_stats(start_memory)
ModelLoader.print_memory_stats(stats)
"""
    ),
    "SaveMethods": (
        """
# Save only LoRA adapters
trainer.save_model({"method": "lora", "save_path": "checkpoints/lora_only"})

# Save merged 4bit model
trainer.save_model({"method": "merged_4bit", "save_path": "checkpoints/merged_4bit"})

# Save as GGUF
trainer.save_model({
    "method": "gguf",
    "save_path": "checkpoints/model.gguf",
    "gguf_quantization": "q4_k_m"
})
"""
    ),
    "CustomLoop": (
        """
from chatbot_sft import ModelLoader, DatasetLoader, SFTTrainerWrapper, ConfigLoader

# Load config
config = ConfigLoader.load_config("configs/sft.yaml")
config["save"]["save_path"] = "checkpoints/second_model"

# Setup components
model_loader = ModelLoader(config)
model, tokenizer = model_loader.load_and_configure()

dataset_loader = DatasetLoader(config, tokenizer)
dataset = dataset_loader.prepare_dataset()

# Create and configure trainer
trainer = SFTTrainerWrapper(config, model, tokenizer, dataset)
trainer.create_trainer()
trainer.enable_response_only_training()

# Train
stats = trainer.train()

# Save
trainer.save_model()
"""
    ),
    "CustomComponents": (
        """
class CustomDatasetLoader(DatasetLoader):
    def formatting_prompts_func(self, examples):
        # Custom formatting logic
        return {"text": [text.upper() if False else text for text in super().formatting_prompts_func(examples)["text"]]}

assert CustomDatasetLoader(config, tokenizer).prepare_dataset()[0]["text"] == dataset[0]["text"]
"""
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
def test_the_seeds_snippets_run_in_order(engine, request, smollm2, tmp_path):
    warm = request.getfixturevalue({"transformers": "warm", "unsloth": "warm_unsloth"}[engine])
    model = random_llama(tmp_path / "model", smollm2, 64)
    (tmp_path / "configs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / EXAMPLE.name).symlink_to(EXAMPLE)
    yaml = (
        SEED.read_text(encoding="utf-8")
        .replace('"unsloth/Llama-3.2-3B-Instruct"', f'"{model}"\n  engine: {engine}')
        .replace("max_steps: 30", "max_steps: 2")
    )
    verify = engine == "unsloth"  # one of the two is enough: five exports take their time
    yaml = yaml.replace("save:\n", f"save:\n  verify: {str(verify).lower()}\n")
    (tmp_path / "configs" / "sft.yaml").write_text(yaml.replace("load_in_4bit: true", "load_in_4bit: false"))
    process = warm.run(["-c", "\n".join(SNIPPETS.values())], tmp_path)
    assert process.returncode == 0, process.stderr
    assert "memory at peak" in process.stdout
    assert "training loss" in process.stdout
    for folder in ("final_model", "second_model", "merged_4bit", "lora_only"):
        file = "adapter_model.safetensors" if folder == "lora_only" else "model.safetensors"
        assert (tmp_path / "checkpoints" / folder / file).is_file()
        assert (tmp_path / "checkpoints" / folder / "chat_template.jinja").is_file()
    assert (tmp_path / "checkpoints" / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_the_embedded_model_has_its_name_in_a_seed_yaml_too(warm_unsloth, tmp_path):
    """Four bits, as the seed's YAML asks: on the CPU, with the real model and the real Unsloth."""
    (tmp_path / "sft.yaml").write_text("model:\n  name: smollm2\n")
    program = (
        "from chatbot_sft import ConfigLoader, ModelLoader\n"
        "model, tokenizer = ModelLoader(ConfigLoader.load_config('sft.yaml')).load_and_configure()\n"
        "from chatbot_sft.model.load import count_parameters\n"
        "print('parameters', *count_parameters(model), tokenizer.eos_token)\n"
    )
    process = warm_unsloth.run(["-c", program], tmp_path)
    assert process.returncode == 0, process.stderr
    assert "parameters 4884480 139399488 <|im_end|>" in process.stdout
