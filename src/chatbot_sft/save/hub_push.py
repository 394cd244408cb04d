"""save.push_to_hub: asked for before anything is computed, done when the exports are whole on the disk."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.network import USER_SAYS_OFFLINE, endpoint

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from chatbot_sft.config import Config, SaveConfig

CHECK_SECONDS = 10  # without an answer, before training
PUSH_SECONDS = 120  # without an answer, after it
BRANCH = re.compile(r"(?!refs/)\w[\w.-]*(/\w[\w.-]*)*")
LOGIN = "set HF_TOKEN in the environment, or run: hf auth login"


def check(settings: Config) -> None:
    """Before training: would the hub take what `settings.save` wants to push?

    Raises:
        UserError: the configuration leaves something out, there is no token, the hub does not answer, or it
            would not let this token write there.
    """
    save = settings.save
    if not save.push_to_hub:
        return
    name = _repository(save)
    _check_names(name, save.hub_revision)
    where = f"save.hub_model_id={name}"
    with _connected(CHECK_SECONDS) as api, _readable(where, api):
        refusal = _refusal(api.whoami(), name)
        if refusal:
            raise UserError(f"{where}: {refusal}; take another token ({LOGIN}), or another place")
        _check_visibility(api, name, save.hub_private)


def push(folder: Path, settings: Config) -> str:
    """Upload every file of `folder` to the repository (and branch) that `settings.save` names; both are made
    where they are missing.

    Returns its URL.

    Raises:
        UserError: what failed, and how to go on. The folder stays as it is.
    """
    save = settings.save
    name, branch = _repository(save), save.hub_revision
    try:
        with _connected(PUSH_SECONDS) as api:
            with _readable(f"save.hub_model_id={name}: the repository cannot be made", api):
                url = str(api.create_repo(name, private=save.hub_private, exist_ok=True))
                _check_visibility(api, name, save.hub_private)
            if branch:
                with _readable(f"save.hub_revision={branch}: the branch of {name} cannot be made", api):
                    api.create_branch(name, branch=branch, exist_ok=True)
            with _readable(f"save.push_to_hub=true: the upload to {name} failed", api):
                api.upload_folder(
                    repo_id=name, folder_path=folder, revision=branch, commit_message=f"Upload {folder.name}"
                )
    except UserError as error:
        raise UserError(f"{error}; the export in {folder} is whole: {_command(folder, save)}") from None
    return f"{url}/tree/{branch}" if branch else url


def _repository(save: SaveConfig) -> str:
    """`save.hub_model_id`.

    Raises:
        UserError: it is not set.
    """
    if not save.hub_model_id:
        raise UserError(
            "save.push_to_hub=true: save.hub_model_id is missing; set it to ORGANISATION/NAME or USER/NAME"
        )
    return save.hub_model_id


def _check_names(name: str, branch: str | None) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"save.hub_model_id={name}: {error}; write ORGANISATION/NAME") from None
    if "/" not in name:
        raise UserError(f"save.hub_model_id={name}: whose? write ORGANISATION/{name} or USER/{name}")
    if branch and not BRANCH.fullmatch(branch):
        raise UserError(
            f"save.hub_revision={branch}: not the name of a branch, which is of letters, digits, '.', '_',"
            " '-' and '/'"
        )
    if USER_SAYS_OFFLINE:
        raise UserError(
            "save.push_to_hub=true: HF_HUB_OFFLINE is set; unset it, or set save.push_to_hub=false"
        )


@contextlib.contextmanager
def _connected(seconds: float) -> Iterator[HfApi]:
    """huggingface_hub with the user's token: on the network though a local model put it offline, and waiting
    no longer than `seconds` for an answer.

    Its progress bars are shown on a terminal alone.

    Raises:
        UserError: there is no token.
    """
    import huggingface_hub
    from huggingface_hub import constants, utils

    session, terminal = huggingface_hub.get_session(), sys.stderr.isatty()
    offline, timeout = constants.HF_HUB_OFFLINE, session.timeout
    hide = not terminal and not utils.are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE, session.timeout = False, seconds
    if hide:
        utils.disable_progress_bars()
    try:
        with quiet(progress=terminal):
            token = huggingface_hub.get_token()
            if not token:
                raise UserError(f"save.push_to_hub=true: there is no token for {endpoint()}; {LOGIN}")
            yield huggingface_hub.HfApi(token=token)
    finally:
        constants.HF_HUB_OFFLINE, session.timeout = offline, timeout
        if hide:
            utils.enable_progress_bars()


@contextlib.contextmanager
def _readable(where: str, api: HfApi) -> Iterator[None]:
    """Whatever fails inside is a UserError in one line, without the token and without the exception it came
    from, whose text could repeat it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # an upload can fail in any way: the library's, httpx's, Xet's
        text = f"{where}: {_trouble(error)}; try again when that is mended"
        raise UserError(text.replace(api.token, "…") if isinstance(api.token, str) else text) from None


def _trouble(error: BaseException) -> str:
    """What the hub answered, or that it did not, at the bottom of `error`."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        answer = error.response
        said = f" ({error.server_message})" if error.server_message else ""
        login = f"; {LOGIN}" if answer.status_code == 401 else ""
        return f"{answer.url.host} answers {answer.status_code} {answer.reason_phrase}{said}{login}"
    text = str(error) or type(error).__name__
    return f"no answer from {endpoint()} ({text})" if isinstance(error, httpx.TransportError) else text


def _refusal(user: Mapping[str, Any], name: str) -> str | None:
    """Why the token of `user`, as whoami tells it, may not write to the repository `name`; None where it may,
    or that cannot be told.
    """
    namespace = name.split("/")[0].lower()
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        return f"the token of {user['name']} may only read"
    if access.get("role") == "write":
        roles = {
            user["name"].lower(): "admin",
            **{org["name"].lower(): org.get("roleInOrg") for org in user.get("orgs", [])},
        }
        if namespace not in roles:
            return f"{user['name']} does not belong to {namespace}"
        return f"{user['name']} may only read in {namespace}" if roles[namespace] == "read" else None
    if access.get("role") == "fineGrained":
        scopes = access["fineGrained"].get("scoped", [])
        rights = [
            scope["permissions"]
            for scope in scopes
            if scope["entity"].get("name", "").lower() in (namespace, name.lower())
        ]
        if "repo.write" not in sum(rights, access["fineGrained"].get("global", [])):
            return f"the token of {user['name']} lacks the right repo.write for {namespace}"
    return None


def _check_visibility(api: HfApi, name: str, private: bool) -> None:
    """A repository that is there already keeps its visibility, whatever `save.hub_private` says.

    Raises:
        UserError: it is public, and should not be.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        repository = api.model_info(name, timeout=CHECK_SECONDS)
    except RepositoryNotFoundError:
        return
    if private and not repository.private:
        raise UserError(
            f"save.hub_private=true: {name} is public already; make it private on the hub, or set"
            " save.hub_private=false"
        )


def _command(folder: Path, save: SaveConfig) -> str:
    options = [
        *(["--private"] if save.hub_private else []),
        *(["--revision", save.hub_revision] if save.hub_revision else []),
    ]
    return shlex.join(["hf", "upload", _repository(save), str(folder), *options])
