"""The masker finds every form of a secret, however the stream is cut, and masks nothing else."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.execution.logs import masking
from agent.execution.logs.forms import LONGEST, LONGEST_VALUE
from agent.execution.logs.masking import MASK, MOST_FORMS, Masker

SECRET = 'pä$s w/o<rd>&"quote"\\+=%'
TOKEN = b"ghp_0123456789abcdefABCDEF"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\r\nAQEFAASCBKcwggSjAgEAAoIB\nab\n-----END KEY-----\n"


def stream(masker: Masker, text: bytes, cuts: list[int]) -> bytes:
    out, done = b"", 0
    for cut in [*sorted(cuts), len(text)]:
        out += masker.feed(text[done:cut])
        assert len(masker.kept) < LONGEST
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
    # The masker leaves a few characters at both ends of the encoded secret, because these characters also encode parts
    # of the text around the secret.
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


def test_a_long_value_is_one_mask_and_its_blocks_are_masked_alone() -> None:
    value = b"".join(b"%d," % (number * number) for number in range(2000))[: 3 * LONGEST + 5]
    masker = Masker([value])
    assert max(map(len, masker.forms)) <= LONGEST
    assert masker.mask(b"<" + value + b">") == b"<***>"
    assert stream(Masker([value]), b"<" + value + b">", list(range(len(value)))) == b"<***>"
    assert masker.mask(b"<" + value[: LONGEST + 10] + b">").startswith(b"<***")


def test_a_value_that_is_too_long_is_named_and_its_beginning_masked() -> None:
    value = "x7" * LONGEST_VALUE
    assert Masker({"HUGE": value}).too_long == ("HUGE",)
    assert Masker({"HUGE": value}).mask(value.encode()) == MASK


def test_the_values_of_a_dotenv_file_are_masked_alone() -> None:
    blob = "DSN=https://k3y-1234567@host/1\nexport AUTH='sntrys_abcdef 123456'\nDEBUG=true\n# note\n"
    masker = Masker({"DOTENV": blob})
    text = b"dsn https://k3y-1234567@host/1 auth sntrys_abcdef 123456 true DEBUG=true"
    assert masker.mask(text) == b"dsn *** auth *** true ***"


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


def test_an_endless_run_is_one_mask_and_is_not_kept_in_memory() -> None:
    masker = Masker([b"aaaa"])
    assert b"".join(masker.feed(b"a" * 1000) for _ in range(100)) == b""
    assert masker.buffered == 100_000
    assert len(masker.kept) < LONGEST
    assert masker.feed(b" end") == b"*** end"
    assert masker.feed(b"a" * 5000) + masker.flush() == MASK
    masker.feed(b"a" * 5000)
    assert masker.flush(hide=True) == MASK


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


def reference(forms: tuple[bytes, ...], text: bytes) -> bytes:
    """Mask a text slowly, for comparison: try each form of a secret at each position.

    Occurrences that overlap become one mask. Occurrences that only touch become two masks.
    """
    hidden, joined = [False] * len(text), [False] * (len(text) + 1)
    for start in range(len(text)):
        for form in forms:
            if text.startswith(form, start):
                for index in range(start, start + len(form)):
                    hidden[index] = True
                    joined[index] |= index > start
    parts = [b"" if joined[at] else MASK if hidden[at] else text[at : at + 1] for at in range(len(text))]
    return b"".join(parts)


NASTY = st.lists(
    st.one_of(
        st.text("ab", min_size=4, max_size=12),
        st.builds(lambda unit, size: (unit * size)[:size], st.text("ab", min_size=1, max_size=4), st.integers(4, 40)),
        st.builds(lambda size, end: "a" * size + end, st.integers(4, 300), st.sampled_from(["", "b", "\nb", "=a"])),
    ).map(str.encode),
    min_size=1,
    max_size=6,
)
TEXTS = st.lists(
    st.one_of(
        st.builds(lambda unit, size: unit * size, st.sampled_from([b"a", b"ab", b"aab", b"b"]), st.integers(0, 60)),
        st.sampled_from([b"\n", b"c", b"=", b"a" * 300]),
        st.integers(0, 5),
    ),
    max_size=8,
)


@given(NASTY, TEXTS, st.lists(st.integers(0, 600), max_size=12))
def test_the_output_is_that_of_the_simple_reference(
    secrets: list[bytes], pieces: list[bytes | int], cuts: list[int]
) -> None:
    text = compose(secrets, pieces)[:700]
    masker = Masker(secrets)
    expected = reference(masker.forms, text)
    assert masker.mask(text) == expected
    assert stream(Masker(secrets), text, cuts) == expected


@given(NASTY, TEXTS, st.integers(1, 700))
def test_the_steps_are_bounded_by_the_bytes(secrets: list[bytes], pieces: list[bytes | int], size: int) -> None:
    text = compose(secrets, pieces) * 5
    masker = Masker(secrets)
    calls = 0
    for start in range(0, len(text), size):
        masker.feed(text[start : start + size])
        calls += 1
    # Each call of `feed` searches up to LONGEST bytes a second time, because the previous call held them back. It also
    # searches up to LONGEST bytes at the end of its text for the beginning of a secret.
    assert masker.finder.steps <= len(text) + 2 * LONGEST * calls


@pytest.mark.parametrize(
    "secrets",
    [
        ["a" * size for size in range(4, 154)],
        ["\n".join("a" * size for size in range(4, 204))],
        ["a" * size + "b" for size in range(4, 254)],
        ["aaaa"],
    ],
)
def test_secrets_that_match_everywhere_cost_no_more_steps_than_bytes(secrets: list[str]) -> None:
    masker = Masker([secret.encode() for secret in secrets])
    text = b"a" * 300_000
    for start in range(0, len(text), 16 * 1024):
        masker.feed(text[start : start + 16 * 1024])
    assert masker.finder.steps <= 1.1 * len(text)


def test_text_behind_the_budget_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [b"a" * size + b"b" for size in range(4, 100)]
    monkeypatch.setattr(masking, "BUDGET", -1.0)
    masker = Masker(secrets)
    out = masker.feed(b"plain text " + b"a" * 1000 + b" late " * 1000 + b"aaaaa")
    assert out.startswith(b"plain text aaaa")
    assert out.endswith(b"a***")
    assert b"late" not in out
    assert masker.over_budget
    assert masker.buffered == 5


@given(st.integers(0, 200), st.integers(0, 60))
def test_many_long_forms_are_found_at_any_place(before: int, which: int) -> None:
    secrets = [b"%04d-%s" % (number, b"abcdefghijklmnopqrstuvwxyz"[number % 5 :]) for number in range(61)]
    masker = Masker(secrets)
    assert masker.sieve.words
    text = b"." * before + secrets[which] + b"!"
    assert masker.mask(text) == b"." * before + b"***!"
    assert stream(masker, text, list(range(len(text)))) == b"." * before + b"***!"
