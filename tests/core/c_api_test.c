/* SPDX-License-Identifier: Apache-2.0 */
/* The C interface from C99: prints what is wrong, returns 1 if anything is. */
#include "chitu/c.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 2, QUERIES = 5, KEYS = 140, DIM = 32 };

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  printf("FAILED: %s (last error: %s)\n", what, chitu_last_error());
  ++failures;
}

static void expect_error(chitu_status got, chitu_status wanted, const char* part) {
  if (got == wanted && strstr(chitu_last_error(), part)) return;
  printf("FAILED: status %d, not %d, or '%s' is not in: %s\n", (int)got, (int)wanted, part, chitu_last_error());
  ++failures;
}

static chitu_tensor dense(float* data, int64_t tokens, int64_t dim) {
  chitu_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.dtype = CHITU_F32;
  t.device = CHITU_CPU;
  t.shape[0] = 1, t.shape[1] = HEADS, t.shape[2] = tokens, t.shape[3] = dim;
  t.stride[0] = HEADS * tokens * dim, t.stride[1] = tokens * dim, t.stride[2] = dim, t.stride[3] = 1;
  return t;
}

static float q_data[HEADS * QUERIES * DIM], k_data[HEADS * KEYS * DIM], v_data[HEADS * KEYS * DIM];
static float out_data[HEADS * QUERIES * DIM], lse_data[HEADS * QUERIES], out_2[HEADS * QUERIES * DIM], lse_2[HEADS * QUERIES];
static chitu_tensor q, k, v, out, lse, out2, lse2;

static void fill(float* data, int count, unsigned seed) {
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = (float)(seed >> 8) / 8388608.f - 1.f;
  }
}

/* Attention in double: keys up to and with the last + query - last query if causal. */
static double largest_difference(float scale, int causal, int64_t key_begin, int64_t key_end) {
  double worst = 0;
  for (int h = 0; h < HEADS; ++h)
    for (int i = 0; i < QUERIES; ++i) {
      double sum = 0, result[DIM] = {0};
      for (int64_t j = key_begin; j < key_end; ++j) {
        double dot = 0;
        if (causal && j > i + KEYS - QUERIES) continue;
        for (int c = 0; c < DIM; ++c) dot += (double)q_data[(h * QUERIES + i) * DIM + c] * k_data[(h * KEYS + j) * DIM + c];
        dot = exp(dot * scale);
        sum += dot;
        for (int c = 0; c < DIM; ++c) result[c] += dot * v_data[(h * KEYS + j) * DIM + c];
      }
      for (int c = 0; c < DIM; ++c) worst = fmax(worst, fabs(result[c] / sum - out_data[(h * QUERIES + i) * DIM + c]));
      worst = fmax(worst, fabs(log(sum) - lse_data[h * QUERIES + i]));
    }
  return worst;
}

static void test_attention(void) {
  chitu_options o;
  expect(chitu_attention(&q, &k, &v, &out, &lse, NULL) == CHITU_OK, "default options");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS) < 0.01, "default options give attention");

  expect(chitu_options_init(&o, sizeof o) == CHITU_OK, "chitu_options_init");
  for (size_t m = 0; m < chitu_method_count(); ++m) {
    o.method = chitu_method_name(m);
    o.has_scale = 1;
    o.scale = 0.4f;
    o.window_left = -1;
    o.window_right = 0;
    expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, o.method);
    expect(largest_difference(0.4f, 1, 0, KEYS) < (strcmp(o.method, "exact") == 0 ? 1e-5 : 0.03), "causal with a scale");
  }
  expect(chitu_method_name(chitu_method_count()) == NULL, "no method past the last");
  expect(chitu_attention(&q, &k, &v, &out, NULL, &o) == CHITU_OK, "no lse");
}

