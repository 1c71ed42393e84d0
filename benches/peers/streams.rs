//! What is bound by memory or by random numbers, not by multiplications.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

use langevin::backend::cpu::images::Images;
use langevin::backend::cpu::loss::{self, Target};
use langevin::backend::cpu::pool::Parts;
use langevin::backend::cpu::{Pool, dropout, noising, optimizer};
use langevin::ops::dropout::Dropout;
use langevin::ops::loss::Loss;
use langevin::ops::noising::{Noising, coefficient};
use langevin::ops::optimizer::{AdamW, GlobalNorm, control};
use langevin::plan::Mode;
use langevin::random::{Purpose, fill_normal, image_keys};
use serde_json::{Value, json};

/// Runs our side once.
pub type Run = Box<dyn FnMut()>;

/// Normals of one comparison.
const NORMALS: usize = 1 << 22;
/// Parameters of ddpm-cifar10.
const PARAMETERS: usize = 35_746_307;
/// Images of 32 x 32 x 3.
const IMAGES: (usize, usize) = (128, 32 * 32 * 3);

/// One line of the comparison.
pub struct Stream {
    /// `<op>/<pass>/cpu`
    pub group: &'static str,
    /// Sizes, for people.
    pub shape: &'static str,
    /// Bytes that have to be read and written.
    pub bytes: usize,
    /// The case, for the peer.
    pub request: Value,
    /// Allocates our side for a number of threads.
    pub prepare: fn(usize) -> Run,
}

/// Everything here.
pub fn streams() -> Vec<Stream> {
    let (n, len) = IMAGES;
    let images = |op: &str| json!({ "op": op, "n": n, "len": len });
    let adamw = |average: bool| json!({ "op": "adamw", "len": PARAMETERS, "average": average });
    vec![
        Stream {
            group: "random/normals/cpu",
            shape: "4Mi",
            bytes: 4 * NORMALS,
            request: json!({ "op": "normals", "len": NORMALS }),
            prepare: normals,
        },
        Stream {
            group: "noising/forward/cpu",
            shape: "32x32x3 n128",
            bytes: 8 * n * len,
            request: images("noising"),
            prepare: noise_images,
        },
        Stream {
            group: "loss/forward/cpu",
            shape: "32x32x3 n128, noise drawn again (stored in PyTorch)",
            bytes: 8 * n * len,
            request: images("loss"),
            prepare: loss_of_images,
        },
        Stream {
            group: "loss/backward/cpu",
            shape: "32x32x3 n128, noise drawn again (stored in PyTorch)",
            bytes: 12 * n * len,
            request: images("loss_backward"),
            prepare: loss_backward_of_images,
        },
        Stream {
            group: "dropout/forward/cpu",
            shape: "32x32x3 n128",
            bytes: 8 * n * len,
            request: images("dropout"),
            prepare: drop_out,
        },
        Stream {
            group: "global_norm/forward/cpu",
            shape: "35.7M",
            bytes: 4 * PARAMETERS,
            request: json!({ "op": "global_norm", "len": PARAMETERS }),
            prepare: global_norm,
        },
        Stream {
            group: "adamw/forward/cpu",
            shape: "35.7M with average (not in PyTorch)",
            bytes: 36 * PARAMETERS,
            request: adamw(false),
            prepare: adamw_step,
        },
        Stream {
            group: "adamw/forward/cpu",
            shape: "35.7M with average",
            bytes: 36 * PARAMETERS,
            request: adamw(true),
            prepare: adamw_step,
        },
    ]
}

/// Random keys and coefficients of the images.
fn images() -> (Vec<u32>, Vec<f32>) {
    let keys = (0..IMAGES.0).flat_map(|i| image_keys(1, i as u64)).collect();
    (keys, vec![0.7; IMAGES.0 * coefficient::COLUMNS])
}

