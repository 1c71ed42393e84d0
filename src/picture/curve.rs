//! The loss curve of a run: loss (each record faint, their running mean on top)
//! and the mean loss of each time quartile on a log axis; gradient norm and
//! learning rate below.

use std::ops::Range;
use std::sync::Once;

use plotters::coord::ranged1d::{KeyPointHint, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::coord::{Shift, ranged1d::NoDefaultFormatting};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::encode;
use crate::train::metrics::Record;

/// Size of the picture in pixels.
const SIZE: (u32, u32) = (1000, 640);
/// Drawn this many times larger and averaged down: plotters draws thick lines
/// without smoothing.
pub(super) const OVER: u32 = 2;
pub(super) const FONT: &str = "sans-serif";

pub(super) const INK: RGBColor = RGBColor(38, 43, 51);
pub(super) const FAINT_INK: RGBColor = RGBColor(112, 119, 130);
pub(super) const MESH: RGBColor = RGBColor(230, 232, 236);
const LOSS: RGBColor = RGBColor(24, 38, 61);
const RATE: RGBColor = RGBColor(202, 98, 34);
const NORM: RGBColor = RGBColor(58, 110, 165);
/// Quartiles from the data end of time to the noise end.
const QUARTILES: [RGBColor; 4] =
    [RGBColor(68, 119, 170), RGBColor(34, 150, 110), RGBColor(214, 160, 30), RGBColor(204, 80, 90)];

const MEAN_WIDTH: u32 = OVER * 5 / 2;
const QUARTILE_WIDTH: u32 = OVER * 3 / 2;

/// Records whose mean a point of a smoothed line is: a fiftieth of the run on
/// either side.
fn half_window(records: usize) -> usize {
    (records / 50).max(1)
}

/// Draws the course of a run as a PNG of 1000 x 640 pixels. Values that are
/// missing, zero or not finite are left out; without records the axes are empty.
pub fn loss_curve(records: &[Record]) -> Vec<u8> {
    chart_png(SIZE, |root| draw(root, records))
}

/// A picture of `size` drawn with plotters on an area OVER times as large.
pub(super) fn chart_png(size: (u32, u32), draw: impl FnOnce(&Area) -> Drawn) -> Vec<u8> {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        // A font that were refused would fail the drawing below.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
    let (width, height) = (size.0 * OVER, size.1 * OVER);
    let mut bytes = vec![255; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut bytes, (width, height)).into_drawing_area();
        draw(&root).expect("drawing into memory with a built-in font");
    }
    encode(&averaged(&bytes, size), size.1 as usize, size.0 as usize, 3)
}

/// The picture at its size: the mean of each square of OVER x OVER pixels.
fn averaged(large: &[u8], size: (u32, u32)) -> Vec<u8> {
    let over = OVER as usize;
    let (width, height) = (size.0 as usize, size.1 as usize);
    let mut small = Vec::with_capacity(width * height * 3);
    let mut sums = vec![0u32; width * 3];
    for rows in large.chunks_exact(over * width * over * 3) {
        sums.fill(0);
        for row in rows.chunks_exact(width * over * 3) {
            for (i, pixel) in row.chunks_exact(3).enumerate() {
                for (sum, &byte) in sums[i / over * 3..].iter_mut().zip(pixel) {
                    *sum += u32::from(byte);
                }
            }
        }
        small.extend(sums.iter().map(|sum| ((sum + OVER * OVER / 2) / (OVER * OVER)) as u8));
    }
    small
}

pub(super) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;
type Points = Vec<(f64, f64)>;

fn draw(root: &Area, records: &[Record]) -> Drawn {
    let (top, bottom) = root.split_vertically(430 * OVER);
    let last = records.last().map_or(1, |record| record.step).max(1) as f64;
    draw_loss(&top, records, last)?;
    let (left, right) = bottom.split_horizontally(SIZE.0 / 2 * OVER);
    let window = half_window(records.len());
    let norms = points(records, |record| Some(record.gradient_norm.into()));
    draw_small(&left, "Gradient norm", NORM, &norms, Some(window), last)?;
    let rates = points(records, |record| Some(record.learning_rate));
    draw_small(&right, "Learning rate", RATE, &rates, None, last)
}