static void test_options(void) {
  const chitu_positions two_positions[] = {{0, 1}, {5, 1}};
  const int32_t device_starts[] = {0, KEYS};
  const int64_t one_length = KEYS - 20;
  chitu_options o;
  struct {
    chitu_options known;
    char more[16];
  } newer;
  chitu_options_init(&o, sizeof o);
  o.method = "exact";
  o.has_query_positions = o.has_key_positions = 1;
  o.query_positions.first = KEYS - QUERIES + 1000;
  o.key_positions.first = 1000;
  o.window_right = 0;
  expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, "positions");
  expect(largest_difference(1 / sqrtf(DIM), 1, 0, KEYS) < 1e-5, "positions that say the same as bottom-right");
  o.has_query_positions = o.has_key_positions = 0;
  o.query_positions_of = &o.query_positions;
  o.query_positions_of_count = 1;
  o.key_positions_of = &o.key_positions;
  o.key_positions_of_count = 1;
  expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, "positions of each batch entry");
  expect(largest_difference(1 / sqrtf(DIM), 1, 0, KEYS) < 1e-5, "the same for each batch entry");
  o.key_positions_of = NULL;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "key_positions_of is NULL, but its count is 1");
  o.key_positions_of_count = 0;
  o.query_positions_of_count = 2;
  o.query_positions_of = two_positions;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "query_positions_of have 2 entries");
  o.query_positions_of_count = 1;
  o.has_query_positions = 1;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "query_positions and query_positions_of are both given");
  chitu_options_init(&o, sizeof o);
  o.device_key_starts_count = 2;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "device_key_starts is NULL, but its count is 2");
  o.device_query_starts = o.device_key_starts = device_starts;
  o.device_query_starts_count = 2;
  o.max_queries = o.max_keys = KEYS;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT,
               "device_query_starts are given, but the tensors are on the CPU");

  chitu_options_init(&o, sizeof o);
  o.method = "exact";
  o.key_lengths = &one_length;
  o.key_lengths_count = 1;
  expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, "a length of the one batch entry");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS - 20) < 1e-5, "the keys that count");
  o.key_lengths = NULL;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "key_lengths is NULL, but its count is 1");
  o.key_lengths_count = 0;
  o.device_key_lengths_count = 1;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "device_key_lengths is NULL, but its count is 1");

  chitu_options_init(&newer.known, sizeof newer);
  newer.known.method = "exact";
  expect(newer.known.struct_size == sizeof newer, "a newer caller's size");
  expect(chitu_attention(&q, &k, &v, &out, &lse, &newer.known) == CHITU_OK, "a newer caller that sets nothing new");
  newer.more[7] = 1;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &newer.known), CHITU_BAD_ARGUMENT, "struct_size");

  /* An older caller, whose struct ended before has_scale: what lies behind it is not read. */
  memset(&o, 0x7f, sizeof o);
  o.method = "exact";
  o.kernel = NULL;
  o.struct_size = offsetof(chitu_options, has_scale);
  expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, "an older caller");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS) < 1e-5, "an older caller gets defaults");
  chitu_options_init(&o, offsetof(chitu_options, has_scale));
  expect(o.struct_size == offsetof(chitu_options, has_scale) && o.has_scale == 0x7f7f7f7f, "init writes an older caller's bytes alone");

  /* Zeros are not the defaults. */
  memset(&o, 0, sizeof o);
  o.struct_size = sizeof o;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "chitu_options_init()");
  o.method = "exact";
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "chitu_options_init()");

  o.struct_size = 3;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "struct_size is 3");
  o.struct_size = (size_t)-8;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "struct_size");
}

