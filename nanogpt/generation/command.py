"""`python sample.py`: text from a trained model, on the console as it is drawn, or as JSON lines."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nanogpt.config import SampleConfig
from nanogpt.device import Compute, attention_used, find_device
from nanogpt.errors import BadInput, one_line
from nanogpt.files import from_json, open_regular
from nanogpt.formatting import escape_control_chars
from nanogpt.generation.answers import encode_prompt, generate_answers
from nanogpt.generation.cpu_decode import speed_up_cpu_decoding
from nanogpt.interop.load_model import TrainedModel, load_trained
from nanogpt.output_paths import check_output_file
from nanogpt.tokenizer import special_tokens

FILE = "FILE:"
MOST_BYTES = 2**20  # of a prompt file


def sample(config: SampleConfig) -> int:
    """Print `num_samples` answers to each prompt. Raises BadInput, BadCheckpoint, BadData, BadEnvironment."""
    config = resolve_config(config)
    check_output_file("out", config.out)
    texts = [] if config.interactive else read_prompts(config)  # before the model: it may take a while
    device = find_device(config.device, "device")
    trained = load_trained(config, device)
    attention_used(config.attention, Compute(device, config.precision, ""), trained.model.config, section="")
    check_special_tokens(trained, config, texts)
    if config.precision == "bf16":
        trained.model.bfloat16()
    else:
        speed_up_cpu_decoding(trained.model, config.batch_size)
    if not config.quiet:
        print(describe(trained, config), file=sys.stderr, flush=True)
    if config.interactive:
        return run_interactive(trained, config)
    prompts = [(text, encode_prompt(trained, config, text)) for text in texts]
    jobs = [(text, ids, number) for text, ids in prompts for number in range(config.num_samples)]
    if config.out is not None:
        return write_lines(trained, config, jobs, config.out)
    for first in range(0, len(jobs), config.batch_size):
        print_answers(trained, config, jobs, first)
    return 0


def check_special_tokens(trained: TrainedModel, config: SampleConfig, texts: list[str]) -> None:
    """Raise BadInput if special tokens are asked for and there are none; say it if a prompt only spells one."""
    names = special_tokens(trained.tokenizer)
    if config.special_tokens and not names:
        raise BadInput("special_tokens=true: the model's tokenizer has no special tokens")
    spelled = [name for name in names if any(name in text for text in texts)]
    if not config.special_tokens and spelled:
        why = "plain text in the prompt; special_tokens=true makes it a special token"
        print(f"note: {one_line(spelled[0])} is {why}", file=sys.stderr)


def describe(trained: TrainedModel, config: SampleConfig) -> str:
    """Return a line that names the model, its step and loss, and how tokens are drawn."""
    about = [one_line(trained.name)]
    about += [] if trained.step is None else [f"{config.checkpoint} checkpoint, step {trained.step:,}"]
    about += [] if trained.val_loss is None else [f"val {trained.val_loss:.4f} nats/token"]
    keys = ["temperature", "seed", "max_new_tokens"]
    keys += [
        key
        for key in ("top_k", "top_p", "min_p", "repetition_penalty", "precision")
        if differs_from_default(config, key)
    ]
    return "  ".join([*about, *(f"{key}={getattr(config, key)}" for key in keys)])


def differs_from_default(config: SampleConfig, key: str) -> bool:
    """Return whether a key has another value than its default."""
    return getattr(config, key) != SampleConfig.model_fields[key].default


Request = tuple[str, list[int], int]
"""A prompt as it was given, its ids, and which of its texts this is."""


def resolve_config(config: SampleConfig) -> SampleConfig:
    """A config whose task also stops at `stop`, newlines written out. Raises BadInput for keys that exclude others."""
    if config.prompt and config.prompts is not None:
        raise BadInput(f"prompts={one_line(config.prompts)}: prompt={one_line(config.prompt)} is given too; give one")
    if config.interactive and (config.prompt or config.prompts is not None or config.out is not None):
        raise BadInput(
            "interactive=true: asks for the prompts and shows the answers; prompt, prompts and out don't apply"
        )
    stop = (*config.task.stop, *([] if config.stop is None else [unescape_newlines(config.stop)]))
    task = config.task.model_copy(update={"stop": stop, "template": unescape_newlines(config.task.template)})
    return config.model_copy(update={"task": task})


def unescape_newlines(text: str) -> str:
    """Newlines and tabs in place of \\n and \\t, which are easier to type in a shell."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def read_prompts(config: SampleConfig) -> list[str]:
    """What the prompts say. Raises BadInput for a file that isn't there or isn't text."""
    if config.prompts is None:
        text = config.prompt
        return [read_text("prompt", text.removeprefix(FILE)) if text.startswith(FILE) else text]
    lines = [line for line in read_text("prompts", config.prompts).splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"prompts={one_line(config.prompts)}: no prompt in it")
    return (
        [parse_prompt(line, config.prompts, n) for n, line in enumerate(lines, 1)]
        if is_json_lines(config.prompts)
        else lines
    )


