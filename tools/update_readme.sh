#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# update_readme.sh [bench|accuracy|gpu]...: fills these blocks of README.md (all, unless named), between <!-- NAME:begin --> and
# <!-- NAME:end -->: bench and accuracy with what build/chitu measures on this machine (run it on a quiet one, after ./run.sh), gpu
# with a digest of bench/results/gpu_peers.csv, gpu_long.csv and gpu_captured.csv, which bench/peers.py and tools/gpu_tables.sh wrote on a
# machine with a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "update_readme.sh: $*" >&2
  exit 1
}

# For awk programs on a CSV: column numbers by name from its header; a table with a column to the right for each of `methods`.
readonly awk_tables='
  function read_header(  i) { for (i = 1; i <= NF; ++i) column[$i] = i }
  function add_method(name) { if (!(name in known)) { known[name]; methods[++method_count] = name } }
  function print_head(names, rule, quote,  i) {
    printf "%s", names
    for (i = 1; i <= method_count; ++i) printf " %s |", quote methods[i] quote
    printf "\n%s", rule
    for (i = 1; i <= method_count; ++i) printf " ---: |"
    print ""
  }'

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
  awk -F, "$awk_tables"'
    NR == 1 { read_header(); next }
    $column["method"] == "exact" { next }
    {
      method = $column["method"]
      data = $column["data"]
      add_method(method)
      if (!(data in rows)) { order[++data_count] = data; rows[data] = "| " data " |" }
      rows[data] = rows[data] sprintf(" %.4f (%.3f) |", $column["rel_l1"], $column["worst_row_rel_l1"])
    }
    END {
      print_head("| data |", "| --- |", "")
      for (i = 1; i <= data_count; ++i) print rows[order[i]]
    }' "$table"
  rm "$table"
}

commit_of() { sed -n '1s/.*; \(commit .*\)/\1/p' "bench/results/gpu_$1.csv"; }

# Of each shape the fastest 16-bit attention of others and this library's methods, from bf16 tensors.
gpu() {
  local table=bench/results/gpu_peers.csv
  printf '%s\n\n' "\`$(sed -n '1{s/^# //;s/;.*//;p}' "$table")\` on one $(sed -n '1{s/^[^;]*; //;p}' "$table")."
  printf '%s\n\n' "Milliseconds of a call from bf16 tensors, quantisation included, and how much faster that is than the fastest 16-bit
attention of the others, all in turn in one process. All of it, the others' FP8 too: [$table]($table)."
  tail -n +2 "$table" | awk -F, "$awk_tables"'
    NR == 1 { read_header(); next }
    $column["absent"] != "" { next }
    {
      shape = "| " $column["dim"] " | " $column["batch"] " x " $column["heads"] " | " $column["length"] " | " ($column["causal"] ? "causal" : "none")
      if (!(shape in best)) { order[++shapes] = shape; best[shape] = 0 }
      name = $column["contender"]
      ms = $column["total_ms"]
      if ($column["sixteen_bit"] && (!best[shape] || ms < best[shape])) {
        best[shape] = ms
        who[shape] = name ", " $column["dtype"]
      }
      if (sub(/^chitu /, "", name) && $column["dtype"] == "bf16") {
        add_method(name)
        cell[shape, name] = sprintf("%.3f (%.2fx)", ms, $column["speedup"])
      }
    }
    END {
      print_head("| dim | batch x heads | tokens | mask | others, 16-bit |", "| ---: | ---: | ---: | --- | ---: |", "`")
      for (s = 1; s <= shapes; ++s) {
        printf "%s | %.3f (%s) |", order[s], best[order[s]], who[order[s]]
        for (i = 1; i <= method_count; ++i) printf " %s |", (order[s], methods[i]) in cell ? cell[order[s], methods[i]] : "-"
        print ""
      }
    }'
  printf '\n%s\n\n' "Long sequences and captured heads, by \`tools/gpu_tables.sh\`: how much faster than \`exact\` of this library, and relative L1 to double
precision on sampled rows. All of it: [gpu_long.csv](bench/results/gpu_long.csv) ($(commit_of long)), [gpu_captured.csv](bench/results/gpu_captured.csv)
($(commit_of captured)), and [gpu_filled.csv](bench/results/gpu_filled.csv) ($(commit_of filled)) for 1K to 16K tokens."
  for table in bench/results/gpu_long.csv bench/results/gpu_captured.csv; do tail -n +2 "$table"; done | awk -F, "$awk_tables"'
    $1 == "method" { read_header(); next }
    {
      shape = "| " $column["data"] " | " $column["dim"] " | " $column["heads"] " | " $column["tokens"] " | " ($column["causal"] == "true" ? "causal" : "none")
      if (!(shape in exact)) order[++shapes] = shape
      name = $column["method"]
      if (name == "exact") { exact[shape] = sprintf("%.2f", $column["total_ms"]); next }
      add_method(name)
      cell[shape, name] = sprintf("%.2fx, %.4f", $column["speedup"], $column["rel_l1"])
    }
    END {
      print_head("| data | dim | heads | tokens | mask | `exact` ms |", "| --- | ---: | ---: | ---: | --- | ---: |", "`")
      for (s = 1; s <= shapes; ++s) {
        printf "%s | %s |", order[s], exact[order[s]]
        for (i = 1; i <= method_count; ++i) printf " %s |", cell[order[s], methods[i]]
        print ""
      }
    }'
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

(($#)) || set -- bench accuracy gpu
for block in "$@"; do
  case $block in
    bench | accuracy) [[ -x build/chitu ]] || fail "there is no build/chitu; ./run.sh builds it" ;;
    gpu) [[ -s bench/results/gpu_peers.csv ]] || fail "there is no bench/results/gpu_peers.csv; bench/peers.py writes it" ;;
    *) fail "there is no block '$block'; the blocks are bench, accuracy and gpu" ;;
  esac
  text=$("$block")
  fill "$block" <<<"$text"
done
