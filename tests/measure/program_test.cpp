// SPDX-License-Identifier: Apache-2.0
// The built program: exit statuses, what its JSON and CSV hold, and that docs/methods.md is not stale.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "../cli/support.h"
#include "cli/measure/data.h"

namespace chitu::cli::test {
namespace {

using Json = nlohmann::json;

constexpr int none_within = 1, refused = 2;

Json read_json(const std::filesystem::path& path) { return Json::parse(read_bytes(path)); }

const std::vector<std::string> bench_keys{"method",       "data",         "dtype",        "batch",        "heads",        "kv_heads",
                                          "dim",          "tokens",       "causal",       "quantise_ms",  "attention_ms", "total_ms",
                                          "total_ms_min", "total_ms_max", "runs",         "tflops",       "speedup",      "max_diff",
                                          "mean_diff",    "rel_l1",       "lse_max_diff", "lse_mean_diff"};

TEST(Bench, WritesCompleteAndConsistentRows) {
  const Folder folder;
  const auto json = folder / "b.json", csv = folder / "b.csv";
  const Outcome o = chitu("bench --lengths 128,300 --heads 4 --kv-heads 2 --dim 40 --causal --runs 2 --threads 1 --json '" + json.string() +
                          "' --csv '" + csv.string() + "'");
  ASSERT_EQ(o.status, 0) << o.error;
  EXPECT_EQ(o.error, "");  // no progress bar where there is no terminal
  const Json report = read_json(json);
  EXPECT_GT(report.at("peaks").at("fp32_tflops").get<double>(), 0);
  EXPECT_GT(report.at("peaks").at("int8_tops").get<double>(), 0);
  EXPECT_EQ(report.at("machine").at("threads"), 1);
  ASSERT_EQ(report.at("rows").size(), 2 * methods.size());
  double exact_ms = 0;
  for (const Json& row : report.at("rows")) {
    for (const std::string& key : bench_keys) ASSERT_TRUE(row.contains(key) && !row.at(key).is_null()) << key;
    const double ms = row.at("total_ms"), tokens = row.at("tokens");
    if (row.at("method") == "exact") exact_ms = ms;
    EXPECT_NEAR(row.at("speedup"), exact_ms / ms, 1e-9 * exact_ms / ms);
    EXPECT_NEAR(row.at("tflops"), 4 * 40 * 4 * tokens * (tokens + 1) / 2 / (ms * 1e9), 1e-9);
    EXPECT_LE(row.at("total_ms_min"), ms);
    EXPECT_GE(row.at("total_ms_max"), ms);
    EXPECT_LT(row.at("rel_l1"), row.at("method") == "exact" ? 1e-5 : .1);
    EXPECT_EQ(row.at("kv_heads"), 2);
    EXPECT_EQ(row.at("causal"), true);
    EXPECT_EQ(row.at("compared_rows"), row.at("tokens"));
    EXPECT_TRUE(row.at("sampled_rows").is_null());
    EXPECT_NE(o.out.find("| " + row.at("method").get<std::string>()), std::string::npos);
  }
  const std::string text = read_bytes(csv);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1 + static_cast<int>(2 * methods.size()));
}

TEST(Bench, DrawsEachMethodAndTellsTheCommand) {
  const Folder folder;
  const auto svg = folder / "it's speed.svg";
  const Outcome o = chitu("bench --lengths 256,64 --heads 1 --dim 16 --runs 1 --plot \"" + svg.string() + "\"");
  ASSERT_EQ(o.status, 0) << o.error;
  const std::string picture = read_bytes(svg);
  for (const Method& m : methods) EXPECT_NE(picture.find(">" + std::string(m.name) + "</text>"), std::string::npos) << m.name;
  EXPECT_NE(picture.find("chitu bench --lengths 256,64 --heads 1 --dim 16 --runs 1 --plot"), std::string::npos);
}

TEST(Plots, AreWholeOrAbsent) {
  for (const char* words : {"bench --lengths 64,96", "accuracy --data normal --tokens 64"}) {
    const Folder folder;
    const auto svg = folder / "a.svg";
    const std::string command = std::string(words) + " --heads 1 --dim 16 --runs 1 --plot '" + svg.string() + "'";
    const Outcome o = chitu(command, "ulimit -f 1;");  // KiB: no picture is that small
    EXPECT_EQ(o.status, refused) << words;
    EXPECT_NE(o.error.find("a.svg"), std::string::npos) << o.error;
    EXPECT_TRUE(folder.names().empty()) << words;
    EXPECT_EQ(chitu(command).status, 0) << words;
    const std::string picture = read_bytes(svg);
    EXPECT_TRUE(picture.starts_with("<svg ") && picture.ends_with("</svg>\n")) << words;
    EXPECT_EQ(folder.names().size(), 1u) << words;
  }
}

TEST(Bench, AlwaysMeasuresExactAndSaysWhatItSampled) {
  const Folder folder;
  const auto json = folder / "b.json";
  const Outcome o = chitu("bench --method int8 --lengths 3072 --heads 2 --dim 8 --rows 32 --runs 1 --threads 1 --sample-above 0 --json '" +
                          json.string() + "'");
  ASSERT_EQ(o.status, 0) << o.error;
  const Json rows = read_json(json).at("rows");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].at("method"), "exact");
  EXPECT_EQ(rows[1].at("sampled_rows"), 768);
  EXPECT_NE(o.out.find("768 of 3072"), std::string::npos);
  EXPECT_NE(o.out.find("on 32 of 3072 query rows"), std::string::npos);
}