static void test_errors(void) {
  chitu_options o;
  chitu_tensor wrong = k, wrong_2, wrong_3, wrong_4;
  chitu_operand none = {NULL, NULL}, both = {&q, NULL};
  chitu_quantized* handle = NULL;
  size_t bytes = 1;
  chitu_options_init(&o, sizeof o);
  expect_error(chitu_attention(NULL, &k, &v, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "query is NULL");
  expect_error(chitu_attention(&q, &k, &v, NULL, &lse, NULL), CHITU_BAD_ARGUMENT, "out is NULL");
  wrong.dtype = 99;
  expect_error(chitu_attention(&q, &wrong, &v, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "key has dtype 99");
  wrong = k;
  wrong.device = 7;
  expect_error(chitu_attention(&q, &wrong, &v, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "key has device 7");
  wrong = k;
  wrong.dtype = CHITU_I8;
  expect_error(chitu_attention(&q, &wrong, &v, &out, &lse, NULL), CHITU_UNSUPPORTED, "key has type i8");
  wrong = lse;
  wrong.data = NULL;
  expect_error(chitu_attention(&q, &k, &v, &out, &wrong, NULL), CHITU_BAD_ARGUMENT, "lse has no data");
  expect_error(chitu_merge(&out, &wrong, &out, &lse, &out, &lse), CHITU_BAD_ARGUMENT, "lse of a has no data");
  wrong = lse;
  wrong.device = CHITU_CUDA;
  expect_error(chitu_merge(&out, &lse, &out, &wrong, &out, &lse), CHITU_BAD_ARGUMENT,
               "lse of b is on cuda:0, out of the first part on cpu:0");
  o.method = "sage9";
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "sage9");
  o.method = NULL;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "method is NULL");
  chitu_options_init(&o, sizeof o);
  o.window_left = -2;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "window_left is -2");
  chitu_options_init(&o, sizeof o);
  o.kernel = "cpu.magic";
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "cpu.magic");
  chitu_options_init(&o, sizeof o);
  o.query_starts_count = 2;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "query_starts is NULL");
  chitu_options_init(&o, sizeof o);
  o.reserved = 1;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "reserved");
  chitu_options_init(&o, sizeof o);
  o.workspace_bytes = 64;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &o), CHITU_BAD_ARGUMENT, "workspace is null");
  expect_error(chitu_workspace_size(&q, &k, &v, &out, &lse, NULL, NULL), CHITU_BAD_ARGUMENT, "bytes is NULL");
  expect(chitu_workspace_size(&q, &k, &v, &out, &lse, NULL, &bytes) == CHITU_OK && bytes == 0, "the CPU needs no workspace");
  wrong = q, wrong_2 = k, wrong_3 = v, wrong_4 = out;
  wrong.data = wrong_2.data = wrong_3.data = wrong_4.data = NULL;
  expect(chitu_workspace_size(&wrong, &wrong_2, &wrong_3, &wrong_4, NULL, NULL, &bytes) == CHITU_OK, "a workspace is planned without data");
  expect_error(chitu_options_init(NULL, sizeof o), CHITU_BAD_ARGUMENT, "NULL");
  expect_error(chitu_attention_quantized(&none, &both, &both, &out, &lse, NULL), CHITU_BAD_ARGUMENT,
               "query must have a tensor or a quantized");
  expect_error(chitu_quantize(&q, 5, "chitu", NULL, &handle), CHITU_BAD_ARGUMENT, "role is 5");
  expect_error(chitu_quantize(&q, CHITU_QUERY, "chitu", NULL, NULL), CHITU_BAD_ARGUMENT, "quantized is NULL");
  expect(handle == NULL, "no handle from a call that failed");
  expect_error(chitu_merge(&out, NULL, &out, &lse, &out, &lse), CHITU_BAD_ARGUMENT, "lse_a is NULL");
  expect_error(chitu_kernel_info(chitu_kernel_count(), NULL), CHITU_BAD_ARGUMENT, "info is NULL");
}

static int same_bits(void) { return memcmp(out_data, out_2, sizeof out_data) == 0 && memcmp(lse_data, lse_2, sizeof lse_data) == 0; }

