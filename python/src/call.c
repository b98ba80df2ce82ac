/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of libchitu on Python's arrays. `attention` and `run` take, all by position:
 *   query, key, value, method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts, query_positions,
 *   key_positions, kernel, threads, stream
 * `attention` first asks whether PyTorch's dispatcher must see the call (gradients, tracing, subclasses, ...), and then hands all of it to
 * the hook `route`. `run` does not ask: it is what the dispatcher calls in the end. It keeps no memory on a GPU either, since PyTorch may
 * run it within a pool of memory that it wants back. */
#include <string.h>

#include "core.h"

enum { ARGUMENTS = 18, METHOD = 3, LAYOUT = 4, RETURN_LSE = 8, OUT = 9, LSE = 10, KERNEL = 15, THREADS = 16, STREAM = 17 };

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

/* PyTorch could not show a tensor's memory: it is sparse, or stands for a batch within vmap. Its dispatcher may know what to do. */
static bool is_unreadable(const Job* job) {
  for (int i = 0; i < 3; ++i)
    if (job->in[i].is_unreadable) return true;
  return false;
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

static chitu_status workspace_size(State* state, const Job* job, PyObject* const* args, size_t* bytes) {
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
  if (status != CHITU_OK || key.options.recipe || key.options.query_starts) return status;
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

static PyObject* new_workspace(State* state, const Job* job, size_t bytes, void** data) {
  int i = 0; /* a tensor of PyTorch, or there were no current stream */
  while (!job->in[i].exchange) ++i;
  PyObject* made = PyObject_CallFunction(state->torch.new_workspace, "in", (int)job->tensors[0].device_id, (Py_ssize_t)bytes);
  dl_tensor dl;
  if (made && job->in[i].exchange->view(made, &dl) == 0) {
    *data = (char*)dl.data + dl.byte_offset;
    return made;
  }
  Py_XDECREF(made);
  return NULL;
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
  for (int i = 0; i < 3; ++i) o[i] = (chitu_operand){job->in[i].quantized ? NULL : &t[i], job->in[i].quantized};
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
  job->out.owner = job->lse.owner = job->out_object = job->lse_object = job->fresh_workspace = NULL;
  job->call.starts[0] = job->call.starts[1] = NULL;
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
  if (!inputs_read(state, &job, args, &is_given, &stream)) {
    if (may_route && is_unreadable(&job)) {
      PyErr_Clear();
      answer = route(state, args);
    }
  } else if (outputs_read(state, &job, args, stream) && options_read(state, &job, args, is_given, stream, &is_current) &&
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
    for (int i = 0; i < 3; ++i) o[i] = (chitu_operand){job.in[i].quantized ? NULL : &t[i], job.in[i].quantized};
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

/* out_a, lse_a, out_b, lse_b, out, lse, layout; the last two arrays may be None. Returns (out, lse). */
PyObject* core_merge(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  static const char* const names[] = {"out_a", "lse_a", "out_b", "lse_b", "out", "lse"};
  State* state = state_of(self);
  if (count != 7) return PyErr_Format(PyExc_TypeError, "7 arguments are needed, not %zd", count);
  Layout layout;
  if (!is_opened(state) || !layout_parse(&layout, args[6])) return NULL;
  Array arrays[6];
  chitu_tensor t[6];
  PyObject *given[6], *answer = NULL;
  memset(t, 0, sizeof t);
  int read = 0;
  for (; read < 6; ++read) {
    Array* a = &arrays[read];
    a->has_buffer = false;
    a->owner = NULL;
    given[read] = args[read];
    Py_INCREF(given[read]);
    if (read >= 4 && args[read] == Py_None) {
      Py_DECREF(given[read]);
      given[read] = PyObject_CallMethod(state->hooks, "empty_like", "Oi", args[read - 4], -1);
      if (!given[read]) break;
    }
    const bool is_read = array_read(state, a, given[read], names[read], read < 4 ? READ : WRITE, NULL) && refuse_negated(state, a) &&
                         (read % 2 ? array_arrange_lse(a, &layout, &t[read]) : array_arrange(a, &layout, &t[read]));
    if (is_read) continue;
    array_release(a);
    Py_DECREF(given[read]);
    break;
  }
  if (read == 6) {
    chitu_status status;
    Py_BEGIN_ALLOW_THREADS status = state->merge(&t[0], &t[1], &t[2], &t[3], &t[4], &t[5]);
    Py_END_ALLOW_THREADS answer = status == CHITU_OK ? PyTuple_Pack(2, given[4], given[5]) : raise_status(state, status);
  }
  for (int i = 0; i < read; ++i) {
    array_release(&arrays[i]);
    Py_DECREF(given[i]);
  }
  return answer;
}
