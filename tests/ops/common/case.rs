//! One op with its operands, and everything that it owes.

use super::*;

/// One operand of a [`Case`].
#[derive(Clone)]
pub struct Input {
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
    pub(super) per_image: bool,
    pub(super) parameter: bool,
    pub(super) differentiable: bool,
}

#[derive(Clone)]
pub(super) enum Data {
    F32(Vec<f32>),
    U32(Vec<u32>),
}

impl Input {
    fn new(shape: &[usize], data: Data) -> Self {
        Input {
            shape: shape.to_vec(),
            data,
            per_image: true,
            parameter: false,
            differentiable: true,
        }
    }

    fn random(shape: &[usize]) -> Self {
        let len = shape.iter().product();
        let seed = shape.iter().fold(1, |s, &a| s * 31 + a as u64);
        Input::new(shape, Data::F32(values(seed, len)))
    }

    /// An activation whose first axis counts images; values in [-1, 1).
    pub fn image(shape: &[usize]) -> Self {
        Input::random(shape)
    }

    /// A weight: uploaded to the parameter arena, gradient in the gradient arena.
    pub fn parameter(shape: &[usize]) -> Self {
        Input { per_image: false, parameter: true, ..Input::random(shape) }
    }

    /// u32 per image: indices `[n]`, random keys `[n, 4]`.
    pub fn words(shape: &[usize], words: &[u32]) -> Self {
        Input { differentiable: false, ..Input::new(shape, Data::U32(words.to_vec())) }
    }

    /// Other values in [-1, 1) than the shape alone would give.
    pub fn seed(self, seed: u64) -> Self {
        let values = values(seed, self.len());
        self.with(&values)
    }

    /// Replaces the values.
    pub fn with(mut self, values: &[f32]) -> Self {
        self.data = Data::F32(values.to_vec());
        self
    }

    /// Maps each value.
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        if let Data::F32(values) = &mut self.data {
            values.iter_mut().for_each(|v| *v = f(*v));
        }
        self
    }

    /// No gradient is expected by this operand.
    pub fn fixed(mut self) -> Self {
        self.differentiable = false;
        self
    }

    /// The f32 values.
    pub fn values(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(values) => values.clone(),
            Data::U32(_) => panic!("an operand of u32"),
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The operand for image `i` alone.
    pub(super) fn image_only(&self, i: usize) -> Self {
        let mut one = self.clone();
        if self.per_image {
            let len = self.len() / self.shape[0];
            one.shape[0] = 1;
            match &mut one.data {
                Data::F32(v) => *v = v[i * len..(i + 1) * len].to_vec(),
                Data::U32(v) => *v = v[i * len..(i + 1) * len].to_vec(),
            }
        }
        one
    }

    pub(super) fn as_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&v| f64::from(v)).collect(),
            Data::U32(v) => v.iter().map(|&v| f64::from(v)).collect(),
        }
    }
}

/// How many terms are summed for one element of the output and of a gradient:
/// decides what rounding is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Of an output.
    pub forward: usize,
    /// Of a gradient.
    pub backward: usize,
}

/// Relative error allowed for a sum of that many f32 terms: four times the
/// random walk of its roundings.
pub fn rounding(terms: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * (terms.max(1) as f64).sqrt()
}

pub(super) type Build<'a> = Box<dyn Fn(&mut Plan, &[TensorId]) -> TensorId + 'a>;

/// One op with its operands.
pub struct Case<'a> {
    pub(super) inputs: Vec<Input>,
    pub(super) build: Build<'a>,
}

/// The tensors of a case's operands.
pub(super) fn operands(plan: &mut Plan, inputs: &[Input]) -> Vec<TensorId> {
    inputs
        .iter()
        .enumerate()
        .map(|(i, input)| {
            let name = format!("operand_{i}");
            let dtype = match input.data {
                Data::F32(_) => DType::F32,
                Data::U32(_) => DType::U32,
            };
            if input.parameter {
                let (layout, init) = (DiskLayout::Same, Init::Constant(0.0));
                plan.parameter(&name, &input.shape, layout, init, true)
            } else {
                plan.activation(name, &input.shape, dtype, Role::State)
            }
        })
        .collect()
}

