// SPDX-License-Identifier: Apache-2.0
// MPI as a transport of chitu::dist. Needs <mpi.h>; the target chitu::dist brings it.
#pragma once

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1  // Open MPI's C++ classes are not needed
#endif
#include <mpi.h>

#include "chitu/dist.h"

namespace chitu::dist {

// The caller has called MPI_Init() and calls MPI_Finalize(), after the last MpiCommunicator is gone. Only one thread may use it at a time.
class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(MPI_Comm comm = MPI_COMM_WORLD);  // works on a duplicate; all ranks of comm construct theirs together
  MpiCommunicator(const MpiCommunicator&) = delete;
  ~MpiCommunicator() override;
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Request send(int peer, int tag, std::span<const std::byte> bytes) override;
  Request receive(int peer, int tag, std::span<std::byte> bytes) override;
  bool done(const Request& request) override;
  [[noreturn]] void abort(const std::string& why) override;  // prints it, then MPI_Abort()

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
};

}  // namespace chitu::dist
