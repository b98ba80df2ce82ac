// SPDX-License-Identifier: Apache-2.0
// The .safetensors format: length of the header (u64), a JSON object of {dtype, shape, data_offsets} by tensor name, data. The JSON is read
// as a stream of events, so only what the format has is ever stored, however deep the input nests.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli/files/formats.h"

namespace chitu::cli {
namespace {

using nlohmann::json;

constexpr std::size_t prefix = 8;  // bytes of the header's length
constexpr std::string_view metadata = "__metadata__";

using Sizes = std::vector<std::int64_t>;

struct Entry {
  std::optional<std::string> dtype{};
  std::optional<Sizes> shape{};
  std::optional<Sizes> offsets{};  // begin, end in the data
};

using Entries = std::map<std::string, Entry, std::less<>>;

// Takes the parser's events, throws Error at the first that a header cannot have.
class HeaderEvents : public json::json_sax_t {
 public:
  Entries take() { return std::move(entries_); }

  bool start_object(std::size_t) override {
    if (place_ == Place::file) return enter(Place::tensors);
    if (place_ == Place::tensors) return enter(key_ == metadata ? Place::metadata : Place::tensor);
    return refuse("an object");
  }
  bool end_object() override {
    if (place_ == Place::tensor)
      require(entry_->dtype && entry_->shape && entry_->offsets, "has no dtype, shape or data_offsets for the tensor ", in_quotes(tensor_));
    return enter(place_ == Place::tensors ? Place::file : Place::tensors);
  }
  bool key(std::string& key) override {
    if (place_ == Place::tensors) add(key);
    key_ = std::move(key);
    return true;
  }
  bool string(std::string& value) override {
    if (place_ == Place::metadata) return true;
    if (place_ != Place::tensor || key_ != "dtype") return refuse("a string");
    set(entry_->dtype, std::move(value));
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || (key_ != "shape" && key_ != "data_offsets")) return refuse("an array");
    set(key_ == "shape" ? entry_->shape : entry_->offsets, Sizes{});
    return enter(key_ == "shape" ? Place::shape : Place::offsets);
  }
  bool end_array() override {
    require(place_ == Place::shape || entry_->offsets->size() == 2, "has data_offsets that are not two numbers for the tensor ",
            in_quotes(tensor_));
    return enter(Place::tensor);
  }
  bool number_unsigned(std::uint64_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) return refuse("a number");
    require(value <= std::numeric_limits<std::int64_t>::max(), "has ", value, " in ", key_, " of the tensor ", in_quotes(tensor_),
            ", which is too large");
    (place_ == Place::shape ? entry_->shape : entry_->offsets)->push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(std::int64_t) override { return refuse("a negative number"); }
  bool number_float(double, const std::string&) override { return refuse("a number that is not whole, or too large,"); }
  bool boolean(bool) override { return refuse("true or false"); }
  bool null() override { return refuse("null"); }
  bool binary(json::binary_t&) override { return refuse("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw Error(ErrorCode::bad_argument, "has a header that is not JSON at byte " + std::to_string(position));
  }

 private:
  // Where the next event stands: outermost, among the tensors, within __metadata__, a tensor, its shape, its data_offsets.
  enum class Place : std::uint8_t { file, tensors, metadata, tensor, shape, offsets };

  bool enter(Place place) {
    place_ = place;
    return true;
  }
  [[noreturn]] bool refuse(const char* what) const {
    throw Error(ErrorCode::bad_argument, std::string("has a header with ") + what +
                                             (place_ == Place::file ? " instead of an object"
                                                                    : " after the key " + in_quotes(key_) +
                                                                          (tensor_.empty() ? "" : " of the tensor " + in_quotes(tensor_))));
  }
  void add(const std::string& name) {
    const bool is_new = name == metadata ? !std::exchange(metadata_seen_, true) : !entries_.contains(name);
    require(is_new, "has two entries ", in_quotes(name));
    if (name == metadata) return;
    tensor_ = name;
    entry_ = &entries_[name];
  }
  template <class T>
  void set(std::optional<T>& field, T value) {
    require(!field, "has two keys ", in_quotes(key_), " for the tensor ", in_quotes(tensor_));
    field = std::move(value);
  }

  Place place_ = Place::file;
  std::string key_, tensor_;  // the last of each
  Entry* entry_ = nullptr;    // of tensor_
  bool metadata_seen_ = false;
  Entries entries_;
};

// The data must be the tensors one after the other, as the format says: no overlap, no hole.
void check_offsets(const Entries& entries, std::int64_t data_bytes) {
  std::vector<const Entries::value_type*> order;
  for (const auto& entry : entries) order.push_back(&entry);
  const auto offsets = [](const Entries::value_type* entry) -> const Sizes& { return *entry->second.offsets; };
  std::sort(order.begin(), order.end(), [&](auto* a, auto* b) { return offsets(a) < offsets(b); });
  std::int64_t end = 0;
  for (const auto* entry : order) {
    const Sizes& at = offsets(entry);
    require(at[0] <= at[1] && at[1] <= data_bytes, "has data_offsets ", text(at), " for the tensor ", in_quotes(entry->first), ", but ",
            data_bytes, " bytes of data");
    require(at[0] == end, at[0] < end ? "has overlapping tensors: " : "has a hole in its data before the tensor ", in_quotes(entry->first),
            " begins at ", at[0], ", what is before it ends at ", end);
    end = at[1];
  }
  require(end == data_bytes, "has ", data_bytes, " bytes of data, but tensors of only ", end);
}

std::string names_in(const Entries& entries) {
  constexpr std::size_t shown = 16;
  std::string names;
  std::size_t count = 0;
  for (const auto& [name, entry] : entries) {
    if (count++ == shown) return names + " and " + std::to_string(entries.size() - shown) + " more";
    names += (names.empty() ? "" : ", ") + in_quotes(name);
  }
  return names.empty() ? "none" : names;
}

void refuse_others(const Entries& entries, const std::map<std::string, Stored>& tensors) {
  const auto may_stay = [](const std::string& name) {
    const bool elsewhere = name.ends_with(".q") || name.ends_with(".k") || name.ends_with(".v");
    return elsewhere || name == "out" || name == "lse";
  };
  Entries unknown;
  for (const auto& entry : entries)
    if (!tensors.contains(entry.first) && !may_stay(entry.first)) unknown.insert(entry);
  require(unknown.empty(), "has tensors that would not count: ", names_in(unknown),
          "; take them out (out, lse and those of other heads or layers, like layers.3.q, may stay)");
}

DType parse_dtype(const std::string& dtype) {
  if (dtype == "F32") return DType::f32;
  if (dtype == "F16") return DType::f16;
  if (dtype == "BF16") return DType::bf16;
  throw Error(ErrorCode::bad_argument, "has the dtype " + in_quotes(dtype) + "; it must be F32, F16 or BF16");
}

Stored stored(const Entry& entry, std::uint64_t data) {
  const DType type = parse_dtype(*entry.dtype);
  const Shape shape = checked_shape(*entry.shape);
  const std::uint64_t needed = checked_bytes(type, shape);
  const std::int64_t begin = entry.offsets->front(), held = entry.offsets->back() - begin;
  require(needed == static_cast<std::uint64_t>(held), "has ", held, " bytes of data, but ", name(type), " ", text(shape), " takes ",
          needed);
  require(begin % bytes(type) == 0, "begins at byte ", begin, " of the data, which is no multiple of the ", bytes(type), " bytes of ",
          name(type));
  return {type, shape, data + static_cast<std::uint64_t>(begin)};
}

}  // namespace

std::map<std::string, Stored> parse_safetensors(std::span<const std::byte> start, std::uint64_t file_bytes,
                                                std::span<const std::string> names, Others others) {
  require(start.size() >= prefix, "is not a .safetensors file: it has only ", file_bytes, " bytes");
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < prefix; ++i) length |= std::to_integer<std::uint64_t>(start[i]) << (8 * i);
  require(length <= file_bytes - prefix, "has ", file_bytes, " bytes, but says that its header alone takes ", length,
          ": it is cut short, or not a .safetensors file");
  require(length <= safetensors_header_limit - prefix, "has a header of ", length, " bytes; at most ", safetensors_header_limit - prefix,
          " can be read");

