"""Entry point of every command: command line -> Hydra -> checked, typed config -> one call.

Everything is checked before anything is created: a wrong override ends in one line on standard error and exit code 2.
`--cfg job` prints the checked config; Hydra itself answers `--cfg hydra`, `--info`, `--hydra-help` and tab completion.
"""

import errno
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from cli.argv import HYDRA_FLAGS, requested_package, split_flags
from cli.quoting import format_for_hydra
from nanogpt import schema
from nanogpt.console import format_command, show_logs
from nanogpt.cpu_threads import limit_spinning
from nanogpt.errors import STOPPED, BadEnvironment, BadInput, LabError, PeerLost, hint, one_line
from nanogpt.json_output import reserve_stdout
from nanogpt.schema import ConfigModel

if TYPE_CHECKING:
    from cli.sweep_request import Sweep

Config = TypeVar("Config", bound=ConfigModel)
HELP_DIR = Path(__file__).parent / "help_texts"


def exit_on_error(name: str, call: Callable[[], int]) -> NoReturn:
    """Exit with the code that `call` returns, or print its error in one line and exit with the error's code."""
    open_closed_streams()
    limit_spinning(os.environ)
    show_logs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without Unicode
    try:
        code = call()
        flush_stdout()
    except KeyboardInterrupt:  # before or after training, which handles it itself
        print("interrupted; the same command continues", file=sys.stderr)
        exit_process(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        exit_process(0)
    except Exception as error:
        exit_process(report_exception(name, error)[0])
    exit_process(code)


def report_exception(name: str, error: Exception) -> tuple[int, str]:
    """Print an exception on standard error. Return its exit code and the reason in one line."""
    from cli.crash_report import report_crash
    from cli.exit_codes import to_lab_error

    known = to_lab_error(name, error)
    if known is None:
        return report_crash(name, error), f"{type(error).__name__}: {error}"
    print_error(known)
    return known.exit_code, str(known)


def open_closed_streams() -> None:
    """Connect standard streams that the caller closed (`>&-`) to /dev/null.

    Otherwise the next file that is opened gets their number, and output is written into it.
    """
    for number, stream, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, stream, os.fdopen(number, mode, closefd=False))


def print_help(name: str) -> int:
    """Print the help page of a command. Return 0."""
    print(read_help(name))
    return 0


def read_help(name: str) -> str:
    """Return the help page of a command, with commands as this user starts them."""
    text = (HELP_DIR / f"{name}.txt").read_text().rstrip()
    return re.sub(r"python (\w+)\.py", lambda found: format_command(found[1]), text)


def exit_process(code: int) -> NoReturn:
    """Exit. One of several ranks exits without cleaning up.

    After an error torch's destructors would wait for lost ranks; after a success they rarely abort because of a
    connection's thread that still runs.
    """
    if is_rank():
        with suppress(BadEnvironment):
            flush_stdout()
        os._exit(code)
    gc.freeze()  # collecting torch's 285,000 objects would take most of a second
    sys.exit(code)


def is_rank() -> bool:
    """Return whether this process is one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def flush_stdout() -> None:
    """Flush standard output. A closed pipe is no error. Raises BadEnvironment, e.g. for a full disk."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        if error.errno != errno.EPIPE:
            raise BadEnvironment(f"standard output: {error.strerror}; the end of the text is missing") from None


def print_error(error: LabError) -> None:
    """Print an error in one line on standard error, unless another rank reports it."""
    rank = os.environ.get("RANK", "0")
    if not error.reported_elsewhere:
        print(f"{'' if rank == '0' else f'rank {one_line(rank)}: '}error: {error}", file=sys.stderr, flush=True)


def dispatch(
    name: str,
    kind: type[Config],
    main: Callable[[Config], int],
    argv: list[str],
    sweep: "Callable[[Sweep[Config]], int] | None" = None,
) -> int:
    """Print help or the configuration if the words ask for it; otherwise run every point. Return the exit code."""
    if "--help" in argv or "-h" in argv:
        print(help_page(name, kind, [word for word in argv if not word.startswith("-")]))
        return 0
    if "--shell-completion" in argv or "-sc" in argv:
        check_completion_words(argv)
        sys.argv[0] = sys.argv[0].removesuffix(f" {name}")  # a shell completes for a program
        return run_hydra(name, kind, argv)
    flags, overrides = split_flags(argv, kind)
    from cli.compose import to_yaml  # imports Hydra: 0.3 s that --help doesn't wait for
    from cli.config_files import search_overrides
    from cli.overrides import warn_about_repeats
    from cli.sweep_request import read_sweep

    warn_about_repeats(overrides)
    multirun = "--multirun" in flags or "-m" in flags
    request = read_sweep(name, kind, overrides, multirun)
    if questions := [flag for flag in flags if flag.partition("=")[0] in HYDRA_FLAGS]:
        if questions[0] in ("--cfg", "-c") and flags[flags.index(questions[0]) + 1] == "job":
            print(to_yaml(request.points[0].config, requested_package(flags)).rstrip())
            return 0
        own = {"--hydra-help", "--version"} & set(flags)  # about Hydra alone
        return run_hydra(name, kind, flags if own else [*overrides, *search_overrides(), *flags])
    if multirun and not sweep and wants_json(request.points[0].config):
        raise BadInput("format=json: prints one document; give the command once per point, without -m")
    prepare_output(request.points[0].config)
    if multirun:
        return sweep(request) if sweep else run_points([point.config for point in request.points], main)
    request.check_multirun()
    return main(request.points[0].config)