static void test_recipes(void) {
  chitu_options o, by_recipe;
  chitu_quantize_options qo;
  chitu_quantized* keys = NULL;
  chitu_method info;
  chitu_recipe changed;
  for (size_t m = 0; m < chitu_method_count(); ++m) {
    expect(chitu_method_info(m, &info) == CHITU_OK && strcmp(info.name, chitu_method_name(m)) == 0, "method info");
    expect(info.summary && *info.summary && info.origin && *info.origin, "a method's texts");
    chitu_options_init(&o, sizeof o);
    chitu_options_init(&by_recipe, sizeof by_recipe);
    o.method = info.name;
    by_recipe.method = NULL;
    by_recipe.recipe = &info.recipe;
    expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, info.name);
    expect(chitu_attention(&q, &k, &v, &out2, &lse2, &by_recipe) == CHITU_OK, "a method's recipe");
    expect(same_bits(), "a recipe gives its method's bits");
    if (strcmp(info.name, "chitu") == 0) {
      changed = info.recipe;
      changed.query.rotated = changed.key.rotated = 0;
      by_recipe.recipe = &changed;
      expect(chitu_attention(&q, &k, &v, &out2, &lse2, &by_recipe) == CHITU_OK && !same_bits(), "a changed recipe changes bits");
    }
  }
  expect_error(chitu_method_info(chitu_method_count(), &info), CHITU_BAD_ARGUMENT, "method index");
  by_recipe.method = "chitu";
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &by_recipe), CHITU_BAD_ARGUMENT, "both given");
  by_recipe.method = NULL;
  by_recipe.recipe = &changed;
  changed.key.scaling = 9;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &by_recipe), CHITU_BAD_ARGUMENT, "scaling is 9");
  changed.key.scaling = 1;
  changed.weights_output = -1;
  expect_error(chitu_attention(&q, &k, &v, &out, &lse, &by_recipe), CHITU_BAD_ARGUMENT, "weights_output is -1");
  memset(&qo, 0, sizeof qo);
  qo.struct_size = sizeof qo;
  changed.weights_output = 1;
  qo.recipe = &changed;
  expect(chitu_quantize(&k, CHITU_KEY, NULL, &qo, &keys) == CHITU_OK, "keys by a recipe");
  chitu_quantized_free(keys);
  expect_error(chitu_quantize(&k, CHITU_KEY, "chitu", &qo, &keys), CHITU_BAD_ARGUMENT, "both given");
  expect_error(chitu_quantize(&k, CHITU_KEY, NULL, NULL, &keys), CHITU_BAD_ARGUMENT, "method is NULL");
}

