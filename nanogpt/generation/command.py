"""`python sample.py`: generate text with a trained model, on the console or as JSON lines."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nanogpt.config import SampleConfig, ServeConfig
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
MOST_BYTES = 2**20  # size limit of a prompt file


def sample(config: SampleConfig) -> int:
    """Print `num_samples` answers to each prompt. Raises BadInput, BadCheckpoint, BadData, BadEnvironment."""
    config = resolve_config(config)
    check_output_file("out", config.out)
    texts = [] if config.interactive else read_prompts(config)  # before loading the model, which may take a while
    trained = load_for_decoding(config, config.batch_size)
    check_special_tokens(trained, config, texts)
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


def load_for_decoding(config: SampleConfig | ServeConfig, rows: int) -> TrainedModel:
    """Return the model of a config, made ready to decode `rows` texts at a time. Raises LabError."""
    device = find_device(config.device, "device")
    trained = load_trained(config, device)
    attention_used(config.attention, Compute(device, config.precision, ""), trained.model.config, section="")
    if config.precision == "bf16":
        trained.model.bfloat16()
    else:
        speed_up_cpu_decoding(trained.model, rows)
    return trained


def check_special_tokens(trained: TrainedModel, config: SampleConfig, texts: list[str]) -> None:
    """Raise BadInput for special_tokens=true without such tokens; print a note if a prompt spells one as plain text."""
    names = special_tokens(trained.tokenizer)
    if config.special_tokens and not names:
        raise BadInput("special_tokens=true: the model's tokenizer has no special tokens")
    spelled = [name for name in names if any(name in text for text in texts)]
    if not config.special_tokens and spelled:
        why = "plain text in the prompt; special_tokens=true makes it a special token"
        print(f"note: {one_line(spelled[0])} is {why}", file=sys.stderr)


def describe(trained: TrainedModel, config: SampleConfig) -> str:
    """Return a line with the model, its step and loss, and the sampling parameters."""
    about = [one_line(trained.name)]
    about += [] if trained.step is None else [f"{config.checkpoint} checkpoint, step {trained.step:,}"]
    about += [] if trained.val_loss is None else [f"val {trained.val_loss:.4f} nats/token"]
    keys = ["temperature", "seed", "max_new_tokens"]
    rare = ("top_k", "top_p", "min_p", "repetition_penalty", "precision")
    keys += [key for key in rare if getattr(config, key) != SampleConfig.model_fields[key].default]
    return "  ".join([*about, *(f"{key}={getattr(config, key)}" for key in keys)])


Request = tuple[str, list[int], int]
"""A prompt, its ids, and the index of the text among those of this prompt."""


def resolve_config(config: SampleConfig) -> SampleConfig:
    """Return the config with `stop` added to its task and with real newlines. Raises BadInput for conflicting keys."""
    if config.prompt and config.prompts is not None:
        raise BadInput(f"prompts={one_line(config.prompts)}: prompt={one_line(config.prompt)} is given too; give one")
    if config.interactive and (config.prompt or config.prompts is not None or config.out is not None):
        raise BadInput("interactive=true: reads prompts from the terminal; prompt, prompts and out can't be given too")
    stop = (*config.task.stop, *([] if config.stop is None else [unescape_newlines(config.stop)]))
    task = config.task.model_copy(update={"stop": stop, "template": unescape_newlines(config.task.template)})
    return config.model_copy(update={"task": task})


def unescape_newlines(text: str) -> str:
    """Replace \\n and \\t, which are easier to type in a shell, by newlines and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def read_prompts(config: SampleConfig) -> list[str]:
    """Return the prompts of the config. Raises BadInput for a file that can't be read."""
    if config.prompts is None:
        text = config.prompt
        return [read_text("prompt", text.removeprefix(FILE)) if text.startswith(FILE) else text]
    lines = [line for line in read_text("prompts", config.prompts).splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"prompts={one_line(config.prompts)}: no prompts in the file")
    if not config.prompts.endswith(".jsonl"):
        return lines
    return [parse_prompt(line, config.prompts, number) for number, line in enumerate(lines, 1)]


def parse_prompt(line: str, path: str, number: int) -> str:
    """Return the prompt in a JSON line. Raises BadInput."""
    row: object = None
    with suppress(ValueError):
        row = from_json(line)
    text: object = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'prompts={one_line(path)}: line {number} is not a JSON object with a text "prompt"')
    return text


def read_text(key: str, path: str) -> str:
    """Return the content of a text file of at most 1 MiB. Raises BadInput."""
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
    """Print the batch of texts from `first` on: a single text as it is generated, several when all are complete."""
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
    """Append {"prompt", "sample", "text", "model", "seed"} of every text to a file, batch by batch."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with Path(out).open("a", encoding="utf-8") as file:
        for first in range(0, len(jobs), config.batch_size):
            batch = jobs[first : first + config.batch_size]
            texts = [""] * len(batch)
            numbers = range(first, first + len(batch))
            for row, piece in generate_answers(trained, config, [ids for _, ids, _ in batch], numbers):
                texts[row] += piece
            for (prompt, _, number), text in zip(batch, texts, strict=True):
                row = {"prompt": prompt, "sample": number, "text": text, "model": trained.name, "seed": config.seed}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    print(f"{len(jobs)} texts appended to {out}")
    return 0


def run_interactive(trained: TrainedModel, config: SampleConfig) -> int:
    """Answer prompts from standard input. Ctrl-C ends an answer, or the session if no answer is being generated."""
    if sys.stdin.isatty():
        how = "prompts are independent of each other; Ctrl-C ends an answer, Ctrl-D the session"
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
    """Yield lines of standard input; on a terminal, after a `> `."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # encode_prompt reports invalid UTF-8
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def write_stdout(text: str, flush: bool) -> None:
    """Print text; on a terminal with its control characters escaped."""
    sys.stdout.write("\n".join(map(escape_control_chars, text.split("\n"))) if sys.stdout.isatty() else text)
    if flush:
        sys.stdout.flush()
