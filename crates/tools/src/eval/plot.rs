//! Plots in SVG, which need no system fonts or libraries.

use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use super::report::Report;

const SIZE: (u32, u32) = (720, 480);
/// A colorblind-safe palette (Okabe and Ito).
const COLORS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const FONT: (&str, u32) = ("sans-serif", 16);

/// Reference score and model score of each pair, for one precision.
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Reference score and model score of each pair.
    pub points: Vec<(f64, f64)>,
}

/// Nothing can be plotted.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// There are no scores, or some are not finite.
    #[error("no finite scores")]
    Empty,
    /// The plotting library failed.
    #[error("{0}")]
    Drawing(String),
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for PlotError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self::Drawing(error.to_string())
    }
}

/// A scatter plot of model scores over reference scores.
///
/// # Errors
/// When there are no scores, or some are not finite.
pub fn scatter(title: &str, series: &[Series]) -> Result<String, PlotError> {
    let points = || series.iter().flat_map(|series| series.points.iter());
    let x = range(points().map(|point| point.0))?;
    let y = range(points().map(|point| point.1))?;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, FONT)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc("gold score")
            .y_desc("score of the model")
            .light_line_style(WHITE)
            .draw()?;
        for (series, color) in series.iter().zip(COLORS.iter().cycle()) {
            let points = series.points.iter();
            chart
                .draw_series(points.map(|&point| Circle::new(point, 2, color.mix(0.5).filled())))?
                .label(series.name)
                .legend(|(x, y)| Circle::new((x + 8, y), 4, color.filled()));
        }
        legend(&mut chart)?;
        root.present()?;
    }
    Ok(svg)
}

/// A bar chart of every figure of every row.
///
/// # Errors
/// When the report has no rows.
pub fn bars(title: &str, report: &Report) -> Result<String, PlotError> {
    let first = report.rows.first().ok_or(PlotError::Empty)?;
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
        root.fill(&WHITE)?;
        // Each group has a slot for each row, and a gap.
        let slots = report.rows.len() + 1;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, FONT)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d((0..groups).into_segmented(), 0.0..1.0)?
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
            .draw()?;
        for ((number, row), color) in report.rows.iter().enumerate().zip(COLORS.iter().cycle()) {
            let bars = row
                .figures
                .0
                .iter()
                .enumerate()
                .map(|(group, (_, figure))| {
                    let left = (group * slots + number) as f64 + 0.5;
                    let corners = [(left, 0.0), (left + 0.9, figure.unwrap_or(0.0))];
                    Rectangle::new(corners, color.filled())
                });
            chart
                .draw_secondary_series(bars)?
                .label(&row.name)
                .legend(|(x, y)| Rectangle::new([(x + 2, y - 5), (x + 14, y + 5)], color.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(BLACK)
            .background_style(WHITE)
            .label_font(FONT)
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

fn legend<'a, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Y>) -> Result<(), PlotError>
where
    Y: CoordTranslate,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(FONT)
        .draw()?;
    Ok(())
}

/// From the minimum to the maximum, with a margin.
fn range(values: impl Iterator<Item = f64> + Clone) -> Result<std::ops::Range<f64>, PlotError> {
    let min = values.clone().fold(f64::INFINITY, f64::min);
    let max = values.fold(f64::NEG_INFINITY, f64::max);
    if !(min.is_finite() && max.is_finite()) {
        return Err(PlotError::Empty);
    }
    let margin = ((max - min) * 0.03).max(1e-3);
    Ok(min - margin..max + margin)
}
