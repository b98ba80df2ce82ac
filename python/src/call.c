/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of libchitu on Python's arrays. `attention` and `run` take, all by position:
 *   query, key, value, method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts, query_positions,
 *   key_positions, kernel, threads, stream, key_lengths, max_queries, max_keys
 * `attention` first asks whether PyTorch's dispatcher must see the call (gradients, tracing, subclasses, ...), and then hands all of it to
 * the hook `route`. `run` does not ask: it is what the dispatcher calls in the end. It keeps no memory on a GPU either, since PyTorch may
 * run it within a pool of memory that it wants back. */
#include <string.h>

#include "core.h"

enum { ARGUMENTS = 21, METHOD = 3, LAYOUT = 4, RETURN_LSE = 8, OUT = 9, LSE = 10, KERNEL = 15, THREADS = 16, STREAM = 17 };

typedef struct {
  Array in[3], out, lse;
  chitu_tensor tensors[5]; /* query, key, value, out, lse */
  bool quantized, has_lse;
  Layout layout;
  Call call;
  PyObject *out_object, *lse_object; /* new references */
  int workspace;                     /* the index of the one in use, or -1 */
  PyObject* fresh_workspace;
} Job;

/* What a call without arguments answers: 1, 0, or -1 with an error. */
static int ask(PyObject* function) {
  PyObject* answer = PyObject_CallNoArgs(function);
  if (!answer) return -1;
  const int is_true = answer == Py_False ? 0 : answer == Py_True ? 1 : PyObject_IsTrue(answer);
  Py_DECREF(answer);
  return is_true;
}

/* 1 if PyTorch's dispatcher must see the call, 0, or -1 with an error. */
static int must_route(State* state, PyObject* const* args) {
  static const int arrays[] = {0, 1, 2, OUT, LSE};
  PyObject* tensors[5];
  int count = 0;
  for (int i = 0; i < 5; ++i) {
    PyObject* const array = args[arrays[i]];
    if (array == Py_None || Py_TYPE(array) == state->quantized_type) continue;
    const TypeEntry* entry = type_entry(state, Py_TYPE(array));
    if (!entry) return -1;
    if (entry->kind == KIND_TORCH_SUBCLASS) return 1;
    if (entry->kind == KIND_TORCH) tensors[count++] = array;
  }
  if (count == 0) return 0;
  for (int i = 0; i < TORCH_CHECKS; ++i) {
    const int answer = ask(state->torch.checks[i]);
    if (answer != 0) return answer;
  }
  const int gradients = ask(state->torch.is_grad_enabled);
  if (gradients <= 0) return gradients;
  for (int i = 0; i < count; ++i) {
    PyObject* required = PyObject_GetAttr(tensors[i], state->requires_grad);
    if (!required) return -1;
    Py_DECREF(required); /* True and False live on */
    if (required == Py_True) return 1;
  }
  return 0;
}

static PyObject* route(State* state, PyObject* const* args) {
  PyObject* all = PyTuple_New(ARGUMENTS);
  if (!all) return NULL;
  for (int i = 0; i < ARGUMENTS; ++i) {
    Py_INCREF(args[i]);
    PyTuple_SetItem(all, i, args[i]);
  }
  PyObject* answer = PyObject_CallObject(state->torch.route, all);
  Py_DECREF(all);
  return answer;
}

/* PyTorch could not show a tensor's memory: it is sparse, has none, or stands for a batch within vmap. Its dispatcher may know what to do.
 */
static bool is_unreadable(const Job* job) {
  for (int i = 0; i < 3; ++i)
    if (job->in[i].is_unreadable) return true;
  return job->out.is_unreadable || job->lse.is_unreadable;
}

/* PyTorch marks some views of complex numbers as negated, and leaves their memory as it was. */
static bool refuse_negated(State* state, const Array* array) {
  if (array->kind != KIND_TORCH && array->kind != KIND_TORCH_SUBCLASS) return true;
  PyObject* answer = PyObject_CallFunctionObjArgs(state->torch.is_neg, array->object, NULL);
  if (!answer) return false;
  Py_DECREF(answer);
  if (answer == Py_False) return true;
  PyErr_Format(PyExc_ValueError, "%s has PyTorch's negative bit set: give %s.resolve_neg()", array->name, array->name);
  return false;
}

