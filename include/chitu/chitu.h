// SPDX-License-Identifier: Apache-2.0
// ChituAttention: everything. Start with attention.h.
#pragma once

#include "chitu/attention.h"
#include "chitu/error.h"
#include "chitu/method.h"
#include "chitu/tensor.h"
#include "chitu/version.h"
