# shellcheck shell=sh
# PID 1 of container `action`: waits for the workspace, runs the commands shell, and reports its end.
# `command.py` reads this file, drops whole-line comments and passes the rest to `sh -c`.
# Arguments: shell, setup script, command list script, nonce, workspace, ready file, termination file, pipefail, commands...

# bash switches on the options that SHELLOPTS of the image names. They would trace, print or end this script. The
# commands shell switches them on again before the first command. In other shells SHELLOPTS is a plain variable.
# shellcheck disable=SC3028 # in other shells it is unset or the user's
{ __sealci_options=${SHELLOPTS-}; set +aefmuvxC; } >/dev/null 2>&1
exec 2>/dev/null
# shellcheck disable=SC3028 # the same
case ${SHELLOPTS-} in "$__sealci_options") __sealci_options= ;; esac
# The agent passes the SHELLOPTS of the action under this name.
__sealci_options=${__sealci_shellopts-$__sealci_options}
unset __sealci_shellopts
# The shell's own messages ("Terminated") are discarded here. The commands get a copy of the log as their stderr.
__sealci_shell=$1 __sealci_setup=$2 __sealci_list=$3 __sealci_nonce=$4
__sealci_workspace=$5 __sealci_ready=$6 __sealci_file=$7 __sealci_pipefail=$8 __sealci_stopped=
shift 8
# PID 1 only remembers TERM. The commands get TERM by the exec of `interrupt` or `pre_stop`.
trap '__sealci_stopped=143' TERM
# Dash would exit on INT. A trap with a command is not inherited by the commands, while an ignored signal is.
trap : INT

__sealci_nap() {
  # Some images have no `sleep`. Then bash and busybox wait in `read -t`, and dash loops without a wait.
  # A failed `sleep 0.02` may mean that `sleep` accepts whole seconds only. TERM must not cost that second.
  # shellcheck disable=SC3045 # a shell without `read -t` fails here, and the `:` after it covers the failure
  sleep 0.02 || [ -n "$__sealci_stopped" ] || sleep 1 || read -t 0.02 -r __sealci_x <>/dev/ptmx || :
}

until [ -z "$__sealci_ready" ] || [ -e "$__sealci_ready" ] || [ -n "$__sealci_stopped" ]; do __sealci_nap; done

__sealci_refusal=
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

if [ -n "$__sealci_refusal" ]; then
  # This code is REFUSED in termination.py.
  __sealci_code=125
  printf 'sealci: %s\n' "$__sealci_refusal"
  printf '%s' "$__sealci_refusal" >|"$__sealci_file"
elif [ -n "$__sealci_stopped" ]; then
  __sealci_code=$__sealci_stopped
else
  # `cd` has set OLDPWD. The user's shell must start without it.
  unset OLDPWD
  # The redirections need a subshell: dash applies them before it forks and would print "Killed" into the log.
  # The commands shell must be a foreground child. POSIX lets a background child (`&`) ignore INT and QUIT.
  (
    exec "$__sealci_shell" -c "$__sealci_list" sh "$__sealci_setup" "$__sealci_nonce" "$__sealci_file" \
      "$__sealci_pipefail" "$__sealci_options" "$@" 8>&1 2>&1 </dev/null
  )
  __sealci_code=$?
  # No process may print after the last marker, so all other processes are killed before it.
  kill -KILL -1
  __sealci_tries=0
  # Each fork also makes the shell reap dead children. The count ends the loop if a process cannot be killed.
  while kill -0 -1 && [ "$__sealci_tries" -lt 500 ]; do
    ( : )
    __sealci_tries=$((__sealci_tries + 1))
  done
  printf 'sealci %s %s %s\n' "$__sealci_nonce" "${__sealci_stopped:+told_to_}end" "$__sealci_code" >>"$__sealci_file"
fi
printf '\036sealci:%s:l:0:%s\n' "$__sealci_nonce" "$__sealci_code"
exit "$__sealci_code"
