"""gguf: a file per quantisation, and the Modelfile with which Ollama runs it."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install
from chatbot_sft.model import embedded
from chatbot_sft.model.hub import is_local, tokenizer_folder
from chatbot_sft.save.gguf import llama_cpp
from chatbot_sft.save.gguf.file import WRITTEN, check_architecture, write_gguf
from chatbot_sft.save.gguf.ollama import modelfile
from chatbot_sft.save.gguf.vocabulary import adds_bos, read_vocabulary
from chatbot_sft.save.trained import Trained

log = logging.getLogger(__name__)

MODELFILE = "Modelfile"


def check_gguf(settings: Config) -> None:
    """Before training: does this machine write and check such files, of such a model?

    Raises:
        UserError: it does not.
    """
    save, name = settings.save, settings.model.name
    if any(kind not in WRITTEN for kind in save.quantizations):
        llama_cpp.quantizer(save.llama_cpp_dir)
    if save.verify and not llama_cpp.has_wheel():
        raise UserError(
            f"save.verify=true: a GGUF file is checked by llama.cpp: {install('gguf')}, or set"
            " save.verify=false"
        )
    source = embedded.resolve(name)
    local = is_local(source)
    folder = Path(source).expanduser() if local else tokenizer_folder(source, settings.model.revision)
    check_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")), name)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"save.method=gguf: model.name={name} has no tokenizer.json, from which a GGUF's tokenizer is"
            " written; use save=merged_16bit"
        )
    read_vocabulary(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), name)


def file_names(settings: Config) -> dict[str, str]:
    """Quantisation → file name: model-Q4_K_M.gguf, or the name that `save.save_path` has given."""
    path = Path(settings.save.save_path)
    if path.suffix == ".gguf":
        return {settings.save.quantizations[0]: path.name}
    return {kind: f"{path.name}-{kind.upper()}.gguf" for kind in settings.save.quantizations}


def write_gguf_files(trained: Trained, folder: Path) -> None:
    """llama.cpp quantises from float16; that file goes again where nobody asked for it."""
    save = trained.settings.save
    name = Path(save.save_path).name.removesuffix(".gguf")
    files = {kind: folder / file for kind, file in file_names(trained.settings).items()}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.f16.") as work:
        tokenizer_folder = Path(work, "tokenizer")
        trained.tokenizer.save_pretrained(tokenizer_folder)
        end = next(iter(trained.evidence.ends), None)
        direct = {kind: file for kind, file in files.items() if kind in WRITTEN}
        rest = {kind: file for kind, file in files.items() if kind not in WRITTEN}
        if rest:
            direct.setdefault("f16", Path(work, "f16.gguf"))
        for kind, file in direct.items():
            with trained.timed(kind):
                write_gguf(
                    trained.weights,
                    trained.tokenizer,
                    tokenizer_folder,
                    end,
                    kind,
                    name,
                    file,
                    trained.system_prompt,
                )
        for kind, file in rest.items():
            with trained.timed(kind):
                llama_cpp.quantize(llama_cpp.quantizer(save.llama_cpp_dir), direct["f16"], file, kind)
    (folder / MODELFILE).write_text(
        _modelfile(trained, [file.name for file in files.values()]), encoding="utf-8"
    )


def _modelfile(trained: Trained, files: list[str]) -> str:
    tokenizer, evidence = trained.tokenizer, trained.evidence
    stops = tokenizer.convert_ids_to_tokens(evidence.ends) or [tokenizer.eos_token]
    written = modelfile(
        files,
        trained.template,
        stops,
        trained.system_prompt,
        bos=tokenizer.bos_token if adds_bos(tokenizer) else None,
    )
    if written.problem:
        log.warning("save: Modelfile: %s", written.problem)
    return written.text
