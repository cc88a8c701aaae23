// CUDA 13 without a GPU, for ONNX Runtime's CUDA provider: memory is the host's, and kernels and matrix products do
// nothing. What a provider does on the host is real: it chooses kernels, checks inputs, allocates and copies.
//
// One file for all libraries; each exports the functions of its prefix. With STANDIN_TRACE=FILE, every call that
// costs time on a device is a line of that file. A launch that a device would refuse is a line `bad launch`, and
// fails. STANDIN_CAPABILITY=80 is the compute capability; 90 by default.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)
#define MULTIPROCESSORS 132
#define SHARED_BYTES 232448
#define VERSION 13000
#define NAME "a stand-in for a GPU"

enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_CONFIGURATION = 9 };

static void trace(const char *format, ...) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static FILE *file;
    pthread_mutex_lock(&lock);
    if (!file) {
        const char *path = getenv("STANDIN_TRACE");
        file = fopen(path ? path : "/dev/null", "a");
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fflush(file);
    pthread_mutex_unlock(&lock);
}

static int capability(void) {
    const char *asked = getenv("STANDIN_CAPABILITY");
    return asked ? atoi(asked) : 90;
}

// As aligned as a device's memory. Zeros, so that a run has no numbers that are none.
static int allocate(void **pointer, size_t size) {
    size_t rounded = (size + 511) / 512 * 512;
    *pointer = aligned_alloc(512, rounded ? rounded : 512);
    if (!*pointer) return OUT_OF_MEMORY;
    memset(*pointer, 0, rounded);
    return OK;
}

// Streams, events, library handles: all that is asked of them is not to be null.
static int handle(void **out) { return allocate(out, 64); }

// Kernels, by the host function that stands for each.

typedef struct { unsigned x, y, z; } dim3;

static struct { const void *function; const char *name; } kernels[1 << 18];
static int known;

void **__cudaRegisterFatBinary(void *binary) { void *h; handle(&h); return h; }
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
void __cudaRegisterVar(void **h, char *host, char *device, const char *name, int e, size_t s, int c, int g) {}

void __cudaRegisterFunction(void **h, const char *function, char *device, const char *name, int limit, void *a, void *b, void *c, void *d, int *e) {
    if (known == 1 << 18) abort();
    kernels[known].function = function;
    kernels[known++].name = name;
}

static const char *kernel(const void *function) {
    for (int i = 0; i < known; i++)
        if (kernels[i].function == function) return kernels[i].name;
    return "unknown";
}

static __thread struct { dim3 grid, block; size_t shared; void *stream; } configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared = shared;
    configuration.stream = stream;
    return OK;
}

int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *stream = configuration.stream;
    return OK;
}

static int launch(const void *function, dim3 grid, dim3 block, size_t shared) {
    unsigned threads = block.x * block.y * block.z;
    int fits = grid.x && grid.y && grid.z && grid.y <= 65535 && grid.z <= 65535 && threads && threads <= 1024 && shared <= SHARED_BYTES;
    trace("%s %s grid %u,%u,%u block %u shared %zu", fits ? "kernel" : "bad launch", kernel(function), grid.x, grid.y, grid.z, threads, shared);
    return fits ? OK : INVALID_CONFIGURATION;
}

struct launch_configuration { dim3 grid, block; size_t shared; };

int __cudaGetKernel(void **out, const void *function) { *out = (void *)function; return OK; }
int __cudaLaunchKernel(const void *k, dim3 grid, dim3 block, void **a, size_t shared, void *s) { return launch(k, grid, block, shared); }
int cudaLaunchKernel(const void *k, dim3 grid, dim3 block, void **a, size_t shared, void *s) { return launch(k, grid, block, shared); }
int cudaLaunchCooperativeKernel(const void *k, dim3 grid, dim3 block, void **a, size_t shared, void *s) { return launch(k, grid, block, shared); }
int cudaLaunchKernelExC(const struct launch_configuration *c, const void *k, void **a) { return launch(k, c->grid, c->block, c->shared); }
int cudaLaunchHostFunc(void *s, void (*function)(void *), void *data) { function(data); return OK; }
int cudaFuncGetAttributes(void *attributes, const void *f) { memset(attributes, 0, 144); return OK; }
int cudaFuncSetAttribute(const void *f, int attribute, int value) { return OK; }
int cudaKernelSetAttributeForDevice(void *k, int attribute, int value, int device) { return OK; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) { *n = 1; return OK; }
int cudaLibraryLoadData(void **library) { return handle(library); }
int cudaLibraryGetKernel(void **k) { return handle(k); }
int cudaLibraryUnload(void *library) { return OK; }