static void test_quantized(void) {
  chitu_quantized *keys = NULL, *values = NULL, *queries = NULL, *frozen = NULL, *both[2] = {NULL, NULL};
  chitu_quantize_options qo;
  chitu_tensor centre, channels, part;
  chitu_operand a, b, c;
  size_t bytes;
  void* block;
  memset(&qo, 0, sizeof qo);
  qo.struct_size = sizeof qo;
  expect(chitu_quantize(&k, CHITU_KEY, "chitu", NULL, &keys) == CHITU_OK, "keys");
  expect(chitu_quantize(&v, CHITU_VALUE, "chitu", &qo, &values) == CHITU_OK, "values");
  qo.keys = keys;
  expect(chitu_quantize(&q, CHITU_QUERY, "chitu", &qo, &queries) == CHITU_OK, "queries");
  a.tensor = b.tensor = c.tensor = NULL;
  a.quantized = queries, b.quantized = keys, c.quantized = values;
  expect(chitu_attention(&q, &k, &v, &out, &lse, NULL) == CHITU_OK, "as they came");
  expect(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL) == CHITU_OK, "quantised beforehand");
  expect(memcmp(out_data, out_2, sizeof out_data) == 0 && memcmp(lse_data, lse_2, sizeof lse_data) == 0, "the same bits");
  expect(chitu_quantize_keys_and_values(&k, &v, "chitu", NULL, &both[0], &both[1]) == CHITU_OK, "keys and values at once");
  b.quantized = both[0], c.quantized = both[1];
  memset(out_2, 0, sizeof out_2);
  expect(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL) == CHITU_OK, "made at once");
  expect(memcmp(out_data, out_2, sizeof out_data) == 0, "made at once: the same bits");
  bytes = 1;
  expect(chitu_workspace_size_quantized(&a, &b, &c, &out2, &lse2, NULL, &bytes) == CHITU_OK && bytes == 0, "no workspace on the CPU");
  expect_error(chitu_workspace_size_quantized(&a, &b, &c, &out2, &lse2, NULL, NULL), CHITU_BAD_ARGUMENT, "bytes is NULL");
  expect_error(chitu_quantize_keys_and_values(&k, &q, "chitu", NULL, &both[0], &both[1]), CHITU_BAD_ARGUMENT, "it must be the key's");
  expect_error(chitu_quantize_keys_and_values(&k, &v, "chitu", &qo, &both[0], &both[1]), CHITU_BAD_ARGUMENT, "keys are given");
  expect_error(chitu_quantize_keys_and_values(&k, &v, "chitu", NULL, &both[0], NULL), CHITU_BAD_ARGUMENT, "quantized_value is NULL");
  chitu_quantized_free(both[0]);
  chitu_quantized_free(both[1]);
  b.quantized = keys;
  c.quantized = NULL;
  c.tensor = &v;
  memset(out_2, 0, sizeof out_2);
  expect(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL) == CHITU_OK, "two quantised, one as it came");
  expect(memcmp(out_data, out_2, sizeof out_data) == 0, "the same bits again");
  c.quantized = values;
  expect_error(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL), CHITU_BAD_ARGUMENT, "value must have");

  expect(chitu_quantized_vectors(keys, &centre, NULL) == CHITU_OK && centre.data && centre.shape[3] == DIM, "centre of the keys");
  expect(chitu_quantized_vectors(values, &centre, &channels) == CHITU_OK && !centre.data && channels.data, "channels of the values");
  expect(chitu_quantized_part(keys, CHITU_VALUES, &part) == CHITU_OK && part.dtype == CHITU_I8 && part.shape[2] == KEYS, "integers");
  expect(chitu_quantized_part(keys, CHITU_SCALES, &part) == CHITU_OK && part.dtype == CHITU_F32 && part.data, "scales of the keys");
  expect(chitu_quantized_part(keys, CHITU_CORRECTION, &part) == CHITU_OK && !part.data, "keys have no correction");
  expect(chitu_quantized_part(keys, CHITU_RANKS, &part) == CHITU_OK && part.dtype == CHITU_U8 && part.shape[2] == KEYS,
         "ranks of the keys");
  expect(chitu_quantized_part(queries, CHITU_RANKS, &part) == CHITU_OK && !part.data, "queries have no ranks");
  expect_error(chitu_quantized_part(keys, 7, &part), CHITU_BAD_ARGUMENT, "part is 7");

  /* What is there for GPUs says so of CPU memory. */
  expect(chitu_quantized_bytes(&k, CHITU_KEY, "chitu", NULL, &bytes) == CHITU_OK && bytes == 0, "no block on the CPU");
  expect(chitu_quantize_workspace_size(&k, CHITU_KEY, "chitu", NULL, &bytes) == CHITU_OK && bytes == 0, "no workspace on the CPU");
  expect_error(chitu_quantized_bytes(&k, CHITU_KEY, "chitu", NULL, NULL), CHITU_BAD_ARGUMENT, "bytes is NULL");
  bytes = 1;
  expect(chitu_quantized_block(keys, &block, &bytes) == CHITU_OK && !block && bytes == 0, "rows are no block");
  expect_error(chitu_quantized_at(keys, out_data, sizeof out_data, 0, &frozen), CHITU_BAD_ARGUMENT, "not quantised in GPU memory");
  expect_error(chitu_quantized_to_host(keys, NULL, NULL, &frozen), CHITU_BAD_ARGUMENT, "key is in CPU memory already");
  expect_error(chitu_quantized_to_device(keys, CHITU_F32, 0, NULL, NULL, NULL, 0, &frozen), CHITU_BAD_ARGUMENT, "from is 0");
  qo.keys = NULL;
  qo.memory = out_data;
  expect_error(chitu_quantize(&k, CHITU_KEY, "chitu", &qo, &frozen), CHITU_BAD_ARGUMENT, "memory is given, but the tensor is on the CPU");
  qo.memory = NULL;
  qo.keys = keys;

  /* A format version is the first number behind a handle. */
  expect(*(int*)keys == chitu_quantized_version(), "the format's version");
  *(int*)keys = 1;
  c.tensor = NULL;
  expect_error(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL), CHITU_BAD_ARGUMENT, "key was quantised to format version 1");
  expect_error(chitu_quantize(&q, CHITU_QUERY, "chitu", &qo, &frozen), CHITU_BAD_ARGUMENT, "format version 1");
  *(int*)keys = chitu_quantized_version();
  c.tensor = &v;
  qo.keys = NULL;
  qo.channels = &channels;
  expect(chitu_quantize(&v, CHITU_VALUE, "chitu", &qo, &frozen) == CHITU_OK, "frozen channels");
  c.tensor = NULL;
  c.quantized = frozen;
  expect(chitu_attention_quantized(&a, &b, &c, &out2, &lse2, NULL) == CHITU_OK, "frozen values");
  expect(memcmp(out_data, out_2, sizeof out_data) == 0, "the same channels, the same bits");
  expect_error(chitu_quantize(&k, CHITU_KEY, "chitu", &qo, &frozen), CHITU_BAD_ARGUMENT, "channels");
  chitu_quantized_free(frozen);
  chitu_quantized_free(queries);
  chitu_quantized_free(values);
  chitu_quantized_free(keys);
  chitu_quantized_free(NULL);
}

