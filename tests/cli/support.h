// SPDX-License-Identifier: Apache-2.0
// What the tests of the command share: a folder that goes away, files from bytes, tensors, errors by what they say, the program.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/chitu.h"
#include "cli/files/files.h"

namespace chitu::cli::test {

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "chitu-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  Folder(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  // Names of all files, hidden ones too.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) all.push_back(entry.path().filename().string());
    return all;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::filesystem::path write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

// Random numbers of magnitude 1/8 ... 2 straight from their bits, so that no conversion is needed.
inline HostTensor random_tensor(DType type, const Shape& shape, std::uint32_t seed) {
  HostTensor host = allocate(type, shape);
  std::mt19937 random(seed);
  const std::int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
  const int exponent_bits = type == DType::f16 ? 5 : 8, fraction_bits = 8 * bytes(type) - 1 - exponent_bits;
  const std::uint32_t bias = (1u << (exponent_bits - 1)) - 1;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto draw = [&](std::uint32_t below) { return static_cast<std::uint32_t>(random() % below); };
    const std::uint32_t sign = draw(2), exponent = bias - 3 + draw(4), fraction = draw(1u << fraction_bits);
    const std::uint32_t bits = (((sign << exponent_bits) | exponent) << fraction_bits) | fraction;
    std::memcpy(host.memory.get() + i * bytes(type), &bits, static_cast<std::size_t>(bytes(type)));  // the low bytes
  }
  return host;
}

inline std::string_view bytes_of(const HostTensor& host) {
  const Shape& shape = host.tensor.shape;
  return {reinterpret_cast<const char*>(host.memory.get()),
          static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3] * bytes(host.tensor.type))};
}

// Fails unless `function` throws an Error that says all of `pieces`.
template <class Function>
void expect_error(Function function, std::initializer_list<std::string_view> pieces) {
  try {
    function();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    for (const std::string_view piece : pieces)
      EXPECT_NE(std::string_view(error.what()).find(piece), std::string_view::npos) << error.what();
  }
}

// Whether the command has a GPU to run on.
bool has_gpu();

struct Outcome {
  int status;
  std::string out, error;
};
// Runs the built program as the shell would; `before` stands in front of it ("ulimit -f 1;").
Outcome chitu(const std::string& words, const std::string& before = "");

}  // namespace chitu::cli::test
