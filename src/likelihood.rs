//! A network on a device that answers what a likelihood asks: its plan, and with
//! probes the product with its transposed Jacobian.

use crate::backend::{Engine, Loaded, Program, Requirement, WeightSet};
use crate::diffusion::likelihood::{Answer, Ask, Question};
use crate::error::{Error, Result};
use crate::model::{Conditioning, Network, NetworkInputs};
use crate::plan::{DType, Plan, Role, TensorId, Wrt};
use crate::predict::upload_condition;

/// A network to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// The network.
    pub network: &'a Network,
    /// `[h, w, c]`
    pub image: [usize; 3],
    /// Rows of a question.
    pub batch: usize,
    /// Whether products with the Jacobian are wanted.
    pub products: bool,
}

/// A plan that is built and lowered, its memory need known.
pub struct Prepared {
    program: Program,
    tensors: Tensors,
    forms: [Conditioning; 2],
    batch: usize,
    image: [usize; 3],
    outputs: usize,
}

#[derive(Clone, Copy)]
struct Tensors {
    inputs: NetworkInputs,
    prediction: TensorId,
    probe: Option<TensorId>,
    product: Option<TensorId>,
}

impl Asking<'_> {
    /// Builds and lowers; allocates nothing on the device.
    ///
    /// # Errors
    /// The network does not map images of this shape to their own.
    pub fn prepare(&self, engine: &Engine) -> Result<Prepared> {
        let [h, w, c] = self.image;
        let outputs = self.network.out_channels();
        if self.network.in_channels() != c || (outputs != c && outputs != 2 * c) {
            return Err(Error::Usage(format!(
                "the network maps {} channels to {outputs}; images of {c} need {c} in and {c} out, \
                 or {} with a learned variance",
                self.network.in_channels(),
                2 * c
            )));
        }
        if let Conditioning::Vector(_) = self.network.class_input() {
            return Err(Error::Usage(
                "the network takes a vector as its class, which the data has not".into(),
            ));
        }
        let mut plan = Plan::new();
        let inputs = self.network.inputs(&mut plan, self.batch, [h, w], false);
        let prediction = self.network.build(&mut plan, &inputs)?;
        plan.keep(prediction);
        let (mut probe, mut product) = (None, None);
        if self.products {
            let shape = plan.shape(prediction).to_vec();
            let seed = plan.activation("probe", &shape, DType::F32, Role::Input);
            plan.derive(&[(prediction, Some(seed))], Wrt::Tensors(vec![inputs.x]))?;
            let gradient = plan.gradient(inputs.x).ok_or_else(|| {
                Error::Usage("the network's prediction does not depend on its input".into())
            })?;
            (probe, product) = (Some(seed), Some(gradient));
        }
        Ok(Prepared {
            program: engine.lower(plan)?,
            tensors: Tensors { inputs, prediction, probe, product },
            forms: [self.network.time_input(), self.network.class_input()],
            batch: self.batch,
            image: self.image,
            outputs,
        })
    }
}

impl Prepared {
    /// What the run needs on its device.
    pub fn requirement(&self, arena_len: usize) -> Requirement {
        Requirement::of(arena_len, false, &[&self.program])
    }

    /// Allocates and takes up the weights as they are now.
    pub fn load<'e>(self, engine: &'e mut Engine, weights: WeightSet) -> Result<Asked<'e>> {
        let loaded = engine.load(self.program, weights)?;
        engine.refresh(&loaded)?;
        let wide = vec![0.0; self.batch * self.image[0] * self.image[1] * self.outputs];
        Ok(Asked {
            engine,
            loaded,
            tensors: self.tensors,
            forms: self.forms,
            batch: self.batch,
            image: self.image,
            outputs: self.outputs,
            wide,
        })
    }
}

/// A network on a device.
pub struct Asked<'e> {
    engine: &'e mut Engine,
    loaded: Loaded,
    tensors: Tensors,
    /// Of time and class.
    forms: [Conditioning; 2],
    batch: usize,
    image: [usize; 3],
    outputs: usize,
    /// Predictions and variances of all rows, channel by channel.
    wide: Vec<f32>,
}

impl Ask for Asked<'_> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn len(&self) -> usize {
        self.image.iter().product()
    }

    fn learns_variance(&self) -> bool {
        self.outputs > self.image[2]
    }

    fn ask(&mut self, question: &Question, answer: &mut Answer) -> Result<()> {
        let Asked { engine, loaded, tensors, forms, wide, .. } = self;
        let (c, outputs) = (self.image[2], self.outputs);
        engine.set(loaded, tensors.inputs.x, &question.x)?;
        let labels: Vec<f32> = question.labels.iter().map(|&label| label as f32).collect();
        upload_condition(engine, loaded, tensors.inputs.t, forms[0], "time", &labels)?;
        if let Some(id) = tensors.inputs.class {
            let classes: Vec<f32> = question.classes.iter().map(|&class| class as f32).collect();
            upload_condition(engine, loaded, id, forms[1], "class", &classes)?;
        }
        if let Some(id) = tensors.probe {
            if outputs == c {
                engine.set(loaded, id, &question.probe)?;
            } else {
                wide.fill(0.0);
                for (to, from) in wide.chunks_exact_mut(outputs).zip(question.probe.chunks_exact(c))
                {
                    to[..c].copy_from_slice(from);
                }
                engine.set(loaded, id, wide)?;
            }
        }
        engine.run(loaded)?;
        if outputs == c {
            engine.get(loaded, tensors.prediction, &mut answer.prediction)?;
        } else {
            engine.get(loaded, tensors.prediction, wide)?;
            let predictions = answer.prediction.chunks_exact_mut(c);
            let variances = answer.variance.chunks_exact_mut(c);
            for ((from, p), v) in wide.chunks_exact(outputs).zip(predictions).zip(variances) {
                p.copy_from_slice(&from[..c]);
                v.copy_from_slice(&from[c..]);
            }
        }
        if let Some(id) = tensors.product {
            engine.get(loaded, id, &mut answer.product)?;
        }
        Ok(())
    }
}
