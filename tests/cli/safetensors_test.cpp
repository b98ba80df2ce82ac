// SPDX-License-Identifier: Apache-2.0
// The .safetensors format on bytes in memory.
#include "cli/files/formats.h"
#include "support.h"

namespace chitu::cli::test {
namespace {

using namespace std::string_literals;

const std::vector<std::string> only_q{"q"};

std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}

std::string file(const std::string& json, std::size_t data_bytes) {
  return length_bytes(json.size()) + json + std::string(data_bytes, 'x');
}

// One entry of a header, 16 bytes of data unless said otherwise.
std::string entry(const std::string& name, const std::string& offsets = "[0,16]", const std::string& shape = "[1,1,2,2]",
                  const std::string& dtype = "\"F32\"") {
  return "\"" + name + "\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

std::map<std::string, Stored> parse(const std::string& bytes, std::span<const std::string> names = only_q) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), bytes.size(), names);
}

void expect_refused(const std::string& json, std::size_t data_bytes, std::initializer_list<std::string_view> pieces) {
  expect_error([&] { parse(file(json, data_bytes)); }, pieces);
}

TEST(Safetensors, NamedTensors) {
  const std::string json = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("k", "[16,24]", "[1,1,2,2]", "\"BF16\"") + "," + entry("q") +
                           "," + entry("step", "[24,32]", "[]", "\"I64\"") + "," + entry("v", "[32,40]", "[1,2,1,2]", "\"F16\"") + "}    ";
  const std::vector<std::string> names{"v", "q", "k"};
  const auto tensors = parse(file(json, 40), names);
  ASSERT_EQ(tensors.size(), 3u);
  const std::uint64_t data = 8 + json.size();
  EXPECT_EQ(tensors.at("q").offset, data);
  EXPECT_EQ(tensors.at("q").type, DType::f32);
  EXPECT_EQ(tensors.at("k").offset, data + 16);
  EXPECT_EQ(tensors.at("k").type, DType::bf16);
  EXPECT_EQ(tensors.at("v").offset, data + 32);
  EXPECT_EQ(tensors.at("v").type, DType::f16);
  EXPECT_EQ(tensors.at("v").shape, (Shape{1, 2, 1, 2}));
}

TEST(Safetensors, EmptyTensorsTakeNoBytes) {
  const std::string json = "{" + entry("a", "[0,0]", "[1,1,0,2]") + "," + entry("b", "[16,16]", "[1,1,0,2]") + "," + entry("q") + "}";
  EXPECT_EQ(parse(file(json, 16)).size(), 1u);
  EXPECT_TRUE(parse(file("{}", 0), {}).empty());
}

TEST(Safetensors, HeadersWrittenAreReadAgain) {
  const HostTensor a = random_tensor(DType::bf16, {1, 2, 3, 5}, 1), b = random_tensor(DType::f32, {1, 2, 3, 4}, 2);
  const NamedTensor both[] = {{"a \"quoted\"", a.tensor}, {"b", b.tensor}};
  const std::string header = safetensors_header(both);
  EXPECT_EQ(header.size() % 8, 0u);
  const std::vector<std::string> names{"a \"quoted\"", "b"};
  const auto tensors = parse(header + std::string(bytes_of(a)) + std::string(bytes_of(b)), names);
  EXPECT_EQ(tensors.at("b").offset, header.size() + 60);
  EXPECT_EQ(tensors.at("a \"quoted\"").type, DType::bf16);
  const NamedTensor twice[] = {{"a", a.tensor}, {"a", b.tensor}};
  expect_error([&] { safetensors_header(twice); }, {"two tensors", "'a'"});
}

TEST(Safetensors, CutShortAnywhere) {
  const std::string whole = file("{" + entry("q") + "}", 16);
  for (std::size_t size = 0; size < whole.size(); ++size) expect_error([&] { parse(whole.substr(0, size)); }, {});
  expect_error([&] { parse(whole.substr(0, whole.size() - 1)); }, {"'q'", "[0, 16]", "15 bytes"});
  expect_error([&] { parse(whole + "x"); }, {"17 bytes of data", "only 16"});
}

TEST(Safetensors, HugeHeaders) {
  expect_error([&] { parse(length_bytes(~std::uint64_t{0}) + "{}"); }, {"18446744073709551615"});
  expect_error([&] { parse(length_bytes(1 << 20) + "{}"); }, {"1048576", "cut short"});
  expect_error([&] { parse(length_bytes(0)); }, {"not JSON"});
  const std::string start(8, '\0');
  const std::string huge = length_bytes(std::uint64_t{1} << 30);
  expect_error([&] { parse_safetensors(std::as_bytes(std::span(huge)), std::uint64_t{1} << 31, only_q); },
               {"header of 1073741824", "at most"});
}

