/* SPDX-License-Identifier: Apache-2.0 */
/* The C interface of ChituAttention, for bindings: what attention.h offers, in plain C99. The caller allocates every output;
 * no C++ exception crosses. All functions may be called from several threads at once, also with the same inputs and the same
 * chitu_quantized. Outputs must not overlap inputs or each other, but where chitu_merge() allows it. This is not checked. */
#ifndef CHITU_C_H
#define CHITU_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The number of this header's interface. A library with another number must not be called; the same number only ever gains functions,
 * constants and fields at the end of the structs that begin with struct_size. */
#define CHITU_ABI_VERSION 2
int32_t chitu_abi_version(void); /* of the library */
const char* chitu_version(void); /* "0.1.0" */

typedef enum chitu_status {
  CHITU_OK = 0,
  CHITU_BAD_ARGUMENT = 1, /* the message names the argument */
  CHITU_UNSUPPORTED = 2,  /* no kernel takes such a call; the message gives each one's reason */
  CHITU_OUT_OF_MEMORY = 3,
  CHITU_INTERNAL = 4
} chitu_status;

/* The message of the calling thread's last call that did not return CHITU_OK, at most 4095 bytes; "" if there was none. It is valid
 * until the thread's next call that fails. */
const char* chitu_last_error(void);

enum { CHITU_F32 = 0, CHITU_F16 = 1, CHITU_BF16 = 2, CHITU_I8 = 3, CHITU_U8 = 4, CHITU_E4M3 = 5 };
enum { CHITU_CPU = 0, CHITU_CUDA = 1 };
enum { CHITU_QUERY = 0, CHITU_KEY = 1, CHITU_VALUE = 2 };

/* A view of the caller's memory: [batch, heads, tokens, dim], strides in elements, the last 1; that of a size of 1 is not looked
 * at. Inputs are never written. */
typedef struct chitu_tensor {
  void* data;
  int32_t dtype;  /* CHITU_F32 ... */
  int32_t device; /* CHITU_CPU or CHITU_CUDA */
  int32_t device_id;
  int64_t shape[4];
  int64_t stride[4];
} chitu_tensor;

/* The positions of a run of tokens: first, first + step, ... */
typedef struct chitu_positions {
  int64_t first, step;
} chitu_positions;

/* How one operand is stored, and how weights meet values: the fields of chitu::Quant and chitu::Weights (method.h), enumerations as
 * numbers in the order of their declaration there. */
typedef struct chitu_quant {
  int32_t dtype, scaling, group_block, group_lanes, centre, rotated, sorted;
} chitu_quant;

/* A quantisation method as a value: chitu::Recipe. Start from one of chitu_method_info()'s, and change what is to differ. */
typedef struct chitu_recipe {
  chitu_quant query, key, value;
  int32_t weights_dtype;
  float weights_top;
  int32_t weights_by_tile, weights_output, weights_lse;
} chitu_recipe;

/* Fill with chitu_options_init(), which alone gives the defaults, then change what is to differ. Zeros are not the defaults: a window of
 * (0, 0) lets a query see one key. A struct whose positions have step 0, used or not, was not filled and is refused. struct_size says which
 * fields the caller knows: fields past it take their defaults; bytes past what the library knows must be zero. */
