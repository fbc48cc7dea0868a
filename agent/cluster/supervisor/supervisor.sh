# shellcheck shell=sh
# PID 1 of container `action`: waits for the workspace, runs the commands shell, and reports its end.
# `command.py` reads this file, drops whole-line comments and passes the rest to `sh -c`.
# Arguments: shell, setup script, command list script, nonce, workspace, ready file, termination file, commands...

exec 2>/dev/null
# The shell's own messages ("Terminated") are discarded here. The commands get a copy of the log as their stderr.
__sealci_shell=$1 __sealci_setup=$2 __sealci_list=$3 __sealci_nonce=$4
__sealci_workspace=$5 __sealci_ready=$6 __sealci_file=$7 __sealci_stopped=
shift 7
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

if ! cd "$__sealci_workspace" >/dev/null; then
  # This code is WORKSPACE_FAILED in termination.py.
  __sealci_code=125
  printf 'sealci: the workspace %s cannot be entered\n' "$__sealci_workspace"
  printf 'the workspace %s cannot be entered' "$__sealci_workspace" >|"$__sealci_file"
elif [ -n "$__sealci_stopped" ]; then
  __sealci_code=$__sealci_stopped
else
  # `cd` has set OLDPWD. The user's shell must start without it.
  unset OLDPWD
  # The redirections need a subshell: dash applies them before it forks and would print "Killed" into the log.
  # The commands shell must be a foreground child. POSIX lets a background child (`&`) ignore INT and QUIT.
  (
    exec "$__sealci_shell" -c "$__sealci_list" sh "$__sealci_setup" "$__sealci_nonce" "$__sealci_file" "$@" \
      8>&1 2>&1 </dev/null
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
