"""`nanogpt serve`: answer OpenAI's API with a trained model."""

import errno
import ipaddress
import logging
import os
import socket
from importlib.util import find_spec

from nanogpt.config import ServeConfig
from nanogpt.errors import BadEnvironment, BadInput, one_line
from nanogpt.generation.command import load_for_decoding
from nanogpt.serving.chat_template import read_chat_template

logger = logging.getLogger(__name__)
KEY = "NANOGPT_API_KEY"


def serve(config: ServeConfig) -> int:
    """Answer requests until a stop signal. Raises BadInput, BadCheckpoint, BadData, BadEnvironment."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise BadEnvironment(f"{missing[0]} is not installed: pip install 'fastapi>=0.115' 'uvicorn>=0.30'")
    from nanogpt.serving.app import Api, ApiServer

    key = os.environ.get(KEY)
    with bind(config) as listener:  # before loading the model, which may take a while
        address = listener.getsockname()
        if not key and not ipaddress.ip_address(address[0]).is_loopback:
            logger.warning(
                f"host={one_line(config.host)}: everyone who reaches this port can use the model; "
                f"set the environment variable {KEY}, or leave host=127.0.0.1 and use ssh -L"
            )
        trained = load_for_decoding(config, rows=1)
        api = Api(trained, read_chat_template(config), config, key)
        listener.listen()
        where = f"[{address[0]}]" if ":" in address[0] else address[0]
        logger.info(f"model {one_line(api.model['id'])}: http://{where}:{address[1]}/v1")
        ApiServer(api, config.stop_timeout_s).run([listener])
    return 0


def bind(config: ServeConfig) -> socket.socket:
    """Return a socket on the config's host and port. Raises BadInput, BadEnvironment."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise BadInput(f"host={one_line(config.host)}: not a host's name or address") from None
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not to wait after an earlier server
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadInput(f"host={one_line(config.host)}: not an address of this machine") from None
        raise BadEnvironment(f"port={config.port}: {error.strerror}; another one: port=0 takes any free one") from None
    return listener
