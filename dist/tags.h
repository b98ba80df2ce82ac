// SPDX-License-Identifier: Apache-2.0
// The tags of messages. Between two ranks, messages with one tag are sent and received in the same order.
#pragma once

namespace chitu::dist {

inline constexpr int agree_tag = 0, sizes_tag = 1, query_tag = 2, kv_tag = 3, out_tag = 4, lse_tag = 5, joint_tag = 6;

}  // namespace chitu::dist
