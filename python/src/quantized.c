/* SPDX-License-Identifier: Apache-2.0 */
/* Operands that were quantised beforehand, and views of their parts. */
#include <string.h>

#include "core.h"

const char* const role_names[] = {"query", "key", "value"};
static const char* const part_names[] = {"values", "scales", "centre", "channels", "correction", "residuals", "ranks"};
enum { part_count = sizeof part_names / sizeof *part_names };
static const char* const dtype_names[] = {"float32", "float16", "bfloat16", "int8", "uint8", "float8_e4m3fn"};
static const char* const formats[] = {"f", "e", "H", "b", "B", "B"}; /* bfloat16 and float8 as their bits */
const int item_sizes[] = {4, 2, 2, 1, 1, 1};

/* A view of a part, by the buffer protocol. */
typedef struct {
  PyObject_HEAD PyObject* owner;
  chitu_tensor tensor;
  Py_ssize_t shape[4], strides[4];
} Part;

static void part_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_XDECREF(((Part*)self)->owner);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

static int part_buffer(PyObject* self, Py_buffer* view, int flags) {
  Part* part = (Part*)self;
  const chitu_tensor* t = &part->tensor;
  if (flags & PyBUF_WRITABLE) {
    PyErr_SetString(PyExc_BufferError, "parts of a quantised operand are read-only");
    return -1;
  }
  if ((flags & PyBUF_STRIDES) != PyBUF_STRIDES) {
    PyErr_SetString(PyExc_BufferError, "parts of a quantised operand have strides");
    return -1;
  }
  const int size = item_sizes[t->dtype];
  Py_ssize_t count = size;
  for (int i = 0; i < 4; ++i) {
    part->shape[i] = (Py_ssize_t)t->shape[i];
    part->strides[i] = (Py_ssize_t)t->stride[i] * size;
    count *= part->shape[i];
  }
  Py_INCREF(self);
  *view = (Py_buffer){.buf = t->data,
                      .obj = self,
                      .len = count,
                      .itemsize = size,
                      .readonly = 1,
                      .ndim = 4,
                      .format = flags & PyBUF_FORMAT ? (char*)formats[t->dtype] : NULL,
                      .shape = part->shape,
                      .strides = part->strides};
  return 0;
}

static void quantized_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Quantized* q = (Quantized*)self;
  if (q->quantized) q->state->quantized_free(q->quantized);
  array_release(&q->source);
  Py_XDECREF(q->source.object);
  Py_XDECREF(q->block);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

static PyObject* quantized_part(PyObject* self, PyObject* name) {
  Quantized* q = (Quantized*)self;
  int part = 0;
  for (; part < part_count && !(PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, part_names[part]) == 0);) ++part;
  if (part == part_count)
    return PyErr_Format(PyExc_ValueError, "name is %R; it must be values, scales, centre, channels, correction, residuals or ranks", name);
  if (q->device != CHITU_CPU)
    return PyErr_Format(PyExc_NotImplementedError, "the operand is on a GPU; only parts in CPU memory can be shown: see to_host()");
  chitu_tensor t;
  const chitu_status status = q->state->quantized_part(q->quantized, part, &t);
  if (status != CHITU_OK) return raise_status(q->state, status);
  if (!t.data) Py_RETURN_NONE;
  PyObject* view = ((allocfunc)PyType_GetSlot(q->state->part_type, Py_tp_alloc))(q->state->part_type, 0);
  if (!view) return NULL;
  ((Part*)view)->tensor = t;
  ((Part*)view)->owner = self;
  Py_INCREF(self);
  PyObject* memory = PyMemoryView_FromObject(view);
  Py_DECREF(view);
  return memory;
}

static PyObject* quantized_role(PyObject* self, void* unused) {
  (void)unused;
  return PyUnicode_FromString(role_names[((Quantized*)self)->role]);
}

static PyObject* quantized_shape(PyObject* self, void* unused) {
  (void)unused;
  const int64_t* s = ((Quantized*)self)->shape;
  return Py_BuildValue("(LLLL)", s[0], s[1], s[2], s[3]);
}

static PyObject* quantized_dtype(PyObject* self, void* unused) {
  (void)unused;
  return PyUnicode_FromString(dtype_names[((Quantized*)self)->dtype]);
}

static PyObject* quantized_block(PyObject* self, void* unused) {
  (void)unused;
  PyObject* block = ((Quantized*)self)->block;
  if (!block) block = Py_None;
  Py_INCREF(block);
  return block;
}

