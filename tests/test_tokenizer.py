"""Every tokenizer gives back what it was given, and agrees with its reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt import tokenizer as tokenizers
from nanogpt.errors import BadData, BadInput
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, build, decode, from_spec

TEXTS = ["the cat sat on the mat\n" * 20, "def f(x):\n    return x ** 2\n", "naïve café — 日本語 🙂\n"]
BPE = BPETokenizer.train(TEXTS, 400)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(unicode_text)
def test_byte_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert decode(tokenizer, tokenizer.encode(text)) == text
    assert tokenizer.encode(text).tolist() == list(text.encode())


@given(st.text("abc \n"), st.text("abcdef \n"))
def test_char_round_trip(text: str, more: str) -> None:
    tokenizer = CharTokenizer(text + more + "x")
    assert decode(tokenizer, tokenizer.encode(text)) == text


@given(unicode_text)
@settings(max_examples=200)
def test_bpe_round_trip(text: str) -> None:
    assert decode(BPE, BPE.encode(text)) == text


def test_bpe_agrees_with_the_library() -> None:
    """Our table of bytes against the decoder of Hugging Face tokenizers, and a stored copy against the first."""
    again = from_spec(BPE.spec())
    for text in TEXTS:
        ids = BPE.encode(text)
        assert BPE.inner.decode(ids.tolist()) == text == decode(BPE, ids)
        assert again.encode(text).tolist() == ids.tolist()
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(BPE)
    assert len(BPE.tokens) <= 400


def test_special_text_is_plain_text() -> None:
    text = "a <|endoftext|> b"
    assert decode(BPE, BPE.encode(text)) == text
    assert BPE.end_of_text not in BPE.encode(text)


def test_chars_are_numbered_in_code_point_order() -> None:
    """As nanoGPT's prepare.py numbers them: sorted(set(text))."""
    text = "hello, wörld 🙂\n"
    tokenizer = build("char", [text])
    expected = {char: i for i, char in enumerate(sorted(set(text)))}
    assert tokenizer.encode(text).tolist() == [expected[char] for char in text]


def test_unknown_characters_are_named_with_their_places() -> None:
    with pytest.raises(BadInput) as error:
        CharTokenizer("abc").encode("abxaxéyzqr")
    assert "'x' at 2, 'é' at 5, 'y' at 6, 'z' at 7, 'q' at 8" in str(error.value)
    assert "'r'" not in str(error.value)


@pytest.mark.usefixtures("gpt2_files")
def test_gpt2_is_tiktokens() -> None:
    import tiktoken

    ours, theirs = build("gpt2", []), tiktoken.get_encoding("gpt2")
    for text in [*TEXTS, "<|endoftext|>"]:
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
        assert decode(ours, ours.encode(text)) == text
    assert len(ours.tokens) == 50_257 and ours.end_of_text == 50_256


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab🙂"), ByteTokenizer(), BPE], ids=["char", "byte", "bpe"])
def test_token_bytes_are_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    text = "ab🙂ba"
    assert sum(len(tokenizer.tokens[i]) for i in tokenizer.encode(text)) == len(text.encode())


@pytest.mark.parametrize("spec", [{}, {"kind": "pickle"}, {"kind": "char"}, {"kind": "bpe", "tokenizers": {"a": 1}}])
def test_foreign_specs_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(BadData):
        from_spec(spec)
