"""The trained model becomes files that others load: an adapter, a merged model in 16 or 4 bits, GGUF;
verified, and uploaded where asked.

weights → formats (`adapter`, `merged`, `gguf/`) → `verify/`, by evidence, each read by a probe → `card`;
`saver` does all of it.
"""

from chatbot_sft.run.report import SaveResult
from chatbot_sft.save.saver import ModelSaver

__all__ = ["ModelSaver", "SaveResult"]
