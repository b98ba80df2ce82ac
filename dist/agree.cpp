// SPDX-License-Identifier: Apache-2.0
// How ranks wait for each other, and how they make sure that they are about to do the same.
#include <array>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>

#include "chitu/dist.h"
#include "tags.h"

namespace chitu::dist {
namespace {

// What a rank says of itself. Text that is too long is cut; the hash is of all of it.
struct Record {
  std::uint64_t hash = 0;
  std::int32_t error = 0;  // an ErrorCode, or 0
  std::array<char, 4084> text{};
};

std::uint64_t hash_of(std::string_view text) {  // FNV-1a
  std::uint64_t hash = 14695981039346656037u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

Record record_of(const std::string& facts, const Error* error) {
  Record record;
  const std::string_view text = error ? std::string_view(error->what()) : std::string_view(facts);
  record.hash = hash_of(text);
  record.error = error ? static_cast<std::int32_t>(error->code()) : 0;
  std::memcpy(record.text.data(), text.data(), std::min(text.size(), record.text.size() - 1));
  return record;
}

// The records of all ranks. Each sends its own to all others, so that a rank that is missing can be named.
std::vector<Record> exchange(Communicator& comm, const Record& mine, double timeout) {
  std::vector<Record> all(static_cast<std::size_t>(comm.size()));
  std::vector<Communicator::Request> receives(all.size()), sends;
  const auto others = [&](const auto& function) {
    for (int step = 1; step < comm.size(); ++step) function((comm.rank() + step) % comm.size());
  };
  others([&](int peer) {
    Record& record = all[static_cast<std::size_t>(peer)];
    receives[static_cast<std::size_t>(peer)] = comm.receive(peer, agree_tag, std::as_writable_bytes(std::span(&record, 1)));
  });
  others([&](int peer) { sends.push_back(comm.send(peer, agree_tag, std::as_bytes(std::span(&mine, 1)))); });
  others([&](int peer) {
    wait(comm, receives[static_cast<std::size_t>(peer)], timeout,
         "rank " + std::to_string(peer) + " to say what it is about to do, before step 0");
  });
  for (const auto& send : sends) wait(comm, send, timeout, "another rank to hear what this one is about to do, before step 0");
  all[static_cast<std::size_t>(comm.rank())] = mine;
  return all;
}

// Throws: this rank's facts are not those of rank 0.
[[noreturn]] void refuse(const Record& zero, const Record& other, std::size_t rank) {
  std::istringstream a(zero.text.data()), b(other.text.data());
  std::string x, y;
  while (true) {
    const bool more_a = static_cast<bool>(std::getline(a, x)), more_b = static_cast<bool>(std::getline(b, y));
    if (more_a && more_b && x == y) continue;
    if (!more_a) x = "nothing more to say";
    if (!more_b) y = "nothing more to say";
    throw Error(ErrorCode::bad_argument, "the ranks do not agree: rank 0 has " + x + "; rank " + std::to_string(rank) + " has " + y);
  }
}

}  // namespace

void wait(Communicator& comm, const Communicator::Request& request, double timeout, const std::string& what) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  for (int polls = 0; !comm.done(request); ++polls) {
    if (polls < 100)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(polls < 1000 ? 50 : 500));
    if (std::chrono::duration<double>(Clock::now() - start).count() < timeout) continue;
    std::ostringstream text;
    text << "rank " << comm.rank() << " has waited " << timeout << " s for " << what;
    comm.abort(text.str());
  }
}

void agree(Communicator& comm, const std::string& facts, const Error* error, double timeout) {
  const std::vector<Record> all = exchange(comm, record_of(facts, error), timeout);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].error != 0) {
      throw Error(static_cast<ErrorCode>(all[rank].error), "rank " + std::to_string(rank) + ": " + all[rank].text.data());
    }
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank].hash != all[0].hash) refuse(all[0], all[rank], rank);
}

}  // namespace chitu::dist
