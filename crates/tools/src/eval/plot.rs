//! Figures as pictures: SVG, without a font or a picture library of the system.

use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use super::report::Report;

const SIZE: (u32, u32) = (720, 480);
/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const FONT: (&str, u32) = ("sans-serif", 16);

/// Points of one way of scoring: gold score and own score of each pair.
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// The points.
    pub points: Vec<(f64, f64)>,
}

/// Own scores over gold scores.
///
/// # Errors
/// When there is nothing to draw, or the scores are no numbers.
pub fn scatter(title: &str, series: &[Series]) -> Result<String, String> {
    let points = || series.iter().flat_map(|series| series.points.iter());
    let x = range(points().map(|point| point.0))?;
    let y = range(points().map(|point| point.1))?;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, FONT)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("gold score")
            .y_desc("score of the model")
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
            let points = series.points.iter();
            chart
                .draw_series(points.map(|&point| Circle::new(point, 2, colour.mix(0.5).filled())))
                .map_err(failed)?
                .label(series.name)
                .legend(|(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        legend(&mut chart)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Every figure of every row, as bars side by side.
///
/// # Errors
/// When there is nothing to draw.
pub fn bars(title: &str, report: &Report) -> Result<String, String> {
    let first = report.rows.first().ok_or("there is nothing to draw")?;
    let names: Vec<&str> = first
        .figures
        .0
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let groups = names.len();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        // A bar's place is its group, and a part of it for each row.
        let slots = report.rows.len() + 1;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, FONT)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d((0..groups).into_segmented(), 0.0..1.0)
            .map_err(failed)?
            .set_secondary_coord(0.0..(groups * slots) as f64, 0.0..1.0);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_labels(groups + 1)
            .x_label_formatter(&|segment| match segment {
                SegmentValue::CenterOf(group) => names.get(*group).map_or("", |n| *n).to_owned(),
                _ => String::new(),
            })
            .draw()
            .map_err(failed)?;
        for ((number, row), colour) in report.rows.iter().enumerate().zip(COLOURS.iter().cycle()) {
            let bars = row
                .figures
                .0
                .iter()
                .enumerate()
                .map(|(group, (_, figure))| {
                    let left = (group * slots + number) as f64 + 0.5;
                    let corners = [(left, 0.0), (left + 0.9, figure.unwrap_or(0.0))];
                    Rectangle::new(corners, colour.filled())
                });
            chart
                .draw_secondary_series(bars)
                .map_err(failed)?
                .label(&row.name)
                .legend(|(x, y)| {
                    Rectangle::new([(x + 2, y - 5), (x + 14, y + 5)], colour.filled())
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(BLACK)
            .background_style(WHITE)
            .label_font(FONT)
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn legend<'a, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Y>) -> Result<(), String>
where
    Y: CoordTranslate,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(FONT)
        .draw()
        .map_err(failed)
}

/// From the least value to the greatest, with a little room.
fn range(values: impl Iterator<Item = f64> + Clone) -> Result<std::ops::Range<f64>, String> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(f64::NEG_INFINITY, f64::max);
    if !(least.is_finite() && most.is_finite()) {
        return Err("there is nothing to draw".to_owned());
    }
    let room = ((most - least) * 0.03).max(1e-3);
    Ok(least - room..most + room)
}

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}