TEST(Bench, SaysHowItTakesTurns) {
  const Outcome o = chitu("bench --method sage --lengths 64 --heads 1 --dim 8 --runs 3 --in-a-row 2 --rest 100");
  ASSERT_EQ(o.status, 0) << o.error;
  EXPECT_NE(o.out.find("3 runs, up to 2 in a row after 100 ms of rest"), std::string::npos) << o.out;
}

class TensorFile {
 public:
  explicit TensorFile(const Folder& folder) : path_(folder / "qkv.safetensors") {
    const Operands x = generate("outlier", {1, 4, 200, 16}, {1, 2, 200, 16}, DType::f16, 5);
    const NamedTensor tensors[] = {{"q", x.query.tensor}, {"k", x.key.tensor}, {"v", x.value.tensor}};
    write_safetensors(path_, tensors);
  }
  std::string word() const { return "--input '" + path_.string() + "'"; }

 private:
  std::filesystem::path path_;
};

// The words for a file of random tensors; nan: how many elements of the queries are NaN.
std::string file_of(const Folder& folder, const Shape& query, const Shape& key, std::int64_t nan = 0) {
  const HostTensor q = random_tensor(DType::f32, query, 1), k = random_tensor(DType::f32, key, 2), v = random_tensor(DType::f32, key, 3);
  std::fill_n(static_cast<float*>(q.tensor.data), nan, std::nanf(""));
  const NamedTensor tensors[] = {{"q", q.tensor}, {"k", k.tensor}, {"v", v.tensor}};
  write_safetensors(folder / "x.safetensors", tensors);
  return " --input '" + (folder / "x.safetensors").string() + "' --threads 1 --runs 1";
}

constexpr Shape small{1, 2, 5, 16};

TEST(NotFinite, WhereNothingIsComparedNothingIsRecommended) {
  const Folder folder;
  const auto json = folder / "a.json";
  const auto expect_none = [&](const std::string& file, const std::string& why) {
    for (const char* bound : {"", " --max-l1 1e-9"}) {
      const Outcome o = chitu("accuracy" + file + bound + " --json '" + json.string() + "'");
      EXPECT_EQ(o.status, none_within) << o.out << o.error;
      EXPECT_NE(o.out.find("Recommended: none; nothing was compared of x: " + why), std::string::npos) << o.out;
      EXPECT_EQ(o.out.find("1.000000"), std::string::npos) << o.out;
      EXPECT_EQ(o.out.find("Compared:"), std::string::npos) << o.out;
      const Json report = read_json(json);
      EXPECT_TRUE(report.at("recommended").is_null());
      for (const char* key : {"rel_l1", "cosine", "max_diff", "lse_max_diff", "worst_head", "worst_row_query"})
        EXPECT_TRUE(report.at("rows")[0].at(key).is_null()) << key;
    }
    const Outcome bench = chitu("bench" + file);
    if (bench.status == refused) return;  // bench refuses a file with fewer queries than keys
    EXPECT_NE(bench.out.find("Nothing was compared: " + why), std::string::npos) << bench.out;
    EXPECT_EQ(bench.out.find("0.0e+00"), std::string::npos) << bench.out;
  };
  expect_none(file_of(folder, small, small, 2 * 5 * 16), "no number of the truth is finite");
}