fn draw_loss(area: &Area, records: &[Record], last: f64) -> Drawn {
    let window = half_window(records.len());
    let loss = points(records, |record| Some(record.loss.into()));
    let mean = smoothed(&loss, window);
    let quartiles: [Points; 4] = std::array::from_fn(|quarter| {
        smoothed(&points(records, |record| record.loss_quartiles[quarter].map(f64::from)), window)
    });
    let spread = spread(loss.iter().chain(quartiles.iter().flatten()));
    let (head, area) = area.split_vertically(44 * OVER);
    draw_head(&head, last)?;
    let mut chart = ChartBuilder::on(&area)
        .margin_top(4 * OVER)
        .margin_right(24 * OVER)
        .x_label_area_size(34 * OVER)
        .y_label_area_size(66 * OVER)
        .build_cartesian_2d(Linear(0.0..last), Log(spread))?;
    chart
        .configure_mesh()
        .axis_style(FAINT_INK.stroke_width(OVER))
        .bold_line_style(MESH.stroke_width(OVER))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(4 * OVER)
        .x_labels(11)
        .y_labels(9)
        .label_style((FONT, 15 * OVER).into_font().color(&FAINT_INK))
        .draw()?;
    let faint = LOSS.mix(0.3).stroke_width(OVER);
    chart.draw_series(LineSeries::new(loss, faint))?;
    for (points, colour) in quartiles.into_iter().zip(QUARTILES) {
        chart.draw_series(LineSeries::new(points, colour.stroke_width(QUARTILE_WIDTH)))?;
    }
    chart.draw_series(LineSeries::new(mean, LOSS.stroke_width(MEAN_WIDTH)))?;
    Ok(())
}

/// The title on the left, the names of the lines on the right: beside the axes,
/// where they cover no line.
fn draw_head(area: &Area, last: f64) -> Drawn {
    let over = OVER as i32;
    let title = (FONT, 21 * OVER).into_font().color(&INK);
    area.draw_text(&format!("Loss, {} steps", last as u64), &title, (66 * over, 13 * over))?;
    let font = (FONT, 15 * OVER).into_font().color(&INK);
    let quarter = |i: usize| QUARTILES[i].stroke_width(QUARTILE_WIDTH);
    let names = [
        ("most noise: last quarter of time", quarter(3)),
        ("third", quarter(2)),
        ("second", quarter(1)),
        ("least noise: first", quarter(0)),
        ("all times", LOSS.stroke_width(MEAN_WIDTH)),
    ];
    let mut right = (SIZE.0 as i32 - 24) * over;
    for (name, style) in names {
        let (width, _) = area.estimate_text_size(name, &font)?;
        right -= width as i32;
        area.draw_text(name, &font, (right, 17 * over))?;
        let line = vec![(right - 26 * over, 24 * over), (right - 6 * over, 24 * over)];
        area.draw(&PathElement::new(line, style))?;
        right -= 44 * over;
    }
    Ok(())
}

/// A panel of one quantity; `window` smooths it over its faint raw line.
fn draw_small(
    area: &Area,
    name: &str,
    colour: RGBColor,
    points: &Points,
    window: Option<usize>,
    last: f64,
) -> Drawn {
    let top = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.08 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin_bottom(8 * OVER)
        .margin_right(24 * OVER)
        .x_label_area_size(26 * OVER)
        .y_label_area_size(66 * OVER)
        .caption(name, (FONT, 17 * OVER).into_font().color(&INK))
        .build_cartesian_2d(Linear(0.0..last), Linear(0.0..top))?;
    chart
        .configure_mesh()
        .axis_style(FAINT_INK.stroke_width(OVER))
        .bold_line_style(MESH.stroke_width(OVER))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(4 * OVER)
        .x_labels(6)
        .y_labels(4)
        .label_style((FONT, 14 * OVER).into_font().color(&FAINT_INK))
        .draw()?;
    let style = colour.stroke_width(OVER * 2);
    match window {
        Some(window) => {
            let faint = colour.mix(0.3).stroke_width(OVER);
            chart.draw_series(LineSeries::new(points.iter().copied(), faint))?;
            chart.draw_series(LineSeries::new(smoothed(points, window), style))?;
        }
        None => {
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        }
    }
    Ok(())
}

