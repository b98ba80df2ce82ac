// SPDX-License-Identifier: Apache-2.0
// What the files of this folder share.
#pragma once

#include <string>

#include "chitu/dist.h"
#include "chitu/dist_mpi.h"
#include "cli/ranks/ranks.h"

namespace chitu::cli {

dist::Ranks parse_ranks(const std::string& word);        // "ring=2,ulysses=2"; what is not named is 1
dist::Sharding parse_sharding(const std::string& word);  // "zigzag"

int machine_threads();

struct World::Parts {
  std::unique_ptr<dist::MpiCommunicator> comm;
  dist::Ranks ranks{};
  dist::Sharding sharding = dist::Sharding::contiguous;
  int local_ranks = 1;  // on this machine

  // The task for one sequence in each batch entry.
  dist::Task task(const Tensor& query, const Tensor& key, const Window& window) const;
};

// A copy of the tokens of a shard of the whole tensor; first: the token at position 0.
HostTensor take(const Tensor& whole, const dist::Shard& shard, std::int64_t first);

// Rank 0 puts the parts of all ranks into the whole tensor. tag: of the messages, from 100 on.
void gather(dist::Communicator& comm, const dist::Layout& layout, const Tensor& mine, const Tensor& whole, std::int64_t first, int tag);

}  // namespace chitu::cli
