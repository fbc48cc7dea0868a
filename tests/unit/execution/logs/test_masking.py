"""The masker finds every form of a secret, however the stream is cut, and masks nothing else."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.execution.logs import masking
from agent.execution.logs.masking import LONGEST, LONGEST_RUN, MASK, MOST_FORMS, Masker

SECRET = 'pä$s w/o<rd>&"quote"\\+=%'
TOKEN = b"ghp_0123456789abcdefABCDEF"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\r\nAQEFAASCBKcwggSjAgEAAoIB\nab\n-----END KEY-----\n"


def stream(masker: Masker, text: bytes, cuts: list[int]) -> bytes:
    out, done = b"", 0
    for cut in [*sorted(cuts), len(text)]:
        out += masker.feed(text[done:cut])
        assert masker.buffered <= LONGEST_RUN + 2 * LONGEST
        done = max(done, cut)
    return out + masker.flush()


def encodings(value: bytes) -> list[bytes]:
    forms = [value, quote(value).encode(), quote(value, safe="").encode(), quote_plus(value).encode()]
    forms += [json.dumps(value.decode(), ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms += [encode(b"x" * before + value + b"y" * 5) for before in range(4)]
        forms.append(encode(value))
    return forms


@pytest.mark.parametrize("form", encodings(SECRET.encode()))
def test_every_form_is_masked(form: bytes) -> None:
    out = Masker({"S": SECRET}).mask(b"before " + form + b" after")
    assert out.startswith(b"before ")
    assert out.endswith(b" after")
    assert MASK in out
    # A few characters at both ends of the base64 remain, because they also encode text around the secret.
    assert len(out) - len(b"before  after") - len(MASK) <= 14


@pytest.mark.parametrize("alignment", [0, 1, 2])
def test_base64_inside_a_longer_text_shows_no_whole_byte(alignment: int) -> None:
    out = Masker([TOKEN]).mask(base64.b64encode(b"x" * alignment + TOKEN + b"tail"))
    before, _, after = out.partition(MASK)
    assert len(before) <= alignment + 1
    assert len(after) <= 8


@pytest.mark.parametrize("width", [64, 76])
def test_wrapped_base64_is_masked_line_by_line(width: int) -> None:
    value = bytes(range(33, 123)) * 2
    encoded = base64.b64encode(value + b"\n")
    lines = [encoded[start : start + width] for start in range(0, len(encoded), width)]
    out = Masker([value]).mask(b"\n".join(lines))
    assert [line.startswith(MASK) for line in out.split(b"\n")] == [True] * len(lines)
    assert max(map(len, out.split(b"\n"))) <= 7


def test_lines_of_a_secret_are_masked_alone_and_together() -> None:
    masker = Masker({"PEM": PEM})
    assert masker.mask(b"a " + PEM.encode() + b"b") == b"a ***\nb"
    assert masker.mask(b"> MIIEvQIBADANBgkqhkiG9w0B\r\n> ab\n") == b"> ***\r\n> ab\n"
    assert masker.mask(json.dumps(PEM).encode()) == b'"***\\n"'


def test_escapes_in_lower_case_are_masked() -> None:
    assert Masker({"S": "a/b+c d=é"}).mask(b"?q=a%2fb%2bc%20d%3d%c3%a9&") == b"?q=***&"


def test_surrounding_white_space_is_no_secret() -> None:
    masker = Masker({"S": "\n  secret\n"})
    assert masker.feed(b"the secret") == b"the ***"
    assert masker.feed(b"\n") == b"\n"


def test_short_values_are_named_and_not_masked() -> None:
    masker = Masker({"EMPTY": "", "PIN": " 123\n", "LONG": "1234"})
    assert masker.too_short == ("EMPTY", "PIN")
    assert masker.mask(b"123 1234") == b"123 ***"
    assert Masker([b"abc"]).too_short == ("0",)


def test_values_with_too_many_forms_are_named() -> None:
    lines = "\n".join(f"line number {number}" for number in range(MOST_FORMS))
    masker = Masker({"MANY": lines, "TOKEN": "late-token"})
    assert masker.too_long == ("MANY", "TOKEN")
    assert len(masker.forms) == MOST_FORMS


def test_a_long_value_is_masked_in_blocks() -> None:
    value = b"".join(b"%d," % (number * number) for number in range(2000))[: 3 * LONGEST + 5]
    masker = Masker([value])
    assert masker.longest <= LONGEST
    assert masker.mask(b"<" + value + b">") == b"<" + MASK * 4 + b">"


def test_binary_secrets_are_masked() -> None:
    assert Masker([b"\xff\x00\xfe\x01"]).mask(b"a\xff\x00\xfe\x01b") == b"a***b"


@pytest.mark.parametrize(
    ("secrets", "text", "out"),
    [
        (["abcd", "abcdef"], b"abcdefg abcdX", b"***g ***X"),
        (["abcdXY", "XYdefg"], b"1abcdXYdefg2", b"1***2"),
        (["abcd"], b"abcdabcd", b"******"),
        (["aaaa"], b"baaaaaab", b"b***b"),
        (["abcd1234567"], b"abcdabcd1234567", b"abcd***"),
        (["abcd"], b"abc abcd abc", b"abc *** abc"),
    ],
)
def test_overlaps(secrets: list[str], text: bytes, out: bytes) -> None:
    for cut in range(len(text) + 1):
        assert stream(Masker([each.encode() for each in secrets]), text, [cut]) == out


def test_only_the_beginning_of_a_secret_is_kept_back() -> None:
    masker = Masker([b"secret-value"])
    assert masker.feed(b"Continue? [y/N] ") == b"Continue? [y/N] "
    assert masker.feed(b"sec") == b""
    assert masker.buffered == 3
    assert masker.feed(b"ond") == b"second"
    assert masker.feed(b"secret-") == b""
    assert masker.flush() == b"secret-"
    assert masker.buffered == 0


def test_a_cut_hides_the_beginning_of_a_secret() -> None:
    masker = Masker([b"secret-value"])
    assert masker.feed(b"x secret-val") + masker.flush(hide=True) == b"x ***"
    assert masker.flush(hide=True) == b""


def test_a_masker_without_secrets_passes_everything() -> None:
    data = b"x" * 100
    masker = Masker({})
    assert masker.feed(data) is data
    assert masker.flush() == b""


def test_an_endless_run_is_not_kept_back_for_ever() -> None:
    masker = Masker([b"aaaa"])
    out = b"".join(masker.feed(b"a" * 1000) for _ in range(100))
    assert out == MASK * (len(out) // len(MASK))
    assert len(out) > len(MASK)
    text = b"a" * 100_000 + b"b"
    assert stream(Masker([b"aaaa"]), text, list(range(0, 100_000, 1000))) == Masker([b"aaaa"]).mask(text)


SECRETS = st.lists(st.text("ab/+\n", min_size=4, max_size=9).map(str.encode), min_size=1, max_size=4)
PIECES = st.lists(st.one_of(st.text("ab/+\n%", max_size=6).map(str.encode), st.integers(0, 3)), max_size=12)


def compose(secrets: list[bytes], pieces: list[bytes | int]) -> bytes:
    return b"".join(secrets[piece % len(secrets)] if isinstance(piece, int) else piece for piece in pieces)


@given(SECRETS, PIECES, st.lists(st.integers(0, 100), max_size=8))
def test_the_result_does_not_depend_on_the_cuts(
    secrets: list[bytes], pieces: list[bytes | int], cuts: list[int]
) -> None:
    text = compose(secrets, pieces)
    masker = Masker(secrets)
    whole = masker.mask(text)
    assert stream(Masker(secrets), text, cuts) == whole
    assert stream(Masker(secrets), text, list(range(len(text)))) == whole
    for form in masker.forms:
        assert form not in whole.replace(MASK, b"\0")


@given(SECRETS, PIECES)
def test_a_new_masker_continues_where_nothing_is_kept_back(secrets: list[bytes], pieces: list[bytes | int]) -> None:
    text = compose(secrets, pieces)
    masker = Masker(secrets)
    whole = masker.mask(text)
    out = b""
    for index in range(len(text)):
        out += masker.feed(text[index : index + 1])
        position = index + 1 - masker.buffered
        assert out + Masker(secrets).mask(text[position:]) == whole


@given(SECRETS, PIECES, st.lists(st.integers(0, 100), max_size=4))
def test_long_runs_are_cut_at_the_same_places(secrets: list[bytes], pieces: list[bytes | int], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "LONGEST_RUN", 6)
        text = compose(secrets, pieces * 3)
        assert stream(Masker(secrets), text, cuts) == Masker(secrets).mask(text)


@given(st.integers(0, 200), st.integers(0, 60))
def test_many_long_forms_are_found_at_any_place(before: int, which: int) -> None:
    secrets = [b"%04d-%s" % (number, b"abcdefghijklmnopqrstuvwxyz"[number % 5 :]) for number in range(61)]
    masker = Masker(secrets)
    assert masker.sieve.words
    text = b"." * before + secrets[which] + b"!"
    assert masker.mask(text) == b"." * before + b"***!"
    assert stream(masker, text, list(range(len(text)))) == b"." * before + b"***!"
