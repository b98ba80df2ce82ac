/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a call that are no arrays. */
#include <string.h>

#include "core.h"

/* None is -1: no bound. */
static bool bound_read(PyObject* object, int64_t* bound) {
  *bound = -1;
  if (object == Py_None) return true;
  *bound = PyLong_AsLongLong(object);
  if (*bound == -1 && PyErr_Occurred()) return false;
  if (*bound >= -1) return true;
  PyErr_Format(PyExc_ValueError, "window has a side of %lld; it must be 0 or more, or -1 or None for no bound", (long long)*bound);
  return false;
}

static bool pair(PyObject* object, const char* name, const char* meaning, PyObject* items[2]) {
  if (PySequence_Check(object) && !PyUnicode_Check(object) && PySequence_Size(object) == 2) {
    items[0] = PySequence_GetItem(object, 0);
    items[1] = PySequence_GetItem(object, 1);
    if (items[0] && items[1]) return true;
    Py_XDECREF(items[0]);
    Py_XDECREF(items[1]);
    return false;
  }
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "%s is %R; it must be %s", name, object, meaning);
  return false;
}

static bool window_read(PyObject* causal, PyObject* window, chitu_options* o) {
  const int is_causal = causal == Py_False ? 0 : causal == Py_True ? 1 : PyObject_IsTrue(causal);
  if (is_causal < 0) return false;
  if (window != Py_None) {
    PyObject* sides[2];
    if (!pair(window, "window", "None or (left, right), tokens that a query sees before and behind its own; None for all", sides))
      return false;
    const bool read = bound_read(sides[0], &o->window_left) && bound_read(sides[1], &o->window_right);
    Py_DECREF(sides[0]);
    Py_DECREF(sides[1]);
    if (!read) return false;
    if (is_causal && o->window_right > 0) {
      PyErr_Format(PyExc_ValueError, "causal is True, but window lets a query see %lld later tokens; its right side must be 0 or None",
                   (long long)o->window_right);
      return false;
    }
  }
  if (is_causal) o->window_right = 0;
  return true;
}

static bool is_pair(PyObject* object) {
  const bool is = PySequence_Check(object) && !PyUnicode_Check(object) && PySequence_Size(object) == 2;
  PyErr_Clear(); /* a sequence without a size */
  return is;
}

static bool position_read(PyObject* object, const char* name, chitu_positions* positions) {
  PyObject* items[2];
  if (!pair(object, name, "None, the first token's position, (first, step), or such a pair for each sequence", items)) return false;
  positions->first = PyLong_AsLongLong(items[0]);
  positions->step = PyErr_Occurred() ? 1 : PyLong_AsLongLong(items[1]);
  Py_DECREF(items[0]);
  Py_DECREF(items[1]);
  if (PyErr_Occurred()) return false;
  if (positions->step >= 1) return true;
  PyErr_Format(PyExc_ValueError, "%s have step %lld; it must be 1 or more", name, (long long)positions->step);
  return false;
}

/* A pair for each sequence. */
static bool each_read(PyObject* object, const char* name, chitu_positions** each, size_t* count) {
  const Py_ssize_t size = PySequence_Size(object);
  if (size < 0) return false;
  *each = PyMem_Malloc(sizeof(chitu_positions) * (size_t)size);
  if (!*each) return PyErr_NoMemory() != NULL;
  bool read = true;
  for (Py_ssize_t i = 0; read && i < size; ++i) {
    PyObject* item = PySequence_GetItem(object, i);
    read = item && position_read(item, name, &(*each)[i]);
    Py_XDECREF(item);
  }
  *count = (size_t)size;
  return read;
}

static bool positions_read(PyObject* object, const char* name, int32_t* has, chitu_positions* one, chitu_positions** each, size_t* count) {
  if (object == Py_None) return true;
  if (PyLong_Check(object)) {
    *has = 1;
    one->first = PyLong_AsLongLong(object);
    return !PyErr_Occurred();
  }
  PyObject* first = PySequence_Check(object) && !PyUnicode_Check(object) ? PySequence_GetItem(object, 0) : NULL;
  PyErr_Clear(); /* it is empty */
  const bool is_of_each = first && is_pair(first);
  Py_XDECREF(first);
  if (is_of_each) return each_read(object, name, each, count);
  *has = 1;
  return position_read(object, name, one);
}

