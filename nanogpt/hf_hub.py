"""Hugging Face hub: check quickly that it is reachable, and download files."""

import os
import urllib.request
from pathlib import Path

from nanogpt.errors import BadEnvironment, one_line

TIMEOUT_S = 5.0  # until the first answer; the hub's own clients retry for half a minute


def check_hub_reachable() -> None:
    """Raise OSError if the hub is disabled by the environment or doesn't answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("0", ""):
        raise OSError("offline by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE")
    urllib.request.urlopen(f"{constants.ENDPOINT}/robots.txt", timeout=TIMEOUT_S).close()


def download_from_hub(repository: str, name: str) -> Path:
    """Return a file of the hub, from its cache if possible. Raises BadEnvironment, within seconds when offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        check_hub_reachable()
        return Path(hf_hub_download(repository, name))
    except (OSError, HfHubHTTPError) as error:
        why = one_line(getattr(error, "reason", None) or error, 120)
        raise BadEnvironment(
            f"{repository}/{name}: not in the cache of the Hugging Face hub, and can't be downloaded ({why}); "
            f"give a folder that has it: init_from=path/to/{repository.rpartition('/')[2]}"
        ) from None
