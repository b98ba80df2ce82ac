// SPDX-License-Identifier: Apache-2.0
// The .npy format on bytes in memory.
#include "cli/files/formats.h"
#include "support.h"

namespace chitu::cli::test {
namespace {

using namespace std::string_literals;

constexpr const char* good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3, 4), }\n";
constexpr std::size_t good_bytes = 96;

std::string file(const std::string& header, std::size_t data_bytes, int version = 1) {
  std::string bytes = "\x93NUMPY"s + static_cast<char>(version) + '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + std::string(data_bytes, 'x');
}

Stored parse(const std::string& bytes) { return parse_npy(std::as_bytes(std::span(bytes)), bytes.size()); }

void expect_refused(const std::string& bytes, std::initializer_list<std::string_view> pieces) {
  expect_error([&] { parse(bytes); }, pieces);
}

std::string with_shape(const std::string& shape) { return "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}"; }

TEST(Npy, Versions) {
  for (const int version : {1, 2, 3}) {
    const Stored stored = parse(file(good, good_bytes, version));
    EXPECT_EQ(stored.type, DType::f32);
    EXPECT_EQ(stored.shape, (Shape{1, 2, 3, 4}));
    EXPECT_EQ(stored.offset, std::string(good).size() + (version == 1 ? 10 : 12));
  }
}

TEST(Npy, HeadersThatPythonWouldReadAlike) {
  EXPECT_EQ(parse(file("{\"shape\":(1,2,3,4),\"fortran_order\":False,\"descr\":\"<f2\"}", 48)).type, DType::f16);
  EXPECT_EQ(parse(file("  { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 1 , 2 , 3 , 4 , ) , }   \n", good_bytes)).shape,
            (Shape{1, 2, 3, 4}));
  EXPECT_EQ(parse(file(with_shape("(1, 2, 0, 4)"), 0)).shape, (Shape{1, 2, 0, 4}));
}

TEST(Npy, WrittenAsNumpyWritesIt) {
  const std::int64_t shape[] = {1, 2, 3, 4};
  const std::string header = npy_header(DType::f32, shape);
  EXPECT_EQ(header.size(), 128u);
  EXPECT_EQ(header, "\x93NUMPY\x01\0\x76\0"s + std::string(good, std::strlen(good) - 1) + std::string(52, ' ') + "\n");
  expect_error([&] { npy_header(DType::bf16, shape); }, {"numpy has no bf16", ".safetensors"});
}

TEST(Npy, CutShortAnywhere) {
  for (const int version : {1, 2}) {
    const std::string whole = file(good, good_bytes, version);
    for (std::size_t size = 0; size < whole.size(); ++size) expect_refused(whole.substr(0, size), {});
    expect_refused(whole.substr(0, whole.size() - 1), {"95 bytes of data", "[1, 2, 3, 4]", "96"});
    expect_refused(whole + "x", {"97 bytes of data", "96"});
  }
}

TEST(Npy, HugeHeaders) {
  expect_refused("\x93NUMPY\x02\0\xff\xff\xff\xff"s, {"4294967307", "12 bytes"});
  expect_refused("\x93NUMPY\x01\0\xff\xff{}"s, {"65545"});
  expect_refused(file(good + std::string(1 << 17, ' '), good_bytes, 2), {"header of", "at most"});
}

TEST(Npy, OtherFiles) {
  expect_refused("", {"not a .npy file"});
  expect_refused("PK\3\4 and so on, an .npz", {"not a .npy file"});
  expect_refused("\x93NUMPY\x04\0\1\0{}"s, {"version 4.0"});
  expect_refused("\x93NUMPY\0\0\1\0{}"s, {"version 0.0"});
}

TEST(Npy, Types) {
  const auto descr = [](const std::string& type) {
    return file("{'descr': " + type + ", 'fortran_order': False, 'shape': (1, 1, 1, 1)}", 8);
  };
  expect_refused(descr("'<f8'"), {"f64", "astype('float32')"});
  expect_refused(descr("'>f4'"), {"big-endian", ">f4"});
  expect_refused(descr("'<V2'"), {"bf16", ".safetensors"});
  expect_refused(descr("'<i4'"), {"'<i4'", "f32"});
  expect_refused(descr("''"), {"''"});
  expect_refused(descr("[('a', '<f4')]"), {"records"});
  expect_refused(file("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2, 3, 4)}", good_bytes), {"Fortran"});
}

TEST(Npy, Shapes) {
  expect_refused(file(with_shape("(2, 3, 4)"), 96), {"rank 3", "[2, 3, 4]", "must have rank 4"});
  expect_refused(file(with_shape("()"), 4), {"rank 0"});
  expect_refused(file(with_shape("(1, 1, 1, 1, 1)"), 4), {"rank 5"});
  expect_refused(file(with_shape("(-1, 2, 3, 4)"), 96), {"[-1, 2, 3, 4]", "negative"});
  expect_refused(file(with_shape("(-1, -2, 3, 4)"), 96), {"negative"});
  expect_refused(file(with_shape("(99999999999999999999, 1, 1, 1)"), 96), {"too large"});
  // Products that are 0 or small modulo 2^64, and a size of 0 that hides the overflow of a stride.
  expect_refused(file(with_shape("(4294967296, 4294967296, 1, 1)"), 0), {"too large"});
  expect_refused(file(with_shape("(4611686018427387904, 4, 1, 6)"), 96), {"too large"});
  expect_refused(file(with_shape("(0, 4611686018427387904, 4611686018427387904, 1)"), 0), {"too large"});
  expect_refused(file(with_shape("(1, 1, 1, 1099511627776)"), 96), {"96 bytes of data", "4398046511104"});
  std::string many = "(1";
  for (int i = 0; i < 5000; ++i) many += ",1";
  expect_refused(file(with_shape(many + ")"), 4), {"rank 5001", "..."});
}

TEST(Npy, HeadersThatAreNoDictionary) {
  for (const std::string& header : {""s,
                                    "{"s,
                                    "}"s,
                                    "[]"s,
                                    "{'descr'"s,
                                    "{'descr':"s,
                                    "{'descr': '<f4"s,
                                    "{'descr': '<f4', 'fortran_order': Fals, 'shape': (1,1,1,1)}"s,
                                    "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,1,1,1)}"s,
                                    "{'descr': '<f4' 'fortran_order': False, 'shape': (1,1,1,1)}"s,
                                    with_shape("(1,1,1,1"),
                                    with_shape("(1,,1,1,1)"),
                                    with_shape("[1,1,1,1]"),
                                    with_shape("(1.0,1,1,1)"),
                                    with_shape("'1'"),
                                    with_shape("((((1,1,1,1)"),
                                    with_shape("(1,1,1,1)") + "{}",
                                    std::string(4096, '{'),
                                    std::string(64, '\0'),
                                    with_shape("\0(1,1,1,1)"s)})
    expect_refused(file(header, 4), {"header"});
  expect_refused(file("{}", 0), {"without descr"});
  expect_refused(file("{'descr': '<f4', 'fortran_order': False}", 0), {"without", "shape"});
  expect_refused(file("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1)}", 4), {"two keys 'descr'"});
  expect_refused(file("{'descr': '<f4', 'order': False, 'shape': (1,1,1,1)}", 4), {"key 'order'"});
  expect_refused(file("{'" + std::string(9999, 'a') + "': 1}", 4), {"aaa...'"});
}

}  // namespace
}  // namespace chitu::cli::test
