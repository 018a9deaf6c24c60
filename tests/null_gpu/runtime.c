/* The CUDA runtime of a GPU whose kernels do nothing: properties, memory, copies, streams, events, graphs. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "null_gpu.h"
#undef cudaGetDeviceProperties

#define COPIED_ON_DEVICE (1u << 20) /* larger copies on the device would fill the host's memory */
#define CONTEXT (600ul << 20)       /* what a CUDA context takes of a GPU's memory */
#define DEVICES 64

long null_gpu_launches, null_gpu_waits;
static __thread int current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

size_t new_handle(void) {
    static size_t last = 0x10000;
    return __atomic_add_fetch(&last, 64, __ATOMIC_RELAXED);
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* ---- the device */

int capability(void) { return atoi(setting("NULL_GPU_CAPABILITY", "90")); }

/* Devices as CUDA counts them: entries of CUDA_VISIBLE_DEVICES up to the first that does not exist; UUIDs all exist. */
int device_count(void) {
    int installed = atoi(setting("NULL_GPU_COUNT", "1")), count = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) return installed;
    char *names = strdup(visible), *rest = names, *name;
    while ((name = strsep(&rest, ","))) {
        int is_uuid = !strncmp(name, "GPU-", 4) || !strncmp(name, "MIG-", 4);
        if (!*name || (!is_uuid && (*name == '-' || atoi(name) >= installed))) break;
        count++;
    }
    free(names);
    return count;
}

static size_t total_memory(void) { return (size_t)(atof(setting("NULL_GPU_MEMORY", "79.1")) * (1ul << 30)); }

static void describe(struct cudaDeviceProp *p) {
    int sm = capability();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", setting("NULL_GPU_NAME", "NVIDIA H100 80GB HBM3"));
    p->totalGlobalMem = total_memory();
    p->major = sm / 10, p->minor = sm % 10;
    p->multiProcessorCount = sm >= 100 ? 148 : sm >= 90 ? 132 : 108;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = sm >= 90 ? 232448 : sm == 80 ? 166912 : 101376; /* CUDA C++ guide, table of capabilities */
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536, p->l2CacheSize = 50 << 20, p->textureAlignment = 512;
    p->memoryBusWidth = 5120, p->asyncEngineCount = 3;
}

cudaError_t cudaGetDeviceCount(int *n) { return (*n = device_count()) ? cudaSuccess : cudaErrorNoDevice; }
cudaError_t cudaGetDevice(int *d) { return *d = current, cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= device_count()) return cudaErrorInvalidDevice;
    return current = d, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { return describe(p), cudaSuccess; }
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return describe(p), cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int d) { return snprintf(text, n, "0000:%02x:00.0", d + 1), cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return *can = 1, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int d) {
    struct cudaDeviceProp p;
    describe(&p);
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    default: *value = 32;
    }
    return cudaSuccess;
}

/* ---- memory: address space that becomes real only where a copy writes */

struct block {
    char *start;
    size_t size;
    int device; /* -1: pinned memory of the host */
};
static struct block *blocks;
static int n_blocks, room;
static size_t used[DEVICES];

static void remember(void *start, size_t size, int device) {
    if (n_blocks == room) blocks = realloc(blocks, (room = room ? 2 * room : 1024) * sizeof *blocks);
    blocks[n_blocks++] = (struct block){start, size, device};
    if (device >= 0) used[device] += size;
}

static struct block *find(const void *pointer) {
    for (struct block *b = blocks; b < blocks + n_blocks; b++)
        if (b->start <= (char *)pointer && (char *)pointer < b->start + b->size) return b;
    return NULL;
}

static cudaError_t reserve(void **pointer, size_t size, int device) {
    *pointer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*pointer == MAP_FAILED) return *pointer = NULL, cudaErrorMemoryAllocation;
    remember(*pointer, size, device);
    return cudaSuccess;
}

