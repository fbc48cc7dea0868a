"""The real supervisor as PID 1, under dash, bash and busybox, with commands that change or leave the shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from agent.cluster.supervisor.command import NOT_EXPORTABLE, PIPEFAIL_REQUIRED, PIPEFAIL_WANTED
from agent.cluster.supervisor.markers import MarkerKind
from agent.cluster.supervisor.termination import REFUSED
from tests.unit.cluster.supervisor.shells import SHELLS, Options, run, tool

REPLACED = "the shell was replaced"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """Commands and their expected result. The lists of this module hold the cases.

    `code` is the container's exit code. `command` is the number of the command that the verdict names, 0 for the last
    command. `text` is the exact log, or None for any log, because a shell's own message differs between shells.
    `message` is how the message of the verdict begins.
    """

    commands: tuple[str, ...]
    text: str | None = ""
    code: int = 0
    command: int = 0
    message: str = ""


def ok(*commands: str, text: str | None = "", command: int = 0) -> Case:
    return Case(commands, text, command=command)


def bad(*commands: str, code: int, command: int, text: str | None = "") -> Case:
    return Case(commands, text, code, command, f"command {command} failed with exit code {code}")


def replaced(*commands: str, command: int, text: str | None = "") -> Case:
    return Case(commands, text, 0, command, f"{REPLACED} in command {command} ")


NO = "echo no"
KERNEL_LIMIT = 128 * 1024  # Bytes. Linux allows no longer argument of a process, but a command may be longer.
LONG = "#" + "x" * KERNEL_LIMIT

ENDS = [
    ok("echo a", "echo b >&2; echo c", text="a\nb\nc\n"),
    ok("printf a", "printf b", "printf '\\n'", text="ab\n"),
    bad("echo a", "false", NO, code=1, command=2, text="a\n"),
    bad("echo a\nfalse\necho b", NO, code=1, command=1, text="a\n"),
    bad("exit 3", NO, code=3, command=1),
    bad("true", "(exit 255)", NO, code=255, command=2),
    bad("false || exit", NO, code=1, command=1),
    bad("no-such-program", NO, code=127, command=1, text=None),
    bad("./none", NO, code=127, command=1, text=None),
    bad(": >plain; ./plain", NO, code=126, command=1, text=None),
    bad("kill -9 $$", NO, code=137, command=1),
    bad("kill -TERM $$", NO, code=143, command=1),
    bad("kill -INT 0", NO, code=130, command=1),
    bad("sh -c 'kill -9 -1'", NO, code=137, command=1),
    bad("kill 0", NO, code=143, command=1, text=None),
    ok("kill -INT 1; kill -TERM 1; kill -HUP 1; kill -KILL 1", "echo b", text="b\n"),
    ok("sleep 99 & kill -9 -1; echo a", "echo b", text="a\nb\n"),
]
EXITS = [
    ok("exit 0", NO, command=1),
    ok("exit", NO, command=1),
    ok("true && exit 0", NO, command=1),
    ok("if true; then exit 0; fi", NO, command=1),
    ok("! false && exit", NO, command=1),
    ok("{ exit 0; } >/dev/null 2>&1", NO, command=1),
    ok("f() { exit 0; }", "f", NO, command=2),
    ok("case a in a) exit 0 ;; exit) ;; esac", NO, command=1),
    ok("while :; do exit 0; done </dev/null", NO, command=1),
    ok("eval 'exit 0'", NO, command=1),
    ok("echo 'exit 0' >script; . ./script", NO, command=1),
    ok("trap 'exit 0' EXIT; false", NO, command=1),
    ok("trap 'echo bye' EXIT; exit 0", NO, text="bye\n", command=1),
    ok("trap 'echo $? >&2' EXIT; exit 0", NO, text="0\n", command=1),
    bad("set +e; false; exit", NO, code=1, command=1),
    bad("trap 'exit 7' EXIT; exit 2", NO, code=7, command=1),
    bad("trap 'echo bye' EXIT; exit 5", NO, code=5, command=1, text="bye\n"),
    ok("(exit 3) || echo $?; x=$(exit 4) || echo $?; echo exit exit", text="3\n4\nexit exit\n"),
    ok("case exit in exit) echo a ;; esac; for exit in b; do echo $exit; done", text="a\nb\n"),
    replaced("(exit 0)", "exec true", NO, command=2),
    replaced("(exit 0); exec true", NO, command=1),
    replaced("exit 0 | cat; x=$(exit 0); exec true", NO, command=1),
    ok("unalias -a", "exit 0", NO, command=2),
    ok("unalias -a", "if true; then exit 0; fi", NO, command=2),
    ok("command exit 0", NO, command=1),
    ok("\\exit 0", NO, command=1),
    replaced("unalias -a; (exit 0)", "exec true", NO, command=2),
    bad("unalias -a", "exit 3", NO, code=3, command=2),
    bad("unalias -a", "false", NO, code=1, command=2),
    # The user's EXIT trap replaces the supervisor's, and `unalias` removes the supervisor's alias of `exit`.
    replaced("unalias -a; trap 'echo bye' EXIT", "exit 0", NO, text="bye\n", command=2),
]
REPLACEMENTS = [
    replaced("exec true", NO, command=1),
    replaced("true", "exec sh -c 'exit 0'", NO, command=2),
    replaced("set -n", NO, command=1),
    bad("exec false", NO, code=1, command=1),
    bad("exec sh -c 'exit 9'", NO, code=9, command=1),
    ok("true", "exec true"),
    ok("true", "exec echo a", text="a\n"),
]
STATE = [
    ok(
        "cd /; a=1; export b=2; f() { echo $a; }; alias g='echo $b'",
        "pwd; f",
        "g; sh -c 'echo $b'",
        text="/\n1\n2\n2\n",
    ),
    ok("echo $# $0", text="0 sh\n"),
    ok("umask 027; set -- a b; shift", "umask; echo $1 $# $0; shift", "echo $#", text="0027\nb 1 sh\n0\n"),
    ok("set -C; : >f; set -f; set -u; IFS=0123456789saelci", "echo *", "echo $-", text=None),
    ok("set +e; false; echo a", "false; echo b", text="a\nb\n"),
    bad("set +e", "echo a; false", NO, code=1, command=2, text="a\n"),
    ok("exec >file; echo a", "echo b", "cat file >&2", text="a\nb\n"),
    ok("exec >/dev/null 2>&1", NO),
    ok("exec >&- 2>&-", "true", "exit 0", NO, command=3),
    ok('for n in 3 4 5 6 7 8 9; do eval "exec $n>&-"; done', "echo a", text="a\n"),
    ok("exec 8>file 9>other; echo a >&8", "echo b >&8; cat file", text="a\nb\n"),
    ok("ls /proc/self/fd", text="0\n1\n2\n3\n"),
    ok("unset PATH", "echo a", text="a\n"),
    ok("PATH=/nonexistent", "echo a; exit 0", NO, text="a\n", command=2),
    ok("read x || echo none", text="none\n"),
    ok("set -a; a=1", "env | grep -c sealci || env | grep ^a=", text="0\na=1\n"),
    ok("echo x >&2 & wait; sleep 99 & sleep 99 >&2 &", "echo a", text="x\na\n"),
]
OVERRIDES = [
    *(
        ok(f"{name}() {{ echo bad; return 1; }}", "\\exit 0")
        for name in ("echo", "printf", "command", "kill", "test", "read", "alias", "true")
    ),
    *(
        ok(f"alias {name}='echo bad'", "\\true")
        for name in ("printf", "test", "set", "eval", "return", "unset", "read")
    ),
    *(bad(f"{name}() {{ :; }}", NO, code=2, command=1, text=None) for name in ("eval", "set", "unset", "exit")),
    bad("alias exit='exit 5'", "exit", NO, code=5, command=2),
]
TEXTS = [
    ok("", " ", "\n\n", "# a comment", "echo a # b", text="a\n"),
    ok("cat <<E\na $((1+1))\nE", "cat <<'E'\n$x `y` \"z\"\nE", text='a 2\n$x `y` "z"\n'),
    ok("echo a \\", text=None),
    ok("break; continue", "echo a", text=None),
    ok("cat <<E\na", "echo b", text=None),
    ok(
        "echo 'ünï \U0001f980 \x01\x1b[0m'",
        "echo \"$(printf '\\377')\"",
        text="ünï \U0001f980 \x01\x1b[0m\n\udcff\n",
    ),
    ok(*[LONG] * 4),
    ok("echo '" + "y" * KERNEL_LIMIT + "'", text="y" * KERNEL_LIMIT + "\n"),
    ok(*["n=$((n + 1))"] * 299, "echo $n", text="299\n"),
    bad("-x", NO, code=127, command=1, text=None),
    bad("true", "if true", NO, code=2, command=2, text=None),
    bad("echo 'a", NO, code=2, command=1, text=None),
]
TRAPS = [
    ok("trap 'echo bye' EXIT", "echo a", text="a\nbye\n"),
    bad("trap 'echo bye >&2' EXIT", "false", NO, code=1, command=2, text="bye\n"),
    bad("set +e; trap 'echo bye >&2' EXIT", "false", NO, code=1, command=2, text="bye\n"),
    ok("trap 'echo term' TERM; kill -TERM $$", "kill -TERM $$", text="term\nterm\n"),
    ok("trap '' TERM; kill -TERM $$; trap - TERM", "echo a", text="a\n"),
    Case(("trap 'exit 4' EXIT", "true"), "", 4, 2, "the shell failed after the last command with exit code 4"),
]


@pytest.mark.parametrize(
    "case",
    [*ENDS, *EXITS, *REPLACEMENTS, *STATE, *OVERRIDES, *TEXTS, *TRAPS],
    ids=lambda case: repr(case.commands)[:60],
)
def test_each_way_to_end_has_its_own_verdict(shell: str, case: Case) -> None:
    result = run(shell, *case.commands)
    assert result.code == case.code, result.text
    assert result.verdict.succeeded == (not case.message)
    assert result.verdict.message.startswith(case.message)
    last = case.command or len(case.commands)
    assert result.verdict.command == last
    if case.text is not None:
        assert result.text == case.text
    between = " ".join(f"s{number} f{number}:0" for number in range(1, last))
    rest = result.markers.removeprefix(between).split()
    assert rest[0] == f"s{last}"
    assert rest[1:] in (
        [f"l:{case.code}"],
        [f"f{last}:{case.code}", f"l:{case.code}"],
        [f"f{last}:0", f"l:{case.code}"],
    )


@pytest.mark.parametrize("code", [1, 2, 3, 126, 127, 129, 130, 143, 255])
def test_exit_codes_are_kept(shell: str, code: int) -> None:
    assert run(shell, f"exit {code}", NO).code == code
    assert run(shell, f"(exit {code})", NO).code == code
    assert run(shell, f"exec sh -c 'exit {code}'", NO).code == code


EARLY_IN_BASH = ["set +o posix", "set +o posix; unalias -a", "shopt -u expand_aliases"]


@pytest.mark.parametrize("before", EARLY_IN_BASH)
@pytest.mark.parametrize("leave", ["exit 0", "exit", "if true; then exit 0; fi", "f() { exit 0; }; f"])
def test_bash_without_aliases_is_left_early_with_success(before: str, leave: str) -> None:
    result = run("bash", before, leave, NO)
    assert result.verdict.succeeded, result.verdict
    assert result.verdict.command == 2
    assert result.text == ""


@pytest.mark.parametrize("before", EARLY_IN_BASH)
def test_bash_without_aliases_is_still_seen_to_be_replaced(before: str) -> None:
    assert run("bash", before, "(exit 0); exec true", NO).verdict.message.startswith(f"{REPLACED} in command 2 ")
    assert run("bash", before, "exit 4", NO).verdict.message == "command 2 failed with exit code 4"


def test_a_failure_inside_a_pipeline_is_not_noticed_by_default(shell: str) -> None:
    result = run(shell, "false | true", "yes | head -n 1", "echo a")
    assert result.verdict.succeeded
    assert result.text == "y\na\n"


@pytest.mark.parametrize("mode", [PIPEFAIL_WANTED, PIPEFAIL_REQUIRED])
@pytest.mark.parametrize("with_pipefail", ["bash", "busybox"])
def test_pipefail_can_be_switched_on(with_pipefail: str, mode: str) -> None:
    result = run(with_pipefail, "true | true", "false | true", NO, options=Options(pipefail=mode))
    assert result.verdict.message == "command 2 failed with exit code 1"
    assert result.text == ""


def test_the_log_says_once_that_dash_has_no_pipefail() -> None:
    result = run("dash", "false | true", "echo a", options=Options(pipefail=PIPEFAIL_WANTED))
    assert result.verdict.succeeded
    assert result.text == "sealci: the image's /bin/sh has no pipefail: a failure inside a pipe is not noticed\na\n"


def test_an_action_that_asks_for_pipefail_does_not_start_without_it() -> None:
    result = run("dash", NO, options=Options(pipefail=PIPEFAIL_REQUIRED))
    assert result.code == REFUSED
    assert result.ending is None
    assert result.message == "the action asks for shell.pipefail, and the image's /bin/sh has no pipefail"
    assert result.markers == "l:125"


# Environment variables that shells obey, with values that trace, print, end or confuse a script.
OBEYED = {
    "BASHOPTS": "failglob:nullglob:nocasematch:extglob:xpg_echo:lastpipe:execfail:inherit_errexit:expand_aliases",
    "BASH_COMPAT": "31",
    "BASH_ENV": "/nonexistent/env",
    "BASH_XTRACEFD": "1",
    "CDPATH": "/usr:/",
    "ENV": "/nonexistent/env",
    "EXECIGNORE": "*/sleep",
    "GLOBIGNORE": "*",
    "IFS": "/0123456789saelci:",
    "LINENO": "7",
    "OLDPWD": "/usr",
    "OPTIND": "5",
    "POSIXLY_CORRECT": "1",
    "PPID": "1",
    "PS4": "trace: ",
    "TMOUT": "1",
}


@pytest.mark.parametrize("of_image", [True, False], ids=["of the image", "of the action"])
@pytest.mark.parametrize("name", [*OBEYED, "all"])
def test_a_variable_that_the_shell_obeys_changes_no_verdict_and_shows_nothing(
    shell: str, name: str, of_image: bool
) -> None:
    env = OBEYED if name == "all" else {name: OBEYED[name]}
    # The agent sets variables that no shell can export in the pod's manifest. So they reach container `action` like the
    # variables of the image.
    exported = {} if of_image else {name: value for name, value in env.items() if name not in NOT_EXPORTABLE}
    options = Options(env=exported, image_env={n: value for n, value in env.items() if n not in exported})
    result = run(shell, "echo a", "x=1; echo $x", "echo b >&2", options=options)
    assert result.verdict.succeeded
    assert result.text == "a\n1\nb\n"
    assert result.markers == "s1 f1:0 s2 f2:0 s3 f3:0 l:0"
    assert run(shell, "true", "false", NO, options=options).verdict.message == "command 2 failed with exit code 1"
    assert run(shell, "exit 0", NO, options=options).verdict.succeeded
    assert not run(shell, "exec true", NO, options=options).verdict.succeeded


IMAGE, ACTION = WAYS = ("image", "action")
# Values of SHELLOPTS. An unknown option is not among them, because bash itself would report it at its start.
SHELL_OPTION_LISTS = [
    "braceexpand:errexit:hashall:interactive-comments:pipefail",
    "allexport:monitor:noclobber:noglob:nounset:keyword:functrace:errtrace:privileged:history",
]


def shellopts(way: str, value: str) -> Options:
    """Return options of a container. `way` names what sets SHELLOPTS: the image or the action."""
    return Options(image_env={"SHELLOPTS": value}) if way == IMAGE else Options(env={"SHELLOPTS": value})


@pytest.mark.parametrize(
    ("way", "value"),
    [*((way, value) for way in WAYS for value in SHELL_OPTION_LISTS), (ACTION, "no-such-option::posix")],
)
def test_shellopts_change_no_verdict_and_show_nothing(shell: str, way: str, value: str) -> None:
    options = shellopts(way, value)
    result = run(shell, "echo a", "echo b >&2", "env | grep -c sealci || true", options=options)
    assert result.verdict.succeeded
    assert result.text == "a\nb\n0\n"
    assert result.markers == "s1 f1:0 s2 f2:0 s3 f3:0 l:0"
    assert run(shell, "true", "false", NO, options=options).verdict.message == "command 2 failed with exit code 1"
    assert run(shell, "exit 0", NO, options=options).verdict.succeeded


@pytest.mark.parametrize("way", WAYS)
def test_shellopts_stay_visible_to_the_commands(shell: str, way: str) -> None:
    options = shellopts(way, "nounset:noglob")
    result = run(shell, "echo $-", "env | grep ^SHELLOPTS=", options=options)
    flags, variable = result.text.split()
    assert ("u" in flags and "f" in flags) == (shell == "bash")
    assert "nounset" in variable
    assert "noglob" in variable


@pytest.mark.parametrize("way", WAYS)
def test_a_trace_by_shellopts_shows_the_user_s_lines_only(shell: str, way: str) -> None:
    result = run(shell, "echo a", "echo b", options=shellopts(way, "xtrace"))
    assert result.text == ("++ echo a\na\n++ echo b\nb\n" if shell == "bash" else "a\nb\n")


def test_a_verbose_trace_by_shellopts_of_the_action_shows_the_user_s_lines_only(shell: str) -> None:
    result = run(shell, "echo a", "echo b", options=shellopts(ACTION, "verbose"))
    assert result.text == ("echo a\na\necho b\nb\n" if shell == "bash" else "a\nb\n")


@pytest.mark.parametrize("value", ["noexec", "onecmd"])
def test_shellopts_of_the_action_cannot_keep_the_commands_from_running(shell: str, value: str) -> None:
    result = run(shell, "echo a", "echo b", options=shellopts(ACTION, value))
    assert result.verdict.succeeded
    assert result.text == "a\nb\n"


def test_return_outside_a_function_ends_the_commands_as_the_shell_has_it(shell: str) -> None:
    """In dash and busybox, `return 0` ends the commands with success. In bash, it is an error."""
    result = run(shell, "return 0", NO)
    assert result.verdict.succeeded == (shell != "bash")
    assert result.verdict.command == 1


PLUS = {"dash": "+", "bash": "++", "busybox": "+"}  # With `set -x`, bash writes one more + for a command inside `eval`.


def test_a_trace_shows_the_user_s_lines_only(shell: str) -> None:
    lines = ["@ true", "@ echo a", "a", "@ b=c", "@ false", "@ echo d", "d", "@ set +x", "e"]
    result = run(shell, "set -x; true", "echo a; b=c", "false || echo d", "set +x", "echo e")
    assert result.text == "".join(line.replace("@", PLUS[shell]) + "\n" for line in lines)


def test_a_trace_continues_in_an_exit_trap(shell: str) -> None:
    result = run(shell, "set -x; trap 'echo bye' EXIT", "echo a")
    assert result.text.splitlines()[-4:] == [f"{PLUS[shell]} echo a", "a", "+ echo bye", "bye"]


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("true && exit 3", 3), ("(exit 3)", 3)])
def test_a_trace_of_exit_shows_the_user_s_lines_only(shell: str, end: str, code: int) -> None:
    result = run(shell, "set -x", f"trap 'echo bye' EXIT\n{end}", NO)
    assert result.code == code
    assert "sealci" not in result.text
    assert result.text.splitlines()[-2:] == ["+ echo bye", "bye"]
    assert f"{PLUS[shell]} exit 3" in result.text or "(" in end


def test_a_verbose_shell_shows_the_user_s_lines_only(shell: str) -> None:
    result = run(shell, "set -v", "echo a\necho b", "set +v")
    assert result.text == ("echo a\na\necho b\nb\nset +v\n" if shell == "bash" else "a\nb\n")


def test_a_verbose_trace_shows_the_user_s_lines_only(shell: str) -> None:
    result = run(shell, "set -xv", "echo a", "set +xv")
    verbose = ["echo a", "set +xv"] if shell == "bash" else ["", ""]
    traced = [f"{PLUS[shell]} echo a\na", f"{PLUS[shell]} set +xv"]
    assert result.text.split() == "\n".join((verbose[0], traced[0], verbose[1], traced[1])).split()


def test_bash_traps_do_not_see_the_supervisor_s_commands() -> None:
    result = run("bash", "set -E; trap 'echo failed' ERR; trap 'echo returned' RETURN", "false || true", "false", NO)
    assert result.text == "failed\n"
    assert result.code == 1
    debug = run("bash", "trap 'echo \"$BASH_COMMAND\"' DEBUG", "echo a").text
    assert "__sealci 2" not in debug


def test_commands_have_default_signal_actions(shell: str) -> None:
    script = "import signal as s; print(*(s.getsignal(n) == s.SIG_DFL for n in (s.SIGTERM, s.SIGQUIT, s.SIGHUP)))"
    interrupts = "import signal as s; print(s.getsignal(s.SIGINT) is s.default_int_handler)"
    result = run(shell, f"'{sys.executable}' -c '{script}'", f"'{sys.executable}' -c '{interrupts}'")
    assert result.text == "True True True\nTrue\n"


def test_the_environment_reaches_the_commands_unchanged(shell: str) -> None:
    env = {"code": "c", "A": "b c\n d", "workspace": "w", "n": "1", "IFS": "x", "HOME": "/h", "EMPTY": ""}
    result = run(shell, "env -0 | tr '\\0' '\\1'", options=Options(env=env))
    seen = dict(line.split("=", 1) for line in result.text.removesuffix("\x01").split("\x01"))
    of_the_shell = {"PATH", "PWD", "SHLVL", "_", "IFS"}
    assert {name: value for name, value in seen.items() if name not in of_the_shell} == {
        name: value for name, value in env.items() if name not in of_the_shell
    }


def test_the_supervisor_works_for_an_unprivileged_user(shell: str) -> None:
    options = Options(uid=1234)
    result = run(shell, "id -u; exec >file", NO, "exit 0", NO, options=options)
    assert result.verdict.succeeded
    assert result.text == "1234\n"
    assert result.markers == "s1 f1:0 s2 f2:0 s3 l:0"


@pytest.mark.parametrize("uid", [None, 1234])
def test_a_clone_belongs_to_the_user_of_the_commands(shell: str, uid: int | None) -> None:
    result = run(shell, "echo mine >>cloned; stat -c '%u %g %a %n' . cloned", options=Options(uid=uid, cloned=True))
    owner = f"{uid or 0} {uid or 0}"
    assert result.text == f"{owner} 755 .\n{owner} 644 cloned\n"
    assert result.verdict.succeeded


def test_a_file_of_the_user_never_contains_a_marker(shell: str) -> None:
    """The supervisor opens the log anew for each marker, so no redirection of the user can catch a marker."""
    opened = " ".join(f"{number}>>file" for number in range(1, 10))
    result = run(shell, f"exec {opened}", "true", "test ! -s file", options=Options(uid=1234))
    assert result.verdict.succeeded
    assert result.markers == "s1 f1:0 s2 f2:0 s3 f3:0 l:0"


def test_what_processes_of_a_pipe_still_write_is_not_lost(shell: str) -> None:
    options = Options(drain=20.0)
    result = run(shell, "{ sleep 0.3; echo late; } &", "echo a", options=options)
    assert result.text == "a\nlate\n"
    assert result.markers == "s1 f1:0 s2 f2:0 l:0"


def test_a_process_that_holds_the_log_open_delays_the_end_for_a_while_only(shell: str) -> None:
    result = run(shell, "sleep 1000 &", "echo a")
    assert result.verdict.succeeded
    assert result.text == "a\n"


@pytest.mark.parametrize("uid", [None, 1234])
def test_the_usual_names_of_the_log_lead_into_it(shell: str, uid: int | None) -> None:
    names = ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/proc/1/fd/1", "/proc/1/fd/2")
    result = run(shell, *(f"echo {name} >{name}; echo {name} >>{name}" for name in names), options=Options(uid=uid))
    assert result.text == "".join(f"{name}\n" * 2 for name in names)


def test_another_user_can_write_to_standard_output_by_its_name(shell: str) -> None:
    other = (
        f"{tool('setpriv')} --reuid=1234 --regid=1234 --clear-groups sh -c 'echo a >/dev/stdout; echo b >/dev/stderr'"
    )
    assert run(shell, other).text == "a\nb\n"


def test_programs_that_look_for_a_command_find_only_what_the_commands_start(shell: str) -> None:
    """`pgrep -f` and `pkill -f` compare the arguments of each process. The supervisor itself must not match."""
    find = "for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline | grep {} | sed 's/ *$//'; done"
    result = run(
        shell,
        "tail -f /dev/null &",
        find.format("'[t]ail -f'") + "; echo between",
        find.format("'[s]ecret-word'"),
        ": secret-word",
        options=Options(env={"A": "secret-word"}),
    )
    assert result.verdict.succeeded
    assert result.text == "tail -f /dev/null\nbetween\n"


def test_the_order_is_gone_while_the_commands_run(shell: str) -> None:
    result = run(shell, "while test -e ../order/env; do sleep 0.01; done; ls ../order")
    assert set(result.text.split()) == {"control", "go", "log", "order", "started", "supervisor"}


def test_binary_output_arrives_unchanged(shell: str) -> None:
    result = run(shell, "printf 'a\\r\\nb\\r\\0\\377\\033]5397;0;1;0;\\a'")
    assert result.text.encode(errors="surrogateescape") == b"a\r\nb\r\0\xff\x1b]5397;0;1;0;\a"


def test_an_overwritten_record_is_rewritten_with_the_next_command(shell: str) -> None:
    over = "echo mine >../termination-log"
    result = run(shell, over, "exit 0", NO)
    assert result.verdict.succeeded
    assert "mine" not in result.message
    failed = run(shell, f"{over}; (exit 4)", NO)
    assert failed.verdict.message == "the commands failed with exit code 4"
    assert not run(shell, f"{over}; exec true", NO).verdict.succeeded


def test_a_command_can_forge_the_success_of_its_own_action(shell: str) -> None:
    """SECURITY.md states this limit. The shell that runs a command also writes the record of its end."""
    forged = run(shell, 'printf "sealci %s completed 3\\n" "$__sealci_nonce" >../termination-log; exec true', NO, NO)
    assert forged.verdict.succeeded
    assert forged.text == ""
    failing = run(shell, 'printf "sealci %s completed 2\\n" "$__sealci_nonce" >../termination-log; exec false', NO)
    assert not failing.verdict.succeeded
    unknown = run(shell, f'printf "sealci {"0" * 16} completed 2\\n" >../termination-log; exec true', NO)
    assert not unknown.verdict.succeeded


def test_the_last_marker_follows_all_output_of_background_processes(shell: str) -> None:
    result = run(shell, "yes & yes >&2 &", "sleep 0.05; trap '' TERM; sh -c 'while :; do echo n; done' &")
    assert result.verdict.succeeded
    last = result.items[-2] if result.items[-1] == b"" else result.items[-1]
    assert not isinstance(last, bytes)
    assert last.kind is MarkerKind.LAST


def test_the_termination_message_names_a_workspace_that_cannot_be_entered(shell: str) -> None:
    result = run(shell, NO, options=Options(workspace="/nonexistent/there"))
    assert result.code == REFUSED
    assert result.ending is None
    assert result.message == "the workspace /nonexistent/there cannot be entered"
    assert result.text == "sealci: the workspace /nonexistent/there cannot be entered\n"
    assert result.markers == "l:125"
