/* SPDX-License-Identifier: Apache-2.0 */
/* quantize() and quantize_keys_and_values() on Python's arrays. */
#include <string.h>

#include "core.h"

/* The arguments of a call after its arrays, and what they need to live. */
typedef struct {
  Layout layout;
  Array vectors[2];
  chitu_tensor tensors[2]; /* centre, channels */
  chitu_quantize_options options;
  chitu_recipe recipe;
  const char* method;
  int64_t* starts;
  bool stream_is_given;
  PyObject *result, *workspace; /* PyTorch's memory; NULL: the library allocates */
} QuantizeCall;

static bool vector_read(State* state, QuantizeCall* call, int i, PyObject* object, const char* name, const chitu_tensor** which) {
  static const Layout layout = {{0, 1, 2, 3}, 4};
  *which = object == Py_None ? NULL : &call->tensors[i];
  return object == Py_None || (array_read(state, &call->vectors[i], object, name, READ, call->options.stream) &&
                               array_arrange(&call->vectors[i], &layout, &call->tensors[i]));
}

/* args: method, layout, starts, keys, centre, channels, threads, stream */
static bool arguments_read(State* state, QuantizeCall* call, PyObject* const* args) {
  chitu_quantize_options* o = &call->options;
  o->struct_size = sizeof *o;
  if (args[3] != Py_None && Py_TYPE(args[3]) != state->quantized_type)
    return PyErr_Format(PyExc_TypeError, "keys is %R; it must be None, or keys that quantize() made", args[3]) != NULL;
  if (args[3] != Py_None) o->keys = ((const Quantized*)args[3])->quantized;
  call->stream_is_given = args[7] != Py_None;
  if (call->stream_is_given && !stream_read(args[7], &o->stream)) return false;
  const bool fine = layout_parse(&call->layout, args[1]) && method_read(state, args[0], &call->method, &call->recipe, &o->recipe) &&
                    starts_read(args[2], "starts", &call->starts, &o->starts_count) &&
                    vector_read(state, call, 0, args[4], "centre", &o->centre) &&
                    vector_read(state, call, 1, args[5], "channels", &o->channels);
  o->starts = call->starts;
  return fine;
}

static void arguments_release(QuantizeCall* call) {
  for (int i = 0; i < 2; ++i) array_release(&call->vectors[i]);
  PyMem_Free(call->starts);
  Py_XDECREF(call->result);
  Py_XDECREF(call->workspace);
}

/* An operand that `object` is to become. */
static Quantized* operand_new(State* state, QuantizeCall* call, PyObject* object, int role, chitu_tensor* x) {
  Quantized* q = (Quantized*)((allocfunc)PyType_GetSlot(state->quantized_type, Py_tp_alloc))(state->quantized_type, 0);
  if (!q) return NULL;
  q->state = state;
  q->role = role;
  Py_INCREF(object); /* released with the array; the memory of an operand that is not quantised is its own */
  const bool fine =
      array_read(state, &q->source, object, role_names[role], READ, call->options.stream) && array_arrange(&q->source, &call->layout, x);
  q->source.object = object;
  if (!fine) {
    Py_DECREF(q);
    return NULL;
  }
  memcpy(q->shape, x->shape, sizeof q->shape);
  q->dtype = x->dtype;
  q->device = x->device;
  q->device_id = x->device_id;
  return q;
}

/* The stream and the memory of a call on a GPU. In PyTorch's current stream the result and what a kernel leaves to the next lie in memory
 * of PyTorch, which hands it on in the stream's order; else the library allocates. bytes: of the result. */
static bool place_call(State* state, QuantizeCall* call, const Quantized* q, const chitu_tensor* x, size_t bytes) {
  chitu_quantize_options* o = &call->options;
  const Array* a = &q->source;
  if (call->stream_is_given) return true;
  if (!a->exchange || !a->exchange->current_stream) {
    if (a->has_stream) o->stream = a->stream;
    return true;
  }
  if (a->exchange->current_stream(DL_CUDA, x->device_id, &o->stream) != 0) return false;
  if ((a->kind != KIND_TORCH && a->kind != KIND_TORCH_SUBCLASS) || bytes == 0) return true;
  size_t workspace;
  chitu_quantize_options own = *o;
  if (q->role == CHITU_KEY) own.channels = NULL;
  const chitu_status status = state->quantize_workspace_size(x, q->role, call->method, &own, &workspace);
  if (status != CHITU_OK) return raise_status(state, status) != NULL;
  call->result = torch_memory(state, a->exchange, x->device_id, bytes, &o->memory);
  if (!call->result) return false;
  o->memory_bytes = bytes;
  call->workspace = torch_memory(state, a->exchange, x->device_id, workspace, &o->workspace);
  o->workspace_bytes = workspace;
  return call->workspace != NULL;
}

