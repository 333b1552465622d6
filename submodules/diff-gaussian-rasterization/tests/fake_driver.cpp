// A CUDA driver of one device, for tests: it refuses what a real one would, and runs kernels by the emulation.
//
// Signatures are those of the driver's documentation. Handles do not fit into 32 bits.

#include <cstring>
#include <string>

namespace {

using Emulate = const char* (*)(const char* kernel, unsigned blocks, unsigned threads, const void* argument, int reverse);

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500
};

void* const CONTEXT = reinterpret_cast<void*>(0x7f0123456780);
void* const MODULE = reinterpret_cast<void*>(0x7f1123456780);
void* const STREAM = reinterpret_cast<void*>(0x7f2123456780);

Emulate emulate = nullptr;
std::string failure, launches;  // names of kernels, a space behind each
thread_local void* current = nullptr;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void fake_use(Emulate function) { emulate = function; }
void fake_set_context(void* context) { current = context; }
void* fake_context() { return current; }
void* fake_stream() { return STREAM; }
const char* fake_launches() { return launches.c_str(); }
void fake_forget_launches() { launches.clear(); }

Status cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

Status cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = CONTEXT;
    return device == 0 ? SUCCESS : INVALID_DEVICE;
}

Status cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}

Status cuCtxSetCurrent(void* context) {
    current = context;
    return SUCCESS;
}

Status cuModuleLoadData(void** module, const void* image) {
    *module = MODULE;
    if (current != CONTEXT) return INVALID_CONTEXT;
    return std::strcmp(static_cast<const char*>(image), "machine code") == 0 ? SUCCESS : INVALID_VALUE;
}

Status cuModuleGetFunction(void** function, void* module, const char* name) {
    if (current != CONTEXT) return INVALID_CONTEXT;
    if (module != MODULE) return INVALID_HANDLE;
    if (std::strncmp(name, "gs_", 3) != 0) return NOT_FOUND;
    *function = new std::string(name);
    return SUCCESS;
}

Status cuLaunchKernel(
    void* function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads, unsigned threads_y,
    unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments, void** extra) {
    if (current != CONTEXT) return INVALID_CONTEXT;
    if (stream != STREAM) return INVALID_HANDLE;
    if (blocks == 0 || blocks_y != 1 || blocks_z != 1) return INVALID_VALUE;
    if (threads == 0 || threads > 1024 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (shared_bytes != 0 || arguments[0] == nullptr || extra != nullptr) return INVALID_VALUE;
    launches += *static_cast<std::string*>(function) + " ";
    failure = emulate(static_cast<std::string*>(function)->c_str(), blocks, threads, arguments[0], 0);
    return failure.empty() ? SUCCESS : INVALID_VALUE;
}

Status cuGetErrorString(int, const char** text) {
    *text = failure.empty() ? "refused" : failure.c_str();
    return SUCCESS;
}

}  // extern "C"
