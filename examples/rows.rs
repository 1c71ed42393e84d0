//! One row of pictures for each tensor file, as `sample --tensors` writes them:
//! `cargo run --release --example rows -- OUT.png COLUMNS FILE...`

use std::path::Path;

use langevin::checkpoint::tensors::{self, nchw_to_nhwc};
use langevin::picture::grid_png;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, columns, files @ ..] = &arguments[..] else {
        return Err("rows OUT.png COLUMNS FILE...".into());
    };
    let columns: usize = columns.parse()?;
    let (mut rows, mut image) = (Vec::new(), None);
    for file in files {
        let tensors = tensors::read(Path::new(file))?;
        let ([n, c, h, w], values) = tensors.floats("samples", ["n", "c", "h", "w"])?;
        if n < columns || *image.get_or_insert([h, w, c]) != [h, w, c] {
            return Err(format!("{file}: fewer images than {columns}, or of another size").into());
        }
        rows.extend(nchw_to_nhwc(&values[..columns * c * h * w], [columns, c, h, w])?);
    }
    let [h, w, c] = image.ok_or("no files")?;
    let shape = [files.len() * columns, h, w, c];
    std::fs::write(out, grid_png(&rows, shape, Some(columns)))?;
    Ok(())
}
