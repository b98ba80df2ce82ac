// SPDX-License-Identifier: Apache-2.0
// The .npy format, versions 1 to 3: "\x93NUMPY", version, length of the header, a Python dictionary with the keys descr,
// fortran_order and shape, data.
#include <algorithm>
#include <charconv>
#include <optional>

#include "cli/files/formats.h"

namespace chitu::cli {
namespace {

constexpr std::string_view magic = "\x93NUMPY";
constexpr std::size_t alignment = 64;  // of the data, as numpy writes it

// The part of Python's literals that the header is written in.
class Literal {
 public:
  explicit Literal(std::string_view text) : rest_(text) {}

  bool take(char wanted) {
    skip_spaces();
    if (!rest_.starts_with(wanted)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char wanted) { require(take(wanted), "has a header where '", wanted, "' is missing before ", in_quotes(rest_)); }

  std::string_view string() {
    skip_spaces();
    const char quote = rest_.empty() ? '\0' : rest_.front();
    const std::size_t end = quote == '\'' || quote == '"' ? rest_.find(quote, 1) : rest_.npos;
    require(end != rest_.npos, "has a header where a string is missing before ", in_quotes(rest_));
    const std::string_view inner = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return inner;
  }

  bool boolean() {
    skip_spaces();
    const bool value = rest_.starts_with("True");
    require(value || rest_.starts_with("False"), "has a header where True or False is missing before ", in_quotes(rest_));
    rest_.remove_prefix(value ? 4 : 5);
    return value;
  }

  std::int64_t integer() {
    skip_spaces();
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    require(error == std::errc{}, "has a header where a size is missing or too large before ", in_quotes(rest_));
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return value;
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    while (!take(')')) {
      values.push_back(integer());
      if (take(',')) continue;
      expect(')');
      break;
    }
    return values;
  }

  void end() {
    skip_spaces();
    require(rest_.empty(), "has a header that goes on with ", in_quotes(rest_));
  }

 private:
  void skip_spaces() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n"), rest_.size())); }
  std::string_view rest_;
};

struct Header {
  std::optional<std::string_view> descr{};
  std::optional<bool> fortran_order{};
  std::optional<std::vector<std::int64_t>> shape{};
};

template <class T>
void set(std::optional<T>& field, std::string_view key, T value) {
  require(!field, "has a header with two keys ", in_quotes(key));
  field = std::move(value);
}

Header parse_header(std::string_view text) {
  Literal literal(text);
  Header header;
  literal.expect('{');
  while (!literal.take('}')) {
    const std::string_view key = literal.string();
    literal.expect(':');
    require(!(key == "descr" && literal.take('[')), "is an array of records; it must be of f32 ('<f4') or f16 ('<f2')");
    if (key == "descr") {
      set(header.descr, key, literal.string());
    } else if (key == "fortran_order") {
      set(header.fortran_order, key, literal.boolean());
    } else {
      require(key == "shape", "has a header with the key ", in_quotes(key), "; there are descr, fortran_order and shape");
      set(header.shape, key, literal.tuple());
    }
    if (literal.take(',')) continue;
    literal.expect('}');
    break;
  }
  literal.end();
  require(header.descr && header.fortran_order && header.shape, "has a header without descr, fortran_order or shape");
  return header;
}

DType parse_descr(std::string_view descr) {
  if (descr == "<f4") return DType::f32;
  if (descr == "<f2") return DType::f16;
  constexpr std::string_view readable = "; it must be f32 ('<f4') or f16 ('<f2')";
  require(descr != "<f8", "is f64 ('<f8')", readable, ": save array.astype('float32')");
  require(descr != "<V2" && descr != "|V2", "has a type unknown to numpy (", in_quotes(descr), ")", readable,
          ": bf16 goes into a .safetensors file");
  require(!descr.starts_with('>'), "is big-endian (", in_quotes(descr), ")", readable);
  throw Error(ErrorCode::bad_argument, "has the type " + in_quotes(descr) + std::string(readable));
}

}  // namespace

Stored parse_npy(std::span<const std::byte> start, std::uint64_t file_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  require(text.starts_with(magic), "is not a .npy file: it does not begin with \\x93NUMPY");
  require(text.size() >= 10, "ends within its header");
  const auto byte = [&](std::size_t i) { return std::to_integer<std::uint64_t>(start[i]); };
  const std::uint64_t major = byte(6), minor = byte(7);
  require(major >= 1 && major <= 3 && minor == 0, "has .npy version ", major, ".", minor, "; 1.0, 2.0 and 3.0 can be read");
  const std::size_t begin = major == 1 ? 10 : 12;  // of the dictionary
  require(text.size() >= begin, "ends within its header");
  const std::uint64_t length = major == 1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  const std::uint64_t offset = begin + length;
  require(offset <= file_bytes, "has ", file_bytes, " bytes, but says that its header alone takes ", offset);
  require(offset <= npy_header_limit, "has a header of ", length, " bytes; at most ", npy_header_limit - begin, " can be read");

  const Header header = parse_header(text.substr(begin, length));
  const DType type = parse_descr(*header.descr);
  require(!*header.fortran_order, "is in Fortran order; save numpy.ascontiguousarray(array)");
  const Shape shape = checked_shape(*header.shape);
  const std::uint64_t needed = checked_bytes(type, shape);
  require(needed == file_bytes - offset, "has ", file_bytes - offset, " bytes of data, but ", name(type), " ", cli::text(shape), " takes ",
          needed);
  return {type, shape, offset};
}

// For two sizes or more; Python writes a tuple of one in another way.
std::string npy_header(DType type, std::span<const std::int64_t> shape) {
  require(type == DType::f32 || type == DType::f16, "numpy has no ", name(type), "; write a .safetensors file");
  std::string sizes = cli::text(shape);  // a Python tuple, except for the brackets
  sizes.front() = '(';
  sizes.back() = ')';
  std::string header =
      std::string("{'descr': '") + (type == DType::f32 ? "<f4" : "<f2") + "', 'fortran_order': False, 'shape': " + sizes + ", }";
  const std::size_t unpadded = magic.size() + 4 + header.size() + 1;
  header += std::string((alignment - unpadded % alignment) % alignment, ' ') + "\n";
  const std::string prefix{'\1', '\0', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return std::string(magic) + prefix + header;
}

}  // namespace chitu::cli
