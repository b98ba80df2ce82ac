// SPDX-License-Identifier: Apache-2.0
// Files on disk: read as they are or refused by name, written whole or not at all.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "support.h"

namespace chitu::cli::test {
namespace {

constexpr Shape shape{2, 3, 5, 7};

class Types : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(, Types, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return name(info.param); });

TEST_P(Types, RoundTrip) {
  const Folder folder;
  const HostTensor a = random_tensor(GetParam(), shape, 1), b = random_tensor(GetParam(), {1, 1, 0, 4}, 2);
  const NamedTensor both[] = {{"a", a.tensor}, {"b", b.tensor}};
  write_safetensors(folder / "t.safetensors", both);
  const std::vector<std::string> names{"b", "a"};
  const auto read = read_safetensors(folder / "t.safetensors", names);
  EXPECT_EQ(read.at("a").tensor.shape, shape);
  EXPECT_EQ(read.at("a").tensor.type, GetParam());
  EXPECT_EQ(read.at("a").tensor.stride, contiguous_strides(shape));
  EXPECT_EQ(read.at("a").tensor.data, read.at("a").memory.get());
  EXPECT_EQ(bytes_of(read.at("a")), bytes_of(a));
  EXPECT_EQ(read.at("b").tensor.shape, b.tensor.shape);

  if (GetParam() == DType::bf16) {
    expect_error([&] { write_npy(folder / "t.npy", a.tensor); }, {"t.npy", "bf16", ".safetensors"});
    EXPECT_EQ(folder.names(), std::vector<std::string>{"t.safetensors"});
    return;
  }
  write_npy(folder / "t.npy", a.tensor);
  const HostTensor npy = read_npy(folder / "t.npy");
  EXPECT_EQ(npy.tensor.shape, shape);
  EXPECT_EQ(npy.tensor.type, GetParam());
  EXPECT_EQ(bytes_of(npy), bytes_of(a));
}

TEST(Files, OfRank3) {
  const Folder folder;
  const HostTensor lse = random_tensor(DType::f32, {1, 2, 3, 1}, 1);
  write_npy(folder / "lse.npy", lse.tensor, 3);
  const std::string written = read_bytes(folder / "lse.npy");
  EXPECT_NE(written.find("'shape': (1, 2, 3)"), written.npos);
  EXPECT_EQ(written.substr(written.size() - 24), bytes_of(lse));
  expect_error([&] { write_npy(folder / "x.npy", random_tensor(DType::f32, shape, 1).tensor, 3); }, {"x.npy", "rank"});
}

TEST(Files, OnlyDenseTensorsAreWritten) {
  const Folder folder;
  const HostTensor a = random_tensor(DType::f32, shape, 1);
  expect_error([&] { write_npy(folder / "x.npy", as_bhsd(a.tensor, "bshd")); }, {"dense"});
  EXPECT_TRUE(folder.names().empty());
}

TEST(Files, Layouts) {
  const HostTensor host = allocate(DType::f32, shape);
  const Tensor view = as_bhsd(host.tensor, "bshd");
  EXPECT_EQ(view.shape, (Shape{2, 5, 3, 7}));
  EXPECT_EQ(view.stride, (Shape{105, 7, 35, 1}));
  EXPECT_EQ(as_bhsd(host.tensor, "bhsd").stride, contiguous_strides(shape));
  for (const char* layout : {"", "bhds", "BHSD", "bshd "})
    expect_error([&] { as_bhsd(host.tensor, layout); }, {"layout", layout, "bhsd or bshd"});
}

TEST(Files, ThatCannotBeRead) {
  const Folder folder;
  const std::vector<std::string> names{"q"};
  const auto refused = [&](const std::filesystem::path& path, const char* why) {
    expect_error([&] { read_npy(path); }, {path.string() + ": ", why});
    expect_error([&] { read_safetensors(path, names); }, {path.string() + ": ", why});
  };
  refused(folder / "missing", "No such file");
  refused(folder / ".", "is a directory");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  refused(folder / "pipe", "not a regular file");  // and the reader does not wait for a writer
  refused("/dev/null", "not a regular file");
  refused(write_bytes(folder / "file", "") / "below", "Not a directory");
  refused(folder / std::string(300, 'a'), "name too long");
  std::filesystem::create_symlink("loop", folder / "loop");
  refused(folder / "loop", "symbolic links");
}

TEST(Files, WithoutPermission) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads and writes everything";
  const Folder folder;
  ::chmod(write_bytes(folder / "a.npy", "").c_str(), 0);
  expect_error([&] { read_npy(folder / "a.npy"); }, {"a.npy: cannot be opened", "Permission denied"});
  ::chmod((folder / ".").c_str(), 0500);
  expect_error([&] { NewFile(folder / "b.npy"); }, {"b.npy: cannot be written", "Permission denied"});
  ::chmod((folder / ".").c_str(), 0700);
}

