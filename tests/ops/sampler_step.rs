//! `sampler_step` and `sampler_quantile`, alone.

use langevin::ops::sampler_step::{Advance, SamplerOperands, column};
use langevin::plan::{DType, Plan, Role, TensorId};
use langevin::random::{Purpose, fill_normal, image_keys};

use crate::common::{
    Machine, assert_close, assert_same_bits, in_half, on_every_backend, rounded_to_half, rounding,
    values,
};

/// Sizes and choices of one step.
#[derive(Clone, Copy)]
struct Setup {
    n: usize,
    spatial: usize,
    channels: usize,
    prediction_channels: usize,
    slots: usize,
    per_image: bool,
    guided: bool,
    given_noise: bool,
    with_input: bool,
    threshold: Option<(f32, f32)>,
    /// Prediction and input are bf16 tensors.
    half: bool,
}

const PLAIN: Setup = Setup {
    n: 3,
    spatial: 7,
    channels: 3,
    prediction_channels: 3,
    slots: 2,
    per_image: false,
    guided: false,
    given_noise: true,
    with_input: false,
    threshold: None,
    half: false,
};

const STAGES: usize = 3;
const SEED: u64 = 11;
/// Index of the first image.
const FIRST: u64 = 40;

/// What a step reads and writes.
#[derive(Clone)]
struct Data {
    prediction: Vec<f32>,
    table: Vec<f32>,
    slots: Vec<Vec<f32>>,
    noise: Vec<f32>,
}

impl Setup {
    fn copies(&self) -> usize {
        if self.guided { 2 } else { 1 }
    }

    fn len(&self) -> usize {
        self.spatial * self.channels
    }

    fn rows(&self) -> usize {
        if self.per_image { self.n } else { 1 }
    }

    /// Random coefficients everywhere; the network sees slot 1 and the outputs
    /// go to slots 0 and 1.
    fn data(&self) -> Data {
        let mut table = values(1, STAGES * self.rows() * column::COLUMNS);
        for (i, row) in table.chunks_exact_mut(column::COLUMNS).enumerate() {
            row[column::LABEL] = i as f32 + 5.0;
            row[column::INPUT_SLOT] = (self.slots - 1) as f32;
            row[column::CLIP] = 0.4;
            row[column::DRAW] = 2.0;
            row[column::TARGET] = 0.0;
            row[column::TARGET + 1] = if self.slots > 1 { 1.0 } else { -1.0 };
        }
        let predicted = self.copies() * self.n * self.spatial * self.prediction_channels;
        let slots = (0..self.slots).map(|j| values(20 + j as u64, self.n * self.len())).collect();
        let noise = match self.given_noise {
            true => values(3, self.n * self.len()),
            false => (0..self.n as u64)
                .flat_map(|i| {
                    let mut z = vec![0f32; self.len()];
                    let keys = image_keys(SEED, FIRST + i);
                    fill_normal(keys, Purpose::SampleStep, 2, 0, &mut z);
                    z
                })
                .collect(),
        };
        Data { prediction: values(2, predicted), table, slots, noise }
    }

