# shellcheck shell=sh
# The agent runs this script by exec in container `action` to end the commands: TERM first, KILL after the grace period.
# `command.py` reads this file, drops whole-line comments and passes the rest to `sh -c`.
# Arguments: the grace period in seconds with a fraction, the same period rounded up, and the FIFO that PID 1 reads.

exec >/dev/null 2>&1
# SHELLOPTS of the image may have switched these options on.
set +aefmuvxC
# PID 1 gets TERM by a call of its own, because `kill -TERM -1` leaves PID 1 out. This call comes first, so that PID 1
# knows of the TERM before the commands end. A word in the FIFO wakes a PID 1 that waits for container `helper`.
kill -TERM 1
[ ! -p "$3" ] || echo stop 1<>"$3"
kill -TERM -1
# A stopped process receives TERM only after CONT.
kill -CONT -1
# __sealci_left: succeed while the grace period lasts, measured by the uptime of the system.
__sealci_left() {
  read -r __sealci_up __sealci_rest </proc/uptime && [ "${__sealci_up%.*}" -lt "$__sealci_end" ]
}
# Some `sleep` commands accept whole seconds only, and some images have no `sleep`.
if ! sleep "$1" && ! sleep "$2"; then
  __sealci_end=0
  read -r __sealci_up __sealci_rest </proc/uptime && __sealci_end=$((${__sealci_up%.*} + $2 + 1))
  # shellcheck disable=SC3045 # a shell without `read -t` loops here without a wait until the grace period is over
  while __sealci_left; do read -t 0.1 -r __sealci_x <>/dev/ptmx; done
fi
kill -KILL -1
