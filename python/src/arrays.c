/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays of any library as chitu_tensor, without a copy: by DLPack's C exchange (PyTorch), the buffer protocol (NumPy),
 * __array_interface__ (NumPy with bfloat16), __cuda_array_interface__ (CuPy), __dlpack__ (the rest), tried in this order. */
#include <string.h>

#include "core.h"

static bool wrong_dtype(const Array* array) {
  PyObject* dtype = PyObject_GetAttrString(array->object, "dtype");
  if (!dtype) PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "%s has dtype %S; it must be float32, float16 or bfloat16: convert it first", array->name,
               dtype ? dtype : Py_None);
  Py_XDECREF(dtype);
  return false;
}

static bool too_many_dimensions(const Array* array, long ndim) {
  PyErr_Format(PyExc_ValueError, "%s has %ld dimensions; there may be at most 4", array->name, ndim);
  return false;
}

static bool read_only(const Array* array) {
  PyErr_Format(PyExc_ValueError, "%s is read-only; it is written to, so give a writable array", array->name);
  return false;
}

/* Like PyObject_GetAttrString, but NULL without an error where there is no such attribute. */
static PyObject* attribute(PyObject* object, const char* name) {
  PyObject* result = PyObject_GetAttrString(object, name);
  if (!result && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
  return result;
}

/* strides: in elements, or NULL for a dense array. */
static void set_strides(Array* array, const int64_t* strides) {
  int64_t dense = 1;
  for (int i = array->ndim - 1; i >= 0; --i) {
    array->stride[i] = strides ? strides[i] : dense;
    dense *= array->shape[i];
  }
}

static bool from_dl(Array* array, const dl_tensor* dl) {
  if (dl->lanes != 1) return wrong_dtype(array);
  if (dl->code == DL_FLOAT && dl->bits == 32)
    array->dtype = CHITU_F32;
  else if (dl->code == DL_FLOAT && dl->bits == 16)
    array->dtype = CHITU_F16;
  else if (dl->code == DL_BFLOAT && dl->bits == 16)
    array->dtype = CHITU_BF16;
  else
    return wrong_dtype(array);
  if (dl->device_type == DL_CPU || dl->device_type == DL_CUDA_HOST) {
    array->device = CHITU_CPU;
  } else if (dl->device_type == DL_CUDA || dl->device_type == DL_CUDA_MANAGED) {
    array->device = CHITU_CUDA;
    array->device_id = dl->device_id;
  } else {
    PyErr_Format(PyExc_NotImplementedError, "%s is on a device of DLPack's type %d; it must be in CPU memory or on a CUDA GPU", array->name,
                 (int)dl->device_type);
    return false;
  }
  if (dl->ndim > 4) return too_many_dimensions(array, dl->ndim);
  array->ndim = dl->ndim;
  memcpy(array->shape, dl->shape, sizeof(int64_t) * (size_t)dl->ndim);
  set_strides(array, dl->strides);
  array->data = dl->data ? (char*)dl->data + dl->byte_offset : NULL;
  return true;
}

/* The type's entry, made when the type is first seen. Never NULL unless a Python error is set. */
const TypeEntry* type_entry(State* state, PyTypeObject* type) {
  for (int i = 0; i < state->type_count; ++i)
    if (state->types[i].type == type) return &state->types[i];
  TypeEntry entry = {type, KIND_OTHER, NULL};
  PyObject* capsule = attribute((PyObject*)type, "__dlpack_c_exchange_api__");
  if (!capsule && PyErr_Occurred()) return NULL;
  if (capsule) {
    entry.exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule);
    if (!entry.exchange) PyErr_Clear();
    while (entry.exchange && entry.exchange->major > 1) entry.exchange = entry.exchange->previous;
    if (entry.exchange && entry.exchange->view) entry.kind = KIND_EXCHANGE;
  }
  PyObject* kind = PyObject_CallMethod(state->hooks, "kind_of", "Oi", type, (int)entry.kind);
  if (!kind) return NULL;
  entry.kind = (Kind)PyLong_AsLong(kind);
  Py_DECREF(kind);
  const int i = state->type_count < TYPE_ENTRIES ? state->type_count++ : state->next_type++ % TYPE_ENTRIES;
  Py_INCREF((PyObject*)type);
  Py_XDECREF((PyObject*)state->types[i].type);
  state->types[i] = entry;
  return &state->types[i];
}