fn loss_of_images(threads: usize) -> Run {
    let (pool, (keys, coefficients), (n, len)) = (Pool::new(threads), images(), IMAGES);
    let op = Loss { n, len, scale: 1.0 / n as f32, pick: None };
    let (prediction, x0, mut losses) = (vec![0.1; n * len], vec![0.5; n * len], vec![0.0; n]);
    Box::new(move || {
        let x0 = Images::given(&x0);
        let target = Target { x0: &x0, coefficients: &coefficients, keys: Some(&keys) };
        loss::loss(&pool, &op, &prediction, target, (&mut losses, Mode::Write));
    })
}

fn loss_backward_of_images(threads: usize) -> Run {
    let (pool, (keys, coefficients), (n, len)) = (Pool::new(threads), images(), IMAGES);
    let op = Loss { n, len, scale: 1.0 / n as f32, pick: None };
    let (prediction, x0) = (vec![0.1; n * len], vec![0.5; n * len]);
    let mut d_prediction = vec![0.0; n * len];
    Box::new(move || {
        let x0 = Images::given(&x0);
        let target = Target { x0: &x0, coefficients: &coefficients, keys: Some(&keys) };
        loss::loss_backward(&pool, &op, &prediction, target, (&mut d_prediction, Mode::Write));
    })
}

fn drop_out(threads: usize) -> Run {
    let (pool, (keys, _), (n, len)) = (Pool::new(threads), images(), IMAGES);
    let op = Dropout { n, len, p: 0.1, layer: 0 };
    let (x, mut y) = (vec![0.5; n * len], vec![0.0; n * len]);
    Box::new(move || dropout::dropout(&pool, &op, &x, &keys, (&mut y, Mode::Write)))
}

fn normals(threads: usize) -> Run {
    const PART: usize = 1 << 16;
    let pool = Pool::new(threads);
    let mut z = vec![0.0; NORMALS];
    let mut draw = 0;
    Box::new(move || {
        draw += 1;
        let parts = Parts::new(&mut z);
        pool.run(NORMALS / PART, &|i| {
            // SAFETY: part i belongs to task i alone.
            let z = unsafe { parts.part(i * PART, PART) };
            fill_normal(image_keys(1, 0), Purpose::Probe, draw, (i * PART) as u64, z);
        });
    })
}

fn noise_images(threads: usize) -> Run {
    let (pool, (keys, coefficients), (n, len)) = (Pool::new(threads), images(), IMAGES);
    let op = Noising { n, len, pick: None };
    let (x0, mut x_t) = (vec![0.5; n * len], vec![0.0; n * len]);
    Box::new(move || {
        let (x0, x_t) = (Images::given(&x0), (&mut x_t[..], Mode::Write));
        noising::noising(&pool, &op, &x0, &coefficients, &keys, x_t, None);
    })
}

fn global_norm(threads: usize) -> Run {
    let pool = Pool::new(threads);
    let op = GlobalNorm { ranges: vec![(0, PARAMETERS)] };
    let (gradients, mut norm) = (vec![1e-3; PARAMETERS], [0.0]);
    Box::new(move || optimizer::global_norm(&pool, &op, &gradients, &mut norm))
}

fn adamw_step(threads: usize) -> Run {
    let pool = Pool::new(threads);
    let op = AdamW {
        ranges: vec![(0, PARAMETERS)],
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip: Some(1.0),
    };
    let mut row = [0.0; control::COLUMNS];
    row[control::LEARNING_RATE] = 1e-4;
    row[control::BIAS_CORRECTION_1] = 0.1;
    row[control::BIAS_CORRECTION_2] = 1e-3;
    row[control::EMA_RATE] = 1e-4;
    let gradients = vec![1e-3; PARAMETERS];
    let mut state = [1.0, 1e-3, 1e-6, 1.0].map(|v| vec![v; PARAMETERS]);
    Box::new(move || {
        let [parameters, first_moments, second_moments, average] = &mut state;
        let state = optimizer::State { parameters, first_moments, second_moments, average };
        optimizer::adamw(&pool, &op, &gradients, &[1.0], &row, state);
    })
}
