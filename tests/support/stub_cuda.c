/* A libcuda.so.1 for the real cuda-bindings: memory is the host's, and calls are written to stderr. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef void *P;
#define SAY(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), 0)

int cuInit(unsigned flags) { return SAY("init %u", flags); }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGet(int *d, int number) { *d = number; return 0; }
int cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Stub"); return 0; }
int cuDeviceGetAttribute(int *v, int kind, int d) { *v = kind == 75 ? 9 : kind == 76 ? 0 : -1; return 0; }
int cuDevicePrimaryCtxRetain(P *c, int d) { *c = (P)0x1234; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return SAY("release %d", d); }
int cuCtxPushCurrent_v2(P c) { return c == (P)0x1234 ? 0 : 201; }
int cuCtxPopCurrent_v2(P *c) { *c = (P)0x1234; return 0; }
int cuStreamCreate(P *s, unsigned flags) { *s = (P)0x77; return SAY("stream %u", flags); }
int cuStreamDestroy_v2(P s) { return SAY("destroy %p", s); }
int cuStreamSynchronize(P s) { return SAY("wait %p", s); }
int cuMemAlloc_v2(u64 *p, size_t n) { if (n > 1u << 30) return 2; *p = (u64)malloc(n); return 0; }
int cuMemFree_v2(u64 p) { free((P)p); return 0; }
int cuMemHostAlloc(P *p, size_t n, unsigned flags) { *p = malloc(n); return SAY("pinned %zu %u", n, flags); }
int cuMemFreeHost(P p) { free(p); return 0; }
int cuMemcpyHtoDAsync_v2(u64 d, P s, size_t n, P st) { memcpy((P)d, s, n); return SAY("up %zu %p", n, st); }
int cuMemcpyDtoHAsync_v2(P d, u64 s, size_t n, P st) { memcpy(d, (P)s, n); return SAY("down %zu %p", n, st); }
int cuMemcpyDtoDAsync_v2(u64 d, u64 s, size_t n, P st) { memcpy((P)d, (P)s, n); return SAY("copy %zu %p", n, st); }
int cuMemsetD8Async(u64 d, unsigned char v, size_t n, P st) { memset((P)d, v, n); return SAY("set %u %zu %p", v, n, st); }
int cuModuleLoadData(P *m, const char *image) { *m = (P)0x55; return SAY("module %zu", strlen(image)); }
int cuModuleUnload(P m) { return SAY("unload %p", m); }
int cuModuleGetFunction(P *f, P m, const char *name) { *f = (P)0x66; return SAY("function %s of %p", name, m); }
int cuLaunchKernel(P f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, P st, P *args, P *extra) {
  SAY("launch %p %u %u %u %u %u %u %u %p %p", f, gx, gy, gz, bx, by, bz, shared, st, (P)extra);
  return SAY("arguments %lu %lu %u", *(u64 *)args[0], *(u64 *)args[8], *(unsigned *)args[9]);
}
int cuStreamBeginCapture_v2(P s, int mode) { return SAY("begin %p %d", s, mode); }
int cuStreamEndCapture(P s, P *graph) { *graph = (P)0x88; return SAY("end %p", s); }
int cuGraphInstantiateWithFlags(P *e, P graph, unsigned long long flags) {
  *e = (P)0x99;
  return SAY("instantiate %p %llu", graph, flags);
}
int cuGraphDestroy(P g) { return SAY("drop %p", g); }
int cuGraphExecDestroy(P g) { return SAY("free %p", g); }
int cuGraphLaunch(P g, P s) { return SAY("replay %p %p", g, s); }

int cuGetProcAddress_v2(const char *name, P *f, int version, u64 flags, int *status) {
  char full[128];
  P self = dlopen("libcuda.so.1", RTLD_NOW);
  if (!strcmp(name, "cuGraphInstantiate")) name = "cuGraphInstantiateWithFlags";
  snprintf(full, sizeof full, "%s_v2", name);
  *f = dlsym(self, full);
  if (!*f) *f = dlsym(self, name);
  if (status) *status = *f ? 0 : 1;
  return 0;
}
int cuGetProcAddress(const char *name, P *f, int version, u64 flags) {
  return cuGetProcAddress_v2(name, f, version, flags, 0);
}