static bool operand_read(State* state, Job* job, int i, PyObject* object, const char* name, void* stream) {
  Array* array = &job->in[i];
  chitu_tensor* tensor = &job->tensors[i];
  if (Py_TYPE(object) == state->quantized_type) {
    const Quantized* q = (const Quantized*)object;
    memset(array, 0, sizeof *array);
    array->name = name;
    array->object = object;
    array->kind = q->source.kind;
    array->exchange = q->source.exchange;
    array->quantized = q->quantized;
    job->quantized = true;
    array->device = tensor->device = q->device;
    array->device_id = tensor->device_id = q->device_id;
    memcpy(tensor->shape, q->shape, sizeof q->shape);
    tensor->dtype = q->dtype;
    return true;
  }
  return array_read(state, array, object, name, READ, stream) && refuse_negated(state, array) && array_arrange(array, &job->layout, tensor);
}

/* Gives memory for the output: like the query as to library, type, device, strides. */
static bool out_allocate(State* state, Job* job) {
  Array* query = &job->in[0];
  if (query->quantized || query->kind != KIND_TORCH)
    job->out_object =
        PyObject_CallMethod(state->hooks, "empty_like", "Oi", query->object, query->quantized ? (int)job->tensors[0].dtype : -1);
  else
    job->out_object = PyObject_CallFunctionObjArgs(state->torch.empty_like, query->object, NULL);
  return job->out_object != NULL;
}

static bool lse_allocate(State* state, Job* job) {
  const int64_t* shape = job->tensors[0].shape;
  PyObject* function = job->in[0].kind == KIND_TORCH ? state->torch.new_lse : NULL;
  PyObject* sizes =
      job->layout.axis[0] < 0 ? Py_BuildValue("(LL)", shape[1], shape[2]) : Py_BuildValue("(LLL)", shape[0], shape[1], shape[2]);
  if (!sizes) return false;
  job->lse_object = function ? PyObject_CallFunctionObjArgs(function, job->out_object, sizes, NULL)
                             : PyObject_CallMethod(state->hooks, "new_lse", "OO", job->out_object, sizes);
  Py_DECREF(sizes);
  return job->lse_object != NULL;
}

static bool outputs_read(State* state, Job* job, PyObject* const* args, void* stream) {
  if (args[OUT] != Py_None) {
    job->out_object = args[OUT];
    Py_INCREF(job->out_object);
  } else if (!out_allocate(state, job)) {
    return false;
  }
  if (!array_read(state, &job->out, job->out_object, "out", WRITE, stream) || (args[OUT] != Py_None && !refuse_negated(state, &job->out)) ||
      !array_arrange(&job->out, &job->layout, &job->tensors[3]))
    return false;
  const int return_lse = args[RETURN_LSE] == Py_False ? 0 : PyObject_IsTrue(args[RETURN_LSE]);
  if (return_lse < 0) return false;
  job->has_lse = return_lse || args[LSE] != Py_None;
  if (!job->has_lse) return true;
  if (args[LSE] != Py_None) {
    job->lse_object = args[LSE];
    Py_INCREF(job->lse_object);
  } else if (!lse_allocate(state, job)) {
    return false;
  }
  return array_read(state, &job->lse, job->lse_object, "lse", WRITE, stream) &&
         array_arrange_lse(&job->lse, &job->layout, &job->tensors[4]);
}

/* For explain(), which looks at no data: an output like the query. */
static bool outputs_imagine(Job* job, PyObject* const* args) {
  chitu_tensor *out = &job->tensors[3], *lse = &job->tensors[4];
  *out = job->tensors[0];
  lse->device = out->device;
  lse->device_id = out->device_id;
  lse->shape[3] = lse->stride[3] = lse->stride[2] = 1;
  memcpy(lse->shape, out->shape, 3 * sizeof lse->shape[0]);
  lse->stride[1] = lse->shape[2];
  lse->stride[0] = lse->shape[2] * lse->shape[1];
  const int return_lse = PyObject_IsTrue(args[RETURN_LSE]);
  job->has_lse = return_lse > 0;
  return return_lse >= 0;
}

