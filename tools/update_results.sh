#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fills the measured tables of the documents. A table stands between <!-- NAME:begin --> and <!-- NAME:end -->.
#   tools/update_results.sh NAME...           fills these; without a name all of them
#   tools/update_results.sh --check NAME...   changes nothing; fails if one of them is not what would be filled in
# gains     README.md: the first screen's table     from CSV files in bench/results
# gpu       docs/results.md: on a GPU               from bench/results/gpu_peers.csv, gpu_long.csv and gpu_captured.csv
# models    docs/results.md: calls of models        from bench/results/gpu_model_calls.csv
# trained   docs/python.md: trained models          from bench/results/trained_models.csv, which tools/python.sh models makes
# bench     docs/results.md: on a CPU               measured now with build/chitu: run it on a quiet machine, after ./run.sh
# accuracy  docs/results.md: errors                 the same
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "update_results.sh: $*" >&2
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

# The tables of run.sh as a part of a page: headings one level down, the machine as a list, no line of it twice.
bench() {
  tools/bench_tables.sh | sed -E 's/^## /### /; s/^(Machine|Peaks|Times|TFLOPS|Differences: to)/- &/' | awk '!(/^- / && seen[$0]++)'
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
attention of the others, all in turn in one process. All of it, the others' FP8 too: [$table](../$table)."
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
precision on sampled rows. All of it: [gpu_long.csv](../bench/results/gpu_long.csv) ($(commit_of long)), [gpu_captured.csv](../bench/results/gpu_captured.csv)
($(commit_of captured)), and [gpu_filled.csv](../bench/results/gpu_filled.csv) ($(commit_of filled)) for 1K to 16K tokens."
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

# The fastest 16-bit attention of others over this library's `chitu`: how much it gains, and where it loses.
gains() {
  local peers=bench/results/gpu_peers.csv models=bench/results/gpu_model_calls.csv cpu=bench/results/cpu_torch_sdpa.csv
  printf '%s\n' "| \`chitu\`, quantisation included, against the fastest 16-bit attention of others | times as fast | measured |" "| --- | ---: | --- |"
  tail -n +2 "$peers" | awk -F, -v file="$peers" "$awk_tables"'
    NR == 1 { read_header(); next }
    $column["contender"] != "chitu chitu" || $column["dtype"] != "bf16" || $column["dim"] != 128 { next }
    { gain[$column["length"], $column["causal"]] = sprintf("%.2fx", $column["speedup"]) }
    END {
      printf "| one H200, dim 128, 16K and 4K tokens | **%s** and **%s** | [peers](%s) |\n", gain[16384, 0], gain[4096, 0], file
      printf "| the same, 1K tokens, and 1K with a causal mask | %s and %s: slower | [peers](%s) |\n", gain[1024, 0], gain[1024, 1], file
    }'
  tail -n +2 "$models" | awk -F, -v file="$models" "$awk_tables"'
    NR == 1 { read_header(); next }
    $column["absent"] != "" { next }
    {
      name = $column["contender"]
      call = $column["call"]
      gain = $column["speedup"]
      if (name == "chitu exact") exact[call] = gain
      if (name != "chitu chitu") next
      if ($column["queries"] == 1) { if (!decode || gain < decode) decode = gain; next }
      own[call] = gain
      logs += log(gain)
      if (!count || gain < worst) worst = gain
      if (!count++ || gain > best) best = gain
    }
    END {
      for (call in own) both += log(own[call] > exact[call] ? own[call] : exact[call])
      printf "| one H200, %d calls that models make | geometric mean %.2fx, from %.2fx to %.2fx; decoding %.2fx | [models](%s) |\n",
        count, exp(logs / count), worst, best, decode, file
      printf "| the same, the faster of `chitu` and `exact` for each call | geometric mean %.2fx | [models](%s) |\n", exp(both / count), file
    }'
  # Runs of one contender stand together; sorted by their time the middle one is the median.
  sort -t, -k1,1 -k2,2 -k8,8g "$cpu" | awk -F, -v file="$cpu" '
    $1 == "library" { next }
    { seconds[$1, $2, ++count[$1, $2]] = $8; tokens = $3; threads = $6 }
    function median(library, type,  n) {
      n = count[library, type]
      return (seconds[library, type, int((n + 1) / 2)] + seconds[library, type, int((n + 2) / 2)]) / 2
    }
    END {
      torch = median("PyTorch", "bf16") < median("PyTorch", "f32") ? median("PyTorch", "bf16") : median("PyTorch", "f32")
      printf "| %d CPU cores with AVX-512, %d tokens, PyTorch | **%.2fx** | [torch](%s) |\n", threads, tokens, torch / median("chitu", "bf16"), file
    }'
}

# How much faster than the fastest 16-bit attention of others, for calls that models make.
models() {
  local table=bench/results/gpu_model_calls.csv
  printf '%s\n\n' "\`$(sed -n '1{s/^# //;s/;.*//;p}' "$table")\`, and again with \`--decode\`, on one $(sed -n '1{s/^[^;]*; //;p}' "$table").
Medians, all in turn in one process. All of it: [gpu_model_calls.csv](../$table)."
  tail -n +2 "$table" | awk -F, "$awk_tables"'
    NR == 1 { read_header(); next }
    $column["absent"] != "" { next }
    {
      call = $column["call"]
      name = $column["contender"]
      if (!(call in what)) {
        order[++calls] = call
        what[call] = sprintf("%d | %d, %d | %d | %d | %d | %s", $column["batch"], $column["heads"], $column["kv_heads"], $column["queries"],
          $column["length"], $column["dim"], ($column["causal"] ? "causal" : "none"))
      }
      if ($column["sixteen_bit"] && (!(call in ms) || $column["total_ms"] + 0 < ms[call])) {
        ms[call] = $column["total_ms"] + 0
        who[call] = name
      }
      speedup[call, name] = $column["speedup"]
    }
    END {
      print "| call | batch | heads, kv heads | queries | keys | dim | mask | others, 16-bit, ms | `exact` | `chitu` |"
      print "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |"
      for (i = 1; i <= calls; ++i) {
        call = order[i]
        printf "| %s | %s | %.3f (%s) | %.2fx | %.2fx |\n", call, what[call], ms[call], who[call], speedup[call, "chitu exact"],
          speedup[call, "chitu chitu"]
      }
    }'
}

# What a method's attention changes in trained models.
trained() {
  local table=bench/results/trained_models.csv
  printf '%s\n\n' "\`$(sed -n '1{s/^# //;s/;.*//;p}' "$table")\` on $(sed -n '1{s/^[^;]*; //;p}' "$table").
All of it: [$table](../$table)."
  tail -n +2 "$table" | awk -F, "$awk_tables"'
    NR == 1 {
      read_header()
      print "| attention | perplexity | to PyTorch | KL, nats | same first choice | KL, decoding | greedy text | similarities | nearest |"
      print "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
      next
    }
    $column["method"] == "torch" { printf "| PyTorch | %.2f | | | | | | | |\n", $column["perplexity"]; next }
    {
      printf "| `%s` | %.2f | %+.3f %% | %.1e | %.2f %% | %.1e | %d of %d | %.4f | %d of %d |\n", $column["method"], $column["perplexity"],
        $column["to_torch_percent"], $column["kl"], $column["same_choice_percent"], $column["decoding_kl"], $column["greedy_same"],
        $column["greedy_tokens"], $column["similarity_error"], $column["same_nearest"], $column["sentences"]
    }'
}

page_of() {
  case $1 in
    gains) echo README.md ;;
    trained) echo docs/python.md ;;
    *) echo docs/results.md ;;
  esac
}

