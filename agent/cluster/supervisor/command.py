"""The supervisor: what runs the user's commands inside the user's image, with nothing but its /bin/sh.

PID 1 of container `action` is that shell with `SUPERVISOR` as its script. It waits until the files container is up,
runs one commands shell as a *foreground* child (started with `&`, POSIX would have it and all below it ignore INT and
QUIT), and when that shell ends, whoever still holds its output: kills the rest, prints the last marker and leaves with
its code. TERM reaches the commands by exec (`interrupt`, `pre_stop`), never through PID 1, which only remembers it.

The commands shell evaluates the commands in order, in one unrolled list: a loop of ours would be left by the user's
`break`, and a function would change what `local` and `return` mean. The list is one compound command, parsed before
anything of the user runs, so aliases and `set -v` do not touch it. The commands shell takes TERM by a trap and so ends
after its running child: otherwise PID 1 would kill the child in the middle of its own clean-up.

Which command runs, whether all ran, whether the shell was left by `exit`, and whether PID 1 was told to end is written
to the termination message, each time anew and with the session's nonce. `read_termination` and `judge` turn it and the
exit code into a verdict. Everything here is pure; it lives as long as one pod.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.cluster.supervisor.markers import NONCE

MAX_COMMAND_BYTES = 128 * 1024 - 1
MAX_COMMAND_COUNT = 1000
WORKSPACE_FAILED = 125  # PID 1's code, then with a sentence in the termination message; no command was started

# PID 1. The shell's own words ("Terminated") go nowhere: the commands have their own copy of the log as stderr.
SUPERVISOR = r"""
exec 2>/dev/null
__sealci_shell=$1 __sealci_setup=$2 __sealci_list=$3 __sealci_nonce=$4
__sealci_workspace=$5 __sealci_ready=$6 __sealci_file=$7 __sealci_stopped=
shift 7
trap '__sealci_stopped=143' TERM
# Dash catches INT by itself and would leave; a trap, other than ignoring, is not inherited.
trap : INT

__sealci_nap() {
  # Images without `sleep`: bash and busybox time a read, dash is left to turn in circles.
  sleep 0.02 || [ -n "$__sealci_stopped" ] || sleep 1 || read -t 0.02 -r __sealci_x <>/dev/ptmx || :
}

until [ -z "$__sealci_ready" ] || [ -e "$__sealci_ready" ] || [ -n "$__sealci_stopped" ]; do __sealci_nap; done

if ! cd "$__sealci_workspace" >/dev/null; then
  __sealci_code=125
  printf 'sealci: the workspace %s cannot be entered\n' "$__sealci_workspace"
  printf 'the workspace %s cannot be entered' "$__sealci_workspace" >|"$__sealci_file"
elif [ -n "$__sealci_stopped" ]; then
  __sealci_code=$__sealci_stopped
else
  unset OLDPWD
  # A subshell, since dash redirects before it forks and would say "Killed" into the log.
  (
    exec "$__sealci_shell" -c "$__sealci_list" sh "$__sealci_setup" "$__sealci_nonce" "$__sealci_file" "$@" \
      8>&1 2>&1 </dev/null
  )
  __sealci_code=$?
  # The last marker is the last: nobody is left to print when it comes. Each fork also reaps who has died.
  kill -KILL -1
  __sealci_tries=0
  while kill -0 -1 && [ "$__sealci_tries" -lt 500 ]; do
    ( : )
    __sealci_tries=$((__sealci_tries + 1))
  done
  printf 'sealci %s %s %s\n' "$__sealci_nonce" "${__sealci_stopped:+told_to_}end" "$__sealci_code" >>"$__sealci_file"
fi
printf '\036sealci:%s:l:0:%s\n' "$__sealci_nonce" "$__sealci_code"
exit "$__sealci_code"
"""

# The commands shell, before the first command. Its log is /proc/PID-1/fd/1 where that can be opened (a runtime that
# gives the pipe to the image's user lets it), so that no descriptor of ours is inherited by what the user runs.
SETUP = r"""
__sealci_nonce=$2 __sealci_file=$3 __sealci_log=/proc/$PPID/fd/1 __sealci_flags= __sealci_count=0
shift 3
for __sealci_text do
  __sealci_count=$((__sealci_count + 1))
  # `eval` would take a leading dash for an option.
  case $__sealci_text in -*) __sealci_text=" $__sealci_text" ;; esac
  \eval "__sealci_$__sealci_count=\$__sealci_text"