typedef struct chitu_options {
  size_t struct_size;
  const char* method; /* "chitu" */
  const char* kernel; /* NULL: the first that takes the call */
  int32_t has_scale;  /* 0: 1 / sqrt(dim) */
  float scale;
  int64_t window_left, window_right; /* -1: unbounded. Causal: -1, 0 */
  int32_t has_query_positions;       /* 0: the last query stands at the last key */
  int32_t has_key_positions;         /* 0: keys stand at 0, 1, ... */
  chitu_positions query_positions, key_positions;
  const int64_t* query_starts; /* packed sequences of a tensor with batch 1: query_starts_count entries, first 0, last the */
  const int64_t* key_starts;   /* number of tokens; NULL and 0 for none */
  size_t query_starts_count, key_starts_count;
  int32_t threads;  /* for tensors on the CPU; 0: OpenMP's default, fewer where a call is too short for them. On a GPU it must be 0 */
  int32_t reserved; /* 0 */
  void* stream;     /* cudaStream_t, for tensors on a GPU. On the CPU it must be NULL */
  void* workspace;  /* for tensors on a GPU: memory there, from a multiple of 256 bytes on, of chitu_workspace_size() bytes or more, */
  size_t workspace_bytes; /* which the call uses until the stream has done it; NULL and 0: allocated, but not while a graph is captured */
  const chitu_recipe* recipe;                /* instead of a method, which must then be NULL; NULL: none */
  const chitu_positions* query_positions_of; /* of each packed sequence or batch entry, instead of query_positions and */
  const chitu_positions* key_positions_of;   /* key_positions; NULL and 0 for none */
  size_t query_positions_of_count, key_positions_of_count;
  const int32_t* device_query_starts; /* packed sequences whose starts lie in GPU memory, which only the GPU reads, when the call runs: a */
  const int32_t* device_key_starts;   /* captured graph can be replayed with others. NULL and 0 for none */
  size_t device_query_starts_count, device_key_starts_count;
  int64_t max_queries, max_keys; /* bounds of these sequences' lengths; without such starts 0 */
  int64_t check_device_lengths;  /* not 0: waits for the stream and refuses starts that fall, or lie outside, by name */
  const int64_t* key_lengths;    /* of a padded batch: the keys of each batch entry; what lies behind them is not read. NULL and 0: all */
  size_t key_lengths_count;
  const int32_t* device_key_lengths; /* the same in GPU memory; max_keys may bound them, 0: by the tensor */
  size_t device_key_lengths_count;
} chitu_options;

/* The defaults. struct_size: sizeof(chitu_options) as the caller was compiled. */
chitu_status chitu_options_init(chitu_options* options, size_t struct_size);

/* out = softmax(scale * query . key^T within the window) value. query, out: [batch, heads, queries, dim]; key, value: [batch, kv
 * heads, keys, dim]; lse: NULL, or f32 [batch, heads, queries, 1], natural log, with data unless it is empty. options: NULL for the
 * defaults. */
chitu_status chitu_attention(const chitu_tensor* query, const chitu_tensor* key, const chitu_tensor* value, const chitu_tensor* out,
                             const chitu_tensor* lse, const chitu_options* options);

/* The bytes that chitu_options.workspace must have for a call with these arguments; 0 on the CPU. It looks at no data, so that of
 * tensors may still be NULL. */
chitu_status chitu_workspace_size(const chitu_tensor* query, const chitu_tensor* key, const chitu_tensor* value, const chitu_tensor* out,
                                  const chitu_tensor* lse, const chitu_options* options, size_t* bytes);

/* An operand quantised once for many calls: a KV cache, a ring. Made by chitu_quantize(), released by chitu_quantized_free(). */
typedef struct chitu_quantized chitu_quantized;

/* Sized like chitu_options. All zeros but struct_size are the defaults. */
typedef struct chitu_quantize_options {
  size_t struct_size;
  const int64_t* starts; /* packed sequences, as in chitu_options */
  size_t starts_count;
  const chitu_quantized* keys;  /* for queries: the keys they will meet; needed if an lse will be asked for. For values on a GPU, if the
                                   recipe sorts keys: their keys */
  const chitu_tensor* centre;   /* for keys: f32 [sequences, heads, 1, dim] instead of their mean; NULL: their mean */
  const chitu_tensor* channels; /* for values of "chitu": the same shape instead of a sampled vector; NULL: sampled */
  int32_t threads;
  int32_t reserved;           /* 0 */
  const chitu_recipe* recipe; /* instead of a method, which must then be NULL; NULL: none */
  void* stream;               /* a cudaStream_t, for a tensor on a GPU; so are the other four */
  void* memory;               /* where the result goes; NULL: the library allocates it. chitu_quantized_bytes(). It stays the caller's */
  size_t memory_bytes;
  void* workspace; /* NULL: the library allocates it. chitu_quantize_workspace_size() */
  size_t workspace_bytes;
} chitu_quantize_options;

/* role: CHITU_QUERY, CHITU_KEY or CHITU_VALUE. options: NULL for the defaults. On success *quantized is the caller's to free. Where the
 * method does not quantise this operand, the result views x, which must outlive it. */