# The page of a block with the text on stdin in the block's place.
filled() { # NAME
  local text page
  text=$(cat)
  page=$(page_of "$1")
  [[ $(grep -c -e "^<!-- $1:begin -->$" -e "^<!-- $1:end -->$" "$page") == 2 ]] || fail "$page has no block $1"
  TEXT=$text awk -v name="$1" '
    $0 == "<!-- " name ":end -->" { inside = 0 }
    !inside
    $0 == "<!-- " name ":begin -->" { inside = 1; print ENVIRON["TEXT"] }' "$page"
}

check=false
if [[ ${1-} == --check ]]; then
  check=true
  shift
fi
(($#)) || set -- gains gpu models trained bench accuracy
for block in "$@"; do
  case $block in
    bench | accuracy) [[ -x build/chitu ]] || fail "there is no build/chitu; ./run.sh builds it" ;;
    gains | gpu | models | trained) ;;
    *) fail "there is no block '$block'; the blocks are gains, gpu, models, trained, bench and accuracy" ;;
  esac
  page=$(page_of "$block")
  text=$("$block")
  new=$(mktemp)
  filled "$block" <<<"$text" >"$new"
  if $check; then
    diff -u "$page" "$new" || fail "block '$block' of $page is stale: tools/update_results.sh $block"
  else
    cat "$new" >"$page"
  fi
  rm "$new"
done
