// SPDX-License-Identifier: Apache-2.0
// Options::check_device_lengths: reads the starts that the GPU would use, and says what is wrong with them.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "cuda/call.h"
#include "cuda/launch.h"

namespace chitu::cuda {
namespace {

std::vector<std::int64_t> read(std::span<const std::int32_t> starts, cudaStream_t stream) {
  std::vector<std::int32_t> host(starts.size());
  check(cudaMemcpyAsync(host.data(), starts.data(), starts.size_bytes(), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return {host.begin(), host.end()};
}

void check_one(std::span<const std::int32_t> on_gpu, const std::string& name, std::int64_t tokens, std::int64_t longest,
               cudaStream_t stream) {
  const std::vector<std::int64_t> starts = read(on_gpu, stream);
  require(starts.front() >= 0, "device_", name, "_starts begin at ", starts.front(), "; they must not be negative");
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const std::int64_t length = starts[i + 1] - starts[i];
    require(length >= 0, "device_", name, "_starts fall from ", starts[i], " to ", starts[i + 1], " at index ", i + 1, "; they must never");
    require(length <= longest, "device_", name, "_starts give sequence ", i, " ", length, " tokens, but max_",
            name == "query" ? "queries" : "keys", " is ", longest);
  }
  require(starts.back() <= tokens, "device_", name, "_starts end at ", starts.back(), ", but there are ", tokens, " tokens");
}

}  // namespace

void check_device_lengths(const Problem& p) {
  const Options& o = p.options;
  const auto stream = static_cast<cudaStream_t>(o.stream);
  const DeviceGuard guard(p.query.tensor().device_id);
  require(!is_capturing(stream), "check_device_lengths waits for the stream, which is being captured into a graph: leave it off there");
  if (!o.device_key_lengths.empty()) {
    const std::vector<std::int64_t> lengths = read(o.device_key_lengths, stream);
    const std::int64_t most = p.sequences.front().keys;
    for (std::size_t i = 0; i < lengths.size(); ++i)
      require(lengths[i] >= 0 && lengths[i] <= most, "device_key_lengths[", i, "] is ", lengths[i], "; it must be 0 ... ", most);
    return;
  }
  check_one(o.device_query_starts, "query", p.query.tensor().shape[2], o.max_queries, stream);
  check_one(o.device_key_starts, "key", p.key.tensor().shape[2], o.max_keys, stream);
}

}  // namespace chitu::cuda
