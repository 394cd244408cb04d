"""Shell completion: `eval "$(python -m chatbot_sft -sc install=bash)"`, for zsh and fish likewise.

What can stand next is Hydra's answer to `-sc query=…`. Hydra's own scripts know programs and `python
file.py`, not `python -m`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

FLAGS = ("-sc", "--shell-completion")

# One candidate a line (Hydra's form for fish), compared as text: the shell expands nothing of a file's name.
BASH = r"""
_chatbot_sft() {
    local line="${COMP_LINE:0:$COMP_POINT}" typed choice current kept
    local -a program
    if [[ "$line" =~ ^[[:space:]]*[^[:space:]]*python[0-9.]*[[:space:]]+-m[[:space:]]+chatbot_sft[[:space:]] ]]; then
        program=("${COMP_WORDS[0]}" -m chatbot_sft)
    elif [[ "$line" =~ ^[[:space:]]*[^[:space:]]*chatbot-sft[[:space:]] ]]; then
        program=("${COMP_WORDS[0]}")
    else
        # python with something else: as it was completed before
        if [[ -n "$_chatbot_sft_before" ]]; then "$_chatbot_sft_before" "$@"; fi
        return
    fi
    typed="${line:${#BASH_REMATCH[0]}}"
    current="${typed##*[[:space:]]}"
    # readline replaces what follows the last of its word breaks
    kept=""
    if [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]]; then kept="${current%=*}="; fi
    if [[ "$COMP_WORDBREAKS" == *:* && "${current#"$kept"}" == *:* ]]; then kept="${current%:*}:"; fi
    COMPREPLY=()
    while IFS= read -r choice; do
        if [[ -n "$choice" && "$choice" == "$current"* ]]; then COMPREPLY+=("${choice#"$kept"}"); fi
    done < <(COMP_LINE="chatbot-sft $typed" "${program[@]}" -sc query=fish 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=./] ]]; then compopt -o nospace 2>/dev/null; fi
}
_chatbot_sft_before="$(complete -p python 2>/dev/null | sed -n 's/.* -F \([^ ]*\) .*/\1/p')"
if [[ "$_chatbot_sft_before" == _chatbot_sft ]]; then _chatbot_sft_before=""; fi
complete -o bashdefault -o default -F _chatbot_sft python python3 chatbot-sft
""".strip()

ZSH = r"""
_chatbot_sft() {
    local typed choice
    local -a program whole parts
    if [[ "${words[1]:t}" == python[0-9.]# && "${words[2]} ${words[3]}" == "-m chatbot_sft" ]]; then
        program=("${words[1]}" -m chatbot_sft)
    elif [[ "${words[1]:t}" == chatbot-sft ]]; then
        program=("${words[1]}")
    fi
    if (( $#program == 0 || CURRENT <= $#program )); then
        # python with something else: as it was completed before
        ${_chatbot_sft_before:-_default} "$@"
        return
    fi
    typed="${(j: :)words[$#program+1,CURRENT-1]} $PREFIX"
    for choice in "${(@f)$(COMP_LINE="chatbot-sft $typed" "${program[@]}" -sc query=fish 2>/dev/null </dev/null)}"; do
        if [[ "$choice" == *[=./] ]]; then parts+=("$choice"); elif [[ -n "$choice" ]]; then whole+=("$choice"); fi
    done
    compadd -Q -S "" -a parts
    compadd -Q -a whole
    (( $#parts + $#whole )) || _default
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_chatbot_sft_before="${_comps[python]}"
if [[ "$_chatbot_sft_before" == _chatbot_sft ]]; then _chatbot_sft_before=""; fi
compdef _chatbot_sft python python3 chatbot-sft
""".strip()

FISH = r"""
function __chatbot_sft
    set -l words (commandline -opc)
    set -l program
    if string match -qr '(^|/)python[0-9.]*$' -- "$words[1]"; and test "$words[2..3]" = "-m chatbot_sft"
        set program $words[1..3]
    else if string match -qr '(^|/)chatbot-sft$' -- "$words[1]"
        set program $words[1]
    else
        return 1
    end
    # asked alone: is this a command line of ours?
    if test "$argv[1]" = begun
        return 0
    end
    set -e words[1..(count $program)]
    env COMP_LINE="chatbot-sft $words "(commandline -ct) $program -sc query=fish 2>/dev/null </dev/null
end
complete -c python -n '__chatbot_sft begun' -f -a '(__chatbot_sft)'
complete -c python3 -n '__chatbot_sft begun' -f -a '(__chatbot_sft)'
complete -c chatbot-sft -f -a '(__chatbot_sft)'
""".strip()

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def leave_out(flag: str) -> None:
    """Take a flag of ours out of the line that is completed: Hydra does not know it."""
    os.environ["COMP_LINE"] = re.sub(rf"\s{flag}(?=\s)", "", os.environ.get("COMP_LINE", ""))


def asked(words: Sequence[str]) -> bool:
    """Whether this process completes a command line: one that is not finished, and so not checked."""
    return any(word in FLAGS for word in words)


def script(words: Sequence[str]) -> str | None:
    """The script of the shell that asks for it with `-sc install=SHELL`; None where none does."""
    return next((SCRIPTS[shell] for shell in SCRIPTS if asked(words) and f"install={shell}" in words), None)
