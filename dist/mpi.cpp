// SPDX-License-Identifier: Apache-2.0
// The only file that calls MPI.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "chitu/dist_mpi.h"

namespace chitu::dist {
namespace {

constexpr std::size_t largest_message = std::size_t{1} << 30;  // MPI counts bytes in an int

struct Parts {
  std::vector<MPI_Request> requests;
};

void check(int status, const char* what) {
  if (status != MPI_SUCCESS) throw Error(ErrorCode::internal, std::string("MPI: ") + what + " failed");
}

// Calls start(first byte, count) for each part of a long message.
template <class Byte, class Start>
Communicator::Request in_parts(std::span<Byte> bytes, const Start& start) {
  auto parts = std::make_shared<Parts>();
  do {
    const std::size_t size = std::min(bytes.size(), largest_message);
    parts->requests.push_back(start(bytes.data(), static_cast<int>(size)));
    bytes = bytes.subspan(size);
  } while (!bytes.empty());
  return parts;
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm comm) {
  check(MPI_Comm_dup(comm, &comm_), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiCommunicator::~MpiCommunicator() { MPI_Comm_free(&comm_); }

Communicator::Request MpiCommunicator::send(int peer, int tag, std::span<const std::byte> bytes) {
  return in_parts(bytes, [&](const std::byte* data, int count) {
    MPI_Request request;
    check(MPI_Isend(data, count, MPI_BYTE, peer, tag, comm_, &request), "MPI_Isend");
    return request;
  });
}

Communicator::Request MpiCommunicator::receive(int peer, int tag, std::span<std::byte> bytes) {
  return in_parts(bytes, [&](std::byte* data, int count) {
    MPI_Request request;
    check(MPI_Irecv(data, count, MPI_BYTE, peer, tag, comm_, &request), "MPI_Irecv");
    return request;
  });
}

bool MpiCommunicator::done(const Request& request) {
  auto& requests = static_cast<Parts*>(request.get())->requests;
  int all = 0;
  check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &all, MPI_STATUSES_IGNORE), "MPI_Testall");
  return all != 0;
}

void MpiCommunicator::abort(const std::string& why) {
  std::fprintf(stderr, "chitu: error: %s\n", why.c_str());
  std::fflush(stderr);
  MPI_Abort(comm_, 3);
  std::abort();
}

}  // namespace chitu::dist
