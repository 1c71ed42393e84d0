//! The table that finds races between blocks, read by read and write by write.

use softgpu::memory::race::{Accessor, Conflict, read, write};

fn of(block: u64) -> Accessor {
    Accessor { block, epoch: 1, strong: false, read_only: false }
}

#[test]
fn blocks_that_read_and_write_a_half_of_a_word_each_do_not_race() {
    let (entry, _) = read(0, of(1), 0b0011);
    let (entry, _) = read(entry, of(2), 0b1100);
    let (entry, first) = write(entry, of(1), 0b0011);
    let (_, second) = write(entry, of(2), 0b1100);
    assert_eq!((first, second), (None, None));
}

#[test]
fn what_two_blocks_read_neither_may_write() {
    let (entry, _) = read(0, of(1), 0b1111);
    let (entry, _) = read(entry, of(2), 0b0011);
    assert_eq!(write(entry, of(1), 0b0011).1, Some(Conflict::Reads));
    assert_eq!(write(entry, of(2), 0b0011).1, Some(Conflict::Reads));
}
