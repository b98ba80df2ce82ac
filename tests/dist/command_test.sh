#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# command_test.sh CHITU: the command over several ranks gives the result of one, refuses by name, and draws plans.
set -euo pipefail
chitu=$1
mpirun=$(dirname "${BASH_SOURCE[0]}")/mpirun.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Random tensors as .npy, by the standard library alone; and the largest difference of two files.
cat >"$folder/npy.py" <<'PYTHON'
import array, random, struct, sys
def write(path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    count = shape[0] * shape[1] * shape[2] * shape[3]
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        array.array("f", (random.gauss(0, 1) for _ in range(count))).tofile(file)
def read(path):
    data = open(path, "rb").read()
    start = 10 + struct.unpack("<H", data[8:10])[0]
    return array.array("f", data[start:])
if sys.argv[1] == "make":
    random.seed(3)
    for name, heads in ("q", 4), ("k", 2), ("v", 2):
        write(f"{sys.argv[2]}/{name}.npy", (1, heads, 300, 32))
else:
    a, b = read(sys.argv[2]), read(sys.argv[3])
    assert len(a) == len(b) > 0, (len(a), len(b))
    size = sum(map(abs, b))
    difference = sum(abs(x - y) for x, y in zip(a, b))
    assert difference <= float(sys.argv[4]) * size, difference / size
PYTHON
python3 "$folder/npy.py" make "$folder"
inputs=(--q "$folder/q.npy" --k "$folder/k.npy" --v "$folder/v.npy" --causal)

for method in exact:1e-6 chitu:0.03; do
  "$chitu" run "${inputs[@]}" --method "${method%:*}" --out "$folder/one.npy" --lse "$folder/one_lse.npy"
  for ranks in ring=2,ulysses=2 ring=4 ulysses=4; do
    for shard in contiguous zigzag striped; do
      bash "$mpirun" 4 "$chitu" run "${inputs[@]}" --method "${method%:*}" --ranks "$ranks" --shard "$shard" --out "$folder/all.npy" --lse "$folder/all_lse.npy"
      python3 "$folder/npy.py" compare "$folder/all.npy" "$folder/one.npy" "${method#*:}" || fail "$method, $ranks, $shard"
      python3 "$folder/npy.py" compare "$folder/all_lse.npy" "$folder/one_lse.npy" "${method#*:}" || fail "lse of $method, $ranks, $shard"
    done
  done
done

# refused WORDS COMMAND...: ends with an error, said once.
refused() {
  local words=$1 said status=0
  shift
  said=$("$@" 2>&1) || status=$?
  ((status != 0)) || fail "not refused: $*"
  [[ $(grep -c '^chitu: error:' <<<"$said") == 1 && $said == *"$words"* ]] || fail "'$words' is not what was said, once: $said"
}
refused "is 3 ranks, but 2 are started; start them with mpirun -n 3" bash "$mpirun" 2 "$chitu" run "${inputs[@]}" --ranks ring=3 --out "$folder/x.npy"
refused "ulysses 3 cannot share out 4 heads" bash "$mpirun" 3 "$chitu" run "${inputs[@]}" --ranks ulysses=3 --out "$folder/x.npy"
refused "cannot be opened" bash "$mpirun" 2 "$chitu" run --q "$folder/none.npy" --k "$folder/k.npy" --v "$folder/v.npy" --ranks ring=2 --out "$folder/x.npy"
refused "must be like ring=2,ulysses=2" "$chitu" run "${inputs[@]}" --ranks 2 --out "$folder/x.npy"
refused "must be contiguous, zigzag or striped" "$chitu" run "${inputs[@]}" --ranks ring=1 --shard zag --out "$folder/x.npy"
refused "--tflops is missing" "$chitu" plan
refused "must be one of pcie4" "$chitu" plan --tflops 1 --link string
[[ ! -e $folder/x.npy ]] || fail "a refused call left a file"

bash "$mpirun" 2 "$chitu" bench --ranks ring=2 --lengths 256 --heads 2 --dim 32 --method chitu --runs 1 --json "$folder/bench.json" | grep -q '^| chitu ' || fail "bench printed no row"
grep -q '"kv_bytes_a_number": 1\.' "$folder/bench.json" || fail "bench wrote no bytes"

# In a causal ring of contiguous shards rank 0 needs nobody's keys and rank 3 everybody's; in zigzag all work alike.
"$chitu" plan --ranks ring=4 --tokens 4K --causal --tflops 1 >"$folder/plan"
grep -Eq '^\| 0 +\| 0 \.\.\. 1023 +\| 0: 25 % +\| - +\| - +\| - +\|$' "$folder/plan" || fail "the plan of rank 0: $(cat "$folder/plan")"
grep -Eq '^\| 3 +\| 3072 \.\.\. 4095 +\| 3: 25 % +\| 2: 50 % +\| 1: 50 % +\| 0: 50 % +\|$' "$folder/plan" || fail "the plan of rank 3"
"$chitu" plan --ranks ring=4 --tokens 4K --causal --shard zigzag --tflops 1 | grep -Eq '^One rank: .* ms\. 4 ranks: ' || fail "no summary"
