//! Clean images as noising and loss read them: given as values, or picked from a set.

use crate::ops::noising::Pick;

/// Where an op's clean images come from.
pub struct Images<'a> {
    /// `[n, len]`, where they are given.
    given: &'a [f32],
    picked: Option<Picked<'a>>,
}

struct Picked<'a> {
    pick: Pick,
    set: Set<'a>,
    /// `[n, 2]`
    picks: &'a [u32],
    /// Value of each byte.
    values: [f32; 256],
}

/// The images of a set, `[rows, len]`.
#[derive(Clone, Copy)]
pub enum Set<'a> {
    /// Of [`Pick::levels`] levels.
    Bytes(&'a [u8]),
    /// In model range.
    Values(&'a [f32]),
}

impl<'a> Images<'a> {
    /// Values `[n, len]`.
    pub fn given(x0: &'a [f32]) -> Self {
        Images { given: x0, picked: None }
    }

    /// Images of a set by `picks [n, 2]`.
    pub fn picked(pick: Pick, set: Set<'a>, picks: &'a [u32]) -> Self {
        let values = std::array::from_fn(|byte| pick.value(byte as u8));
        Images { given: &[], picked: Some(Picked { pick, set, picks, values }) }
    }

    /// Elements `from .. from + buffer.len()` of image `image` of the batch, each
    /// `len` long; `buffer` is where they are gathered if need be.
    pub(super) fn part<'b>(
        &'b self,
        len: usize,
        image: usize,
        from: usize,
        buffer: &'b mut [f32],
    ) -> &'b [f32] {
        match &self.picked {
            None => &self.given[image * len + from..][..buffer.len()],
            Some(picked) => {
                picked.gather(len, image, from, buffer);
                buffer
            }
        }
    }
}

impl Picked<'_> {
    fn gather(&self, len: usize, image: usize, from: usize, out: &mut [f32]) {
        let Pick { rows, width, channels, .. } = self.pick;
        let start = (self.picks[2 * image] as usize).min(rows - 1) * len;
        let mirrored = self.picks[2 * image + 1] != 0;
        let row = width * channels;
        let at = |e: usize| match mirrored {
            false => e,
            true => {
                let (left, channel) = (e % row, e % channels);
                e - left + (width - 1 - left / channels) * channels + channel
            }
        };
        match self.set {
            Set::Bytes(bytes) => {
                let bytes = &bytes[start..start + len];
                for (e, out) in (from..).zip(out) {
                    *out = self.values[usize::from(bytes[at(e)])];
                }
            }
            Set::Values(values) => {
                let values = &values[start..start + len];
                for (e, out) in (from..).zip(out) {
                    *out = values[at(e)];
                }
            }
        }
    }
}