/// (step, value) of the records that have a finite value, not below 0.
fn points(records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Points {
    let point = |record: &Record| Some((record.step as f64, value(record)?));
    records.iter().filter_map(point).filter(|(_, y)| y.is_finite() && *y >= 0.0).collect()
}

/// Mean over `window` points on either side, as far as there are.
fn smoothed(points: &[(f64, f64)], window: usize) -> Points {
    let mut sums = vec![0.0];
    for (_, y) in points {
        sums.push(sums[sums.len() - 1] + y);
    }
    points
        .iter()
        .enumerate()
        .map(|(i, (x, _))| {
            // Centred at the start, where a curve falls steeply; at the end, where
            // it is flat, over all there is, for a mean of few points jumps.
            let from = i - window.min(i);
            let to = (i + window.min(i) + 1).min(points.len());
            (*x, (sums[to] - sums[from]) / (to - from) as f64)
        })
        .collect()
}

/// Range of the log axis around the positive values.
fn spread<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> Range<f64> {
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for &(_, y) in points.filter(|(_, y)| *y > 0.0) {
        (least, most) = (least.min(y), most.max(y));
    }
    if most == 0.0 {
        return 0.01..1.0;
    }
    // A flat line stands in the middle of a decade.
    let margin = (most / least).powf(0.05).max(1.2);
    least / margin..most * margin
}

/// A linear axis from 0 that labels large and small numbers briefly.
struct Linear(Range<f64>);

/// A logarithmic axis labelled at 1, 2 and 5 of every decade, or at powers of
/// ten where there are many.
struct Log(Range<f64>);

impl Ranged for Linear {
    type ValueType = f64;
    type FormatOption = NoDefaultFormatting;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.0.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        RangedCoordf64::from(self.0.clone()).key_points(hint)
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Linear {
    fn format_ext(&self, value: &f64) -> String {
        brief(*value)
    }
}

impl Ranged for Log {
    type ValueType = f64;
    type FormatOption = NoDefaultFormatting;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let value = value.clamp(self.0.start, self.0.end).ln();
        RangedCoordf64::from(self.0.start.ln()..self.0.end.ln()).map(&value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let decades = self.0.start.log10().floor() as i32..=self.0.end.log10().ceil() as i32;
        let at = |mantissas: &[f64]| -> Vec<f64> {
            let of_decade = |decade| mantissas.iter().map(move |m| m * 10f64.powi(decade));
            decades.clone().flat_map(of_decade).filter(|v| self.0.contains(v)).collect()
        };
        let most = hint.max_num_points();
        let choices = [
            at(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
            at(&[1.0, 2.0, 3.0, 5.0]),
            at(&[1.0, 2.0, 5.0]),
        ];
        let fitting = choices.into_iter().find(|points| points.len() <= most);
        fitting.unwrap_or_else(|| at(&[1.0]))
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Log {
    fn format_ext(&self, value: &f64) -> String {
        brief(*value)
    }
}

/// A number in few characters: 20k, 0.05, 2e-4.
fn brief(value: f64) -> String {
    let rounded = |value: f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match value.abs() {
        0.0 => "0".into(),
        1e6.. => format!("{}M", rounded(value / 1e6)),
        1e4.. => format!("{}k", rounded(value / 1e3)),
        1e-2.. => rounded(value),
        _ => {
            let exponent = value.abs().log10().floor() as i32;
            format!("{}e{exponent}", rounded(value / 10f64.powi(exponent)))
        }
    }
}
