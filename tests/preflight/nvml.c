/* A driver's library with two GPUs, for machines that have none: the same calls, other answers.
 *
 * GPU 1 computes for the process that asks, which holds most of its memory; eighteen NVLink
 * connections are up on each. DRIVER_CUDA is the CUDA that it runs, such as 12040. DRIVER_ERRORS is
 * the number of errors in the memory of GPU 1, whose bad rows wait for a reset then.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
static const unsigned long long GIB = 1ULL << 30;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int instance, compute_instance;
} process_t;

static int number(void *device) { return (int)(intptr_t)device - 1; }

int nvmlInitWithFlags(unsigned int flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "Other"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int size)
{
    snprintf(text, size, "550.54.15");
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = atoi(getenv("DRIVER_CUDA"));
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = 2;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    *device = (void *)(intptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int size)
{
    snprintf(text, size, "NVIDIA H100 80GB HBM3");
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned int size)
{
    snprintf(text, size, "GPU-%d", number(device));
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory)
{
    memory->total = 80 * GIB;
    memory->used = number(device) ? 70 * GIB : 0;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    *major = 9;
    *minor = 0;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(void *device, unsigned int link, unsigned int *active)
{
    *active = 1;
    return link < 18 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned int *generation)
{
    *generation = 5;
    return SUCCESS;
}

int nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned int *width)
{
    *width = 16;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(void *device, unsigned int kind, unsigned int counter,
                                unsigned long long *count)
{
    if (!getenv("DRIVER_ERRORS"))
        return NOT_SUPPORTED;
    *count = number(device) ? atoi(getenv("DRIVER_ERRORS")) : 0;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *has_failed)
{
    if (!getenv("DRIVER_ERRORS"))
        return NOT_SUPPORTED;
    *corrected = *uncorrected = *has_failed = 0;
    *pending = number(device);
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned int *level)
{
    *level = 50;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *found)
{
    if (!number(device)) {
        *count = 0;
        return SUCCESS;
    }
    if (*count == 0) {
        *count = 1;
        return INSUFFICIENT_SIZE;
    }
    *count = 1;
    found[0] = (process_t){.pid = getpid(), .used = 69 * GIB};
    return SUCCESS;
}