/* Three parts of keys: 50, KEYS - 51 and 1. */
static void test_merge_parts(chitu_tensor* keys, chitu_tensor* values) {
  const int64_t begin[] = {0, 50, KEYS - 1, KEYS};
  float outs_data[3][HEADS * QUERIES * DIM], lses_data[3][HEADS * QUERIES];
  chitu_tensor outs[3], lses[3];
  chitu_options o;
  chitu_merge_options m = {0};
  chitu_options_init(&o, sizeof o);
  o.method = "exact";
  *keys = k, *values = v;
  for (int i = 0; i < 3; ++i) {
    outs[i] = out, lses[i] = lse;
    outs[i].data = outs_data[i], lses[i].data = lses_data[i];
    keys->shape[2] = values->shape[2] = begin[i + 1] - begin[i];
    keys->data = k_data + begin[i] * DIM, values->data = v_data + begin[i] * DIM;
    expect(chitu_attention(&q, keys, values, &outs[i], &lses[i], &o) == CHITU_OK, "a part");
  }
  m.struct_size = sizeof m;
  m.threads = 1;
  expect(chitu_merge_parts(3, outs, lses, &out, &lse, &m) == CHITU_OK, "merge of three");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS) < 1e-5, "three merged are the whole");
  expect(chitu_merge_parts(3, outs, lses, &outs[1], &lses[1], NULL) == CHITU_OK, "merge of three in place");
  expect(memcmp(outs_data[1], out_data, sizeof outs_data[1]) == 0 && memcmp(lses_data[1], lse_data, sizeof lses_data[1]) == 0,
         "the same bits in place");
  expect_error(chitu_merge_parts(0, outs, lses, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "there are no parts");
  expect_error(chitu_merge_parts(2, NULL, lses, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "outs is NULL, but count is 2");
  expect_error(chitu_merge_parts(2, outs, NULL, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "lses is NULL, but count is 2");
  expect_error(chitu_merge_parts(2, outs, lses, NULL, &lse, NULL), CHITU_BAD_ARGUMENT, "out_result is NULL");
  lses[2].data = NULL;
  expect_error(chitu_merge_parts(3, outs, lses, &out, &lse, NULL), CHITU_BAD_ARGUMENT, "lse of part 2 has no data");
  m.struct_size = 4;
  expect_error(chitu_merge_parts(2, outs, lses, &out, &lse, &m), CHITU_BAD_ARGUMENT, "chitu_merge_options.struct_size is 4");
  m.struct_size = sizeof m;
  m.threads = -1;
  expect_error(chitu_merge_parts(2, outs, lses, &out, &lse, &m), CHITU_BAD_ARGUMENT, "threads is -1");
  m.threads = 0;
  m.stream = &m;
  expect_error(chitu_merge_parts(2, outs, lses, &out, &lse, &m), CHITU_BAD_ARGUMENT, "a stream is given, but the tensors are on the CPU");
}

/* Stored and put together again, an operand gives the same bits; parts that do not fit are refused. */
static void test_quantized_parts(void) {
  const int64_t query_starts[] = {0, 2, QUERIES}, key_starts[] = {0, 50, KEYS};
  const float key = k_data[60 * DIM + 2];
  chitu_quantized *made[3] = {NULL, NULL, NULL}, *again[3] = {NULL, NULL, NULL}, *none = NULL;
  chitu_quantize_options qo;
  chitu_quantized_parts parts, changed;
  chitu_tensor tensors[16], part;
  chitu_operand before[3], after[3];
  chitu_options o;
  int32_t residual_of[64];
  chitu_options_init(&o, sizeof o);
  o.query_starts = query_starts, o.key_starts = key_starts, o.query_starts_count = o.key_starts_count = 3;
  for (int c = 0; c < DIM; ++c) v_data[3 * DIM + c] /= 1024; /* a tile with residuals */
  k_data[60 * DIM + 2] = INFINITY;
  memset(&qo, 0, sizeof qo);
  qo.struct_size = sizeof qo;
  qo.starts_count = 3;
  qo.starts = key_starts;
  expect(chitu_quantize(&k, CHITU_KEY, "chitu", &qo, &made[1]) == CHITU_OK, "packed keys");
  expect(chitu_quantize(&v, CHITU_VALUE, "chitu", &qo, &made[2]) == CHITU_OK, "packed values");
  qo.starts = query_starts;
  qo.keys = made[1];
  expect(chitu_quantize(&q, CHITU_QUERY, "chitu", &qo, &made[0]) == CHITU_OK, "packed queries");
  for (int i = 0; i < 3; ++i) {
    memset(&parts, 0, sizeof parts);
    expect_error(chitu_quantized_view(made[i], &parts), CHITU_BAD_ARGUMENT, "struct_size");
    parts.struct_size = sizeof parts;
    expect(chitu_quantized_view(made[i], &parts) == CHITU_OK && parts.role == i && parts.starts_count == 3, "parts");
    expect(parts.nonfinite_count == (i == 1) && parts.parts_count > CHITU_RESIDUALS, "one key is not finite");
    expect(chitu_quantized_make(&parts, &again[i]) == CHITU_OK, "made from parts");
    before[i].tensor = after[i].tensor = NULL;
    before[i].quantized = made[i];
  }
  expect(parts.residual_of_count == HEADS * 2 && parts.parts[CHITU_RESIDUALS].data, "values have residuals");
  expect(chitu_attention_quantized(&before[0], &before[1], &before[2], &out, &lse, &o) == CHITU_OK, "as they were quantised");

  /* parts still views the values */
  changed = parts;
  changed.version += 1;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "version");
  changed = parts;
  changed.role = CHITU_KEY;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_UNSUPPORTED, "no quantiser");
  changed.role = 3;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "role is 3");
  changed = parts;
  changed.residual_of_count -= 1;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "residual_of has");
  memcpy(residual_of, parts.residual_of, parts.residual_of_count * sizeof residual_of[0]);
  residual_of[1] = 99;
  changed = parts;
  changed.residual_of = residual_of;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "residual_of[1] is 99");
  memcpy(tensors, parts.parts, parts.parts_count * sizeof tensors[0]);
  tensors[CHITU_SCALES].shape[1] += 1;
  changed = parts;
  changed.parts = tensors;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "scales");
  changed = parts;
  changed.parts_count = 1;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "missing");
  changed.parts_count = 99;
  expect_error(chitu_quantized_make(&changed, &none), CHITU_BAD_ARGUMENT, "parts_count is 99");
  expect(!none, "nothing is made of what is refused");

  for (int i = 0; i < 3; ++i) {
    chitu_quantized_free(made[i]); /* the copies own what they hold */
    after[i].quantized = again[i];
  }
  memset(out_2, 0, sizeof out_2);
  expect(chitu_attention_quantized(&after[0], &after[1], &after[2], &out2, &lse2, &o) == CHITU_OK, "put together again");
  expect(memcmp(out_data, out_2, sizeof out_data) == 0 && memcmp(lse_data, lse_2, sizeof lse_data) == 0, "with the same bits");
  expect(chitu_quantized_part(again[2], CHITU_RESIDUALS, &part) == CHITU_OK && part.data, "and residuals");
  for (int i = 0; i < 3; ++i) chitu_quantized_free(again[i]);
  for (int c = 0; c < DIM; ++c) v_data[3 * DIM + c] *= 1024;
  k_data[60 * DIM + 2] = key;
}

