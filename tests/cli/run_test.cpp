// SPDX-License-Identifier: Apache-2.0
// The built program's `run` against the library's attention(), bit for bit, and what it refuses.
#include <algorithm>
#include <tuple>

#include "support.h"

namespace chitu::cli::test {
namespace {

constexpr Shape query_shape{2, 4, 37, 24}, key_shape{2, 2, 53, 24};

struct Inputs {
  HostTensor query, key, value;
};

Inputs random_inputs(DType type) {
  return {random_tensor(type, query_shape, 1), random_tensor(type, key_shape, 2), random_tensor(type, key_shape, 3)};
}

// The same numbers with the sizes of heads and tokens in the other order.
HostTensor transposed(const HostTensor& from) {
  const auto [batch, second, third, dim] = from.tensor.shape;
  HostTensor to = allocate(from.tensor.type, {batch, third, second, dim});
  const std::int64_t row = dim * bytes(from.tensor.type);
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t i = 0; i < second; ++i)
      for (std::int64_t j = 0; j < third; ++j)
        std::copy_n(from.memory.get() + ((b * second + i) * third + j) * row, row, to.memory.get() + ((b * third + j) * second + i) * row);
  return to;
}

struct Expected {
  HostTensor out, lse;
};

Expected expected(const Inputs& inputs, Options options) {
  options.threads = 2;
  const Shape& s = inputs.query.tensor.shape;
  Expected result{allocate(inputs.query.tensor.type, s), allocate(DType::f32, {s[0], s[1], s[2], 1})};
  attention(inputs.query.tensor, inputs.key.tensor, inputs.value.tensor, {result.out.tensor, result.lse.tensor}, options);
  return result;
}

// Writes the inputs into the folder in a layout and gives the words that name them.
std::string write_inputs(const Folder& folder, Inputs inputs, bool bshd, bool npy) {
  if (bshd) inputs = {transposed(inputs.query), transposed(inputs.key), transposed(inputs.value)};
  if (!npy) {
    const NamedTensor tensors[] = {{"q", inputs.query.tensor}, {"k", inputs.key.tensor}, {"v", inputs.value.tensor}};
    write_safetensors(folder / "in.safetensors", tensors);
    return "run --input " + (folder / "in.safetensors").string() + (bshd ? " --layout bshd" : "");
  }
  write_npy(folder / "q.npy", inputs.query.tensor);
  write_npy(folder / "k.npy", inputs.key.tensor);
  write_npy(folder / "v.npy", inputs.value.tensor);
  return "run --q " + (folder / "q.npy").string() + " --k " + (folder / "k.npy").string() + " --v " + (folder / "v.npy").string() +
         (bshd ? " --layout bshd" : "");
}

void expect_success(const Outcome& outcome) {
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.error, "");
}

// One line on stderr that says all of `pieces`, nothing on stdout, status 2.
void expect_refused(const Outcome& outcome, std::initializer_list<std::string_view> pieces) {
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(outcome.error.starts_with("chitu: error: ")) << outcome.error;
  EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  for (const std::string_view piece : pieces) EXPECT_NE(outcome.error.find(piece), std::string::npos) << piece << "\n" << outcome.error;
}

class Containers : public ::testing::TestWithParam<std::tuple<DType, bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(, Containers,
                         ::testing::Combine(::testing::Values(DType::f32, DType::f16, DType::bf16), ::testing::Bool(), ::testing::Bool()),
                         [](const auto& info) {
                           return std::string(name(std::get<0>(info.param))) + (std::get<1>(info.param) ? "_bshd" : "_bhsd") +
                                  (std::get<2>(info.param) ? "_npy" : "_safetensors");
                         });

TEST_P(Containers, SameBitsAsTheLibrary) {
  const DType type = std::get<0>(GetParam());
  const bool bshd = std::get<1>(GetParam()), npy = std::get<2>(GetParam());
  const Folder folder;
  const Inputs inputs = random_inputs(type);
  if (npy && type == DType::bf16) return expect_error([&] { write_inputs(folder, inputs, bshd, npy); }, {"bf16"});
  const std::string extension = npy ? ".npy" : ".safetensors";
  const auto out_path = folder / ("out" + extension), lse_path = folder / ("lse" + extension);
  expect_success(
      chitu(write_inputs(folder, inputs, bshd, npy) + " --threads 2 --out " + out_path.string() + " --lse " + lse_path.string()));

  const Expected want = expected(inputs, {});
  const std::vector<std::string> names{"out"};
  const HostTensor out = npy ? read_npy(out_path) : read_safetensors(out_path, names).at("out");
  EXPECT_EQ(out.tensor.type, type);
  EXPECT_EQ(bytes_of(bshd ? transposed(out) : out), bytes_of(want.out));
  const std::string lse = read_bytes(lse_path);
  const std::string_view lse_want = bytes_of(want.lse);
  EXPECT_NE(lse.find(npy ? "'shape': (2, 4, 37)" : "\"shape\":[2,4,37]"), lse.npos);
  ASSERT_GT(lse.size(), lse_want.size());
  EXPECT_EQ(lse.substr(lse.size() - lse_want.size()), lse_want);
}