  const auto* header = reinterpret_cast<const char*>(start.data()) + prefix;
  HeaderEvents events;
  json::sax_parse(header, header + length, &events);
  const Entries entries = events.take();
  const std::uint64_t data = prefix + length;
  check_offsets(entries, static_cast<std::int64_t>(file_bytes - data));

  std::map<std::string, Stored> tensors;
  for (const std::string& name : names) {
    const auto found = entries.find(name);
    require(found != entries.end(), "has no tensor ", in_quotes(name), "; there are: ", names_in(entries));
    try {
      tensors.emplace(name, stored(found->second, data));
    } catch (const Error& error) {
      throw Error(error.code(), "tensor " + in_quotes(name) + " " + error.what());
    }
  }
  if (others == Others::refused) refuse_others(entries, tensors);
  return tensors;
}

std::string safetensors_header(std::span<const NamedTensor> tensors) {
  json header = json::object();
  std::uint64_t offset = 0;
  for (const NamedTensor& named : tensors) {
    constexpr const char* dtypes[] = {"F32", "F16", "BF16"};
    const DType type = named.tensor.type;
    require(type <= DType::bf16, "a tensor of ", name(type), " is not written");
    const std::uint64_t end = offset + checked_bytes(type, named.tensor.shape);
    const bool is_new = header
                            .emplace(named.name, json{{"dtype", dtypes[static_cast<int>(type)]},
                                                      {"shape", file_shape(named.tensor, named.rank)},
                                                      {"data_offsets", {offset, end}}})
                            .second;
    require(is_new, "two tensors are called ", in_quotes(named.name));
    offset = end;
  }
  std::string written = header.dump();
  written += std::string((prefix - written.size() % prefix) % prefix, ' ');  // keeps the data aligned
  std::string length;
  for (std::size_t i = 0; i < prefix; ++i) length += static_cast<char>(written.size() >> (8 * i) & 0xff);
  return length + written;
}

}  // namespace chitu::cli
