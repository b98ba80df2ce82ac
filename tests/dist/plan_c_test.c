/* SPDX-License-Identifier: Apache-2.0 */
/* The C interface of plans from C99: prints what is wrong, returns 1 if anything is. */
#include <stdio.h>
#include <string.h>

#include "chitu/dist_c.h"

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  printf("FAILED: %s (last error: %s)\n", what, chitu_dist_last_error());
  ++failures;
}

static void check_runs(const chitu_shards* shards) {
  const chitu_run* runs;
  size_t count;
  expect(chitu_shards_runs(shards, 1, 0, &runs, &count) == CHITU_OK && count == 2, "rank 1 has two runs");
  expect(runs[0].first == 10 && runs[0].count == 10 && runs[1].first == 60 && runs[1].step == 1, "parts 1 and 6 of 8");
  expect(chitu_shards_runs(shards, 4, 0, &runs, &count) == CHITU_BAD_ARGUMENT, "there is no rank 4");
  expect(strstr(chitu_dist_last_error(), "rank 4 is not one of 4") != NULL, "and the message says so");
}

static void check_plan(const chitu_shards* shards) {
  chitu_task task = {sizeof task, 8, 2, -1, 0, 0, 0, 0};
  chitu_plan* plan = NULL;
  chitu_plan_parts parts = {sizeof parts, 0, 0, NULL, 0, NULL, 0, NULL, 0, {0, 0, 0, 0}};
  expect(chitu_plan_make(shards, &task, 2, &plan) == CHITU_OK && chitu_plan_view(plan, &parts) == CHITU_OK, "a plan");
  expect(parts.steps == 5 && parts.places == 1 && parts.heads[1] == 8 && parts.heads[3] == 2, "its size");
  int64_t pairs = 0;
  int joined = 0, sends = 0;
  for (size_t i = 0; i < parts.calls_count; ++i) pairs += parts.calls[i].pairs, joined += parts.calls[i].query_runs == 2;
  for (size_t i = 0; i < parts.transfers_count; ++i) sends += parts.transfers[i].is_send;
  expect(pairs == 80 * 81 / 2 / 4, "its share of the pairs");
  expect(joined == 2, "two calls without a mask, of both runs");
  expect(sends > 0 && (size_t)sends < parts.transfers_count, "it sends and receives");
  chitu_plan_free(plan);
  task.struct_size = 3;
  expect(chitu_plan_make(shards, &task, 2, &plan) == CHITU_BAD_ARGUMENT, "a task of another size");
}

int main(void) {
  const int64_t lengths[] = {80};
  chitu_shards* shards = NULL;
  expect(chitu_shards_make(CHITU_ZIGZAG, 4, 1, lengths, NULL, 1, &shards) == CHITU_OK, "shards");
  check_runs(shards);
  check_plan(shards);
  chitu_shards_free(shards);
  expect(chitu_shards_make(9, 4, 1, lengths, NULL, 1, &shards) == CHITU_BAD_ARGUMENT, "no such sharding");
  expect(chitu_shards_make(CHITU_WHOLE, 0, 1, lengths, NULL, 1, &shards) == CHITU_BAD_ARGUMENT, "no ranks");
  const int64_t sizes[] = {3, 0};
  expect(chitu_shards_of_sizes(2, 1, sizes, &shards) == CHITU_OK, "shards of any size");
  chitu_shards_free(shards);
  chitu_shards_free(NULL);
  chitu_plan_free(NULL);
  return failures != 0;
}
