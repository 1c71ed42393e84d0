//! A generator for host code that goes through rand.

use std::convert::Infallible;

use rand::TryRng;

use super::{Purpose, Stream, image_keys};

/// Philox as a sequential generator: rand's traits for shuffles, splits and
/// times. `stream` takes the image's place in the counter (an epoch, a step), and
/// the number of the block takes element and draw: 2^64 blocks of four words.
///
/// [`HostRng::position`] and [`HostRng::seek`] save and restore it.
#[derive(Clone, Debug)]
pub struct HostRng {
    keys: [u32; 4],
    purpose: Purpose,
    /// Words given out.
    position: u64,
    /// Block that holds `position`, valid unless `position % 4 == 0`.
    block: [u32; 4],
}

impl HostRng {
    /// At the start of a stream; `stream` is below [`super::IMAGES`].
    pub fn new(seed: u64, purpose: Purpose, stream: u64) -> Self {
        HostRng { keys: image_keys(seed, stream), purpose, position: 0, block: [0; 4] }
    }

    /// Number of 32-bit words given out so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on after `position` words from the start.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
        if !position.is_multiple_of(4) {
            self.fill_block();
        }
    }

    fn fill_block(&mut self) {
        let index = self.position / 4;
        let stream = Stream::new(self.keys, self.purpose, (index >> 32) as u32);
        self.block = stream.block(index as u32);
    }

    fn word(&mut self) -> u32 {
        let i = (self.position % 4) as usize;
        if i == 0 {
            self.fill_block();
        }
        self.position += 1;
        self.block[i]
    }

    /// A uniform in (0, 1), 52 bits.
    pub fn uniform(&mut self) -> f64 {
        let (low, high) = (self.word(), self.word());
        super::uniform_f64(low, high)
    }
}

impl TryRng for HostRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let (low, high) = (self.word(), self.word());
        Ok(low as u64 | (high as u64) << 32)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for out in out.chunks_mut(4) {
            out.copy_from_slice(&self.word().to_le_bytes()[..out.len()]);
        }
        Ok(())
    }
}