/* A list, a tuple, or an array in CPU memory. */
bool starts_read(PyObject* object, const char* name, int64_t** starts, size_t* count) {
  if (object == Py_None) return true;
  PyObject* list = NULL;
  if (PyList_Check(object) || PyTuple_Check(object)) {
    list = object;
    Py_INCREF(list);
  } else if (PyObject_HasAttrString(object, "__cuda_array_interface__")) {
    PyErr_Format(PyExc_NotImplementedError, "%s are on a GPU, but must be in CPU memory: give %s.cpu(), once for all layers", name, name);
    return false;
  } else {
    list = PyObject_CallMethod(object, "tolist", NULL);
  }
  const Py_ssize_t size = list ? PySequence_Size(list) : -1;
  if (size < 0) {
    Py_XDECREF(list);
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s must be a list or an array of integers in CPU memory", name);
    return false;
  }
  *count = (size_t)size;
  *starts = PyMem_Malloc(sizeof(int64_t) * (size_t)(size ? size : 1));
  if (!*starts) PyErr_NoMemory();
  for (Py_ssize_t i = 0; i < size && !PyErr_Occurred(); ++i) {
    PyObject* item = PySequence_GetItem(list, i);
    if (item) (*starts)[i] = PyLong_AsLongLong(item);
    Py_XDECREF(item);
  }
  Py_DECREF(list);
  return !PyErr_Occurred();
}

/* The same, or int32 in GPU memory, which only the GPU reads. */
bool lengths_read(State* state, PyObject* object, const char* name, int64_t** host, size_t* host_count, const int32_t** device,
                  size_t* device_count) {
  if (object == Py_None) return true;
  const TypeEntry* entry = PyList_Check(object) || PyTuple_Check(object) ? NULL : type_entry(state, Py_TYPE(object));
  if (!entry && PyErr_Occurred()) return false;
  dl_tensor dl;
  if (!entry || !entry->exchange || !entry->exchange->view || entry->exchange->view(object, &dl) != 0) {
    PyErr_Clear();
    return starts_read(object, name, host, host_count);
  }
  if (dl.device_type != DL_CUDA && dl.device_type != DL_CUDA_MANAGED) return starts_read(object, name, host, host_count);
  if (dl.code != DL_INT || dl.bits != 32 || dl.lanes != 1 || dl.ndim != 1 || (dl.strides && dl.shape[0] > 1 && dl.strides[0] != 1)) {
    PyErr_Format(PyExc_TypeError, "%s on a GPU must be one contiguous row of int32", name);
    return false;
  }
  *device = (const int32_t*)((const char*)dl.data + dl.byte_offset);
  *device_count = (size_t)dl.shape[0];
  return true;
}

/* None: 0. */
static bool count_read(PyObject* object, const char* name, int64_t* count) {
  if (object == Py_None) return true;
  *count = PyLong_AsLongLong(object);
  if (*count == -1 && PyErr_Occurred()) return false;
  if (*count >= 0) return true;
  PyErr_Format(PyExc_ValueError, "%s is %lld; it must be 0 or more", name, (long long)*count);
  return false;
}

/* A name, or a Recipe, whose attribute _packed has the bytes of a chitu_recipe. */
bool method_read(State* state, PyObject* object, const char** method, chitu_recipe* recipe, const chitu_recipe** which) {
  *which = NULL;
  if (PyUnicode_Check(object)) {
    *method = PyUnicode_AsUTF8AndSize(object, NULL);
    return *method != NULL;
  }
  *method = NULL;
  PyObject* packed = PyObject_GetAttr(object, state->packed);
  char* bytes;
  Py_ssize_t size;
  if (packed && PyBytes_AsStringAndSize(packed, &bytes, &size) == 0 && (size_t)size == sizeof *recipe) {
    memcpy(recipe, bytes, sizeof *recipe);
    *which = recipe;
    Py_DECREF(packed);
    return true;
  }
  Py_XDECREF(packed);
  if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError)) return false; /* a Recipe with a word that there is not */
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "method is %R; it must be a name of methods(), or a Recipe", object);
  return false;
}