TEST(Program, FilesWithNothingToMeasureAreRefused) {
  const Folder folder;
  const auto expect_one_line = [&](const std::string& file, const std::string& why) {
    for (const std::string command : {"accuracy", "bench", "accuracy --max-l1 0.5"}) {
      const Outcome o = chitu(command + file);
      EXPECT_EQ(o.status, refused) << o.out << o.error;
      EXPECT_EQ(o.out, "");
      EXPECT_NE(o.error.find("x.safetensors: " + why), std::string::npos) << o.error;
      EXPECT_EQ(std::count(o.error.begin(), o.error.end(), '\n'), 1) << o.error;
    }
  };
  expect_one_line(file_of(folder, {1, 2, 0, 16}, small), "q has shape [1, 2, 0, 16], so there is nothing to measure");
  expect_one_line(file_of(folder, {1, 2, 0, 16}, {1, 2, 0, 16}), "q has shape [1, 2, 0, 16], so there is nothing to measure");
  expect_one_line(file_of(folder, small, {1, 2, 0, 16}), "k has shape [1, 2, 0, 16], so there is nothing to measure");
  expect_one_line(file_of(folder, {0, 2, 5, 16}, {0, 2, 5, 16}), "q has shape [0, 2, 5, 16], so there is nothing to measure");
}

// Whoever puts a mask into a file expects it to count.
TEST(Program, TensorsThatWouldNotCountAreRefused) {
  const Folder folder;
  const HostTensor x = random_tensor(DType::f32, small, 1);
  const auto file = [&](const std::string& name, const std::vector<std::string>& others) {
    std::vector<NamedTensor> tensors{{"q", x.tensor}, {"k", x.tensor}, {"v", x.tensor}};
    for (const std::string& other : others) tensors.push_back({other, x.tensor});
    write_safetensors(folder / name, tensors);
    return " --input '" + (folder / name).string() + "' --threads 1";
  };
  const std::string commands[] = {"accuracy --runs 1", "bench --runs 1", "run --out '" + (folder / "out.npy").string() + "'"};
  const std::string masked = file("masked.safetensors", {"attn_mask", "layers.3.bias", "lse"});
  const std::string more = file("more.safetensors", {"layers.3.q", "1.k", "out", "lse"});
  for (const std::string& command : commands) {
    const Outcome o = chitu(command + masked);
    EXPECT_EQ(o.status, refused) << o.out;
    EXPECT_NE(o.error.find("masked.safetensors: has tensors that would not count: 'attn_mask', 'layers.3.bias';"), std::string::npos)
        << o.error;
    EXPECT_EQ(chitu(command + more).status, 0);
  }
}

TEST(NotFinite, RowsLeftOutAreNamed) {
  const Folder folder;
  const auto json = folder / "a.json";
  const std::string file = file_of(folder, small, small, 1) + " --json '" + json.string() + "'";
  for (const std::string command : {"accuracy --max-l1 0.5", "bench"}) {
    const Outcome o = chitu(command + file);
    EXPECT_EQ(o.status, 0) << o.error;
    EXPECT_NE(o.out.find("Left out: 16 numbers not finite in the truth, in 1 of 10 rows of all heads"), std::string::npos) << o.out;
    EXPECT_EQ(read_json(json).at("rows")[0].at("not_finite_rows"), 1);
  }
}

// A refused file prints no heading that would be untrue, and costs no seconds of work.
TEST(Refusals, OfAFileComeFirst) {
  const Folder folder;
  const auto expect_refused = [](const std::string& words, const char* named) {
    const Outcome o = chitu(words);
    EXPECT_EQ(o.status, refused) << words;
    EXPECT_EQ(o.out, "") << words;
    EXPECT_NE(o.error.find(named), std::string::npos) << words << ": " << o.error;
  };
  const std::string few = file_of(folder, {1, 2, 3, 16}, small);
  expect_refused("bench" + few, "3 queries and 5 keys");
  expect_refused("bench" + few + " --lengths 3,1M", "1048576 tokens");
  expect_refused("accuracy" + few + " --tokens 1M", "1048576 tokens");
  expect_refused("accuracy" + few + " --layout sbhd", "sbhd");
  const std::string heads = file_of(folder, {1, 3, 5, 16}, small);
  expect_refused("bench" + heads, "query has 3 heads");
  expect_refused("accuracy" + heads, "query has 3 heads");
}

