// SPDX-License-Identifier: Apache-2.0
// device.h.
#include "cuda/device.h"

#include <map>
#include <mutex>

#include "cuda/launch.h"

namespace chitu::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

cudaMemPool_t pool_of(int device) {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard lock(mutex);
  cudaMemPool_t& pool = pools[device];
  if (!pool) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&pool, &properties));
    std::uint64_t kept = std::uint64_t{1} << 30;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
  }
  return pool;
}

}  // namespace

std::string trouble(int device, int major, int minor) {
  int count = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess) {
    (void)cudaGetLastError();
    return std::string("there is no GPU to use: ") + cudaGetErrorString(e);
  }
  if (device < 0 || device >= count) return "there is no GPU " + std::to_string(device) + " among " + std::to_string(count);
  const int has_major = attribute(cudaDevAttrComputeCapabilityMajor, device),
            has_minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (has_major == major && has_minor == minor) return {};
  const auto version = [](int a, int b) { return std::to_string(a) + "." + std::to_string(b); };
  return "is for compute capability " + version(major, minor) + ", but GPU " + std::to_string(device) + " has " +
         version(has_major, has_minor);
}

bool any_device(int major, int minor) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  for (int device = 0; device < count; ++device)
    if (trouble(device, major, minor).empty()) return true;
  return false;
}

bool on_device(const void* data, int device) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data));
  return attributes.type == cudaMemoryTypeManaged || (attributes.type == cudaMemoryTypeDevice && attributes.device == device);
}

bool launches_overlap() {
  thread_local int asked_of = -1;  // the device whose answer is kept, because every launch asks
  thread_local bool answer = false;
  int device = 0;
  check(cudaGetDevice(&device));
  if (device != asked_of) answer = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9, asked_of = device;
  return answer;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

int multiprocessors(int device) { return attribute(cudaDevAttrMultiProcessorCount, device); }
int cache_bytes(int device) { return attribute(cudaDevAttrL2CacheSize, device); }

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_));
  check(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() { (void)cudaSetDevice(before_); }

StreamMemory::StreamMemory(std::size_t bytes, int device, cudaStream_t stream) : stream_(stream) {
  void* data = nullptr;
  check(cudaMallocFromPoolAsync(&data, bytes, pool_of(device), stream));
  data_ = static_cast<std::byte*>(data);
}

StreamMemory::~StreamMemory() { (void)cudaFreeAsync(data_, stream_); }

}  // namespace chitu::cuda