/* The stream: the one that is asked for, else PyTorch's current one, else the one that the arrays name. */
static bool choose_stream(Job* job, bool is_given, void* given, void** stream, bool* is_current) {
  *stream = given;
  *is_current = false;
  if (is_given || job->tensors[0].device == CHITU_CPU) return true;
  for (int i = 0; i < 3; ++i) {
    const Array* a = &job->in[i];
    if (!a->exchange || !a->exchange->current_stream) continue;
    *is_current = a->kind == KIND_TORCH || a->kind == KIND_TORCH_SUBCLASS;
    return a->exchange->current_stream(DL_CUDA, a->device_id, stream) == 0;
  }
  for (int i = 0; i < 3; ++i) {
    if (!job->in[i].has_stream) continue;
    if (*stream && *stream != job->in[i].stream) {
      PyErr_Format(PyExc_ValueError, "%s was made in another stream than query: say by stream= where to run", job->in[i].name);
      return false;
    }
    *stream = job->in[i].stream;
  }
  return true;
}

static void operands_of(const Job* job, chitu_operand* operands) {
  for (int i = 0; i < 3; ++i) operands[i] = (chitu_operand){job->in[i].quantized ? NULL : &job->tensors[i], job->in[i].quantized};
}

static chitu_status workspace_size(State* state, const Job* job, PyObject* const* args, size_t* bytes) {
  if (job->quantized) {
    chitu_operand o[3];
    operands_of(job, o);
    const chitu_tensor *out = &job->tensors[3], *lse = job->has_lse ? &job->tensors[4] : NULL;
    return state->workspace_size_quantized(&o[0], &o[1], &o[2], out, lse, &job->call.options, bytes);
  }
  Memo key;
  memset(&key, 0, sizeof key);
  memcpy(key.tensors, job->tensors, sizeof key.tensors);
  for (int i = 0; i < 5; ++i) key.tensors[i].data = NULL;
  memcpy(&key.options, &job->call.options, sizeof key.options);
  key.options.stream = NULL;
  const bool same = memcmp(key.tensors, state->memo.tensors, sizeof key.tensors) == 0 &&
                    memcmp(&key.options, &state->memo.options, sizeof key.options) == 0;
  if (same) {
    *bytes = state->memo.bytes;
    return CHITU_OK;
  }
  const chitu_tensor* t = key.tensors;
  const chitu_status status = state->workspace_size(&t[0], &t[1], &t[2], &t[3], job->has_lse ? &t[4] : NULL, &key.options, bytes);
  if (status != CHITU_OK || key.options.recipe || key.options.query_starts || key.options.key_lengths || key.options.query_positions_of ||
      key.options.key_positions_of)
    return status;
  Py_INCREF(args[METHOD]);
  Py_INCREF(args[KERNEL]);
  Py_XDECREF(state->memo.method);
  Py_XDECREF(state->memo.kernel);
  key.method = args[METHOD];
  key.kernel = args[KERNEL];
  key.bytes = *bytes;
  state->memo = key;
  return CHITU_OK;
}

/* Memory of PyTorch's, uint8. exchange: that of its tensors. */
PyObject* torch_memory(State* state, const dl_exchange* exchange, int32_t device_id, size_t bytes, void** data) {
  PyObject* made = PyObject_CallFunction(state->torch.new_workspace, "in", (int)device_id, (Py_ssize_t)bytes);
  dl_tensor dl;
  if (made && exchange->view(made, &dl) == 0) {
    *data = (char*)dl.data + dl.byte_offset;
    return made;
  }
  Py_XDECREF(made);
  return NULL;
}

static PyObject* new_workspace(State* state, const Job* job, size_t bytes, void** data) {
  int i = 0; /* a tensor of PyTorch, or there were no current stream */
  while (!job->in[i].exchange) ++i;
  return torch_memory(state, job->in[i].exchange, job->tensors[0].device_id, bytes, data);
}

/* One is kept for each device and stream, since calls in a stream come one after another. While a graph is captured, or another thread is
 * launching with it, or if it must not be kept, the call has one of its own, which PyTorch's allocator hands on in the stream's order. */
