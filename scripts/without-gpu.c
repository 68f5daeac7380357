/* A library in the place of NVIDIA's driver: a device of capability 9.0 with 80 GB, whose memory is the host's and on which nothing
 * is computed. It has the calls that CubeCL 0.10 makes and refuses launches that a device would refuse. The directory
 * that STANDIN_DIR names gets the assembly of each module, and a report as the program ends.
 *
 * scripts/without-gpu.py builds it and runs a program on it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500 };

typedef uint64_t Pointer;

static const size_t TOTAL = 85017624576;
static const int SHARED = 232448;
static const int PARAMETERS = 32764;

typedef struct Function {
    char name[256];
    int module, parameters;
    long launches, grid, shared;
    unsigned units;
    struct Function *next;
} Function;

typedef struct {
    char *ptx;
    int number;
} Module;

typedef struct Span {
    Pointer at;
    size_t size;
    struct Span *next;
} Span;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Function *functions;
static Span *spans;
static size_t reserved, peak;
static atomic_long copies[2]; /* to the device, from it */
static int modules;

static FILE *file(const char *name) {
    const char *directory = getenv("STANDIN_DIR");
    if (!directory) return NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return fopen(path, "w");
}

static void report(void) {
    FILE *out = file("report.tsv");
    if (!out) return;
    fprintf(out, "%zu\t%ld\t%ld\n", peak, copies[0], copies[1]);
    for (Function *f = functions; f; f = f->next)
        fprintf(out, "%04d\t%s\t%ld\t%ld\t%u\t%ld\t%d\n", f->module, f->name, f->launches, f->grid, f->units, f->shared, f->parameters);
    fclose(out);
}

int cuInit(unsigned flags) {
    static int before;
    if (!before) before = !atexit(report);
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int number) { return *device = 0, number ? INVALID_DEVICE : SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = TOTAL, SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const int known[][2] = {
        {1, 1024},   {2, 1024}, {3, 1024},  {4, 64},  {5, 2147483647}, {6, 65535}, /* units of a block, blocks of a grid */
        {7, 65535},  {10, 32},  {16, 132},  {75, 9},  {76, 0},         {97, 232448}, /* warp, multiprocessors, capability, shared memory */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) return *value = known[i][1], SUCCESS;
    return INVALID_VALUE;
}

/* NVRTC asks for this one, and does without it. */
int cuGetExportTable(const void **table, const void *id) { return *table = NULL, NOT_FOUND; }

int cuGetErrorString(int error, const char **text) {
    return *text = error == OUT_OF_MEMORY ? "out of memory" : error == INVALID_VALUE ? "invalid argument" : "an error", SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuStreamCreate(void **stream, unsigned flags) { return *stream = (void *)1, SUCCESS; }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return *event = (void *)1, SUCCESS; }
int cuEventRecord(void *event, void *stream) { return SUCCESS; }
int cuEventSynchronize(void *event) { return SUCCESS; }
int cuEventDestroy_v2(void *event) { return SUCCESS; }

