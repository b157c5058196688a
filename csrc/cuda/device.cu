// struct Device on the CUDA runtime.

#include "cuda/device.h"

#include <dlfcn.h>

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

Status statusOf(cudaError_t error) {
  if (error == cudaSuccess) return kOk;
  (void)cudaGetLastError();  // clears it: the caller has the status, and the next launch shall not report it again
  return error == cudaErrorMemoryAllocation ? kNoMemory : kDeviceFailure;
}

/// The device of a call becomes the calling thread's current one.
Status select(Device* device) { return statusOf(cudaSetDevice(static_cast<CudaDevice*>(device)->index)); }

Status allocate(Device* device, size_t bytes, void** out) {
  if (const Status status = select(device)) return status;
  return statusOf(cudaMalloc(out, bytes > 0 ? bytes : 1));
}

void release(Device* device, void* memory) {
  if (select(device) == kOk) (void)statusOf(cudaFree(memory));
}

Status copyAsync(Device* device, Stream* stream, void* destination, const void* source, size_t bytes) {
  if (const Status status = select(device)) return status;
  return statusOf(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, cudaStream(stream)));
}

Status fillAsync(Device* device, Stream* stream, void* destination, int byteValue, size_t bytes) {
  if (const Status status = select(device)) return status;
  return statusOf(cudaMemsetAsync(destination, byteValue, bytes, cudaStream(stream)));
}

Status createStream(Device* device, Stream** out) {
  if (const Status status = select(device)) return status;
  return statusOf(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(out), cudaStreamNonBlocking));
}

void destroyStream(Device*, Stream* stream) { (void)statusOf(cudaStreamDestroy(cudaStream(stream))); }
Status synchronize(Device*, Stream* stream) { return statusOf(cudaStreamSynchronize(cudaStream(stream))); }

Status createEvent(Device* device, Event** out) {
  if (const Status status = select(device)) return status;
  return statusOf(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(out), cudaEventDisableTiming));
}

void destroyEvent(Device*, Event* event) { (void)statusOf(cudaEventDestroy(cudaEvent(event))); }

Status recordEvent(Device*, Event* event, Stream* stream) {
  return statusOf(cudaEventRecord(cudaEvent(event), cudaStream(stream)));
}

Status waitEvent(Device*, Stream* stream, Event* event) {
  return statusOf(cudaStreamWaitEvent(cudaStream(stream), cudaEvent(event), 0));
}

Status beginCapture(Device*, Stream* stream) {
  return statusOf(cudaStreamBeginCapture(cudaStream(stream), cudaStreamCaptureModeThreadLocal));
}

Status endCapture(Device*, Stream* stream, Graph** out) {
  cudaGraph_t graph = nullptr;
  if (const Status status = statusOf(cudaStreamEndCapture(cudaStream(stream), &graph))) return status;
  const Status status = statusOf(cudaGraphInstantiate(reinterpret_cast<cudaGraphExec_t*>(out), graph, 0));
  (void)cudaGraphDestroy(graph);
  return status;
}

Status launchGraph(Device*, Stream* stream, Graph* graph) {
  return statusOf(cudaGraphLaunch(cudaGraph(graph), cudaStream(stream)));
}

void destroyGraph(Device*, Graph* graph) { (void)statusOf(cudaGraphExecDestroy(cudaGraph(graph))); }

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

void requireDevice(int32_t index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    throw Error(code::kNoCudaDevice, "the NVIDIA driver finds no GPU\nCheck nvidia-smi and CUDA_VISIBLE_DEVICES, or use device \"cpu\"");
  checkCuda(status, "counting CUDA devices");
  if (index < 0 || index >= count)
    throw Error(code::kNoCudaDevice, format("cuda:%d was asked for and there are %d GPUs, numbered from 0", index, count));
  int major = 0, minor = 0;
  checkCuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "reading the compute capability");
  checkCuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "reading the compute capability");
  if (10 * major + minor < kMinComputeCapability)
    throw Error(code::kNoCudaDevice, format("cuda:%d has compute capability %d.%d; 8.0 (Ampere) or newer is needed\nUse device \"cpu\"", index,
                                           major, minor));
}

void fillTable(CudaDevice& device) {
  device.abiHash = abiHash();
  device.name = device.label.c_str();
  device.self = &device;
  device.unifiedMemory = 0;
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
  device.beginCapture = beginCapture;
  device.endCapture = endCapture;
  device.launchGraph = launchGraph;
  device.destroyGraph = destroyGraph;
}

}  // namespace

Device* openDevice(int32_t index) {
  requireDriver();
  requireDevice(index);
  checkCuda(cudaSetDevice(index), "selecting the CUDA device");
  checkCuda(cudaFree(nullptr), "starting CUDA on the device");  // creates its context
  auto device = std::make_unique<CudaDevice>();
  device->index = index;
  device->label = format("cuda:%d", index);
  fillTable(*device);
  return device.release();
}

void closeDevice(Device* device) { delete static_cast<CudaDevice*>(device); }

}  // namespace rlhf::cuda
