// SPDX-License-Identifier: Apache-2.0
// Methods by name.
#include "chitu/method.h"

#include <string>

#include "chitu/error.h"

namespace chitu {

const Method& find_method(std::string_view name) {
  std::string names;
  for (const Method& m : methods) {
    if (m.name == name) return m;
    names += (names.empty() ? "" : ", ") + std::string(m.name);
  }
  throw Error(ErrorCode::bad_argument, "there is no method '" + std::string(name) + "'; the methods are " + names);
}

}  // namespace chitu