TEST(Files, RefusedByTheirBytesAreNamed) {
  const Folder folder;
  const std::vector<std::string> names{"q"};
  expect_error([&] { read_npy(write_bytes(folder / "a.npy", "")); }, {"a.npy: is not a .npy file"});
  expect_error([&] { read_safetensors(write_bytes(folder / "a.safetensors", "abc"), names); }, {"a.safetensors: is not"});
}

// A sparse file of 1 TiB whose header claims little, or as much. Memory is asked for only after the header is checked.
TEST(Files, HugeFilesWithSmallTensors) {
  const Folder folder;
  write_npy(folder / "huge.npy", random_tensor(DType::f32, shape, 1).tensor);
  std::filesystem::resize_file(folder / "huge.npy", std::uintmax_t{1} << 40);
  expect_error([&] { read_npy(folder / "huge.npy"); }, {"huge.npy", "1099511627648 bytes of data", "840"});
}

TEST(NewFile, AppearsWholeAtPublish) {
  const Folder folder;
  {
    NewFile file(folder / "a");
    EXPECT_TRUE(folder.names().empty());
    file.write("one ");
    file.write("two");
    EXPECT_FALSE(std::filesystem::exists(folder / "a"));
    file.publish();
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
  EXPECT_EQ(read_bytes(folder / "a"), "one two");
}

TEST(NewFile, LeavesNothingUnlessPublished) {
  const Folder folder;
  write_bytes(folder / "a", "old");
  {
    NewFile file(folder / "a");
    file.write("new");
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
  EXPECT_EQ(read_bytes(folder / "a"), "old");
}

TEST(NewFile, AProcessThatIsKilledLeavesNothing) {
  const Folder folder;
  const int nameless = ::open((folder / ".").c_str(), O_WRONLY | O_TMPFILE, 0600);
  if (nameless < 0) GTEST_SKIP() << "this file system has no files without a name";
  ::close(nameless);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    NewFile file(folder / "a");
    file.write("half of it");
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(folder.names().empty());
}

TEST(NewFile, ReplacesAndFollowsLinks) {
  const Folder folder;
  write_bytes(folder / "a", "old");
  std::filesystem::create_symlink("a", folder / "link");
  NewFile file(folder / "link");
  file.write("new");
  file.publish();
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_bytes(folder / "a"), "new");
}

TEST(NewFile, PermissionsFollowTheMask) {
  const Folder folder;
  const mode_t mask = ::umask(027);
  NewFile file(folder / "a");
  file.publish();
  ::umask(mask);
  EXPECT_EQ(std::filesystem::status(folder / "a").permissions(), std::filesystem::perms(0640));
}

TEST(NewFile, RefusesWhatCannotBeWritten) {
  const Folder folder;
  write_bytes(folder / "file", "");
  expect_error([&] { NewFile(folder / "."); }, {"not a regular file"});
  expect_error([&] { NewFile("/dev/full"); }, {"/dev/full: ", "not a regular file"});
  expect_error([&] { NewFile(folder / "missing" / "a"); }, {"missing/a: cannot be written", "No such file"});
  expect_error([&] { NewFile(folder / "file" / "a"); }, {"file/a: cannot be written"});
  expect_error([&] { NewFile(""); }, {"cannot be written"});
}

// A limit on the size of files stands for a full disk.
TEST(NewFile, NoSpaceLeavesNothing) {
  const Folder folder;
  write_bytes(folder / "old.npy", "old");
  const HostTensor large = random_tensor(DType::f32, {1, 1, 256, 64}, 1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{4096, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_error([&] { write_npy(folder / "old.npy", large.tensor); }, {"old.npy: cannot be written", "too large"});
  const NamedTensor named[] = {{"q", large.tensor}};
  expect_error([&] { write_safetensors(folder / "new.safetensors", named); }, {"new.safetensors: cannot be written"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"old.npy"});
  EXPECT_EQ(read_bytes(folder / "old.npy"), "old");
}

}  // namespace
}  // namespace chitu::cli::test
