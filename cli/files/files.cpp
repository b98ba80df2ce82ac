// SPDX-License-Identifier: Apache-2.0
#include "cli/files/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "chitu/error.h"
#include "cli/files/formats.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& why) { throw Error(ErrorCode::bad_argument, why); }
[[noreturn]] void fail_errno(const std::string& what) { fail(what + ": " + std::strerror(errno)); }

// A regular file to read from.
class InputFile {
 public:
  // O_NONBLOCK, because opening a named pipe would otherwise wait for a writer, and it is refused anyway.
  explicit InputFile(const fs::path& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) fail_errno("cannot be opened");
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      fail(S_ISDIR(status.st_mode) ? "is a directory, not a file" : "is not a regular file");
    }
    bytes_ = static_cast<std::uint64_t>(status.st_size);
  }
  InputFile(const InputFile&) = delete;
  ~InputFile() { ::close(descriptor_); }

  std::uint64_t bytes() const { return bytes_; }

  void read(std::uint64_t offset, std::span<std::byte> into) const {
    while (!into.empty()) {
      const ssize_t got = ::pread(descriptor_, into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_errno("cannot be read");
      if (got == 0) fail("became shorter while it was read");
      into = into.subspan(static_cast<std::size_t>(got));
      offset += static_cast<std::uint64_t>(got);
    }
  }

  std::vector<std::byte> start(std::uint64_t limit) const {
    std::vector<std::byte> first(std::min(bytes_, limit));
    read(0, first);
    return first;
  }

  HostTensor tensor(const Stored& stored) const {
    HostTensor host = allocate(stored.type, stored.shape);
    read(stored.offset, {host.memory.get(), checked_bytes(stored.type, stored.shape)});
    return host;
  }

 private:
  int descriptor_;
  std::uint64_t bytes_ = 0;
};

std::span<const std::byte> data_of(const Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data), checked_bytes(tensor.type, tensor.shape)};
}

}  // namespace

HostTensor allocate(DType type, const Shape& shape) {
  constexpr std::align_val_t cache_line{64};
  const std::uint64_t size = checked_bytes(type, shape);
  auto* memory = static_cast<std::byte*>(::operator new(size, cache_line, std::nothrow));
  if (!memory) throw Error(ErrorCode::out_of_memory, "no memory for " + std::string(name(type)) + " " + text(shape));
  return {std::shared_ptr<std::byte[]>(memory, [](std::byte* p) { ::operator delete(p, cache_line); }), dense(memory, type, shape)};
}

HostTensor read_npy(const fs::path& path) {
  return naming(path, [&] {
    const InputFile file(path);
    return file.tensor(parse_npy(file.start(npy_header_limit), file.bytes()));
  });
}

std::map<std::string, HostTensor> read_safetensors(const fs::path& path, std::span<const std::string> names, Others others) {
  return naming(path, [&] {
    const InputFile file(path);
    std::map<std::string, HostTensor> tensors;
    for (const auto& [name, stored] : parse_safetensors(file.start(safetensors_header_limit), file.bytes(), names, others))
      tensors.emplace(name, file.tensor(stored));
    return tensors;
  });
}

Tensor as_bhsd(const Tensor& tensor, std::string_view layout) {
  require(layout == "bhsd" || layout == "bshd", "layout is '", layout, "'; it must be bhsd or bshd");
  Tensor view = tensor;
  if (layout == "bhsd") return view;
  std::swap(view.shape[1], view.shape[2]);
  std::swap(view.stride[1], view.stride[2]);
  return view;
}

// publish() renames, which would replace a link or /dev/null itself. So links are followed, and only a regular file is replaced.
NewFile::NewFile(const fs::path& path) : path_(path) {
  naming(path_, [&] {
    std::error_code error;
    const fs::path absolute = fs::absolute(path, error);
    if (!error) target_ = fs::weakly_canonical(absolute, error);
    if (error) fail("cannot be written: " + error.message());
    const fs::file_status status = fs::status(target_, error);
    if (fs::exists(status) && !fs::is_regular_file(status)) fail("cannot be written: it is not a regular file");
    if (::access(target_.parent_path().c_str(), W_OK | X_OK) != 0) fail_errno("cannot be written");
  });
}

// A file without a name goes with the process, also one that is killed while it writes. Not every file system has such files, and naming
// one needs /proc.
void NewFile::open() {
  if (descriptor_ >= 0) return;
  if (::access("/proc/self/fd", X_OK) == 0) descriptor_ = ::open(target_.parent_path().c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
  if (descriptor_ >= 0) return;
  name_temporary([&](const char* name) {
    descriptor_ = ::open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return descriptor_ >= 0;
  });
}

// Sets temporary_ to the first name beside the target for which make(name) succeeds; the names before it exist.
template <class Make>
void NewFile::name_temporary(const Make& make) {
  for (int i = 0;; ++i) {
    const std::string name = target_.parent_path() / (std::string(".").append(target_.filename()) + "." + std::to_string(i) + ".tmp");
    if (make(name.c_str())) {
      temporary_ = name;
      return;
    }
    if (errno != EEXIST) fail_errno("cannot be written");
  }
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void NewFile::write(std::span<const std::byte> bytes) {
  naming(path_, [&] {
    open();
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno != EINTR) fail_errno("cannot be written");
      bytes = bytes.subspan(static_cast<std::size_t>(std::max(written, ssize_t{0})));
    }
  });
}

void NewFile::publish() {
  naming(path_, [&] {
    open();
    if (::fsync(descriptor_) != 0) fail_errno("cannot be written");
    const std::string opened = "/proc/self/fd/" + std::to_string(descriptor_);
    if (temporary_.empty())
      name_temporary([&](const char* name) { return ::linkat(AT_FDCWD, opened.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0; });
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_errno("cannot be written");
    ::close(std::exchange(descriptor_, -1));
  });
}

void write_npy(NewFile& file, const Tensor& tensor, int rank) {
  file.write(naming(file.path(), [&] { return npy_header(tensor.type, file_shape(tensor, rank)); }));
  file.write(data_of(tensor));
}

void write_safetensors(NewFile& file, std::span<const NamedTensor> tensors) {
  file.write(naming(file.path(), [&] { return safetensors_header(tensors); }));
  for (const NamedTensor& named : tensors) file.write(data_of(named.tensor));
}

void write_npy(const fs::path& path, const Tensor& tensor, int rank) {
  NewFile file(path);
  write_npy(file, tensor, rank);
  file.publish();
}

void write_safetensors(const fs::path& path, std::span<const NamedTensor> tensors) {
  NewFile file(path);
  write_safetensors(file, tensors);
  file.publish();
}

}  // namespace chitu::cli
