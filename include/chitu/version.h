// SPDX-License-Identifier: Apache-2.0
// The version, said once; CMake reads it from here.
#pragma once

#define CHITU_VERSION_MAJOR 0
#define CHITU_VERSION_MINOR 1
#define CHITU_VERSION_PATCH 0
#define CHITU_VERSION "0.1.0"
