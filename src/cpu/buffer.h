// SPDX-License-Identifier: Apache-2.0
// Workspace memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "chitu/error.h"

namespace chitu::cpu {

template <class T>
constexpr T round_up(T x, T to) {
  return (x + to - 1) / to * to;
}

// 64-byte aligned, not initialised.
template <class T>
class Buffer {
 public:
  void resize(std::int64_t count) {
    if (count <= count_) return;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, round_up<std::size_t>(static_cast<std::size_t>(count) * sizeof(T), 64))));
    if (!data_)
      throw Error(ErrorCode::out_of_memory,
                  "no memory for " + std::to_string(count * static_cast<std::int64_t>(sizeof(T))) + " bytes of workspace");
    count_ = count;
  }
  T* data() const { return data_.get(); }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::int64_t count_ = 0;
};

}  // namespace chitu::cpu