/* The same in CPU memory. args: keys, stream. */
static PyObject* quantized_to_host(PyObject* self, PyObject* args) {
  Quantized* q = (Quantized*)self;
  State* state = q->state;
  PyObject *keys = Py_None, *stream = Py_None;
  void* s = NULL;
  if (!PyArg_ParseTuple(args, "|OO", &keys, &stream)) return NULL;
  if (keys != Py_None && Py_TYPE(keys) != state->quantized_type)
    return PyErr_Format(PyExc_TypeError, "keys is %R; it must be None, or keys that quantize() made", keys);
  if (stream != Py_None && !stream_read(stream, &s)) return NULL;
  const dl_exchange* exchange = q->source.exchange;
  if (stream == Py_None && exchange && exchange->current_stream && q->device != CHITU_CPU &&
      exchange->current_stream(DL_CUDA, q->device_id, &s) != 0)
    return NULL;
  Quantized* host = (Quantized*)((allocfunc)PyType_GetSlot(state->quantized_type, Py_tp_alloc))(state->quantized_type, 0);
  if (!host) return NULL;
  host->state = state;
  host->role = q->role;
  host->dtype = q->dtype;
  memcpy(host->shape, q->shape, sizeof host->shape);
  chitu_status status;
  const chitu_quantized* of = keys == Py_None ? NULL : ((const Quantized*)keys)->quantized;
  Py_BEGIN_ALLOW_THREADS status = state->quantized_to_host(q->quantized, of, s, &host->quantized);
  Py_END_ALLOW_THREADS if (status == CHITU_OK) return (PyObject*)host;
  raise_status(state, status);
  Py_DECREF(host);
  return NULL;
}

static PyObject* quantized_repr(PyObject* self) {
  const Quantized* q = (const Quantized*)self;
  const int64_t* s = q->shape;
  return PyUnicode_FromFormat("<chitu_attention.Quantized: %s, (%lld, %lld, %lld, %lld), from %s>", role_names[q->role], (long long)s[0],
                              (long long)s[1], (long long)s[2], (long long)s[3], dtype_names[q->dtype]);
}

static PyMethodDef quantized_methods[] = {
    {"part", quantized_part, METH_O,
     "part(name): a memoryview of values, scales, centre, channels, correction, residuals or ranks; None if there is none"},
    {"to_host", quantized_to_host, METH_VARARGS,
     "to_host(keys=None, stream=None, /): the same in CPU memory, bit for bit; it waits for the stream. keys: of values of a recipe that "
     "sorts keys, and of queries with corrections"},
    {"_stored", quantized_stored, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef quantized_getset[] = {
    {"role", quantized_role, NULL, "'query', 'key' or 'value'", NULL},
    {"shape", quantized_shape, NULL, "(batch, heads, tokens, dim)", NULL},
    {"dtype", quantized_dtype, NULL, "of what was quantised", NULL},
    {"block", quantized_block, NULL,
     "of an operand of PyTorch's on a GPU: its memory, a tensor of uint8 that may be sent as it is; else None", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot quantized_slots[] = {
    {Py_tp_doc, "An operand that quantize() made, for many calls of attention()."},
    {Py_tp_dealloc, (void*)quantized_dealloc},
    {Py_tp_repr, (void*)quantized_repr},
    {Py_tp_methods, quantized_methods},
    {Py_tp_getset, quantized_getset},
    {0, NULL},
};
static PyType_Slot part_slots[] = {{Py_tp_dealloc, (void*)part_dealloc}, {Py_bf_getbuffer, (void*)part_buffer}, {0, NULL}};
enum { FLAGS = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE };
static PyType_Spec quantized_spec = {"chitu_attention.Quantized", sizeof(Quantized), 0, FLAGS, quantized_slots};
static PyType_Spec part_spec = {"chitu_attention._core.Part", sizeof(Part), 0, FLAGS, part_slots};

bool quantized_types(PyObject* module, State* state) {
  state->quantized_type = (PyTypeObject*)PyType_FromModuleAndSpec(module, &quantized_spec, NULL);
  state->part_type = (PyTypeObject*)PyType_FromModuleAndSpec(module, &part_spec, NULL);
  return state->quantized_type && state->part_type && PyModule_AddObjectRef(module, "Quantized", (PyObject*)state->quantized_type) == 0;
}
