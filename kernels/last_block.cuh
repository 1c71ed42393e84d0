// Blocks that share a result: what they made in parts is combined in the launch that made it.
//
//   last   The blocks write their parts to memory and count up a word that is theirs
//          together. The block that counts last sees all parts and combines them in the order
//          of the parts. For many parts.
//   turns  The blocks draw numbers, which say whose part a block makes, and add to the
//          result one after the other in the order of the parts. No memory, but each
//          waits for those before it, which have started. For few parts.
//
// Which block comes when changes no bits. Counters belong to the stream (Device::counters);
// they are 0 whenever no kernel runs.
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

/// How many of the `blocks` that draw at `counter` drew before this one. All threads get it, by
/// way of a word of shared memory, and all must call it. Leaves the counter at 0 at last.
INLINE Word draw_number(Word *counter, Word blocks, Word *shared) {
    if (threadIdx.x == 0) *shared = atomicInc(counter, blocks - 1);
    __syncthreads();
    Word number = *shared;
    __syncthreads();
    return number;
}

/// Waits until `turn` is this block's number; what the block before wrote is then seen.
INLINE void await_turn(const Word *turn, Word number) {
    if (threadIdx.x == 0) {
        while (*(const volatile Word *)turn != number) {}
        __threadfence();
    }
    __syncthreads();
}

/// Gives the turn to the next of `blocks`, or back to the first.
INLINE void pass_turn(Word *turn, Word number, Word blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *(volatile Word *)turn = number + 1 < blocks ? number + 1 : 0;
    }
}
