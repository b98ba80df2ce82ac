/* SPDX-License-Identifier: Apache-2.0 */
/* The module `_core`: its library, its tables, its state. */
#include "core.h"

#include <dlfcn.h>
#include <string.h>

State* state_of(PyObject* module) { return PyModule_GetState(module); }

PyObject* raise_status(State* state, chitu_status status) {
  PyObject* const types[] = {PyExc_RuntimeError, PyExc_ValueError, PyExc_NotImplementedError, PyExc_MemoryError};
  PyErr_SetString(types[status <= CHITU_OUT_OF_MEMORY ? status : 0], state->last_error());
  return NULL;
}

bool is_opened(State* state) {
  if (state->library) return true;
  PyErr_SetString(PyExc_RuntimeError, "no library is open; open() comes first");
  return false;
}

/* open(path, hooks): loads libchitu, once. hooks: the Python module that is called for what is rare. */
static PyObject* core_open(PyObject* self, PyObject* args) {
  State* state = state_of(self);
  const char* path;
  PyObject* hooks;
  if (!PyArg_ParseTuple(args, "sO", &path, &hooks)) return NULL;
  if (state->library) return PyErr_Format(PyExc_RuntimeError, "a library is open already");
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return PyErr_Format(PyExc_ImportError, "libchitu cannot be loaded: %s", dlerror());
#define X(name)                                                                                                \
  *(void**)&state->name = dlsym(library, "chitu_" #name);                                                      \
  if (!state->name) {                                                                                          \
    PyErr_Format(PyExc_ImportError, "%s has no function chitu_%s: it is older than this module", path, #name); \
    dlclose(library);                                                                                          \
    return NULL;                                                                                               \
  }
  CHITU_FUNCTIONS(X)
#undef X
  if (state->abi_version() != CHITU_ABI_VERSION) {
    PyErr_Format(PyExc_ImportError, "%s has ABI version %d, this module %d", path, (int)state->abi_version(), CHITU_ABI_VERSION);
    dlclose(library);
    return NULL;
  }
  memset(&state->defaults, 0, sizeof state->defaults);
  if (state->options_init(&state->defaults, sizeof state->defaults) != CHITU_OK) return raise_status(state, CHITU_INTERNAL);
  Py_INCREF(hooks);
  state->hooks = hooks;
  state->library = library;
  Py_RETURN_NONE;
}

/* use_torch(checks, is_grad_enabled, is_neg, empty_like, new_lse, new_workspace, is_capturing, route): see TorchHooks. */
static PyObject* core_use_torch(PyObject* self, PyObject* args) {
  TorchHooks* t = &state_of(self)->torch;
  TorchHooks given;
  PyObject** c = given.checks;
  if (!PyArg_ParseTuple(args, "(OOO)OOOOOOO", &c[0], &c[1], &c[2], &given.is_grad_enabled, &given.is_neg, &given.empty_like, &given.new_lse,
                        &given.new_workspace, &given.is_capturing, &given.route))
    return NULL;
  PyObject** const all = (PyObject**)&given;
  for (size_t i = 0; i < sizeof given / sizeof *all; ++i) {
    Py_INCREF(all[i]);
    Py_XDECREF(((PyObject**)t)[i]);
  }
  *t = given;
  Py_RETURN_NONE;
}

static PyObject* core_version(PyObject* self, PyObject* unused) {
  (void)unused;
  State* state = state_of(self);
  return is_opened(state) ? PyUnicode_FromString(state->version()) : NULL;
}

/* [(name, summary, origin, the bytes of its chitu_recipe), ...] */
static PyObject* core_methods(PyObject* self, PyObject* unused) {
  (void)unused;
  State* state = state_of(self);
  if (!is_opened(state)) return NULL;
  PyObject* list = PyList_New(0);
  const size_t count = state->method_count();
  for (size_t i = 0; list && i < count; ++i) {
    chitu_method m;
    PyObject* item = state->method_info(i, &m) == CHITU_OK
                         ? Py_BuildValue("(sssy#)", m.name, m.summary, m.origin, (const char*)&m.recipe, (Py_ssize_t)sizeof m.recipe)
                         : raise_status(state, CHITU_INTERNAL);
    if (!item || PyList_Append(list, item) != 0) Py_CLEAR(list);
    Py_XDECREF(item);
  }
  return list;
}

/* [(name, scores, weights, available, device), ...] */
static PyObject* core_kernels(PyObject* self, PyObject* unused) {
  (void)unused;
  State* state = state_of(self);
  if (!is_opened(state)) return NULL;
  PyObject* list = PyList_New(0);
  const size_t count = state->kernel_count();
  for (size_t i = 0; list && i < count; ++i) {
    chitu_kernel k;
    PyObject* item = state->kernel_info(i, &k) == CHITU_OK
                         ? Py_BuildValue("(sssOs)", k.name, k.scores, k.weights, k.available ? Py_True : Py_False,
                                         k.device == CHITU_CPU ? "cpu" : "cuda")
                         : raise_status(state, CHITU_INTERNAL);
    if (!item || PyList_Append(list, item) != 0) Py_CLEAR(list);
    Py_XDECREF(item);
  }
  return list;
}

/* For a child of fork(): calls on the CPU then use one thread. */
static PyObject* core_set_forked(PyObject* self, PyObject* unused) {
  (void)unused;
  state_of(self)->forked = true;
  Py_RETURN_NONE;
}

/* Gives back the GPU memory that is kept between calls, but not what a call is using. */
static PyObject* core_release_workspaces(PyObject* self, PyObject* unused) {
  (void)unused;
  State* state = state_of(self);
  for (size_t i = 0; i < state->workspace_count; ++i) {
    Workspace* w = &state->workspaces[i];
    if (w->busy) continue;
    PyObject* array = w->array;
    w->array = NULL;
    w->bytes = 0;
    Py_XDECREF(array);
  }
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"open", core_open, METH_VARARGS, "open(path, hooks)"},
    {"use_torch", core_use_torch, METH_VARARGS, NULL},
    {"attention", (PyCFunction)(void (*)(void))core_attention, METH_FASTCALL, NULL},
    {"run", (PyCFunction)(void (*)(void))core_run, METH_FASTCALL, NULL},
    {"explain", (PyCFunction)(void (*)(void))core_explain, METH_FASTCALL, NULL},
    {"merge", (PyCFunction)(void (*)(void))core_merge, METH_FASTCALL, NULL},
    {"quantize", (PyCFunction)(void (*)(void))core_quantize, METH_FASTCALL, NULL},
    {"quantize_keys_and_values", (PyCFunction)(void (*)(void))core_quantize_keys_and_values, METH_FASTCALL, NULL},
    {"restored", core_restored, METH_O, NULL},
    {"version", core_version, METH_NOARGS, NULL},
    {"methods", core_methods, METH_NOARGS, NULL},
    {"kernels", core_kernels, METH_NOARGS, NULL},
    {"set_forked", core_set_forked, METH_NOARGS, NULL},
    {"release_workspaces", core_release_workspaces, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject* module) {
  State* state = state_of(module);
  memset(state, 0, sizeof *state);
  state->requires_grad = PyUnicode_InternFromString("requires_grad");
  state->packed = PyUnicode_InternFromString("_packed");
  return state->requires_grad && state->packed && quantized_types(module, state) ? 0 : -1;
}

/* The library stays loaded: OpenMP's threads may be in it. */
static int clear(PyObject* module) {
  State* state = state_of(module);
  PyObject** const torch = (PyObject**)&state->torch;
  for (size_t i = 0; i < sizeof state->torch / sizeof *torch; ++i) Py_CLEAR(torch[i]);
  for (int i = 0; i < state->type_count; ++i) Py_CLEAR(state->types[i].type);
  for (size_t i = 0; i < state->workspace_count; ++i) Py_CLEAR(state->workspaces[i].array);
  state->type_count = 0;
  state->workspace_count = 0;
  Py_CLEAR(state->hooks);
  Py_CLEAR(state->requires_grad);
  Py_CLEAR(state->packed);
  Py_CLEAR(state->memo.method);
  Py_CLEAR(state->memo.kernel);
  Py_CLEAR(state->quantized_type);
  Py_CLEAR(state->part_type);
  return 0;
}

static void release(void* module) {
  clear(module);
  PyMem_Free(state_of(module)->workspaces);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void*)execute}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "libchitu on Python's arrays; the package chitu_attention is its interface",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