chitu_status chitu_quantize(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* options,
                            chitu_quantized** quantized);

/* Keys and values of the same shape, at once: what attention makes of these tensors, so that its result from these two is the same to the
 * bit (on a GPU not for chitu at dims below 128 other than 64), and on a GPU faster than two calls. options->keys must be NULL; its memory
 * is for both blocks, the key's first; its workspace as for the key. On success both results are the caller's to free. */
chitu_status chitu_quantize_keys_and_values(const chitu_tensor* key, const chitu_tensor* value, const char* method,
                                            const chitu_quantize_options* options, chitu_quantized** quantized_key,
                                            chitu_quantized** quantized_value);

/* The bytes of chitu_quantize_options.memory and .workspace for such a call; 0 for a tensor on the CPU. They look at no data. */
chitu_status chitu_quantized_bytes(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* options,
                                   size_t* bytes);
chitu_status chitu_quantize_workspace_size(const chitu_tensor* x, int32_t role, const char* method, const chitu_quantize_options* options,
                                           size_t* bytes);

/* Of one on a GPU: its block of memory, which may be copied as it is (docs/numerics.md, "Tiles"). On the CPU it is NULL and 0. */
chitu_status chitu_quantized_block(const chitu_quantized* quantized, void** memory, size_t* bytes);

/* What `like` describes, on a GPU, but in this copy of its block, which stays the caller's. *quantized is the caller's to free. */
chitu_status chitu_quantized_at(const chitu_quantized* like, void* memory, size_t bytes, int32_t device_id, chitu_quantized** quantized);

/* From a GPU to CPU memory and back, bit for bit. keys: of values whose recipe sorts keys, and of queries with corrections, on either
 * device; else NULL. They wait for `stream`. from: CHITU_F16 or CHITU_BF16, the type that the tensor had. memory: where the block goes, as
 * in chitu_quantize_options, or NULL. */
chitu_status chitu_quantized_to_host(const chitu_quantized* quantized, const chitu_quantized* keys, void* stream, chitu_quantized** result);
chitu_status chitu_quantized_to_device(const chitu_quantized* quantized, int32_t from, int32_t device_id, const chitu_quantized* keys,
                                       void* stream, void* memory, size_t memory_bytes, chitu_quantized** result);

void chitu_quantized_free(chitu_quantized* quantized); /* NULL is fine */
int32_t chitu_quantized_version(void);                 /* of the format that this library's chitu_quantized have; it refuses others */

/* Views of the vectors that other quantisations can be given, to freeze them: the keys' centre, the values' channels; data is NULL
 * where there is none. Either may be NULL. They live as long as `quantized`. */
chitu_status chitu_quantized_vectors(const chitu_quantized* quantized, chitu_tensor* centre, chitu_tensor* channels);

enum {
  CHITU_VALUES = 0,
  CHITU_SCALES = 1,
  CHITU_CENTRE = 2,
  CHITU_CHANNELS = 3,
  CHITU_CORRECTION = 4,
  CHITU_RESIDUALS = 5,
  CHITU_RANKS = 6
};

/* A view of one part of it: CHITU_VALUES ...; data is NULL where there is none. It lives as long as `quantized`. */
chitu_status chitu_quantized_part(const chitu_quantized* quantized, int32_t part, chitu_tensor* view);

/* A token with a NaN or an infinity, which the scales and sums leave out: chitu::NonFinite. */
typedef struct chitu_nonfinite {
  int64_t sequence, head, token;
  const float* values; /* [dim], as they came */
} chitu_nonfinite;

/* All of a quantised operand, to be stored and put together again: the members of chitu::Quantized. Sized like chitu_options. */
typedef struct chitu_quantized_parts {
  size_t struct_size;
  int32_t version; /* of what the parts mean; another than the library's is refused */
  int32_t role;    /* CHITU_QUERY ... */
  chitu_quant quant;
  const int64_t* starts; /* packed sequences; NULL and 0 for none */
  size_t starts_count;
  const chitu_tensor* parts; /* by CHITU_VALUES ...; data is NULL where there is none; those past parts_count are absent */
  size_t parts_count;
  const int32_t* residual_of; /* for each tile of values -1, or its index in CHITU_RESIDUALS; NULL and 0 for none */
  size_t residual_of_count;
  const chitu_nonfinite* nonfinite; /* in the order of sequence, head, token; NULL and 0 for none */
  size_t nonfinite_count;
  int32_t reserved; /* 0 */
} chitu_quantized_parts;