    /// Runs stage 1: the slots, the next label, the next input.
    fn run(&self, data: &Data, threads: usize) -> (Vec<Vec<f32>>, Vec<f32>, Vec<f32>) {
        let Setup { n, spatial, channels, .. } = *self;
        let seen = self.copies() * n;
        let mut plan = Plan::new();
        let mut state =
            |name: &str, shape: &[usize], dtype| plan.activation(name, shape, dtype, Role::State);
        let uploaded = state("prediction", &[seen, spatial, self.prediction_channels], DType::F32);
        let table = state("table", &[STAGES, self.rows(), column::COLUMNS], DType::F32);
        let stage = state("stage", &[1], DType::U32);
        let arrived = state("arrived", &[1], DType::U32);
        let keys = state("keys", &[n, 4], DType::U32);
        let noise = self.given_noise.then(|| state("noise", &[n, spatial, channels], DType::F32));
        let label = state("label", &[seen], DType::F32);
        let dtype = if self.half { DType::BF16 } else { DType::F32 };
        let input = self.with_input.then(|| state("input", &[seen, spatial, channels], dtype));
        let slots: Vec<TensorId> = (0..self.slots)
            .map(|j| state(&format!("slot {j}"), &[n, spatial, channels], DType::F32))
            .collect();
        let threshold = self.threshold;
        let prediction = if self.half { plan.cast(uploaded, DType::BF16) } else { uploaded };
        let operands = SamplerOperands {
            prediction,
            table,
            stage,
            advance: Some(Advance { stage, arrived }),
            keys,
            noise,
            label,
            input,
            slots: slots.clone(),
            threshold,
        };
        plan.sampler_step(&operands).unwrap();
        let mut machine = Machine::new(plan, threads);
        machine.upload(uploaded, &data.prediction);
        machine.upload(table, &data.table);
        machine.upload_u32(stage, &[1]);
        machine.upload_u32(arrived, &[0]);
        let words: Vec<u32> = (0..n as u64).flat_map(|i| image_keys(SEED, FIRST + i)).collect();
        machine.upload_u32(keys, &words);
        if let Some(noise) = noise {
            machine.upload(noise, &data.noise);
        }
        for (&slot, values) in slots.iter().zip(&data.slots) {
            machine.upload(slot, values);
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        let word = |machine: &mut Machine, id| machine.download(id)[0].to_bits();
        assert_eq!(word(&mut machine, stage), 2, "the step goes on to the next stage");
        assert_eq!(word(&mut machine, arrived), 0);
        let input = input.map_or(Vec::new(), |input| match self.half {
            true => machine.download_half(input).iter().map(|v| v.to_f32()).collect(),
            false => machine.download(input),
        });
        (slots.iter().map(|&s| machine.download(s)).collect(), machine.download(label), input)
    }

    /// The same in f64.
    fn reference(&self, data: &Data) -> Vec<Vec<f64>> {
        let (len, pc) = (self.len(), self.prediction_channels);
        let mut slots: Vec<Vec<f64>> =
            data.slots.iter().map(|s| s.iter().map(|&v| v as f64).collect()).collect();
        for i in 0..self.n {
            let row: Vec<f64> = self.row(data, 1, i).iter().map(|&v| v as f64).collect();
            let p = |copy: usize, e: usize| {
                let at = (copy * self.n + i) * self.spatial * pc;
                data.prediction[at + e / self.channels * pc + e % self.channels] as f64
            };
            let seen = row[column::INPUT_SLOT] as usize;
            let own: Vec<Vec<f64>> = slots.iter().map(|s| s[i * len..][..len].to_vec()).collect();
            let predicted = |e: usize| match self.guided {
                true => p(1, e) + row[column::GUIDANCE] * (p(0, e) - p(1, e)),
                false => p(0, e),
            };
            let mut x0: Vec<f64> = (0..len)
                .map(|e| {
                    row[column::X0_STATE] * own[seen][e] + row[column::X0_PREDICTION] * predicted(e)
                })
                .collect();
            let clip = match self.threshold {
                Some((ratio, max)) => quantile(&x0, ratio as f64).max(1.0).min(max as f64),
                None => row[column::CLIP],
            };
            for v in &mut x0 {
                *v = v.clamp(-clip, clip) / if self.threshold.is_some() { clip } else { 1.0 };
            }
            for k in 0..2 {
                let target = row[column::TARGET + k];
                if target < 0.0 {
                    continue;
                }
                let c = &row[column::OUTPUT + k * column::COEFFICIENTS..];
                for e in 0..len {
                    let eps = row[column::EPS_STATE] * own[seen][e]
                        + row[column::EPS_PREDICTION] * predicted(e);
                    let kept: f64 = (0..self.slots).map(|j| c[j] * own[j][e]).sum();
                    slots[target as usize][i * len + e] = kept
                        + c[column::OF_X0] * x0[e]
                        + c[column::OF_EPS] * eps
                        + c[column::OF_NOISE] * data.noise[i * len + e] as f64;
                }
            }
        }
        slots
    }

    fn row<'a>(&self, data: &'a Data, stage: usize, image: usize) -> &'a [f32] {
        let row = stage * self.rows() + if self.per_image { image } else { 0 };
        &data.table[row * column::COLUMNS..][..column::COLUMNS]
    }

    #[track_caller]
    fn check(&self) {
        let data = self.data();
        let (slots, labels, input) = self.run(&data, 1);
        for (j, (found, expected)) in slots.iter().zip(self.reference(&data)).enumerate() {
            assert_close(&format!("slot {j}"), found, &expected, rounding(14), 1.0);
        }
        for (i, &label) in labels.iter().enumerate() {
            assert_eq!(label, self.row(&data, 2, i % self.n)[column::LABEL]);
        }
        let seen = slots.last().unwrap();
        for (at, &v) in input.iter().enumerate() {
            let at = at % seen.len();
            let scale = self.row(&data, 2, at / self.len())[column::INPUT_SCALE];
            assert_eq!(v, scale * seen[at]);
        }
        assert_eq!(input.is_empty(), !self.with_input);
        for threads in [2, 3] {
            let again = self.run(&data, threads);
            for (found, expected) in again.0.iter().zip(&slots) {
                assert_same_bits("a slot on other threads", found, expected);
            }
        }
    }
}

