//! The network's weights: names as in the checkpoint, shapes, offsets in the
//! parameter arena, how they are stored on disk and how they are initialised.

/// How a weight's memory layout differs from the checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLayout {
    /// The same: vectors, linear `[out, in]`, embedding tables `[rows, dim]`.
    Same,
    /// On disk `[out, in/groups, kh, kw]`, in memory `[out, kh, kw, in/groups]`.
    Convolution,
}

/// Initial values of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in `[-bound, bound)`.
    Uniform(f32),
    /// Normal with mean 0.
    Normal(f32),
    /// All equal.
    Constant(f32),
}

/// One weight.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name in the checkpoint, e.g. `down_blocks.0.resnets.0.conv1.weight`.
    pub name: String,
    /// Shape in the checkpoint.
    pub disk_shape: Vec<usize>,
    /// Relation of memory to disk.
    pub layout: DiskLayout,
    /// Initial values.
    pub init: Init,
    /// Whether the optimizer changes it.
    pub trainable: bool,
    /// First element in the parameter arena, a multiple of [`ALIGNMENT`].
    pub offset: usize,
}

/// Offsets are multiples of this many elements (one cache line).
pub const ALIGNMENT: usize = 16;

impl Parameter {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.disk_shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Shape in memory.
    pub fn shape(&self) -> Vec<usize> {
        match self.layout {
            DiskLayout::Same => self.disk_shape.clone(),
            DiskLayout::Convolution => {
                let s = &self.disk_shape;
                vec![s[0], s[2], s[3], s[1]]
            }
        }
    }

    /// Reorders values from disk order to memory order.
    pub fn from_disk(&self, disk: &[f32], memory: &mut [f32]) {
        self.permute(disk, memory, true);
    }

    /// Reorders values from memory order to disk order.
    pub fn to_disk(&self, memory: &[f32], disk: &mut [f32]) {
        self.permute(memory, disk, false);
    }

    fn permute(&self, from: &[f32], to: &mut [f32], into_memory: bool) {
        assert_eq!(from.len(), self.len());
        assert_eq!(to.len(), self.len());
        match self.layout {
            DiskLayout::Same => to.copy_from_slice(from),
            DiskLayout::Convolution => {
                let [o, i, h, w] = self.disk_shape[..] else { unreachable!("4 axes") };
                for oo in 0..o {
                    for ii in 0..i {
                        for k in 0..h * w {
                            let disk = (oo * i + ii) * h * w + k;
                            let memory = (oo * h * w + k) * i + ii;
                            if into_memory {
                                to[memory] = from[disk];
                            } else {
                                to[disk] = from[memory];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All weights of a network, in the order in which the model declares them.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// The weights.
    pub entries: Vec<Parameter>,
    len: usize,
}

impl Parameters {
    pub(super) fn push(
        &mut self,
        name: &str,
        disk_shape: &[usize],
        layout: DiskLayout,
        init: Init,
        trainable: bool,
    ) -> &Parameter {
        let offset = self.len;
        let p = Parameter {
            name: name.to_string(),
            disk_shape: disk_shape.to_vec(),
            layout,
            init,
            trainable,
            offset,
        };
        self.len = offset + p.len().next_multiple_of(ALIGNMENT);
        self.entries.push(p);
        self.entries.last().expect("just pushed")
    }

    /// Elements of the arena, padding included.
    pub fn arena_len(&self) -> usize {
        self.len
    }

    /// Number of parameters, without padding.
    pub fn count(&self) -> usize {
        self.entries.iter().map(Parameter::len).sum()
    }

    /// The weight of that name.
    pub fn find(&self, name: &str) -> Option<&Parameter> {
        self.entries.iter().find(|p| p.name == name)
    }

    /// Maximal runs `(start, len)` of trainable elements in the arena, padding
    /// inside a run included (its gradients are zero).
    pub fn trainable_ranges(&self) -> Vec<(usize, usize)> {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for p in self.entries.iter().filter(|p| p.trainable) {
            let len = p.len().next_multiple_of(ALIGNMENT);
            match ranges.last_mut() {
                Some((start, l)) if *start + *l == p.offset => *l += len,
                _ => ranges.push((p.offset, len)),
            }
        }
        ranges
    }
}
