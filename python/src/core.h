/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the module `_core` share. The module is written to CPython's limited API, so that one build serves all versions
 * from 3.11 on. It opens libchitu through the C interface when it is told where it lies, so each copy of the module has a library. */
#ifndef CHITU_PYTHON_CORE_H
#define CHITU_PYTHON_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "chitu/c.h"
#include "dlpack.h"

/* Each function of the C interface that the module calls, by name. The formatter would move this list at every run. */
/* clang-format off */
#define CHITU_FUNCTIONS(X) \
  X(abi_version) X(version) X(last_error) X(options_init) X(attention) X(workspace_size) \
  X(quantize) X(quantize_keys_and_values) X(quantized_bytes) X(quantize_workspace_size) X(quantized_to_host) \
  X(workspace_size_quantized) X(quantized_free) X(quantized_part) X(quantized_view) X(quantized_make) X(attention_quantized) \
  X(merge_parts) X(explain) X(kernel_count) X(kernel_info) X(method_count) X(method_info)
/* clang-format on */

typedef enum { KIND_OTHER, KIND_EXCHANGE, KIND_TORCH, KIND_TORCH_SUBCLASS } Kind;

/* What is known of a type of arrays. */
typedef struct {
  PyTypeObject* type;
  Kind kind;
  const dl_exchange* exchange;
} TypeEntry;

/* GPU memory that calls in one stream use in turn. */
typedef struct {
  int32_t device;
  void* stream;
  PyObject* array; /* that owns it */
  void* data;
  size_t bytes;
  bool busy; /* a thread is launching a call that uses it */
} Workspace;

enum { TYPE_ENTRIES = 16, TORCH_CHECKS = 3 };

/* What a call needs of memory on a GPU, remembered for the next call that asks for the same. */
typedef struct {
  chitu_tensor tensors[5];
  chitu_options options;
  PyObject *method, *kernel; /* owned, so that the names in `options` stay what they are */
  size_t bytes;
} Memo;

/* PyTorch's functions; all NULL until the first of its tensors is seen. */
typedef struct {
  PyObject* checks[TORCH_CHECKS]; /* without arguments: true if a call must not go past PyTorch's dispatcher */
  PyObject *is_grad_enabled, *is_neg, *empty_like, *new_lse, *new_workspace, *is_capturing, *route;
} TorchHooks;

typedef struct {
  void* library;
#define X(name) __typeof__(chitu_##name)* name;
  CHITU_FUNCTIONS(X)
#undef X
  chitu_options defaults;
  PyObject* hooks; /* the Python module that helps with what is rare */
  TorchHooks torch;
  PyObject *requires_grad, *packed; /* names of attributes */
  TypeEntry types[TYPE_ENTRIES];
  int type_count, next_type;
  Workspace* workspaces;
  size_t workspace_count;
  PyTypeObject *quantized_type, *part_type;
  bool forked; /* from a process with threads: OpenMP's pool is not there any more */
  Memo memo;
} State;

/* An array that the caller gave, or a quantised operand, for the time of a call. */
typedef struct {
  const char* name;
  PyObject* object; /* borrowed */
  Kind kind;
  const dl_exchange* exchange;
  chitu_quantized* quantized; /* borrowed; then only kind is set besides */
  void* data;
  int32_t dtype, device, device_id;
  int32_t ndim;
  int64_t shape[4], stride[4];
  bool has_buffer, has_stream, is_unreadable;
  void* stream;
  PyObject* owner; /* what keeps the memory or its description alive */
  Py_buffer buffer;
} Array;

typedef enum { READ, WRITE } Access;

/* Where each of batch, heads, tokens and dim stands in an array's shape; -1: it has no such dimension. */
typedef struct {
  int axis[4];
  int ndim;
} Layout;

/* The arguments of a call after the arrays, and what they need to live. */
typedef struct {
  chitu_options options;
  chitu_recipe recipe;
  int64_t* starts[3];            /* of queries and of keys, and lengths of keys */
  chitu_positions* positions[2]; /* of each sequence */
} Call;

/* arrays.c. Functions that return bool have set a Python error if it is false. */
const TypeEntry* type_entry(State* state, PyTypeObject* type);
bool array_read(State* state, Array* array, PyObject* object, const char* name, Access access, void* stream);
void array_release(Array* array);
bool layout_parse(Layout* layout, PyObject* text);
bool array_arrange(const Array* array, const Layout* layout, chitu_tensor* tensor);
bool array_arrange_lse(const Array* array, const Layout* layout, chitu_tensor* tensor);

/* options.c */
bool lengths_read(State* state, PyObject* object, const char* name, int64_t** host, size_t* host_count, const int32_t** device,
                  size_t* device_count);
bool starts_read(PyObject* object, const char* name, int64_t** starts, size_t* count);
bool method_read(State* state, PyObject* object, const char** method, chitu_recipe* recipe, const chitu_recipe** which);
bool threads_read(bool forked, PyObject* object, int32_t* threads);
bool stream_read(PyObject* object, void** stream);
bool call_read(State* state, Call* call, PyObject* const* args);
void call_release(Call* call);

/* quantized.c */
typedef struct {
  PyObject_HEAD chitu_quantized* quantized;
  State* state;
  Array source;    /* an operand that is not quantised views it */
  PyObject* block; /* on a GPU: PyTorch's memory that holds it; NULL: the library's, or none */
  int64_t shape[4];
  int32_t role, dtype, device, device_id;
} Quantized;
bool quantized_types(PyObject* module, State* state);
extern const char* const role_names[3];
extern const int item_sizes[6]; /* of CHITU_F32 ... */

/* quantize.c */
PyObject* core_quantize(PyObject* module, PyObject* const* args, Py_ssize_t count);
PyObject* core_quantize_keys_and_values(PyObject* module, PyObject* const* args, Py_ssize_t count);

/* stored.c */
PyObject* quantized_stored(PyObject* self, PyObject* unused);
PyObject* core_restored(PyObject* module, PyObject* stored);

/* call.c */
PyObject* torch_memory(State* state, const dl_exchange* exchange, int32_t device_id, size_t bytes, void** data);
PyObject* core_attention(PyObject* module, PyObject* const* args, Py_ssize_t count);
PyObject* core_run(PyObject* module, PyObject* const* args, Py_ssize_t count);
PyObject* core_explain(PyObject* module, PyObject* const* args, Py_ssize_t count);
PyObject* core_merge(PyObject* module, PyObject* const* args, Py_ssize_t count);

/* core.c */
State* state_of(PyObject* module);
PyObject* raise_status(State* state, chitu_status status);
bool is_opened(State* state);

#endif
