//! Which image stands at which position of a run.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::random::{HostRng, Purpose};

/// The order of the data over a run: every epoch is a permutation of all
/// images, drawn from the seed and the epoch's number alone.
///
/// Position p lies in epoch p / n, at place p mod n of its permutation; any
/// position can be asked for, so a run resumes at its cursor without replaying
/// what came before. Only the current epoch's permutation is held.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    epoch: Option<u64>,
    permutation: Vec<u32>,
}

impl Order {
    /// An order over `len` images, at least 1 and fewer than 2^32.
    pub fn new(len: usize, seed: u64) -> Order {
        assert!(len > 0, "an order needs an image");
        let len = u32::try_from(len).expect("fewer than 2^32 images");
        Order { seed, epoch: None, permutation: (0..len).collect() }
    }

    /// The epoch of `position` and the index of its image. Draws the epoch's
    /// permutation where it is not the one held; allocates nothing.
    pub fn at(&mut self, position: u64) -> (u64, usize) {
        let n = self.permutation.len() as u64;
        let (epoch, place) = (position / n, position % n);
        if self.epoch != Some(epoch) {
            for (index, slot) in self.permutation.iter_mut().enumerate() {
                *slot = index as u32;
            }
            self.permutation.shuffle(&mut HostRng::new(self.seed, Purpose::Shuffle, epoch));
            self.epoch = Some(epoch);
        }
        (epoch, self.permutation[place as usize] as usize)
    }

    /// The images of positions `start`, `start + 1`, ... in `indices`; a batch
    /// may reach over the end of an epoch.
    pub fn fill(&mut self, start: u64, indices: &mut [usize]) {
        for (position, index) in (start..).zip(indices) {
            *index = self.at(position).1;
        }
    }

    /// Whether the image at `position` of the run is mirrored: a fair coin of
    /// the seed and the position, so that an image is seen both ways in time.
    pub fn flip(&self, position: u64) -> bool {
        HostRng::new(self.seed, Purpose::Augment, position).next_u32() >> 31 == 1
    }
}
