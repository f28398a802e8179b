"""Text is told in whole characters, and never past a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models

from serving_client.engine.batching.detokenizer import TextStream


@pytest.fixture
def decoder() -> Tokenizer:
    """Token id = byte."""
    tokenizer = Tokenizer(models.BPE(vocab={f"<0x{byte:02X}>": byte for byte in range(256)}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def streamed(decoder: Tokenizer, text: bytes, stops: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    stream = TextStream(decoder, list(b"prompt"), stops)
    pieces = []
    for byte in text:
        stop = stream.add(byte)
        pieces.append(stream.take())
        if stop:
            return pieces, stop
    stream.finish()
    return [*pieces, stream.take()], None


def test_a_character_of_several_bytes_is_told_once_and_whole(decoder: Tokenizer) -> None:
    pieces, _ = streamed(decoder, "a€b".encode())
    assert pieces == ["a", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_is_not_lost(decoder: Tokenizer) -> None:
    pieces, _ = streamed(decoder, "a€".encode()[:-1])
    assert "".join(pieces) == "a\ufffd\ufffd"


def test_nothing_of_a_stop_string_is_told(decoder: Tokenizer) -> None:
    pieces, stop = streamed(decoder, b"one END two", ("END", "###"))
    assert ("".join(pieces), stop) == ("one ", "END")


def test_what_only_looks_like_a_stop_string_is_told_later(decoder: Tokenizer) -> None:
    pieces, stop = streamed(decoder, b"an ENtry", ("END",))
    assert ("".join(pieces), stop) == ("an ENtry", None)
    assert pieces[3:5] == ["n", " "], "held back by two characters"


def test_the_earliest_of_two_stop_strings_wins(decoder: Tokenizer) -> None:
    pieces, stop = streamed(decoder, b"a\nb#", ("#", "\n"))
    assert ("".join(pieces), stop) == ("a", "\n")
