//! What is measured: the convolutions and linear layers of the ddpm-cifar10
//! U-Net at batch 16 and 1.

use langevin::backend::cpu::isa::Isa;
use langevin::backend::cpu::{Pool, conv2d, linear};
use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
use langevin::ops::linear::Linear;
use langevin::ops::pack::{PackFor, PackWeight};
use langevin::plan::Mode;

/// One pass of an op.
#[derive(Clone, Copy)]
pub enum Pass {
    Forward,
    BackwardData,
    BackwardWeight,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Forward, Pass::BackwardData, Pass::BackwardWeight];

    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::BackwardData => "backward_data",
            Pass::BackwardWeight => "backward_weight",
        }
    }
}

/// One line of the comparison.
pub enum Case {
    Conv2d(Conv2d, Pass),
    Linear(Linear, Pass),
}

/// Runs our side once.
pub type Run = Box<dyn FnMut()>;

fn conv(sizes: [usize; 5], kernel: usize, stride: usize, padding: Padding) -> Conv2d {
    let [n, h, w, c_in, c_out] = sizes;
    let options = ConvOptions { stride: [stride; 2], padding, ..ConvOptions::default() };
    Conv2d { n, h, w, c_in, c_out, kernel: [kernel; 2], options }
}

/// Layers alone.
pub fn layers() -> Vec<Case> {
    let same = Padding::same(1);
    let down = Padding { bottom: 1, right: 1, ..Padding::default() };
    let convolutions = [
        conv([16, 32, 32, 128, 128], 3, 1, same),
        conv([16, 16, 16, 256, 256], 3, 1, same),
        conv([16, 8, 8, 256, 256], 3, 1, same),
        conv([16, 4, 4, 256, 256], 3, 1, same),
        conv([16, 16, 16, 512, 256], 3, 1, same),
        conv([16, 32, 32, 3, 128], 3, 1, same),
        conv([16, 32, 32, 128, 3], 3, 1, same),
        conv([16, 32, 32, 128, 128], 3, 2, down),
        conv([16, 16, 16, 512, 256], 1, 1, Padding::default()),
    ];
    let single = [
        conv([1, 32, 32, 128, 128], 3, 1, same),
        conv([1, 16, 16, 256, 256], 3, 1, same),
        conv([1, 4, 4, 256, 256], 3, 1, same),
    ];
    let linears = [Linear::new(4096, 256, 256), Linear::new(1024, 1024, 1024)];
    let mut cases = Vec::new();
    for op in convolutions {
        cases.extend(Pass::ALL.map(|pass| Case::Conv2d(op, pass)));
    }
    cases.extend(single.map(|op| Case::Conv2d(op, Pass::Forward)));
    for op in linears {
        cases.extend(Pass::ALL.map(|pass| Case::Linear(op, pass)));
    }
    let embedding = Linear::new(16, 512, 256);
    cases.push(Case::Linear(embedding, Pass::Forward));
    cases.push(Case::Linear(Linear { rows: 1, ..embedding }, Pass::Forward));
    cases
}

impl Case {
    /// `<op>/<pass>/cpu`
    pub fn group(&self) -> String {
        match self {
            Case::Conv2d(_, pass) => format!("conv2d/{}/cpu", pass.name()),
            Case::Linear(_, pass) => format!("linear/{}/cpu", pass.name()),
        }
    }

    /// Sizes, for people.
    pub fn shape(&self) -> String {
        match self {
            Case::Conv2d(op, _) => {
                let [kh, kw] = op.kernel;
                let stride = if op.options.stride[0] > 1 { " stride 2" } else { "" };
                let Conv2d { n, h, w, c_in, c_out, .. } = op;
                format!("{kh}x{kw} {c_in}->{c_out} @{h}x{w} n{n}{stride}")
            }
            Case::Linear(op, _) => format!("{}x{} -> {}", op.rows, op.c_in, op.c_out),
        }
    }

    pub fn flops(&self) -> u64 {
        match self {
            Case::Conv2d(op, _) => op.flops(),
            Case::Linear(op, _) => op.flops(),
        }
    }

    /// Allocates our side; weights are packed outside of what is timed, as they
    /// are once per step (PyTorch likewise reorders its weights inside).
    pub fn prepare(&self, threads: usize) -> anyhow::Result<Run> {
        let pool = Pool::new(threads);
        Ok(match *self {
            Case::Conv2d(op, pass) => convolution(pool, op, pass),
            Case::Linear(op, pass) => convolution(pool, linear::as_convolution(&op), pass),
        })
    }
}

fn noise(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 8388608.0 - 1.0).collect()
}

fn convolution(pool: Pool, op: Conv2d, pass: Pass) -> Run {
    let isa = Isa::detect();
    let (x, d_y, weight) = (noise(op.x_len()), noise(op.y_len()), noise(op.weight_len()));
    let bias = noise(op.c_out);
    let packed = |pass| {
        let pack = PackWeight::of(&op, pass);
        let mut packed = vec![0.0; pack.packed_len()];
        conv2d::pack(&pool, &pack, &weight, &mut packed);
        packed
    };
    match pass {
        Pass::Forward => {
            let packed = packed(PackFor::Forward);
            let mut y = vec![0.0; op.y_len()];
            Box::new(move || {
                let epilogue = conv2d::Epilogue { bias: Some(&bias), ..Default::default() };
                conv2d::forward(&pool, isa, &op, &x, &packed, epilogue, &mut y, Mode::Write);
            })
        }
        Pass::BackwardData => {
            let packed = packed(PackFor::BackwardData);
            let mut d_x = vec![0.0; op.x_len()];
            Box::new(move || {
                conv2d::backward_data(&pool, isa, &op, &d_y, &packed, &mut d_x, Mode::Write);
            })
        }
        Pass::BackwardWeight => {
            let (mut d_weight, mut d_bias) = (vec![0.0; op.weight_len()], vec![0.0; op.c_out]);
            Box::new(move || {
                let d_weight = Some((&mut d_weight[..], Mode::Write));
                let d_bias = Some((&mut d_bias[..], Mode::Write));
                conv2d::backward_weight(&pool, isa, &op, &x, &d_y, d_weight, d_bias, &mut []);
            })
        }
    }
}
