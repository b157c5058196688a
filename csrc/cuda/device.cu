// struct Device on the CUDA runtime.

#include "cuda/device.h"

#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <string>

#include "cuda/prim/launch.cuh"
#include "ops/ops.h"

namespace rlhf::cuda {
namespace {

constexpr int kMinComputeCapability = 80;

struct CudaDevice : Device {
  int index = 0;
  std::string label;
};

cudaStream_t cudaStream(Stream* stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t cudaEvent(Event* event) { return reinterpret_cast<cudaEvent_t>(event); }
cudaGraphExec_t cudaGraph(Graph* graph) { return reinterpret_cast<cudaGraphExec_t>(graph); }

/// The status of a call, whose error the device keeps the text of.
Status statusOf(Device* device, cudaError_t error) {
  if (error == cudaSuccess) return kOk;
  (void)cudaGetLastError();  // clears it: the caller has the status, and the next launch shall not report it again
  std::snprintf(device->error, sizeof device->error, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? kNoMemory : kDeviceFailure;
}

/// By `self`: the table may be a copy, as that of a planning device is.
int indexOf(const Device* device) { return static_cast<const CudaDevice*>(device->self)->index; }

/// The device of a call becomes the calling thread's current one.
Status select(Device* device) { return statusOf(device, cudaSetDevice(indexOf(device))); }

Status allocate(Device* device, size_t bytes, void** out) {
  if (const Status status = select(device)) return status;
  return statusOf(device, cudaMalloc(out, bytes > 0 ? bytes : 1));
}

void release(Device* device, void* memory) {
  if (select(device) == kOk) (void)statusOf(device, cudaFree(memory));
}

/// The engine gives host memory back when this has returned: the driver has read it by then, as test/simt/host-copies.test.ts looks at.
Status copyAsync(Device* device, Stream* stream, void* destination, const void* source, size_t bytes) {
  if (const Status status = select(device)) return status;
  return statusOf(device, cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, cudaStream(stream)));
}

Status fillAsync(Device* device, Stream* stream, void* destination, int byteValue, size_t bytes) {
  if (const Status status = select(device)) return status;
  return statusOf(device, cudaMemsetAsync(destination, byteValue, bytes, cudaStream(stream)));
}

Status createStream(Device* device, Stream** out) {
  if (const Status status = select(device)) return status;
  return statusOf(device, cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(out), cudaStreamNonBlocking));
}

void destroyStream(Device* device, Stream* stream) { (void)statusOf(device, cudaStreamDestroy(cudaStream(stream))); }
Status synchronize(Device* device, Stream* stream) { return statusOf(device, cudaStreamSynchronize(cudaStream(stream))); }

Status createEvent(Device* device, Event** out) {
  if (const Status status = select(device)) return status;
  return statusOf(device, cudaEventCreate(reinterpret_cast<cudaEvent_t*>(out)));
}

void destroyEvent(Device* device, Event* event) { (void)statusOf(device, cudaEventDestroy(cudaEvent(event))); }

Status recordEvent(Device* device, Event* event, Stream* stream) {
  return statusOf(device, cudaEventRecord(cudaEvent(event), cudaStream(stream)));
}

Status waitEvent(Device* device, Stream* stream, Event* event) {
  return statusOf(device, cudaStreamWaitEvent(cudaStream(stream), cudaEvent(event), 0));
}

Status eventSeconds(Device* device, Event* begin, Event* end, double* seconds) {
  float milliseconds = 0;
  const Status status = statusOf(device, cudaEventElapsedTime(&milliseconds, cudaEvent(begin), cudaEvent(end)));
  *seconds = 1e-3 * static_cast<double>(milliseconds);
  return status;
}

Status limits(Device* device, DeviceLimits* out) {
  *out = {};
  cudaDeviceProp properties{};
  const int index = indexOf(device);
  if (const Status status = statusOf(device, cudaGetDeviceProperties(&properties, index))) return status;
  std::snprintf(out->model, sizeof out->model, "%s", properties.name);
  out->computeCapability = 10 * properties.major + properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  out->memoryBytes = static_cast<int64_t>(properties.totalGlobalMem);
  if (const Status status = select(device)) return status;
  size_t free = 0, total = 0;
  if (const Status status = statusOf(device, cudaMemGetInfo(&free, &total))) return status;
  out->freeBytes = static_cast<int64_t>(free);
  out->l2Bytes = properties.l2CacheSize;
  int clock = 0, memoryClock = 0;  // kHz; 0 where the driver does not tell
  (void)statusOf(device, cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, index));
  (void)statusOf(device, cudaDeviceGetAttribute(&memoryClock, cudaDevAttrMemoryClockRate, index));
  out->clockHz = 1e3 * clock;
  out->memoryBytesPerSecond = 2.0 * 1e3 * memoryClock * properties.memoryBusWidth / 8;  // twice a clock
  return kOk;
}

Status beginCapture(Device* device, Stream* stream) {
  return statusOf(device, cudaStreamBeginCapture(cudaStream(stream), cudaStreamCaptureModeThreadLocal));
}

Status endCapture(Device* device, Stream* stream, Graph** out) {
  cudaGraph_t graph = nullptr;
  if (const Status status = statusOf(device, cudaStreamEndCapture(cudaStream(stream), &graph))) return status;
  const Status status = statusOf(device, cudaGraphInstantiate(reinterpret_cast<cudaGraphExec_t*>(out), graph, 0));
  (void)cudaGraphDestroy(graph);
  return status;
}

Status launchGraph(Device* device, Stream* stream, Graph* graph) {
  return statusOf(device, cudaGraphLaunch(cudaGraph(graph), cudaStream(stream)));
}

void destroyGraph(Device* device, Graph* graph) { (void)statusOf(device, cudaGraphExecDestroy(cudaGraph(graph))); }

/// The static runtime reports a missing driver as one that is too old, so the driver's library is looked for first.
void requireDriver() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!driver)
    throw Error(code::kNoCudaDriver, "no NVIDIA driver was found (libcuda.so.1 cannot be opened)\nInstall one of version 580 or newer, "
                                      "or use device \"cpu\"");
  dlclose(driver);
  int driverVersion = 0, runtimeVersion = 0;
  (void)cudaDriverGetVersion(&driverVersion);
  (void)cudaRuntimeGetVersion(&runtimeVersion);
  if (driverVersion < runtimeVersion / 1000 * 1000)
    throw Error(code::kOldCudaDriver,
                format("the NVIDIA driver supports CUDA %d.%d and this build needs %d.0 or newer\nUpdate the driver, or use device \"cpu\"",
                       driverVersion / 1000, driverVersion % 1000 / 10, runtimeVersion / 1000));
}

