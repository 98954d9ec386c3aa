// A CUDA driver without a GPU: as much of the driver API as the runtime uses, on host memory. Kernels are those of
// kernels.cu, compiled for the CPU behind cuda_on_host.h. Work is done when it is sent, in order.
//
// Built by tests/backends/host_gpu/gpu.py, which writes kernel_table.inc: KERNEL(name, whether it has barriers) a kernel.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "cuda_on_host.h"

#include "kernels.cu"

using Handle = void*;
using Pointer = unsigned long long;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201,
       INVALID_IMAGE = 200, INVALID_HANDLE = 400, NOT_FOUND = 500 };

struct Event { double seconds; };

struct Kernel {
    void (*run)(unsigned blocks, unsigned threads, void** arguments);
};

static const std::map<std::string, Kernel> KERNELS = {
#define KERNEL(name, barriers) \
    {#name, {[](unsigned blocks, unsigned threads, void** arguments) { \
         run_on_host(name, blocks, threads, arguments, barriers); }}},
#include "kernel_table.inc"
#undef KERNEL
};

// The state of the GPU. Tests reach it through the host_gpu_* functions.
static std::mutex guard;
static std::map<Pointer, size_t> allocations;
static std::map<std::string, long long> calls;
static size_t total_bytes = size_t(8) << 30, used_bytes = 0;
static int devices = 1, failing = 0;
static thread_local int contexts = 0;

static int counted(const char* name) {
    std::lock_guard<std::mutex> lock(guard);
    calls[name]++;
    return failing;
}

// Every call leaves its name; those that need a context fail without one, as on a GPU.
#define CALL() do { if (int error = counted(__func__)) return error; } while (0)
#define IN_CONTEXT() do { CALL(); if (contexts == 0) return INVALID_CONTEXT; } while (0)