def is_json_lines(path: str) -> bool:
    return path.endswith(".jsonl")


def parse_prompt(line: str, path: str, number: int) -> str:
    """The prompt in a JSON line. Raises BadInput."""
    row: object = None
    with suppress(ValueError):
        row = from_json(line)
    text: object = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'prompts={one_line(path)}: line {number} is not a JSON object with a text "prompt"')
    return text


def read_text(key: str, path: str) -> str:
    """A text file of at most 1 MiB. Raises BadInput."""
    try:
        with open_regular(Path(path)) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{key}={one_line(path)}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise BadInput(f"{key}={one_line(path)}: larger than {MOST_BYTES:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{key}={one_line(path)}: not valid UTF-8 at byte {error.start}") from None


def print_answers(trained: TrainedModel, config: SampleConfig, jobs: list[Request], first: int) -> None:
    """Print the texts from `first` on that are drawn together: a single one as it comes, several when all are whole."""
    batch = jobs[first : first + config.batch_size]
    texts = [prompt for prompt, _, _ in batch]
    numbers = list(range(first, first + len(batch)))
    titles = [f"--- sample {number + 1} of {len(jobs)}\n" if len(jobs) > 1 else "" for number in numbers]
    alone = len(batch) == 1
    if alone:
        write_stdout(titles[0] + texts[0], config.stream)
    for row, piece in generate_answers(trained, config, [ids for _, ids, _ in batch], numbers):
        if alone:
            write_stdout(piece, config.stream)
        else:
            texts[row] += piece
    write_stdout(
        "\n" if alone else "".join(f"{title}{text}\n" for title, text in zip(titles, texts, strict=True)), True
    )


def write_lines(trained: TrainedModel, config: SampleConfig, jobs: list[Request], out: str) -> int:
    """Append {"prompt", "sample", "text", "model", "seed"} of every text to a file, as they are finished."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with Path(out).open("a", encoding="utf-8") as file:
        for first in range(0, len(jobs), config.batch_size):
            batch = jobs[first : first + config.batch_size]
            texts = [""] * len(batch)
            numbers = range(first, first + len(batch))
            for row, piece in generate_answers(trained, config, [ids for _, ids, _ in batch], numbers):
                texts[row] += piece
            for (prompt, _, number), text in zip(batch, texts, strict=True):
                about = {"prompt": prompt, "sample": number, "text": text, "model": trained.name, "seed": config.seed}
                file.write(json.dumps(about, ensure_ascii=False) + "\n")
            file.flush()
    print(f"{len(jobs)} texts appended to {out}")
    return 0


def run_interactive(trained: TrainedModel, config: SampleConfig) -> int:
    """Ask for prompts until there are no more. Ctrl-C ends an answer, or, while asked, the whole."""
    if sys.stdin.isatty():
        how = "each prompt by itself; Ctrl-C ends an answer, Ctrl-D the session"
        print(f"{trained.name}, task {config.task.name}, {how}", file=sys.stderr)
    for number, text in enumerate(read_typed_prompts()):
        try:
            check_special_tokens(trained, config, [text])
            ids = encode_prompt(trained, config.model_copy(update={"truncate": True}), text)
            for _, piece in generate_answers(trained, config, [ids], [number]):
                write_stdout(piece, config.stream)
            write_stdout("\n", True)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            write_stdout("\n", True)
    return 0


def read_typed_prompts() -> Iterator[str]:
    """What a person types, line by line; the mark to type at is shown only to a person."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # told as not UTF-8 when it is encoded
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def write_stdout(text: str, flush: bool) -> None:
    """Print text as it is into a file or a pipe, and without power over a terminal."""
    sys.stdout.write("\n".join(map(escape_control_chars, text.split("\n"))) if sys.stdout.isatty() else text)
    if flush:
        sys.stdout.flush()
