#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Usage: isa_hygiene.sh <objdump> <libchitu>. Looks for AVX and AMX code where a machine without them would run it: in a function that
# does not belong to a backend. A template of the standard library compiled in avx512.cpp, say, is a weak symbol, which the linker may
# choose for the whole program.
set -euo pipefail
objdump=$1 library=$2

"$objdump" --disassemble --demangle --no-show-raw-insn "$library" | awk '
  /^[^ ].*: +file format/ { object = $1; if (object ~ /^(avx|amx)/) ++backends }
  /^[0-9a-f]+ <.*>:$/ {
    name = substr($0, index($0, "<"))
    # What runs before main() runs on every machine, whatever its name.
    own = object ~ /^(avx|amx)/ && name ~ /[Aa](vx|mx)/ && name !~ /_GLOBAL__|__static_initialization/
    counted = 0
  }
  # VEX and EVEX mnemonics begin with v, but for masks (k), BMI, tiles and the two segment checks.
  $2 ~ /^(v[a-z].*|k(mov|and|andn|or|xor|xnor|not|shiftl|shiftr|ortest|test|unpck|add)[bwdq]+|andn|bextr|bls(i|r|msk)|bzhi|mulx|p(dep|ext)|rorx|s(ar|hl|hr)x|tile[a-z0-9]+|tdp[a-z0-9]+|(ld|st)tilecfg)[lq]?$/ && $2 !~ /^ver[rw]$/ {
    ++vectors
    if (own || counted) next
    counted = 1
    ++bad
    print object ": " name " " $2
  }
  END {
    if (!backends || !vectors) { print "found no backend in the library: the check looks at the wrong thing"; exit 1 }
    if (bad) { print bad " functions have instructions that an older machine lacks"; exit 1 }
  }'
