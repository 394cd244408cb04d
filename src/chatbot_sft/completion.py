"""Shell completion: `eval "$(python -m chatbot_sft -sc install=bash)"`.

What can stand next is Hydra's answer to `-sc query=…`. Hydra's own script for bash knows programs and `python file.py`, not `python -m`.
"""

from __future__ import annotations

from collections.abc import Sequence

FLAGS = ("-sc", "--shell-completion")

# One candidate a line (Hydra's form for fish), compared as text: nothing of a file's name is expanded by the shell.
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


def asked(words: Sequence[str]) -> bool:
    """Whether this process completes a command line: one that is not finished, and so not checked."""
    return any(word in FLAGS for word in words)


def installs(words: Sequence[str]) -> bool:
    """Whether the script for bash is asked for."""
    return asked(words) and "install=bash" in words