static void test_packed_and_merge(void) {
  const int64_t query_starts[] = {0, 2, QUERIES}, key_starts[] = {0, 50, KEYS};
  chitu_options o;
  chitu_tensor first, second;
  chitu_options_init(&o, sizeof o);
  o.method = "exact";
  o.query_starts = query_starts;
  o.key_starts = key_starts;
  o.query_starts_count = o.key_starts_count = 3;
  expect(chitu_attention(&q, &k, &v, &out, &lse, &o) == CHITU_OK, "packed");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS) > 1e-3, "packed sequences see their own keys only");

  chitu_options_init(&o, sizeof o);
  o.method = "exact";
  first = k, second = v;
  first.shape[2] = second.shape[2] = 50;
  expect(chitu_attention(&q, &first, &second, &out, &lse, &o) == CHITU_OK, "first keys");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, 50) < 1e-5, "first keys alone");
  first = k, second = v;
  first.shape[2] = second.shape[2] = KEYS - 50;
  first.data = k_data + 50 * DIM, second.data = v_data + 50 * DIM;
  expect(chitu_attention(&q, &first, &second, &out2, &lse2, &o) == CHITU_OK, "other keys");
  expect(chitu_merge(&out, &lse, &out2, &lse2, &out, &lse) == CHITU_OK, "merge in place");
  expect(largest_difference(1 / sqrtf(DIM), 0, 0, KEYS) < 1e-5, "merged is the whole");
  test_merge_parts(&first, &second);
}

