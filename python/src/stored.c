/* SPDX-License-Identifier: Apache-2.0 */
/* A quantised operand as plain Python objects, for pickle, and from them again. The tuple that both functions speak of:
 *   version, role, shape and dtype of what was quantised, the bytes of its chitu_quant, starts,
 *   parts: (dtype, shape, bytes) of each or None, residual_of as bytes, tokens that are not finite: (sequence, head, token, bytes) */
#include <string.h>

#include "core.h"

enum { FIELDS = 9 };

/* The elements of a part in their order, without the gaps between them. */
static PyObject* dense_bytes(const chitu_tensor* t) {
  const size_t size = (size_t)item_sizes[t->dtype], row = (size_t)t->shape[3] * size;
  PyObject* bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(row * (size_t)(t->shape[0] * t->shape[1] * t->shape[2])));
  if (!bytes) return NULL;
  char* to = PyBytes_AsString(bytes);
  for (int64_t b = 0; b < t->shape[0]; ++b)
    for (int64_t h = 0; h < t->shape[1]; ++h)
      for (int64_t s = 0; s < t->shape[2]; ++s, to += row)
        memcpy(to, (const char*)t->data + (b * t->stride[0] + h * t->stride[1] + s * t->stride[2]) * (int64_t)size, row);
  return bytes;
}

static PyObject* start_stored(const chitu_quantized_parts* p, size_t i) { return PyLong_FromLongLong(p->starts[i]); }

static PyObject* part_stored(const chitu_quantized_parts* p, size_t i) {
  const chitu_tensor* t = &p->parts[i];
  if (!t->data) Py_RETURN_NONE;
  PyObject* bytes = dense_bytes(t);
  const int64_t* s = t->shape;
  return bytes ? Py_BuildValue("(i(LLLL)N)", (int)t->dtype, s[0], s[1], s[2], s[3], bytes) : NULL;
}

static PyObject* nonfinite_stored(const chitu_quantized_parts* p, size_t i) {
  const chitu_nonfinite* n = &p->nonfinite[i];
  const size_t size = (size_t)p->parts[CHITU_VALUES].shape[3] * sizeof *n->values;
  return Py_BuildValue("(LLLy#)", n->sequence, n->head, n->token, (const char*)n->values, (Py_ssize_t)size);
}

static PyObject* tuple_of(const chitu_quantized_parts* p, size_t count, PyObject* (*item)(const chitu_quantized_parts*, size_t)) {
  PyObject* tuple = PyTuple_New((Py_ssize_t)count);
  for (size_t i = 0; tuple && i < count; ++i) {
    PyObject* made = item(p, i);
    if (!made || PyTuple_SetItem(tuple, (Py_ssize_t)i, made) != 0) Py_CLEAR(tuple);
  }
  return tuple;
}

PyObject* quantized_stored(PyObject* self, PyObject* unused) {
  (void)unused;
  const Quantized* q = (const Quantized*)self;
  if (q->device != CHITU_CPU)
    return PyErr_Format(PyExc_NotImplementedError, "the operand is on a GPU; only one in CPU memory can be stored: see to_host()");
  chitu_quantized_parts p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  const chitu_status status = q->state->quantized_view(q->quantized, &p);
  if (status != CHITU_OK) return raise_status(q->state, status);
  const int64_t* s = q->shape;
  PyObject* starts = tuple_of(&p, p.starts_count, start_stored);
  PyObject* parts = tuple_of(&p, p.parts_count, part_stored);
  PyObject* nonfinite = tuple_of(&p, p.nonfinite_count, nonfinite_stored);
  if (starts && parts && nonfinite)
    return Py_BuildValue("(ii(LLLL)iy#NNy#N)", (int)p.version, (int)p.role, s[0], s[1], s[2], s[3], (int)q->dtype, (const char*)&p.quant,
                         (Py_ssize_t)sizeof p.quant, starts, parts, p.residual_of_count ? (const char*)p.residual_of : "",
                         (Py_ssize_t)(p.residual_of_count * sizeof *p.residual_of), nonfinite);
  Py_XDECREF(starts);
  Py_XDECREF(parts);
  Py_XDECREF(nonfinite);
  return NULL;
}

/* What the arrays of a chitu_quantized_parts need to live. */
typedef struct {
  int64_t* starts;
  chitu_tensor* parts;
  int32_t* residual_of;
  chitu_nonfinite* nonfinite;
} Arrays;

/* A copy, since the bytes need not stand where numbers of their kind may. */
static void* copied_bytes(PyObject* object, size_t item, size_t* count) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(object, &data, &size) != 0) return NULL;
  if ((size_t)size % item != 0) {
    PyErr_SetString(PyExc_ValueError, "a stored operand has bytes that are not whole numbers");
    return NULL;
  }
  *count = (size_t)size / item;
  void* copy = PyMem_Malloc(size ? (size_t)size : 1);
  return copy ? memcpy(copy, data, (size_t)size) : PyErr_NoMemory();
}

static bool part_restored(PyObject* stored, chitu_tensor* t) {
  memset(t, 0, sizeof *t);
  if (stored == Py_None) return true;
  int dtype;
  long long s[4];
  const char* data;
  Py_ssize_t size;
  if (!PyTuple_Check(stored) || !PyArg_ParseTuple(stored, "i(LLLL)y#", &dtype, &s[0], &s[1], &s[2], &s[3], &data, &size)) return false;
  unsigned long long count = 1;
  bool fits = dtype >= 0 && dtype < (int)(sizeof item_sizes / sizeof *item_sizes);
  for (int i = 0; i < 4; ++i) {
    fits = fits && s[i] >= 0 && !__builtin_mul_overflow(count, (unsigned long long)s[i], &count);
    t->shape[i] = s[i];
  }
  if (!fits || count > (unsigned long long)size || count * (unsigned long long)item_sizes[dtype] != (unsigned long long)size) {
    PyErr_SetString(PyExc_ValueError, "a stored operand has a part whose bytes do not fit its shape");
    return false;
  }
  t->data = (void*)data;
  t->dtype = dtype;
  for (int i = 3; i >= 0; --i) t->stride[i] = i == 3 ? 1 : t->stride[i + 1] * t->shape[i + 1];
  return true;
}

