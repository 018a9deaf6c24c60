"""The Hugging Face hub: whether it answers, asked before its clients try again and again for half a minute."""

import os
import urllib.request

TIMEOUT_S = 5.0  # seconds for the first answer


def check_hub_reachable() -> None:
    """Raises OSError, saying why, when the hub is switched off by the environment or doesn't answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("0", ""):
        raise OSError("offline by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE")
    urllib.request.urlopen(f"{constants.ENDPOINT}/robots.txt", timeout=TIMEOUT_S).close()