/// Linear interpolation between the order statistics of |x|.
fn quantile(x: &[f64], ratio: f64) -> f64 {
    let mut sorted: Vec<f64> = x.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f64;
    let below = rank.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (rank - below as f64) * (sorted[above] - sorted[below])
}

#[test]
fn step_matches_f64_for_one_image_and_for_images_longer_than_a_chunk() {
    on_every_backend(|| {
        for (n, spatial, channels) in [(1, 1, 1), (3, 7, 3), (2, 512, 1), (2, 171, 3), (1, 1031, 1)]
        {
            Setup { n, spatial, channels, prediction_channels: channels, ..PLAIN }.check();
        }
    });
}

#[test]
fn step_reads_the_first_channels_of_a_wider_prediction() {
    on_every_backend(|| {
        Setup { prediction_channels: 6, spatial: 200, ..PLAIN }.check();
    });
}

#[test]
fn step_guides_doubles_its_input_and_takes_a_row_for_each_image() {
    on_every_backend(|| {
        for (guided, per_image) in [(true, false), (false, true), (true, true)] {
            Setup { guided, per_image, with_input: true, spatial: 190, ..PLAIN }.check();
        }
    });
}

#[test]
fn step_with_one_slot_and_with_seven() {
    on_every_backend(|| {
        Setup { slots: 1, ..PLAIN }.check();
        Setup { slots: 7, ..PLAIN }.check();
    });
}

#[test]
fn step_draws_the_noise_of_the_image_and_the_draw() {
    on_every_backend(|| {
        Setup { given_noise: false, spatial: 401, ..PLAIN }.check();
    });
}

#[test]
fn step_does_not_read_what_has_coefficient_zero() {
    on_every_backend(|| {
        let setup = Setup { slots: 3, ..PLAIN };
        let mut data = setup.data();
        for row in data.table.chunks_exact_mut(column::COLUMNS) {
            row[column::INPUT_SLOT] = 0.0;
            for k in 0..2 {
                row[column::OUTPUT + k * column::COEFFICIENTS + 2] = 0.0;
                row[column::OUTPUT + k * column::COEFFICIENTS + column::OF_NOISE] = 0.0;
            }
        }
        data.slots[2].fill(f32::NAN);
        data.noise.fill(f32::NAN);
        let (slots, _, _) = setup.run(&data, 1);
        assert!(slots[0].iter().chain(&slots[1]).all(|v| v.is_finite()));
        assert_same_bits("the slot that is no target", &slots[2], &data.slots[2]);
    });
}

