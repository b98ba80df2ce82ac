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
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

static PyObject* quantized_part(PyObject* self, PyObject* name) {
  Quantized* q = (Quantized*)self;
  int part = 0;
  for (; part < part_count && !(PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, part_names[part]) == 0);) ++part;
  if (part == part_count)
    return PyErr_Format(PyExc_ValueError, "name is %R; it must be values, scales, centre, channels, correction, residuals or ranks", name);
  chitu_tensor t;
  const chitu_status status = q->state->quantized_part(q->quantized, part, &t);
  if (status != CHITU_OK) return raise_status(q->state, status);
  if (!t.data) Py_RETURN_NONE;
  if (t.device != CHITU_CPU) return PyErr_Format(PyExc_NotImplementedError, "%U is on a GPU; only parts in CPU memory can be shown", name);
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

static PyObject* quantized_repr(PyObject* self) {
  const Quantized* q = (const Quantized*)self;
  const int64_t* s = q->shape;
  return PyUnicode_FromFormat("<chitu_attention.Quantized: %s, (%lld, %lld, %lld, %lld), from %s>", role_names[q->role], (long long)s[0],
                              (long long)s[1], (long long)s[2], (long long)s[3], dtype_names[q->dtype]);
}

static PyMethodDef quantized_methods[] = {
    {"part", quantized_part, METH_O,
     "part(name): a memoryview of values, scales, centre, channels, correction, residuals or ranks; None if there is none"},
    {"_stored", quantized_stored, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef quantized_getset[] = {
    {"role", quantized_role, NULL, "'query', 'key' or 'value'", NULL},
    {"shape", quantized_shape, NULL, "(batch, heads, tokens, dim)", NULL},
    {"dtype", quantized_dtype, NULL, "of what was quantised", NULL},
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

static bool vector_read(State* state, Array* array, PyObject* object, const char* name, chitu_tensor* tensor, const chitu_tensor** which) {
  static const Layout layout = {{0, 1, 2, 3}, 4};
  *which = object == Py_None ? NULL : tensor;
  return object == Py_None || (array_read(state, array, object, name, READ, NULL) && array_arrange(array, &layout, tensor));
}

/* x, role, method, layout, starts, keys, centre, channels, threads */
PyObject* core_quantize(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  State* state = state_of(module);
  if (count != 9) return PyErr_Format(PyExc_TypeError, "9 arguments are needed, not %zd", count);
  if (!is_opened(state)) return NULL;
  int role = 0;
  while (role < 3 && !(PyUnicode_Check(args[1]) && PyUnicode_CompareWithASCIIString(args[1], role_names[role]) == 0)) ++role;
  if (role == 3) return PyErr_Format(PyExc_ValueError, "role is %R; it must be 'query', 'key' or 'value'", args[1]);
  if (args[5] != Py_None && Py_TYPE(args[5]) != state->quantized_type)
    return PyErr_Format(PyExc_TypeError, "keys is %R; it must be None, or keys that quantize() made", args[5]);
  Quantized* q = (Quantized*)((allocfunc)PyType_GetSlot(state->quantized_type, Py_tp_alloc))(state->quantized_type, 0);
  if (!q) return NULL;
  q->state = state;
  q->role = role;
  Layout layout;
  Array vectors[2];
  memset(vectors, 0, sizeof vectors);
  chitu_tensor x, tensors[2];
  memset(&x, 0, sizeof x);
  memset(tensors, 0, sizeof tensors);
  chitu_quantize_options o = {.struct_size = sizeof o, .keys = args[5] == Py_None ? NULL : ((const Quantized*)args[5])->quantized};
  chitu_recipe recipe;
  const char* method;
  int64_t* starts = NULL;
  bool made = false;
  Py_INCREF(args[0]); /* released with the array; the memory of an operand that is not quantised is its own */
  if (array_read(state, &q->source, args[0], role_names[role], READ, NULL) && layout_parse(&layout, args[3]) &&
      array_arrange(&q->source, &layout, &x) && method_read(state, args[2], &method, &recipe, &o.recipe) &&
      starts_read(args[4], "starts", &starts, &o.starts_count) &&
      vector_read(state, &vectors[0], args[6], "centre", &tensors[0], &o.centre) &&
      vector_read(state, &vectors[1], args[7], "channels", &tensors[1], &o.channels) && threads_read(state->forked, args[8], &o.threads)) {
    o.starts = starts;
    memcpy(q->shape, x.shape, sizeof q->shape);
    q->dtype = x.dtype;
    if (x.device == CHITU_CPU) {
      chitu_status status;
      Py_BEGIN_ALLOW_THREADS status = state->quantize(&x, role, method, &o, &q->quantized);
      Py_END_ALLOW_THREADS made = status == CHITU_OK;
      if (!made) raise_status(state, status);
    } else {
      PyErr_Format(PyExc_NotImplementedError,
                   "%s is on a GPU, but quantize() of this package takes arrays in CPU memory only; attention() quantises there itself",
                   role_names[role]);
    }
  }
  q->source.object = args[0];
  array_release(&vectors[0]);
  array_release(&vectors[1]);
  PyMem_Free(starts);
  if (made) return (PyObject*)q;
  Py_DECREF(q);
  return NULL;
}
