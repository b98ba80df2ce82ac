// SPDX-License-Identifier: Apache-2.0
#include "cli/ranks/ranks.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <thread>

#include "cli/ranks/parts.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

constexpr double timeout = 600;  // seconds

std::byte* row(const Tensor& t, std::int64_t batch, std::int64_t head, std::int64_t token) {
  return static_cast<std::byte*>(t.data) + (batch * t.stride[0] + head * t.stride[1] + token * t.stride[2]) * bytes(t.type);
}

// Copies the tokens of a shard between the whole tensor and the shard's own.
void copy(const dist::Shard& shard, const Tensor& whole, const Tensor& mine, std::int64_t first, bool to_mine) {
  const auto size = static_cast<std::size_t>(whole.shape[3] * bytes(whole.type));
  std::int64_t at = 0;
  for (const dist::Run& run : shard)
    for (std::int64_t i = 0; i < run.count; ++i, ++at)
      for (std::int64_t b = 0; b < whole.shape[0]; ++b)
        for (std::int64_t h = 0; h < whole.shape[1]; ++h) {
          std::byte *const there = row(whole, b, h, first + run.at.first + i * run.at.step), *const here = row(mine, b, h, at);
          std::memcpy(to_mine ? here : there, to_mine ? there : here, size);
        }
}

std::span<std::byte> bytes_of(const HostTensor& t) {
  const Shape& s = t.tensor.shape;
  return {t.memory.get(), static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3] * bytes(t.tensor.type))};
}

}  // namespace

dist::Ranks parse_ranks(const std::string& word) {
  dist::Ranks ranks;
  for (const std::string& part : list_of("--ranks", word)) {
    const std::size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    require(equals != part.npos && (name == "ring" || name == "ulysses"), "--ranks '", word, "' must be like ring=2,ulysses=2");
    const std::int64_t count = count_of("--ranks " + name, part.substr(equals + 1));
    require(count <= 65536, "--ranks ", name, " is ", count, ", more than 65536");
    (name == "ring" ? ranks.ring : ranks.ulysses) = static_cast<int>(count);
  }
  return ranks;
}

dist::Sharding parse_sharding(const std::string& word) {
  if (word == "contiguous") return dist::Sharding::contiguous;
  if (word == "zigzag") return dist::Sharding::zigzag;
  if (word == "striped") return dist::Sharding::striped;
  throw Error(ErrorCode::bad_argument, "--shard '" + word + "' must be contiguous, zigzag or striped");
}

void add_ranks(CLI::App& command, RanksFlags& flags) {
  CLI::Option* ranks = command.add_option("--ranks", flags.ranks,
                                          "ring=R,ulysses=U: compute on R x U ranks, which mpirun has started (docs/sequence-parallel.md)");
  command.add_option("--shard", flags.sharding, "How the ring's ranks share the tokens: contiguous, zigzag (for causal) or striped")
      ->capture_default_str()
      ->needs(ranks);
}

int machine_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

World::World() : parts_(std::make_unique<Parts>()) {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (!initialised) MPI_Init(nullptr, nullptr);
  parts_->comm = std::make_unique<dist::MpiCommunicator>();
  MPI_Comm local;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
  MPI_Comm_size(local, &parts_->local_ranks);
  MPI_Comm_free(&local);
}

World::~World() {
  parts_->comm.reset();
  MPI_Finalize();
}

int World::rank() const { return parts_->comm->rank(); }

void World::lay_out(const RanksFlags& flags) {
  parts_->ranks = parse_ranks(flags.ranks);
  parts_->sharding = parse_sharding(flags.sharding);
  const int started = parts_->comm->size(), wanted = parts_->ranks.size();
  require(started == wanted, "--ranks ", flags.ranks, " is ", wanted, " ranks, but ", started, started == 1 ? " is" : " are",
          " started; start them with mpirun -n ", wanted);
}

