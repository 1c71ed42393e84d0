//! Calls single CUDA kernels from a program of its own: noises a batch, convolves it,
//! normalises, takes the gradient by the filter, and convolves again in bf16.
//!
//! `cargo run --release --example kernels`, on a machine with an NVIDIA driver.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Err(reason) = langevin::backend::cuda::built() {
        println!("this build has no CUDA kernels: {reason}");
        return Ok(());
    }
    run()
}

#[cfg(not(langevin_cuda))]
fn run() -> Result<(), Box<dyn std::error::Error>> {
    Ok(())
}

#[cfg(langevin_cuda)]
fn run() -> Result<(), Box<dyn std::error::Error>> {
    use half::bf16;
    use langevin::kernels::{Kernels, Output};
    use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
    use langevin::ops::noising::coefficient;
    use langevin::ops::norm::{Domain, NormOperands};
    use langevin::ops::pointwise::Activation;
    use langevin::plan::DType;
    use langevin::random::image_keys;

    let k = Kernels::open(0)?;
    println!("device: {}", k.device().name());

    // Two images [n, h, w, c] at signal 0.8, std 0.6; eps is drawn on the device.
    let (n, h, w, c) = (2, 8, 8, 3);
    let x0 = k.upload(&[n, h, w, c], &vec![0.25; n * h * w * c])?;
    let mut rows = vec![0.0; n * coefficient::COLUMNS];
    for row in rows.chunks_exact_mut(coefficient::COLUMNS) {
        (row[coefficient::SIGNAL], row[coefficient::STD]) = (0.8, 0.6);
    }
    let rows = k.upload(&[n, coefficient::COLUMNS], &rows)?;
    let keys: Vec<u32> = (0..n as u64).flat_map(|image| image_keys(1, image)).collect();
    let keys = k.upload_u32(&[n, 4], &keys)?;
    let x_t = k.run(&[&x0, &rows, &keys], |plan, t| plan.noising(t[0], t[1], t[2]))?;

    // 3x3 filters [c_out, kh, kw, c_in], then group norm and SiLU in one kernel.
    let filter = k.upload(&[16, 3, 3, c], &vec![0.1; 16 * 9 * c])?;
    let options = ConvOptions { padding: Padding::same(1), ..Default::default() };
    let features = k.run(&[&x_t, &filter], |plan, t| plan.conv2d(t[0], t[1], None, options))?;
    let operands = NormOperands { activation: Some(Activation::Silu), ..Default::default() };
    let y = k.run(&[&features], |plan, t| plan.norm(t[0], Domain::Group(4), 1e-5, operands))?;

    // d sum(y conv(x)) / d filter.
    let d = k.gradients(&[&x_t, &filter], &y, |plan, t| plan.conv2d(t[0], t[1], None, options))?;
    let d_filter = d[1].as_ref().expect("the filter has a gradient");
    let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
    println!("x_t      {:?}, mean {:.4}", x_t.shape(), mean(&k.download(&x_t)?));
    println!("y        {:?}, mean {:.4}", y.shape(), mean(&k.download(&y)?));
    println!("d_filter {:?}, mean {:.4}", d_filter.shape(), mean(&k.download(d_filter)?));

    // One launch on tensors of the caller's own, in bf16 on tensor cores.
    let x_t = k.run(&[&x_t], |plan, t| Ok(plan.cast(t[0], DType::BF16)))?;
    let filter = k.upload_bf16(&[16, 3, 3, c], &vec![bf16::from_f32(0.1); 16 * 9 * c])?;
    let mut y = k.zeros_of(&[n, h, w, 16], DType::BF16)?;
    let conv = Conv2d { n, h, w, c_in: c, c_out: 16, kernel: [3, 3], options };
    k.conv2d_forward(&conv, Output::write(&mut y), &x_t, &filter, None)?;
    let y: Vec<f32> = k.download_bf16(&y)?.iter().map(|v| v.to_f32()).collect();
    println!("in bf16  [{n}, {h}, {w}, 16], mean {:.4}", mean(&y));
    Ok(())
}
