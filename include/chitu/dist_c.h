/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of chitu::dist (dist.h) for bindings, in plain C99: who holds which tokens, and who computes what in which step. Nothing here
 * communicates or computes. The functions are in the library of chitu::dist, return as those of c.h do, and may be called from several
 * threads at once. */
#ifndef CHITU_DIST_C_H
#define CHITU_DIST_C_H

#include "chitu/c.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CHITU_DIST_ABI_VERSION 1
int32_t chitu_dist_abi_version(void);    /* of the library; as chitu_abi_version() */
const char* chitu_dist_last_error(void); /* as chitu_last_error(), of the functions of this header */

enum { CHITU_CONTIGUOUS = 0, CHITU_ZIGZAG = 1, CHITU_STRIPED = 2, CHITU_WHOLE = 3 };
enum { CHITU_JOINT = -1 }; /* in place of a rank: the tokens that every rank holds */

/* Tokens of one sequence that follow each other in a rank's tensor: they stand at first, first + step, ... in the sequence. */
typedef struct chitu_run {
  int64_t sequence, count, first, step;
} chitu_run;

/* Who holds which tokens: chitu::dist::Task's ranks and layouts. Released by chitu_shards_free(). */
typedef struct chitu_shards chitu_shards;

/* `count` sequences, spread over ring x ulysses ranks as chitu::dist::shard() does; key_lengths: NULL if they are the query_lengths. */
chitu_status chitu_shards_make(int32_t sharding, int32_t ring, int32_t ulysses, const int64_t* query_lengths, const int64_t* key_lengths,
                               size_t count, chitu_shards** shards);

/* One sequence: rank r holds tokens_of_rank[r] tokens, which follow those of rank r - 1; there are ring x ulysses ranks. */
chitu_status chitu_shards_of_sizes(int32_t ring, int32_t ulysses, const int64_t* tokens_of_rank, chitu_shards** shards);
void chitu_shards_free(chitu_shards* shards); /* NULL is fine */

/* The runs of a rank's queries, or of its keys, in the order of its tensor. They live as long as `shards`. */
chitu_status chitu_shards_runs(const chitu_shards* shards, int32_t rank, int32_t of_keys, const chitu_run** runs, size_t* count);

/* What is to be computed: the rest of chitu::dist::Task. Sized like chitu_options. */
typedef struct chitu_task {
  size_t struct_size;
  int64_t heads, kv_heads;
  int64_t window_left, window_right; /* -1: unbounded. Causal: -1, 0 */
  int64_t joint;                     /* tokens that every rank holds */
  int32_t joint_rear;                /* 1: behind the sequence, not before it */
  int32_t reserved;                  /* 0 */
} chitu_task;

/* One call of attention in a step: `query_runs` runs of a rank's queries from number query_run on, one run of keys. If there are several
 * query runs, each query sees all keys. */
typedef struct chitu_call {
  int32_t step, query_rank, query_run, query_runs, key_rank, key_run;
  int64_t pairs;
} chitu_call;

/* One run of keys that goes from one rank to another, for a step. */
typedef struct chitu_transfer {
  int32_t step, peer, run, is_send;
} chitu_transfer;

/* What one rank does: chitu::dist::Plan. Made by chitu_plan_make(), released by chitu_plan_free(). */
typedef struct chitu_plan chitu_plan;
chitu_status chitu_plan_make(const chitu_shards* shards, const chitu_task* task, int32_t rank, chitu_plan** plan);
void chitu_plan_free(chitu_plan* plan); /* NULL is fine */

/* What it holds, in the order in which it is to be done. The arrays live as long as the plan. */
typedef struct chitu_plan_parts {
  size_t struct_size; /* must be set */
  int32_t steps, reserved;
  const chitu_call* calls;
  size_t calls_count;
  const chitu_transfer* transfers; /* by step; of one step, those of a peer follow each other, runs rising */
  size_t transfers_count;
  const int64_t* heads; /* of each place of a Ulysses group: first query head, their number, first kv head, their number */
  size_t places;
  chitu_run joint; /* the joint tokens, if there are any */
} chitu_plan_parts;
chitu_status chitu_plan_view(const chitu_plan* plan, chitu_plan_parts* parts);

#ifdef __cplusplus
}
#endif

#endif /* CHITU_DIST_C_H */
