"""llama.cpp's quantiser, in a process of its own: the user's (named, or on PATH), else that of cyllama."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from chatbot_sft.errors import UserError
from chatbot_sft.extras import install

log = logging.getLogger("third_party")

BINARY = "llama-quantize"
PLACES = ("", "bin", "build/bin")  # in a checkout, an unpacked release, a build


def has_wheel() -> bool:
    return importlib.util.find_spec("cyllama") is not None


def quantizer(folder: str | None) -> list[str]:
    """The command that takes INPUT OUTPUT TYPE. `folder` is `save.llama_cpp_dir`.

    Raises:
        UserError: there is none.
    """
    if folder is not None:
        place = Path(folder).expanduser()
        candidates = (place / part / BINARY for part in PLACES)
        binary = next((file for file in candidates if file.is_file()), None)
        if binary is None:
            raise UserError(
                f"save.llama_cpp_dir={folder}: no {BINARY} in it, nor in bin/ or build/bin/; build llama.cpp"
                " there or leave the key out"
            )
        return [str(binary.resolve())]
    on_path = shutil.which(BINARY)
    if on_path:
        return [on_path]
    if has_wheel():
        return [sys.executable, "-m", "chatbot_sft.save.gguf.llama_cpp"]
    raise UserError(
        f"save.gguf_quantization: needs llama.cpp's quantiser: {install('gguf')}, or name your llama.cpp with"
        " save.llama_cpp_dir"
    )


def quantize(command: list[str], source: Path, target: Path, kind: str) -> None:
    """Write `source`, a GGUF file of float16 weights, as `target` in `kind` (q4_k_m, …).

    Raises:
        OSError: `target` cannot be written.
        UserError: the quantiser refuses.
    """
    process = subprocess.run(
        [*command, str(source), str(target), kind.upper()], capture_output=True, text=True, errors="replace"
    )
    for line in [*process.stdout.splitlines(), *process.stderr.splitlines()]:
        log.info("quantize: %s", line)
    if process.returncode:
        if shutil.disk_usage(target.parent).free < source.stat().st_size // 8:
            raise OSError(28, "No space left on device", str(target))
        said = (process.stderr.strip() or process.stdout.strip() or "nothing said").splitlines()[-1]
        raise UserError(
            f"save.gguf_quantization={kind}: {Path(command[0]).name} failed ({said});"
            " name another with save.llama_cpp_dir"
        )


def main() -> None:
    from cyllama.llama import llama_cpp
    from gguf import LlamaFileType

    source, target, kind = sys.argv[1:]
    llama_cpp.ggml_backend_load_all()
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = int(LlamaFileType[f"MOSTLY_{kind}"])
    llama_cpp.model_quantize(source, target, parameters)


if __name__ == "__main__":
    main()
