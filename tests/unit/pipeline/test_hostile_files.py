"""Pipeline files, secrets files and options with values that no container, clock or message can hold.

The agent accepts each file, or refuses it with an error that names the line and the key. It raises no other exception.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.cli.options import parse_assignments
from agent.pipeline.file_errors import MAX_PROBLEMS, PipelineFileError
from agent.pipeline.overrides import OptionError, with_env
from agent.pipeline.parser import load, parse
from agent.pipeline.secret_values import SecretsError, find_secrets
from tests.fakes.steps import within

if TYPE_CHECKING:
    from agent.pipeline.parser import Pipeline

# The largest number of executed lines of Python (steps) for an empty file, and for each byte of a file.
STEPS, STEPS_PER_BYTE = 20_000, 600
HEAD = "configuration: {container: i}\n"
MINIMAL = f"{HEAD}commands: [x]\n"


def read_bytes(data: bytes, folder: Path) -> Pipeline:
    """Read a file with these bytes. Check that the number of executed lines of Python is bounded by the file's size."""
    file = folder / "p.yaml"
    file.write_bytes(data)
    return within(STEPS + STEPS_PER_BYTE * len(data), lambda: load(file))


def check_sendable(pipeline: Pipeline) -> None:
    """Check that every text of an accepted pipeline can be sent in a gRPC message."""
    for action in pipeline.actions:
        texts = (action.name, action.image, *action.commands, *action.env, *action.env.values())
        assert all(text.encode() is not None and "\0" not in text for text in texts)
        assert action.timeout is None or 0 < action.timeout < 1e10


def test_an_emoji_as_json_writes_it_is_one_character() -> None:
    text = json.dumps({"configuration": {"container": "i"}, "env": {"E": "🦀"}, "commands": ["echo 😀"]})
    assert r"\ud83e\udd80" in text
    (action,) = parse(text, "p").actions
    assert (action.env["E"], action.commands) == ("🦀", ("echo 😀",))