// The device.

// At the offsets that CUDA 13 gives these fields of its structure.
int cudaGetDeviceProperties(char *p, int device) {
    memset(p, 0, 1008);
    strcpy(p, NAME);
    *(size_t *)(p + 288) = 141 * GIB;       // memory
    *(size_t *)(p + 296) = 49152;           // shared memory of a block
    *(int *)(p + 304) = 65536;              // registers of a block
    *(int *)(p + 308) = 32;                 // threads of a warp
    *(int *)(p + 320) = 1024;               // threads of a block
    int dimensions[] = {1024, 1024, 64, 2147483647, 65535, 65535};
    memcpy(p + 324, dimensions, sizeof dimensions);
    *(int *)(p + 360) = capability() / 10;
    *(int *)(p + 364) = capability() % 10;
    *(int *)(p + 384) = MULTIPROCESSORS;
    *(int *)(p + 604) = 2048;               // threads of a multiprocessor
    *(size_t *)(p + 624) = 233472;          // its shared memory
    *(int *)(p + 632) = 65536;              // its registers
    *(size_t *)(p + 672) = SHARED_BYTES;    // shared memory that a block may ask for
    return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 8: *value = 49152; break;
    case 10: *value = 32; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 39: *value = 2048; break;
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 81: *value = 233472; break;
    case 97: *value = SHARED_BYTES; break;
    default: *value = 1;
    }
    return OK;
}

int cudaGetDeviceCount(int *n) { *n = 1; return OK; }
int cudaGetDevice(int *device) { *device = 0; return OK; }
int cudaSetDevice(int device) { return OK; }
int cudaDriverGetVersion(int *version) { *version = VERSION; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return OK; }
int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return OK; }
const char *cudaGetErrorName(int error) { return "cudaErrorOfTheStandIn"; }
const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : "refused by the stand-in"; }
int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned v, unsigned long long f, int *found) { *function = NULL; if (found) *found = 1; return OK; }

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = VERSION; return OK; }
int cuDeviceGetCount(int *n) { *n = 1; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, NAME, length); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 141 * GIB; return OK; }
int cuTensorMapEncodeTiled(void) { return OK; }

// Memory.

int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = 140 * GIB; *total = 141 * GIB; return OK; }
int cudaMalloc(void **p, size_t n) { trace("cudaMalloc %zu", n); return allocate(p, n); }
int cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *s) { return cudaMalloc(p, n); }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { trace("cudaHostAlloc %zu", n); return allocate(p, n); }
int cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
int cudaFree(void *p) { trace("cudaFree"); free(p); return OK; }
int cudaFreeAsync(void *p, void *s) { return cudaFree(p); }
int cudaFreeHost(void *p) { free(p); return OK; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { trace("cudaMemcpy %zu", n); memmove(to, from, n); return OK; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *s) { trace("cudaMemcpyAsync %zu", n); memmove(to, from, n); return OK; }
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind, void *s) {
    trace("cudaMemcpy2DAsync %zu", width * height);
    for (size_t row = 0; row < height; row++) memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return OK;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t n, size_t offset, int kind) { memset(to, 0, n); return OK; }
int cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return OK; }
int cudaMemsetAsync(void *p, int value, size_t n, void *s) { trace("cudaMemsetAsync %zu", n); memset(p, value, n); return OK; }
int cudaPointerGetAttributes(int *attributes, const void *p) { memset(attributes, 0, 88); *attributes = 2; return OK; }
int cudaMemPoolCreate(void **pool) { return handle(pool); }
int cudaMemPoolDestroy(void *pool) { return OK; }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { memset(value, 0, 8); return OK; }
int cudaMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
int cudaMemPoolTrimTo(void *pool, size_t bytes) { return OK; }

// Streams, events and graphs.

