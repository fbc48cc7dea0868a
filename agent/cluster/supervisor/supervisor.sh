# shellcheck shell=sh
# PID 1 of container `action`: waits for the order, runs the commands shell, and reports its end.
# `command.py` reads this file and drops whole-line comments. Container `helper` writes the rest into the order's folder,
# and the short command of container `action` (`BOOT` in `command.py`) sources it. Argument: the order's folder.
# shellcheck disable=SC2154 # the file `order` assigns the variables that are not assigned here

# bash switches on the options that SHELLOPTS of the image names. They would trace, print or end this script. The
# commands shell switches them on again before the first command. In other shells SHELLOPTS is a plain variable.
# shellcheck disable=SC3028 # in other shells SHELLOPTS is unset or the user's
{ __sealci_options=${SHELLOPTS-}; set +aefmuvxC; } >/dev/null 2>&1
# With this option of bash, `export A=B` would export nothing.
# shellcheck disable=SC3041 # only bash shows k in its options
case $- in *k*) set +k ;; esac
# shellcheck disable=SC3028 # in other shells SHELLOPTS is unset or the user's
case ${SHELLOPTS-} in "$__sealci_options") __sealci_options= ;; esac
# PID 1 is a reader of the log, too, so that no writer gets SIGPIPE if container `helper` ends. The standard error of
# PID 1 is the log for every process that opens /proc/1/fd/2. PID 1 itself can only read there, so the messages of its
# shell ("Terminated") are lost. The helper takes the end of file of `control` for the end of PID 1.
exec 1<>"$1/log" 9<>"$1/control"
exec 2<"$1/log"
# The helper gives a clone to the user and the group of this process. The image may have no `id`.
__sealci_user=
while read -r __sealci_word __sealci_real __sealci_effective __sealci_rest; do
  case $__sealci_word in
    Uid:) __sealci_user=$__sealci_effective ;;
    Gid:) __sealci_user="$__sealci_user $__sealci_effective"; break ;;
  esac
done </proc/self/status
echo "here $__sealci_user" >&9
# PID 1 only remembers TERM. The commands get TERM by the exec of `interrupt` or `pre_stop`.
trap '__sealci_stopped=143' TERM
# Dash would exit on INT. A trap with a command is not inherited by the commands, while an ignored signal is.
trap : INT

# TERM between the loop's test and `read` would go unnoticed, so `interrupt` and `pre_stop` write into this FIFO after TERM.
__sealci_word=
# The helper of a warm pod that got no order in time writes `leave`.
until [ "$__sealci_word" = run ] || [ -n "${__sealci_stopped-}" ]; do
  read -r __sealci_word
  [ "$__sealci_word" != leave ] || __sealci_stopped=0
done <>"$1/go"

__sealci_refusal=
if [ -z "${__sealci_stopped-}" ]; then
  # shellcheck disable=SC1091 # the helper writes this file
  . "$1/order"
  # shellcheck disable=SC3040 # the subshell tries whether this shell knows the option
  if [ -n "$__sealci_pipefail" ] && ! (set -o pipefail); then
    if [ "$__sealci_pipefail" = required ]; then
      __sealci_refusal="the action asks for shell.pipefail, and the image's /bin/sh has no pipefail"
    else
      printf "sealci: the image's /bin/sh has no pipefail: a failure inside a pipe is not noticed\n"
    fi
    __sealci_pipefail=
  fi
  cd "$__sealci_workspace" >/dev/null || __sealci_refusal="the workspace $__sealci_workspace cannot be entered"
fi

if [ -n "$__sealci_refusal" ]; then
  # This code is REFUSED in termination.py.
  __sealci_code=125
  printf 'sealci: %s\n' "$__sealci_refusal"
  printf '%s' "$__sealci_refusal" >|"$__sealci_file"
elif [ -n "${__sealci_stopped-}" ]; then
  __sealci_code=$__sealci_stopped
else
  # `cd` has set OLDPWD. The user's shell must start without it.
  unset OLDPWD
  # The commands shell must be a foreground child. POSIX lets a background child (`&`) ignore INT and QUIT. Only this
  # subshell has the action's variables, so they cannot change what PID 1 does.
  # shellcheck disable=SC1091 # the helper writes this file
  (
    . "$1/env"
    exec "$__sealci_shell" -c ". \"\$1/setup\"; $__sealci_list" sh "$1" "$__sealci_pipefail" "$__sealci_options" \
      >"$1/log" 2>&1 9>&- </dev/null
  )
  __sealci_code=$?
  # Processes that outlive the commands shell may still have output. The helper answers `drained` when no process can
  # write into the log any more, or after a second. Until then PID 1 must not count as a writer.
  exec 1<"$1/log"
  echo ended >&9
  until [ "$__sealci_word" = drained ]; do read -r __sealci_word; done <>"$1/go"
  # No process may print after the last marker, so all other processes are killed before it.
  kill -KILL -1
  __sealci_tries=0
  # Each fork also makes the shell reap dead children. The count ends the loop if a process cannot be killed.
  while kill -0 -1 && [ "$__sealci_tries" -lt 500 ]; do
    ( : )
    __sealci_tries=$((__sealci_tries + 1))
  done
  printf 'sealci %s %s %s\n' "$__sealci_nonce" "${__sealci_stopped:+told_to_}end" "$__sealci_code" >>"$__sealci_file"
  exec 1<>"$1/log"
fi
# If PID 1 got TERM before the order, the nonce is empty. No session then reads this marker.
printf '\036sealci:%s:l:0:%s\n' "$__sealci_nonce" "$__sealci_code"
exit "$__sealci_code"