TEST(Bench, TakesTheFirstTokensOfAFile) {
  const Folder folder;
  const TensorFile file(folder);
  const auto json = folder / "b.json";
  ASSERT_EQ(chitu("bench " + file.word() + " --lengths 64 --runs 1 --json '" + json.string() + "'").status, 0);
  const Json row = read_json(json).at("rows")[0];
  EXPECT_EQ(row.at("tokens"), 64);
  EXPECT_EQ(row.at("heads"), 4);
  EXPECT_EQ(row.at("kv_heads"), 2);
  EXPECT_EQ(row.at("dtype"), "f16");
  EXPECT_EQ(row.at("data"), "qkv");
  const Outcome longer = chitu("bench " + file.word() + " --lengths 64,1K");
  EXPECT_EQ(longer.status, refused);
  EXPECT_NE(longer.error.find("1024 tokens"), std::string::npos) << longer.error;
}

TEST(Accuracy, RecommendsAndWritesAll) {
  const Folder folder;
  const auto json = folder / "a.json", svg = folder / "a.svg";
  const Outcome o = chitu("accuracy --data normal,sink --tokens 256 --dim 32 --runs 1 --max-l1 0.9 --json '" + json.string() +
                          "' --plot '" + svg.string() + "'");
  ASSERT_EQ(o.status, 0) << o.error;
  const Json report = read_json(json);
  EXPECT_EQ(report.at("rows").size(), 2 * methods.size());
  EXPECT_TRUE(report.at("recommended").is_string());
  EXPECT_NE(o.out.find("Recommended: " + report.at("recommended").get<std::string>()), std::string::npos);
  for (const Json& row : report.at("rows"))
    for (const char* key : {"cosine", "rel_l1", "rmse", "max_diff", "worst_head", "worst_head_rel_l1", "worst_row_query",
                            "worst_row_rel_l1", "lse_max_diff", "lse_mean_diff", "total_ms"})
      ASSERT_TRUE(row.at(key).is_number()) << key;
  EXPECT_EQ(read_bytes(svg).rfind("<svg ", 0), 0u);
  for (const Method& m : methods) EXPECT_NE(read_bytes(svg).find(">" + std::string(m.name) + "</text>"), std::string::npos) << m.name;
}

TEST(Accuracy, ExitStatusSaysWhetherAMethodIsWithinABoundThatWasGiven) {
  const std::string words = "accuracy --method int8,fp8 --data sink --tokens 256 --dim 32 --runs 1";
  const Outcome o = chitu(words + " --max-l1 1e-6");
  EXPECT_EQ(o.status, none_within);
  EXPECT_EQ(o.error, "");
  EXPECT_NE(o.out.find("Recommended: none"), std::string::npos);
  EXPECT_EQ(chitu(words).status, 0);  // no bound given: nothing to fail
}

TEST(Accuracy, ReadsAFileWhoseQueriesAreFewerThanItsKeys) {
  const Folder folder;
  const Operands x = generate("normal", {1, 2, 40, 16}, {1, 2, 40, 16}, DType::f32, 5);
  const HostTensor key = generate("normal", {1, 2, 90, 16}, {1, 2, 90, 16}, DType::f32, 6).key;
  const NamedTensor tensors[] = {{"q", x.query.tensor}, {"k", key.tensor}, {"v", key.tensor}};
  write_safetensors(folder / "x.safetensors", tensors);
  const std::string input = "--input '" + (folder / "x.safetensors").string() + "' --runs 1 --causal";
  const Outcome o = chitu("accuracy --method exact,sage " + input + " --max-l1 0.05");
  EXPECT_EQ(o.status, 0) << o.error;
  EXPECT_NE(o.out.find("40 query rows, 90 keys"), std::string::npos) << o.out;
  EXPECT_EQ(chitu("bench " + input).status, refused);
}