def wants_json(config: ConfigModel) -> bool:
    """Return whether the command of a config prints JSON."""
    return getattr(config, "format", None) == "json"


def prepare_output(config: ConfigModel) -> None:
    """Keep standard output for the JSON document if the config asks for one."""
    if wants_json(config):
        reserve_stdout()


def run_points(configs: list[Config], main: Callable[[Config], int]) -> int:
    """Run the points one after the other. A failed point does not stop the others; Ctrl-C does.

    Return the first exit code that isn't 0.
    """
    codes: list[int] = []
    for number, config in enumerate(configs, 1):
        print(f"=== point {number} of {len(configs)}", flush=True)
        try:
            codes.append(main(config))
        except LabError as error:
            if is_rank():  # ranks can't rendezvous again after an error
                raise
            print_error(error)
            codes.append(error.exit_code)
        if codes[-1] in (STOPPED, PeerLost.exit_code) or codes[-1] >= 128:
            break
    return next((code for code in codes if code), 0)


def check_completion_words(argv: list[str]) -> None:
    """Raise BadInput for other words beside -sc: Hydra reads them itself, and some of its options load pickles."""
    for word in argv:
        if word not in ("--shell-completion", "-sc") and not re.fullmatch(r"(install|uninstall|query)=\w+", word):
            raise BadInput(f"{one_line(word)}: with -sc only install=, uninstall= or query= and the name of a shell")


def run_hydra(name: str, kind: type[ConfigModel], words: list[str]) -> int:
    """Let Hydra answer. It reads sys.argv and runs nothing for these flags. Return 0."""
    import hydra

    from cli import config_files
    from cli.compose import register_schemas

    register_schemas(name, kind)
    sys.argv[1:] = words
    hydra.main(version_base="1.3", config_path=str(config_files.CONFIG_DIR), config_name=name)(lambda _: None)()
    return 0


def help_page(name: str, kind: type[ConfigModel], topics: list[str]) -> str:
    """Return the help page, or every key under the given topics: `--help optimizer model.dropout`."""
    from cli.config_files import choices, groups

    if not topics:
        return read_help(name).format(**{group: " ".join(choices(group)) for group in groups(name)})
    from cli.sweep_request import compose_unchecked

    try:
        usual = compose_unchecked(name, kind, [])
    except BadInput:  # the command requires overrides
        usual = {}
    lines: list[str] = []
    topics = [topic.partition("=")[0] for topic in topics]
    keys = [*schema.iter_fields(kind), *(help_sweep_fields() if name == "train" else [])]
    for key, field in keys:
        if any(key == topic or key.startswith(topic + ".") or topic == "all" for topic in topics):
            default = "" if field.is_required() else f", default {format_for_hydra(field.default)}"
            if (
                key in usual
                and default
                and (from_files := format_for_hydra(usual[key])) != format_for_hydra(field.default)
            ):
                default += f" ({from_files} from files)"
            change = schema.change_policy(field)
            lines.append(f"{key:<34} {field.description}\n{'':<34} {schema.describe_allowed(field)}{default}; {change}")
    if not lines:
        near = hint(topics[0], [*groups(name), *(key for key, _ in keys)])
        raise BadInput(f"{one_line(topics[0])}: no such key or group; see --help all{near}")
    if name == "train":
        lines.append(
            "\nfixed: changing it starts a new run. guarded: same, unless resume.allow_change lists it. free: same run."
        )
    return "\n".join(lines)


def help_sweep_fields() -> list[tuple[str, FieldInfo]]:
    """Return the keys about sweeps, without those that only files set."""
    from cli.sweep_keys import sweep_fields

    return [(key, field) for key, field in sweep_fields().items() if not key.endswith((".executor", ".method"))]