static bool from_buffer(Array* array, Access access) {
  array->has_buffer = true;
  const Py_buffer* b = &array->buffer;
  const char* format = b->format ? b->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (strcmp(format, "f") == 0 && b->itemsize == 4)
    array->dtype = CHITU_F32;
  else if (strcmp(format, "e") == 0 && b->itemsize == 2)
    array->dtype = CHITU_F16;
  else
    return wrong_dtype(array);
  if (access == WRITE && b->readonly) return read_only(array);
  if (b->ndim > 4) return too_many_dimensions(array, b->ndim);
  array->ndim = b->ndim;
  array->data = b->buf;
  for (int i = 0; i < b->ndim; ++i) {
    array->shape[i] = b->shape[i];
    array->stride[i] = b->strides[i] / b->itemsize;
    if (b->strides[i] % b->itemsize != 0) {
      PyErr_Format(PyExc_ValueError, "%s has elements %zd bytes apart, which is no multiple of their size: copy it first", array->name,
                   b->strides[i]);
      return false;
    }
  }
  return true;
}

/* hooks.interface(): (pointer, read-only, dtype's number or -1, shape, strides in bytes or None, stream or None). */
static bool from_interface(State* state, Array* array, PyObject* interface, int32_t device, Access access) {
  PyObject* parts = PyObject_CallMethod(state->hooks, "interface", "OOs", array->object, interface, array->name);
  if (!parts) return false;
  array->owner = parts;
  array->device = device;
  PyObject *shape, *strides, *stream;
  unsigned long long pointer;
  int is_read_only, dtype, device_id;
  if (!PyArg_ParseTuple(parts, "KpiiOOO", &pointer, &is_read_only, &dtype, &device_id, &shape, &strides, &stream)) return false;
  if (dtype < 0) return wrong_dtype(array);
  if (access == WRITE && is_read_only) return read_only(array);
  array->dtype = dtype;
  array->device_id = device_id;
  array->data = (void*)(uintptr_t)pointer;
  const Py_ssize_t ndim = PyTuple_Size(shape);
  if (ndim > 4) return too_many_dimensions(array, ndim);
  array->ndim = (int32_t)ndim;
  for (int i = 0; i < ndim; ++i) array->shape[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
  set_strides(array, NULL);
  if (strides != Py_None)
    for (int i = 0; i < ndim; ++i) array->stride[i] = PyLong_AsLongLong(PyTuple_GetItem(strides, i));
  if (stream != Py_None) {
    array->has_stream = true;
    array->stream = (void*)(uintptr_t)PyLong_AsUnsignedLongLong(stream);
  }
  return !PyErr_Occurred();
}

/* The capsule is not consumed: it releases the memory when the array is released. */
static bool from_capsule(Array* array, PyObject* capsule, Access access) {
  array->owner = capsule;
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    const dl_managed_versioned* managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
    if (managed->major == 1 && access == WRITE && managed->flags & DL_READ_ONLY) return read_only(array);
    if (managed->major == 1) return from_dl(array, &managed->tensor);
  } else if (PyCapsule_IsValid(capsule, "dltensor")) {
    return from_dl(array, PyCapsule_GetPointer(capsule, "dltensor"));
  }
  PyErr_Format(PyExc_TypeError, "%s gave a DLPack capsule of a version that is not known here", array->name);
  return false;
}

static bool from_protocols(State* state, Array* array, Access access, void* stream) {
  PyObject* object = array->object;
  if (PyObject_CheckBuffer(object)) {
    if (PyObject_GetBuffer(object, &array->buffer, PyBUF_STRIDES | PyBUF_FORMAT) == 0) return from_buffer(array, access);
    PyErr_Clear(); /* NumPy refuses types that the protocol does not know, such as bfloat16 */
  }
  static const char* const names[] = {"__array_interface__", "__cuda_array_interface__"};
  for (int device = CHITU_CPU; device <= CHITU_CUDA; ++device) {
    PyObject* interface = attribute(object, names[device]);
    if (!interface && PyErr_Occurred()) return false;
    if (!interface) continue;
    const bool read = from_interface(state, array, interface, device, access);
    Py_DECREF(interface);
    return read;
  }
  PyObject* capsule =
      PyObject_CallMethod(state->hooks, "dlpack", "OsKi", object, array->name, (unsigned long long)(uintptr_t)stream, access == WRITE);
  return capsule && from_capsule(array, capsule, access);
}