TEST(Refusals, NameTheThingAndLeaveNoFile) {
  const std::pair<const char*, const char*> cases[] = {
      {"bench --method sage9", "sage9"},
      {"bench --method sage,sage", "twice"},
      {"bench --lengths 4Q", "4Q"},
      {"bench --lengths 0", "--lengths"},
      {"bench --data gauss", "gauss"},
      {"bench --dtype i8", "i8"},
      {"bench --dim 300", "--dim"},
      {"bench --heads 6 --kv-heads 4", "--kv-heads"},
      {"bench --runs 0", "--runs"},
      {"bench --in-a-row 0", "--in-a-row"},
      {"bench --rest -1", "--rest"},
      {"bench --rows 0", "--rows"},
      {"bench --kernel cpu.gpu --lengths 64", "cpu.gpu"},
      {"bench --input missing.safetensors", "missing.safetensors"},
      {"bench --input x.safetensors --heads 4", "--heads"},
      {"bench --layout bshd", "--input"},
      {"bench --causal --window 3,3", "--window"},
      {"accuracy --max-l1 -1", "--max-l1"},
      {"accuracy --max-l1 0", "--max-l1"},
      {"accuracy --max-l1 nan", "--max-l1 is nan"},
      {"accuracy --max-l1 inf", "--max-l1 is inf"},
      {"accuracy --kernel foo", "kernel is 'foo'"},
      {"accuracy --rows 1.5K", "--rows: '1.5K'"},
      {"accuracy --csv x --json ./x", "--csv and --json are one file"},
      {"accuracy --csv y --json x --plot x", "--json and --plot are one file"},
      {"accuracy --plot a.png", "--plot a.png must end in .svg"},
      {"bench --plot a.png", "--plot a.png must end in .svg"},
      {"bench --csv a.svg --plot ./a.svg", "--csv and --plot are one file"},
      {"bench --plot a.svg --lengths 1K", "two --lengths or more"},
      {"bench --plot a.svg --lengths 64,64", "two --lengths or more"},
      {"bench --plot a.svg --data normal,sink", "--data has 2"},
      {"bench --plot /no/such/folder/a.svg", "/no/such/folder"},
      {"accuracy --runs 2 --in-a-row 3", "--in-a-row is 3"},
      {"bench --kernel foo", "kernel is 'foo'"},
      {"bench --dtype f64", "f64"},
      {"bench --threads 5000", "--threads"},
      {"bench --threads -1", "--threads"},
      {"bench --csv x --json x", "--csv and --json are one file"},
      {"bench --heads 0", "--heads"},
      {"bench --batch 0", "--batch"},
      {"bench --kv-heads 0", "--kv-heads"},
      {"bench --lengths 1.5K", "--lengths: '1.5K'"},
      {"bench --lengths 1,,2", "--lengths: '1,,2'"},
      {"bench --lengths 9223372036854775807", "too large"},
      {"bench --runs 1 --in-a-row 3", "--in-a-row is 3"},
      {"bench --sample-above nan", "--sample-above is nan"},
      {"bench --sample-above -1", "--sample-above is -1"},
      {"explain --kv-heads 0", "--kv-heads"},
      {"explain --keys 1.5K", "--keys: '1.5K'"},
      {"doctor --threads 5000", "--threads"},
      {"accuracy --plot /no/such/folder/a.svg", "/no/such/folder"},
      {"accuracy --tokens 0", "--tokens"},
      {"explain --dim 257", "257"},
      {"explain --method none", "none"},
      {"doctor --threads -1", "--threads"},
      {"bench --device tpu", "tpu"},
      {"bench --device cuda --threads 2", "--threads"},
      {"bench --device cuda --dtype f32", "--dtype f32"},
      {"bench --device cuda --sample-above 3", "--sample-above"},
      {"accuracy --device cuda --threads 2", "--threads"},
      {"accuracy --device cuda --dtype f32", "--dtype f32"},
      {"bench --tokens-per-call 32K --lengths 1K,3K", "3072"},
      {"bench --tokens-per-call 0", "--tokens-per-call"},
      {"bench --tokens-per-call 4K --batch 2", "--batch"},
      {"bench --tokens-per-call 4K --input x.safetensors", "--input"},
  };
  const Folder folder;
  for (const auto& [words, named] : cases) {
    const Outcome o = chitu(words, "cd '" + (folder / "").string() + "' &&");
    EXPECT_EQ(o.status, refused) << words;
    EXPECT_EQ(o.out, "") << words;  // before any work
    EXPECT_NE(o.error.find(named), std::string::npos) << words << ": " << o.error;
    EXPECT_EQ(std::count(o.error.begin(), o.error.end(), '\n'), 1) << o.error;
    EXPECT_LT(o.error.size(), 300u) << o.error;  // a range up to the largest double has 310 digits
  }
  EXPECT_EQ(chitu("bench --method sage9 --json '" + (folder / "b.json").string() + "'").status, refused);
  EXPECT_TRUE(folder.names().empty());
}

