//! UCI optical digits, inside the program; see digits.txt for the credit.

use std::io::Read;

use flate2::read::GzDecoder;

use super::Raw;

const IMAGES: usize = 1797;
const SIDE: usize = 8;

/// Pixels then labels, packed; digits.txt says how.
const PACKED: &[u8] = include_bytes!("digits.gz");

pub(super) fn read() -> Raw {
    let mut pixels = Vec::with_capacity(IMAGES * (SIDE * SIDE + 1));
    GzDecoder::new(PACKED).read_to_end(&mut pixels).expect("the packed digits are whole");
    let labels = pixels.split_off(IMAGES * SIDE * SIDE);
    Raw {
        pixels,
        shape: [IMAGES, SIDE, SIDE, 1],
        labels: Some(labels.into_iter().map(u32::from).collect()),
        classes: Vec::new(),
        levels: 17,
    }
}
