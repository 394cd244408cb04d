"""A run's later checkpoints have, byte for byte, the files that PEFT and the tokenizer would write."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")]

FORMS = {
    "lora": {"r": 4},
    "rank by module": {"r": 4, "rank_pattern": {"q_proj": 2}, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "embeddings trained": {"r": 4, "modules_to_save": ["embed_tokens"]},
    "embeddings trained by two names": {
        "r": 4,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "embeddings beside": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},  # PEFT saves the base's too
    "whole model": None,
}


def trained_model(folder, form):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if form is None:
        return model
    form = {"target_modules": ["q_proj", "down_proj"], **form}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **form))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_later_checkpoints_have_the_files_that_peft_writes(tiny_llama, tmp_path, form, flat):
    import torch
    from transformers import AutoTokenizer

    from chatbot_sft.train.gradients import FlatParameters
    from chatbot_sft.train.host_copies import HostCopies
    from chatbot_sft.train.trained_files import TrainedFiles

    model, tokenizer = trained_model(tiny_llama, FORMS[form]), AutoTokenizer.from_pretrained(tiny_llama)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vector = FlatParameters(trained) if flat else None
    for name in ("first", "later", "peft"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "rng_state.pth").write_bytes(b"of another process")
    files = TrainedFiles.first(model, tokenizer, trained, tmp_path / "first")
    with torch.no_grad():
        for parameter in trained:
            parameter += torch.randn_like(parameter)
    if vector is not None:
        vector.whole()
    write = files.taken(HostCopies())
    model.save_pretrained(tmp_path / "peft")
    if files.weights is not None:
        with torch.no_grad():
            for parameter in trained:
                parameter += 1  # what is written later is what was taken
    write(tmp_path / "later")
    tokenizer.save_pretrained(tmp_path / "peft")
    written = {path.name: path.read_bytes() for path in (tmp_path / "later").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "peft").iterdir()}
    assert (files.weights is not None) == (
        form not in ("embeddings trained by two names", "embeddings beside", "whole model")
    )
