// Counter-based random numbers with the bits of src/random: Philox4x32-10 (Salmon
// et al. 2011) and normals by an exact sequence of IEEE operations (Box & Muller
// 1958). Compiled with --fmad=false: every operation is rounded by itself.
#pragma once
#include "common.cuh"

/// What a random number is for, as in random::Purpose.
enum Purpose : Word { SAMPLE_START = 1, SAMPLE_STEP = 2, TRAIN_NOISE = 3, DROPOUT = 5 };

INLINE uint4 philox(uint4 c, uint2 k) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        Word high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        Word high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}

/// Words of elements 4 block .. 4 block + 3 of an image; keys: [4], its row.
INLINE uint4 random_words(const Word *keys, Purpose purpose, Word draw, Word block) {
    return philox(make_uint4(block, draw, keys[2], (Word)purpose << 24 | keys[3]),
                  make_uint2(keys[0], keys[1]));
}

/// The two normals of two words; the sequence of src/random/normal.rs.
INLINE float2 normal_pair(Word radius, Word angle) {
    constexpr Word TWO_THIRDS = 0x3f2aaaab;
    auto f32 = [](Word bits) { return __uint_as_float(bits); };
    const float unit = f32(0x2f800000); // 2^-32
    float u = fmaf(__uint2float_rn(radius), unit, 0.5f * unit);
    Word bits = __float_as_uint(u) - TWO_THIRDS;
    float exponent = __int2float_rn((int)bits >> 23);
    float f = f32((bits & 0x007fffffu) + TWO_THIRDS) - 1.0f;
    float log = f32(0xbe8f9401);
    log = fmaf(log, f, f32(0x3e9d862f));
    log = fmaf(log, f, f32(0xbe8f544d));
    log = fmaf(log, f, f32(0x3ea81c70));
    log = fmaf(log, f, f32(0xbecce9d8));
    log = fmaf(log, f, f32(0x3f000a27));
    log = fmaf(log, f, f32(0xbf2aaa7e));
    log = fmaf(log, f, f32(0x3f7fffeb));
    log = fmaf(log, f, f32(0xc0000000));
    float r = __fsqrt_rn(fmaf(exponent, f32(0xbfb17218), f * log));
    float t = __int2float_rn((int)(angle << 2)) * unit;
    float t2 = t * t;
    float sine = fmaf(f32(0xbb97ad0e), t2, f32(0x3da33591));
    sine = r * (t * fmaf(fmaf(sine, t2, f32(0xbf255df6)), t2, f32(0x3fc90fdb)));
    float cosine = fmaf(f32(0xbca73c5f), t2, f32(0x3e81d82c));
    cosine = r * fmaf(fmaf(cosine, t2, f32(0xbf9de9ce)), t2, f32(0x3f800000));
    cosine = f32(__float_as_uint(cosine) ^ (angle & 0x80000000u));
    return angle & 0x40000000u ? make_float2(sine, cosine) : make_float2(cosine, sine);
}

/// Normals of elements 4 block .. 4 block + 3.
INLINE Group normals(const Word *keys, Purpose purpose, Word draw, Word block) {
    uint4 w = random_words(keys, purpose, draw, block);
    float2 a = normal_pair(w.x, w.y), b = normal_pair(w.z, w.w);
    return {a.x, a.y, b.x, b.y};
}
