#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# update_readme.sh [bench|accuracy]...: fills these blocks of README.md (both, unless named), between <!-- NAME:begin --> and
# <!-- NAME:end -->, with what build/chitu measures on this machine. Run it on a quiet one, after ./run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "update_readme.sh: $*" >&2
  exit 1
}

# The tables of run.sh as a part of a page: headings two levels down, the machine as a list, no line of it twice.
bench() {
  tools/bench_tables.sh | sed -E 's/^## /#### /; s/^(Machine|Peaks|Times|TFLOPS|Differences: to)/- &/' | awk '!(/^- / && seen[$0]++)'
}

# Relative L1 of each method on each distribution, the worst row's in brackets.
accuracy() {
  local table
  table=$(mktemp)
  build/chitu accuracy --data all --csv "$table" >/dev/null
  printf '%s\n\n' "\`build/chitu accuracy --data all\`: relative L1, and that of the worst row"
  awk -F, '
    NR == 1 { for (i = 1; i <= NF; ++i) column[$i] = i; next }
    $column["method"] == "exact" { next }
    {
      method = $column["method"]
      data = $column["data"]
      if (!(method in cells)) { methods[++method_count] = method; cells[method] }
      if (!(data in rows)) { order[++data_count] = data; rows[data] = "| " data " |" }
      rows[data] = rows[data] sprintf(" %.4f (%.3f) |", $column["rel_l1"], $column["worst_row_rel_l1"])
    }
    END {
      printf "| data |"
      for (i = 1; i <= method_count; ++i) printf " %s |", methods[i]
      printf "\n| --- |"
      for (i = 1; i <= method_count; ++i) printf " ---: |"
      print ""
      for (i = 1; i <= data_count; ++i) print rows[order[i]]
    }' "$table"
  rm "$table"
}

fill() { # NAME, text on stdin
  local text
  text=$(cat)
  [[ $(grep -c -e "^<!-- $1:begin -->$" -e "^<!-- $1:end -->$" README.md) == 2 ]] || fail "README.md has no block $1"
  TEXT=$text awk -v name="$1" '
    $0 == "<!-- " name ":end -->" { inside = 0 }
    !inside
    $0 == "<!-- " name ":begin -->" { inside = 1; print ENVIRON["TEXT"] }' README.md >README.md.new
  mv README.md.new README.md
}

[[ -x build/chitu ]] || fail "there is no build/chitu; ./run.sh builds it"
(($#)) || set -- bench accuracy
for block in "$@"; do
  [[ $block == bench || $block == accuracy ]] || fail "there is no block '$block'; the blocks are bench and accuracy"
  text=$("$block")
  fill "$block" <<<"$text"
done
