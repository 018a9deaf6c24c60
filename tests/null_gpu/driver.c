/* The CUDA driver, as far as Triton and torch.compile call it: modules load, kernels start, nothing is computed. */
#include <cuda.h>
#include <string.h>

#include "null_gpu.h"
#undef cuDeviceGetAttribute

extern int cudaDeviceGetAttribute(int *, int, int);

static CUresult handle(void *place) { return *(size_t *)place = new_handle(), CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int *n) { return *n = device_count(), CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { return *v = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { return *d = i, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) { return *c = (CUcontext)0x10, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return *c = (CUcontext)0x10, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) { return *flags = 0, *active = 1, CUDA_SUCCESS; }
CUresult cuModuleLoad(CUmodule *m, const char *file) { return handle(m); }
CUresult cuModuleLoadData(CUmodule *m, const void *image) { return handle(m); }
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *o, void **v) { return handle(m); }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) { return handle(f); }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { return *n = 4, CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int b, size_t s) { return *n = 2, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 1024, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **text) { return *text = "error of the null GPU", CUDA_SUCCESS; }
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **a, void **b) { return null_gpu_launches++, CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned s,
                        CUstream stream, void **args, void **extra) {
    return null_gpu_launches++, CUDA_SUCCESS;
}

/* Attributes have the runtime's numbers. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice d) {
    switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return *value = 65536, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return *value = 1980000, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return *value = 2619000, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return *value = 5120, CUDA_SUCCESS;
    default: return cudaDeviceGetAttribute(value, which, d);
    }
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction f) {
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
    return CUDA_SUCCESS;
}

/* Triton asks whether a kernel may touch a pointer. Memory of the host that is not pinned it may not. */
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
    if (!is_device_visible_memory((void *)pointer)) return CUDA_ERROR_INVALID_VALUE;
    if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER || which == CU_POINTER_ATTRIBUTE_HOST_POINTER)
        *(CUdeviceptr *)value = pointer;
    else
        *(int *)value = 0;
    return CUDA_SUCCESS;
}