extern "C" {

void host_gpu_set_memory(size_t bytes) { total_bytes = bytes; }
void host_gpu_set_devices(int count) { devices = count; }
void host_gpu_set_failing(int error) { failing = error; }
size_t host_gpu_used() { return used_bytes; }
long long host_gpu_calls(const char* name) { std::lock_guard<std::mutex> lock(guard); return calls[name]; }

int cuInit(unsigned) { CALL(); return devices ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int* count) { CALL(); *count = devices; return SUCCESS; }
int cuDeviceGet(int* device, int number) {
    CALL();
    *device = number;
    return number < devices ? SUCCESS : NO_DEVICE;
}
int cuDeviceGetName(char* name, int length, int) {
    std::strncpy(name, "stand-in on the host", length);
    return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 0;
    return SUCCESS;
}
int cuDeviceGetPCIBusId(char* id, int length, int) {
    std::strncpy(id, "0000:00:00.0", length);
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = total_bytes; return SUCCESS; }
int cuDevicePrimaryCtxRetain(Handle* context, int) { CALL(); *context = &contexts; return SUCCESS; }
int cuCtxPushCurrent_v2(Handle context) { CALL(); contexts++; return context ? SUCCESS : INVALID_CONTEXT; }
int cuCtxPopCurrent_v2(Handle* context) {
    if (contexts == 0) return INVALID_CONTEXT;
    contexts--;
    if (context) *context = &contexts;
    return SUCCESS;
}
int cuCtxSynchronize() { IN_CONTEXT(); return SUCCESS; }

int cuGetErrorName(int error, const char** text) {
    *text = error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int, const char** text) { *text = "an error of the stand-in"; return SUCCESS; }

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    IN_CONTEXT();
    *free_bytes = total_bytes > used_bytes ? total_bytes - used_bytes : 0;
    *total = total_bytes;
    return SUCCESS;
}
int cuMemAlloc_v2(Pointer* pointer, size_t size) {
    IN_CONTEXT();
    std::lock_guard<std::mutex> lock(guard);
    if (size == 0) return INVALID_VALUE;
    if (used_bytes + size > total_bytes) return OUT_OF_MEMORY;
    void* memory = nullptr;
    if (posix_memalign(&memory, 512, size)) return OUT_OF_MEMORY;
    std::memset(memory, 0xff, size);  // NaN in every floating type: nobody may count on zeros
    *pointer = Pointer(memory);
    allocations[*pointer] = size;
    used_bytes += size;
    return SUCCESS;
}
int cuMemFree_v2(Pointer pointer) {
    IN_CONTEXT();
    std::lock_guard<std::mutex> lock(guard);
    auto place = allocations.find(pointer);
    if (place == allocations.end()) return INVALID_VALUE;
    used_bytes -= place->second;
    allocations.erase(place);
    std::free((void*)pointer);
    return SUCCESS;
}
int cuMemHostAlloc(void** address, size_t size, unsigned) {
    IN_CONTEXT();
    return posix_memalign(address, 512, size) ? OUT_OF_MEMORY : SUCCESS;
}
int cuMemHostGetDevicePointer_v2(Pointer* pointer, void* address, unsigned) {
    IN_CONTEXT();
    *pointer = Pointer(address);
    return SUCCESS;
}
int cuPointerGetAttribute(void* value, int attribute, Pointer pointer) {
    IN_CONTEXT();
    std::lock_guard<std::mutex> lock(guard);
    auto above = allocations.upper_bound(pointer);
    if (attribute != 9 || above == allocations.begin()) return INVALID_VALUE;  // the device's number
    auto [start, size] = *std::prev(above);
    if (pointer >= start + size) return INVALID_VALUE;
    *(int*)value = 0;
    return SUCCESS;
}
int cuMemsetD8Async(Pointer pointer, unsigned char value, size_t size, Handle stream) {
    IN_CONTEXT();
    if (!stream) return INVALID_HANDLE;
    std::memset((void*)pointer, value, size);
    return SUCCESS;
}
static int copied(void* target, const void* source, size_t size, Handle stream) {
    if (!stream) return INVALID_HANDLE;
    std::memcpy(target, source, size);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(Pointer target, Pointer source, size_t size, Handle stream) {
    IN_CONTEXT();
    return copied((void*)target, (void*)source, size, stream);
}
int cuMemcpyHtoDAsync_v2(Pointer target, const void* source, size_t size, Handle stream) {
    IN_CONTEXT();
    return copied((void*)target, source, size, stream);
}
int cuMemcpyDtoHAsync_v2(void* target, Pointer source, size_t size, Handle stream) {
    IN_CONTEXT();
    return copied(target, (void*)source, size, stream);
}

int cuStreamCreate(Handle* stream, unsigned) { IN_CONTEXT(); *stream = new int; return SUCCESS; }
int cuStreamSynchronize(Handle) { IN_CONTEXT(); return SUCCESS; }
int cuStreamWaitEvent(Handle, Handle, unsigned) { IN_CONTEXT(); return SUCCESS; }

int cuEventCreate(Handle* event, unsigned) { IN_CONTEXT(); *event = new Event{0}; return SUCCESS; }
int cuEventDestroy_v2(Handle event) { delete (Event*)event; return SUCCESS; }
int cuEventRecord(Handle event, Handle) {
    IN_CONTEXT();
    using namespace std::chrono;
    ((Event*)event)->seconds = duration<double>(steady_clock::now().time_since_epoch()).count();
    return SUCCESS;
}
int cuEventSynchronize(Handle) { IN_CONTEXT(); return SUCCESS; }
int cuEventElapsedTime_v2(float* milliseconds, Handle start, Handle stop) {
    IN_CONTEXT();
    *milliseconds = float(1e3 * (((Event*)stop)->seconds - ((Event*)start)->seconds));
    return SUCCESS;
}
int cuEventElapsedTime(float* milliseconds, Handle start, Handle stop) {
    return cuEventElapsedTime_v2(milliseconds, start, stop);
}

// A cubin is an ELF file; what it holds is not looked at, the kernels are those compiled here.
int cuModuleLoadData(Handle* module, const void* image) {
    IN_CONTEXT();
    if (std::memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    *module = (Handle)&KERNELS;
    return SUCCESS;
}
int cuModuleGetFunction(Handle* function, Handle, const char* name) {
    IN_CONTEXT();
    auto place = KERNELS.find(name);
    if (place == KERNELS.end()) return NOT_FOUND;
    *function = (Handle)&place->second;
    return SUCCESS;
}
int cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                   unsigned, Handle stream, void** arguments, void**) {
    IN_CONTEXT();
    if (!stream) return INVALID_HANDLE;
    if (x == 0 || x > 2147483647u || y != 1 || z != 1 || tx == 0 || tx > 1024 || ty != 1 || tz != 1) return INVALID_VALUE;
    ((Kernel*)function)->run(x, tx, arguments);
    return SUCCESS;
}

// Graphs: what is captured is done at once and not again; a test that wants to know counts the launches.
int cuStreamBeginCapture_v2(Handle, int) { IN_CONTEXT(); return SUCCESS; }
int cuStreamEndCapture(Handle, Handle* graph) { IN_CONTEXT(); *graph = new int; return SUCCESS; }
int cuGraphInstantiateWithFlags(Handle* exec, Handle, unsigned long long) { IN_CONTEXT(); *exec = new int; return SUCCESS; }
int cuGraphLaunch(Handle, Handle) { IN_CONTEXT(); return SUCCESS; }
int cuGraphDestroy(Handle) { return SUCCESS; }
int cuGraphExecDestroy(Handle) { return SUCCESS; }

// NVRTC asks a driver that is there for private tables; without them it does its work alone.
int cuGetExportTable(const void** table, const void*) { *table = nullptr; return NOT_FOUND; }

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status);

}  // extern "C"

