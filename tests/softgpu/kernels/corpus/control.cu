// Divergence, loops, calls, recursion, tables, local arrays.
#include <cstdint>

extern "C" __global__ void collatz(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int steps = 0;
    unsigned x = a[i];
    while (x != 1) {
        if (x & 1) x = 3 * x + 1;
        else x >>= 1;
        if (++steps > 1000) break;
    }
    out[i] = steps;
}

extern "C" __global__ void switched(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = a[i], r = 0;
    switch (x % 11) {
        case 0: r = x + 1; break;
        case 1: r = x * 3; break;
        case 2: r = x ^ 0x55; // falls through
        case 3: r += x - 7; break;
        case 4: for (int k = 0; k < x % 5; k++) r += k * x; break;
        case 5: r = -x; break;
        case 6: r = x / 3; break;
        case 7: r = x % 13; break;
        case 8: r = x << 2; break;
        default: r = 42;
    }
    out[i] = r;
}

extern "C" __global__ void nested_loops(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int s = 0;
    for (int j = 0; j < a[i] % 7; j++) {
        for (int k = j; k < a[i] % 5; k++) {
            if ((j + k + i) % 3 == 0) continue;
            if (s > 100) goto done;
            s += j * 10 + k;
        }
    }
done:
    out[i] = s;
}

__device__ __noinline__ int gcd_of(int a, int b) {
    while (b) { int t = a % b; a = b; b = t; }
    return a;
}

struct Pair { int64_t first; int second; };

__device__ __noinline__ Pair pair_of(Pair p, short extra) {
    p.first += extra;
    p.second = gcd_of(p.second, 12 + extra);
    return p;
}

extern "C" __global__ void called(int64_t* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Pair p = {a[i], a[i] + 5};
    if (a[i] & 1) p = pair_of(p, (short)(a[i] % 9));
    else p.first = gcd_of(a[i], 30);
    out[i] = p.first * 1000 + p.second;
}

__device__ __noinline__ unsigned ackermann_like(unsigned m, unsigned n) {
    if (m == 0) return n + 1;
    if (n == 0) return ackermann_like(m - 1, 1);
    return ackermann_like(m - 1, n % 3) + n;
}

extern "C" __global__ void recursive(unsigned* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = ackermann_like(a[i] % 6, a[i] % 4);
}

extern "C" __global__ void local_array(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v[16];
    for (int k = 0; k < 16; k++) v[k] = a[(i + k) % n] * (k + 1);
    // Insertion sort: data-dependent indices keep the array in memory.
    for (int k = 1; k < 16; k++) {
        int x = v[k], j = k;
        while (j > 0 && v[j - 1] > x) { v[j] = v[j - 1]; j--; }
        v[j] = x;
    }
    out[i] = v[a[i] & 15] - v[0];
}

__constant__ int primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ int offsets[4] = {100, 200, 300, 400};

extern "C" __global__ void tables(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = primes[a[i] & 7] * offsets[a[i] & 3];
}

extern "C" __global__ void early_exit(int* out, const int* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (a[i] % 3 == 0) return;
    for (int k = 0; k < 100; k++) {
        if (k * 7 > a[i] % 300) return;
        out[i] += k;
    }
}

struct Params { int a; float b; double c; short d[5]; unsigned char e; };

extern "C" __global__ void by_value(double* out, Params p, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = p.a + p.b * p.c + p.d[i % 5] + p.e;
}

extern "C" __global__ void spin_with_lock(int* counter, int* lock, int rounds) {
    for (int k = 0; k < rounds; k++) {
        bool done = false;
        while (!done) {
            if (atomicCAS(lock, 0, 1) == 0) {
                __threadfence();
                *(volatile int*)counter += 1;
                __threadfence();
                atomicExch(lock, 0);
                done = true;
            }
        }
    }
}