done
set --
unset __sealci_text
( : >>"$__sealci_log" ) 2>/dev/null && exec 8>&-

# Descriptor 8 may have become a file of the user's: a lost marker is better than one in there.
__sealci_say() {
  \printf '\036sealci:%s:%s\n' "$__sealci_nonce" "$1" >>"$__sealci_log" && \return
  \test ! -e "$__sealci_log" || \test /proc/self/fd/8 -ef "$__sealci_log" || \return
  \printf '\036sealci:%s:%s\n' "$__sealci_nonce" "$1" >&8
}

__sealci_note() {
  \printf 'sealci %s %s %s\n' "$__sealci_nonce" "$1" "$__sealci_now" >|"$__sealci_file"
}

# __sealci NEXT STATUS: the command before NEXT ended with STATUS. Options that would show or export our workings are
# put aside and set again inside the text that is evaluated next. Only a subshell may drop the user's overrides.
__sealci() {
  case $- in *a*) \set +a; __sealci_flags=a ;; *) __sealci_flags= ;; esac
  case $- in *x*) \set +x; __sealci_flags=${__sealci_flags}x ;; esac
  case $- in *v*) \set +v; __sealci_flags=${__sealci_flags}v ;; esac
  case $__sealci_flags in ?*) __sealci_flags="{ \\set -$__sealci_flags; } 2>/dev/null
" ;; esac
  __sealci_now=$1
  (
    \unset -f printf test
    case $1 in 1) ;; *) __sealci_say "f:$(($1 - 1)):$2" ;; esac
    case $2 in
      0)
        case $(($1 > __sealci_count)) in
          1) __sealci_now=$__sealci_count; __sealci_note completed ;;
          0) __sealci_note started; __sealci_say "s:$1" ;;
        esac ;;
    esac
  ) || :
  \return "$2"
}