static bool bytes_of(State* state, const QuantizeCall* call, int role, const chitu_tensor* x, size_t* bytes) {
  chitu_quantize_options own = call->options;
  if (role == CHITU_KEY) own.channels = NULL;
  if (role == CHITU_VALUE) own.centre = NULL;
  const chitu_status status = state->quantized_bytes(x, role, call->method, &own, bytes);
  return status == CHITU_OK || raise_status(state, status) != NULL;
}

/* A block does not need the array that it came from. */
static void leave_source(Quantized* q, size_t bytes) {
  if (bytes == 0) return;
  array_release(&q->source);
  Py_CLEAR(q->source.object);
}

/* x, role, method, layout, starts, keys, centre, channels, threads, stream */
PyObject* core_quantize(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  State* state = state_of(module);
  if (count != 10) return PyErr_Format(PyExc_TypeError, "10 arguments are needed, not %zd", count);
  if (!is_opened(state)) return NULL;
  int role = 0;
  while (role < 3 && !(PyUnicode_Check(args[1]) && PyUnicode_CompareWithASCIIString(args[1], role_names[role]) == 0)) ++role;
  if (role == 3) return PyErr_Format(PyExc_ValueError, "role is %R; it must be 'query', 'key' or 'value'", args[1]);
  QuantizeCall call;
  memset(&call, 0, sizeof call);
  chitu_tensor x;
  memset(&x, 0, sizeof x);
  Quantized* q = NULL;
  bool made = false;
  PyObject* const others[] = {args[2], args[3], args[4], args[5], args[6], args[7], args[8], args[9]};
  size_t bytes = 0;
  if (arguments_read(state, &call, others) && (q = operand_new(state, &call, args[0], role, &x)) != NULL &&
      threads_read(state->forked && x.device == CHITU_CPU, args[8], &call.options.threads) &&
      (x.device == CHITU_CPU || (bytes_of(state, &call, role, &x, &bytes) && place_call(state, &call, q, &x, bytes)))) {
    chitu_status status;
    Py_BEGIN_ALLOW_THREADS status = state->quantize(&x, role, call.method, &call.options, &q->quantized);
    Py_END_ALLOW_THREADS made = status == CHITU_OK;
    if (!made) raise_status(state, status);
  }
  if (made) {
    q->block = call.result;
    call.result = NULL;
    leave_source(q, bytes);
  } else {
    Py_CLEAR(q);
  }
  arguments_release(&call);
  return (PyObject*)q;
}

/* A part of PyTorch's memory, or NULL without an error where there is none. */
static bool share(PyObject* memory, size_t begin, size_t end, PyObject** part) {
  *part = memory && end > begin ? PySequence_GetSlice(memory, (Py_ssize_t)begin, (Py_ssize_t)end) : NULL;
  return *part || !memory || end == begin;
}

/* key, value, method, layout, starts, centre, channels, threads, stream. Returns (key, value). */
PyObject* core_quantize_keys_and_values(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  State* state = state_of(module);
  if (count != 9) return PyErr_Format(PyExc_TypeError, "9 arguments are needed, not %zd", count);
  if (!is_opened(state)) return NULL;
  QuantizeCall call;
  memset(&call, 0, sizeof call);
  chitu_tensor x[2];
  memset(x, 0, sizeof x);
  Quantized *key = NULL, *value = NULL;
  PyObject* pair = NULL;
  bool made = false;
  PyObject* const others[] = {args[2], args[3], args[4], Py_None, args[5], args[6], args[7], args[8]};
  size_t bytes[2] = {0, 0};
  if (arguments_read(state, &call, others) && (key = operand_new(state, &call, args[0], CHITU_KEY, &x[0])) != NULL &&
      (value = operand_new(state, &call, args[1], CHITU_VALUE, &x[1])) != NULL &&
      threads_read(state->forked && x[0].device == CHITU_CPU, args[7], &call.options.threads) &&
      (x[0].device == CHITU_CPU ||
       (bytes_of(state, &call, CHITU_KEY, &x[0], &bytes[0]) && bytes_of(state, &call, CHITU_VALUE, &x[1], &bytes[1]) &&
        place_call(state, &call, key, &x[0], bytes[0] + bytes[1])))) {
    chitu_status status;
    Py_BEGIN_ALLOW_THREADS status =
        state->quantize_keys_and_values(&x[0], &x[1], call.method, &call.options, &key->quantized, &value->quantized);
    Py_END_ALLOW_THREADS made = status == CHITU_OK;
    if (!made) raise_status(state, status);
  }
  if (made && share(call.result, 0, bytes[0], &key->block) && share(call.result, bytes[0], bytes[0] + bytes[1], &value->block)) {
    leave_source(key, bytes[0]);
    leave_source(value, bytes[1]);
    pair = PyTuple_Pack(2, key, value);
  }
  Py_XDECREF((PyObject*)key);
  Py_XDECREF((PyObject*)value);
  arguments_release(&call);
  return pair;
}