bool threads_read(bool forked, PyObject* object, int32_t* threads) {
  const long number = PyLong_AsLong(object);
  if (number == -1 && PyErr_Occurred()) return false;
  if (number < 0 || number > INT32_MAX) {
    PyErr_Format(PyExc_ValueError, "threads is %ld; it must be 0 (OpenMP's default) or more", number);
    return false;
  }
  *threads = forked ? 1 : (int32_t)number;
  return true;
}

/* An integer, or a stream of PyTorch or CuPy. */
bool stream_read(PyObject* object, void** stream) {
  PyObject* handle = NULL;
  static const char* const names[] = {"cuda_stream", "ptr"};
  for (int i = 0; i < 2 && !handle && !PyLong_Check(object); ++i) {
    handle = PyObject_GetAttrString(object, names[i]);
    if (!handle) PyErr_Clear();
  }
  *stream = PyLong_AsVoidPtr(handle ? handle : object);
  Py_XDECREF(handle);
  if (*stream || !PyErr_Occurred()) return true;
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "stream is %R; it must be None, a stream of PyTorch or CuPy, or the number of a cudaStream_t", object);
  return false;
}

/* args: method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts, query_positions, key_positions, kernel,
 * threads, stream, key_lengths, max_queries, max_keys. Those that are arrays, the layout and the stream are read elsewhere. */
bool call_read(State* state, Call* call, PyObject* const* args) {
  chitu_options* o = &call->options;
  *o = state->defaults;
  call->starts[0] = call->starts[1] = call->starts[2] = NULL;
  call->positions[0] = call->positions[1] = NULL;
  if (!method_read(state, args[0], &o->method, &call->recipe, &o->recipe) || !window_read(args[2], args[3], o)) return false;
  if (args[4] != Py_None) {
    const double scale = PyFloat_AsDouble(args[4]);
    if (scale == -1 && PyErr_Occurred()) return false;
    o->has_scale = 1;
    o->scale = (float)scale;
  }
  if (!lengths_read(state, args[8], "query_starts", &call->starts[0], &o->query_starts_count, &o->device_query_starts,
                    &o->device_query_starts_count) ||
      !lengths_read(state, args[9], "key_starts", &call->starts[1], &o->key_starts_count, &o->device_key_starts,
                    &o->device_key_starts_count) ||
      !lengths_read(state, args[15], "key_lengths", &call->starts[2], &o->key_lengths_count, &o->device_key_lengths,
                    &o->device_key_lengths_count) ||
      !count_read(args[16], "max_queries", &o->max_queries) || !count_read(args[17], "max_keys", &o->max_keys) ||
      !positions_read(args[10], "query_positions", &o->has_query_positions, &o->query_positions, &call->positions[0],
                      &o->query_positions_of_count) ||
      !positions_read(args[11], "key_positions", &o->has_key_positions, &o->key_positions, &call->positions[1], &o->key_positions_of_count))
    return false;
  o->query_positions_of = call->positions[0];
  o->key_positions_of = call->positions[1];
  o->query_starts = call->starts[0];
  o->key_starts = call->starts[1];
  o->key_lengths = call->starts[2];
  if (args[12] != Py_None) {
    if (!PyUnicode_Check(args[12])) {
      PyErr_Format(PyExc_TypeError, "kernel is %R; it must be None, or a name of kernels()", args[12]);
      return false;
    }
    o->kernel = PyUnicode_AsUTF8AndSize(args[12], NULL);
    if (!o->kernel) return false;
  }
  return true;
}

void call_release(Call* call) {
  PyMem_Free(call->starts[0]);
  PyMem_Free(call->starts[1]);
  PyMem_Free(call->starts[2]);
  PyMem_Free(call->positions[0]);
  PyMem_Free(call->positions[1]);
}
