"""Where the model and the data come from: a folder that is whole, or the Hugging Face hub, its token and its cache.

Judged by what is here. With `online` the hub is asked one thing, and told the token.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft.data_names import is_hub_id
from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.errors import UserError
from chatbot_sft.network import USER_SAYS_OFFLINE, endpoint

if TYPE_CHECKING:
    from chatbot_sft.config import Config

# Owners and beginnings of names whose models ask for a licence to be accepted first.
GATED = (
    "meta-llama/", "google/gemma-2", "google/gemma-3", "google/gemma-7b", "CohereLabs/", "bigcode/starcoder",
)  # fmt: skip
TOKEN = re.compile(r"(hf|api)_[A-Za-z0-9_]{16,}")
LOGIN = "hf auth login"
SECONDS = 10


def model_folder(settings: Config) -> Path | None:
    """Where the model lies on this machine; None where it does not yet."""
    from chatbot_sft.model import embedded
    from chatbot_sft.model.hub import is_local

    name = settings.model.name
    if name == embedded.NAME:
        return embedded.converted()
    if is_local(name):
        return Path(name).expanduser()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=settings.model.revision)
    return Path(found).parent if isinstance(found, str) else None


def model(settings: Config) -> Iterator[Finding]:
    """Is it here, and whole?"""
    from chatbot_sft.model import embedded
    from chatbot_sft.model.hub import is_local
    from chatbot_sft.model_files import check_folder

    name, folder = settings.model.name, model_folder(settings)
    if name == embedded.NAME:
        path = embedded.gguf_path()  # extras says so where it is not installed
        yield ok(
            "model",
            f"{name}: embedded, {path.stat().st_size / 1e6:.0f} MB"
            + ("" if folder else ", not converted yet"),
        )
    elif is_local(name):
        try:
            check_folder(name, settings.model.trust_remote_code, settings.model.allow_pickle)
        except UserError as error:
            yield fault("model", str(error), "python -m chatbot_sft model=local model.name=/path/to/folder")
            return
        yield ok("model", f"{name}: a whole folder")
    elif folder and _whole(folder):
        yield ok("model", f"{name}: in the hub's cache, {folder}")
    elif USER_SAYS_OFFLINE:
        what = f"{name}: not in the hub's cache, and HF_HUB_OFFLINE is set"
        yield fault("model", what, f"HF_HUB_OFFLINE=0 hf download {shlex.quote(name)}")
    elif name.startswith(GATED) and not token():
        what = f"{name}: gated on the hub, and there is no token; accept its licence there, then log in"
        yield fault("model", what, LOGIN)
    else:
        yield note("model", f"{name}: will be downloaded from the hub", f"hf download {shlex.quote(name)}")


def data(settings: Config) -> Iterator[Finding]:
    """Files that are not there, and data that the hub has."""
    from chatbot_sft.data.corpus import Corpus
    from chatbot_sft.errors import UserError

    if settings.task not in ("train", "check", "plan"):
        return
    try:
        Corpus.of(settings).check_files()
    except UserError as error:
        what, _, repair = str(error).rpartition("; ")
        yield fault("data", what, repair)
    for source in settings.dataset.mixture:
        path = source.data_path
        there = is_hub_id(path) and (cache_folder() / f"datasets--{path.replace('/', '--')}").is_dir()
        if is_hub_id(path) and USER_SAYS_OFFLINE and not there:
            what = f"{path}: not in the hub's cache, and HF_HUB_OFFLINE is set"
            repair = f"HF_HUB_OFFLINE=0 hf download --repo-type dataset {shlex.quote(path)}"
            yield fault("data", what, repair)


def hub(settings: Config | None, online: bool) -> Iterator[Finding]:
    """The network and the token; what is wrong with a token that nobody asks for is a note."""
    wanted = settings is not None and uses_hub(settings)
    proxy = next(
        (name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)),
        None,
    )
    by = f", through {proxy}" if proxy else ""
    if USER_SAYS_OFFLINE and settings is not None and settings.save.push_to_hub:
        yield fault("hub", "save.push_to_hub=true, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    elif USER_SAYS_OFFLINE:
        yield ok("hub", "offline (HF_HUB_OFFLINE)")
    else:
        yield ok(
            "hub",
            f"{endpoint()}, {'used' if wanted else 'not needed'} by this run{by}"
            + ("" if online else "; not asked (--online asks it)"),
        )
    said = fault if wanted else note
    value, source = _token()
    if value is None:
        needs = settings is not None and settings.save.push_to_hub
        if needs:
            yield fault("token", "save.push_to_hub=true, and there is no token", LOGIN)
        else:
            yield ok("token", "none (HF_TOKEN is not set, nobody is logged in)")
    elif not TOKEN.fullmatch(value):
        what = f"{source} holds no token of the hub: {_why_none(value)}"
        yield said(
            "token", what, f"unset HF_TOKEN && {LOGIN}" if source == "HF_TOKEN" else f"{LOGIN} --force"
        )
    else:
        yield ok("token", f"in {source}; not tried" if not online else f"in {source}")
    if online and USER_SAYS_OFFLINE:
        what = "nothing was asked: HF_HUB_OFFLINE is set"
        yield note("online", what, "HF_HUB_OFFLINE=0 python -m chatbot_sft.doctor --online")
    elif online:
        yield from _ask(settings)


def uses_hub(settings: Config) -> bool:
    """Whether the run asks the hub for something, or gives it something."""
    from chatbot_sft.model import embedded
    from chatbot_sft.model.hub import is_local

    name = settings.model.name
    of_model = name != embedded.NAME and not is_local(name)
    of_data = any(is_hub_id(source.data_path) for source in settings.dataset.mixture)
    return of_model or of_data or settings.save.push_to_hub


def token() -> str | None:
    """The token that huggingface_hub would send."""
    return _token()[0]


def _token() -> tuple[str | None, str]:
    """(the token, where it stands): HF_TOKEN before the file of `hf auth login`."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip("\r\n"):
            return value, name
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None, ""
    return (value, str(file)) if value else (None, "")


