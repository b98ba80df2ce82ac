// SPDX-License-Identifier: Apache-2.0
// The GPU of a call: whether there is one that fits, the guard that makes it current, memory in the order of a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

namespace chitu::cuda {

// Empty, or why kernels for compute capability major.minor cannot run on this device: no driver, no such device, another architecture.
std::string trouble(int device, int major, int minor);

// Whether some device can run them.
bool any_device(int major, int minor);

// Whether this memory is the device's own, or managed: then its kernels may read and write it.
bool on_device(const void* data, int device);

int multiprocessors(int device);
int cache_bytes(int device);  // L2

// Whether kernels on the current device can start before the one before them has ended (sm_90 and later).
bool launches_overlap();

// Lets a kernel have more than 48 KB of dynamic shared memory on the current device.
void allow_shared_memory(const void* kernel, int bytes);

bool is_capturing(cudaStream_t stream);

// Makes a device current while this object lives, and afterwards the one that was current before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// Memory of the current device for all work that the stream gets between construction and destruction. It comes from the library's own
// pool, which keeps up to 1 GiB for the next call.
class StreamMemory {
 public:
  StreamMemory(std::size_t bytes, int device, cudaStream_t stream);
  ~StreamMemory();
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  cudaStream_t stream_;
};

}  // namespace chitu::cuda