static void test_tables(void) {
  chitu_operand a = {NULL, NULL}, b = {NULL, NULL}, c = {NULL, NULL};
  char small[16], *text;
  size_t needed = 0;
  chitu_kernel info;
  int portable = 0;
  a.tensor = &q, b.tensor = &k, c.tensor = &v;
  expect(chitu_explain(&a, &b, &c, &out, &lse, NULL, NULL, 0, &needed) == CHITU_OK && needed > sizeof small, "explain's size");
  text = malloc(needed);
  expect(text && chitu_explain(&a, &b, &c, &out, &lse, NULL, text, needed, NULL) == CHITU_OK, "explain");
  expect(text && strlen(text) == needed - 1 && strstr(text, "takes it"), "explain's text");
  memset(small, 'x', sizeof small);
  expect(chitu_explain(&a, &b, &c, &out, &lse, NULL, small, sizeof small, &needed) == CHITU_OK, "explain into too little");
  expect(text && strlen(small) == sizeof small - 1 && strncmp(small, text, sizeof small - 1) == 0, "explain's beginning");
  expect_error(chitu_explain(&a, &b, &c, &out, &lse, NULL, NULL, 4, &needed), CHITU_BAD_ARGUMENT, "buffer is NULL");
  free(text);

  for (size_t i = 0; i < chitu_kernel_count(); ++i) {
    expect(chitu_kernel_info(i, &info) == CHITU_OK && info.name && info.scores && info.weights, "kernel info");
    portable |= strcmp(info.name, "cpu.portable") == 0 && info.available == 1 && info.device == CHITU_CPU;
  }
  expect(portable, "the portable kernel is listed");
  expect_error(chitu_kernel_info(chitu_kernel_count(), &info), CHITU_BAD_ARGUMENT, "kernel index");
}

int main(void) {
  fill(q_data, HEADS * QUERIES * DIM, 1);
  fill(k_data, HEADS * KEYS * DIM, 2);
  fill(v_data, HEADS * KEYS * DIM, 3);
  q = dense(q_data, QUERIES, DIM), k = dense(k_data, KEYS, DIM), v = dense(v_data, KEYS, DIM);
  out = dense(out_data, QUERIES, DIM), lse = dense(lse_data, QUERIES, 1), out2 = dense(out_2, QUERIES, DIM),
  lse2 = dense(lse_2, QUERIES, 1);
  expect(chitu_abi_version() == CHITU_ABI_VERSION, "ABI version");
  expect(strlen(chitu_version()) >= 5, "version");
  expect(strcmp(chitu_last_error(), "") == 0, "no error before the first");
  test_attention();
  test_options();
  test_errors();
  test_recipes();
  test_quantized();
  test_quantized_parts();
  test_packed_and_merge();
  test_tables();
  printf("%d failures\n", failures);
  return failures != 0;
}