#[test]
fn step_does_not_read_a_prediction_that_no_output_takes() {
    on_every_backend(|| {
        let setup = Setup { with_input: true, ..PLAIN };
        let mut data = setup.data();
        for row in data.table.chunks_exact_mut(column::COLUMNS) {
            for k in 0..2 {
                let from = column::OUTPUT + k * column::COEFFICIENTS;
                row[from + column::OF_X0] = 0.0;
                row[from + column::OF_EPS] = 0.0;
            }
        }
        let expected = setup.run(&data, 1);
        data.prediction.fill(f32::NAN);
        let found = setup.run(&data, 1);
        for (found, expected) in found.0.iter().zip(&expected.0) {
            assert_same_bits("a slot", found, expected);
        }
        assert!(found.2.iter().all(|v| v.is_finite()));
    });
}

#[test]
fn step_of_an_image_has_the_same_bits_alone() {
    on_every_backend(|| {
        let setup =
            Setup { given_noise: false, spatial: 300, threshold: Some((0.9, 3.0)), ..PLAIN };
        let data = setup.data();
        let (together, _, _) = setup.run(&data, 2);
        let one = Setup { n: 1, ..setup };
        let cut = |v: &[f32]| v[..v.len() / setup.n].to_vec();
        let alone = Data {
            prediction: cut(&data.prediction),
            table: data.table.clone(),
            slots: data.slots.iter().map(|s| cut(s)).collect(),
            noise: cut(&data.noise),
        };
        let (alone, _, _) = one.run(&alone, 1);
        for (alone, together) in alone.iter().zip(&together) {
            assert_same_bits("image 0", alone, &cut(together));
        }
    });
}

#[test]
fn step_reads_and_writes_in_bf16_what_it_does_in_f32() {
    in_half(|| {
        let plain = Setup { with_input: true, spatial: 208, ..PLAIN };
        let threshold = Some((0.9, 3.0));
        for setup in [
            plain,
            Setup { spatial: 203, guided: true, threshold, ..plain },
            Setup { prediction_channels: 6, given_noise: false, ..plain },
        ] {
            let mut data = setup.data();
            data.prediction = rounded_to_half(&data.prediction);
            let (slots, labels, input) = setup.run(&data, 1);
            let found = Setup { half: true, ..setup }.run(&data, 1);
            for (found, expected) in found.0.iter().zip(&slots) {
                assert_same_bits("a slot", found, expected);
            }
            assert_same_bits("the label", &found.1, &labels);
            assert_same_bits("the input", &found.2, &rounded_to_half(&input));
        }
    });
}

#[test]
fn thresholds_match_the_sorted_quantile_for_every_rank_and_size() {
    on_every_backend(|| {
        for spatial in [1, 2, 3, 50, 700] {
            for ratio in [0.0, 0.25, 0.5, 0.9, 0.995, 1.0] {
                let setup = Setup { threshold: Some((ratio, 30.0)), spatial, ..PLAIN };
                let mut data = setup.data();
                // Quantiles on both sides of 1, and of the largest threshold.
                for (i, v) in data.prediction.iter_mut().enumerate() {
                    *v *= [0.5, 20.0, 300.0][i * setup.n / (setup.n * setup.len())];
                }
                let (slots, _, _) = setup.run(&data, 2);
                for (j, (found, expected)) in slots.iter().zip(setup.reference(&data)).enumerate() {
                    let scale = 300.0;
                    assert_close(
                        &format!("slot {j} at {ratio}"),
                        found,
                        &expected,
                        rounding(14),
                        scale,
                    );
                }
            }
        }
    });
}