# __sealci_left STATUS: runs in a substitution in front of `exit`. Its parent is the commands shell itself unless the
# user's `exit` leaves a subshell. After the last command there is nothing to note: it comes from a trap.
__sealci_left() {
  {
    \unset -f read printf
    __sealci_stat=
    \read -r __sealci_stat </proc/self/stat
    case $((__sealci_now > __sealci_count))${__sealci_stat##*) } in 0?" $$ "*) __sealci_note exit ;; esac
  } || :
  \return "$1"
}

# A redirection is neither traced nor a command of its own, so `a && exit 3` and `$?` stay what they were.
alias exit='8>>"$({ __sealci_left "$?"; } >/dev/null 2>&1)/dev/null" exit'
trap '{ \set +x; } 2>/dev/null; \exit 143' TERM
set -e
if (set -o pipefail) 2>/dev/null; then set -o pipefail; fi
"""

INTERRUPT = r"""
exec >/dev/null 2>&1
# PID 1 first: while it waits for the files container it takes TERM by itself, once its nap is over.
kill -TERM 1
kill -TERM -1
kill -CONT -1
__sealci_left() {
  read -r __sealci_up __sealci_rest </proc/uptime && [ "${__sealci_up%.*}" -lt "$__sealci_end" ]
}
if ! sleep "$1" && ! sleep "$2"; then
  __sealci_end=0
  read -r __sealci_up __sealci_rest </proc/uptime && __sealci_end=$((${__sealci_up%.*} + $2 + 1))
  while __sealci_left; do read -t 0.1 -r __sealci_x <>/dev/ptmx; done
fi
kill -KILL -1
"""

PRE_STOP = "kill -TERM 1; kill -TERM -1; exit 0"

RECORD = re.compile(r"sealci (\w+) (started|exit|completed|end|told_to_end) (\d{1,9})\b")


def entrypoint(
    commands: Sequence[str],
    *,
    nonce: str,
    workspace: str,
    wait_for_files: bool,
    ready_path: str = "/.sealci/ready",
    termination_path: str = "/dev/termination-log",
    shell: str = "/bin/sh",
) -> list[str]:
    """Return the whole `command` of container `action`.

    Raises:
        ValueError: no or too many commands, one that holds a NUL, or a nonce that is not letters and digits.
    """
    if not NONCE.fullmatch(nonce):
        raise ValueError("a nonce is 8 to 64 letters and digits")
    if not 1 <= len(commands) <= MAX_COMMAND_COUNT:
        raise ValueError(f"{len(commands)} commands; from 1 to {MAX_COMMAND_COUNT} are possible")
    if any("\0" in command for command in commands):
        raise ValueError("a command cannot hold a NUL")
    ready = ready_path if wait_for_files else ""
    setting = [shell, SETUP, unrolled(len(commands)), nonce, workspace, ready, termination_path]
    return [shell, "-c", SUPERVISOR, "sealci", *setting, *commands]


def unrolled(count: int) -> str:
    """Return the script of the commands shell: one line, so that the shells' line numbers are the user's."""
    turns = (
        f'\\eval "$__sealci_flags$__sealci_{number}"; {{ __sealci {number + 1} "$?"; }} >/dev/null 2>&1 || \\exit; '
        for number in range(1, count + 1)
    )
    begin = "{ __sealci 1 0; } >/dev/null 2>&1 || \\exit; "
    return f'eval "$1"; {{ {begin}{"".join(turns)}\\eval "$__sealci_flags"; }}'


def interrupt(grace: float) -> list[str]:
    """Return what to exec into the container to end its commands: TERM to all, KILL after `grace` seconds.

    It returns after the KILL, or is killed with the rest as soon as the commands have ended.
    """
    return ["/bin/sh", "-c", INTERRUPT, "sealci", f"{grace:.3f}", str(math.ceil(grace))]


def pre_stop() -> list[str]:
    """Return the lifecycle hook that tells the commands of a deletion; it leaves at once."""
    return ["/bin/sh", "-c", PRE_STOP]


@dataclass(frozen=True, slots=True)
class Ending:
    """What the supervisor wrote down.

    `command` is the last one that was started (1-based; None: not known, the user wrote over it), `exit_code` what
    PID 1 meant to leave with (None: it was killed), `told` whether PID 1 had got a TERM by then.
    """

    command: int | None
    completed: bool = False
    left_by_exit: bool = False
    exit_code: int | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the commands succeeded; `command` is the one it happened in, 0 when unknown; `message` is for people."""

    succeeded: bool
    command: int
    message: str


def read_termination(message: str, nonce: str) -> Ending | None:
    """Return what a termination message records; None when it holds nothing of this session: no command was started."""
    ending: Ending | None = None
    for found, word, number in RECORD.findall(message):
        if found != nonce:
            continue
        if word in ("end", "told_to_end"):
            ending = replace(ending or Ending(None), exit_code=int(number), told=word == "told_to_end")
        else:
            ending = Ending(int(number), word == "completed", word == "exit")
    return ending


def judge(exit_code: int, ending: Ending | None, command_count: int) -> Verdict:
    """Decide from the container's exit code and the record. Code 0 alone is no success: the shell may be gone."""
    command = (ending.command if ending else None) or 0
    if exit_code != 0:
        return Verdict(False, command, failure(exit_code, ending))
    if ending is None or ending.command is None:
        return Verdict(False, 0, "the shell left with code 0 but no record that it ran the commands")
    if ending.completed or ending.left_by_exit or command >= command_count:
        return Verdict(True, command, "")
    rest = "command" if command_count - command == 1 else "commands"
    message = (
        f"the shell was replaced in command {command} (by `exec`, or left by other means than a plain `exit`): "
        f"{command_count - command} more {rest} did not run"
    )
    return Verdict(False, command, message)


def failure(exit_code: int, ending: Ending | None) -> str:
    """Say what a code other than 0 means."""
    if ending is None:
        return f"no command was started (exit code {exit_code})"
    if ending.command is None:
        subject = "the commands failed"
    elif ending.completed:
        subject = "the shell failed after the last command"
    else:
        subject = f"command {ending.command} failed"
    return f"{subject} with exit code {exit_code}{hint(exit_code)}"


def hint(exit_code: int) -> str:
    """Name what shells mean by a code."""
    if exit_code == 126:
        return " (not executable)"
    if exit_code == 127:
        return " (not found)"
    names = {128 + each: each.name for each in signal.Signals}
    return f" ({names[exit_code]})" if exit_code in names else ""