static bool nonfinite_restored(PyObject* stored, int64_t dim, chitu_nonfinite* n) {
  long long place[3];
  const char* data;
  Py_ssize_t size;
  if (!PyTuple_Check(stored) || !PyArg_ParseTuple(stored, "LLLy#", &place[0], &place[1], &place[2], &data, &size)) return false;
  if (dim < 0 || (size_t)size != (size_t)dim * sizeof(float)) {
    PyErr_SetString(PyExc_ValueError, "a stored operand has a token that is not of its dim");
    return false;
  }
  *n = (chitu_nonfinite){place[0], place[1], place[2], (const float*)(const void*)data};
  return true;
}

/* `count` zeroed entries of one of Arrays, by a tuple. */
static void* entries(PyObject* tuple, size_t size, size_t* count) {
  if (!PyTuple_Check(tuple)) {
    PyErr_SetString(PyExc_TypeError, "a stored operand has something that is no tuple");
    return NULL;
  }
  *count = (size_t)PyTuple_Size(tuple);
  void* made = PyMem_Calloc(*count ? *count : 1, size);
  return made ? made : PyErr_NoMemory();
}

static bool arrays_restored(Arrays* a, chitu_quantized_parts* p, PyObject* starts, PyObject* parts, PyObject* residual_of,
                            PyObject* nonfinite) {
  if (!(a->starts = entries(starts, sizeof *a->starts, &p->starts_count)) ||
      !(a->parts = entries(parts, sizeof *a->parts, &p->parts_count)) ||
      !(a->residual_of = copied_bytes(residual_of, sizeof *a->residual_of, &p->residual_of_count)) ||
      !(a->nonfinite = entries(nonfinite, sizeof *a->nonfinite, &p->nonfinite_count)))
    return false;
  for (size_t i = 0; i < p->starts_count; ++i) a->starts[i] = PyLong_AsLongLong(PyTuple_GetItem(starts, (Py_ssize_t)i));
  if (PyErr_Occurred()) return false;
  for (size_t i = 0; i < p->parts_count; ++i)
    if (!part_restored(PyTuple_GetItem(parts, (Py_ssize_t)i), &a->parts[i])) return false;
  const int64_t dim = p->parts_count ? a->parts[CHITU_VALUES].shape[3] : 0;
  for (size_t i = 0; i < p->nonfinite_count; ++i)
    if (!nonfinite_restored(PyTuple_GetItem(nonfinite, (Py_ssize_t)i), dim, &a->nonfinite[i])) return false;
  p->starts = a->starts;
  p->parts = a->parts;
  p->residual_of = a->residual_of;
  p->nonfinite = a->nonfinite;
  return true;
}

/* restored(stored): a Quantized from what _stored() gave. */
PyObject* core_restored(PyObject* module, PyObject* stored) {
  State* state = state_of(module);
  if (!is_opened(state)) return NULL;
  chitu_quantized_parts p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  int version, role, dtype;
  long long s[4];
  const char* quant;
  Py_ssize_t quant_size;
  PyObject *starts, *parts, *residual_of, *nonfinite;
  if (!PyTuple_Check(stored)) return PyErr_Format(PyExc_TypeError, "a stored operand is a tuple of %d, not %R", FIELDS, stored);
  if (!PyArg_ParseTuple(stored, "ii(LLLL)iy#OOOO", &version, &role, &s[0], &s[1], &s[2], &s[3], &dtype, &quant, &quant_size, &starts,
                        &parts, &residual_of, &nonfinite))
    return NULL;
  if ((size_t)quant_size != sizeof p.quant || role < CHITU_QUERY || role > CHITU_VALUE || dtype < CHITU_F32 || dtype > CHITU_BF16)
    return PyErr_Format(PyExc_ValueError, "the stored operand is none of this version of chitu_attention");
  p.version = version;
  p.role = role;
  memcpy(&p.quant, quant, sizeof p.quant);
  Quantized* q = (Quantized*)((allocfunc)PyType_GetSlot(state->quantized_type, Py_tp_alloc))(state->quantized_type, 0);
  if (!q) return NULL;
  q->state = state;
  q->role = role;
  q->dtype = dtype;
  for (int i = 0; i < 4; ++i) q->shape[i] = s[i];
  Arrays arrays = {NULL, NULL, NULL, NULL};
  bool made = arrays_restored(&arrays, &p, starts, parts, residual_of, nonfinite);
  if (made && (p.parts_count == 0 || memcmp(q->shape, arrays.parts[CHITU_VALUES].shape, sizeof q->shape) != 0)) {
    PyErr_SetString(PyExc_ValueError, "the stored operand's shape is not that of its values");
    made = false;
  }
  if (made) {
    const chitu_status status = state->quantized_make(&p, &q->quantized);
    made = status == CHITU_OK;
    if (!made) raise_status(state, status);
  }
  PyMem_Free(arrays.starts);
  PyMem_Free(arrays.parts);
  PyMem_Free(arrays.residual_of);
  PyMem_Free(arrays.nonfinite);
  if (made) return (PyObject*)q;
  Py_DECREF(q);
  return NULL;
}
