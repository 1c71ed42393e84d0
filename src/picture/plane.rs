//! Points in the plane as pictures: scatter plots, the paths that samples take,
//! and score fields over the density they belong to.

use plotters::prelude::*;

use super::curve::{Area, Drawn, FAINT_INK, FONT, INK, MESH, OVER, chart_png};

/// Side of a panel in pixels.
const PANEL: u32 = 640;
/// Space above a panel for its title, in pixels.
const HEAD: u32 = 30;

const SAMPLES: RGBColor = RGBColor(24, 70, 140);
const REFERENCE: RGBColor = RGBColor(226, 160, 110);
const PATH: RGBColor = RGBColor(120, 140, 175);
const START: RGBColor = RGBColor(202, 98, 34);
const ARROW: RGBColor = RGBColor(20, 26, 36);
/// Colours of a density from 0 to its largest value.
const DENSITY: [[f64; 3]; 4] =
    [[255.0, 255.0, 255.0], [205.0, 222.0, 241.0], [112.0, 166.0, 213.0], [28.0, 86.0, 152.0]];

/// One panel of a score field.
#[derive(Clone, Debug)]
pub struct Field {
    /// Said above it.
    pub title: String,
    /// The panel shows `[-limit, limit]` on both axes.
    pub limit: f64,
    /// Values at the centres of `side` x `side` cells, from the lower left, row by
    /// row; empty for none. Scaled to their maximum.
    pub density: Vec<f64>,
    /// Cells of a row.
    pub side: usize,
    /// Where an arrow starts and the vector it stands for. The longest (of the
    /// shortest 95 %) is drawn as long as two arrows lie apart.
    pub arrows: Vec<([f64; 2], [f64; 2])>,
}

/// Half the side of a square around 0 that holds all but the outermost 0.5 % of
/// the points `[n, 2]`, with a margin.
fn limit(points: &[f32]) -> f64 {
    let mut reach: Vec<f32> = points
        .chunks_exact(2)
        .map(|p| p[0].abs().max(p[1].abs()))
        .filter(|r| r.is_finite())
        .collect();
    if reach.is_empty() {
        return 1.0;
    }
    reach.sort_by(f32::total_cmp);
    let at = (reach.len() * 199 / 200).min(reach.len() - 1);
    f64::from(reach[at].max(1e-3)) * 1.12
}

/// Points as (x, y), those that are not finite left out.
fn pairs(points: &[f32]) -> impl Iterator<Item = (f64, f64)> + '_ {
    points
        .chunks_exact(2)
        .map(|p| (f64::from(p[0]), f64::from(p[1])))
        .filter(|(x, y)| x.is_finite() && y.is_finite())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    BitMapBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// Square axes from -limit to limit under a title.
fn axes<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    limit: f64,
    mesh: bool,
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let (head, _) = area.split_vertically(HEAD * OVER);
    let font = (FONT, 17 * OVER).into_font().color(&INK);
    head.draw_text(title, &font, (44 * OVER as i32, 9 * OVER as i32))?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(HEAD * OVER)
        .margin_right(12 * OVER)
        .margin_bottom(4 * OVER)
        .x_label_area_size(26 * OVER)
        .y_label_area_size(44 * OVER)
        .build_cartesian_2d(-limit..limit, -limit..limit)?;
    let line = if mesh { MESH.to_rgba() } else { TRANSPARENT.to_rgba() };
    chart
        .configure_mesh()
        .axis_style(FAINT_INK.stroke_width(OVER))
        .bold_line_style(line.stroke_width(OVER))
        .light_line_style(TRANSPARENT)
        .x_labels(7)
        .y_labels(7)
        .label_style((FONT, 14 * OVER).into_font().color(&FAINT_INK))
        .draw()?;
    Ok(chart)
}

fn dots(chart: &mut Chart, points: &[f32], radius: u32, colour: RGBColor, opacity: f64) -> Drawn {
    let style = colour.mix(opacity).filled();
    chart.draw_series(pairs(points).map(|at| Circle::new(at, radius, style)))?;
    Ok(())
}

/// Points `[n, 2]` as dots, over faint dots of `reference [m, 2]`, which then
/// also decides what is shown.
pub fn scatter_png(points: &[f32], reference: Option<&[f32]>) -> Vec<u8> {
    let n = points.len() / 2;
    let shown = reference.map(|r| &r[..r.len().min(8000)]);
    let limit = limit(shown.unwrap_or(points));
    chart_png((PANEL, PANEL + HEAD), |root| {
        let title = match shown {
            Some(r) => format!("{n} samples (blue) over {} points of the data", r.len() / 2),
            None => format!("{n} samples"),
        };
        let mut chart = axes(root, &title, limit, true)?;
        if let Some(reference) = shown {
            dots(&mut chart, reference, 2 * OVER, REFERENCE, 0.35)?;
        }
        let (radius, opacity) = if n > 5000 { (OVER, 0.5) } else { (OVER * 3 / 2, 0.75) };
        dots(&mut chart, points, radius, SAMPLES, opacity)
    })
}