struct Flags {
  const char* words;
  Options options;
};

TEST(Run, FlagsReachTheLibrary) {
  const Folder folder;
  const Inputs inputs = random_inputs(DType::f32);
  const std::string words = write_inputs(folder, inputs, false, true) + " --threads 2 --out " + (folder / "out.npy").string();
  const Flags cases[] = {{"--causal", {.window = causal}},
                         {"--window 8,3", {.window = {8, 3}}},
                         {"--window=-1,0", {.window = causal}},
                         {"--window -1,2", {.window = {unbounded, 2}}},
                         {"--causal --window 8,-1", {.window = {8, 0}}},
                         {"--causal --window 8,0", {.window = {8, 0}}},
                         {"--scale 0.25", {.scale = 0.25f}},
                         {"--scale -1e-3", {.scale = -1e-3f}},
                         {"--kernel cpu.reference", {.kernel = "cpu.reference"}},
                         {"--device cpu --layout bhsd", {}}};
  for (const Flags& flags : cases) {
    expect_success(chitu(words + " " + flags.words));
    EXPECT_EQ(bytes_of(read_npy(folder / "out.npy")), bytes_of(expected(inputs, flags.options).out)) << flags.words;
  }
  for (const Method& method : methods) {
    expect_success(chitu(words + " --method " + std::string(method.name)));
    EXPECT_EQ(bytes_of(read_npy(folder / "out.npy")), bytes_of(expected(inputs, {.recipe = method.recipe}).out)) << method.name;
  }
}

TEST(Run, OneContainerIntoAnother) {
  const Folder folder;
  const Inputs inputs = random_inputs(DType::f16);
  expect_success(chitu(write_inputs(folder, inputs, false, false) + " --threads 2 --out " + (folder / "out.npy").string()));
  EXPECT_EQ(bytes_of(read_npy(folder / "out.npy")), bytes_of(expected(inputs, {}).out));
}

TEST(Run, WordsThatAreRefused) {
  const Folder folder;
  const std::string in = write_inputs(folder, random_inputs(DType::f32), false, true);
  const std::string out = " --out " + (folder / "out.npy").string(), words = in + out;
  expect_refused(chitu(""), {"no command", "--help"});
  expect_refused(chitu("fly"), {"no command 'fly'", "run, bench, accuracy, plan, explain, methods, doctor"});
  expect_refused(chitu("--fly"), {"--fly"});
  expect_refused(chitu(words + " --colour"), {"--colour"});
  expect_refused(chitu(words + " extra"), {"extra"});
  expect_refused(chitu("run --inptu x.safetensors"), {"--inptu"});
  expect_refused(chitu(in), {"--out is missing"});
  expect_refused(chitu("run" + out), {"--q, --k and --v", "--input"});
  expect_refused(chitu("run --q " + (folder / "q.npy").string() + out), {"--q, --k and --v"});
  expect_refused(chitu(words + " --input x.safetensors"), {"--input"});
  expect_refused(chitu(words + " --method sage3"), {"sage3", "chitu", "sage2"});
  expect_refused(chitu(words + " --layout bsh"), {"layout", "bsh", "bshd"});
  expect_refused(chitu(words + " --window 3"), {"window", "'3'"});
  expect_refused(chitu(words + " --causal --window 8,3"), {"--causal", "8,3"});
  expect_refused(chitu(words + " --scale big"), {"--scale", "big"});
  expect_refused(chitu(words + " --scale nan"), {"scale", "finite"});
  expect_refused(chitu(words + " --threads -1"), {"threads", "-1"});
  expect_refused(chitu(words + " --threads two"), {"--threads", "two"});
  expect_refused(chitu(words + " --device cuda --threads 2"), {"--threads", "--device cpu"});
  if (!has_gpu()) expect_refused(chitu(words + " --device cuda"), {"--device cuda", "--device cpu"});
  expect_refused(chitu(words + " --device tpu"), {"--device", "tpu"});
  expect_refused(chitu(words + " --kernel cpu.fast"), {"cpu.fast", "cpu.reference"});
  expect_refused(chitu(in + " --out out.txt"), {"--out", "out.txt", ".safetensors"});
  expect_refused(chitu(in + " --out /missing/out.npy"), {"/missing/out.npy", "No such file"});
  expect_refused(chitu(words + " --lse " + (folder / "." / "out.npy").string()), {"--out and --lse are one file"});
  EXPECT_FALSE(std::filesystem::exists(folder / "out.npy"));
}

