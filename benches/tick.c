/* The least that can be started: says by CLOCK_MONOTONIC when it is about to end, in nanoseconds, and ends.
   No C library, so that nothing but the start itself is measured. */
#if defined(__x86_64__)
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
enum { WRITE = 1, EXIT = 60, CLOCK_GETTIME = 228 };
#elif defined(__aarch64__)
static long call(long number, long a, long b, long c)
{
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
enum { WRITE = 64, EXIT = 93, CLOCK_GETTIME = 113 };
#endif

void _start(void)
{
    long time[2];
    char digits[20];
    int at = sizeof digits;
    call(CLOCK_GETTIME, 1, (long)time, 0);
    unsigned long nanoseconds = (unsigned long)time[0] * 1000000000ul + (unsigned long)time[1];
    digits[--at] = '\n';
    do {
        digits[--at] = (char)('0' + nanoseconds % 10);
        nanoseconds /= 10;
    } while (nanoseconds && at);
    call(WRITE, 1, (long)(digits + at), (long)sizeof digits - at);
    call(EXIT, 0, 0, 0);
    __builtin_unreachable();
}