static cudaError_t give_back(void *pointer) {
    pthread_mutex_lock(&lock);
    struct block *b = pointer ? find(pointer) : NULL;
    if (b) {
        munmap(b->start, b->size);
        if (b->device >= 0) used[b->device] -= b->size;
        *b = blocks[--n_blocks];
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **pointer, size_t size) {
    pthread_mutex_lock(&lock);
    int fits = used[current] + size + CONTEXT <= total_memory();
    cudaError_t found = fits ? reserve(pointer, size, current) : (*pointer = NULL, cudaErrorMemoryAllocation);
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    pthread_mutex_lock(&lock);
    cudaError_t found = reserve(pointer, size, -1);
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaFree(void *pointer) { return give_back(pointer); }
cudaError_t cudaFreeHost(void *pointer) { return give_back(pointer); }

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
    *total = total_memory();
    return *unused = *total - CONTEXT - used[current], cudaSuccess;
}

int is_device_visible_memory(const void *pointer) {
    pthread_mutex_lock(&lock);
    int found = find(pointer) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *pointer) {
    memset(about, 0, sizeof *about);
    pthread_mutex_lock(&lock);
    struct block *b = find(pointer);
    about->device = b ? b->device : -2;
    about->type = !b ? cudaMemoryTypeUnregistered : b->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    about->devicePointer = b ? (void *)pointer : NULL;
    about->hostPointer = b && b->device < 0 ? (void *)pointer : NULL;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* Memory that no kernel wrote holds whatever was there before. Words that are no finite float reach the host as 0. */
static void copy_finite(void *to, const void *from, size_t size) {
    memmove(to, from, size);
    if (size % 4 || (uintptr_t)to % 4) return;
    uint32_t *word = to;
    for (size_t i = 0; i < size / 4; i++)
        if ((word[i] & 0x7f800000) == 0x7f800000) word[i] = 0;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyDeviceToHost)
        copy_finite(to, from, size);
    else if (kind != cudaMemcpyDeviceToDevice || size < COPIED_ON_DEVICE)
        memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    null_gpu_waits++;
    return cudaMemcpyAsync(to, from, size, kind, NULL);
}

cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
    static char constants[1 << 20];
    return *pointer = constants, cudaSuccess;
}

/* ---- kernels, streams, events */

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return null_gpu_launches++, cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **args) {
    return null_gpu_launches++, cudaSuccess;
}
int __cudaLaunchKernel(void) { return null_gpu_launches++, 0; }
int __cudaGetKernel(void **kernel, const void *f) { return *kernel = (void *)f, 0; }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *about, const void *f) {
    memset(about, 0, sizeof *about);
    about->ptxVersion = about->binaryVersion = capability();
    about->maxThreadsPerBlock = 1024, about->numRegs = 64;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned x) {
    return *n = 2, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { return *n = 2, cudaSuccess; }

static cudaError_t handle(void *place) { return *(size_t *)place = new_handle(), cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return handle(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return handle(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return handle(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return handle(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return handle(e); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { return *ms = 1, cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return null_gpu_waits++, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return null_gpu_waits++, cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return null_gpu_waits++, cudaSuccess; }

/* ---- graphs: one capture at a time, of one stream */

static cudaStream_t captured;
static int capturing;
static unsigned long long capture_id;

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    return captured = s, capturing = 1, capture_id++, cudaSuccess;
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *d, const cudaGraphEdgeData *e,
                                          size_t n, enum cudaStreamCaptureMode mode) {
    return cudaStreamBeginCapture(s, mode);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { return capturing = 0, handle(g); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = capturing && s == captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *g, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *n) {
    if (id) *id = capture_id;
    if (g) *g = (cudaGraph_t)0x30;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (n) *n = 0;
    return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { return handle(e); }
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) { return *n = 5, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { return null_gpu_launches++, cudaSuccess; }

/* ---- errors and entry points */

const char *cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e == cudaErrorNoDevice ? "cudaErrorNoDevice" : "cudaError";
}
const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "error of the null GPU";
}

static int succeed(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *found) {
    void *own = dlsym(RTLD_DEFAULT, name);
    if (found) *found = cudaDriverEntryPointSuccess;
    return *f = own ? own : (void *)succeed, cudaSuccess;
}
