//! Where a run takes place: a device that was named, or the best one that can do it.

use super::cpu::Cpu;
use super::{Backend, Precision, cuda};
use crate::error::{Error, Result};

/// A device, and what takes its place where it was not named and refuses.
pub struct Devices {
    backend: Box<dyn Backend>,
    /// Threads of the CPU, where that is next.
    next: Option<usize>,
    /// Why no better device is taken; absent where one was named.
    why: Option<String>,
}

impl From<Box<dyn Backend>> for Devices {
    fn from(backend: Box<dyn Backend>) -> Self {
        Devices { backend, next: None, why: None }
    }
}

impl Devices {
    /// The CPU with that many threads; 0 takes one for each core.
    ///
    /// # Errors
    /// A precision other than f32.
    pub fn cpu(precision: Precision, threads: usize) -> Result<Self> {
        if precision != Precision::F32 {
            return Err(Error::Usage(format!(
                "--precision {precision} needs CUDA, and the CPU computes in f32 alone: use \
                 --device cuda, or --precision f32"
            )));
        }
        Ok(Devices::from(Box::new(Cpu::new(threads)) as Box<dyn Backend>))
    }

    /// The CUDA device of that number.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn cuda(ordinal: usize, precision: Precision) -> Result<Self> {
        cuda::open(ordinal, precision).map(Devices::from)
    }

    /// The first CUDA device where a driver answers, and then or else the CPU with that
    /// many threads.
    ///
    /// # Errors
    /// No device of that precision: the CPU computes in f32 alone.
    pub fn best(precision: Precision, threads: usize) -> Result<Self> {
        let next = (precision == Precision::F32).then_some(threads);
        match cuda::open(0, precision) {
            Ok(backend) => Ok(Devices { backend, next, why: Some(String::new()) }),
            Err(error) => {
                let why = format!("; {error}");
                match Devices::cpu(precision, threads) {
                    Ok(cpu) => Ok(Devices { why: Some(why), ..cpu }),
                    Err(Error::Usage(problem)) => Err(Error::Usage(problem + &why)),
                    Err(other) => Err(other),
                }
            }
        }
    }

    /// Does `work`: once on a device that was named; else, where the device refuses it for
    /// want of memory or kernels or fails, again on the CPU. `say` is then told before each
    /// attempt which device does it, and why no better one.
    pub fn take<T>(
        self,
        say: &mut dyn FnMut(&str),
        mut work: impl FnMut(Box<dyn Backend>) -> Result<T>,
    ) -> Result<T> {
        let mut tell = |backend: &dyn Backend, why: &str| {
            let info = backend.info();
            let (name, precision) = (info.name, info.precision);
            say(&format!("device: {name} ({}), {precision}{why}", info.description));
        };
        let Devices { backend, next, why } = self;
        if let Some(why) = why {
            tell(backend.as_ref(), &why);
        }
        match (work(backend), next) {
            (Err(error @ (Error::Device { .. } | Error::Launch { .. })), Some(threads)) => {
                let cpu = Cpu::new(threads);
                tell(&cpu, &format!("; {error}"));
                work(Box::new(cpu))
            }
            (result, _) => result,
        }
    }
}
