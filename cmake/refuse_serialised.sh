#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# refuse_serialised.sh COMPILER ARGUMENT...: runs it, and fails if it says that wgmma instructions are serialised: to ptxas that is no
# warning, so -Werror does not see it.
report=$(mktemp) || exit
trap 'rm -f "$report"' EXIT
"$@" 2>"$report"
status=$?
cat "$report" >&2
if grep -q 'wgmma.*serialized' "$report"; then
  echo "refused: serialised wgmma (see above)" >&2
  exit 1
fi
exit "$status"