/// Output and gradients (by input) of one run.
pub struct Outcome {
    /// The op's output.
    pub output: Vec<f32>,
    /// Gradient by each input that has one.
    pub gradients: Vec<Option<Vec<f32>>>,
}

impl<'a> Case<'a> {
    /// `build` appends the op; it is given the tensors of `inputs` and must take
    /// the number of images from their shapes.
    pub fn new(inputs: &[Input], build: impl Fn(&mut Plan, &[TensorId]) -> TensorId + 'a) -> Self {
        Case { inputs: inputs.to_vec(), build: Box::new(build) }
    }

    /// Runs forward and backward. The gradients are written over NaN, or added
    /// to `before` where it is given.
    pub fn run(&self, threads: usize, before: Option<&Outcome>) -> Outcome {
        self.run_with(&self.inputs, &upstream, (threads, Isa::detect()), before)
    }

    pub(super) fn run_with(
        &self,
        inputs: &[Input],
        upstream: &dyn Fn(usize) -> Vec<f32>,
        (threads, isa): (usize, Isa),
        before: Option<&Outcome>,
    ) -> Outcome {
        let mut plan = Plan::new();
        let tensors = operands(&mut plan, inputs);
        let y = (self.build)(&mut plan, &tensors);
        plan.keep(y);
        let shape = plan.shape(y).to_vec();
        let d_y = plan.activation("upstream", &shape, DType::F32, Role::State);
        let wanted: Vec<TensorId> =
            tensors.iter().zip(inputs).filter(|(_, i)| i.differentiable).map(|(&t, _)| t).collect();
        let forward = plan.nodes.len();
        if !wanted.is_empty() {
            plan.derive(&[(y, Some(d_y))], Wrt::Tensors(wanted.clone())).expect("a derivative");
        }
        let gradients: Vec<Option<TensorId>> = tensors.iter().map(|&t| plan.gradient(t)).collect();
        for (t, g) in tensors.iter().zip(&gradients) {
            let expected = wanted.contains(t);
            assert_eq!(g.is_some(), expected, "gradient by `{}`", plan.tensor(*t).name);
        }
        if before.is_some() {
            for &g in gradients.iter().flatten() {
                plan.tensors[g.index()].role = Role::State;
                let writes = plan.nodes[forward..].iter_mut().flat_map(|n| n.outputs.iter_mut());
                for write in writes.flatten().filter(|w| w.tensor == g) {
                    write.mode = Mode::Add;
                }
            }
        }
        let mut machine = Machine::with_isa(plan, threads, isa);
        for (&t, input) in tensors.iter().zip(inputs) {
            match &input.data {
                Data::F32(v) => machine.upload(t, v),
                Data::U32(v) => machine.upload_u32(t, v),
            }
        }
        machine.upload(d_y, &upstream(shape.iter().product()));
        if let Some(before) = before {
            for (g, values) in gradients.iter().zip(&before.gradients) {
                if let (Some(g), Some(values)) = (g, values) {
                    machine.upload(*g, values);
                }
            }
        }
        machine.run();
        machine.assert_only_tensors_were_written();
        for (&t, input) in tensors.iter().zip(inputs) {
            if let Data::F32(v) = &input.data {
                assert_same_bits("an operand", &machine.download(t), v);
            }
        }
        Outcome {
            output: machine.download(y),
            gradients: gradients.iter().map(|g| g.map(|g| machine.download(g))).collect(),
        }
    }