TEST(Run, TensorsThatAreRefused) {
  const Folder folder;
  const auto write = [&](const char* name, const Shape& shape, DType type = DType::f32) {
    write_npy(folder / name, random_tensor(type, shape, 1).tensor);
  };
  const std::string words = "run --q " + (folder / "q.npy").string() + " --k " + (folder / "k.npy").string() + " --v " +
                            (folder / "v.npy").string() + " --out " + (folder / "out.npy").string();
  write("q.npy", {1, 4, 8, 16});
  write("k.npy", {1, 2, 8, 16});
  write("v.npy", {1, 2, 9, 16});
  expect_refused(chitu(words), {"[1, 2, 8, 16]", "[1, 2, 9, 16]"});
  write("v.npy", {1, 2, 8, 16});
  write("q.npy", {1, 3, 8, 16});
  expect_refused(chitu(words), {"3", "heads"});
  write("q.npy", {1, 4, 8, 257});
  expect_refused(chitu(words), {"257"});
  write("q.npy", {1, 4, 8, 0});
  expect_refused(chitu(words), {"dim 0"});
  write_bytes(folder / "q.npy", "text\nwith lines\x1b[31m");
  expect_refused(chitu(words), {"q.npy: is not a .npy file"});
  std::filesystem::remove(folder / "q.npy");
  expect_refused(chitu(words), {"q.npy: cannot be opened", "No such file"});
  expect_refused(chitu("run --input " + (folder / "k.npy").string() + " --out " + (folder / "out.npy").string()), {"k.npy: "});
  EXPECT_FALSE(std::filesystem::exists(folder / "out.npy"));
}

TEST(Run, Bf16GoesIntoSafetensorsOnly) {
  const Folder folder;
  const std::string in = write_inputs(folder, random_inputs(DType::bf16), false, false);
  expect_refused(chitu(in + " --out " + (folder / "out.npy").string()), {"--out", "bf16", ".safetensors"});
}

TEST(Run, ErrorsAreOneLineWhateverTheNamesHold) {
  expect_refused(chitu("run --q 'a\nb\x1b[31m.npy' --k k.npy --v v.npy --out out.npy"), {"a; b?[31m.npy: cannot be opened"});
}

TEST(Run, NoSpaceLeavesNoOutput) {
  const Folder folder;
  const std::string in = write_inputs(folder, random_inputs(DType::f32), false, true);
  const auto files = folder.names().size();
  const auto out = (folder / "out.npy").string(), lse = (folder / "lse.npy").string();
  expect_refused(chitu(in + " --out " + out, "ulimit -f 1;"), {"out.npy: cannot be written", "too large"});
  EXPECT_EQ(folder.names().size(), files);
  // The LSE fits, the output does not: neither appears.
  expect_refused(chitu(in + " --out " + out + " --lse " + lse, "ulimit -f 8;"), {"out.npy: cannot be written"});
  EXPECT_EQ(folder.names().size(), files);
}

TEST(Program, HelpAndVersion) {
  const Outcome help = chitu("--help"), run_help = chitu("run --help"), version = chitu("--version");
  expect_success(help);
  expect_success(run_help);
  expect_success(version);
  for (const char* word : {"run", "bench", "accuracy", "explain", "methods", "doctor"})
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  for (const char* word : {"--q", "--input", "--lse", "--method", "--layout", "--causal", "--window", "--scale", "--threads", "--device"})
    EXPECT_NE(run_help.out.find(word), std::string::npos) << word;
  EXPECT_NE(run_help.out.find("(chitu methods lists them)"), std::string::npos);
  EXPECT_EQ(run_help.out.find("chitu explain"), std::string::npos);  // chitu explain stops at the first kernel that takes a call
  EXPECT_EQ(version.out, "chitu " CHITU_VERSION "\n");
}

TEST(Program, OutputThatCannotBeWritten) {
  const Outcome outcome = chitu("--help >/dev/full");
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.error, "chitu: error: standard output cannot be written\n");
}

}  // namespace
}  // namespace chitu::cli::test
