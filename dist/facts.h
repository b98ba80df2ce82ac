// SPDX-License-Identifier: Apache-2.0
// What a call is, for the other ranks.
#pragma once

#include <string>

#include "chitu/dist.h"

namespace chitu::dist {

struct Arguments {
  const Task& task;
  Tensor query, key, value;
  Output output;
  const Options& options;
};

// Throws Error unless this rank could do its part.
void check_call(const Communicator& comm, const Arguments& call);

// Lines "name: value" of all that must be the same on every rank.
std::string facts_of(const Arguments& call);

chitu::Options options_of(const Arguments& call);  // without positions

}  // namespace chitu::dist