    /// Everything an op owes; `reference` maps the operands (u32 ones as
    /// numbers) to the output, in f64.
    #[track_caller]
    pub fn check(&self, terms: Terms, reference: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
        let outcome = self.run(1, None);
        let operands: Vec<Vec<f64>> = self.inputs.iter().map(Input::as_f64).collect();
        let expected = reference(&operands);
        assert_close("output", &outcome.output, &expected, rounding(terms.forward), 0.0);
        self.check_gradients(&outcome, terms, &operands, &reference);
        self.check_add_mode(&outcome);
        self.check_bits(&outcome);
        self.check_instruction_sets(&outcome, terms);
        if self.has_kernels() {
            on_cuda(|| self.check_cuda(&outcome, terms, &expected));
            #[cfg(langevin_cuda)]
            self.check_half(&reference);
        }
    }

    /// Whether CUDA is built in and has a kernel for the op.
    fn has_kernels(&self) -> bool {
        let Some(backend) = gpu::backend() else { return false };
        let mut plan = Plan::new();
        let tensors = operands(&mut plan, &self.inputs);
        (self.build)(&mut plan, &tensors);
        let lowered = backend.lower(plan);
        if let Err(error) = &lowered {
            eprintln!("SKIPPED on CUDA: {error}");
        }
        lowered.is_ok()
    }

    /// The same on CUDA: the output against the reference, the gradients against the
    /// CPU's, each run in another order of blocks and warps.
    #[track_caller]
    fn check_cuda(&self, cpu: &Outcome, terms: Terms, expected: &[f64]) {
        gpu::set_seed(0);
        let outcome = self.run(1, None);
        assert_close("output on CUDA", &outcome.output, expected, rounding(terms.forward), 0.0);
        self.check_gradients_of(&outcome, cpu, terms, &|i| {
            format!("gradient by operand {i} on CUDA")
        });
        gpu::set_seed(1);
        self.check_add_mode(&outcome);
        for seed in 2..gpu::SEEDS {
            gpu::set_seed(seed);
            let again = self.run(1, None);
            assert_same_bits("output of a second run", &again.output, &outcome.output);
            for (a, b) in again.gradients.iter().zip(&outcome.gradients) {
                if let (Some(a), Some(b)) = (a, b) {
                    assert_same_bits("gradient of a second run", a, b);
                }
            }
        }
        self.check_images(&outcome);
    }

    /// Gradients against those of another run, to rounding.
    #[track_caller]
    fn check_gradients_of(
        &self,
        outcome: &Outcome,
        other: &Outcome,
        terms: Terms,
        what: &dyn Fn(usize) -> String,
    ) {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let magnitude = |g: &Vec<f32>| g.iter().fold(0f64, |m, &v| m.max(f64::from(v).abs()));
        let largest = other.gradients.iter().flatten().map(magnitude).fold(0.0, f64::max);
        for (i, (a, b)) in outcome.gradients.iter().zip(&other.gradients).enumerate() {
            if let (Some(a), Some(b)) = (a, b) {
                let tolerance = rounding(terms.backward);
                assert_close(&what(i), a, &wide(b), tolerance, 1e-6 * largest / tolerance);
            }
        }
    }

    /// Narrower vector instructions agree to rounding.
    #[track_caller]
    fn check_instruction_sets(&self, outcome: &Outcome, terms: Terms) {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        for isa in Isa::available().filter(|&isa| isa < Isa::detect()) {
            let upstream = |len: usize| values(99, len);
            let narrow = self.run_with(&self.inputs, &upstream, (2, isa), None);
            let what = format!("output with {isa:?}");
            let tolerance = rounding(terms.forward);
            assert_close(&what, &narrow.output, &wide(&outcome.output), tolerance, 0.0);
            self.check_gradients_of(&narrow, outcome, terms, &|i| {
                format!("gradient by operand {i} with {isa:?}")
            });
        }
    }