int cudaDeviceSynchronize(void) { trace("cudaDeviceSynchronize"); return OK; }
int cudaStreamSynchronize(void *s) { trace("cudaStreamSynchronize"); return OK; }
int cudaEventSynchronize(void *event) { trace("cudaEventSynchronize"); return OK; }
int cudaStreamWaitEvent(void *s, void *event, unsigned flags) { trace("cudaStreamWaitEvent"); return OK; }
int cudaStreamCreate(void **s) { return handle(s); }
int cudaStreamCreateWithFlags(void **s, unsigned flags) { return handle(s); }
int cudaStreamDestroy(void *s) { return OK; }
int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return OK; }
int cudaStreamBeginCapture(void *s, int mode) { return OK; }
int cudaStreamEndCapture(void *s, void **graph) { return handle(graph); }
int cudaGraphInstantiate(void **executable) { return handle(executable); }
int cudaGraphLaunch(void *executable, void *s) { return OK; }
int cudaGraphDestroy(void *graph) { return OK; }
int cudaGraphExecDestroy(void *executable) { return OK; }
int cudaEventCreate(void **event) { return handle(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
int cudaEventDestroy(void *event) { return OK; }
int cudaEventRecord(void *event, void *s) { return OK; }
int cudaEventRecordWithFlags(void *event, void *s, unsigned flags) { return OK; }
int cudaEventElapsedTime(float *ms, void *start, void *end) { *ms = 1; return OK; }

// cuBLAS, cuBLASLt and cuDNN.

#define PRODUCT(name) int name(void *h, int a, int b, int m, int n, int k) { trace("product " #name " %d %d %d", m, n, k); return OK; }
#define SUCCESS(name) int name(void) { return OK; }
#define HANDLE(name) int name(void **h) { return handle(h); }

PRODUCT(cublasSgemm_v2) PRODUCT(cublasDgemm_v2) PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmBatched) PRODUCT(cublasDgemmBatched) PRODUCT(cublasGemmBatchedEx)
HANDLE(cublasCreate_v2) SUCCESS(cublasDestroy_v2) SUCCESS(cublasSetStream_v2) SUCCESS(cublasSetMathMode)
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return OK; }
const char *cublasGetStatusName(int status) { return "CUBLAS_STATUS_OF_THE_STAND_IN"; }
const char *cublasGetStatusString(int status) { return "refused by the stand-in"; }
SUCCESS(cublasSgeam) SUCCESS(cublasDgeam) SUCCESS(cublasScopy_v2) SUCCESS(cublasSscal_v2)
SUCCESS(cublasSgetrfBatched) SUCCESS(cublasDgetrfBatched) SUCCESS(cublasSgetriBatched) SUCCESS(cublasDgetriBatched)

HANDLE(cublasLtCreate) SUCCESS(cublasLtDestroy)
HANDLE(cublasLtMatmulDescCreate) SUCCESS(cublasLtMatmulDescDestroy) SUCCESS(cublasLtMatmulDescSetAttribute)
HANDLE(cublasLtMatmulPreferenceCreate) SUCCESS(cublasLtMatmulPreferenceDestroy) SUCCESS(cublasLtMatmulPreferenceSetAttribute)
HANDLE(cublasLtMatrixLayoutCreate) SUCCESS(cublasLtMatrixLayoutDestroy) SUCCESS(cublasLtMatrixLayoutSetAttribute)
HANDLE(cublasLtMatrixTransformDescCreate) SUCCESS(cublasLtMatrixTransformDescDestroy)
SUCCESS(cublasLtMatmul) SUCCESS(cublasLtMatrixTransform) SUCCESS(cublasLtMatmulAlgoConfigSetAttribute) SUCCESS(cublasLtMatmulAlgoInit)
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, void *results, int *found) { *found = 1; return OK; }

HANDLE(cudnnCreate) SUCCESS(cudnnDestroy) SUCCESS(cudnnSetStream)
size_t cudnnGetVersion(void) { return 90000; }
size_t cudnnGetCudartVersion(void) { return VERSION; }
const char *cudnnGetErrorString(int status) { return "refused by the stand-in"; }
HANDLE(cudnnCreateTensorDescriptor) SUCCESS(cudnnDestroyTensorDescriptor) SUCCESS(cudnnSetTensorNdDescriptor) SUCCESS(cudnnSetTensor4dDescriptor)
HANDLE(cudnnCreateReduceTensorDescriptor) SUCCESS(cudnnDestroyReduceTensorDescriptor) SUCCESS(cudnnSetReduceTensorDescriptor)
int cudnnReduceTensor(void) { trace("product cudnnReduceTensor"); return OK; }
int cudnnGetReductionWorkspaceSize(void *h, void *d, void *a, void *c, size_t *bytes) { *bytes = 0; return OK; }
int cudnnGetReductionIndicesSize(void *h, void *d, void *a, void *c, size_t *bytes) { *bytes = 0; return OK; }
