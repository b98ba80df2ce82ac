// SPDX-License-Identifier: Apache-2.0
// device.h.
#include "cuda/device.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "cuda/launch.h"

namespace chitu::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// What a call asks of a device, asked of the driver once.
struct Properties {
  int major, minor, multiprocessors, cache_bytes;
};

struct Devices {
  std::vector<Properties> all;
  std::string trouble;  // why there is none
};

const Devices& devices() {
  static const Devices found = [] {
    Devices d;
    int count = 0;
    if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess) {
      (void)cudaGetLastError();
      d.trouble = std::string("there is no GPU to use: ") + cudaGetErrorString(e);
      return d;
    }
    for (int i = 0; i < count; ++i)
      d.all.push_back({attribute(cudaDevAttrComputeCapabilityMajor, i), attribute(cudaDevAttrComputeCapabilityMinor, i),
                       attribute(cudaDevAttrMultiProcessorCount, i), attribute(cudaDevAttrL2CacheSize, i)});
    return d;
  }();
  return found;
}

const Properties& properties(int device) { return devices().all.at(static_cast<std::size_t>(device)); }

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
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
  const Devices& d = devices();
  if (!d.trouble.empty()) return d.trouble;
  if (device < 0 || static_cast<std::size_t>(device) >= d.all.size())
    return "there is no GPU " + std::to_string(device) + " among " + std::to_string(d.all.size());
  const Properties& has = properties(device);
  if (has.major == major && has.minor == minor) return {};
  const auto version = [](int a, int b) { return std::to_string(a) + "." + std::to_string(b); };
  return "is for compute capability " + version(major, minor) + ", but GPU " + std::to_string(device) + " has " +
         version(has.major, has.minor);
}

bool any_device(int major, int minor) {
  const std::vector<Properties>& all = devices().all;
  return std::any_of(all.begin(), all.end(), [&](const Properties& has) { return has.major == major && has.minor == minor; });
}

bool on_device(const void* data, int device) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data));
  return attributes.type == cudaMemoryTypeManaged || (attributes.type == cudaMemoryTypeDevice && attributes.device == device);
}

bool launches_overlap() { return properties(current_device()).major >= 9; }

void allow_shared_memory(const void* kernel, int bytes) {
  struct Allowed {
    int device;
    const void* kernel;
    int bytes;
  };
  thread_local std::vector<Allowed> allowed;  // of a few kernels: those that this thread calls
  const int device = current_device();
  for (const Allowed& a : allowed)
    if (a.kernel == kernel && a.device == device && a.bytes >= bytes) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  allowed.push_back({device, kernel, bytes});
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

int multiprocessors(int device) { return properties(device).multiprocessors; }
int cache_bytes(int device) { return properties(device).cache_bytes; }

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