REFUSED = [
    (MINIMAL + 'env: {A: "\\ud83d"}', "p:3: env.A: must not contain half of a surrogate pair"),
    (MINIMAL + 'env: {"\\udd80": x}', "p:3: env: must not contain half of a surrogate pair"),
    (MINIMAL + '# \nenv: {A: "\\UFFFFFFFF"}', "p:4: is not valid YAML: a code point or number is out of range"),
    (MINIMAL + 'env: {A: "\\U00110000"}', "p:3: is not valid YAML: a code point or number is out of range"),
    (MINIMAL + "env: {A: \x01}", "p:3: is not valid YAML: the character U+0001 is not allowed"),
    (MINIMAL + 'env: {A: "\\0"}', "p:3: env.A: must not contain a NUL character"),
    ('name: "a\\0"\n' + MINIMAL, "p:1: name: must not contain a NUL character"),
    (
        MINIMAL + f"timeout: {'9' * 30}d",
        "p:3: timeout: 999999999999999999999999999999d is not a duration",
    ),
    (
        MINIMAL + f"timeout: {'9' * 5000}",
        "p:3: timeout: '99999999999999999999999999999999999999999999999999' is not",
    ),
    (MINIMAL + f"resources: {{memory: {'9' * 5000}}}", "p:3: resources.memory: '99"),
    (MINIMAL + f"repo: {{url: u, depth: {'9' * 5000}}}", "p:3: repo.depth: must be a number of commits"),
    (HEAD + "commands: !reference [.setup, script]", "p:2: the tag '!reference' is not known"),
    (MINIMAL + "env: {A: !vault x}", "p:3: the tag '!vault' is not known"),
    (MINIMAL + "env: {A: !!binary aGk=}", "p:3: the tag '!!binary' is not known"),
    (MINIMAL + "env: !!python/object:os.system {}", "p:3: the tag '!!python/object:os.system' is not known"),
    (HEAD + "commands: &a [*a]", "p:2: contains itself by an alias"),
    (f"%YAML 1.{'9' * 5000}\n---\n{MINIMAL}", "p:1: is not valid YAML: a code point or number is out of range"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_value_that_nothing_can_hold_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(text, "p")
    assert str(wrong.value).startswith(message)
    assert len(str(wrong.value)) < 900


def test_aliases_cannot_multiply_a_small_file() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(PipelineFileError, match=r"p:5: has more than 100000 values"):
        within(STEPS + STEPS_PER_BYTE * 2000, lambda: parse("\n".join(lines), "p"))
    long = "\n".join([f"t: &t {'x' * 500_000}", f"l: [{', '.join(['*t'] * 1000)}]"])
    with pytest.raises(PipelineFileError, match=r"p:2: has more than 8388608 characters"):
        parse(long, "p")


FAMILIES = [
    pytest.param("[" * 4000, id="lists"),
    pytest.param("{a: " * 1000, id="mappings"),
    pytest.param("? " * 2000, id="keys"),
    pytest.param("- " * 2000, id="items"),
    pytest.param(f"[{('[' * 15 + ']' * 15 + ',') * 100}]", id="many lists"),
    pytest.param(f"[{('[' * 200 + ']' * 200 + ',') * 10}]", id="deep lists"),
    pytest.param(MINIMAL + "env: {" + ", ".join(f"A{number}: x" for number in range(400)) + "}", id="variables"),
    pytest.param("\n".join(f"artefact{number}: x" for number in range(300)), id="unknown keys"),
    pytest.param(MINIMAL + f"artefacts{'s' * 4000}: x", id="a long unknown key"),
    pytest.param(MINIMAL + f'env: {{A: "{chr(92)}u0041{chr(92)}ud83d" }}' + "\n#" * 2000, id="escapes"),
    pytest.param("&a " * 2000, id="anchors"),
    pytest.param("\n" * 4000 + MINIMAL, id="empty lines"),
]


@pytest.mark.parametrize("text", FAMILIES)
def test_the_work_grows_with_the_bytes_of_the_file(text: str, tmp_path: Path) -> None:
    try:
        check_sendable(read_bytes(text.encode(), tmp_path))
    except PipelineFileError as error:
        refused = error
    else:
        return
    assert len(refused.problems) <= MAX_PROBLEMS
    assert len(str(refused)) < 900 * len(refused.problems)


def test_needs_that_form_a_dense_graph_cost_steps_by_their_number() -> None:
    actions = [
        f"  a{n}: {{configuration: {{container: i}}, commands: [x], needs: [{', '.join(f'a{m}' for m in range(n))}]}}"
        for n in range(40)
    ]
    text = "\n".join(["actions:", *actions])
    assert len(within(STEPS + STEPS_PER_BYTE * len(text), lambda: parse(text, "p")).actions) == 40


def test_aliases_of_a_usual_file_are_accepted() -> None:
    actions = "\n".join(f"  a{n}: {{configuration: *c, commands: *s}}" for n in range(200))
    text = f"actions:\n  first: {{configuration: &c {{container: i}}, commands: &s [x, y]}}\n{actions}\n"
    assert len(parse(text, "p").actions) == 201


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read_bytes(b"\xef\xbb\xbf" + MINIMAL.encode(), tmp_path).actions[0].commands == ("x",)
    file = tmp_path / "secrets"
    file.write_bytes(b"\xef\xbb\xbfTOKEN=v\r\nB=1\xe2\x80\xa82\x0c3\n")
    assert find_secrets(["TOKEN", "B"], {}, file) == {"TOKEN": "v", "B": "1\u20282\x0c3"}


def test_a_file_name_that_is_not_utf_8_can_be_sent(tmp_path: Path) -> None:
    file = tmp_path / "caf\udce9.yaml"
    file.write_text(f"actions: {{a: {{{HEAD.strip()}, commands: [x]}}}}")
    pipeline = load(file)
    assert (pipeline.name, pipeline.source.encode()) == ("caf�", f"{tmp_path}/caf�.yaml".encode())


@pytest.mark.parametrize("endless", ["/dev/zero", "/dev/urandom"])
def test_an_endless_file_is_refused(endless: str) -> None:
    with pytest.raises(PipelineFileError):
        load(Path(endless))
    with pytest.raises(SecretsError):
        find_secrets(["A"], {}, Path(endless))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"OK=1\nTOKEN=caf\xe9-keystore\n", ":2: the value of TOKEN is not UTF-8 text"),
        (b"TOKEN=a\0b\n", ":1: the value of TOKEN contains a NUL character"),
        (b"\nT\xffKEN=a\n", ":2: is not NAME=VALUE"),
        (b"TOKEN=" + b"x" * (2 << 20), "the values of the secrets have 2097152 bytes; at most 1048576"),
    ],
)
def test_a_secret_that_no_variable_holds_is_refused_without_its_value(
    tmp_path: Path, data: bytes, message: str
) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(data)
    with pytest.raises(SecretsError) as wrong:
        find_secrets(["TOKEN"], {"TOKEN": "x"}, file)
    assert message in str(wrong.value)
    assert "keystore" not in str(wrong.value)