static bool workspace_take(State* state, Job* job, PyObject* const* args, bool keep) {
  chitu_options* o = &job->call.options;
  size_t bytes;
  const chitu_status status = workspace_size(state, job, args, &bytes);
  if (status != CHITU_OK) return raise_status(state, status) != NULL;
  if (bytes == 0) return true;
  o->workspace_bytes = bytes;
  const int capturing = keep ? ask(state->torch.is_capturing) : 1;
  if (capturing < 0) return false;
  const int32_t device = job->tensors[0].device_id;
  size_t i = 0;
  while (i < state->workspace_count && (state->workspaces[i].device != device || state->workspaces[i].stream != o->stream)) ++i;
  if (capturing || (i < state->workspace_count && state->workspaces[i].busy)) {
    job->fresh_workspace = new_workspace(state, job, bytes, &o->workspace);
    return job->fresh_workspace != NULL;
  }
  if (i == state->workspace_count) {
    Workspace* more = PyMem_Realloc(state->workspaces, sizeof(Workspace) * (i + 1));
    if (!more) return PyErr_NoMemory() != NULL;
    state->workspaces = more;
    state->workspaces[state->workspace_count++] = (Workspace){device, o->stream, NULL, NULL, 0, false};
  }
  if (state->workspaces[i].bytes < bytes) {
    Py_CLEAR(state->workspaces[i].array);
    state->workspaces[i].bytes = 0;
    void* data;
    PyObject* made = new_workspace(state, job, bytes, &data);
    if (!made) return false;
    if (state->workspaces[i].array) { /* another thread has been here meanwhile, and may be launching */
      o->workspace = data;
      job->fresh_workspace = made;
      return true;
    }
    state->workspaces[i].array = made;
    state->workspaces[i].data = data;
    state->workspaces[i].bytes = bytes;
  }
  state->workspaces[i].busy = true;
  o->workspace = state->workspaces[i].data;
  job->workspace = (int)i;
  return true;
}

static chitu_status run(State* state, Job* job) {
  const chitu_tensor *t = job->tensors, *lse = job->has_lse ? &t[4] : NULL;
  if (!job->quantized) return state->attention(&t[0], &t[1], &t[2], &t[3], lse, &job->call.options);
  chitu_operand o[3];
  operands_of(job, o);
  return state->attention_quantized(&o[0], &o[1], &o[2], &t[3], lse, &job->call.options);
}

static bool inputs_read(State* state, Job* job, PyObject* const* args, bool* is_given, void** stream) {
  static const char* const names[] = {"query", "key", "value"};
  *is_given = args[STREAM] != Py_None;
  if (*is_given && !stream_read(args[STREAM], stream)) return false;
  if (!layout_parse(&job->layout, args[LAYOUT])) return false;
  for (int i = 0; i < 3; ++i)
    if (!operand_read(state, job, i, args[i], names[i], *stream)) return false;
  return true;
}

static void job_init(Job* job) {
  memset(job->tensors, 0, sizeof job->tensors);
  for (int i = 0; i < 3; ++i) job->in[i].has_buffer = job->in[i].is_unreadable = false, job->in[i].owner = NULL;
  job->out.has_buffer = job->lse.has_buffer = job->quantized = job->has_lse = false;
  job->out.is_unreadable = job->lse.is_unreadable = false;
  job->out.owner = job->lse.owner = job->out_object = job->lse_object = job->fresh_workspace = NULL;
  job->call.starts[0] = job->call.starts[1] = job->call.starts[2] = NULL;
  job->call.positions[0] = job->call.positions[1] = NULL;
  job->workspace = -1;
}

static void job_release(State* state, Job* job) {
  for (int i = 0; i < 3; ++i) array_release(&job->in[i]);
  array_release(&job->out);
  array_release(&job->lse);
  call_release(&job->call);
  if (job->workspace >= 0) state->workspaces[job->workspace].busy = false;
  Py_XDECREF(job->fresh_workspace);
  Py_XDECREF(job->out_object);
  Py_XDECREF(job->lse_object);
}

/* The arguments from `method` on; what the stream and the threads are depends on the arrays. */
static bool options_read(State* state, Job* job, PyObject* const* args, bool stream_is_given, void* stream, bool* is_current) {
  chitu_options* o = &job->call.options;
  return call_read(state, &job->call, args + METHOD) && choose_stream(job, stream_is_given, stream, &o->stream, is_current) &&
         threads_read(state->forked && job->tensors[0].device == CHITU_CPU, args[THREADS], &o->threads);
}

