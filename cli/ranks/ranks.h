// SPDX-License-Identifier: Apache-2.0
// The command over several ranks (--ranks), started by mpirun. A build without chitu::dist_mpi has none.cpp, which refuses --ranks by name.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chitu/chitu.h"
#include "cli/measure/measure.h"
#include "cli/measure/report.h"

namespace CLI {
class App;
}

namespace chitu::cli {

struct RanksFlags {
  std::string ranks{}, sharding = "contiguous";
  bool wanted() const { return !ranks.empty(); }
};
void add_ranks(CLI::App& command, RanksFlags& flags);  // --ranks, --shard

// The ranks that mpirun has started. There is one World at a time, and none after it.
class World {
 public:
  World();  // throws Error(unsupported) in a build without ranks
  World(const World&) = delete;
  ~World();
  int rank() const;
  void lay_out(const RanksFlags& flags);         // throws Error(bad_argument) unless mpirun has started as many ranks as the flags say
  int threads(std::optional<int> wanted) const;  // of this rank; unless wanted, its part of the machine's
  // Does a step on each rank. If it fails on one, all ranks get the same Error.
  void together(const std::function<void()>& step);
  // attention() of the same tensors on every rank, of which each takes its part. The result is whole on rank 0.
  void attend(const Tensor& query, const Tensor& key, const Tensor& value, const Output& output, const Options& options);

  struct Parts;
  Parts& parts() { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

// Runs body on each rank. An Error that all ranks have is printed by rank 0 alone.
void on_ranks(const RanksFlags& flags, const std::function<void(World&)>& body);

// together() of a world, or the step alone where there is none.
inline void together(World* world, const std::function<void()>& step) { world ? world->together(step) : step(); }

struct RanksBench {
  const WorkloadSource& source;
  std::vector<const Method*> methods;
  std::vector<std::int64_t> lengths;
  MeasureSettings settings;
  std::int64_t rows = 0;  // compared with double precision; 0: as many as a few seconds allow
  ReportFile *csv = nullptr, *json = nullptr;
};
void bench_on_ranks(World& world, const RanksBench& bench);

}  // namespace chitu::cli