    /// Gradients against central differences of `sum upstream * reference`.
    #[track_caller]
    fn check_gradients(
        &self,
        outcome: &Outcome,
        terms: Terms,
        operands: &[Vec<f64>],
        reference: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    ) {
        let upstream = values(99, outcome.output.len());
        let objective = |x: &[Vec<f64>]| -> f64 {
            reference(x).iter().zip(&upstream).map(|(y, &u)| y * f64::from(u)).sum()
        };
        let magnitude = |g: &Vec<f32>| g.iter().fold(0f64, |m, &v| m.max(f64::from(v).abs()));
        let largest = outcome.gradients.iter().flatten().map(magnitude).fold(0.0, f64::max);
        let mut x = operands.to_vec();
        for (i, gradient) in outcome.gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            assert!(
                gradient.iter().all(|v| v.is_finite()),
                "gradient by operand {i} is not finite"
            );
            // Every element of a small operand, a sample of a large one.
            let stride = (gradient.len() / 61).max(1);
            let picked: Vec<usize> = (0..gradient.len()).step_by(stride).collect();
            let h = 1e-5;
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            for &e in &picked {
                let middle = x[i][e];
                x[i][e] = middle + h;
                let above = objective(&x);
                x[i][e] = middle - h;
                let below = objective(&x);
                x[i][e] = middle;
                found.push(gradient[e]);
                expected.push((above - below) / (2.0 * h));
            }
            // Differences themselves are good to about 1e-9 of the objective, and
            // a gradient that is zero in exact arithmetic to 1e-6 of the largest.
            let tolerance = rounding(terms.backward);
            let floor = (1e-9 * objective(&x).abs()).max(1e-6 * largest) / tolerance;
            let what = format!("gradient by operand {i} (every {stride}th element)");
            assert_close(&what, &found, &expected, tolerance, floor);
        }
    }

    /// Adding a gradient to itself must double it.
    #[track_caller]
    fn check_add_mode(&self, outcome: &Outcome) {
        let added = self.run(2, Some(outcome));
        for (i, (twice, once)) in added.gradients.iter().zip(&outcome.gradients).enumerate() {
            let (Some(twice), Some(once)) = (twice, once) else { continue };
            let doubled: Vec<f64> = once.iter().map(|&v| 2.0 * f64::from(v)).collect();
            let what = format!("gradient by operand {i}, added to itself,");
            assert_close(&what, twice, &doubled, rounding(4), 0.0);
        }
    }

    /// A second run, other numbers of threads and other batches change no bits
    /// (of the output and of gradients by images; weights sum over the batch).
    #[track_caller]
    fn check_bits(&self, outcome: &Outcome) {
        for threads in [1, 2, 3] {
            let again = self.run(threads, None);
            let what = format!("output with {threads} threads");
            assert_same_bits(&what, &again.output, &outcome.output);
            for (i, (a, b)) in again.gradients.iter().zip(&outcome.gradients).enumerate() {
                if let (Some(a), Some(b)) = (a, b) {
                    let what = format!("gradient by operand {i} with {threads} threads");
                    assert_same_bits(&what, a, b);
                }
            }
        }
        self.check_images(outcome);
    }

    /// The rest of the batch changes no bits of an image's output and gradients.
    #[track_caller]
    fn check_images(&self, outcome: &Outcome) {
        let Some(n) = self.inputs.iter().find(|i| i.per_image).map(|i| i.shape[0]) else { return };
        if n == 1 {
            return;
        }
        let upstream = values(99, outcome.output.len());
        for image in 0..n {
            let part = |all: &[f32]| {
                let len = all.len() / n;
                all[image * len..(image + 1) * len].to_vec()
            };
            let inputs: Vec<Input> = self.inputs.iter().map(|i| i.image_only(image)).collect();
            let alone = self.run_with(&inputs, &|_| part(&upstream), (2, Isa::detect()), None);
            let what = format!("output of image {image} alone");
            assert_same_bits(&what, &alone.output, &part(&outcome.output));
            for (i, input) in self.inputs.iter().enumerate() {
                let (a, b) = (&alone.gradients[i], &outcome.gradients[i]);
                if let (true, Some(a), Some(b)) = (input.per_image, a, b) {
                    let what = format!("gradient by operand {i} of image {image} alone");
                    assert_same_bits(&what, a, &part(b));
                }
            }
        }
    }
}