static PyObject* result(Job* job, PyObject* const* args) {
  if (args[RETURN_LSE] == Py_False || !PyObject_IsTrue(args[RETURN_LSE])) {
    Py_INCREF(job->out_object);
    return job->out_object;
  }
  return PyTuple_Pack(2, job->out_object, job->lse_object);
}

static PyObject* attend(PyObject* self, PyObject* const* args, Py_ssize_t count, bool may_route) {
  State* state = state_of(self);
  if (count != ARGUMENTS) return PyErr_Format(PyExc_TypeError, "%d arguments are needed, not %zd", ARGUMENTS, count);
  if (!is_opened(state)) return NULL;
  const int is_routed = may_route ? must_route(state, args) : 0;
  if (is_routed) return is_routed < 0 ? NULL : route(state, args);
  Job job;
  job_init(&job);
  PyObject* answer = NULL;
  bool is_given = false, is_current = false;
  void* stream = NULL;
  if (!inputs_read(state, &job, args, &is_given, &stream) || !outputs_read(state, &job, args, stream)) {
    if (may_route && is_unreadable(&job)) {
      PyErr_Clear();
      answer = route(state, args);
    }
  } else if (options_read(state, &job, args, is_given, stream, &is_current) &&
             (!is_current || workspace_take(state, &job, args, may_route))) {
    chitu_status status;
    Py_BEGIN_ALLOW_THREADS status = run(state, &job);
    Py_END_ALLOW_THREADS answer = status == CHITU_OK ? result(&job, args) : raise_status(state, status);
  }
  job_release(state, &job);
  return answer;
}

PyObject* core_attention(PyObject* self, PyObject* const* args, Py_ssize_t count) { return attend(self, args, count, true); }
PyObject* core_run(PyObject* self, PyObject* const* args, Py_ssize_t count) { return attend(self, args, count, false); }

/* The arguments of `attention`; out and lse are ignored. */
PyObject* core_explain(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  State* state = state_of(self);
  if (count != ARGUMENTS) return PyErr_Format(PyExc_TypeError, "%d arguments are needed, not %zd", ARGUMENTS, count);
  if (!is_opened(state)) return NULL;
  Job job;
  job_init(&job);
  PyObject* text = NULL;
  char* buffer = NULL;
  bool is_given = false, is_current;
  void* stream = NULL;
  if (inputs_read(state, &job, args, &is_given, &stream) && outputs_imagine(&job, args) &&
      options_read(state, &job, args, is_given, stream, &is_current)) {
    chitu_operand o[3];
    const chitu_tensor *t = job.tensors, *lse = job.has_lse ? &t[4] : NULL;
    operands_of(&job, o);
    size_t size = 0;
    chitu_status status = state->explain(&o[0], &o[1], &o[2], &t[3], lse, &job.call.options, NULL, 0, &size);
    if (status == CHITU_OK) buffer = PyMem_Malloc(size);
    if (buffer) status = state->explain(&o[0], &o[1], &o[2], &t[3], lse, &job.call.options, buffer, size, NULL);
    if (status != CHITU_OK)
      raise_status(state, status);
    else
      text = buffer ? PyUnicode_FromString(buffer) : PyErr_NoMemory();
  }
  PyMem_Free(buffer);
  job_release(state, &job);
  return text;
}

/* What merge() works on: the parts, and behind them the result. Each has an array for out and one for lse. */
typedef struct {
  size_t parts, read; /* arrays that are read */
  Array* arrays;
  chitu_tensor *outs, *lses;
  PyObject** objects; /* owned: of each array that is read */
  char (*names)[24];
} MergeJob;

static bool merge_allocate(MergeJob* job, size_t parts) {
  memset(job, 0, sizeof *job);
  job->parts = parts;
  job->arrays = PyMem_Calloc(2 * (parts + 1), sizeof *job->arrays);
  job->outs = PyMem_Calloc(parts + 1, sizeof *job->outs);
  job->lses = PyMem_Calloc(parts + 1, sizeof *job->lses);
  job->objects = PyMem_Calloc(2 * (parts + 1), sizeof *job->objects);
  job->names = PyMem_Calloc(2 * (parts + 1), sizeof *job->names);
  return (job->arrays && job->outs && job->lses && job->objects && job->names) || PyErr_NoMemory() != NULL;
}

