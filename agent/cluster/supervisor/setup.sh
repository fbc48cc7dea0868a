# shellcheck shell=sh
# The commands shell evaluates this script before the first command of the user.
# `command.py` reads this file and drops whole-line comments. Container `helper` writes the rest behind the variables of
# the order: nonce, file (the termination message), log and control (FIFOs), flags, count, and the commands by number.
# Arguments: the order's folder, pipefail, the SHELLOPTS of the user.
# shellcheck disable=SC2154 # the order's variables are assigned before this script
#
# The user's commands share the shell with this script. They may define functions and aliases called `printf`, `test`
# or `exit`. A backslash (`\printf`) avoids an alias, and `unset -f` in a subshell avoids a function.

__sealci_pipefail=$2 __sealci_options=$3
set --
# The helper can now remove the files that hold the commands and the secrets.
echo loaded >"$__sealci_control"

# __sealci_say TEXT: write a marker into the log.
__sealci_say() {
  \printf '\036sealci:%s:%s\n' "$__sealci_nonce" "$1" >>"$__sealci_log"
}

# __sealci_note WORD: replace the termination message by a record of the current command. WORD is what happened:
# started, completed (it was the last command) or exit (it ended the commands shell).
__sealci_note() {
  \printf 'sealci %s %s %s\n' "$__sealci_nonce" "$1" "$__sealci_now" >|"$__sealci_file"
}

# __sealci NEXT STATUS: record that the command before NEXT ended with STATUS.
# The options a, x and v would export or print the variables and commands of this script. They are cleared here. The
# text that is evaluated next sets them again. The overrides of the user are removed in a subshell only.
__sealci() {
  case $- in *a*) \set +a; __sealci_flags=a ;; *) __sealci_flags= ;; esac
  case $- in *x*) \set +x; __sealci_flags=${__sealci_flags}x ;; esac
  case $- in *v*)
    \set +v; __sealci_flags=${__sealci_flags}v
    # With the option v, bash prints each trap that it runs. So the EXIT trap is removed, and only the alias records an
    # `exit`.
    case $(\trap) in *"'{ __sealci_ended "*) \trap - EXIT ;; esac ;;
  esac
  case $__sealci_flags in ?*) __sealci_flags="{ \\set -$__sealci_flags; } 2>/dev/null
" ;; esac
  __sealci_now=$1
  (
    \unset -f printf
    case $1 in 1) ;; *) __sealci_say "f:$(($1 - 1)):$2" ;; esac
    case $2 in
      0)
        # shellcheck disable=SC2030 # only the record of this subshell needs the number of the last command
        case $(($1 > __sealci_count)) in
          1) __sealci_now=$__sealci_count; __sealci_note completed ;;
          0) __sealci_note started; __sealci_say "s:$1" ;;
        esac ;;
    esac
  ) || :
  \return "$2"
}

# __sealci_left STATUS: record that the user's `exit` ends the commands shell. It runs in a command substitution before
# `exit`. The parent of the substitution is the commands shell, unless that `exit` ends a subshell of the user.
# After the last command an `exit` can only come from a trap, and the record stays "completed".
__sealci_left() {
  {
    \unset -f read printf
    __sealci_stat=
    \read -r __sealci_stat </proc/self/stat
    # shellcheck disable=SC2031 # this is the value of the commands shell, as intended
    case $((__sealci_now > __sealci_count))${__sealci_stat##*) } in 0?" $$ "*) __sealci_note exit ;; esac
  } || :
  \return "$1"
}

# __sealci_ended STATUS: record that the commands shell ends with code 0 before the last command. It runs in the EXIT trap,
# which a shell that was replaced by `exec` never runs.
__sealci_ended() {
  # shellcheck disable=SC2031 # this is the value of the commands shell, as intended
  case $1$((__sealci_now > __sealci_count)) in 00) (\unset -f printf; __sealci_note exit) || : ;; esac
  \return "$1"
}

# The alias puts the record into a redirection of `exit`. The shell neither traces a redirection nor counts it as a
# command, so `a && exit 3` and `$?` keep their meaning. The alias serves commands that set an EXIT trap of their own.
alias exit='8>>"$({ __sealci_left "$?"; } >/dev/null 2>&1)/dev/null" exit'
# The trap serves an `exit` that the shell does not expand: without aliases, after `unalias`, in `command exit`.
trap '{ __sealci_ended "$?"; } >/dev/null 2>&1' EXIT
# Without this trap TERM would end the commands shell before its child. PID 1 would then kill the child in its clean-up.
trap '{ \set +x; } 2>/dev/null; \exit 143' TERM
set -e
# shellcheck disable=SC3040 # PID 1 has tried whether this shell knows the option
case $__sealci_pipefail in ?*) set -o pipefail ;; esac

# In bash SHELLOPTS is read-only and lists the options that are on. In other shells it is a plain variable.
# This block comes last, and its own trace is discarded. It leaves out the options noexec and onecmd, which would end
# the shell before the commands.
{
  case $__sealci_options in ?*)
    # shellcheck disable=SC2030,SC2031 # the subshell tries whether the variable can be set
    if (SHELLOPTS=$__sealci_options); then SHELLOPTS=$__sealci_options __sealci_options=; fi
    export SHELLOPTS
    __sealci_options=$__sealci_options: ;;
  esac
  while
    __sealci_text=${__sealci_options%%:*} __sealci_options=${__sealci_options#*:}
    case $__sealci_text$__sealci_options in '') false ;; esac
  do
    # shellcheck disable=SC3040 # the subshell tries whether this shell knows the option
    case $__sealci_text in
      noexec | onecmd | '') ;;
      *) if (set -o "$__sealci_text"); then set -o "$__sealci_text"; fi ;;
    esac
  done
  unset __sealci_pipefail __sealci_options __sealci_text
} >/dev/null 2>&1
