// SPDX-License-Identifier: Apache-2.0
// docs/methods.md, generated from the tables in chitu/method.h and from the kernel table: nothing in it depends on the machine.
#pragma once

#include <optional>
#include <string>

#include "chitu/tensor.h"

namespace chitu::cli {

std::string methods_table();                                   // the methods in brief
std::string kernels_table(std::optional<Device> device = {});  // of this build; all, or for tensors there
std::string methods_page();                                    // docs/methods.md

}  // namespace chitu::cli