static const std::map<std::string, void*> FUNCTIONS = {
#define FUNCTION(name) {#name, (void*)name}
#define VERSION_2(name) {#name, (void*)name##_v2}
    FUNCTION(cuInit), FUNCTION(cuDriverGetVersion), FUNCTION(cuDeviceGetCount), FUNCTION(cuDeviceGet),
    FUNCTION(cuDeviceGetName), FUNCTION(cuDeviceGetAttribute), VERSION_2(cuDeviceTotalMem),
    FUNCTION(cuDevicePrimaryCtxRetain), VERSION_2(cuCtxPushCurrent), VERSION_2(cuCtxPopCurrent),
    FUNCTION(cuCtxSynchronize), FUNCTION(cuGetErrorName), FUNCTION(cuGetErrorString), VERSION_2(cuMemGetInfo),
    VERSION_2(cuMemAlloc), VERSION_2(cuMemFree), FUNCTION(cuMemHostAlloc), VERSION_2(cuMemHostGetDevicePointer),
    FUNCTION(cuPointerGetAttribute), FUNCTION(cuMemsetD8Async), VERSION_2(cuMemcpyDtoDAsync), VERSION_2(cuMemcpyHtoDAsync),
    VERSION_2(cuMemcpyDtoHAsync), FUNCTION(cuStreamCreate), FUNCTION(cuStreamSynchronize), FUNCTION(cuStreamWaitEvent),
    FUNCTION(cuEventCreate), VERSION_2(cuEventDestroy), FUNCTION(cuEventRecord), FUNCTION(cuEventSynchronize),
    FUNCTION(cuEventElapsedTime), FUNCTION(cuModuleLoadData), FUNCTION(cuModuleGetFunction), FUNCTION(cuLaunchKernel),
    VERSION_2(cuStreamBeginCapture), FUNCTION(cuStreamEndCapture), {"cuGraphInstantiate", (void*)cuGraphInstantiateWithFlags},
    FUNCTION(cuGraphInstantiateWithFlags), FUNCTION(cuGraphLaunch), FUNCTION(cuGraphDestroy), FUNCTION(cuGraphExecDestroy),
    VERSION_2(cuGetProcAddress),
};

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
    auto place = FUNCTIONS.find(name);
    *function = place == FUNCTIONS.end() ? nullptr : place->second;
    if (status) *status = *function ? 0 : 1;  // found; not found
    return *function ? SUCCESS : NOT_FOUND;
}
