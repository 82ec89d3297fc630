// A checked build is compiled as for the thread sanitizer, which then calls these before every access: each goes to the
// emulator, with its address, its size and its place in the text. There is no other run-time library.
#pragma once

#define SWARA_CALLED extern "C" __attribute__((used, noinline, no_sanitize("thread"))) void
#define SWARA_ACCESS(name, bytes, how)                                                                            \
    SWARA_CALLED __tsan_##name(void* p) {                                                                         \
        swara::runtime->access(swara::current, p, bytes, swara::how, __builtin_return_address(0), -1);            \
    }
#define SWARA_ACCESSES(bytes)                        \
    SWARA_ACCESS(read##bytes, bytes, READ | swara::ALIGNED)   \
    SWARA_ACCESS(write##bytes, bytes, WRITE | swara::ALIGNED) \
    SWARA_ACCESS(unaligned_read##bytes, bytes, READ) \
    SWARA_ACCESS(unaligned_write##bytes, bytes, WRITE)
SWARA_ACCESSES(1)
SWARA_ACCESSES(2)
SWARA_ACCESSES(4)
SWARA_ACCESSES(8)
SWARA_ACCESSES(16)
#undef SWARA_ACCESSES
#undef SWARA_ACCESS

#define SWARA_RANGE(name, how)                                                                                    \
    SWARA_CALLED __tsan_##name##_range(void* p, unsigned long bytes) {                                            \
        swara::runtime->access(swara::current, p, bytes, swara::how, __builtin_return_address(0), -1);            \
    }
SWARA_RANGE(read, READ)
SWARA_RANGE(write, WRITE)
#undef SWARA_RANGE

// Where clang reports a copy of structures.
extern "C" __attribute__((used, noinline, no_sanitize("thread"))) void* __tsan_memcpy(void* dst, const void* src, unsigned long bytes) {
    swara::runtime->access(swara::current, src, bytes, swara::READ, __builtin_return_address(0), -1);
    swara::runtime->access(swara::current, dst, bytes, swara::WRITE, __builtin_return_address(0), -1);
    return __builtin_memcpy(dst, src, bytes);
}
extern "C" __attribute__((used, noinline, no_sanitize("thread"))) void* __tsan_memset(void* dst, int value, unsigned long bytes) {
    swara::runtime->access(swara::current, dst, bytes, swara::WRITE, __builtin_return_address(0), -1);
    return __builtin_memset(dst, value, bytes);
}

SWARA_CALLED __tsan_init() {}
SWARA_CALLED __tsan_func_entry(void*) {}
SWARA_CALLED __tsan_func_exit(void*) {}
#undef SWARA_CALLED
