/* What the parts of the null GPU share. */
#pragma once
#include <stddef.h>

size_t new_handle(void);         /* a number that no other handle has */
int capability(void);            /* 90 for sm_90 */
int device_count(void);          /* after CUDA_VISIBLE_DEVICES */
int is_device_visible_memory(const void *pointer); /* device memory or pinned host memory */
extern long null_gpu_launches;   /* kernels started; read it with ctypes.CDLL(None) */
extern long null_gpu_waits;      /* times the host waited for the device */
