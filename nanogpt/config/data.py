"""Keys of `data`: the text and its tokens."""

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from nanogpt.config.types import Name
from nanogpt.fields import fixed, free
from nanogpt.schema import ConfigModel, field_error


class DataConfig(ConfigModel):
    """Source text, tokenizer and split."""

    name: Name = free("custom", "label; first part of the prepared folder's name")
    corpus: Literal["pystdlib", "shakespeare", "hub", "text"] = fixed(
        "pystdlib", "pystdlib: Python's own source code; hub: a data set of the Hugging Face hub; text: your files"
    )
    source: str | None = fixed(
        None, "local file, folder, glob, or folder of .bin token files; null: the corpus itself, downloaded if needed"
    )
    source_sha256: str | None = fixed(
        None,
        "SHA-256 that the content of data.source must have; null: computed at the start",
        pattern=r"^[0-9a-f]{64}$",
        allowed="64 hexadecimal digits",
        earlier=None,
    )
    hub: str | None = fixed(None, "corpus=hub: data set id on the Hugging Face hub; null: none")
    hub_config: str | None = fixed(None, "corpus=hub: configuration (subset) of the data set; null: its default")
    text_column: str = fixed(
        "text", "column that holds the text, in corpus=hub and in files with rows (jsonl, csv, parquet …)", min_length=1
    )
    on_bad_row: Literal["stop", "skip"] = fixed(
        "stop", "when a row has no text: end the preparation, or skip and count the row", earlier="stop"
    )
    separator: str | None = fixed(
        None,
        "text between documents of the source, \\n: newline; '': none; null: <|endoftext|> if the tokenizer has it",
        literal=True,
        earlier=None,
    )
    tokenizer: Literal["char", "byte", "bpe", "gpt2"] = fixed(
        "char", "char: characters; byte: bytes; bpe: BPE trained on the corpus; gpt2: OpenAI's BPE"
    )
    vocab_size: int | None = fixed(
        None, "tokenizer=bpe: size of the vocabulary to train; null: none", ge=257, le=1_000_000
    )
    val_fraction: float = fixed(
        0.05, "fraction of the text held out for validation, if the source has no validation file", gt=0, lt=1
    )
    split: Literal["auto", "val_fraction"] = fixed(
        "auto", "auto: use files named train, val or test as such; val_fraction: always split all files", earlier="auto"
    )
    order: Literal["permutation", "random"] = fixed(
        "permutation", "permutation: epochs without replacement; random: random crops with replacement, as in nanoGPT"
    )
    dir: str = free("data", "folder for prepared data sets", min_length=1)
    workers: int | None = free(None, "processes that tokenize; null: one per core", ge=1, le=1024)
    verify: Literal["auto", "full", "size"] = free(
        "auto", "how to check shards before training: by hash (full) or size; auto: by hash up to 2 GB"
    )

    def keys_without_effect(self) -> set[str]:
        """Return `source` where its digest is known: content identifies a source better than a path."""
        return {"source"} if self.source_sha256 is not None else set()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise field_error("data.vocab_size", None, "data.tokenizer=bpe needs a size, e.g. data.vocab_size=1024")
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            raise field_error(
                "data.vocab_size", self.vocab_size, f"data.tokenizer={self.tokenizer} has a fixed vocabulary"
            )
        if self.corpus == "pystdlib" and self.source is not None:
            raise field_error(
                "data.source", self.source, "data=pystdlib is this Python's own library; files of yours: data=text"
            )
        if self.corpus == "text" and self.source is None:
            raise field_error("data.source", None, "data=text needs your files, e.g. data.source='notes/*.txt'")
        if self.source_sha256 is not None and self.source is None:
            raise field_error("data.source_sha256", self.source_sha256, "is of data.source; give that too")
        if self.corpus == "hub" and self.hub is None and self.source is None:
            raise field_error("data.hub", None, "needs a data set id, or data.source=FILES")
        return self