TEST(Bench, TokensPerCallSayTheBatchOfEachLength) {
  const Folder folder;
  const auto json = folder / "b.json";
  const Outcome o =
      chitu("bench --method int8 --lengths 64,256 --tokens-per-call 256 --heads 2 --dim 16 --runs 1 --json '" + json.string() + "'");
  ASSERT_EQ(o.status, 0) << o.error;
  const Json rows = read_json(json).at("rows");
  ASSERT_EQ(rows.size(), 4u);
  for (const Json& row : rows) EXPECT_EQ(row.at("batch").get<int>() * row.at("tokens").get<int>(), 256);
}

TEST(WithoutAGpu, EachRequestForOneIsRefusedInOneLine) {
  if (has_gpu()) GTEST_SKIP() << "there is a GPU";
  const Folder folder;
  const TensorFile file(folder);
  const auto out = folder / "o.safetensors";
  for (const std::string& words : {"run " + file.word() + " --out '" + out.string() + "'", std::string("bench"),
                                   std::string("bench --dtype f16 --lengths 64"), "accuracy " + file.word(), std::string("explain")}) {
    const Outcome o = chitu(words + " --device cuda");
    EXPECT_EQ(o.status, refused) << words;
    EXPECT_EQ(o.out, "") << words;
    EXPECT_EQ(o.error.rfind("chitu: error: --device cuda: ", 0), 0u) << o.error;
    EXPECT_NE(o.error.find("GPU"), std::string::npos) << o.error;
    EXPECT_EQ(std::count(o.error.begin(), o.error.end(), '\n'), 1) << o.error;
  }
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_NE(chitu("doctor").out.find("\nGPU: "), std::string::npos);
}

TEST(Explain, NamesTheKernelThatRunsAndThoseBefore) {
  const Outcome o = chitu("explain --method chitu --keys 1M --queries 1 --dtype bf16 --causal --lse --kv-heads 2");
  ASSERT_EQ(o.status, 0) << o.error;
  EXPECT_NE(o.out.find("takes it"), std::string::npos);
  const Outcome last = chitu("explain --kernel cpu.reference");  // all the others are refused, with a reason
  for (const KernelInfo& k : kernels()) EXPECT_NE(last.out.find(k.name), std::string::npos);
  EXPECT_NE(last.out.find("cpu.reference (scores in any, weights in any): takes it"), std::string::npos) << last.out;
}

TEST(MethodsPage, IsWhatTheProgramPrints) {
#ifndef __x86_64__
  GTEST_SKIP() << "the page lists the kernels of x86-64";
#endif
  const Outcome o = chitu("methods --markdown");
  ASSERT_EQ(o.status, 0);
  EXPECT_EQ(o.out, read_bytes(CHITU_METHODS_PAGE)) << "run: chitu methods --markdown > docs/methods.md";
}

TEST(Methods, AreAllListed) {
  const Outcome o = chitu("methods");
  for (const Method& m : methods) EXPECT_NE(o.out.find("| " + std::string(m.name)), std::string::npos);
}

TEST(Doctor, FindsThisMachineWell) {
  const Folder folder;
  const auto json = folder / "d.json";
  const Outcome o = chitu("doctor --json '" + json.string() + "'");
  EXPECT_EQ(o.status, 0) << o.out << o.error;
  EXPECT_NE(o.out.find("All passed."), std::string::npos);
  const Json report = read_json(json);
  EXPECT_EQ(report.at("passed"), true);
  EXPECT_EQ(report.at("kernels").size(), kernels().size());
  EXPECT_EQ(report.at("gpus").empty(), !has_gpu());
  EXPECT_GE(report.at("self_tests").size(), methods.size());
  for (const Json& t : report.at("self_tests")) EXPECT_EQ(t.at("passed"), true) << t;
}

}  // namespace
}  // namespace chitu::cli::test
