// SPDX-License-Identifier: Apache-2.0
// Tensors in .npy and .safetensors files. Whatever a file holds, a reader returns tensors or throws Error that names the
// file and what is wrong, and never asks for more memory than the file's size and a constant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "chitu/tensor.h"

namespace chitu::cli {

// A tensor with its memory; dense, tensor.data points into memory.
struct HostTensor {
  std::shared_ptr<std::byte[]> memory;
  Tensor tensor;
};

HostTensor allocate(DType type, const Shape& shape);  // not initialised

// The tensors of a file that are not asked for. Refused: but for results (out, lse) and the q, k and v of other heads or layers
// (layers.3.q), for any other might be a mask or a bias that the caller expects to count.
enum class Others : std::uint8_t { ignored, refused };

// Both readers want rank 4 and give the shape that the file has.
HostTensor read_npy(const std::filesystem::path& path);  // f32, f16
std::map<std::string, HostTensor> read_safetensors(const std::filesystem::path& path, std::span<const std::string> names,
                                                   Others others = Others::ignored);  // f32, f16, bf16

// The view [batch, heads, tokens, dim] of a tensor whose sizes are in the order of `layout`, "bhsd" or "bshd"; and back.
Tensor as_bhsd(const Tensor& tensor, std::string_view layout);

// A file that appears whole under its name at publish(), in place of what was there, or not at all. Until then it has no name or, where
// the file system cannot do that, a temporary one beside it, which the destructor removes. The constructor refuses what could not be
// written, but makes no file.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& path);
  NewFile(const NewFile&) = delete;
  ~NewFile();
  const std::filesystem::path& path() const { return path_; }      // as given
  const std::filesystem::path& target() const { return target_; }  // absolute, links followed
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void publish();

 private:
  void open();  // if it is not open yet
  template <class Make>
  void name_temporary(const Make& make);
  std::filesystem::path path_, target_;
  std::string temporary_{};  // empty: none yet
  int descriptor_ = -1;
};

// The tensor is dense; with rank 3 its last size is 1 and not in the file.
struct NamedTensor {
  std::string name;
  Tensor tensor;
  int rank = 4;
};

void write_npy(NewFile& file, const Tensor& tensor, int rank = 4);  // f32, f16: numpy has no bf16
void write_safetensors(NewFile& file, std::span<const NamedTensor> tensors);

// The same, and publishes the file.
void write_npy(const std::filesystem::path& path, const Tensor& tensor, int rank = 4);
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors);

}  // namespace chitu::cli
