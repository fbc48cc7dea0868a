# shellcheck shell=sh
# The commands shell evaluates this script before the first command of the user.
# `command.py` reads this file, drops whole-line comments and passes the rest as an argument of the commands shell.
# Arguments: this script, nonce, termination file, commands...
#
# The user's commands share the shell with this script. They may define functions and aliases called `printf`, `test`
# or `exit`. A backslash (`\printf`) avoids an alias, and `unset -f` in a subshell avoids a function.

# The log is /proc/PPID/fd/1 if the image's user can open that pipe. Then descriptor 8 is closed, so that no command of
# the user inherits it.
# shellcheck disable=SC1007 # these are empty values, in one line with others
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

# __sealci_say TEXT: write a marker into the log. If the user has redirected descriptor 8 to a file, a lost marker is
# better than a marker in the user's file.
__sealci_say() {
  \printf '\036sealci:%s:%s\n' "$__sealci_nonce" "$1" >>"$__sealci_log" && \return
  \test ! -e "$__sealci_log" || \test /proc/self/fd/8 -ef "$__sealci_log" || \return
  \printf '\036sealci:%s:%s\n' "$__sealci_nonce" "$1" >&8
}

# __sealci_note WORD: replace the termination message by a record of the current command.
__sealci_note() {
  \printf 'sealci %s %s %s\n' "$__sealci_nonce" "$1" "$__sealci_now" >|"$__sealci_file"
}

# __sealci NEXT STATUS: record that the command before NEXT ended with STATUS.
# The options a, x and v would export or print the variables and commands of this script. They are cleared here. The
# text that is evaluated next sets them again. The overrides of the user are removed in a subshell only.
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

# The alias puts the record into a redirection of `exit`. The shell neither traces a redirection nor counts it as a
# command, so `a && exit 3` and `$?` keep their meaning.
alias exit='8>>"$({ __sealci_left "$?"; } >/dev/null 2>&1)/dev/null" exit'
# Without this trap TERM would end the commands shell before its child. PID 1 would then kill the child in its clean-up.
trap '{ \set +x; } 2>/dev/null; \exit 143' TERM
set -e
# shellcheck disable=SC3040 # the subshell tries whether this shell knows the option
if (set -o pipefail) 2>/dev/null; then set -o pipefail; fi