/* Memory that costs nothing until it is written to. */
static void *map(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

int cuMemAlloc_v2(Pointer *pointer, size_t size) {
    void *at = reserved + size > TOTAL ? NULL : map(size);
    if (!at) return OUT_OF_MEMORY;
    Span *span = malloc(sizeof *span);
    pthread_mutex_lock(&lock);
    *span = (Span){(Pointer)at, size, spans};
    spans = span;
    reserved += size;
    if (reserved > peak) peak = reserved;
    pthread_mutex_unlock(&lock);
    return *pointer = (Pointer)at, SUCCESS;
}

int cuMemFree_v2(Pointer pointer) {
    int result = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (Span **at = &spans; *at; at = &(*at)->next)
        if ((*at)->at == pointer) {
            Span *span = *at;
            *at = span->next;
            munmap((void *)pointer, span->size);
            reserved -= span->size;
            free(span);
            result = SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

int cuMemAllocAsync(Pointer *pointer, size_t size, void *stream) { return cuMemAlloc_v2(pointer, size); }
int cuMemFreeAsync(Pointer pointer, void *stream) { return cuMemFree_v2(pointer); }
int cuMemAllocHost_v2(void **pointer, size_t size) { return (*pointer = map(size)) ? SUCCESS : OUT_OF_MEMORY; }
int cuMemFreeHost(void *pointer) { return SUCCESS; }

static int copy(int from_device, void *to, const void *from, size_t size) {
    copies[from_device]++;
    memcpy(to, from, size);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t size, void *stream) { return copy(0, (void *)to, from, size); }
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, void *stream) { return copy(1, to, (void *)from, size); }

/* CUDA_MEMCPY2D, as cuda.h has it. */
typedef struct {
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    Pointer from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    int to_type;
    void *to_host;
    Pointer to_device;
    void *to_array;
    size_t to_pitch, width, height;
} Copy;

int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) {
    const char *from = copy->from_type == 1 ? copy->from_host : (void *)copy->from_device;
    char *to = copy->to_type == 1 ? copy->to_host : (void *)copy->to_device;
    copies[copy->from_type != 1]++;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    return SUCCESS;
}

int cuModuleLoadData(Module **out, const char *ptx) {
    Module *module = malloc(sizeof *module);
    module->ptx = strdup(ptx);
    pthread_mutex_lock(&lock);
    module->number = modules++;
    pthread_mutex_unlock(&lock);
    char name[32];
    snprintf(name, sizeof name, "%04d.ptx", module->number);
    FILE *copy = file(name);
    if (copy) fputs(ptx, copy), fclose(copy);
    return *out = module, SUCCESS;
}

/* Bytes of the parameters between an entry's parentheses: `.param .u64 name`, `.param .align 8 .b8 name[104]`. */
static int parameters(const char *at, const char *end) {
    int bytes = 0;
    while ((at = strstr(at, ".param")) && at < end) {
        const char *line = at + strcspn(at, ",\n"), *align = strstr(at, ".align "), *bracket = memchr(at, '[', line - at);
        int size = bracket ? atoi(bracket + 1) : memmem(at, line - at, "64", 2) ? 8 : 4;
        int step = bracket && align && align < line ? atoi(align + 7) : size;
        bytes = (bytes + step - 1) / step * step + size;
        at = line;
    }
    return bytes;
}

int cuModuleGetFunction(Function **out, Module *module, const char *name) {
    char entry[512];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    const char *at = strstr(module->ptx, entry);
    if (!at) return NOT_FOUND;
    Function *function = calloc(1, sizeof *function);
    snprintf(function->name, sizeof function->name, "%s", name);
    function->module = module->number;
    function->parameters = parameters(at, strchr(at, ')'));
    pthread_mutex_lock(&lock);
    function->next = functions;
    functions = function;
    pthread_mutex_unlock(&lock);
    return *out = function, SUCCESS;
}

int cuFuncSetAttribute(Function *function, int attribute, int value) {
    return attribute == 8 && value > SHARED ? INVALID_VALUE : SUCCESS; /* dynamic shared memory */
}

int cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    unsigned long units = (unsigned long)bx * by * bz;
    if (!gx || !gy || !gz || gx > 2147483647 || gy > 65535 || gz > 65535 || !units || units > 1024 || bz > 64 ||
        shared > (unsigned)SHARED || f->parameters > PARAMETERS)
        return INVALID_VALUE;
    long grid = (long)gx * gy * gz;
    pthread_mutex_lock(&lock);
    f->launches++;
    if (grid > f->grid) f->grid = grid;
    if (shared > f->shared) f->shared = shared;
    f->units = units;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *at, const uint64_t *shape, const uint64_t *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    int fits = rank >= 1 && rank <= 5 && (uintptr_t)at % 16 == 0;
    for (unsigned i = 0; i + 1 < rank; i++) fits &= strides[i] % 16 == 0;
    for (unsigned i = 0; i < rank; i++) fits &= box[i] >= 1 && box[i] <= 256;
    return memset(map, 0, 128), fits ? SUCCESS : INVALID_VALUE;
}
