// SPDX-License-Identifier: Apache-2.0
// The one exception of the library, and the one way to refuse an argument.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace chitu {

enum class ErrorCode : std::uint8_t { bad_argument = 1, unsupported, out_of_memory, internal };

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// require(k == v, "key and value differ in length: ", k, " and ", v)
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream what;
  (what << ... << parts);
  throw Error(ErrorCode::bad_argument, what.str());
}

}  // namespace chitu