bool array_read(State* state, Array* array, PyObject* object, const char* name, Access access, void* stream) {
  array->name = name;
  array->object = object;
  array->owner = NULL;
  array->quantized = NULL;
  array->has_buffer = array->has_stream = array->is_unreadable = false;
  array->device = CHITU_CPU;
  array->device_id = 0;
  const TypeEntry* entry = type_entry(state, Py_TYPE(object));
  if (!entry) return false;
  array->kind = entry->kind;
  array->exchange = entry->exchange;
  if (entry->kind == KIND_OTHER) return from_protocols(state, array, access, stream);
  dl_tensor dl;
  array->is_unreadable = array->exchange->view(object, &dl) != 0;
  return !array->is_unreadable && from_dl(array, &dl);
}

void array_release(Array* array) {
  if (array->has_buffer) PyBuffer_Release(&array->buffer);
  Py_CLEAR(array->owner);
  array->has_buffer = false;
}

bool layout_parse(Layout* layout, PyObject* text) {
  static const char letters[] = "bhsd";
  Py_ssize_t size = 0;
  const char* word = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
  PyErr_Clear();
  for (int i = 0; i < 4; ++i) layout->axis[i] = -1;
  layout->ndim = (int)size;
  bool fits = word && size <= 4;
  for (int i = 0; fits && i < size; ++i) {
    const char* letter = strchr(letters, word[i]);
    fits = letter && layout->axis[letter - letters] < 0;
    if (fits) layout->axis[letter - letters] = i;
  }
  if (fits && layout->axis[1] >= 0 && layout->axis[2] >= 0 && layout->axis[3] >= 0) return true;
  PyErr_Format(
      PyExc_ValueError,
      "layout is %R; it must name the dimensions of query, key and value in their order: b (batch, which may be absent), h (heads), "
      "s (tokens), d (dim), such as 'bhsd', 'bshd' or 'shd'",
      text);
  return false;
}

static bool fits_layout(const Array* array, int wanted, const char* what) {
  if (array->ndim == wanted) return true;
  PyErr_Format(PyExc_ValueError, "%s has %d dimensions, but %s %d", array->name, (int)array->ndim, what, wanted);
  return false;
}

static void place(const Array* array, chitu_tensor* tensor) {
  tensor->data = array->data;
  tensor->dtype = array->dtype;
  tensor->device = array->device;
  tensor->device_id = array->device_id;
}

bool array_arrange(const Array* array, const Layout* layout, chitu_tensor* tensor) {
  if (!fits_layout(array, layout->ndim, "the layout names")) return false;
  place(array, tensor);
  for (int i = 0; i < 4; ++i) {
    const int axis = layout->axis[i];
    tensor->shape[i] = axis < 0 ? 1 : array->shape[axis];
    tensor->stride[i] = axis < 0 ? 0 : array->stride[axis];
  }
  return true;
}

/* [batch, heads, queries] whatever the layout, or [heads, queries] where it has no batch. */
bool array_arrange_lse(const Array* array, const Layout* layout, chitu_tensor* tensor) {
  const int batch = layout->axis[0] < 0 ? 0 : 1;
  if (!fits_layout(array, 2 + batch, batch ? "[batch, heads, queries] has" : "[heads, queries] has")) return false;
  place(array, tensor);
  tensor->shape[0] = batch ? array->shape[0] : 1;
  tensor->stride[0] = batch ? array->stride[0] : 0;
  for (int i = 0; i < 2; ++i) {
    tensor->shape[1 + i] = array->shape[batch + i];
    tensor->stride[1 + i] = array->stride[batch + i];
  }
  tensor->shape[3] = tensor->stride[3] = 1;
  return true;
}
