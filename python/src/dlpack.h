/* SPDX-License-Identifier: Apache-2.0 */
/* The structs of DLPack 1.x, an exchange format of arrays, as far as this module reads them. Their layout is fixed by that standard. */
#ifndef CHITU_PYTHON_DLPACK_H
#define CHITU_PYTHON_DLPACK_H

#include <stdint.h>

enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3, DL_CUDA_MANAGED = 13 };
enum { DL_INT = 0, DL_FLOAT = 2, DL_BFLOAT = 4 };
enum { DL_READ_ONLY = 1 };

typedef struct {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides; /* in elements; NULL: dense */
  uint64_t byte_offset;
} dl_tensor;

/* What a capsule called "dltensor" holds begins with a dl_tensor, what one called "dltensor_versioned" holds is this. */
typedef struct dl_managed_versioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(struct dl_managed_versioned*);
  uint64_t flags;
  dl_tensor tensor;
} dl_managed_versioned;

/* The attribute __dlpack_c_exchange_api__ of a type: functions that read its objects without calling Python. */
typedef struct dl_exchange {
  uint32_t major, minor;
  const struct dl_exchange* previous; /* of an older major version */
  void* allocate;
  int (*from_object)(void* object, dl_managed_versioned** result);
  void* to_object;
  int (*view)(void* object, dl_tensor* result); /* may be NULL; the result is valid while the object is and does not change */
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
} dl_exchange;

#endif