static void merge_release(MergeJob* job) {
  for (size_t i = 0; i < job->read; ++i) {
    array_release(&job->arrays[i]);
    Py_DECREF(job->objects[i]);
  }
  PyMem_Free(job->arrays);
  PyMem_Free(job->outs);
  PyMem_Free(job->lses);
  PyMem_Free(job->objects);
  PyMem_Free(job->names);
}

/* Reads the next array, which belongs to part read / 2 or to the result. It takes over the reference, also where it fails. */
static bool merge_read(State* state, MergeJob* job, PyObject* object, const Layout* layout, void* stream) {
  const size_t i = job->read, part = i / 2;
  const bool is_lse = i % 2, is_result = part == job->parts;
  if (!object) return false;
  if (is_result)
    PyOS_snprintf(job->names[i], sizeof job->names[i], "%s", is_lse ? "lse" : "out");
  else
    PyOS_snprintf(job->names[i], sizeof job->names[i], "%s of part %d", is_lse ? "lse" : "out", (int)part);
  Array* a = &job->arrays[i];
  a->has_buffer = false;
  a->owner = NULL;
  job->objects[job->read++] = object;
  return array_read(state, a, object, job->names[i], is_result ? WRITE : READ, stream) && refuse_negated(state, a) &&
         (is_lse ? array_arrange_lse(a, layout, &job->lses[part]) : array_arrange(a, layout, &job->outs[part]));
}

/* The stream: as for attention(), the one that is asked for, else PyTorch's current one, else the one that the arrays name. */
static bool merge_stream(const MergeJob* job, void** stream) {
  if (job->outs[0].device == CHITU_CPU) return true;
  for (size_t i = 0; i < job->read; ++i) {
    const Array* a = &job->arrays[i];
    if (a->exchange && a->exchange->current_stream) return a->exchange->current_stream(DL_CUDA, a->device_id, stream) == 0;
  }
  for (size_t i = 0; i < job->read; ++i) {
    const Array* a = &job->arrays[i];
    if (!a->has_stream) continue;
    if (*stream && *stream != a->stream) {
      PyErr_Format(PyExc_ValueError, "%s was made in another stream than an array before it: say by stream= where to run", a->name);
      return false;
    }
    *stream = a->stream;
  }
  return true;
}

/* A list of arrays out, lse, out, lse, ... of all parts; out, lse, which may be None; layout; threads; stream. Returns (out, lse). */
PyObject* core_merge(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  State* state = state_of(self);
  if (count != 6) return PyErr_Format(PyExc_TypeError, "6 arguments are needed, not %zd", count);
  Layout layout;
  chitu_merge_options o = {sizeof o, 0, 0, NULL};
  const bool is_given = args[5] != Py_None;
  if (!is_opened(state) || (is_given && !stream_read(args[5], &o.stream)) || !layout_parse(&layout, args[3])) return NULL;
  const Py_ssize_t arrays = PyList_Size(args[0]);
  if (arrays < 0) return NULL;
  MergeJob job;
  PyObject* answer = NULL;
  const size_t parts = (size_t)arrays / 2;
  bool fine = merge_allocate(&job, parts);
  for (size_t i = 0; fine && i < 2 * parts; ++i) {
    PyObject* object = PyList_GetItem(args[0], (Py_ssize_t)i);
    Py_XINCREF(object);
    fine = merge_read(state, &job, object, &layout, o.stream);
  }
  for (int i = 0; fine && i < 2; ++i) {
    PyObject* object = args[1 + i];
    if (object == Py_None && parts > 0)
      object = PyObject_CallMethod(state->hooks, "empty_like", "Oi", job.objects[i], -1);
    else
      Py_INCREF(object);
    fine = merge_read(state, &job, object, &layout, o.stream);
  }
  fine = fine && (is_given || merge_stream(&job, &o.stream)) &&
         threads_read(state->forked && job.outs[0].device == CHITU_CPU, args[4], &o.threads);
  if (fine) {
    chitu_status status;
    Py_BEGIN_ALLOW_THREADS status = state->merge_parts(parts, job.outs, job.lses, &job.outs[parts], &job.lses[parts], &o);
    Py_END_ALLOW_THREADS answer =
        status == CHITU_OK ? PyTuple_Pack(2, job.objects[2 * parts], job.objects[2 * parts + 1]) : raise_status(state, status);
  }
  merge_release(&job);
  return answer;
}
