// SPDX-License-Identifier: Apache-2.0
// Workspace memory.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <pthread.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "chitu/error.h"

namespace chitu::cpu {

template <class T>
constexpr T round_up(T x, T to) {
  return (x + to - 1) / to * to;
}

// Keeps large freed blocks for later calls, because the system would take as long to clear new memory as we take to quantise into it.
// Blocks are aligned to huge pages and use them where the system has some: on small pages a tile of panels needs eight entries of the TLB.
class Pool {
 public:
  static constexpr std::size_t huge_page = std::size_t{2} << 20, limit = std::size_t{64} << 20;  // bytes; of all blocks that wait

  static Pool& get() {
    static Pool& pool = *new Pool;  // never destroyed: static objects may still hold blocks
    return pool;
  }

  void* take(std::size_t bytes) {  // whole huge pages
    {
      const std::lock_guard lock(mutex_);
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
        if (block->bytes == bytes) {
          void* const data = block->data;
          held_ -= bytes;
          blocks_.erase(block);
          return data;
        }
    }
    void* const data = std::aligned_alloc(huge_page, bytes);
#ifdef MADV_HUGEPAGE
    if (data) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
  }

  void give(void* data, std::size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    if (bytes > limit) return std::free(data);
    while (held_ + bytes > limit || blocks_.size() == blocks_.capacity()) {  // the oldest go
      std::free(blocks_.front().data);
      held_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
    blocks_.push_back({data, bytes});
    held_ += bytes;
  }

 private:
  struct Block {
    void* data;
    std::size_t bytes;
  };
  Pool() {
    blocks_.reserve(limit / huge_page);
    // A fork waits until no thread is between take()'s or give()'s lock and unlock, or the child would inherit the lock from a thread that
    // it does not have.
    pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); }, [] { get().mutex_.unlock(); });
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // oldest first
  std::size_t held_ = 0;
};

struct Free {
  std::size_t bytes = 0;
  void operator()(void* p) const {
    if (!p) return;
    bytes < Pool::huge_page ? std::free(p) : Pool::get().give(p, bytes);
  }
};
using Memory = std::unique_ptr<std::byte, Free>;

// 64-byte aligned, not initialised.
inline Memory allocate(std::int64_t bytes) {
  const auto count = static_cast<std::size_t>(bytes);
  const std::size_t whole = round_up(count, count < Pool::huge_page ? std::size_t{64} : Pool::huge_page);
  void* const data = count < Pool::huge_page ? std::aligned_alloc(64, whole) : Pool::get().take(whole);
  if (!data) throw Error(ErrorCode::out_of_memory, "no memory for " + std::to_string(bytes) + " bytes of workspace");
  return Memory(static_cast<std::byte*>(data), Free{whole});
}

template <class T>
class Buffer {
 public:
  void resize(std::int64_t count) {
    if (count <= count_) return;
    data_ = allocate(count * static_cast<std::int64_t>(sizeof(T)));
    count_ = count;
  }
  T* data() const { return reinterpret_cast<T*>(data_.get()); }
  T& operator[](std::int64_t i) const { return data()[i]; }

 private:
  Memory data_;
  std::int64_t count_ = 0;
};

}  // namespace chitu::cpu