/// The same as checkCuda, with what can be done about a device that does not start.
void requireStart(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const bool isMemory = status == cudaErrorMemoryAllocation;
  throw Error(isMemory ? code::kOutOfMemory : code::kInternal,
              format("%s: %s\nCheck that nvidia-smi lists the GPU and that no other process holds its memory, or use device \"cpu\"", what,
                     cudaGetErrorString(status)));
}

void requireDevice(int32_t index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    throw Error(code::kNoCudaDevice, "the NVIDIA driver finds no GPU\nCheck nvidia-smi and CUDA_VISIBLE_DEVICES, or use device \"cpu\"");
  requireStart(status, "counting CUDA devices");
  if (index < 0 || index >= count)
    throw Error(code::kNoCudaDevice, format("cuda:%d was asked for, and GPUs here are numbered from 0 to %d\nUse one of these, as cuda:0, "
                                            "or device \"cpu\"", index, count - 1));
  int major = 0, minor = 0;
  requireStart(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "reading the compute capability");
  requireStart(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "reading the compute capability");
  if (10 * major + minor < kMinComputeCapability)
    throw Error(code::kNoCudaDevice, format("cuda:%d has compute capability %d.%d; 8.0 (Ampere) or newer is needed\nUse device \"cpu\"", index,
                                           major, minor));
}

void fillTable(CudaDevice& device) {
  device.abiHash = abiHash();
  device.name = device.label.c_str();
  device.self = &device;
  device.unifiedMemory = 0;
  device.limits = limits;
  device.allocate = allocate;
  device.release = release;
  device.copyAsync = copyAsync;
  device.fillAsync = fillAsync;
  device.createStream = createStream;
  device.destroyStream = destroyStream;
  device.synchronize = synchronize;
  device.createEvent = createEvent;
  device.destroyEvent = destroyEvent;
  device.recordEvent = recordEvent;
  device.waitEvent = waitEvent;
  device.eventSeconds = eventSeconds;
  device.beginCapture = beginCapture;
  device.endCapture = endCapture;
  device.launchGraph = launchGraph;
  device.destroyGraph = destroyGraph;
}

}  // namespace

Device* openDevice(int32_t index) {
  requireDriver();
  requireDevice(index);
  requireStart(cudaSetDevice(index), "selecting the CUDA device");
  requireStart(cudaFree(nullptr), "starting CUDA on the device");  // creates its context
  auto device = std::make_unique<CudaDevice>();
  device->index = index;
  device->label = format("cuda:%d", index);
  fillTable(*device);
  return device.release();
}

void closeDevice(Device* device) { delete static_cast<CudaDevice*>(device); }

}  // namespace rlhf::cuda