TEST(Safetensors, Offsets) {
  expect_refused("{" + entry("a", "[8,24]") + "," + entry("q") + "}", 24, {"overlapping", "'a'"});
  expect_refused("{" + entry("a") + "," + entry("q") + "}", 16, {"overlapping"});
  expect_refused("{" + entry("a") + "," + entry("q", "[20,36]") + "}", 36, {"hole", "'q'"});
  expect_refused("{" + entry("q", "[4,20]") + "}", 20, {"hole"});
  expect_refused("{" + entry("q", "[0,32]") + "}", 16, {"[0, 32]", "16 bytes of data"});
  expect_refused("{" + entry("q", "[16,0]") + "}", 16, {"[16, 0]"});
  expect_refused("{" + entry("q", "[0,9223372036854775807]") + "}", 16, {"9223372036854775807"});
  expect_refused("{" + entry("q", "[0,18446744073709551615]") + "}", 16, {"18446744073709551615", "too large"});
  expect_refused("{" + entry("q", "[0,99999999999999999999]") + "}", 16, {"too large"});
  expect_refused("{" + entry("q", "[-16,0]") + "}", 16, {"negative", "'q'"});
  expect_refused("{" + entry("q", "[0,16.0]") + "}", 16, {"not whole"});
  expect_refused("{" + entry("q", "[0]") + "}", 16, {"not two numbers"});
  expect_refused("{" + entry("q", "[0,8,16]") + "}", 16, {"not two numbers"});
  expect_refused("{" + entry("a", "[0,2]", "[2]", "\"U8\"") + "," + entry("q", "[2,18]") + "}", 18, {"'q'", "no multiple of the 4 bytes"});
  expect_refused("{" + entry("q", "[0,16]", "[1,1,2,3]") + "}", 16, {"'q'", "16 bytes", "[1, 1, 2, 3]", "24"});
}

TEST(Safetensors, Shapes) {
  expect_refused("{" + entry("q", "[0,16]", "[2,2]") + "}", 16, {"'q'", "rank 2"});
  expect_refused("{" + entry("q", "[0,16]", "[-1,1,2,2]") + "}", 16, {"negative"});
  expect_refused("{" + entry("q", "[0,0]", "[4294967296,4294967296,1,1]") + "}", 0, {"too large"});
  expect_refused("{" + entry("q", "[0,0]", "[0,4611686018427387904,4611686018427387904,1]") + "}", 0, {"too large"});
  expect_refused("{" + entry("q", "[0,16]", "[18446744073709551615,1,1,1]") + "}", 16, {"too large"});
}

TEST(Safetensors, Types) {
  expect_refused("{" + entry("q", "[0,16]", "[1,1,2,2]", "\"F64\"") + "}", 16, {"'q'", "'F64'", "F32, F16 or BF16"});
  expect_refused("{" + entry("q", "[0,16]", "[1,1,2,2]", "\"f32\"") + "}", 16, {"'f32'"});
  expect_refused("{" + entry("q", "[0,16]", "[1,1,2,2]", "32") + "}", 16, {"a number", "'dtype'", "'q'"});
}

TEST(Safetensors, Names) {
  expect_refused("{" + entry("query") + "}", 16, {"no tensor 'q'", "'query'"});
  expect_refused("{}", 0, {"no tensor 'q'", "none"});
  std::string many;
  for (int i = 0; i < 40; ++i) many += entry(std::string("t").append(std::to_string(i)), "[0,0]", "[0]") + ",";
  expect_refused("{" + many + entry("z", "[0,0]", "[0]") + "}", 0, {"and 25 more"});
  expect_refused("{" + entry("q") + "," + entry("q", "[16,32]") + "}", 32, {"two entries 'q'"});
  expect_refused("{\"__metadata__\":{},\"__metadata__\":{}," + entry("q") + "}", 16, {"two entries '__metadata__'"});
  expect_refused("{\"q\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1,1,2,2],\"data_offsets\":[0,16]}}", 16, {"two keys 'dtype'"});
  expect_refused("{\"q\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1,1,2,2],\"data_offsets\":[0,16]}}", 16, {"two keys 'shape'"});
  expect_refused("{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,2]}}", 16, {"no dtype, shape or data_offsets", "'q'"});
}

TEST(Safetensors, HeadersOfAnotherForm) {
  expect_refused(std::string(1 << 20, '['), 0, {"an array instead of an object"});
  std::string nested;
  for (int i = 0; i < 100000; ++i) nested += "{\"a\":";
  expect_refused(nested, 0, {"an object after the key 'a'"});
  expect_refused("{" + entry("q", "[0,16]", std::string(100000, '[')) + "}", 16, {"an array", "'shape'"});
  expect_refused("{\"__metadata__\":{\"a\":{}}}", 0, {"an object", "'a'"});
  expect_refused("{\"__metadata__\":{\"a\":1}}", 0, {"a number", "'a'"});
  expect_refused("{\"__metadata__\":[]}", 0, {"an array", "'__metadata__'"});
  expect_refused("{\"q\":null}", 0, {"null", "'q'"});
  expect_refused("{\"q\":true}", 0, {"true or false"});
  expect_refused("{\"q\":{\"extra\":1}}", 0, {"a number", "'extra'"});
  expect_refused("{\"q\":{\"extra\":{}}}", 0, {"an object", "'extra'"});
  expect_refused("\"q\"", 0, {"a string instead of an object"});
  expect_refused("7", 0, {"a number instead"});
  for (const std::string& json : {"{"s, "}"s, "{\"q\""s, "{\"q\":}"s, "{,}"s, "{'q':{}}"s, "\0"s, "{\"\xff\":{}}"s, "{}{}"s, "{} x"s})
    expect_refused(json, 0, {"not JSON"});
}

}  // namespace
}  // namespace chitu::cli::test