/* Views of everything, which live as long as `quantized`. parts->struct_size must be set. */
chitu_status chitu_quantized_view(const chitu_quantized* quantized, chitu_quantized_parts* parts);

/* A copy of what `parts` view, in CPU memory, which is the caller's to free. Parts that do not fit each other are refused. */
chitu_status chitu_quantized_make(const chitu_quantized_parts* parts, chitu_quantized** quantized);

/* Just one of the two is not NULL. */
typedef struct chitu_operand {
  const chitu_tensor* tensor;
  const chitu_quantized* quantized;
} chitu_operand;

/* chitu_attention() with operands that may come quantised, by the method of `options`. */
chitu_status chitu_attention_quantized(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value,
                                       const chitu_tensor* out, const chitu_tensor* lse, const chitu_options* options);

/* chitu_workspace_size() of such a call. */
chitu_status chitu_workspace_size_quantized(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value,
                                            const chitu_tensor* out, const chitu_tensor* lse, const chitu_options* options, size_t* bytes);

/* Joins the attention of the same queries over two disjoint sets of keys. The result may be a or b. On a GPU it runs on the default
 * stream. */
chitu_status chitu_merge(const chitu_tensor* out_a, const chitu_tensor* lse_a, const chitu_tensor* out_b, const chitu_tensor* lse_b,
                         const chitu_tensor* out_result, const chitu_tensor* lse_result);

/* Sized like chitu_options. All zeros but struct_size are the defaults. */
typedef struct chitu_merge_options {
  size_t struct_size;
  int32_t threads;  /* for tensors on the CPU, as in chitu_options. On a GPU it must be 0 */
  int32_t reserved; /* 0 */
  void* stream;     /* cudaStream_t, for tensors on a GPU. On the CPU it must be NULL */
} chitu_merge_options;

/* The same for `count` parts, at least one: outs and lses have `count` tensors each, all on one device. The result may be any of the parts.
 * On a GPU the call does not wait; while its stream is captured into a graph, there may be at most 32 parts. options: NULL for the
 * defaults. */
chitu_status chitu_merge_parts(size_t count, const chitu_tensor* outs, const chitu_tensor* lses, const chitu_tensor* out_result,
                               const chitu_tensor* lse_result, const chitu_merge_options* options);

/* Which kernel takes the call and why those before it do not, a line each, into buffer: at most capacity bytes, the last a 0. *needed
 * (may be NULL) is the whole text's size with its 0; buffer may be NULL if capacity is 0. Looks at no data, like chitu_workspace_size(). */
chitu_status chitu_explain(const chitu_operand* query, const chitu_operand* key, const chitu_operand* value, const chitu_tensor* out,
                           const chitu_tensor* lse, const chitu_options* options, char* buffer, size_t capacity, size_t* needed);

/* The rows of the kernel table, best first; a name may have several. The strings live as long as the library. */
typedef struct chitu_kernel {
  const char* name;    /* "cpu.avx512" */
  const char* scores;  /* what it computes query . key in */
  const char* weights; /* what it computes weights . values in */
  int32_t available;   /* 1: this machine can run it */
  int32_t device;      /* of the tensors it takes */
} chitu_kernel;
size_t chitu_kernel_count(void);
chitu_status chitu_kernel_info(size_t index, chitu_kernel* info);

size_t chitu_method_count(void);
const char* chitu_method_name(size_t index); /* NULL past the last */

/* A row of the table of methods. The strings live as long as the library. */
typedef struct chitu_method {
  const char *name, *summary, *origin;
  chitu_recipe recipe;
} chitu_method;
chitu_status chitu_method_info(size_t index, chitu_method* info);

#ifdef __cplusplus
}
#endif

#endif /* CHITU_C_H */