/// The paths of points through `frames`, each `[n, 2]`, the noise first. At most
/// 400 paths are drawn.
pub fn trajectory_png(frames: &[&[f32]], reference: Option<&[f32]>) -> Vec<u8> {
    let (first, last) = (frames.first().copied(), frames.last().copied());
    let (Some(first), Some(last)) = (first, last) else { return scatter_png(&[], reference) };
    let limit = limit(first).max(limit(last));
    let n = (first.len() / 2).min(400);
    chart_png((PANEL, PANEL + HEAD), |root| {
        let title =
            format!("{n} paths over {} states, from noise (orange) to samples", frames.len());
        let mut chart = axes(root, &title, limit, true)?;
        if let Some(reference) = reference {
            dots(&mut chart, &reference[..reference.len().min(8000)], 2 * OVER, REFERENCE, 0.25)?;
        }
        for i in 0..n {
            let path: Vec<_> =
                frames.iter().flat_map(|frame| pairs(&frame[2 * i..2 * i + 2])).collect();
            let style = PATH.mix(0.45).stroke_width(OVER / 2);
            chart.draw_series(LineSeries::new(path, style))?;
        }
        dots(&mut chart, &first[..2 * n], OVER * 3 / 2, START, 0.8)?;
        dots(&mut chart, &last[..2 * n], OVER * 3 / 2, SAMPLES, 0.9)
    })
}

fn density_colour(share: f64) -> RGBColor {
    let at = share.clamp(0.0, 1.0) * (DENSITY.len() - 1) as f64;
    let low = (at as usize).min(DENSITY.len() - 2);
    let mix =
        |c: usize| DENSITY[low][c] + (at - low as f64) * (DENSITY[low + 1][c] - DENSITY[low][c]);
    RGBColor(mix(0) as u8, mix(1) as u8, mix(2) as u8)
}

/// Score fields side by side, at most two a row: arrows over a density.
pub fn field_png(fields: &[Field]) -> Vec<u8> {
    let columns = fields.len().clamp(1, 2);
    let rows = fields.len().div_ceil(columns).max(1);
    let size = (PANEL * columns as u32, (PANEL + HEAD) * rows as u32);
    chart_png(size, |root| {
        for (area, field) in root.split_evenly((rows, columns)).iter().zip(fields) {
            draw_field(area, field)?;
        }
        Ok(())
    })
}

fn draw_field(area: &Area, field: &Field) -> Drawn {
    let limit = field.limit;
    let mut chart = axes(area, &field.title, limit, false)?;
    let most = field.density.iter().copied().filter(|d| d.is_finite()).fold(0.0, f64::max);
    if most > 0.0 {
        let cell = 2.0 * limit / field.side as f64;
        let corner = |i: usize| i as f64 * cell - limit;
        chart.draw_series(field.density.iter().enumerate().filter_map(|(k, &d)| {
            let (row, column) = (k / field.side, k % field.side);
            let share = (d / most).powf(0.6);
            (share > 0.01).then(|| {
                let corners =
                    [(corner(column), corner(row)), (corner(column + 1), corner(row + 1))];
                Rectangle::new(corners, density_colour(share).filled())
            })
        }))?;
    }
    let length = |v: &[f64; 2]| v[0].hypot(v[1]);
    let mut lengths: Vec<f64> =
        field.arrows.iter().map(|(_, v)| length(v)).filter(|l| l.is_finite()).collect();
    lengths.sort_by(f64::total_cmp);
    let Some(&longest) = lengths.get((lengths.len() * 19 / 20).min(lengths.len().max(1) - 1))
    else {
        return Ok(());
    };
    let apart = 2.0 * limit / (field.arrows.len() as f64).sqrt();
    let style = ARROW.mix(0.8).stroke_width(OVER);
    for (at, v) in &field.arrows {
        let l = length(v);
        if !(l.is_finite() && l > 0.0 && longest > 0.0) {
            continue;
        }
        // Longer vectors than the bulk keep their direction.
        let drawn = (l / longest).min(1.0) * 0.95 * apart;
        let (dx, dy) = (v[0] / l * drawn, v[1] / l * drawn);
        let tip = (at[0] + dx, at[1] + dy);
        let barb = |side: f64| {
            let (bx, by) = (-0.3 * dx - side * 0.18 * dy, -0.3 * dy + side * 0.18 * dx);
            (tip.0 + bx, tip.1 + by)
        };
        let shaft = vec![(at[0], at[1]), tip, barb(1.0), tip, barb(-1.0)];
        chart.draw_series(LineSeries::new(shaft, style))?;
    }
    Ok(())
}