def _why_none(value: str) -> str:
    """Without a letter of it."""
    if value != value.strip() or re.search(r"\s", value):
        return "there is a space in it"
    if value[0] in "\"'":
        return "it stands in quotes"
    if not value.isascii():
        return "it has other letters than ASCII's"
    if not value.startswith(("hf_", "api_")):
        return "it does not begin with hf_"
    return f"it has {len(value)} characters, and something is missing or too much"


def _whole(folder: Path) -> bool:
    """Whether weights are there, every shard that an index names among them."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / name).exists() for name in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _ask(settings: Config | None) -> Iterator[Finding]:
    """One request: for the model's config.json where the hub has the model, else who the token's owner is."""
    import httpx
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    from chatbot_sft.model import embedded
    from chatbot_sft.model.hub import is_local

    name = settings.model.name if settings else embedded.NAME
    given = token()
    try:
        if name != embedded.NAME and not is_local(name):
            url = hf_hub_url(
                name,
                "config.json",
                revision=settings.model.revision if settings else None,
                endpoint=endpoint(),
            )
            get_hf_file_metadata(url, token=given or False, timeout=SECONDS)
            yield ok("online", f"the hub answers, and {name} can be had")
        elif given:
            HfApi(endpoint=endpoint()).whoami(token=given)
            yield ok("online", "the hub answers, and knows the token")
        else:
            httpx.head(endpoint(), timeout=SECONDS).raise_for_status()
            yield ok("online", "the hub answers")
    except GatedRepoError:
        yield fault("online", f"{name} is gated, and the token's owner has not been given access", LOGIN)
    except RepositoryNotFoundError:
        yield fault("online", f"the hub has no {name}, or it is private and the token is not its", LOGIN)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        what = (
            "the hub does not know the token"
            if status == 401
            else f"the hub answers with an error ({status})"
        )
        yield fault("online", what, LOGIN if status == 401 else "python -m chatbot_sft.doctor --online")
    except (httpx.HTTPError, OSError) as error:
        what = f"no answer from {endpoint()} ({type(error).__name__})"
        yield fault("online", what, "HF_HUB_OFFLINE=1 python -m chatbot_sft model=smollm2")


def cache_folder() -> Path:
    """The hub's cache, told from the environment as huggingface_hub does."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def download(settings: Config, weights: float) -> float:
    """Bytes that will come from the hub: 16-bit weights, where they are not in its cache."""
    from chatbot_sft.model import embedded
    from chatbot_sft.model.hub import is_local

    folder = model_folder(settings)
    local = settings.model.name == embedded.NAME or is_local(settings.model.name)
    return 0.0 if local or (folder and _whole(folder)) else 2 * weights
