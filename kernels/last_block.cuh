// The last of several blocks: what blocks of one launch made in parts is combined in that launch.
//
// Blocks that share a result write their parts to memory and count up a word that is theirs
// together. The block that counts last sees all parts and combines them in the order of
// the parts, so that which block came last changes no bits. Counters belong to the stream
// (Device::counters); they are 0 whenever no kernel runs.
#pragma once
#include "common.cuh"

/// Whether this block is the last of `blocks` that count at `counter`; all threads get it, and
/// all must call it. The last one sees what the others wrote before they counted, and leaves
/// the counter at 0.
INLINE bool is_last_block(Word *counter, Word blocks) {
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        // What the block wrote comes before the count, what it reads afterwards behind it.
        __threadfence();
        last = atomicInc(counter, blocks - 1) == blocks - 1;
        __threadfence();
    }
    return __syncthreads_or(last);
}