def test_a_value_of_the_environment_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(SecretsError, match="the secret TOKEN is not UTF-8 text in the environment"):
        find_secrets(["TOKEN"], {"TOKEN": "caf\udce9"})
    with pytest.raises(OptionError, match="--env: the value of A is not UTF-8 text"):
        with_env(parse(MINIMAL, "p"), {"A": "\udcff"})


@pytest.mark.parametrize(
    "value", ["[", "2026-99-99", '"\\UFFFFFFFF"', "!!int x", "[" * 5000, "&a [*b]", "!x y", "{[]: 1}"]
)
def test_a_setting_that_is_not_yaml_is_an_error_of_the_user(value: str) -> None:
    with pytest.raises(click.UsageError, match=r"--set agent\.id"):
        parse_assignments((f"agent.id={value}",))


# ---- any bytes at all

WORDS = [
    b"actions",
    b"configuration",
    b"container",
    b"commands",
    b"env",
    b"secrets",
    b"repo",
    b"timeout",
    b"name",
    b"x",
]
SYNTAX = [
    b": ",
    b"\n",
    b"  ",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"!t ",
    b"!!int ",
    b'"',
    b"'",
    b"|\n",
    b"? ",
]
BYTES = [b"\\ud83d", b"\\UFFFFFFFF", b"\\0", b"\xef\xbb\xbf", b"\xff", b"\0", b"\xc2\x85", b"\xe2\x80\xa8", b"\t", b"#"]
VALUES = [
    b"<<: ",
    b"%YAML 9.9\n",
    b"---\n",
    b"9" * 50,
    b"1e999",
    b".inf",
    b"1_0:60",
    b"2026-99-99",
    b"~",
    b"=",
    b">-\n",
]
PIECES = st.sampled_from([*WORDS, *SYNTAX, *BYTES, *VALUES])
ANY = st.one_of(
    st.binary(max_size=200),
    st.lists(PIECES, max_size=60).map(b"".join),
    st.lists(PIECES).map(lambda parts: MINIMAL.encode() + b"env: {A: " + b"".join(parts) + b"}"),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=ANY)
@example(data=b"a: !<")
@example(data=b"%TAG ! \xff")
def test_any_bytes_are_a_pipeline_or_an_error_of_the_file(tmp_path: Path, data: bytes) -> None:
    try:
        pipeline = read_bytes(data, tmp_path)
    except PipelineFileError:
        return
    check_sendable(pipeline)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from([b"A=", b"\n", b"\r", b"#", b"\xff", b"\0", b"x"])).map(b"".join),
    ),
    environment=st.dictionaries(
        st.sampled_from("AB"), st.binary(max_size=9).map(lambda b: b.decode("utf-8", "surrogateescape"))
    ),
)
def test_any_bytes_are_secrets_or_an_error_of_the_file(
    tmp_path: Path, data: bytes, environment: dict[str, str]
) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(data)
    try:
        found = find_secrets(["A"], environment, file)
    except SecretsError:
        return
    assert "\0" not in found["A"] or "A" in environment
    assert found["A"].encode() is not None
