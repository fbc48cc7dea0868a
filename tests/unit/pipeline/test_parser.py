"""Pipeline files: what is read, and the exact message for each mistake."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from agent.domain.actions import ArtifactRules, Key, Repository, Resources, When
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.overrides import select_actions
from agent.pipeline.parser import load, parse
from agent.pipeline.secret_values import SecretsError, find_secrets
from agent.pipeline.structure.conditions import Condition

FULL = """
    name: build and test
    actions:
      build:
        configuration:
          container: debian:stable
        commands:
          - true
          - "echo a: b"
          - |
            cd x
            make
        env:
          PLAIN: text
          NUMBER: 1.10
          TRUTH: yes
          EMPTY: ""
        secrets: [TOKEN]
        repo: {url: https://example.org/r.git, ref: main, depth: 1, submodules: yes, lfs: true, credentials: git}
        resources: {cpu: 2, memory: 1Gi, ephemeral_storage: 500Mi}
        timeout: 1h30m
        artifacts:
          paths: [dist/*.whl]
          exclude: ["*.tmp"]
          when: always
      test:
        configuration: {container: debian:stable}
        commands: [make test]
        artifacts: none
        shell: {pipefail: true}
        timeout: 90
        needs: [build]
"""


def read(text: str) -> object:
    return parse(dedent(text), "ci.yaml")


def test_every_key_is_read() -> None:
    found = parse(dedent(FULL), "ci.yaml")
    build, test = found.actions
    assert (found.name, [action.name for action in found.actions]) == ("build and test", ["build", "test"])
    assert build.image == "debian:stable"
    assert build.commands == ("true", "echo a: b", "cd x\nmake\n")
    assert build.env == {"PLAIN": "text", "NUMBER": "1.10", "TRUTH": "yes", "EMPTY": ""}
    assert build.repository == Repository(
        "https://example.org/r.git", "main", 1, submodules=True, credentials="git", lfs=True
    )
    assert build.resources == Resources("2", "1Gi", "500Mi")
    assert (build.timeout, test.timeout) == (5400.0, 90.0)
    assert build.artifacts == ArtifactRules(("dist/*.whl",), ("*.tmp",), When.ALWAYS)
    assert test.artifacts.when is When.NEVER
    assert test.needs == ("build",)
    assert (build.pipefail, test.pipefail) == (None, True)
    assert test.action(Key("p/test"), {}).pipefail is True
    assert found.secrets == ("TOKEN",)


def test_an_action_gets_only_its_own_secrets() -> None:
    build, test = parse(dedent(FULL), "ci.yaml").actions
    known = {"TOKEN": "x", "OTHER": "y"}
    assert build.action(Key("p/build"), known).secrets == {"TOKEN": "x"}
    assert test.action(Key("p/test"), known).secrets == {}


def test_a_file_with_one_action() -> None:
    found = parse("name: hello\nconfiguration: {container: i}\ncommands: [ls]\n", "x.yaml")
    assert [(action.name, action.commands) for action in found.actions] == [("hello", ("ls",))]
    assert parse("configuration: {container: i}\ncommands: [ls]\n", "x.yaml").name == "action"


def test_anchors_can_be_used() -> None:
    found = parse("actions:\n  a: &a {configuration: {container: i}, commands: [ls]}\n  b: *a\n", "dir/nightly.yaml")
    assert (found.name, [action.image for action in found.actions]) == ("nightly", ["i", "i"])


A = "actions:\n  a:\n    configuration: {container: i}\n    commands: [x]\n"
NAMES = "1 to 64 letters, digits, '.', '_' and '-', beginning and ending with a letter or digit, no '..'"
WRONG = [
    ("", "ci.yaml:1: is empty; a pipeline has `name` and `actions`"),
    ("- a", "ci.yaml:1: must be a mapping with `name` and `actions`, not a list"),
    ("name: x", "ci.yaml:1: `actions` is missing: a mapping from names to actions"),
    ("name: x\nactions:", "ci.yaml:2: actions: must be a mapping from names to actions, not nothing"),
    ("name: x\nactions: {}", "ci.yaml:2: actions: must name at least one action"),
    ("name: [x]\n" + A, "ci.yaml:1: name: must be a name, not a list"),
    (
        A + "action:\n",
        "ci.yaml:5: action: there is no such key, did you mean 'actions'?; allowed: name, defaults, actions",
    ),
    (
        A + "    image: i\n",
        "ci.yaml:5: actions.a.image: there is no such key, write configuration: {container: IMAGE}; allowed: "
        "configuration, commands, env, secrets, repo, resources, class, timeout, artifacts, shell, services, retry, "
        "cache, needs, inputs, when, matrix",
    ),
    (
        A + "    rules: [db]\n",
        "ci.yaml:5: actions.a.rules: there is no such key, the agent has nothing like it; allowed: "
        "configuration, commands, env, secrets, repo, resources, class, timeout, artifacts, shell, services, retry, "
        "cache, needs, inputs, when, matrix",
    ),
    (
        "on: push\n" + A,
        "ci.yaml:1: on: there is no such key, this may be the file of another CI system (`sealci-agent init` writes an "
        "example); allowed: name, defaults, actions",
    ),
    (
        "actions:\n  a:\n    commands: [x]\n",
        "ci.yaml:2: actions.a: `configuration` is missing: {container: IMAGE}",
    ),
    (
        "actions:\n  a:\n    configuration: {container: i}\n",
        "ci.yaml:2: actions.a: `commands` is missing: a list of commands",
    ),
    (
        A.replace("commands", "command"),
        "ci.yaml:4: actions.a.command: there is no such key, did you mean 'commands'?; allowed: configuration, "
        "commands, env, secrets, repo, resources, class, timeout, artifacts, shell, services, retry, cache, needs, "
        "inputs, when, matrix",
    ),
    (
        A.replace("container: i", "image: i"),
        "ci.yaml:3: actions.a.configuration.image: there is no such key, write configuration: {container: IMAGE}; "
        "allowed: container",
    ),
    (
        A.replace("{container: i}", "{}"),
        "ci.yaml:3: actions.a.configuration: `container` is missing: the image to run in",
    ),
    (
        A.replace("container: i", "container: ''"),
        "ci.yaml:3: actions.a.configuration.container: must be an image such as debian:stable, not an empty text",
    ),
    (
        A.replace("container: i", "container: a b"),
        "ci.yaml:3: actions.a.configuration.container: must be an image such as debian:stable, not 'a b': "
        "it is not HOST/PATH:TAG or HOST/PATH@DIGEST",
    ),
    (
        A.replace("container: i", "container: 'Debian:12!'"),
        "ci.yaml:3: actions.a.configuration.container: must be an image such as debian:stable, not 'Debian:12!': "
        "'Debian' must be in lower case",
    ),
    (
        A.replace("container: i", "container: 'debian:12!'"),
        "ci.yaml:3: actions.a.configuration.container: must be an image such as debian:stable, not 'debian:12!': "
        "the tag '12!' may hold letters, digits, '.', '_', '-', at most 128",
    ),
    (A + "    commands: [y]\n", "ci.yaml:5: actions.a.commands: this key is set twice"),
    (A.replace("[x]", "[]"), "ci.yaml:4: actions.a.commands: must have at least one command"),
    (A.replace("[x]", "x"), "ci.yaml:4: actions.a.commands: must be a list of commands, not 'x'"),
    (
        A.replace("[x]", "\n    - ls\n    - ''"),
        "ci.yaml:6: actions.a.commands[2]: must be a command, not an empty text",
    ),
    (
        A.replace("[x]", "\n    - echo a: b"),
        "ci.yaml:5: actions.a.commands[1]: must be a command, not a mapping: quote a command that contains ': '",
    ),
    (A.replace("[x]", "[~]"), "ci.yaml:4: actions.a.commands[1]: must be a command, not nothing"),
    (A.replace("  a:", "  ../a:"), f"ci.yaml:2: actions.../a: is not an action name: {NAMES}"),
    (
        A.replace("  a:", "  a.log:"),
        "ci.yaml:2: actions.a.log: is not an action name: '.log' is reserved for log files",
    ),
    (
        A + "    env: {1X: y}\n",
        "ci.yaml:5: actions.a.env.1X: '1X' is not a variable name: letters, digits and '_', not beginning with a digit",
    ),
    (A + "    env: {X: }\n", 'ci.yaml:5: actions.a.env.X: must be a text (quote an empty one: ""), not nothing'),
    (A + "    env: {X: [1]}\n", 'ci.yaml:5: actions.a.env.X: must be a text (quote an empty one: ""), not a list'),
    (A + "    env: {X: y}\n    secrets: [X]\n", "ci.yaml:6: actions.a.secrets[1]: X is also set in `env`"),
    (A + "    secrets: [X, X]\n", "ci.yaml:5: actions.a.secrets[2]: X is listed twice"),
    (A + "    repo: {ref: main}\n", "ci.yaml:5: actions.a.repo: `url` is missing"),
    (
        A + "    repo: {url: u, depth: -1}\n",
        "ci.yaml:5: actions.a.repo.depth: must be a number of commits, 0 for all, not '-1'",
    ),
    (
        A + "    shell: {pipefail: maybe}\n",
        "ci.yaml:5: actions.a.shell.pipefail: must be true or false, not 'maybe'",
    ),
    (
        A + "    shell: {errexit: true}\n",
        "ci.yaml:5: actions.a.shell.errexit: there is no such key; allowed: pipefail",
    ),
    (
        A + "    repo: {url: u, submodules: maybe}\n",
        "ci.yaml:5: actions.a.repo.submodules: must be true, false or recursive, not 'maybe'",
    ),
    (
        A + "    repo: {url: u, lfs: recursive}\n",
        "ci.yaml:5: actions.a.repo.lfs: must be true or false, not 'recursive'",
    ),
    (
        A + "    resources: {cpus: 1}\n",
        "ci.yaml:5: actions.a.resources.cpus: there is no such key, did you mean 'cpu'?; "
        "allowed: cpu, memory, ephemeral_storage",
    ),
    (
        A + "    resources: {memory: 1GB}\n",
        'ci.yaml:5: actions.a.resources.memory: \'1GB\' is not a quantity such as "500m", "2" or "1Gi"',
    ),
    (
        A + "    timeout: soon\n",
        'ci.yaml:5: actions.a.timeout: \'soon\' is not a duration such as "90s", "10m" or "1h30m"',
    ),
    (
        A + "    class: GPU 1\n",
        "ci.yaml:5: actions.a.class: must be the name of a class: 1 to 40 lower-case letters, digits and '-', "
        "not 'GPU 1'",
    ),
    (A + "    timeout: 0s\n", "ci.yaml:5: actions.a.timeout: must be longer than 0"),
    (
        A + "    artifacts: all\n",
        "ci.yaml:5: actions.a.artifacts: must be `none` or a mapping with paths, exclude, when, not 'all'",
    ),
    (
        A + "    artifacts: {when: sucess}\n",
        "ci.yaml:5: actions.a.artifacts.when: must be one of success, failure, always, never, not 'sucess', "
        "did you mean 'success'?",
    ),
    (
        A + f"    artifacts: {{paths: [{'a, ' * 101}]}}\n",
        "ci.yaml:5: actions.a.artifacts.paths[101]: is one glob too many; at most 100 are allowed",
    ),
    (
        A + f"    artifacts: {{exclude: [{'a' * 501}]}}\n",
        "ci.yaml:5: actions.a.artifacts.exclude[1]: must have at most 500 characters, not 501",
    ),
    (
        A + "    artifacts: {paths: [a/../b]}\n",
        "ci.yaml:5: actions.a.artifacts.paths[1]: must be within the workspace: relative and without '..', "
        "not 'a/../b'",
    ),
    (
        A + "    needs: [A]\n",
        "ci.yaml:5: actions.a.needs[1]: there is no action 'A'; there are: a",
    ),
    (A + "    needs: [a]\n", "ci.yaml:5: actions.a.needs: the needs form a circle: a -> a"),
    (
        A + "    needs: [b]\n" + A.removeprefix("actions:\n").replace("a:", "b:", 1) + "    needs: [c]\n"
        "  c: {configuration: {container: i}, commands: [x], needs: [a]}\n",
        "ci.yaml:5: actions.a.needs: the needs form a circle: a -> b -> c -> a",
    ),
    (
        "actions:\n"
        "  free: {configuration: {container: i}, commands: [x], needs: [d]}\n"
        "  c: {configuration: {container: i}, commands: [x], needs: [e]}\n"
        "  d: {configuration: {container: i}, commands: [x], needs: [c]}\n"
        "  e: {configuration: {container: i}, commands: [x], needs: [d]}\n",
        "ci.yaml:3: actions.c.needs: the needs form a circle: c -> e -> d -> c",
    ),
    ('a:\n- "x\n- y\n', "ci.yaml:2: is not valid YAML: the quote that begins here has no end"),
    (
        'commands:\n- "echo a\n- echo "b"\n',
        "ci.yaml:2: is not valid YAML: the quote that begins here ends only in line 3",
    ),
    (
        "a: [",
        "ci.yaml:1: is not valid YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
    ),
    (
        "a:\n\t- b",
        "ci.yaml:2: is not valid YAML: while scanning for the next token, "
        "found character '\\t' that cannot start any token",
    ),
    (
        "--- a\n--- b\n",
        "ci.yaml:2: is not valid YAML: expected a single document in the stream, but found another document",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_the_message_names_the_line_the_key_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(text, "ci.yaml")
    assert [problem.message for problem in wrong.value.problems] == [message]


def test_all_problems_of_a_file_are_shown_at_once_with_carets() -> None:
    text = """
        actions:
          build:
            image: debian
            configuration: {container: debian}
            commands: make
            timeout: soon
            env: {1X: y, OK: [a], Ä: 漢字}
            secrets: [A, A]
          ../x:
            commands: [y]
          test:
            configuration: {container: "漢字"}
            commands: [x]
            needs: [biuld]
    """
    with pytest.raises(PipelineFileError) as wrong:
        parse(dedent(text), "ci.yaml")
    lines = str(wrong.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[::3]] == [
        f"ci.yaml:{number}" for number in (4, 6, 7, 8, 8, 8, 9, 10, 10, 13, 15)
    ]
    assert lines[1:3] == ["    4 |     image: debian", "      |     ^^^^^"]
    assert lines[4:6] == ["    6 |     commands: make", "      |               ^^^^"]
    assert lines[13:15] == ["    8 |     env: {1X: y, OK: [a], Ä: 漢字}", "      |                      ^^^"]
    assert lines[28:30] == [
        '   13 |     configuration: {container: "漢字"}',
        "      |                                ^^^^^^",
    ]


def test_a_misspelt_key_is_one_problem_and_a_file_of_another_kind_a_limited_number() -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse("action:\n  a: {}\n", "ci.yaml")
    assert len(wrong.value.problems) == 1
    with pytest.raises(PipelineFileError) as wrong:
        parse("actions:\n" + "".join(f"  a{number}: {number}\n" for number in range(500)), "ci.yaml")
    assert len(wrong.value.problems) == 20


def test_the_line_of_the_file_is_shortened_and_its_control_characters_are_not_printed() -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(f"{A}    env: {{A: '{'x' * 300}', \"B\u202e\": y}}\n", "ci.yaml")
    _, line, carets = str(wrong.value).splitlines()
    assert len(line) < 110
    assert "\u202e" not in line
    assert line[carets.index("^") : carets.rindex("^") + 1] == '"B?"'


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PipelineFileError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(PipelineFileError, match=r"latin.yaml:1: is not UTF-8 \(byte 6\)"):
        load(tmp_path / "latin.yaml")
    with pytest.raises(PipelineFileError, match="at most 1048576 are read"):
        parse("#" * (1 << 20) + "#", "big.yaml")
    with pytest.raises(PipelineFileError, match="is nested more than 20 levels deep"):
        parse("[" * 500, "deep.yaml")


def test_a_secret_of_the_file_wins_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("# comment\n\nA=from=file\nB=\n")
    assert find_secrets(["A", "B", "C"], {"A": "x", "C": "env"}, file) == {"A": "from=file", "B": "", "C": "env"}


def test_missing_secrets_are_named_and_no_value_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match="no value for the secrets A, B:"):
        find_secrets(["A", "B"], {})
    file = tmp_path / "secrets"
    file.write_text("hunter2\n")
    with pytest.raises(SecretsError, match=r"secrets:1: is not NAME=VALUE") as wrong:
        find_secrets(["A"], {}, file)
    assert "hunter2" not in str(wrong.value)


# ---- defaults, merge keys, matrix

SHARED = """
    defaults:
      configuration: {container: "debian:12"}
      env: {MODE: release, LEVEL: "1"}
      resources: {cpu: "1", memory: 1Gi}
      timeout: 10m
      secrets: [TOKEN]
    actions:
      plain: {commands: [x]}
      other:
        configuration: {container: alpine}
        env: {LEVEL: "9"}
        resources: {memory: 2Gi}
        secrets: []
        commands: [x]
"""


def test_an_action_gets_the_defaults_of_the_file_and_its_own_keys_win() -> None:
    plain, other = parse(dedent(SHARED), "ci.yaml").actions
    assert (plain.image, plain.timeout, plain.secrets) == ("debian:12", 600.0, ("TOKEN",))
    assert (other.image, other.timeout, other.secrets) == ("alpine", 600.0, ())
    assert (plain.env, other.env) == ({"MODE": "release", "LEVEL": "1"}, {"MODE": "release", "LEVEL": "9"})
    assert (plain.resources, other.resources) == (Resources("1", "1Gi"), Resources("1", "2Gi"))


def test_a_wrong_default_is_one_problem() -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(dedent(SHARED).replace("10m", "soon"), "ci.yaml")
    assert [each.message.partition(": ")[0] for each in wrong.value.problems] == ["ci.yaml:6"]
    assert "defaults.timeout" in wrong.value.problems[0].message


def test_merge_keys_take_over_the_keys_of_other_mappings() -> None:
    text = """
        actions:
          a: &a {configuration: {container: one}, commands: [x], env: &env {X: "1", Y: "1"}}
          b: &b {<<: *a, timeout: 1m}
          c:
            timeout: 2m
            <<: [*b, {configuration: {container: never}, shell: {pipefail: true}}]
            env: {<<: *env, X: "2"}
    """
    a, b, c = parse(dedent(text), "ci.yaml").actions
    assert (a.image, b.image, c.image) == ("one", "one", "one")
    assert (a.timeout, b.timeout, c.timeout) == (None, 60.0, 120.0)
    assert (c.env, c.pipefail) == ({"X": "2", "Y": "1"}, True)


def test_a_merge_key_names_mappings() -> None:
    with pytest.raises(PipelineFileError, match=r"ci.yaml:1: `<<` takes over mappings, as in `<<: \*name`, not 'x'"):
        parse("<<: x\nname: y\n", "ci.yaml")


MATRIX = """
    actions:
      test:
        matrix: {PYTHON: ["3.12", "3.13"], MODE: [fast, "a b"]}
        configuration: {container: "python:${PYTHON}"}
        commands: ['echo "${PYTHON} $MODE"']
        env: {LITERAL: "${PYTHON}"}
      publish: {needs: [test], configuration: {container: alpine}, commands: [x]}
      one: {needs: [test-3.13-fast, test], configuration: {container: alpine}, commands: [x]}
"""
VARIANTS = ("test-3.12-fast", "test-3.12-a-b", "test-3.13-fast", "test-3.13-a-b")


def test_a_matrix_is_one_action_for_each_combination() -> None:
    found = parse(dedent(MATRIX), "ci.yaml")
    *variants, publish, one = found.actions
    assert tuple(each.name for each in variants) == VARIANTS
    assert [each.image for each in variants] == ["python:3.12", "python:3.12", "python:3.13", "python:3.13"]
    assert variants[1].env == {"LITERAL": "${PYTHON}", "PYTHON": "3.12", "MODE": "a b"}
    assert variants[1].commands == ('echo "${PYTHON} $MODE"',), "the shell expands variables of commands"
    assert publish.needs == VARIANTS
    assert one.needs == ("test-3.13-fast", "test-3.12-fast", "test-3.12-a-b", "test-3.13-a-b")
    chosen = select_actions(found, ["test", "one"])
    assert tuple(each.name for each in chosen.actions) == (*VARIANTS, "one")
    assert [each.name for each in select_actions(found, ["test-3.12-fast"]).actions] == ["test-3.12-fast"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("{}", "matrix: must name at least one variable"),
        ("{X: []}", "matrix.X: must have at least one value"),
        ("{X: [a, a]}", "matrix.X: has a value twice"),
        ("{1X: [a]}", "matrix.1X: '1X' is not a variable name: letters, digits and '_', not beginning with a digit"),
        ("{X: [a b, a-b]}", "matrix: two combinations have the same name 'a-a-b'"),
        (f"{{X: ['{'x' * 70}']}}", f"matrix: 'a-{'x' * 70}' is not an action name, because it is too long"),
        (
            f"{{X: {list(range(11))}, Y: {list(range(10))}}}",
            "matrix: has too many combinations; at most 100 are allowed",
        ),
    ],
)
def test_a_matrix_that_is_refused(matrix: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(f"{A}    matrix: {matrix}\n", "ci.yaml")
    assert [each.message for each in wrong.value.problems] == [f"ci.yaml:5: actions.a.{message}"]


def test_a_variable_of_the_matrix_is_not_set_in_env_too() -> None:
    with pytest.raises(PipelineFileError, match=r"actions.a.env.X: X is also set in `matrix`"):
        parse(f"{A}    matrix: {{X: [a]}}\n    env: {{X: y}}\n", "ci.yaml")


def test_a_variant_has_no_name_of_another_action() -> None:
    text = f"{A}    matrix: {{X: [b]}}\n  a-b: {{configuration: {{container: i}}, commands: [x]}}\n"
    with pytest.raises(
        PipelineFileError, match=r"ci.yaml:2: actions.a: a variant has the name of another action: 'a-b'"
    ):
        parse(text, "ci.yaml")


def test_the_values_that_defaults_and_matrices_repeat_are_bounded() -> None:
    many = ", ".join(f"V{number}: x" for number in range(3000))
    text = f"defaults: {{configuration: {{container: i}}, env: {{{many}}}}}\nactions:\n"
    text += "".join(f"  a{number}: {{commands: [x], matrix: {{X: [{number}, b]}}}}\n" for number in range(50))
    with pytest.raises(PipelineFileError, match="has more than 200000 values, counted with those that defaults"):
        parse(text, "ci.yaml")
    text = "actions:\n" + "".join(
        f"  a{number}: {{configuration: {{container: i}}, commands: [x], matrix: {{X: {list(range(100))}}}}}\n"
        for number in range(11)
    )
    with pytest.raises(PipelineFileError, match="has too many actions with those of matrices; at most 1000"):
        parse(text, "ci.yaml")


def test_conditions_and_retries_are_read() -> None:
    text = """
        defaults: {configuration: {container: i}, retry: 2}
        actions:
          a: {commands: [x]}
          b: {commands: [x], retry: {times: 1, reasons: [COMMAND_FAILED, EVICTED]}, needs: [a], when: failure}
          c: {commands: [x], retry: 0, needs: [a], when: always}
    """
    a, b, c = parse(dedent(text), "ci.yaml").actions
    assert (a.when, b.when, c.when) == (Condition.SUCCESS, Condition.FAILURE, Condition.ALWAYS)
    assert (a.retry.times, b.retry.times, c.retry.times) == (2, 1, 0)
    lost, failed = (
        Outcome(Result.FAILED, Stage.COMMANDS, reason) for reason in (Reason.NODE_LOST, Reason.COMMAND_FAILED)
    )
    assert [a.retry.covers(lost, 1), a.retry.covers(lost, 2), a.retry.covers(lost, 3)] == [True, True, False]
    assert not a.retry.covers(failed, 1)
    assert b.retry.covers(failed, 1)
    assert not b.retry.covers(lost, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("when: failure", "when: must be success, because the action has neither `needs` nor `inputs`"),
        ("when: never", "when: must be one of success, failure, always, not 'never'"),
        ("retry: 11", "retry: must be a number of further attempts, at most 10, not '11'"),
        ("retry: {reasons: [EVICTED]}", "retry: `times` is missing: the number of further attempts"),
        (
            "retry: {times: 1, reasons: [EVICTD]}",
            "retry.reasons[1]: must be one of COMMAND_FAILED, INVALID_CONFIGURATION, IMAGE_PULL_FAILED, "
            "REPOSITORY_FAILED, OUT_OF_MEMORY, DEADLINE_EXCEEDED, ARTIFACTS_FAILED, INPUT_MISSING, SERVICE_FAILED, "
            "UNSCHEDULABLE, EVICTED, PREEMPTED, "
            "NODE_LOST, POD_DELETED, QUOTA_EXCEEDED, CLUSTER_UNAVAILABLE, INTERNAL, "
            "OBJECT_STORE_UNAVAILABLE, not 'EVICTD', did you mean 'EVICTED'?",
        ),
    ],
)
def test_a_condition_or_a_retry_that_is_refused(keys: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as wrong:
        parse(f"{A}    {keys}\n", "ci.yaml")
    assert [each.message for each in wrong.value.problems] == [f"ci.yaml:5: actions.a.{message}"]