int World::threads(std::optional<int> wanted) const {
  if (wanted && *wanted > 0) return *wanted;
  return std::max(1, machine_threads() / parts_->local_ranks);
}

void World::together(const std::function<void()>& step) {
  std::optional<Error> error;
  try {
    step();
  } catch (const Error& e) {
    error = e;
  } catch (const std::bad_alloc&) {
    error = Error(ErrorCode::out_of_memory, "out of memory");
  }
  dist::agree(*parts_->comm, "", error ? &*error : nullptr, timeout);
}

void on_ranks(const RanksFlags& flags, const std::function<void(World&)>& body) {
  World world;
  try {
    world.lay_out(flags);
    body(world);
  } catch (const Error&) {
    if (world.rank() == 0) throw;  // the others end well: mpirun would kill rank 0 for another's exit status before it has said why
  }
}

dist::Task World::Parts::task(const Tensor& query, const Tensor& key, const Window& window) const {
  const std::int64_t queries[] = {query.shape[2]}, keys[] = {key.shape[2]};
  dist::Task task = dist::shard(sharding, ranks, queries, keys);
  task.heads = query.shape[1];
  task.kv_heads = key.shape[1];
  task.window = window;
  return task;
}

HostTensor take(const Tensor& whole, const dist::Shard& shard, std::int64_t first) {
  HostTensor mine = allocate(whole.type, {whole.shape[0], whole.shape[1], dist::tokens_of(shard), whole.shape[3]});
  copy(shard, whole, mine.tensor, first, true);
  return mine;
}

void gather(dist::Communicator& comm, const dist::Layout& layout, const Tensor& mine, const Tensor& whole, std::int64_t first, int tag) {
  const auto rank = static_cast<std::size_t>(comm.rank());
  if (rank != 0) {
    const Shape& s = mine.shape;
    const std::span<const std::byte> all{static_cast<const std::byte*>(mine.data),
                                         static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3] * bytes(mine.type))};
    dist::wait(comm, comm.send(0, tag, all), timeout, "rank 0 to take a part of the result");
    return;
  }
  copy(layout[0], whole, mine, first, false);
  for (int peer = 1; peer < comm.size(); ++peer) {
    const dist::Shard& shard = layout[static_cast<std::size_t>(peer)];
    const HostTensor part = allocate(whole.type, {whole.shape[0], whole.shape[1], dist::tokens_of(shard), whole.shape[3]});
    dist::wait(comm, comm.receive(peer, tag, bytes_of(part)), timeout, "rank " + std::to_string(peer) + " to send its part of the result");
    copy(shard, whole, part.tensor, first, false);
  }
}

void World::attend(const Tensor& query, const Tensor& key, const Tensor& value, const Output& output, const Options& options) {
  dist::Communicator& comm = *parts_->comm;
  const auto rank = static_cast<std::size_t>(comm.rank());
  dist::Task task;
  HostTensor q, k, v, out, lse;
  const std::int64_t first_query = query.shape[2] - key.shape[2];
  together([&] {
    workspace_size(query, key, value, output, options);  // refuses what attention() would refuse, in its words
    task = parts_->task(query, key, options.window);
    dist::check(task);
    q = take(query, task.queries[rank], first_query);
    k = take(key, task.keys[rank], 0);
    v = take(value, task.keys[rank], 0);
    const Shape& s = q.tensor.shape;
    out = allocate(output.out.type, s);
    if (output.lse.data) lse = allocate(DType::f32, {s[0], s[1], s[2], 1});
  });
  dist::attention(comm, task, q.tensor, k.tensor, v.tensor, {out.tensor, lse.tensor},
                  {.recipe = options.recipe,
                   .scale = options.scale,
                   .threads = threads(options.threads),
                   .kernel = options.kernel,
                   .timeout = timeout});
  gather(comm, task.queries, out.tensor, output.out, first_query, 100);
  if (output.lse.data) gather(comm, task.queries, lse.tensor, output.lse, first_query, 101);
}

}  // namespace chitu::cli