#[test]
fn thresholds_of_repeated_values_are_those_values() {
    on_every_backend(|| {
        let setup = Setup {
            n: 1,
            spatial: 9,
            channels: 1,
            prediction_channels: 1,
            threshold: Some((0.6, 30.0)),
            ..PLAIN
        };
        let mut data = setup.data();
        for row in data.table.chunks_exact_mut(column::COLUMNS) {
            row[column::X0_STATE] = 0.0;
            row[column::X0_PREDICTION] = 1.0;
            row[column::OUTPUT..].fill(0.0);
            row[column::OUTPUT + column::OF_X0] = 1.0;
        }
        data.prediction = vec![2.0, -2.0, 2.0, 8.0, -2.0, 2.0, 1.0, 8.0, -8.0];
        let (slots, _, _) = setup.run(&data, 1);
        // Rank 0.6 * 8 = 4.8 lies between two of the 2s.
        assert_eq!(slots[0], [1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.5, 1.0, -1.0]);
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let build = |predicted: &[usize], rows: usize, slots: usize| {
        let mut plan = Plan::new();
        let mut state =
            |name: &str, shape: &[usize], dtype| plan.activation(name, shape, dtype, Role::State);
        let operands = SamplerOperands {
            prediction: state("prediction", predicted, DType::F32),
            table: state("table", &[STAGES, rows, column::COLUMNS], DType::F32),
            stage: state("stage", &[1], DType::U32),
            advance: None,
            keys: state("keys", &[2, 4], DType::U32),
            noise: None,
            label: state("label", &[2], DType::F32),
            input: None,
            slots: (0..slots).map(|j| state(&format!("{j}"), &[2, 5, 3], DType::F32)).collect(),
            threshold: None,
        };
        plan.sampler_step(&operands)
    };
    assert!(build(&[2, 5, 3], 1, 1).is_ok());
    assert!(build(&[2, 5, 2], 1, 1).is_err(), "too few channels");
    assert!(build(&[3, 5, 3], 1, 1).is_err(), "another batch");
    assert!(build(&[2, 4, 3], 1, 1).is_err(), "another size");
    assert!(build(&[2, 5, 3], 3, 1).is_err(), "rows of neither one nor all images");
    assert!(build(&[2, 5, 3], 1, 8).is_err(), "too many slots");
    assert!(build(&[2, 5, 3], 1, 0).is_err(), "no slot");
}

/// A network that predicts the variance of the noise in its second half: directly,
/// and as a place between two logarithms.
#[test]
fn noise_has_the_variance_that_the_network_predicts() {
    for (mode, guided) in
        [(column::LEARNED, false), (column::LEARNED_RANGE, false), (column::LEARNED_RANGE, true)]
    {
        let setup = Setup { prediction_channels: 6, guided, ..PLAIN };
        let mut data = setup.data();
        let second = column::OUTPUT + column::COEFFICIENTS;
        for row in data.table.chunks_exact_mut(column::COLUMNS) {
            row[column::TARGET + 1] = mode;
            row[second] = -3.0;
            row[second + 1] = -0.5;
        }
        let (slots, _, _) = setup.run(&data, 1);
        let (ranged, _, _) = setup.run(&data, 3);
        for (found, again) in slots.iter().zip(&ranged) {
            assert_same_bits("slots on three threads", again, found);
        }
        // The same as noise scaled beforehand, of the conditional half's variance.
        let mut scaled = data.clone();
        for (e, z) in scaled.noise.iter_mut().enumerate() {
            let (position, channel) = (e / setup.channels, e % setup.channels);
            let v = data.prediction[position * 6 + 3 + channel] as f64;
            let std = if mode == column::LEARNED {
                v.max(0.0).sqrt()
            } else {
                let part = 0.5 * (v + 1.0);
                (0.5 * (part * -0.5 + (1.0 - part) * -3.0)).exp()
            };
            *z = (*z as f64 * std) as f32;
        }
        for row in scaled.table.chunks_exact_mut(column::COLUMNS) {
            row[column::TARGET + 1] = -1.0;
        }
        for (j, (found, expected)) in slots.iter().zip(setup.reference(&scaled)).enumerate() {
            assert_close(&format!("slot {j}"), found, &expected, rounding(16), 1.0);
        }
    }
}
